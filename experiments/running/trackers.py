"""Trackers: TensorBoard, Weights & Biases and trackio follow a run, each in a process of its own.

A tracker's process (`experiments.tracking`) reads what the run writes anyway: config.json,
metrics.jsonl and the trajectories. Nothing of it comes into this process, which only says which
step is written, and never waits for it but a while at the end. So a tracker that fails or hangs
costs its own record alone.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time

import jax
from absl import logging

from experiments.running import command, places
from experiments.tracking import process
from flow_grpo_jax import processes

NAMES = ("tensorboard", "wandb", "trackio")
GIB = 2**30
LOG_BYTES = 20_000  # of the end of a tracker's log, where the reason stands


def check(names):
    """Raises ConfigError if `config.trackers` names one twice or one that does not exist."""
    unknown = [name for name in names if name not in NAMES]
    if unknown or len(set(names)) < len(names):
        raise command.ConfigError(
            f"trackers={','.join(names)} must name each of {', '.join(NAMES)} once at most, "
            "several as --config.trackers=\"('tensorboard', 'wandb')\"."
        )


def need(names):
    """Raises ConfigError if the library of a tracker is not installed."""
    for name in names:
        command.need(name, f"trackers={name}")


def start(config, workdir, *, first_step):
    """Returns the `Trackers` that a config asks for, in process 0; None if there are none."""
    if not config.trackers or processes.index():
        return None
    return Trackers(config, workdir, first_step=first_step)


class Trackers:
    """The processes of a run's trackers.

    Args:
      config: of the run, whose config.json is written.
      workdir: run folder.
      first_step: the next step that will be trained.
    """

    def __init__(self, config, workdir, *, first_step):
        self._folder, self._seconds = workdir / "tracking", config.tracking.seconds
        self._running = {}
        for name in config.trackers:
            about = {
                "tracker": name,
                "folder": str(workdir.absolute()),
                "project": config.tracking.project,
                "name": config.tracking.run_name or workdir.absolute().name,
                "trajectories": config.tracking.trajectories,
                "seconds": config.tracking.seconds,
                "first_step": first_step,
                "process": os.getpid(),
            }
            try:
                self._running[name] = self._start(name, about)
            except OSError as error:
                logging.warning("tracker %s cannot start: %s", name, error)

    def tell(self, step):
        """Says that the metrics and trajectories of a step are written, and will not change."""
        line = json.dumps({"step": step, "machine": machine()}) + "\n"
        for name, child in [*self._running.items()]:
            if child.poll() is not None:
                self._lose(name)
                continue
            # A full pipe is that of a tracker that lags: it finds the step when it reads the next.
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(child.stdin.fileno(), line.encode())

    def close(self):
        """Lets the trackers end; kills those that take longer than `tracking.seconds`."""
        deadline = time.monotonic() + self._seconds
        for child in self._running.values():
            child.stdin.close()
        for name, child in [*self._running.items()]:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logging.warning(
                    "tracker %s was not done %.0f s after the run and was stopped; see %s",
                    name,
                    self._seconds,
                    self._folder / f"{name}.log",
                )
                _kill(child)
                continue
            if child.returncode:
                self._lose(name)
        self._running = {}

    def _start(self, name, about):
        self._folder.mkdir(exist_ok=True)
        path = os.pathsep.join(filter(None, (str(places.ROOT), os.environ.get("PYTHONPATH"))))
        with (self._folder / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", process.__name__],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": path},
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for the training, which tells it to end
            )
        child.stdin.write(json.dumps(about).encode() + b"\n")
        os.set_blocking(child.stdin.fileno(), False)
        return child

    def _lose(self, name):
        """Warns of a tracker that ended by itself, and forgets it."""
        child = self._running.pop(name)
        child.stdin.close()
        log, lines = self._folder / f"{name}.log", []
        with contextlib.suppress(OSError):
            lines = log.read_bytes()[-LOG_BYTES:].decode(errors="replace").splitlines()
        reasons = [line[len(process.FAILED) :] for line in lines if line.startswith(process.FAILED)]
        logging.warning(
            "tracker %s failed, and the run goes on without: %s (%s)",
            name,
            reasons[-1] if reasons else f"exit code {child.returncode}",
            log,
        )


def _kill(child):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def machine():
    """Returns what this process and its first device use, as metrics."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    device = jax.local_devices()[0].memory_stats() or {}  # CPUs have none
    found = {
        "machine/load": os.getloadavg()[0],
        "machine/cpu_seconds": usage.ru_utime + usage.ru_stime,
        "machine/peak_memory_gib": usage.ru_maxrss * 1024 / GIB,
    }
    for name in ("bytes_in_use", "peak_bytes_in_use"):
        if name in device:
            found[f"machine/device_{name.replace('bytes', 'memory')}_gib"] = device[name] / GIB
    return found
