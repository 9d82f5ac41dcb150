"""What processes tell each other: alone it is nothing; in twos, it is checked by both of them."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from flow_grpo_jax import processes

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 100  # for two short programs on a busy machine
TELLING = """
import sys
from flow_grpo_jax import processes
try:
    exec(sys.argv[1], {"folder": sys.argv[2]})
except Exception as error:
    processes.tell_failure(error)
    raise
"""


class Stopped(Exception):
    pass


@pytest.fixture
def no_launcher(monkeypatch):
    for name in (*processes.ENVIRONMENT, "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def in_twos(code, folder):
    """Runs `code` in two processes with two devices each; [(exit code, output)].

    Where it raises in one, it ends in both: else the other would wait for it.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    logs, started = [folder / f"{index}.log" for index in (0, 1)], []
    for index, log in enumerate(logs):
        environment = {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "2",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        }
        with log.open("w") as file:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", TELLING, code, str(folder)],
                    cwd=ROOT,
                    env=os.environ | environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        codes = [process.wait(SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]


def test_one_process_is_alone(no_launcher):
    processes.initialize()
    assert (processes.index(), processes.count()) == (0, 1)
    assert processes.share(3) == range(3)
    assert processes.gather((1, 2)) == [1, 2]
    assert processes.together(lambda: [3], stop=Stopped) == [3]
    assert processes.of_first("value") == "value"
    processes.same({"config": 1})
    processes.tell_stop()
    assert not processes.told_to_stop()
    with pytest.raises(Stopped):
        processes.together(lambda: (_ for _ in ()).throw(Stopped), stop=Stopped)


def test_half_of_an_address_is_refused(no_launcher, monkeypatch):
    with pytest.raises(ValueError, match="JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID missing"):
        processes.initialize(processes=2)
    with pytest.raises(ValueError, match="process_id=2 must be from 0 to processes - 1 = 1"):
        processes.initialize(coordinator="localhost:1", processes=2, process_id=2)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES='two' is not a number"):
        processes.initialize(coordinator="localhost:1", process_id=0)


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NODELIST": "n[1-4]", "SLURM_NTASKS": "4"}, True),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "4"}, False),  # a batch script that starts no step
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a pod, not of an indexed job
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host0,host1"}, True),
    ],
)
def test_launchers_of_several_processes_are_told_from_those_of_one(
    no_launcher, monkeypatch, environment, several
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes._several_were_launched() == several


EXCHANGES = """
import os, random, time
from flow_grpo_jax import processes
class Stopped(Exception): pass
def raised(work, error):
    try:
        work()
    except error as found:
        return str(found)
    raise AssertionError("nothing was raised")

processes.initialize()
me = processes.index()
assert processes.count() == 2 and list(processes.share(3)) == [[0, 2], [1]][me]
assert processes.gather(["a", "b"][: me + 1]) == ["a", "a", "b"]
assert processes.of_first(["first", "second"][me]) == "first"

processes.WAIT_MS = 10  # a value may take longer than a look at whether it is there
large = [random.Random(process).randbytes(3_000_000) for process in (0, 1)]
assert processes.gather([large[me]]) == large
assert processes.gather([]) == []

processes.same({"seed": 1})
problem = raised(lambda: processes.same({"seed": 1, "hash": "ab"[me]}), ValueError)
assert "hash (process 1: 'b', process 0: 'a')" in problem, problem

def work():
    if me == 1:
        time.sleep(1)  # the other one waits
        raise KeyError("gone")
    return [me]
error, text = [(processes.PeerFailed, "Process 1 failed: 'gone'"), (KeyError, "'gone'")][me]
assert raised(lambda: processes.together(work, stop=Stopped), error) == text

def stop():
    if me == 0:
        raise Stopped
    return [me]
raised(lambda: processes.together(stop, stop=Stopped), Stopped)
assert processes.together(lambda: [me], stop=Stopped) == [0, 1]

assert not processes.told_to_stop()
processes.gather([])
if me == 0:
    processes.tell_stop()
deadline = time.monotonic() + 60
while not processes.told_to_stop():
    assert time.monotonic() < deadline
    time.sleep(0.05)
processes.gather([])
"""


@pytest.mark.slow
def test_two_processes_exchange_agree_and_stop(tmp_path):
    for code, output in in_twos(EXCHANGES, tmp_path):
        assert code == 0, output


STUCK = """
import time
from flow_grpo_jax import processes
processes.GRACE_SECONDS = 1.0
processes.initialize()
processes.gather([])
if processes.index() == {failing}:
    processes.tell_failure(ValueError("no disk"), exit_code=2)
else:
    time.sleep(1000)  # as in a program on devices that waits for the other process
"""


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_cannot_react_ends_when_another_failed(tmp_path, failing):
    found = in_twos(STUCK.format(failing=failing), tmp_path)
    assert [code for code, _ in found] == [[2, 1], [1, 2]][failing]
    assert f"Process {failing} failed: no disk" in found[1 - failing][1]


ARRAYS = """
import pathlib
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from flow_grpo_jax import checkpoint, processes
from models import sharding
from models.engine import placement

processes.initialize()
me, folder = processes.index(), pathlib.Path(folder)
mesh = sharding.make_mesh(data=1, fsdp=4)
values = {
    "embed/table_VD": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32),
    "norm/scale_D": np.arange(3, dtype=np.float32),
}
specs = {"embed/table_VD": P(None, "fsdp"), "norm/scale_D": P()}
state = {
    name: jax.make_array_from_callback(
        value.shape, NamedSharding(mesh, specs[name]), lambda index, value=value: value[index]
    )
    for name, value in values.items()
}
assert not state["embed/table_VD"].is_fully_addressable

# ---- engine weights
meshes = placement.meshes(tensor=2, replicas=0)
for dtype, placement.MOVED_BYTES in ((jnp.float32, 2**20), (jnp.bfloat16, 1000)):
    [local] = placement.copies(state, dtype, meshes, separate=False)
    for name, array in local.items():
        assert array.is_fully_addressable and array.dtype == dtype
        assert array.devices() == set(jax.local_devices())
        assert np.array_equal(np.asarray(array), values[name].astype(dtype)), name
    assert local["embed/table_VD"].addressable_shards[0].data.shape == (64, 32)

# ---- fingerprint
assert checkpoint.fingerprint(state) == checkpoint.fingerprint(values)

# ---- checkpoints, one of them damaged in a part that only process 1 reads
def equal(found):
    return all(
        np.array_equal(shard.data, values[name][shard.index])
        for name in found
        for shard in found[name].addressable_shards
    )

checkpoints = checkpoint.Checkpoints(folder / "run", keep=3)
assert checkpoints.restore(state) is None
checkpoints.save(1, state, {"note": "one"})
checkpoints.save(2, state, {"note": "two"})
step, found, meta = checkpoints.restore(state)
assert (step, meta["note"]) == (2, "two") and equal(found)
checkpoints.close()
processes.gather([])
if me == 1:
    for file in (folder / "run" / "step_2" / "state" / "ocdbt.process_1").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
processes.gather([])
checkpoints = checkpoint.Checkpoints(folder / "run", keep=3)
step, found, meta = checkpoints.restore(state)
assert (step, meta["note"]) == (1, "one") and equal(found), step
checkpoints.save(2, found, {"note": "again"})
step, found, meta = checkpoints.restore(state)
assert (step, meta["note"]) == (2, "again") and equal(found)
checkpoints.close()
"""


@pytest.mark.slow
def test_arrays_over_two_processes_are_copied_fingerprinted_saved_and_restored(tmp_path):
    for code, output in in_twos(ARRAYS, tmp_path):
        assert code == 0, output


def test_a_signal_reaches_the_other_processes(monkeypatch):
    from experiments import train

    told = []
    monkeypatch.setattr(processes, "tell_stop", lambda: told.append(True))
    before = [signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    try:
        stop = train.stop_signal()
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop() and told == [True]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # a second one ends at once
    finally:
        for name, handler in zip(
            (signal.SIGTERM, signal.SIGINT, signal.SIGHUP), before, strict=True
        ):
            signal.signal(name, handler)
