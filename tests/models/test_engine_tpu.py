"""The engine's programs compile for TPUs ahead of time, and treat the cache as they should.

Needs libtpu, like test_attention_tpu.py.
"""

import dataclasses
import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest

from models import decoder, published, sharding
from models.engine import ahead
from tests.models.test_attention_tpu import devices  # noqa: F401

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is missing"),
]
SETTINGS = dict(
    slots=32,
    max_length=20_480,
    cache_tokens=262_144,
    page_size=64,
    prefill_tokens=256,
    prefill_rows=8,
    decode_steps=8,
    dtype=jnp.bfloat16,
    separate=False,
)


@pytest.mark.parametrize("name", ["prefill", "decode"])
@pytest.mark.parametrize(
    ("chip", "size", "tensor"), [("v5e", "7b", 4), ("v6e", "7b", 2), ("v5e", "0.5b", 1)]
)
def test_the_cache_is_updated_in_place(devices, chip, size, tensor, name):  # noqa: F811
    """Aliased whole; temporaries below a quarter of it; nothing of its shape is copied.

    Eight layers are compiled; temporaries do not grow with their number, and the cache does.
    """
    whole = published.SIZES[size]
    config = dataclasses.replace(whole, num_hidden_layers=8)
    model = jax.eval_shape(lambda key: decoder.Decoder(key, config), jax.random.key(0))
    mesh = sharding.make_mesh(tensor=tensor, devices=devices(chip)[:tensor])
    lowered = ahead.lowered(model, mesh=mesh, **SETTINGS)[name]
    kv = lowered.args_info[0][1]
    program = lowered.compile()
    G, Z, J, H = kv[0].shape
    cache_bytes = 2 * len(kv) * G * Z * J * H // tensor
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes >= cache_bytes
    assert memory.temp_size_in_bytes < cache_bytes * whole.num_hidden_layers / 8 / 4
    shape = f"{G},{Z},{J // tensor},{H}"
    text = program.as_text()
    assert not re.findall(rf"bf16\[{shape}\]\S* copy\(", text)
    assert "tpu_custom_call" in text  # the paged kernel
