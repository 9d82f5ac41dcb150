"""Engines of small sizes, for tests of whatever needs one."""

import jax.numpy as jnp

from models.engine.engine import Engine

SETTINGS = dict(
    cache_tokens=0,
    page_size=32,
    prefill_tokens=64,
    prefill_rows=8,
    prefill_calls=4,
    decode_steps=8,
    overlap=False,
    in_flight="finish",
    seed=0,
    dtype=jnp.float32,
    constraints=False,
)


def build(weights, **options):
    """Returns an Engine; `options` must give `slots` and `max_length`."""
    return Engine(weights, **SETTINGS | options)
