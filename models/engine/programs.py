"""The engine's two device programs, prefill and decode, over fixed slots.

A slot holds one running request. The cache is a list over layers of one array each for keys and
values: programs take it donated and walk the layers in a Python loop, because a cache that passes
through a scan over layers is copied. Heads come before positions in it: batched products over
[B, S, K, H] transpose the whole cache first (64 slots of 224 positions on a CPU: attention took
25 ms instead of 15). Both programs draw with `sampling.draw`.

Position p of a slot's cache holds the key and value of the slot's token p. The token drawn last is
not in the cache yet: the next decode step writes it there and attends over it.

Dimensions:
  B slots    P rows of one prefill call    T tokens in a prompt bucket    S cache positions
  C steps of one decode call    E stop ids of a slot    A address parts
  L layers    D width    V vocabulary    N query heads    K key/value heads    H head size
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from models import attention
from models.engine import sampling

STOP_IDS = 8
ADDRESS_PARTS = 8
NO_TOKEN = -1


class Slots(NamedTuple):
    """The small state of every slot.

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


class State(NamedTuple):
    """Everything one pool keeps on the device; keys and values are lists over layers [B, K, S, H].

    Both programs take it donated and return the next one.
    """

    keys: list
    values: list
    slots: Slots


class Admission(NamedTuple):
    """Requests that enter the pool in one prefill call; rows with slot_P == B are padding.

    token_PT: int32, prompts padded on the right.    length_P: int32, tokens of each prompt, >= 1.
    slot_P, limit_P: int32.                          stop_PE: int32, padded with NO_TOKEN.
    address_PA, parts_P: see `sampling.request_keys`.    parameters: `sampling.Parameters`.
    """

    token_PT: jax.Array
    length_P: jax.Array
    slot_P: jax.Array
    limit_P: jax.Array
    stop_PE: jax.Array
    address_PA: jax.Array
    parts_P: jax.Array
    parameters: sampling.Parameters


def empty_state(config, *, slots, max_length, dtype):
    """State with no live slot."""
    shape = (slots, config.num_key_value_heads, max_length, config.head_dim)
    integers = lambda: jnp.zeros(slots, jnp.int32)
    floats = lambda: jnp.zeros(slots, jnp.float32)
    return State(
        keys=[jnp.zeros(shape, dtype) for _ in range(config.num_hidden_layers)],
        values=[jnp.zeros(shape, dtype) for _ in range(config.num_hidden_layers)],
        slots=Slots(
            token_B=integers(),
            length_B=integers(),
            drawn_B=integers(),
            limit_B=integers(),
            live_B=jnp.zeros(slots, bool),
            stop_BE=jnp.full((slots, STOP_IDS), NO_TOKEN, jnp.int32),
            key_B2=jnp.zeros((slots, 2), jnp.uint32),
            parameters=sampling.Parameters(floats(), floats(), floats(), integers()),
        ),
    )


def prefill(model, state, admission, seed, *, dtype):
    """Writes prompts into their slots and draws each one's first token.

    Returns:
      (state, token_P, logprob_P, live_P): what a padding row gives is meaningless.
    """
    token_PT, length_P = admission.token_PT, admission.length_P
    index_1T = jnp.arange(token_PT.shape[1], dtype=jnp.int32)[None]
    length_P1 = length_P[:, None]
    mask_PTT = attention.visible(jnp.where(index_1T < length_P1, length_P1, 0))
    rope = model.rope(jnp.broadcast_to(index_1T, token_PT.shape))

    def layer(x_PTD, block):
        def attend(q_PTNH, k_PTKH, v_PTKH):
            o_PTNH = attention.attend_reference(q_PTNH, k_PTKH, v_PTKH, mask_PTT)
            return o_PTNH, (k_PTKH, v_PTKH)

        return block(x_PTD, rope, attend)

    x_PTD, (k_LPTKH, v_LPTKH) = jax.lax.scan(layer, model.embedded(token_PT, dtype), model.blocks)

    def write(cache_BKSH, new_PTKH):
        new_PKTH = jnp.swapaxes(new_PTKH, 1, 2)
        tokens = new_PKTH.shape[2]
        return cache_BKSH.at[admission.slot_P, :, :tokens].set(new_PKTH, mode="drop")

    keys = [write(cache, k_LPTKH[l]) for l, cache in enumerate(state.keys)]
    values = [write(cache, v_LPTKH[l]) for l, cache in enumerate(state.values)]

    last_P11 = (length_P - 1)[:, None, None]
    x_PD = model.final_norm(jnp.take_along_axis(x_PTD, last_P11, axis=1))[:, 0]
    key_P2 = sampling.request_keys(seed, admission.address_PA, admission.parts_P)
    first_P = jnp.zeros_like(length_P)
    uniform_P2 = sampling.uniforms(key_P2, first_P)
    token_P, logprob_P = sampling.draw(model.logits(x_PD), uniform_P2, admission.parameters)
    live_P = _goes_on(token_P, first_P + 1, admission.limit_P, admission.stop_PE)

    entering = Slots(
        token_B=token_P,
        length_B=length_P,
        drawn_B=first_P + 1,
        limit_B=admission.limit_P,
        live_B=live_P,
        stop_BE=admission.stop_PE,
        key_B2=key_P2,
        parameters=admission.parameters,
    )
    place = lambda old, new: old.at[admission.slot_P].set(new, mode="drop")
    slots = jax.tree.map(place, state.slots, entering)
    return State(keys, values, slots), token_P, logprob_P, live_P


def decode(model, state, keep_B, *, steps, dtype):
    """Draws up to `steps` tokens in every live slot.

    Attention always reads the whole cache. Reading only as far as the longest request would change
    the order in which XLA adds (128 positions against 512 on a CPU: the last bit of some
    log-probs), and with it make a request's tokens depend on its neighbours.

    Args:
      keep_B: bool, False ends a slot's request (cancelled, or stopped by a string).
      steps: static number of tokens.

    Returns:
      (state, token_CB, logprob_CB, live_B): NO_TOKEN where a slot drew nothing.
    """
    slots = state.slots._replace(live_B=state.slots.live_B & keep_B)
    row_B = jnp.arange(keep_B.shape[0])
    positions = state.keys[0].shape[2]
    position_1S = jnp.arange(positions, dtype=jnp.int32)[None]
    blocks = [jax.tree.map(lambda a, l=l: a[l], model.blocks) for l in range(len(state.keys))]

    def step(carry, _):
        keys, values, slots = carry
        keys, values = list(keys), list(values)
        mask_B1S = (position_1S <= slots.length_B[:, None])[:, None]
        rope = model.rope(slots.length_B[:, None])
        # Out of range: a slot that is not live writes nothing.
        write_B = jnp.where(slots.live_B, slots.length_B, positions)

        def write(cache_BKSH, new_B1KH):
            return cache_BKSH.at[row_B, :, write_B].set(new_B1KH[:, 0], mode="drop")

        def attend_in(l):
            def attend(q_B1NH, k_B1KH, v_B1KH):
                keys_BKSH, values_BKSH = write(keys[l], k_B1KH), write(values[l], v_B1KH)
                seen = (jnp.swapaxes(keys_BKSH, 1, 2), jnp.swapaxes(values_BKSH, 1, 2))
                o_B1NH = attention.attend_reference(q_B1NH, *seen, mask_B1S)
                return o_B1NH, (keys_BKSH, values_BKSH)

            return attend

        x_B1D = model.embedded(slots.token_B[:, None], dtype)
        for l, block in enumerate(blocks):
            x_B1D, (keys[l], values[l]) = block(x_B1D, rope, attend_in(l))
        logits_BV = model.logits(model.final_norm(x_B1D)[:, 0])

        uniform_B2 = sampling.uniforms(slots.key_B2, slots.drawn_B)
        token_B, logprob_B = sampling.draw(logits_BV, uniform_B2, slots.parameters)
        drew_B = slots.live_B
        drawn_B = slots.drawn_B + drew_B
        goes_on_B = _goes_on(token_B, drawn_B, slots.limit_B, slots.stop_BE)
        slots = slots._replace(
            token_B=jnp.where(drew_B, token_B, slots.token_B),
            length_B=slots.length_B + drew_B,
            drawn_B=drawn_B,
            live_B=drew_B & goes_on_B,
        )
        return (keys, values, slots), (jnp.where(drew_B, token_B, NO_TOKEN), logprob_B)

    carry = (state.keys, state.values, slots)
    carry, (token_CB, logprob_CB) = jax.lax.scan(step, carry, None, length=steps)
    return State(*carry), token_CB, logprob_CB, carry[2].live_B


def _goes_on(token_B, drawn_B, limit_B, stop_BE):
    """bool [B]: the drawn token neither stops the response nor is the last one allowed."""
    return (token_B[:, None] != stop_BE).all(-1) & (drawn_B < limit_B)
