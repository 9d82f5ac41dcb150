"""NVIDIA GPUs, arrays [G, K, Z, H] of keys and of values, read where they lie by our own kernels.

Dimensions:
  P sequences    T queries of each    X = P T    M pages of a page table    G pages
  Z tokens of a page    K key/value heads    N query heads    H head size
"""

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from models.engine.layouts import places

PLATFORMS = ("gpu",)


def fits(config, *, size, dtype):
    """Returns whether the kernels can run: half precision, and sizes that are powers of two."""
    powers = (size, config.head_dim)
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    return half and config.head_dim >= 16 and all(n & (n - 1) == 0 for n in powers)


def widths(most):
    """Returns the widths of page tables that programs are compiled for; `most` is the last."""
    return (most,)


def spec():
    """Returns the PartitionSpec of both arrays: heads over `tensor`."""
    return PartitionSpec(None, "tensor")


def empty(config, *, pages, size, dtype):
    """Returns zeros, the (keys, values) of one layer."""
    shape = (pages, config.num_key_value_heads, size, config.head_dim)
    return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)


def write(cache, k_PTKH, v_PTKH, table_PM, position_PT, valid_PT):
    """Returns the cache with keys and values at the positions where valid_PT is True."""
    G, K, Z, H = cache[0].shape
    flat_X = places.flat(table_PM, position_PT, Z)
    page_X1, place_X1 = (flat_X // Z)[:, None], (flat_X % Z)[:, None]
    flat_XK = (page_X1 * K + jnp.arange(K)) * Z + place_X1
    flat_XK = jnp.where(valid_PT.reshape(-1, 1), flat_XK, G * K * Z)  # out of range is dropped

    def put(pages_GKZH, new_PTKH):
        new_XKH = new_PTKH.reshape(-1, K, H).astype(pages_GKZH.dtype)
        written = pages_GKZH.reshape(-1, H).at[flat_XK].set(new_XKH, mode="drop")
        return written.reshape(pages_GKZH.shape)

    return put(cache[0], k_PTKH), put(cache[1], v_PTKH)


def attend(q_PTNH, cache, table_PM, position_PT):
    """Attends by the kernels; see `cache`."""
    from models.attention import paged  # here, because Pallas takes a second to load

    return paged.attend(q_PTNH, *cache, table_PM, position_PT)
