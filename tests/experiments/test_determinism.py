"""On a GPU: the switch for the same bits, and products of float32 in update and warm start."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.running import command, determinism, sessions
from experiments.warmstarting import nano
from flow_grpo_jax import batching, loss, optimizer, update
from models import decoder
from models.attention import kernels
from tests.models import configs

FLAG = "--xla_gpu_deterministic_ops=true"


@pytest.mark.parametrize(
    "before, after", [("", FLAG), ("--xla_a=1", f"--xla_a=1 {FLAG}"), (FLAG, FLAG)]
)
def test_xla_is_told_before_it_starts(monkeypatch, before, after):
    monkeypatch.setattr(determinism.xla_bridge, "backends_are_initialized", lambda: False)
    monkeypatch.setenv("XLA_FLAGS", before)
    determinism.ask(False)
    assert determinism.os.environ["XLA_FLAGS"] == before
    determinism.ask(True)
    assert determinism.os.environ["XLA_FLAGS"] == after


def test_too_late_is_an_error_on_a_gpu_only(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    assert jax.devices()
    determinism.ask(True)  # CPUs have nothing to switch
    monkeypatch.setattr(determinism.jax, "default_backend", lambda: "gpu")
    determinism.ask(False)
    with pytest.raises(command.ConfigError, match=f"too late.*XLA_FLAGS={FLAG}"):
        determinism.ask(True)


# ---- products ------------------------------------------------------------------------------------


def precise(program, *arguments, **static):
    """For each product of a program as lowered for CUDA: does it ask for float32?"""
    lowered = program.trace(*arguments, **static).lower(lowering_platforms=("cuda",))
    lines = re.findall(r".*stablehlo\.dot_general.*", lowered.as_text())
    assert lines
    return {"HIGHEST" in line for line in lines}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["accumulate", "rescore"])
def test_the_update_multiplies_in_its_dtype(name, dtype):
    model = sessions.abstract_model(configs.small())
    step = update.Update(
        optimizer.make(lr=1e-3, warmup_steps=0, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0,
                       clip_norm=1.0, moment_dtype="float32"),
        numbers=loss.Numbers(clip_low=0.2, clip_high=0.3, dual_clip=3.0, kl_coef=1e-3,
                             sequence_ratio=False, tis_cap=0.0),
        execution=decoder.Execution(dtype, "dots", kernels.make("blockwise")),
        temperature=1.0, chunk=64, epochs=1, old_logprobs="sampler",
        assemble=update.whole_model, donate_params=True,
    )  # fmt: skip
    batch = batching.shapes(rows=2, tokens=64, sampled=16)
    frozen = sessions.abstract_model(configs.small(), dtype)
    if name == "rescore":
        found = precise(step.rescore, model, frozen, batch)
    else:
        sums = dict.fromkeys(update.sum_names(), jax.ShapeDtypeStruct((), jnp.float32))
        found = precise(step.accumulate, model, sums, model, frozen, batch, on_policy=False)
    assert found == {dtype == jnp.float32}


def test_the_warm_start_multiplies_in_float32():
    model = sessions.abstract_model(configs.small())
    token_BT = jax.ShapeDtypeStruct((2, 16), np.int32)
    batch = (token_BT, token_BT, jax.ShapeDtypeStruct((2, 16), np.float32))
    adamw = optax.adamw(1e-3)
    opt_state = jax.eval_shape(adamw.init, model)
    step = functools.partial(precise, nano.train_step, model, opt_state, batch)
    assert step(optimizer=adamw) == {True}
    assert precise(jax.jit(nano.prediction), model, token_BT, token_BT) == {True}
