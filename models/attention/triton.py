"""Flash attention for NVIDIA GPUs: Pallas (Triton) kernels for the masks of `masks.py`.

Each block of queries walks through the list of key blocks that it sees, first those that need no
mask, so that packed segments and prefix trees cost what they contain and no [T, T] mask is made.
Forward, query gradient and key/value gradient follow arXiv 2307.08691; nothing is added atomically,
so that results are the same in every run.

Dimensions:
  B rows    T tokens    N query heads    K key/value heads    R = N / K    H head size
  Q queries of a block    S keys of a block    C blocks of the outer loop    P of the inner loop
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from models.attention.masks import MASKED

LOG2_E = math.log2(math.e)  # the kernels' exponentials are powers of two


@dataclasses.dataclass(frozen=True)
class Tile:
    """Queries and keys of a step, warps of a program, stages of its pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


# Measured on an H100: the fastest on trees of six that were tried, see docs/log.md.
FORWARD = Tile(128, 64, 4, 2)
QUERIES_BACKWARD = Tile(128, 32, 8, 3)
KEYS_BACKWARD = Tile(64, 128, 8, 3)
PROGRAMS = 528  # of the key gradient: four for each processor of an H100, so that none waits long
BLOCK = 128  # tokens of a row are a multiple of it


def plan(until_BT, tile, *, by_key):
    """Lists for each block the blocks that it is to be multiplied with.

    Args:
      until_BT: int32, see `masks.py`; every token sees itself.
      by_key: list query blocks for each key block; else key blocks for each query block.

    Returns:
      (order_BCP, count_BC2): int32, indices of the inner blocks, those that need no mask first;
      how many need none, and how many there are. What follows in order_BCP is not meant.
    """
    B, T = until_BT.shape
    until_BPS = until_BT.reshape(B, T // tile.keys, tile.keys)
    first_C = jnp.arange(0, T, tile.queries)[:, None]  # of the queries, against keys along the row
    first_P = jnp.arange(0, T, tile.keys)
    some_BCP = first_P < first_C + tile.queries
    some_BCP = some_BCP & (until_BPS.max(2)[:, None] > first_C)
    all_BCP = first_P + tile.keys <= first_C + 1
    all_BCP = all_BCP & (until_BPS.min(2)[:, None] >= first_C + tile.queries)
    if by_key:
        some_BCP, all_BCP = some_BCP.swapaxes(1, 2), all_BCP.swapaxes(1, 2)
    whole_BC, count_BC = all_BCP.sum(2, dtype=jnp.int32), some_BCP.sum(2, dtype=jnp.int32)
    place_BCP = jnp.where(
        all_BCP,
        jnp.cumsum(all_BCP, 2) - 1,
        whole_BC[:, :, None] + jnp.cumsum(some_BCP & ~all_BCP, 2) - 1,
    )
    place_BCP = jnp.where(some_BCP, place_BCP, T)  # out of bounds: dropped
    index_P = jnp.arange(some_BCP.shape[2], dtype=jnp.int32)
    write = lambda place_P: jnp.zeros_like(index_P).at[place_P].set(index_P, mode="drop")
    order_BCP = jax.vmap(jax.vmap(write))(place_BCP)
    return order_BCP, jnp.stack([whole_BC, count_BC], axis=-1)


def forward(q_BTNH, k_BTKH, v_BTKH, until_BT, *, tile=FORWARD, interpret=False):
    """Returns (o_BTNH, lse_BNT): outputs, and float32 log-sum-exp (nats) of scaled scores.

    Args:
      until_BT: int32, see `masks.py`; every token sees itself. T is a multiple of BLOCK.
      interpret: walk through the kernel with XLA on any backend, for tests.
    """
    B, T, N, _ = q_BTNH.shape
    arrays = (until_BT, q_BTNH, k_BTKH, v_BTKH)
    number = jax.ShapeDtypeStruct((B, N, T), jnp.float32)
    return _over_queries(_forward_kernel, arrays, [q_BTNH, number], tile, interpret)


def queries_backward(arrays, *, tile=QUERIES_BACKWARD, interpret=False):
    """Returns dq_BTNH; `arrays` are (until, q, k, v, do, lse_BNT, mean_BNT)."""
    return _over_queries(_queries_backward_kernel, arrays, arrays[1:2], tile, interpret)[0]


def keys_backward(arrays, *, tile=KEYS_BACKWARD, interpret=False):
    """Returns (dk_BTKH, dv_BTKH); `arrays` as in `queries_backward`."""
    until_BT, q_BTNH, k_BTKH, *_ = arrays
    B, T, N, H = q_BTNH.shape
    K, blocks = k_BTKH.shape[2], T // tile.keys
    # Where there are few key blocks, several programs share the query heads of one.
    divisors = [p for p in range(1, N // K + 1) if N // K % p == 0]
    parts = next((p for p in divisors if B * K * blocks * p >= PROGRAMS), N // K)
    heads = N // K // parts
    order_BCP, count_BC2 = plan(until_BT, tile, by_key=True)
    at = pl.BlockSpec
    queries = at((None, T, heads, H), lambda c, h, b: (b, 0, h, 0))
    key = at((None, tile.keys, None, H), lambda c, h, b: (b, c, h // parts, 0))
    numbers = at((None, heads, T), lambda c, h, b: (b, h, 0))
    row = lambda length: at((None, None, length), lambda c, h, b: (b, c, 0))
    part = at((None, tile.keys, None, H), lambda c, h, b: (b, c, h, 0))
    sums = jax.ShapeDtypeStruct((B, T, K * parts, H), jnp.float32)
    found = pl.pallas_call(
        functools.partial(_keys_backward_kernel, queries=tile.queries, heads=heads),
        grid=(blocks, K * parts, B),
        in_specs=[
            *(row(order_BCP.shape[2]), row(2), at((None, tile.keys), lambda c, h, b: (b, c))),
            *(queries, key, key, queries, numbers, numbers),
        ],
        out_specs=[part, part],
        out_shape=[sums, sums],
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="attention_keys_backward",
    )(order_BCP, count_BC2, *arrays)
    return tuple(x.reshape(B, T, K, parts, H).sum(3).astype(k_BTKH.dtype) for x in found)


def backward(q_BTNH, k_BTKH, v_BTKH, until_BT, o_BTNH, lse_BNT, do_BTNH, *, interpret=False):
    """Returns (dq_BTNH, dk_BTKH, dv_BTKH), from what `forward` returned and do_BTNH."""
    # The sum over keys of probability times its gradient, without another pass over the keys.
    mean_BNT = jnp.einsum("BTNH,BTNH->BNT", o_BTNH, do_BTNH, preferred_element_type=jnp.float32)
    arrays = (until_BT, q_BTNH, k_BTKH, v_BTKH, do_BTNH, lse_BNT, mean_BNT)
    return (
        queries_backward(arrays, interpret=interpret),
        *keys_backward(arrays, interpret=interpret),
    )


def _over_queries(kernel, arrays, outputs, tile, interpret):
    """Runs a kernel over (block of queries, query head, row).

    Args:
      arrays: until_BT, q_BTNH, k_BTKH, v_BTKH, and for the backward kernel do_BTNH, lse_BNT and
        mean_BNT.
      outputs: arrays of the shapes and dtypes to return, [B, T, N, H] or [B, N, T].
    """
    until_BT, q_BTNH, k_BTKH, *_ = arrays
    B, T, N, H = q_BTNH.shape
    R, blocks = N // k_BTKH.shape[2], T // tile.queries
    at = lambda c: blocks - 1 - c  # the last blocks see the most and start first
    query = pl.BlockSpec((None, tile.queries, None, H), lambda c, n, b: (b, at(c), n, 0))
    key = pl.BlockSpec((None, T, None, H), lambda c, n, b: (b, 0, n // R, 0))
    number = pl.BlockSpec((None, None, tile.queries), lambda c, n, b: (b, n, at(c)))
    row = lambda length: pl.BlockSpec((None, None, length), lambda c, n, b: (b, at(c), 0))
    until = pl.BlockSpec((None, T), lambda c, n, b: (b, 0))
    order_BCP, count_BC2 = plan(until_BT, tile, by_key=False)
    kinds = [until, query, key, key, query, number, number]
    return pl.pallas_call(
        functools.partial(kernel, blocks=blocks, keys=tile.keys),
        grid=(blocks, N, B),
        in_specs=[row(order_BCP.shape[2]), row(2), *kinds[: len(arrays)]],
        out_specs=[query if x.ndim == 4 else number for x in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="attention" + kernel.__name__.removesuffix("_kernel"),
    )(order_BCP, count_BC2, *arrays)


def _seen(query, key, until, queries, keys, *, query_axis):
    """Returns bool, [queries, keys] if query_axis is 0: does the query see the key?

    Args:
      query, key: the first of the block.
      until: int32 [keys], of the keys.
    """
    query, key = query + jnp.arange(queries), key + jnp.arange(keys)
    if query_axis == 0:
        query, key, until = query[:, None], key[None], until[None]
    else:
        query, key, until = query[None], key[:, None], until[:, None]
    return (key <= query) & (query < until)


def _forward_kernel(order_P, count_2, until_T, q_QH, k_TH, v_TH, o_QH, lse_Q, *, blocks, keys):
    queries, H = q_QH.shape
    first_query = (blocks - 1 - pl.program_id(0)) * queries
    q = q_QH[...]
    scale = H**-0.5 * LOG2_E

    def pair(p, state, *, masked):
        sum_QH, total_Q, top_Q = state
        first_key = order_P[p] * keys
        at = pl.ds(first_key, keys)
        score_QS = plgpu.dot(q, k_TH[at, :], trans_b=True) * scale
        if masked:
            seen_QS = _seen(first_query, first_key, until_T[at], queries, keys, query_axis=0)
            score_QS = jnp.where(seen_QS, score_QS, MASKED)
        new_top_Q = jnp.maximum(top_Q, score_QS.max(axis=1))
        kept_Q = jnp.exp2(top_Q - new_top_Q)
        weight_QS = jnp.exp2(score_QS - new_top_Q[:, None])
        total_Q = total_Q * kept_Q + weight_QS.sum(axis=1)
        v_SH = v_TH[at, :]
        sum_QH = sum_QH * kept_Q[:, None] + plgpu.dot(weight_QS.astype(v_SH.dtype), v_SH)
        return sum_QH, total_Q, new_top_Q

    state = (
        jnp.zeros((queries, H), jnp.float32),
        jnp.zeros((queries,), jnp.float32),
        jnp.full((queries,), MASKED, jnp.float32),
    )
    state = jax.lax.fori_loop(0, count_2[0], functools.partial(pair, masked=False), state)
    state = jax.lax.fori_loop(count_2[0], count_2[1], functools.partial(pair, masked=True), state)
    sum_QH, total_Q, top_Q = state
    o_QH[...] = (sum_QH / total_Q[:, None]).astype(o_QH.dtype)
    lse_Q[...] = (top_Q + jnp.log2(total_Q)) / LOG2_E


def _queries_backward_kernel(
    order_P, count_2, until_T, q_QH, k_TH, v_TH, do_QH, lse_Q, mean_Q, dq_QH, *, blocks, keys
):
    queries, H = q_QH.shape
    first_query = (blocks - 1 - pl.program_id(0)) * queries
    q, do = q_QH[...], do_QH[...]
    lse, mean = lse_Q[...][:, None] * LOG2_E, mean_Q[...][:, None]
    scale = H**-0.5 * LOG2_E

    def pair(p, dq, *, masked):
        first_key = order_P[p] * keys
        at = pl.ds(first_key, keys)
        k_SH = k_TH[at, :]
        score_QS = plgpu.dot(q, k_SH, trans_b=True) * scale
        if masked:
            seen_QS = _seen(first_query, first_key, until_T[at], queries, keys, query_axis=0)
            score_QS = jnp.where(seen_QS, score_QS, MASKED)
        weight_QS = jnp.exp2(score_QS - lse)
        dscore_QS = weight_QS * (plgpu.dot(do, v_TH[at, :], trans_b=True) - mean)
        return dq + plgpu.dot(dscore_QS.astype(k_SH.dtype), k_SH)

    dq = jnp.zeros((queries, H), jnp.float32)
    dq = jax.lax.fori_loop(0, count_2[0], functools.partial(pair, masked=False), dq)
    dq = jax.lax.fori_loop(count_2[0], count_2[1], functools.partial(pair, masked=True), dq)
    dq_QH[...] = (dq * H**-0.5).astype(dq_QH.dtype)


def _keys_backward_kernel(
    order_P,
    count_2,
    until_S,
    q_TNH,
    k_SH,
    v_SH,
    do_TNH,
    lse_NT,
    mean_NT,
    dk_SH,
    dv_SH,
    *,
    queries,
    heads,
):
    keys, H = k_SH.shape
    first_key = pl.program_id(0) * keys
    k, v, until = k_SH[...], v_SH[...], until_S[...]
    scale = H**-0.5 * LOG2_E

    def pair(p, state, *, head, masked):
        dk, dv = state
        first_query = order_P[p] * queries
        at = pl.ds(first_query, queries)
        q_QH, do_QH = q_TNH[at, head, :], do_TNH[at, head, :]
        # Scores stand with the keys first, so that both sums over queries are plain products.
        score_SQ = plgpu.dot(k, q_QH, trans_b=True) * scale
        if masked:
            seen_SQ = _seen(first_query, first_key, until, queries, keys, query_axis=1)
            score_SQ = jnp.where(seen_SQ, score_SQ, MASKED)
        weight_SQ = jnp.exp2(score_SQ - lse_NT[head, at][None] * LOG2_E)
        dv = dv + plgpu.dot(weight_SQ.astype(do_QH.dtype), do_QH)
        dscore_SQ = weight_SQ * (plgpu.dot(v, do_QH, trans_b=True) - mean_NT[head, at][None])
        dk = dk + plgpu.dot(dscore_SQ.astype(q_QH.dtype), q_QH)
        return dk, dv

    def of_head(head, state):
        for masked, start, end in ((False, 0, count_2[0]), (True, count_2[0], count_2[1])):
            step = functools.partial(pair, head=head, masked=masked)
            state = jax.lax.fori_loop(start, end, step, state)
        return state

    state = (jnp.zeros((keys, H), jnp.float32), jnp.zeros((keys, H), jnp.float32))
    dk, dv = jax.lax.fori_loop(0, heads, of_head, state)
    dk_SH[...] = dk * H**-0.5
    dv_SH[...] = dv
