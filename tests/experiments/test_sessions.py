"""What a session decides from a config."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest

from experiments.configs import smoke
from experiments.planning import programs
from experiments.running import command, sessions
from flow_grpo_jax import loss, update
from models import hardware, lora, published, sharding


@pytest.mark.parametrize(("dtype", "donated"), [("float32", False), ("bfloat16", True)])
@pytest.mark.parametrize("rank", [0, 4])
def test_the_update_donates_what_the_engine_does_not_read(monkeypatch, dtype, donated, rank):
    config = smoke.get_config()
    config.model.dtype, config.model.lora.rank = dtype, rank
    mesh = programs.mesh_over(config, jax.devices())
    params = programs.inputs(config, published.SIZES["0.5b"], mesh).params
    monkeypatch.setattr(update, "Update", lambda _, **settings: settings)
    _, settings = sessions.make_update(
        config, loss.VARIANTS["flow"], mesh=mesh, params=params, shardings=None
    )
    assert settings["donate_params"] == donated


LAYER = 4 * 147_968  # bytes of one of `DIMS`: 49,152 + 98,304 of matrices, 512 of norms and biases
DIMS = dataclasses.replace(
    published.SIZES["0.5b"],
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
)


@pytest.mark.parametrize(
    ("rank", "training", "layers"), [(0, True, 2), (0, False, 1), (4, True, 1)]
)
def test_layers_are_separate_where_there_is_room(monkeypatch, rank, training, layers):
    config = smoke.get_config()
    config.model.lora.rank = rank
    config.engine.update(slots=1, cache_tokens=16, page_size=16, prefill_tokens=16)
    config.rollout.update(max_prompt_tokens=8, max_response_tokens=8, max_module_tokens=8)
    frozen = sessions.abstract_model(DIMS)
    params = jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape), frozen))()
    if rank:
        settings = lora.Settings(**config.model.lora)
        params = lora.init(params, jax.random.key(0), settings=settings)
    session = types.SimpleNamespace(frozen=frozen, params=params)
    cache = 16 * 4 * 32 * 4  # tokens, heads of keys and values, head size, bytes
    trained = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    needed = layers * LAYER + cache + 2 * trained * training
    mesh = sharding.make_mesh(devices=jax.devices()[:1])

    def choice(free):
        monkeypatch.setattr(hardware, "free_bytes", lambda device: free)
        return sessions.separates_layers(config, session, mesh, training=training)

    assert choice(None) and choice(needed / sessions.ROOM + 1)
    assert not choice(needed / sessions.ROOM - 1)
    config.engine.layers = "separate"
    assert choice(0)
    config.engine.layers = "stacked"
    assert not choice(None)
    config.engine.layers = "apart"
    with pytest.raises(command.ConfigError, match="engine.layers='apart' .* auto, separate"):
        choice(None)


def test_free_memory_is_read():
    assert 2**20 < hardware.free_bytes(jax.devices()[0]) < 2**50
    told = dict(bytes_limit=10, bytes_in_use=3)
    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: told)
    assert hardware.free_bytes(device) == 7
    device.memory_stats = lambda: None
    assert hardware.free_bytes(device) is None
