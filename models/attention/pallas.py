"""Flash attention for TPU: Pallas kernels for the one family of masks of `masks.py`.

The grid runs only over the list of block pairs that see each other, so its size is data: packed
segments and prefix trees cost what they contain, and no [T, T] mask is made. Forward,
query gradient and key/value gradient follow arXiv 2307.08691.

Dimensions:
  B rows    T tokens    N query heads    K key/value heads    R = N / K    H head size
  C blocks of a row    Q queries of a block    S keys of a block (as many)
  P pairs of blocks
  L lanes of a vector register; per-query numbers are repeated along them    1 broadcast
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from models.attention.blockwise import visible_pairs
from models.attention.masks import MASKED, SAVED

LANES = 128
FIRST, LAST, WHOLE = 1, 2, 4  # of a pair: opens or closes the output block, needs no mask


def attend(q_BTNH, k_BTKH, v_BTKH, until_BT, *, block, interpret=False):
    """Computes attention as a kernel for kernels.whole_rows.

    Args:
      block: tokens of a block, a multiple of 128; divides T.
      interpret: walk through the kernels with XLA on any backend, for tests.
    """
    q_BNTH, k_BKTH, v_BKTH = (x.swapaxes(1, 2) for x in (q_BTNH, k_BTKH, v_BTKH))
    return _attend(q_BNTH, k_BKTH, v_BKTH, until_BT, block, interpret).swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q_BNTH, k_BKTH, v_BKTH, until_BT, block, interpret):
    return _forward(q_BNTH, k_BKTH, v_BKTH, until_BT, block, interpret)[0]


def _attend_forward(q_BNTH, k_BKTH, v_BKTH, until_BT, block, interpret):
    o_BNTH, lse_BN1T = _forward(q_BNTH, k_BKTH, v_BKTH, until_BT, block, interpret)
    o_BNTH = checkpoint_name(o_BNTH, SAVED)
    lse_BN1T = checkpoint_name(lse_BN1T, SAVED)
    return o_BNTH, (q_BNTH, k_BKTH, v_BKTH, until_BT, o_BNTH, lse_BN1T)


def _attend_backward(block, interpret, saved, do_BNTH):
    q_BNTH, k_BKTH, v_BKTH, until_BT, o_BNTH, lse_BN1T = saved
    # The sum over keys of probability times its gradient, without another pass over the keys.
    mean_BNT = jnp.sum(o_BNTH.astype(jnp.float32) * do_BNTH.astype(jnp.float32), axis=-1)
    inputs = (q_BNTH, k_BKTH, v_BKTH, until_BT, do_BNTH, lse_BN1T, mean_BNT[:, :, None])
    (dq_BNTH,) = _launch(
        _queries_backward_kernel,
        inputs,
        outputs=[("query", q_BNTH)],
        scratch=lambda Q, H: [(Q, H)],
        block=block,
        interpret=interpret,
    )
    # Not `pl.num_programs`: jax 0.11 traces a kernel once for blocks of the same shapes.
    shared = q_BNTH.shape[1] // k_BKTH.shape[1]
    dk_BKTH, dv_BKTH = _launch(
        functools.partial(_keys_backward_kernel, shared),
        inputs,
        outputs=[("key", k_BKTH), ("key", v_BKTH)],
        scratch=lambda Q, H: [(Q, H), (Q, H)],
        by_key=True,
        block=block,
        interpret=interpret,
    )
    return dq_BNTH, dk_BKTH, dv_BKTH, None


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(q_BNTH, k_BKTH, v_BKTH, until_BT, block, interpret):
    """Returns (o_BNTH, lse_BN1T): outputs, and float32 log-sum-exp of each query's scores."""
    B, N, T, _ = q_BNTH.shape
    return _launch(
        _forward_kernel,
        (q_BNTH, k_BKTH, v_BKTH, until_BT),
        outputs=[("query", q_BNTH), ("number", jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32))],
        scratch=lambda Q, H: [(Q, LANES), (Q, LANES), (Q, H)],
        block=block,
        interpret=interpret,
    )


def _launch(kernel, inputs, *, outputs, scratch, block, interpret, by_key=False):
    """Runs a kernel over (head, visible pair, query head of a key/value head).

    Args:
      inputs: q_BNTH, k_BKTH, v_BKTH, until_BT, and for the backward kernels do_BNTH, lse_BN1T and
        mean_BN1T.
      outputs: (kind of block, array of the shape and dtype) of each output.
      scratch: (Q, H) -> shapes of the float32 accumulators.
      by_key: outputs belong to key blocks, which gather from several query heads; else to query
        blocks.
    """
    q_BNTH, k_BKTH, v_BKTH, until_BT, *more = inputs
    N, T, H = q_BNTH.shape[1:]
    K = k_BKTH.shape[1]
    R = N // K
    inner = R if by_key else 1
    plan, count = _plan(until_BT, block, by_key=by_key)

    def at(shape, index):  # `index`: (row, query head, kv head, query block, key block) -> block
        def block_index(head, p, r, row_P, query_P, key_P, _):
            n = head * inner + r
            return index(row_P[p], n, jax.lax.div(n, R), query_P[p], key_P[p])

        return pl.BlockSpec(shape, block_index)

    spec = {
        "query": at((None, None, block, H), lambda row, n, k, query, key: (row, n, query, 0)),
        "key": at((None, None, block, H), lambda row, n, k, query, key: (row, k, key, 0)),
        "until": at((None, 1, block), lambda row, n, k, query, key: (row, 0, key)),
        "number": at((None, None, 1, block), lambda row, n, k, query, key: (row, n, 0, query)),
    }
    kinds = ["query", "key", "key", "until", "query", "number", "number"]
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(plan),
            grid=(N // inner, count, inner),
            in_specs=[spec[kind] for kind in kinds[: len(inputs)]],
            out_specs=[spec[kind] for kind, _ in outputs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch(block, H)],
        ),
        out_shape=[jax.ShapeDtypeStruct(like.shape, like.dtype) for _, like in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary")
        ),
        interpret=interpret,
        name=getattr(kernel, "func", kernel).__name__.strip("_"),
    )(*plan, q_BNTH, k_BKTH, v_BKTH, until_BT[:, None], *more)


def _plan(until_BT, block, *, by_key):
    """Lists the pairs that the grid walks: (row_P, query_P, key_P, flags_P) and their number."""
    B, T = until_BT.shape
    row_P, query_P, key_P, count = visible_pairs(until_BT, block, by_key=by_key)
    output_P = row_P * (T // block) + (key_P if by_key else query_P)
    changes_P = jnp.diff(output_P) != 0
    first_P = jnp.append(True, changes_P)
    last_P = jnp.append(changes_P, True) | (jnp.arange(output_P.size) == count - 1)
    least_BC = until_BT.reshape(B, T // block, block).min(axis=2)
    whole_P = (key_P < query_P) & (least_BC[row_P, key_P] >= (query_P + 1) * block)
    flags_P = FIRST * first_P + LAST * last_P + WHOLE * whole_P
    return (row_P, query_P, key_P, flags_P.astype(jnp.int32)), count


def _dot(a, b, contract):
    dimensions = ((contract[:1], contract[1:]), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _wide(x_QL, width):
    """Returns [Q, width] of numbers repeated along the lanes."""
    return x_QL[:, :width] if width <= LANES else jnp.tile(x_QL, (1, width // LANES))


def _seen(query, key, until, block, query_axis):
    """Returns bool [block, block]: may the query (along `query_axis`) of block `query` see the key?

    Args:
      until: int32 [1, S] or [S, 1], of the keys of block `key`.
    """
    query = query * block + jax.lax.broadcasted_iota(jnp.int32, (block, block), query_axis)
    key = key * block + jax.lax.broadcasted_iota(jnp.int32, (block, block), 1 - query_axis)
    return (key <= query) & (query < until)


def _per_pair(flags, compute):
    """Runs `compute(masked)` without the mask where every query sees every key."""
    pl.when(flags & WHOLE != 0)(lambda: compute(masked=False))
    pl.when(flags & WHOLE == 0)(lambda: compute(masked=True))


def _forward_kernel(
    row_P,
    query_P,
    key_P,
    flags_P,
    q_QH,
    k_SH,
    v_SH,
    until_1S,
    o_QH,
    lse_1Q,
    top_QL,
    total_QL,
    sum_QH,
):
    p = pl.program_id(1)
    Q, H = q_QH.shape

    @pl.when(flags_P[p] & FIRST != 0)
    def _():
        top_QL[...] = jnp.full_like(top_QL, MASKED)
        total_QL[...] = jnp.zeros_like(total_QL)
        sum_QH[...] = jnp.zeros_like(sum_QH)

    def compute(masked):
        score_QS = _dot(q_QH[...], k_SH[...], (1, 1)) * H**-0.5
        if masked:
            seen_QS = _seen(query_P[p], key_P[p], until_1S[...], Q, query_axis=0)
            score_QS = jnp.where(seen_QS, score_QS, MASKED)
        top_before_QL = top_QL[...]
        top_QL[...] = jnp.maximum(top_before_QL, score_QS.max(axis=1, keepdims=True))
        kept_QL = jnp.exp(top_before_QL - top_QL[...])
        weight_QS = jnp.exp(score_QS - _wide(top_QL[...], Q))
        total_QL[...] = total_QL[...] * kept_QL + weight_QS.sum(axis=1, keepdims=True)
        added_QH = _dot(weight_QS.astype(v_SH.dtype), v_SH[...], (1, 0))
        sum_QH[...] = sum_QH[...] * _wide(kept_QL, H) + added_QH

    _per_pair(flags_P[p], compute)

    @pl.when(flags_P[p] & LAST != 0)
    def _():
        o_QH[...] = (sum_QH[...] / _wide(total_QL[...], H)).astype(o_QH.dtype)
        lse_1Q[...] = (top_QL[...] + jnp.log(total_QL[...])).T[:1]


def _queries_backward_kernel(
    row_P,
    query_P,
    key_P,
    flags_P,
    q_QH,
    k_SH,
    v_SH,
    until_1S,
    do_QH,
    lse_1Q,
    mean_1Q,
    dq_QH,
    sum_QH,
):
    p = pl.program_id(1)
    Q, H = q_QH.shape

    @pl.when(flags_P[p] & FIRST != 0)
    def _():
        sum_QH[...] = jnp.zeros_like(sum_QH)

    def compute(masked):
        score_QS = _dot(q_QH[...], k_SH[...], (1, 1)) * H**-0.5
        if masked:
            seen_QS = _seen(query_P[p], key_P[p], until_1S[...], Q, query_axis=0)
            score_QS = jnp.where(seen_QS, score_QS, MASKED)
        weight_QS = jnp.exp(score_QS - lse_1Q[0][:, None])
        dweight_QS = _dot(do_QH[...], v_SH[...], (1, 1))
        dscore_QS = weight_QS * (dweight_QS - mean_1Q[0][:, None])
        sum_QH[...] += _dot(dscore_QS.astype(k_SH.dtype), k_SH[...], (1, 0))

    _per_pair(flags_P[p], compute)

    @pl.when(flags_P[p] & LAST != 0)
    def _():
        dq_QH[...] = (sum_QH[...] * H**-0.5).astype(dq_QH.dtype)


def _keys_backward_kernel(
    shared,
    row_P,
    query_P,
    key_P,
    flags_P,
    q_QH,
    k_SH,
    v_SH,
    until_1S,
    do_QH,
    lse_1Q,
    mean_1Q,
    dk_SH,
    dv_SH,
    dk_sum_SH,
    dv_sum_SH,
):
    p, r = pl.program_id(1), pl.program_id(2)
    Q, H = q_QH.shape

    @pl.when((flags_P[p] & FIRST != 0) & (r == 0))
    def _():
        dk_sum_SH[...] = jnp.zeros_like(dk_sum_SH)
        dv_sum_SH[...] = jnp.zeros_like(dv_sum_SH)

    def compute(masked):
        # Scores stand with the keys first, so that both sums over queries are plain products.
        score_SQ = _dot(k_SH[...], q_QH[...], (1, 1)) * H**-0.5
        if masked:
            seen_SQ = _seen(query_P[p], key_P[p], until_1S[0][:, None], Q, query_axis=1)
            score_SQ = jnp.where(seen_SQ, score_SQ, MASKED)
        weight_SQ = jnp.exp(score_SQ - lse_1Q[...])
        dv_sum_SH[...] += _dot(weight_SQ.astype(do_QH.dtype), do_QH[...], (1, 0))
        dweight_SQ = _dot(v_SH[...], do_QH[...], (1, 1))
        dscore_SQ = weight_SQ * (dweight_SQ - mean_1Q[...])
        dk_sum_SH[...] += _dot(dscore_SQ.astype(q_QH.dtype), q_QH[...], (1, 0))

    _per_pair(flags_P[p], compute)

    @pl.when((flags_P[p] & LAST != 0) & (r == shared - 1))
    def _():
        dk_SH[...] = (dk_sum_SH[...] * H**-0.5).astype(dk_SH.dtype)
        dv_SH[...] = dv_sum_SH[...].astype(dv_SH.dtype)
