"""Where new keys and values go, for all layouts.

Dimensions:
  P sequences    T tokens of each    X = P T    M pages of a page table    Z tokens of a page
  K key/value heads    J = 2 K    H head size
"""

import jax.numpy as jnp


def interleaved(k_PTKH, v_PTKH, dtype):
    """Returns [X, J, H]: the heads of keys and values in turns (k0 v0 k1 v1 ...)."""
    new_PTKH2 = jnp.stack([k_PTKH, v_PTKH], axis=3)
    P, T, K, _, H = new_PTKH2.shape
    return new_PTKH2.reshape(P * T, 2 * K, H).astype(dtype)


def flat(table_PM, position_PT, size):
    """Returns int32 [X]: each token's place among the tokens of all pages of `size`."""
    page_PT = jnp.take_along_axis(table_PM, position_PT // size, axis=1)
    return (page_PT * size + position_PT % size).reshape(-1)
