"""Attention over grouped query heads.

Dimensions:
  B rows    T query tokens    S key tokens    N query heads    K key/value heads
  R query heads per key/value head (N = K * R)    H head size    X = R * T
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
    S, K = k_BSKH.shape[1:3]
    R = N // K
    # T and R become one axis, X, of the small array q: else XLA:CPU transposes the scores in every
    # product (a whole update takes 1.2 times as long).
    q_BKXH = q_BTNH.reshape(B, T, K, R, H).transpose(0, 2, 3, 1, 4).reshape(B, K, R * T, H)
    score_BKXS = jnp.einsum("BKXH,BSKH->BKXS", q_BKXH, k_BSKH, preferred_element_type=jnp.float32)
    score_BKRTS = score_BKXS.reshape(B, K, R, T, S) * H**-0.5
    score_BKRTS = jnp.where(mask_BTS[:, None, None], score_BKRTS, MASKED)
    weight_BKRTS = jax.nn.softmax(score_BKRTS, axis=-1).astype(v_BSKH.dtype)
    weight_BKXS = weight_BKRTS.reshape(B, K, R * T, S)
    o_BKXH = jnp.einsum("BKXS,BSKH->BKXH", weight_BKXS, v_BSKH)
    o_BTKRH = o_BKXH.reshape(B, K, R, T, H).transpose(0, 3, 1, 2, 4)
    return o_BTKRH.reshape(B, T, N, H).astype(q_BTNH.dtype)
