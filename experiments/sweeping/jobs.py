"""Trainings as processes of this machine, some at a time, that stop when this one is told to.

The first signal is passed on to all that run, which save and end with `signals.STOPPED`; a second
one kills them. Each process writes to a log of its own and has a session of its own, so that Ctrl-C
reaches it once.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

from absl import logging

from experiments.running import command, signals

LOOK_SECONDS = 0.1
LOG_BYTES = 4_000  # of the end of a log, where the error stands


@dataclasses.dataclass(frozen=True)
class Job:
    """name: for messages. command: arguments. log: file that is appended to; None: it writes where
    this process does.
    """

    name: str
    command: list
    log: pathlib.Path | None


def training(file, changes, workdir):
    """Returns the command that runs or resumes a training.

    changes: flags that set fields of the config in `file`.
    """
    start = [sys.executable, "-m", "experiments.train", f"--config={file}", f"--workdir={workdir}"]
    return [*start, *changes]


def run(jobs, *, parallel, on_stop=lambda number: None):
    """Runs jobs, `parallel` at a time; one that fails does not keep the others from running.

    on_stop: called with the number of the first signal to stop; jobs may end with 0 all the same.

    Returns:
      {name: exit code}; those that a signal kept from starting are not in it.
    """
    before = {number: signal.getsignal(number) for number in signals.STOPPING}
    try:
        return _run(jobs, parallel, on_stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(codes, names):
    """Returns that of a command for those of its jobs, as `run` returns them."""
    if any(code not in (0, signals.STOPPED) for code in codes.values()):
        return command.FAILED
    return 0 if all(codes.get(name) == 0 for name in names) else signals.STOPPED


def _run(jobs, parallel, on_stop):
    running, codes = _Running(on_stop), {}
    waiting = list(reversed(jobs))
    while waiting or running.jobs:
        while waiting and len(running.jobs) < parallel and not running.stop():
            running.start(waiting.pop())
        if running.stop():
            waiting = []
        for job, code in running.ended():
            codes[job.name] = code
            if job.log:
                _say(job, code)
        time.sleep(LOOK_SECONDS if running.jobs else 0.0)
    return codes


class _Running:
    """Processes at work. stop: whether a signal came."""

    def __init__(self, on_stop):
        self.jobs = {}  # process -> Job
        self._on_stop = on_stop
        self.stop = signals.StopSignal(*signals.STOPPING, on_first=self._pass_on)
        self.stop()

    def start(self, job):
        if job.log:
            job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") if job.log else contextlib.nullcontext() as log:
            process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.jobs[process] = job
        if job.log:
            logging.info("%s: started, see %s", job.name, job.log)
        if self.stop():  # the signal came while it was being started
            process.send_signal(signal.SIGTERM)

    def ended(self):
        """Yields (job, exit code) of those that ended; a signal's number is negative."""
        for process in [*self.jobs]:
            if process.poll() is not None:
                job = self.jobs.pop(process)
                killed = self.stop() and process.returncode < 0
                yield job, signals.STOPPED if killed else process.returncode

    def _pass_on(self, number):
        self._on_stop(number)
        for process in [*self.jobs]:
            process.send_signal(signal.SIGTERM)
        for again in signals.STOPPING:
            signal.signal(again, self._kill)
        logging.info(
            "signal %d: %d trainings save and stop; send it again to kill them",
            number,
            len(self.jobs),
        )

    def _kill(self, number, frame):
        for process in [*self.jobs]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _say(job, code):
    if code == 0:
        logging.info("%s: done", job.name)
    elif code == signals.STOPPED:
        logging.info("%s: stopped", job.name)
    else:
        lines = job.log.read_bytes()[-LOG_BYTES:].decode(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("error: ")] or lines or [""]
        logging.error("%s: exit code %d: %s (%s)", job.name, code, errors[-1], job.log)
