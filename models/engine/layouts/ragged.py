"""TPU, array [G, Z, J, H]. `ragged_paged_attention` stops at the length of each sequence.

Dimensions:
  P sequences    T queries of each    X = P T    M pages of a page table    G pages
  Z tokens of a page    K key/value heads    J = 2 K    N query heads    H head size, padded
"""

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from models.engine.layouts import places

PLATFORMS = ("tpu",)
KEYS = 1024  # that are read at a time
QUERIES = 32  # that the kernel takes together
LANES = 128  # head sizes below are padded to it


def fits(config, *, size, dtype):
    """Returns True: any model, page size and dtype."""
    del config, size, dtype
    return True


def widths(most):
    """Returns the widths of page tables that programs are compiled for; `most` is the last."""
    return (most,)


def spec():
    """Returns the PartitionSpec of the array: heads over `tensor`."""
    return PartitionSpec(None, None, "tensor")


def empty(config, *, pages, size, dtype):
    """Returns zeros, the array of one layer."""
    heads, head = 2 * config.num_key_value_heads, config.head_dim
    return jnp.zeros((pages, size, heads, -(-head // LANES) * LANES), dtype)


def write(cache_GZJH, k_PTKH, v_PTKH, table_PM, position_PT, valid_PT):
    """Returns the cache with keys and values at the positions where valid_PT is True."""
    G, Z, J, H = cache_GZJH.shape
    new_XJH = places.interleaved(k_PTKH, v_PTKH, cache_GZJH.dtype)
    flat_X = places.flat(table_PM, position_PT, Z)
    valid_X = valid_PT.reshape(-1)
    new_XJH = jnp.pad(new_XJH, ((0, 0), (0, 0), (0, H - k_PTKH.shape[-1])))
    flat_X = jnp.where(valid_X, flat_X, G * Z)  # out of range is dropped
    written = cache_GZJH.reshape(G * Z, J, H).at[flat_X].set(new_XJH, mode="drop")
    return written.reshape(cache_GZJH.shape)


def attend(q_PTNH, cache_GZJH, table_PM, position_PT):
    """Attends by JAX's paged kernel; see `cache`."""
    from jax.experimental.pallas.ops.tpu import ragged_paged_attention

    P, T, N, head = q_PTNH.shape
    _, Z, _, H = cache_GZJH.shape
    q_XNH = jnp.pad(q_PTNH, ((0, 0), (0, 0), (0, 0), (0, H - head))).reshape(P * T, N, H)
    # A row's last queries may be padding: they read past their sequence, and nobody reads them.
    o_XNH = ragged_paged_attention.ragged_paged_attention(
        q_XNH,
        cache_GZJH,
        jnp.maximum(position_PT[:, 0], 0) + T,
        table_PM,
        jnp.arange(P + 1, dtype=jnp.int32) * T,
        jnp.full(1, P, jnp.int32),
        sm_scale=head**-0.5,
        # Given, because the kernel's own table asks for the device it runs on, which may be absent.
        num_kv_pages_per_block=min(max(1, KEYS // Z), table_PM.shape[1]),
        num_queries_per_block=min(QUERIES, P * T),
    )
    return o_XNH.reshape(P, T, N, H)[..., :head]
