"""Flash attention in plain JAX, block by block (arXiv 2205.14135, 2307.08691), for any backend.

Works only on the pairs of a query block and a key block that see each other, in a loop whose length
is data: rows packed with short segments or prefix trees cost what they contain. Memory grows with
T, not with its square; the backward pass recomputes the probabilities.

Dimensions:
  B rows    T tokens    N query heads    K key/value heads    R = N / K    H head size
  C blocks of a row    Q queries of a block    S keys of a block (as many)    X = R * Q
  P pairs of blocks
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from models.attention.masks import MASKED, SAVED


def visible_pairs(until_BT, block, *, by_key=False):
    """Returns the pairs of blocks in which some query sees some key.

    Args:
      until_BT: int32, as in `masks.py`; every token sees itself.
      block: tokens of a block; divides T.
      by_key: order by row, key block, query block; else by row, query block, key block.

    Returns:
      (row_P, query_P, key_P, count): int32 [P] indices of row, query block and key block, and how
      many of the P = B * C * (C + 1) / 2 pairs are meant; the rest repeat the last one.
    """
    B, T = until_BT.shape
    blocks = T // block
    reach_BC = until_BT.reshape(B, blocks, block).max(axis=2)
    # Indices: row, query block, key block.
    seen_BCC = jnp.tril(reach_BC[:, None, :] > block * jnp.arange(blocks)[:, None])
    if by_key:
        seen_BCC = seen_BCC.swapaxes(1, 2)
    count = jnp.sum(seen_BCC, dtype=jnp.int32)
    most = B * blocks * (blocks + 1) // 2
    flat_P = jnp.nonzero(seen_BCC.reshape(-1), size=most)[0].astype(jnp.int32)
    flat_P = flat_P[jnp.minimum(jnp.arange(most), count - 1)]
    row_P, outer_P, inner_P = flat_P // blocks**2, flat_P // blocks % blocks, flat_P % blocks
    query_P, key_P = (inner_P, outer_P) if by_key else (outer_P, inner_P)
    return row_P, query_P, key_P, count


def attend(q_BTNH, k_BTKH, v_BTKH, until_BT, *, block):
    """Computes attention as a kernel for kernels.whole_rows."""
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    C, R = T // block, N // K
    q_BCQKRH = q_BTNH.reshape(B, C, block, K, R, H)
    q_BCKXH = q_BCQKRH.transpose(0, 1, 3, 4, 2, 5).reshape(B, C, K, R * block, H)
    k_BCKSH, v_BCKSH = (x.reshape(B, C, block, K, H).swapaxes(2, 3) for x in (k_BTKH, v_BTKH))
    o_BCKXH = _attend(q_BCKXH, k_BCKSH, v_BCKSH, until_BT, block)
    o_BCKRQH = o_BCKXH.reshape(B, C, K, R, block, H)
    return o_BCKRQH.transpose(0, 1, 4, 2, 3, 5).reshape(B, T, N, H)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BCKXH, k_BCKSH, v_BCKSH, until_BT, block):
    return _forward(q_BCKXH, k_BCKSH, v_BCKSH, until_BT, block)[0]


def _scores(q_KXH, k_KSH, until_S, query, key, block):
    """Returns float32 [K, X, S] scaled scores of a pair of blocks, MASKED where a key is unseen."""
    K, X, H = q_KXH.shape
    query_Q1 = query * block + jnp.arange(block)[:, None]
    seen_QS = (key * block + jnp.arange(block) <= query_Q1) & (query_Q1 < until_S)
    score_KXS = jnp.einsum("KXH,KSH->KXS", q_KXH, k_KSH, preferred_element_type=jnp.float32)
    score_KRQS = score_KXS.reshape(K, X // block, block, block) * H**-0.5
    return jnp.where(seen_QS, score_KRQS, MASKED).reshape(K, X, block)


def _forward(q_BCKXH, k_BCKSH, v_BCKSH, until_BT, block):
    """Returns (o_BCKXH, lse_BCKX): outputs, and float32 log-sum-exp of each query's scores."""
    B, C, K, X, H = q_BCKXH.shape
    row_P, query_P, key_P, count = visible_pairs(until_BT, block)
    until_BCS = until_BT.reshape(B, C, block)

    def pair(p, state):
        sum_BCKXH, total_BCKX, top_BCKX = state
        at, of = (row_P[p], query_P[p]), (row_P[p], key_P[p])
        score_KXS = _scores(q_BCKXH[at], k_BCKSH[of], until_BCS[of], at[1], of[1], block)
        top_KX = jnp.maximum(top_BCKX[at], score_KXS.max(axis=-1))
        kept_KX = jnp.exp(top_BCKX[at] - top_KX)
        weight_KXS = jnp.exp(score_KXS - top_KX[:, :, None])
        added_KXH = jnp.einsum(
            "KXS,KSH->KXH",
            weight_KXS.astype(v_BCKSH.dtype),
            v_BCKSH[of],
            preferred_element_type=jnp.float32,
        )
        return (
            sum_BCKXH.at[at].set(sum_BCKXH[at] * kept_KX[:, :, None] + added_KXH),
            total_BCKX.at[at].set(total_BCKX[at] * kept_KX + weight_KXS.sum(axis=-1)),
            top_BCKX.at[at].set(top_KX),
        )

    start = (
        jnp.zeros((B, C, K, X, H), jnp.float32),
        jnp.zeros((B, C, K, X), jnp.float32),
        jnp.full((B, C, K, X), MASKED, jnp.float32),
    )
    sum_BCKXH, total_BCKX, top_BCKX = jax.lax.fori_loop(0, count, pair, start)
    o_BCKXH = (sum_BCKXH / total_BCKX[..., None]).astype(q_BCKXH.dtype)
    return o_BCKXH, top_BCKX + jnp.log(total_BCKX)


def _attend_forward(q_BCKXH, k_BCKSH, v_BCKSH, until_BT, block):
    o_BCKXH, lse_BCKX = _forward(q_BCKXH, k_BCKSH, v_BCKSH, until_BT, block)
    o_BCKXH = checkpoint_name(o_BCKXH, SAVED)
    lse_BCKX = checkpoint_name(lse_BCKX, SAVED)
    return o_BCKXH, (q_BCKXH, k_BCKSH, v_BCKSH, until_BT, o_BCKXH, lse_BCKX)


def _attend_backward(block, saved, do_BCKXH):
    q_BCKXH, k_BCKSH, v_BCKSH, until_BT, o_BCKXH, lse_BCKX = saved
    B, C, K, X, H = q_BCKXH.shape
    row_P, query_P, key_P, count = visible_pairs(until_BT, block)
    until_BCS = until_BT.reshape(B, C, block)
    # The sum over keys of probability times its gradient, without another pass over the keys.
    mean_BCKX = jnp.sum(o_BCKXH.astype(jnp.float32) * do_BCKXH.astype(jnp.float32), axis=-1)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def pair(p, state):
        dq_BCKXH, dk_BCKSH, dv_BCKSH = state
        at, of = (row_P[p], query_P[p]), (row_P[p], key_P[p])
        q_KXH, k_KSH, v_KSH, do_KXH = q_BCKXH[at], k_BCKSH[of], v_BCKSH[of], do_BCKXH[at]
        score_KXS = _scores(q_KXH, k_KSH, until_BCS[of], at[1], of[1], block)
        weight_KXS = jnp.exp(score_KXS - lse_BCKX[at][:, :, None])
        dweight_KXS = product("KXH,KSH->KXS", do_KXH, v_KSH)
        dscore_KXS = weight_KXS * (dweight_KXS - mean_BCKX[at][:, :, None]) * H**-0.5
        dscore_KXS = dscore_KXS.astype(q_KXH.dtype)
        weight_KXS = weight_KXS.astype(do_KXH.dtype)
        return (
            dq_BCKXH.at[at].add(product("KXS,KSH->KXH", dscore_KXS, k_KSH)),
            dk_BCKSH.at[of].add(product("KXS,KXH->KSH", dscore_KXS, q_KXH)),
            dv_BCKSH.at[of].add(product("KXS,KXH->KSH", weight_KXS, do_KXH)),
        )

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q_BCKXH, k_BCKSH, v_BCKSH))
    grads = jax.lax.fori_loop(0, count, pair, start)
    inputs = (q_BCKXH, k_BCKSH, v_BCKSH)
    return *(grad.astype(x.dtype) for grad, x in zip(grads, inputs, strict=True)), None


_attend.defvjp(_attend_forward, _attend_backward)
