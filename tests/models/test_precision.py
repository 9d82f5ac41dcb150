"""Programs in float32 ask for float32 products; those in bfloat16 do not."""

import re

import jax
import jax.numpy as jnp
import pytest

from models import decoder, precision, sharding
from models.engine import ahead
from tests.models import configs

SIZES = dict(slots=2, max_length=32, cache_tokens=64, page_size=8, prefill_tokens=8)
SIZES |= dict(prefill_rows=2, decode_steps=2, constraints=False, separate=True)


def products(lowered):
    """The lines of a program that multiply."""
    return re.findall(r".*stablehlo\.dot_general.*", lowered.as_text())


@pytest.mark.parametrize("name", ["prefill", "decode"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_programs_of_the_engine(name, dtype):
    model = jax.eval_shape(lambda key: decoder.Decoder(key, configs.small()), jax.random.key(0))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    found = products(ahead.lowered(model, mesh=mesh, dtype=dtype, **SIZES)[name])
    assert len(found) > 8
    assert {"HIGHEST" in line for line in found} == {dtype == jnp.float32}


def test_gradients_too():
    run = precision.in_dtype(jax.grad(lambda a, b: (a @ b).sum(), argnums=(0, 1)), jnp.float32)
    found = products(jax.jit(run).lower(jnp.ones((4, 4)), jnp.ones((4, 4))))
    assert found and all("HIGHEST" in line for line in found)
