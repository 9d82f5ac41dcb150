"""Drawing one token per row from logits, with every parameter a number per row.

A token is drawn by inverse CDF over two levels: a block of the vocabulary by the blocks' masses,
then a token inside the block. The work is one pass over the logits and two short cumulative sums,
without a sort, and a row's result depends on that row alone.

Dimensions:
  B rows    V vocabulary    J blocks of the vocabulary    C tokens in a block    A address parts
  X things to pick from, J or C
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models.engine import types

BLOCK = 128
KEY_IMPL = "threefry2x32"  # named, so that a seed means the same under any jax configuration


NOTHING = types.Sampling(max_tokens=1, temperature=0)  # of rows in which no request draws


class Parameters(NamedTuple):
    """Sampling parameters of each row: for a field `x_B`, what `types.Sampling` calls `x`.

    temperature_B, top_p_B, min_p_B: float32.    top_k_B: int32.
    """

    temperature_B: jax.Array
    top_p_B: jax.Array
    min_p_B: jax.Array
    top_k_B: jax.Array


def as_parameters(samplings):
    """Returns the Parameters, NumPy arrays, of a `types.Sampling` for each row.

    Numbers that are integers by default become int32, others float32.
    """
    columns = {}
    for field in Parameters._fields:
        name = field.removesuffix("_B")
        values = [getattr(sampling, name) for sampling in samplings]
        if isinstance(getattr(types.Sampling, name), int):
            columns[field] = np.array([min(value, 2**31 - 1) for value in values], np.int32)
        else:
            columns[field] = np.array(values, np.float32)
    return Parameters(**columns)


def request_keys(seed, address_BA, parts_B):
    """Folds the first parts_B numbers of each address into key(seed): key data uint32 [B, 2].

    Args:
      seed: uint32 scalar.
      address_BA: uint32; what stands beyond a row's parts is ignored.
      parts_B: int32, numbers in each address.
    """

    def one(address_A, parts):
        def fold(key, part):
            index, number = part
            folded = jax.random.key_data(jax.random.fold_in(_typed(key), number))
            return jnp.where(index < parts, folded, key), None

        start = jax.random.key_data(jax.random.key(seed, impl=KEY_IMPL))
        return jax.lax.scan(fold, start, (jnp.arange(address_A.shape[0]), address_A))[0]

    return jax.vmap(one)(address_BA, parts_B)


def uniforms(key_B2, index_B):
    """Returns float32 [B, 2] in (0, 1): the randomness of token index_B of each row's request."""

    def one(key, index):
        return jax.random.uniform(jax.random.fold_in(_typed(key), index), (2,))

    # From multiples of 2^-23 in [0, 1) to the middles between them: 0 would draw the first token
    # of any probability at all.
    return jax.vmap(one)(key_B2, index_B) + 2.0**-24


def draw(logits_BV, uniform_B2, parameters):
    """Draws one token per row.

    Args:
      logits_BV: float32; -inf marks tokens that must not be drawn.
      uniform_B2: float32 in (0, 1), from `uniforms`.
      parameters: `Parameters`.

    Returns:
      (token_B, logprob_B, raw_logprob_B): int32, and float32 nats under the distribution drawn from
      and under temperature 1 without truncation. Greedy rows (temperature 0) take the first of the
      largest logits; both of its log-probs are those of temperature 1.
    """
    greedy_B = parameters.temperature_B == 0
    cuts = jnp.any(truncates(parameters))
    floor_B = jax.lax.cond(cuts, floors, _no_floors, logits_BV, parameters)
    x_BV = _scaled(logits_BV, parameters)
    x_BV = jnp.where(x_BV >= floor_B[:, None], x_BV, -jnp.inf)
    padding = ((0, 0), (0, -x_BV.shape[1] % BLOCK))
    x_BV = jnp.pad(x_BV, padding, constant_values=-jnp.inf)
    x_BJC = x_BV.reshape(x_BV.shape[0], -1, BLOCK)

    # The barriers keep XLA from replacing a reduction of a reduction by a second pass over V.
    peak_BJ = jax.lax.optimization_barrier(x_BJC.max(-1))
    peak_B1 = peak_BJ.max(-1, keepdims=True)
    mass_BJ = jax.lax.optimization_barrier(jnp.exp(x_BJC - peak_B1[:, :, None]).sum(-1))
    block_B = jnp.where(greedy_B, jnp.argmax(peak_BJ, -1), _pick(mass_BJ, uniform_B2[:, 0]))
    x_BC = jnp.take_along_axis(x_BJC, block_B[:, None, None], axis=1)[:, 0]
    weight_BC = jnp.exp(x_BC - peak_B1)
    inside_B = jnp.where(greedy_B, jnp.argmax(x_BC, -1), _pick(weight_BC, uniform_B2[:, 1]))

    x_B = jnp.take_along_axis(x_BC, inside_B[:, None], axis=1)[:, 0]
    logprob_B = x_B - peak_B1[:, 0] - jnp.log(mass_BJ.sum(-1))
    token_B = (block_B * BLOCK + inside_B).astype(jnp.int32)
    as_drawn_B = greedy_B | (parameters.temperature_B == 1)
    raw_B = jax.lax.cond(
        cuts | ~as_drawn_B.all(), _logprobs, lambda *_: logprob_B, logits_BV, token_B
    )
    plain_B = as_drawn_B & ~truncates(parameters)
    return token_B, logprob_B, jnp.where(plain_B, logprob_B, raw_B)


def truncates(parameters):
    """Returns bool [B]: rows whose distribution leaves tokens out."""
    cuts_B = (parameters.top_p_B < 1) | (parameters.top_k_B > 0) | (parameters.min_p_B > 0)
    return cuts_B & (parameters.temperature_B > 0)


def floors(logits_BV, parameters):
    """Finds the smallest logit / temperature that top-k, top-p and min-p keep; -inf keeps all.

    float32 [B]. Thresholds are found by bisection over the 32 bits of a float: nothing is sorted.
    """
    top_k_B, top_p_B = parameters.top_k_B, parameters.top_p_B
    none_B = _no_floors(logits_BV, parameters)
    x_BV = _scaled(logits_BV, parameters)
    order_BV = _ordered(x_BV)
    peak_B = x_BV.max(-1)

    def floor_k():
        found_B = _threshold(order_BV, jnp.ones_like(x_BV), top_k_B.astype(jnp.float32))
        return jnp.where((top_k_B > 0) & (top_k_B < x_BV.shape[1]), found_B, none_B)

    def floor_p(floor_B):
        kept_BV = x_BV >= floor_B[:, None]
        mass_BV = jnp.where(kept_BV, jnp.exp(x_BV - peak_B[:, None]), 0.0)
        goal_B = jnp.maximum(top_p_B, 1e-30) * mass_BV.sum(-1)
        found_B = _threshold(order_BV, mass_BV, goal_B)
        return jnp.where(top_p_B < 1, jnp.maximum(floor_B, found_B), floor_B)

    floor_B = jax.lax.cond(jnp.any(top_k_B > 0), floor_k, lambda: none_B)
    floor_B = jax.lax.cond(jnp.any(top_p_B < 1), floor_p, lambda floor_B: floor_B, floor_B)
    floor_B = jnp.maximum(floor_B, peak_B + jnp.log(parameters.min_p_B))
    return jnp.where(truncates(parameters), floor_B, none_B)


def _logprobs(logits_BV, token_B):
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)[:, 0]
    return chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)


def _no_floors(logits_BV, _):
    return jnp.full(logits_BV.shape[0], -jnp.inf, jnp.float32)


def _scaled(logits_BV, parameters):
    temperature_B = parameters.temperature_B
    return logits_BV * (1.0 / jnp.where(temperature_B == 0, 1.0, temperature_B))[:, None]


def _pick(weight_BX, uniform_B):
    """Draws an index in proportion to the weights of a row, never one of weight zero."""
    total_BX = jnp.cumsum(weight_BX, axis=-1)
    # A rounded cumulative sum may also grow at a weight of zero, or end below the target.
    reached_BX = (total_BX > uniform_B[:, None] * total_BX[:, -1:]) & (weight_BX > 0)
    first_B = jnp.argmax(reached_BX, axis=-1)
    return jnp.where(reached_BX.any(-1), first_B, jnp.argmax(weight_BX, axis=-1))


def _ordered(x):
    """Returns uint32 that compare as the float32 do."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _threshold(order_BV, value_BV, goal_B):
    """Finds the largest logit whose values from it upwards sum to goal_B > 0; float32 [B]."""

    def bit(step, found_B):
        candidate_B = found_B | (jnp.uint32(1) << (31 - step).astype(jnp.uint32))
        above_BV = jnp.where(order_BV >= candidate_B[:, None], value_BV, 0.0)
        return jnp.where(above_BV.sum(-1) >= goal_B, candidate_B, found_B)

    found_B = jax.lax.fori_loop(0, 32, bit, jnp.zeros(goal_B.shape, jnp.uint32))
    bits_B = jnp.where(found_B >> 31 == 1, found_B & jnp.uint32(2**31 - 1), ~found_B)
    return jax.lax.bitcast_convert_type(bits_B, jnp.float32)


def _typed(key_data):
    return jax.random.wrap_key_data(key_data, impl=KEY_IMPL)
