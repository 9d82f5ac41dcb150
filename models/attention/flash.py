"""Attention that runs each batch of rows by the kernel that suits its masks.

Rows that hold one sequence each, so that every real token sees all before it, need no mask but the
causal one. Which batches are so is known only when they are there; both kernels are compiled.

Dimensions:
  B rows    T tokens    N query heads    K key/value heads    H head size
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from models.attention import cudnn, triton
from models.attention.masks import SAVED


def causal(until_BT):
    """Returns bool []: does every real query see all tokens before it?

    Args:
      until_BT: int32, as in `masks.py`, 0 at padding.
    """
    index_T = jnp.arange(until_BT.shape[1], dtype=jnp.int32)
    return ((until_BT == 0) | (jax.lax.cummin(until_BT, axis=1) > index_T)).all()


@functools.cache
def by_masks(plain, other):
    """Returns a kernel for kernels.whole_rows that is told where padding is.

    Args:
      plain: module for rows that are `causal`: forward(q, k, v) -> (o_BTNH, lse_BNT) and
        backward(q, k, v, o, lse, do) -> (dq, dk, dv).
      other: module for the rest: the same functions with until_BT after v; every token sees itself.
    """

    @jax.custom_vjp
    def run(q_BTNH, k_BTKH, v_BTKH, until_BT):
        return outputs(q_BTNH, k_BTKH, v_BTKH, until_BT)[0]

    def outputs(*inputs):
        *qkv, until_BT = inputs
        rest = lambda *qkv: tuple(other.forward(*qkv, _seen_by_itself(until_BT)))
        return jax.lax.cond(causal(until_BT), lambda *qkv: tuple(plain.forward(*qkv)), rest, *qkv)

    def forward(*inputs):
        o_BTNH, lse_BNT = (checkpoint_name(x, SAVED) for x in outputs(*inputs))
        return o_BTNH, (*inputs, o_BTNH, lse_BNT)

    def backward(saved, do_BTNH):
        *qkv, until_BT, o_BTNH, lse_BNT = saved

        def rest(q_BTNH, k_BTKH, v_BTKH, *results):
            until = _seen_by_itself(until_BT)
            return tuple(other.backward(q_BTNH, k_BTKH, v_BTKH, until, *results))

        arrays = (*qkv, o_BTNH, lse_BNT, do_BTNH)
        first = lambda *arrays: tuple(plain.backward(*arrays))
        return *jax.lax.cond(causal(until_BT), first, rest, *arrays), None

    run.defvjp(forward, backward)
    return lambda *inputs, block: run(*inputs)


def _seen_by_itself(until_BT):
    return jnp.maximum(until_BT, jnp.arange(1, until_BT.shape[1] + 1, dtype=jnp.int32))


attend = by_masks(cudnn, triton)
