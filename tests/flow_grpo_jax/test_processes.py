"""What processes tell each other: alone it is nothing; in twos, it is checked by both of them."""

import pathlib
import signal

import pytest

from flow_grpo_jax import processes

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 200  # for two short programs on a busy machine


class Stopped(Exception):
    pass


@pytest.fixture
def no_launcher(monkeypatch):
    for name in (*processes.ENVIRONMENT, "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_is_alone(no_launcher):
    processes.initialize()
    assert (processes.index(), processes.count()) == (0, 1)
    assert processes.share(3) == range(3)
    assert processes.gather((1, 2)) == [1, 2]
    assert processes.together(lambda: [3], stop=Stopped) == [3]
    assert processes.any(True) and not processes.any(False)
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


def test_a_signal_reaches_the_other_processes(monkeypatch):
    from experiments import command

    told = []
    monkeypatch.setattr(processes, "tell_stop", lambda: told.append(True))
    before = [signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)]
    try:
        stop = command.StopSignal()
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop() and told == [True]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # a second one ends at once
    finally:
        for name, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(name, handler)
