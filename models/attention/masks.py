"""Who sees whom in a row, and attention by that definition.

Who sees whom is one vector, `until_BT`: query i sees key j iff j <= i < until_BT[b, j]. Padding has
until 0, packed segments the end of their segment, and the nodes of a prefix tree in depth-first
order the end of their subtree (the column-wise bound of FlashMask, arXiv 2410.01359).

Dimensions:
  B rows    T query tokens    S key tokens    N query heads    K key/value heads
  R query heads per key/value head (N = K * R)    H head size    X = R * T
"""

import jax
import jax.numpy as jnp

SAVED = "attention"  # `checkpoint_name` of what a backward pass wants of attention
MASKED = -1e30  # finite: a query that sees no key must give a finite (unused) output


def until_of_segments(segment_BT):
    """Returns int32 [B, T]: the end (exclusive) of each token's run, 0 on padding.

    Args:
      segment_BT: int; neighbours with the same positive number are one sequence, 0 is padding.
    """
    tokens = segment_BT.shape[1]
    last_BT = jnp.diff(segment_BT, axis=1, append=-1) != 0
    end_BT = jnp.where(last_BT, jnp.arange(1, tokens + 1, dtype=jnp.int32), tokens)
    end_BT = jax.lax.cummin(end_BT, axis=1, reverse=True)
    return jnp.where(segment_BT > 0, end_BT, 0)


def positions(until_BT):
    """Returns int32 [B, T]: how many earlier tokens each token sees, its rotary position."""
    index_T = jnp.arange(until_BT.shape[1], dtype=jnp.int32)
    opens_BT = (until_BT > index_T).astype(jnp.int32)  # a token that nobody sees opens nothing
    closes = lambda until_T, opens_T: jnp.zeros_like(until_T).at[until_T].add(opens_T, mode="drop")
    return jnp.maximum(jnp.cumsum(opens_BT - jax.vmap(closes)(until_BT, opens_BT), axis=1) - 1, 0)


def visible(until_BT):
    """Returns bool [B, T, T], True where query t (first) may see key s: s <= t < until_BT[b, s]."""
    index_T = jnp.arange(until_BT.shape[1], dtype=jnp.int32)
    return (index_T <= index_T[:, None]) & (index_T[:, None] < until_BT[:, None, :])


def attend_reference(q_BTNH, k_BSKH, v_BSKH, mask_BTS):
    """Computes softmax attention in float32: the definition that fast kernels are tested on.

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
