"""Engines of small sizes, for tests of whatever needs one."""

import jax
import jax.numpy as jnp

from models import sharding
from models.engine.engine import Engine
from models.engine.replicas import Replicas

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
    separate=True,
    constraints=False,
)


def build(weights, **options):
    """Returns an Engine; `options` must give `slots` and `max_length`."""
    return Engine(weights, **SETTINGS | options)


def replicas(weights, count, **options):
    """Returns Replicas of so many engines, all on the first device."""
    mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
    return Replicas(weights, meshes=[mesh] * count, **SETTINGS | options)
