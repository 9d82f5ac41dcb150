"""GPU. Reads as far as the page table is wide, so that the host need not follow a loop.

The engine compiles it for several widths of tables. Decoding in half precision gathers the pages
for cuDNN, which reads as far as each sequence goes, and needs a GPU.

Dimensions:
  P sequences    T queries of each    M pages of a page table    G pages    Z tokens of a page
  S = M Z keys    J = 2 K heads of keys and values    N query heads    H head size
"""

import jax
import jax.numpy as jnp

from models.engine.layouts import heads_first

PLATFORMS = ("cpu", "gpu")
KEYS = 1024  # of a span

fits, spec = heads_first.fits, heads_first.spec
empty, write = heads_first.empty, heads_first.write


def widths(most):
    """Returns the widths of page tables that programs are compiled for; `most` is the last."""
    return tuple(sorted({max(1, most // 16), max(1, most // 4), most}))


def attend(q_PTNH, cache_JGZH, table_PM, position_PT):
    """Attends to whole page tables; see `cache`."""
    if q_PTNH.shape[1] > 1 or q_PTNH.dtype not in (jnp.bfloat16, jnp.float16):
        return heads_first.over_spans(
            q_PTNH, cache_JGZH, table_PM, position_PT, keys=KEYS, whole=True
        )
    P, M = table_PM.shape
    J, _, Z, H = cache_JGZH.shape
    kv_JPSH = cache_JGZH[:, table_PM].reshape(J, P, M * Z, H)
    return jax.nn.dot_product_attention(
        q_PTNH,
        kv_JPSH[::2].transpose(1, 2, 0, 3),
        kv_JPSH[1::2].transpose(1, 2, 0, 3),
        key_value_seq_lengths=jnp.maximum(position_PT[:, 0] + 1, 1),
        implementation="cudnn",
    )
