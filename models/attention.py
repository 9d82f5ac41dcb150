"""Attention over grouped query heads.

Dimensions:
  B rows    T query tokens    S key tokens    N query heads    K key/value heads
  R query heads per key/value head (N = K * R)    H head size
"""

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite: a query that sees no key must give a finite (unused) output


def segment_mask(segment_BT):
    """Causal mask inside segments.

    Args:
      segment_BT: int32; tokens of one sequence share a positive number, 0 is padding.

    Returns:
      bool [B, T, T], True where query t may see key s: s <= t, same segment, not padding.
    """
    tokens = segment_BT.shape[1]
    same_BTT = segment_BT[:, :, None] == segment_BT[:, None, :]
    real_B1T = (segment_BT > 0)[:, None, :]
    return same_BTT & real_B1T & jnp.tri(tokens, dtype=bool)


def attend_reference(q_BTNH, k_BSKH, v_BSKH, mask_BTS):
    """Softmax attention in float32, any backend; the definition the fast kernels are tested on.

    Args:
      q_BTNH, k_BSKH, v_BSKH: queries, keys and values; query head n reads kv head n // R.
      mask_BTS: bool, True where query t sees key s.

    Returns:
      [B, T, N, H] in the dtype of q. Rows that see nothing are finite and meaningless.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKRH = q_BTNH.reshape(B, T, K, N // K, H)
    score_BKRTS = jnp.einsum(
        "BTKRH,BSKH->BKRTS", q_BTKRH, k_BSKH, preferred_element_type=jnp.float32
    )
    score_BKRTS = jnp.where(mask_BTS[:, None, None], score_BKRTS * H**-0.5, MASKED)
    weight_BKRTS = jax.nn.softmax(score_BKRTS, axis=-1).astype(v_BSKH.dtype)
    o_BTKRH = jnp.einsum("BKRTS,BSKH->BTKRH", weight_BKRTS, v_BSKH)
    return o_BTKRH.reshape(B, T, N, H).astype(q_BTNH.dtype)
