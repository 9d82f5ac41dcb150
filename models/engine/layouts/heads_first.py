"""What layouts with an array [J, G, Z, H] share: each head's pages lie together.

Dimensions:
  P sequences    T queries of each    M pages of a page table    G pages    Z tokens of a page
  W pages of a span    S = W Z keys of a span    F = J G pages of one head each    X = P T
  J = 2 K    K key/value heads    R query heads of each    N = K R    H head size
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from models.attention.masks import MASKED
from models.engine.layouts import places


def fits(config, *, size, dtype):
    """Returns True: any model, page size and dtype."""
    del config, size, dtype
    return True


def spec():
    """Returns the PartitionSpec of the array: heads over `tensor`."""
    return PartitionSpec("tensor")


def empty(config, *, pages, size, dtype):
    """Returns zeros, the array of one layer."""
    return jnp.zeros((2 * config.num_key_value_heads, pages, size, config.head_dim), dtype)


def write(cache_JGZH, k_PTKH, v_PTKH, table_PM, position_PT, valid_PT):
    """Returns the cache with keys and values at the positions where valid_PT is True."""
    new_XJH = places.interleaved(k_PTKH, v_PTKH, cache_JGZH.dtype)
    J, G, Z, H = cache_JGZH.shape
    flat_X = places.flat(table_PM, position_PT, Z)
    valid_X = valid_PT.reshape(-1)
    flat_XJ = flat_X[:, None] + jnp.arange(J) * (G * Z)
    flat_XJ = jnp.where(valid_X[:, None], flat_XJ, J * G * Z)  # out of range is dropped
    written = cache_JGZH.reshape(-1, H).at[flat_XJ].set(new_XJH, mode="drop")
    return written.reshape(cache_JGZH.shape)


def over_spans(q_PTNH, cache_JGZH, table_PM, position_PT, *, keys, whole):
    """Returns softmax attention, computed over spans of so many keys.

    Args:
      whole: reads all of the table; False stops at the end of the longest sequence.
    """
    P, T, N, H = q_PTNH.shape
    J, G, Z, _ = cache_JGZH.shape
    K, M = J // 2, table_PM.shape[1]
    R = N // K
    W = min(max(1, keys // Z), M)
    S = W * Z
    table_PM = jnp.pad(table_PM, ((0, 0), (0, -M % W)))
    q_KPRTH = q_PTNH.reshape(P, T, K, R, H).transpose(2, 0, 3, 1, 4)
    pages_FZH = cache_JGZH.reshape(J * G, Z, H)
    first_K11 = 2 * G * jnp.arange(K)[:, None, None]

    def span(i, carry):
        peak_KPRT, mass_KPRT, o_KPRTH = carry
        page_KPW = first_K11 + jax.lax.dynamic_slice_in_dim(table_PM, i * W, W, axis=1)
        k_KPSH = pages_FZH[page_KPW].reshape(K, P, S, H)
        v_KPSH = pages_FZH[page_KPW + G].reshape(K, P, S, H)
        score = jnp.einsum("KPRTH,KPSH->KPRTS", q_KPRTH, k_KPSH, preferred_element_type=jnp.float32)
        seen_PTS = i * S + jnp.arange(S) <= position_PT[:, :, None]
        score = jnp.where(seen_PTS[:, None], score * H**-0.5, MASKED)
        new_peak = jnp.maximum(peak_KPRT, score.max(-1))
        keep = jnp.exp(peak_KPRT - new_peak)
        weight = jnp.exp(score - new_peak[..., None])
        new = jnp.einsum(
            "KPRTS,KPSH->KPRTH",
            weight.astype(v_KPSH.dtype),
            v_KPSH,
            preferred_element_type=jnp.float32,
        )
        return new_peak, mass_KPRT * keep + weight.sum(-1), o_KPRTH * keep[..., None] + new

    shape = (K, P, R, T)
    start = (jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros((*shape, H)))
    spans = table_PM.shape[1] // W if whole else (position_PT.max() + S) // S
    _, mass, o_KPRTH = jax.lax.fori_loop(0, spans, span, start)
    o_KPRTH = o_KPRTH / jnp.maximum(mass, 1e-30)[..., None]
    return o_KPRTH.transpose(1, 3, 0, 2, 4).reshape(P, T, N, H).astype(q_PTNH.dtype)
