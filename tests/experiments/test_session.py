"""What a session decides from a config."""

import jax
import pytest

from experiments.configs import smoke
from experiments.planning import programs
from experiments.running import session
from flow_grpo_jax import loss, update
from models import published


@pytest.mark.parametrize(("dtype", "donated"), [("float32", False), ("bfloat16", True)])
@pytest.mark.parametrize("rank", [0, 4])
def test_the_update_donates_what_the_engine_does_not_read(monkeypatch, dtype, donated, rank):
    config = smoke.get_config()
    config.model.dtype, config.model.lora.rank = dtype, rank
    mesh = programs.mesh_over(config, jax.devices())
    params = programs.inputs(config, published.SIZES["0.5b"], mesh).params
    monkeypatch.setattr(update, "Update", lambda _, **settings: settings)
    _, settings = session.make_update(
        config, loss.VARIANTS["flow"], mesh=mesh, params=params, shardings=None
    )
    assert settings["donate_params"] == donated
