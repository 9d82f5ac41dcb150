"""Attention over pages for NVIDIA GPUs: Pallas (Triton) kernels that read them where they lie.

Flash attention (arXiv 2307.08691). Keys are taken in tiles that begin at multiples of the tile's
size, and, for one query a sequence, in splits whose number follows from the width of the page
table: what a query gets depends on its own sequence alone, and not on how a prompt was cut.

Dimensions:
  P sequences    T queries of each    N query heads    K key/value heads    R = N / K    H head size
  G pages    Z tokens of a page    M pages of a page table    W pages of a tile    S = W Z its keys
  Q queries of a tile    C splits    X queries that a program handles
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from models.attention.masks import MASKED
from models.attention.triton import LOG2_E, Tile

LEAST = 16  # rows of a product
SPLITS = 16  # at most
SPLIT_KEYS = 1024  # at least


# Measured on an H100 at Qwen2.5-7B's shapes, see docs/log.md; two stages fit smaller GPUs too.
DECODE = Tile(LEAST, 64, 4, 2)
PREFILL = Tile(128, 64, 4, 2)


def attend(q_PTNH, k_GKZH, v_GKZH, table_PM, position_PT, *, interpret=False):
    """Returns attention of each query to the keys at positions up to its own, in the dtype of q.

    Args:
      k_GKZH, v_GKZH: pages; Z and H are powers of two.
      position_PT: int32, consecutive in a row, the last one repeated at padding; all -1 in a row
        that is unused. What padding gets is finite and meaningless.
      interpret: walk through the kernels with XLA on any backend, for tests.
    """
    kernel = decode if q_PTNH.shape[1] == 1 else prefill
    return kernel(q_PTNH, k_GKZH, v_GKZH, table_PM, position_PT, interpret=interpret)


def decode(
    q_P1NH,
    k_GKZH,
    v_GKZH,
    table_PM,
    position_P1,
    *,
    tile=DECODE,
    split_keys=SPLIT_KEYS,
    interpret=False,
):
    """Returns o_P1NH: `attend` for one query a sequence, split over its keys."""
    P, _, N, H = q_P1NH.shape
    G, K, Z, _ = k_GKZH.shape
    R, M = N // K, table_PM.shape[1]
    W = max(1, tile.keys // Z)
    tiles = -(-max(split_keys, -(-M * Z // SPLITS)) // (W * Z))  # of a split
    C = -(-M // (W * tiles))
    table_PM = jnp.pad(table_PM, ((0, 0), (0, C * W * tiles - M)))
    length_P = position_P1[:, 0] + 1
    query = pl.BlockSpec((None, None, N, H), lambda c, k, p: (p, 0, 0, 0))
    pages = pl.BlockSpec((G, None, Z, H), lambda c, k, p: (0, k, 0, 0))
    part_CPNH, lse_CPN = pl.pallas_call(
        functools.partial(_decode_kernel, heads=R, tiles=tiles, pages=W),
        grid=(C, K, P),
        in_specs=[
            query,
            pages,
            pages,
            pl.BlockSpec((None, table_PM.shape[1]), lambda c, k, p: (p, 0)),
            pl.BlockSpec((1,), lambda c, k, p: (p,)),
        ],
        out_specs=[
            pl.BlockSpec((None, None, N, H), lambda c, k, p: (c, p, 0, 0)),
            pl.BlockSpec((None, None, N), lambda c, k, p: (c, p, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((C, P, N, H), jnp.float32),
            jax.ShapeDtypeStruct((C, P, N), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="paged_decode",
    )(q_P1NH, k_GKZH, v_GKZH, table_PM, length_P)
    weight_CPN = jnp.exp2(lse_CPN - lse_CPN.max(0))
    sum_PNH = (weight_CPN[..., None] * part_CPNH).sum(0)
    o_PNH = sum_PNH / weight_CPN.sum(0)[..., None]
    return o_PNH[:, None].astype(q_P1NH.dtype)


def prefill(q_PTNH, k_GKZH, v_GKZH, table_PM, position_PT, *, tile=PREFILL, interpret=False):
    """Returns o_PTNH: `attend` for many queries a sequence."""
    P, T, N, H = q_PTNH.shape
    G, K, Z, _ = k_GKZH.shape
    R, W = N // K, max(1, tile.keys // Z)
    Q = min(tile.queries, max(LEAST, pl.next_power_of_2(T)))
    q_PTNH = jnp.pad(q_PTNH, ((0, 0), (0, -T % Q), (0, 0), (0, 0)))
    table_PM = jnp.pad(table_PM, ((0, 0), (0, -table_PM.shape[1] % W)))
    blocks = q_PTNH.shape[1] // Q
    at = lambda t: blocks - 1 - t  # the last queries see the most and start first
    query = pl.BlockSpec((None, Q, None, H), lambda t, n, p: (p, at(t), n, 0))
    pages = pl.BlockSpec((G, None, Z, H), lambda t, n, p: (0, n // R, 0, 0))
    o_PTNH = pl.pallas_call(
        functools.partial(_prefill_kernel, blocks=blocks, pages=W),
        grid=(blocks, N, P),
        in_specs=[
            query,
            pages,
            pages,
            pl.BlockSpec((None, table_PM.shape[1]), lambda t, n, p: (p, 0)),
            pl.BlockSpec((None, 2), lambda t, n, p: (p, 0)),
        ],
        out_specs=query,
        out_shape=jax.ShapeDtypeStruct(q_PTNH.shape, q_PTNH.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="paged_prefill",
    )(q_PTNH, k_GKZH, v_GKZH, table_PM, position_PT[:, :: max(1, T - 1)])
    return o_PTNH[:, :T]


def _decode_kernel(q_NH, k_GZH, v_GZH, table_M, length_1, o_NH, lse_N, *, heads, tiles, pages):
    keys, H = pages * k_GZH.shape[1], q_NH.shape[1]
    length, first = length_1[0], pl.program_id(0) * tiles
    # The query heads of this key/value head. The product wants more rows: they repeat the last one,
    # so that all that is written to its place is the same.
    X = max(LEAST, pl.next_power_of_2(heads))
    head_X = pl.program_id(1) * heads + jnp.minimum(jnp.arange(X), heads - 1)
    step = functools.partial(
        _step, q_NH[head_X], k_GZH, v_GZH, table_M, last_X1=length - 1, pages=pages
    )
    end = jnp.minimum(first + tiles, pl.cdiv(length, keys))
    sum_XH, total_X, top_X = jax.lax.fori_loop(first, end, step, _nothing(X, H))
    total_X = jnp.maximum(total_X, 1e-30)  # of a split that is empty
    o_NH[head_X] = sum_XH / total_X[:, None]
    lse_N[head_X] = top_X + jnp.log2(total_X)


def _prefill_kernel(q_QH, k_GZH, v_GZH, table_M, bounds_2, o_QH, *, blocks, pages):
    Q, keys = q_QH.shape[0], pages * k_GZH.shape[1]
    first = bounds_2[0] + (blocks - 1 - pl.program_id(0)) * Q
    last = bounds_2[1]
    position_Q = jnp.minimum(first + jnp.arange(Q), last)
    step = functools.partial(_step, q_QH[...], k_GZH, v_GZH, table_M, pages=pages)
    masked = functools.partial(step, last_X1=position_Q[:, None])
    # Tiles that all these queries see need no mask. A block of padding alone sees nothing.
    end = jnp.where(first <= last, pl.cdiv(jnp.minimum(first + Q, last + 1), keys), 0)
    whole = jnp.minimum((first + 1) // keys, end)
    state = jax.lax.fori_loop(0, whole, step, _nothing(*q_QH.shape))
    sum_QH, total_Q, _ = jax.lax.fori_loop(whole, end, masked, state)
    o_QH[...] = (sum_QH / jnp.maximum(total_Q, 1e-30)[:, None]).astype(o_QH.dtype)


def _nothing(queries, head_size):
    """Returns (sum, total, top) before the first tile."""
    return (
        jnp.zeros((queries, head_size), jnp.float32),
        jnp.zeros((queries,), jnp.float32),
        jnp.full((queries,), MASKED, jnp.float32),
    )


def _step(q_XH, k_GZH, v_GZH, table_M, tile, state, *, pages, last_X1=None):
    """Takes one more tile of keys.

    Args:
      tile: its number.
      state: sum of weighted values, sum of weights, largest score times log2(e).
      last_X1: int32, the last position that a query sees; None sees the whole tile.
    """
    sum_XH, total_X, top_X = state
    _, Z, H = k_GZH.shape
    S = pages * Z
    page = table_M[tile] if pages == 1 else table_M[pl.ds(tile * pages, pages)]
    k_SH, v_SH = k_GZH[page].reshape(S, H), v_GZH[page].reshape(S, H)
    score_XS = plgpu.dot(q_XH, k_SH, trans_b=True) * (H**-0.5 * LOG2_E)
    if last_X1 is not None:
        position_1S = tile * S + jnp.arange(S)[None]
        score_XS = jnp.where(position_1S <= last_X1, score_XS, MASKED)
    new_top_X = jnp.maximum(top_X, score_XS.max(axis=1))
    kept_X = jnp.exp2(top_X - new_top_X)
    weight_XS = jnp.exp2(score_XS - new_top_X[:, None])
    total_X = total_X * kept_X + weight_XS.sum(axis=1)
    sum_XH = sum_XH * kept_X[:, None] + plgpu.dot(weight_XS.astype(v_SH.dtype), v_SH)
    return sum_XH, total_X, new_top_X
