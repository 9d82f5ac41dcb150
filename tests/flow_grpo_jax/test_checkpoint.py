"""Checkpoints: exact round trip on a mesh, fall-back from a damaged one, clear errors."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flow_grpo_jax import checkpoint, files, optimizer, update
from models import decoder, sharding

CONFIG = decoder.Config(64, 16, 32, 2, 2, 1, 8)


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
    model = decoder.Decoder(jax.random.key(0), CONFIG)
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
    assert equal(older, state) and type(older.params) is decoder.Decoder
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
    assert equal(params, state.params) and type(params) is decoder.Decoder
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state.params
    )
    _, params, _ = checkpoints.restore_part(like, "params", step=3)
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    assert {leaf.sharding for leaf in jax.tree.leaves(params)} == {one}
    with pytest.raises(checkpoint.OtherArrays, match="step 3 .* lacks params/more"):
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


# ---- small states ------------------------------------------------------------------------------


def table(offset):
    return {"a": jnp.arange(6, dtype=jnp.float32).reshape(2, 3) + offset, "n": jnp.int32(offset)}


@pytest.fixture
def saved(tmp_path):
    """Folder with checkpoints of steps 1 and 2."""
    checkpoints = checkpoint.Checkpoints(tmp_path / "run", keep=2)
    for step in (1, 2):
        checkpoints.save(step, table(step), {"data": step, "loss": float("nan")})
    checkpoints.close()
    return tmp_path / "run"


def opened(folder):
    return checkpoint.Checkpoints(folder, keep=2)


def edit_meta(folder, step, change):
    path = folder / f"step_{step}" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def exchange_values(folder):
    """Step 2 gets the arrays of step 1, which Orbax reads without complaint."""
    shutil.rmtree(folder / "step_2" / "state")
    shutil.copytree(folder / "step_1" / "state", folder / "step_2" / "state")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (exchange_values, "the values of a and 1 more arrays have changed"),
        (lambda f: edit_meta(f, 2, lambda m: m.update(data=7)), "metadata has changed"),
        (lambda f: edit_meta(f, 2, lambda m: m.pop("digest")), "metadata has changed"),
        (lambda f: edit_meta(f, 2, lambda m: m.update(format=2)), "metadata has changed"),
        (lambda f: (f / "step_2" / "meta" / "metadata").write_text(""), "Expecting value"),
    ],
    ids=["values", "metadata", "no digest", "format", "empty"],
)
def test_what_changed_on_the_disk_is_noticed(saved, damage, said, caplog):
    damage(saved)
    step, state, meta = opened(saved).restore(table(0))
    assert step == 1 and meta["data"] == 1 and np.isnan(meta["loss"])
    assert state["a"][0, 0] == 1.0
    assert said in caplog.text


def test_a_checkpoint_without_checksums_is_read_as_before(saved):
    def earlier(meta):
        del meta["arrays"], meta["digest"]
        meta["format"] = 2

    edit_meta(saved, 2, earlier)
    step, state, meta = opened(saved).restore(table(0))
    assert step == 2 and meta["data"] == 2 and state["n"] == 2
    wider = table(0) | {"a": jnp.zeros((2, 4))}
    with pytest.raises(checkpoint.OtherArrays, match=r"a \(there \(2, 3\), here \(2, 4\)\)"):
        opened(saved).restore(wider)


def test_other_names_and_shapes_are_no_damage(saved):
    other = {"a": jnp.zeros((4, 4)), "b": jnp.zeros(1), "c": jnp.zeros(1)}
    with pytest.raises(checkpoint.OtherArrays) as caught:
        opened(saved).restore(other)
    assert str(caught.value) == (
        "The checkpoint of step 2 holds other arrays: it lacks b and 1 more; it has n; shapes "
        "differ: a (there (2, 3), here (4, 4))."
    )


def test_another_dtype_is_converted_after_the_check(saved):
    _, state, _ = opened(saved).restore(table(0) | {"a": jnp.zeros((2, 3), jnp.bfloat16)})
    assert state["a"].dtype == jnp.bfloat16 and state["a"][1, 2] == 7.0


def test_without_a_readable_checkpoint_one_sentence_says_so(saved):
    for step in (1, 2):
        edit_meta(saved, step, lambda meta: meta.update(data="x"))
    with pytest.raises(ValueError) as caught:
        opened(saved).restore(table(0))
    assert str(caught.value) == (
        f"No checkpoint in {saved} can be read; damaged: step 2, step 1. Bring one back from a "
        "copy, or start again in a new folder."
    )


def test_a_full_disk_is_noticed_before_anything_is_written(saved, monkeypatch):
    checkpoints = opened(saved)
    checkpoints.restore(table(0))
    monkeypatch.setattr(files, "free_bytes", lambda path: 27)
    with pytest.raises(RuntimeError) as caught:
        checkpoints.save(3, table(3), {})
    assert str(caught.value) == (
        f"The checkpoint of step 3 cannot be written to {saved}: No space left on device "
        "(0.0 MB are free, 0.0 MB are needed). Step 2 is saved: the same command goes on from "
        "there."
    )
    assert checkpoints.steps() == [1, 2]
    monkeypatch.setattr(files, "free_bytes", lambda path: 28)  # six float32 and one int32
    checkpoints.save(3, table(3), {})


def test_a_write_that_fails_gets_one_sentence_and_leaves_nothing(saved, monkeypatch):
    checkpoints = opened(saved)
    page = "Error writing\n a page [os_error_code='122'] of it"

    def fails(step, **how):
        (saved / f"step_{step}.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
        raise ValueError(page)

    monkeypatch.setattr(checkpoints.manager, "save", fails)
    with pytest.raises(RuntimeError) as caught:
        checkpoints.save(3, table(3), {})
    assert "Disk quota exceeded (0.0 MB are needed). No step is saved yet." in str(caught.value)
    page = "What\n a page"
    with pytest.raises(RuntimeError, match=f"{saved}: What. No step"):
        checkpoints.save(3, table(3), {})
    assert sorted(path.name for path in saved.iterdir()) == ["step_1", "step_2"]


def test_what_a_killed_run_left_is_removed_by_the_next_writer(saved):
    left = saved / "step_3.orbax-checkpoint-tmp"
    left.mkdir()
    checkpoint.Checkpoints(saved, keep=None).close()  # a reader, maybe beside a run
    assert left.exists()
    opened(saved).close()
    assert not left.exists()
