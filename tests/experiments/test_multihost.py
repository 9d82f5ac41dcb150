"""Two processes on loopback train, save, resume, stop and fail together, and agree with one."""

import functools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest

from experiments import train
from experiments.configs import smoke
from experiments.running import sessions, stored
from flow_grpo_jax import metrics
from models import sharding

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 200  # for a run of a few steps, on a busy machine
# An odd number of questions, uneven shares of them; steps large enough to show in every weight, and
# an epsilon that keeps Adam from blowing rounding errors of tiny gradients up to whole steps.
SETTINGS = {
    "seed": 1,  # some group of every step has unequal rewards
    "steps": 3,
    "rollout.questions": 3,
    "rollout.group": 4,
    "rollout.max_turns": 2,
    "batch.rows": (1,),
    "engine.slots": 8,
    "eval.questions": 3,
    "mesh.fsdp": 4,  # so that every large array lies in both
    "optim.lr": 3e-3,
    "optim.eps": 1e-3,
    "tools.names": ("knowledge_search",),
    "checkpoint.every": 1000,  # of three steps: only what ends a run saves
}
DISTURBED = """
import signal
from experiments import train
from experiments.running import command
from flow_grpo_jax import processes, rollout
start = rollout.Driver._start
def disturbed(driver, question, *rest):
    if processes.index() == 1 and question.step == {step}:
        rollout.Driver._start = start
        {disturb}
    start(driver, question, *rest)
rollout.Driver._start = disturbed
train.define_flags()
command.run(train.main, required=("config", "workdir"))
"""


class Two:
    """Two processes with two CPU devices each that run the training command."""

    def __init__(self, workdir, *arguments, code=None):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
        command = [sys.executable, *(("-c", code) if code else ("-m", "experiments.train"))]
        command += [
            f"--config={ROOT / 'experiments/configs/smoke.py'}",
            f"--workdir={workdir}",
            *(f"--config.{name}={value}" for name, value in SETTINGS.items()),
            f"--coordinator=localhost:{port}",
            "--processes=2",
            *arguments,
        ]
        self.logs = [workdir.with_name(f"{workdir.name}.{index}.log") for index in (0, 1)]
        self.processes = []
        for index, log in enumerate(self.logs):
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*command, f"--process_id={index}"],
                        cwd=ROOT,
                        env=environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def end(self):
        """(exit codes, logs)"""
        try:
            codes = [process.wait(SECONDS) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
        return codes, [log.read_text() for log in self.logs]


def run_one(workdir):
    c = smoke.get_config()
    c.update_from_flattened_dict(SETTINGS)
    four = functools.partial(sharding.make_mesh, devices=jax.devices()[:4])
    with mock.patch.object(sharding, "make_mesh", four):
        train.train(c, workdir)
    return workdir


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return run_one(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of two processes, one of which was told to stop in the rollouts of step 2."""
    workdir = tmp_path_factory.mktemp("two")
    disturb = "signal.raise_signal(signal.SIGTERM)"
    codes, logs = Two(workdir, code=DISTURBED.format(step=2, disturb=disturb)).end()
    assert codes == [75, 75], logs
    return workdir


def trajectories(path):
    """Without what depends on the clock; log-probs apart."""
    found, logprobs = [json.loads(line) for line in path.read_text().splitlines()], []
    for trajectory in found:
        del trajectory["seconds"], trajectory["advantage"]
        for turn in trajectory["turns"]:
            del turn["seconds"]
            logprobs += [turn.pop("logprob_sum"), *turn.pop("token_logprobs")]
    return found, logprobs


def check_agreement(workdir, other):
    lines = {line["step"]: line for line in metrics.read(workdir / "metrics.jsonl")}
    expected = {line["step"]: line for line in metrics.read(other / "metrics.jsonl")}
    assert list(lines) == list(expected) == [0, 1, 2, 3]
    for step in (1, 2, 3):
        for name, value in expected[step].items():
            if name.startswith(("time/", "throughput/", "eval/")):
                continue
            bound = dict(abs=1e-5) if "gap" in name else dict(rel=1e-4, abs=1e-6)
            assert lines[step][name] == pytest.approx(value, **bound), (step, name)
        assert lines[step]["reward/std"] > 0  # else the step teaches nothing and shows little
        name = f"trajectories/step_{step:06d}.jsonl"
        (ours, our_logprobs), (theirs, their_logprobs) = map(
            trajectories, (workdir / name, other / name)
        )
        assert ours == theirs
        assert np.allclose(our_logprobs, their_logprobs, atol=1e-3)


def policies(*workdirs):
    config, _ = stored.read_config(workdirs[0])
    restored = [stored.restore_policy(workdir, config) for workdir in workdirs]
    assert len({step for step, _, _ in restored}) == 1
    alike = ("data", "reference", "sandbox", "questions")
    assert len({json.dumps([meta[name] for name in alike]) for _, _, meta in restored}) == 1
    return [np.concatenate([np.ravel(x) for x in jax.tree.leaves(p)]) for _, p, _ in restored]


def check_same_policy(workdir, other):
    """Equal to rounding, measured by how far training moved it."""
    ours, theirs = policies(workdir, other)
    c = smoke.get_config()
    initial = np.concatenate([np.ravel(x) for x in jax.tree.leaves(sessions.build(c).params)])
    moved = np.linalg.norm(theirs - initial)
    assert moved > 0.1
    assert np.linalg.norm(ours - theirs) <= 1e-3 * moved


def test_a_signal_to_one_process_stops_both_at_the_same_step(stopped):
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["step_1"]
    assert [line["step"] for line in metrics.read(stopped / "metrics.jsonl")] == [0, 1]


def test_two_processes_resume_and_agree_with_one(one, stopped, tmp_path):
    workdir = tmp_path / "resumed"
    shutil.copytree(stopped, workdir)
    codes, logs = Two(workdir).end()
    assert codes == [0, 0] and all("resumed after step 1" in log for log in logs), logs
    check_agreement(workdir, one)
    check_same_policy(workdir, one)
    name = "trajectories/heldout_000000.jsonl"
    assert trajectories(workdir / name) == trajectories(one / name)
    assert (workdir / "report.html").exists()


def test_one_process_resumes_what_two_saved(one, stopped, tmp_path):
    workdir = tmp_path / "resumed"
    shutil.copytree(stopped, workdir)
    run_one(workdir)
    check_agreement(workdir, one)
    check_same_policy(workdir, one)


def test_a_failure_in_one_process_ends_both(tmp_path):
    disturb = "raise RuntimeError('the tool server is gone')"
    code = DISTURBED.format(step=1, disturb=disturb)
    codes, logs = Two(tmp_path / "run", "--config.data.held_out=", code=code).end()
    assert codes == [1, 1], logs
    assert "error: Process 1 failed: the tool server is gone" in logs[0]
    assert "error: the tool server is gone" in logs[1]
