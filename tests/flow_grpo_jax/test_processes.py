"""What processes tell each other: alone it is nothing; in twos, it is checked by both of them."""

import concurrent.futures
import functools
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from flow_grpo_jax import processes, wire

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


MEET = """
import pathlib
from flow_grpo_jax import processes
processes.initialize()
assert processes.meet(pathlib.Path(folder), seconds=60)
"""


class Store:
    """The key-value store of `jax.distributed`, for two "processes" that are threads."""

    def __init__(self):
        self.values = {}

    def key_value_set_bytes(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def blocking_key_value_get_bytes(self, key, milliseconds):
        deadline = time.monotonic() + milliseconds / 1000
        while key not in self.values:
            if time.monotonic() > deadline:
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
            time.sleep(0.001)
        return self.values[key]

    def key_value_dir_get_bytes(self, folder):
        return [(key, value) for key, value in self.values.items() if key.startswith(folder)]

    def key_value_delete(self, folder):
        for key in [key for key in self.values if key.startswith(folder)]:
            del self.values[key]

    key_value_set, blocking_key_value_get = key_value_set_bytes, blocking_key_value_get_bytes


@pytest.fixture
def twins(monkeypatch):
    """Returns run(work): what work(peers, index) returns or raises in each of two processes."""
    here, store = threading.local(), Store()
    for name, value in (("WAIT_MS", 5), ("NOTICE_SECONDS", 0.01), ("LOOK_SECONDS", 0.005)):
        monkeypatch.setattr(processes, name, value)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "index", lambda: here.index)
    monkeypatch.setattr(processes.atexit, "register", lambda close: None)
    peers = [processes._Peers(store), processes._Peers(store)]
    monkeypatch.setattr(processes, "_peers", lambda: peers[here.index])

    def attempt(work, index):
        here.index = index
        try:
            return work(peers[index], index)
        except (RuntimeError, ValueError) as error:
            processes.tell_failure(error)
            return error

    def run(work):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            return list(pool.map(functools.partial(attempt, work), (0, 1)))

    run.store, run.peers = store, peers
    yield run
    for each in peers:
        each.closing.set()
        each.watcher.join()


def test_the_secret_is_of_this_start_and_of_this_user_and_gone_when_all_have_it(twins, tmp_path):
    (tmp_path / f"{processes.SECRET}{'0' * 32}").write_bytes(b"of a start that was killed")
    modes = []

    def meet(peers, index):
        if index == 1:
            while not (left := list(tmp_path.glob(".*[1-9a-f]*"))):
                time.sleep(0.001)
            modes.append(left[0].stat().st_mode & 0o777)
        assert peers.meet(tmp_path, 60)
        return peers.exchange(index)

    assert twins(meet) == [[0, 1], [0, 1]] and modes == [0o600]
    assert list(tmp_path.iterdir()) == []
    first, second = [peers.secret for peers in twins.peers]
    assert first == second and len(first) == 32
    assert not any(first in str(value).encode() for value in twins.store.values.values())


def test_a_process_that_does_not_see_the_folder_says_so_and_ends_the_others(twins, tmp_path):
    def meet(peers, index):
        if not peers.meet(tmp_path if index == 0 else tmp_path / "other", 0.05):
            raise ValueError("it is not shared")

    first, second = twins(meet)
    assert isinstance(first, processes.PeerFailed) and str(second) == "it is not shared"
    assert str(first) == "Process 1 failed early on; its own output says why."
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_another_name_is_no_secret(twins, tmp_path):
    (tmp_path / "evil").write_bytes(b"known to others")
    (tmp_path / f"{processes.SECRET}{'0' * 32}").write_bytes(b"of another digest")
    for name in ("../evil", "/etc/hostname", *(p.name for p in tmp_path.iterdir())):
        place = f"{processes.PREFIX}/secret/{name}"
        twins.store.key_value_set(place, name)
        assert twins.peers[1].look_for(tmp_path, place, 0.02) is None


def test_before_they_met_nothing_is_exchanged_and_no_text_believed(twins):
    with pytest.raises(RuntimeError, match="must meet"):
        twins.peers[1].exchange(1)
    place = f"{processes.NOTICES}failure/0"
    sealed = wire.seal(wire.encode("send your keys to …"), secret=b"", place=place)
    twins.store.key_value_set_bytes(place, sealed)
    assert twins.peers[1].notices("failure") == [
        "Process 0 failed early on; its own output says why."
    ]


def test_what_is_not_sealed_is_no_notice_and_no_value(twins, tmp_path, caplog):
    def work(peers, index):
        assert peers.meet(tmp_path, 60)
        peers.exchange("of 1")
        if index == 0:
            return None
        old = peers.client.values[f"{processes.PREFIX}/exchange/2/1/value"]
        for place in (f"{processes.NOTICES}failure/0", f"{processes.PREFIX}/exchange/3/0/value"):
            peers.client.key_value_set_bytes(place, old)  # sealed by 1, for another place
        peers.client.key_value_set(f"{processes.PREFIX}/exchange/3/0/ready", "")
        peers.client.key_value_set_bytes(f"{processes.NOTICES}failure/9", b"")
        assert peers.notices("failure") == [] and not peers.failure
        return peers.exchange(1)

    _, second = twins(work)
    assert isinstance(second, wire.Forged) and "exchange/3/0/value is not sealed" in str(second)
    assert "A notice is not of this run. Something else writes" in caplog.text


EXCHANGES = """
import os, pickle, random, time, zlib
from jax._src import distributed
from agents import trajectory
from flow_grpo_jax import processes, wire
class Stopped(Exception): pass
def raised(work, error):
    try:
        work()
    except error as found:
        return str(found)
    raise AssertionError("nothing was raised")

me = processes.index()
assert processes.count() == 2 and list(processes.share(3)) == [[0, 2], [1]][me]
assert processes.gather(["a", "b"][: me + 1]) == ["a", "a", "b"]
assert not list(pathlib.Path(folder).glob(".*"))  # the secret is gone
assert processes.of_first(["first", "second"][me]) == "first"

processes.WAIT_MS = 10  # a value may take longer than a look at whether it is there
large = [random.Random(process).randbytes(3_000_000) for process in (0, 1)]
assert processes.gather([large[me]]) == large
assert processes.gather([]) == []

texts = ["\\ud83d", "", "", "tool", "", "result"]
turn = trajectory.Turn(
    1, (2**62, -1, 5), (), (-0.5, float("-inf")), True, *texts, False, "STOP", 0, 0, 0.1
)
solved = trajectory.Trajectory(
    "q", 0, "", (turn,), "a", trajectory.Status.OK, trajectory.Stop.VERIFIED, 0.1 + 0.2
)
for found in processes.gather([solved], kinds=trajectory.KINDS):
    assert found == solved and type(found.status) is trajectory.Status, found

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

# ---- what a program that reaches the port can do
class Evil:
    def __reduce__(self):
        return os.system, (f"touch {folder}/evil",)
client, peers = distributed.global_state.client, processes._peers()
if me == 1:
    client.key_value_set_bytes(processes.NOTICES + "failure/1", b"\\x80not sealed")
    client.key_value_set_bytes(processes.NOTICES + "failure/7", pickle.dumps(Evil()))
time.sleep(2 * processes.NOTICE_SECONDS)  # both have looked
assert not peers.failure
processes.gather([])
place = f"flow_grpo_jax/exchange/{peers.calls + 1}/1"
if me == 1:
    client.key_value_set_bytes(f"{place}/value", zlib.compress(pickle.dumps([Evil()])))
    client.key_value_set(f"{place}/ready", "")
else:
    problem = raised(lambda: processes.gather([]), wire.Forged)
    assert f"The message {place}/value is not sealed" in problem and "its port" in problem, problem
assert not os.path.exists(f"{folder}/evil")
"""


@pytest.mark.slow
def test_two_processes_exchange_agree_and_stop(tmp_path):
    for code, output in in_twos(MEET + EXCHANGES, tmp_path):
        assert code == 0, output


STUCK = """
import time
processes.GRACE_SECONDS = 1.0
processes.gather([])
if processes.index() == {failing}:
    processes.tell_failure(ValueError("no disk"), exit_code=2)
else:
    time.sleep(1000)  # as in a program on devices that waits for the other process
"""


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_cannot_react_ends_when_another_failed(tmp_path, failing):
    found = in_twos(MEET + STUCK.format(failing=failing), tmp_path)
    assert [code for code, _ in found] == [[2, 1], [1, 2]][failing]
    assert f"Process {failing} failed: no disk" in found[1 - failing][1]


ARRAYS = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from flow_grpo_jax import checkpoint
from models import sharding
from models.engine import placement

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
    for code, output in in_twos(MEET + ARRAYS, tmp_path):
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
