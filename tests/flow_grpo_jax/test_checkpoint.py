"""Checkpoints: exact round trip on a mesh, fall-back from a damaged one, clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flow_grpo_jax import checkpoint, optimizer, update
from models import qwen2, sharding

CONFIG = qwen2.Config(64, 16, 32, 2, 2, 1, 8)


@pytest.fixture(scope="module")
def state():
    adamw = optimizer.make(
        lr=1e-3,
        b1=0.9,
        b2=0.99,
        eps=1e-8,
        weight_decay=0.0,
        clip_norm=1.0,
        warmup_steps=0,
        moment_dtype="float32",
    )
    mesh = sharding.make_mesh(data=2, fsdp=4)
    model = qwen2.Qwen2(jax.random.key(0), CONFIG)
    params = jax.device_put(model, sharding.parameter_shardings(mesh, model))
    return update.init(params, adamw, shardings=sharding.parameter_shardings(mesh, model))


def equal(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.array_equal(a, b) and a.sharding == b.sharding for a, b in pairs)


@pytest.mark.slow
def test_round_trip_is_exact_and_keeps_placement(tmp_path, state):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    assert checkpoints.restore(state) is None
    checkpoints.save(3, state, {"data": {"next": 5}})
    checkpoints.save(4, jax.tree.map(lambda x: x + jnp.ones_like(x), state), {"data": {"next": 6}})
    step, newest, meta = checkpoints.restore(state)
    assert (step, meta["data"]) == (4, {"next": 6})
    assert not equal(newest, state)
    step, older, meta = checkpoints.restore(state, step=3)
    assert equal(older, state) and type(older.params) is qwen2.Qwen2
    with pytest.raises(ValueError, match=r"no checkpoint of step 9; there are \[3, 4\]"):
        checkpoints.restore(state, step=9)
    checkpoints.close()


@pytest.mark.slow
@pytest.mark.parametrize("damaged", ["*", "ocdbt.process_0/d/*"])  # everything; values alone
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, state, damaged):
    # Orbax keeps small arrays in the index, not among the values.
    state = {"run": state, "table": jax.random.normal(jax.random.key(1), (64, 64))}
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state, {})
    checkpoints.save(2, state, {})
    checkpoints.close()
    for file in (tmp_path / "step_2" / "state").glob(f"**/{damaged}"):
        if file.is_file():
            file.write_bytes(b"")
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    step, restored, _ = checkpoints.restore(state)
    assert step == 1 and equal(restored, state)
    checkpoints.save(2, restored, {"again": True})
    step, restored, meta = checkpoints.restore(state)
    checkpoints.close()
    assert step == 2 and meta["again"] and equal(restored, state)


@pytest.mark.slow
def test_a_part_is_restored_without_the_rest(tmp_path, state):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    checkpoints.save(3, state, {"data": 5})
    step, params, meta = checkpoints.restore_part(state.params, "params")
    assert (step, meta["data"]) == (3, 5)
    assert equal(params, state.params) and type(params) is qwen2.Qwen2
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state.params
    )
    _, params, _ = checkpoints.restore_part(like, "params", step=3)
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    assert {leaf.sharding for leaf in jax.tree.leaves(params)} == {one}
    with pytest.raises(
        checkpoint.OtherArrays, match="step 3 holds other arrays: it lacks params/m"
    ):
        checkpoints.restore_part({"more": jax.tree.leaves(like)[0]}, "params")
    with pytest.raises(ValueError, match="no checkpoint of step 4"):
        checkpoints.restore_part(like, "params", step=4)
    checkpoints.close()


@pytest.mark.slow
def test_fingerprint_sees_every_value(state):
    first = checkpoint.fingerprint(state.params)
    assert first == checkpoint.fingerprint(jax.device_get(state.params))
    changed = jax.tree.map(lambda x: x.at[(0,) * x.ndim].add(1e-3), state.params)
    assert checkpoint.fingerprint(changed) != first
