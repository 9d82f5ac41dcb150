"""The engine's device programs: `prefill` continues prompts, `decode` draws tokens.

The cache is a list over layers, see `cache.py`. Programs take it donated and walk the layers in a
Python loop, because a cache that passes through a scan over layers is copied.

A row of `prefill` is up to T tokens of one prompt from position `start` on. Their keys and values
are written first; then every query reads pages from the first one on, whatever part of them this
call wrote. So a token's hidden state does not depend on how its prompt was cut.

The token drawn last is not in the cache yet: the next decode step writes it there.

Dimensions:
  B slots    P rows of one prefill call    T tokens of a row    M pages of a page table
  C steps of one decode call    E stop ids of a slot    A address parts    I top log-probs
  D width    V vocabulary    N query heads    K key/value heads    H head size
  W words of a mask of allowed tokens
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models import precision
from models.engine import cache, sampling

STOP_IDS = 8
ADDRESS_PARTS = 8
NO_TOKEN = -1


@dataclasses.dataclass(frozen=True)
class Static:
    """What is the same in all calls of the programs; static in their compilation.

    dtype: of activations.    layout: of the cache, see `cache`.    mesh: splits the heads.
    top_logprobs: I.
    """

    dtype: jax.typing.DTypeLike
    layout: str
    mesh: jax.sharding.Mesh | None
    top_logprobs: int


class Slots(NamedTuple):
    """The small state of every slot of one weight set.

    token_B: int32, drawn last, not in the cache yet.     length_B: int32, tokens in the cache.
    drawn_B: int32, tokens drawn so far.                  limit_B: int32, most tokens to draw.
    live_B: bool, False when empty or finished.           stop_BE: int32, padded with NO_TOKEN.
    key_B2: uint32, the request's key data.               parameters: `sampling.Parameters`.
    """

    token_B: jax.Array
    length_B: jax.Array
    drawn_B: jax.Array
    limit_B: jax.Array
    live_B: jax.Array
    stop_BE: jax.Array
    key_B2: jax.Array
    parameters: sampling.Parameters


class Chunk(NamedTuple):
    """Input of one prefill call. Rows with count 0 are padding.

    token_PT: int32, padded on the right.       start_P: int32, position of the row's first token.
    count_P: int32, tokens of the row.          table_PM: int32, page numbers of the sequence.
    slot_P: int32, slot that the request enters if its prompt ends here, else B.
    limit_P: int32.                             stop_PE: int32, padded with NO_TOKEN.
    address_PA, parts_P: see `sampling.request_keys`.    parameters: `sampling.Parameters`.
    allowed_PW: uint32, bit v % 32 of word v // 32 is set if token v may be drawn; None if the
      engine knows no grammars.
    """

    token_PT: jax.Array
    start_P: jax.Array
    count_P: jax.Array
    table_PM: jax.Array
    slot_P: jax.Array
    limit_P: jax.Array
    stop_PE: jax.Array
    address_PA: jax.Array
    parts_P: jax.Array
    parameters: sampling.Parameters
    allowed_PW: jax.Array | None


class Drawn(NamedTuple):
    """Tokens of one call, a leading axis of steps in `decode`.

    token: int32, NO_TOKEN where nothing was drawn.    logprob, raw_logprob: float32 nats, under the
    distribution drawn from and under temperature 1.   top_id, top_logprob: [..., I] under
    temperature 1, most probable first.
    """

    token: jax.Array
    logprob: jax.Array
    raw_logprob: jax.Array
    top_id: jax.Array
    top_logprob: jax.Array


def empty_slots(slots):
    """Returns slots that are all empty."""
    integers = lambda: jnp.zeros(slots, jnp.int32)
    return Slots(
        token_B=integers(),
        length_B=integers(),
        drawn_B=integers(),
        limit_B=integers(),
        live_B=jnp.zeros(slots, bool),
        stop_BE=jnp.full((slots, STOP_IDS), NO_TOKEN, jnp.int32),
        key_B2=jnp.zeros((slots, 2), jnp.uint32),
        parameters=sampling.as_parameters([sampling.NOTHING] * slots),
    )


def jitted(static, treedef, *, steps, options=None, on_trace=lambda: None):
    """Returns the jitted (prefill, decode), with the model as a list of its leaves.

    Args:
      static: `Static`.
      treedef: of the model.
      steps: of one decode call.
      options: of the compiler; None for none.
      on_trace: is called whenever one is traced.
    """

    def make(program):
        @functools.wraps(program)
        def traced(leaves, kv, slots, *rest):
            on_trace()
            return program(jax.tree.unflatten(treedef, leaves), kv, slots, *rest, static=static)

        return jax.jit(
            precision.in_dtype(traced, static.dtype),
            donate_argnums=(1, 2),
            compiler_options=options,
        )

    return make(prefill), make(functools.partial(decode, steps=steps))


def prefill(model, kv, slots, chunk, seed, *, static):
    """Continues prompts; draws the first token of those that end.

    Args:
      model: Decoder.
      kv: cache, list over layers. Pages must be there for every token of the rows.
      static: `Static`.

    Returns:
      (kv, slots, drawn, live_P): what a row whose slot_P is B draws is meaningless.
    """
    token_PT, count_P = chunk.token_PT, chunk.count_P
    index_T = jnp.arange(token_PT.shape[1], dtype=jnp.int32)
    valid_PT = index_T < count_P[:, None]
    # Queries of padding look no further than the last real one; those of unused rows, nowhere.
    position_PT = chunk.start_P[:, None] + jnp.minimum(index_T, count_P[:, None] - 1)
    position_PT = jnp.where(count_P[:, None] > 0, position_PT, -1)
    x_PTD, kv = _through_layers(model, kv, token_PT, position_PT, valid_PT, chunk.table_PM, static)

    last_P11 = jnp.maximum(count_P - 1, 0)[:, None, None]
    x_PD = model.final_norm(jnp.take_along_axis(x_PTD, last_P11, axis=1))[:, 0]
    key_P2 = sampling.request_keys(seed, chunk.address_PA, chunk.parts_P)
    first_P = jnp.zeros_like(count_P)
    uniform_P2 = sampling.uniforms(key_P2, first_P)
    drawn = _draw(model.logits(x_PD), uniform_P2, chunk.parameters, chunk.allowed_PW, static)
    live_P = _goes_on(drawn.token, first_P + 1, chunk.limit_P, chunk.stop_PE)

    entering = Slots(
        token_B=drawn.token,
        length_B=chunk.start_P + count_P,
        drawn_B=first_P + 1,
        limit_B=chunk.limit_P,
        live_B=live_P,
        stop_BE=chunk.stop_PE,
        key_B2=key_P2,
        parameters=chunk.parameters,
    )
    place = lambda old, new: old.at[chunk.slot_P].set(new, mode="drop")
    return kv, jax.tree.map(place, slots, entering), drawn, live_P


def decode(model, kv, slots, table_BM, keep_B, quota_B, allowed_BW, *, steps, static):
    """Draws up to `steps` tokens in every live slot.

    Args:
      table_BM: int32, page numbers; they must hold what the slot may draw in this call.
      keep_B: bool, False ends a slot's request (cancelled, or stopped by a string).
      quota_B: int32, most tokens a slot draws in this call; 0 makes it wait.
      allowed_BW: uint32, bit v % 32 of word v // 32 is set if token v may be drawn as the *first*
        token of this call (a slot with a mask has quota 1); None if the engine knows no grammars.
      steps: static.

    Returns:
      (kv, slots, drawn, live_B): drawn has a leading axis of `steps`.
    """
    slots = slots._replace(live_B=slots.live_B & keep_B)

    def step(carry, index):
        kv, slots = carry
        active_B = slots.live_B & (index < quota_B)
        position_B = jnp.where(active_B, slots.length_B, -1)
        x_B1D, kv = _through_layers(
            model,
            kv,
            slots.token_B[:, None],
            position_B[:, None],
            active_B[:, None],
            table_BM,
            static,
        )
        logits_BV = model.logits(model.final_norm(x_B1D)[:, 0])
        uniform_B2 = sampling.uniforms(slots.key_B2, slots.drawn_B)
        drawn = _draw(logits_BV, uniform_B2, slots.parameters, allowed_BW, static)
        drawn_B = slots.drawn_B + active_B
        goes_on_B = _goes_on(drawn.token, drawn_B, slots.limit_B, slots.stop_BE)
        slots = slots._replace(
            token_B=jnp.where(active_B, drawn.token, slots.token_B),
            length_B=slots.length_B + active_B,
            drawn_B=drawn_B,
            live_B=slots.live_B & (goes_on_B | ~active_B),
        )
        token_B = jnp.where(active_B, drawn.token, NO_TOKEN)
        return (kv, slots), drawn._replace(token=token_B)

    (kv, slots), drawn = jax.lax.scan(step, (kv, slots), jnp.arange(steps))
    return kv, slots, drawn, slots.live_B


def _through_layers(model, kv, token_PT, position_PT, valid_PT, table_PM, static):
    """Returns (x_PTD before the last norm, kv with the new keys and values)."""
    rope = model.rope(jnp.maximum(position_PT, 0))
    x_PTD, written = model.embedded(token_PT, static.dtype), []
    for layer, layer_cache in enumerate(kv):
        # An element of a tuple, or a slice of a stacked array; see `placement.copies`.
        block = jax.tree.map(
            lambda a, layer=layer: a[layer], model.blocks, is_leaf=lambda a: isinstance(a, tuple)
        )

        def attend(q_PTNH, k_PTKH, v_PTKH, layer_cache=layer_cache):
            place_PT = jnp.maximum(position_PT, 0)
            new = cache.write(
                static.layout,
                layer_cache,
                k_PTKH,
                v_PTKH,
                table_PM,
                place_PT,
                valid_PT,
                mesh=static.mesh,
            )
            o_PTNH = cache.attend(
                static.layout, q_PTNH, new, table_PM, position_PT, mesh=static.mesh
            )
            return o_PTNH, new

        x_PTD, new = block(x_PTD, rope, attend)
        written.append(new)
    return x_PTD, written


def _draw(logits_BV, uniform_B2, parameters, allowed_BW, static):
    if allowed_BW is not None:
        words = jnp.repeat(allowed_BW, 32, axis=1)[:, : logits_BV.shape[1]]
        bits = (words >> (jnp.arange(logits_BV.shape[1], dtype=jnp.uint32) % 32)) & 1
        logits_BV = jnp.where(bits == 1, logits_BV, -jnp.inf)
    token_B, logprob_B, raw_B = sampling.draw(logits_BV, uniform_B2, parameters)
    count = static.top_logprobs
    if count:
        top_BI, id_BI = jax.lax.top_k(logits_BV, count)
        top_BI = top_BI - jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)
    else:
        top_BI = id_BI = jnp.zeros((len(token_B), 0), jnp.float32)
    return Drawn(token_B, logprob_B, raw_B, id_BI.astype(jnp.int32), top_BI)


def _goes_on(token_B, drawn_B, limit_B, stop_BE):
    """Returns bool [B]: the drawn token neither stops the response nor is the last one allowed."""
    return (token_B[:, None] != stop_BE).all(-1) & (drawn_B < limit_B)
