"""The run folder: one training at a time, and the same folder for all its processes.

The lock is a file in it that names its holder. It is made by a hard link, which only one can make
on a shared file system too, and its time of change is renewed every BEAT_SECONDS. A lock is left
behind by a process that was killed. If that ran on this machine since it started, its process
number tells; else the lock is watched, and taken over when it was not renewed for SILENT_SECONDS.
A holder whose lock was taken over, because it hung that long, ends without writing any more.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import functools
import json
import os
import pathlib
import socket
import threading
import time
import uuid

from absl import logging

from experiments.running import command
from flow_grpo_jax import files, processes
from flow_grpo_jax.bounds import json_text

LOCK = ".lock"
BEAT_SECONDS = 10.0
SILENT_SECONDS = 100.0  # network file systems may show a change a minute late
LOOK_SECONDS = 0.5  # between two looks at a lock of another machine
SHARED_SECONDS = 60.0  # a network file system may show a new file this late


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    boot: the machine since it started, and the name space of `pid`; "" if unknown.
    started: ticks from the start of the machine to that of the process; numbers are used again.
    folder: as its process names it; a copied folder has a lock that is no lock.
    since: local time.
    word: of this lock and no other.
    """

    host: str
    pid: int
    boot: str
    started: int
    folder: str
    since: str
    word: str


def one_at_a_time(train):
    """Decorates train(config, workdir, …): it holds the folder's lock and stops if it loses it."""

    @functools.wraps(train)
    def locked(config, workdir, *, should_stop=lambda: False, **how):
        with held(workdir) as check:
            should_end = lambda: check() or should_stop()
            return train(config, pathlib.Path(workdir), should_stop=should_end, **how)

    return locked


@contextlib.contextmanager
def held(path):
    """Locks a folder, which is made if absent; of several processes, 0 holds it for all.

    Yields:
      A function that raises RuntimeError once another process took the lock over.

    Raises:
      ConfigError: another process holds it, it cannot be written, or it is not the same one for all
        processes.
      RuntimeError: the disk is full.
    """
    command.check_local("workdir", path)
    path, lock = pathlib.Path(path), None
    try:
        if processes.index() == 0:
            try:
                path.mkdir(parents=True, exist_ok=True)
                lock = _Lock(path)
            except OSError as error:
                why = files.reason(path.absolute(), error.errno)
                kind = RuntimeError if error.errno in files.FULL else command.ConfigError
                raise kind(f"{path} cannot be written: {why}.") from error
        _check_shared(path)
        yield lock.check if lock else lambda: None
    finally:
        if lock:
            lock.release()


class _Lock:
    """A lock that is held, and the thread that renews it."""

    def __init__(self, folder):
        self._path, self._lost = folder / LOCK, False
        self._holder = _this_process(folder)
        _acquire(self._path, self._holder)
        self._released = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._renewing.start()

    def check(self):
        if self._lost:
            raise RuntimeError(
                f"{self._path.parent} was taken over by another process while this one did not "
                "answer; this one ends and leaves it alone."
            )

    def release(self):
        self._released.set()
        self._renewing.join()
        with contextlib.suppress(OSError):
            if _read(self._path) == self._holder:
                self._path.unlink()

    def _renew(self):
        while not self._lost and not self._released.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # of a file system that does not answer now
                there = _read(self._path) if self._path.exists() else None
                if there == self._holder:
                    os.utime(self._path)
                elif there is None and _created(self._path, self._holder):
                    logging.warning("%s was deleted while it was held; it is back", self._path)
                else:
                    self._lost = True


def _acquire(path, holder):
    """Makes the lock, or takes over one that nobody holds."""
    seen, since = None, 0.0
    while True:
        with _alone(path.parent):
            if _created(path, holder):
                return
            try:
                there, beat = _read(path), path.stat().st_mtime_ns
            except FileNotFoundError:  # released just now
                continue
            silent = (there, beat) == seen and time.monotonic() - since > SILENT_SECONDS
            alive = _is_alive(there, holder)
            if alive is False or silent:
                files.replace_text(path, _text(holder))
                return
        if alive or (there and seen and seen[0] == there and seen[1] != beat):
            raise command.ConfigError(
                f"{path.parent} is in use: process {there.pid} on {there.host} works in it since "
                f"{there.since}. Wait for its end, stop it (kill {there.pid} on {there.host}), or "
                "use another folder."
            )
        if not seen:
            logging.info(
                "%s: locked by %s; watching for up to %.0f s whether it is still at work",
                path.parent,
                f"process {there.pid} on {there.host} since {there.since}" if there else "nobody",
                SILENT_SECONDS,
            )
        if seen != (there, beat):
            seen, since = (there, beat), time.monotonic()
        time.sleep(LOOK_SECONDS)


@contextlib.contextmanager
def _alone(folder):
    """Keeps other processes of this machine out, so that two do not take over the same lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not on every file system
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _created(path, holder):
    """Writes the lock; returns False if there is one."""
    unfinished = path.with_name(f"{LOCK}.{holder.word}")
    try:
        unfinished.write_text(_text(holder), encoding="utf-8")
        try:
            os.link(unfinished, path)
        except FileExistsError:
            return unfinished.stat().st_nlink == 2  # NFS: the answer to a first try was lost
        except OSError:  # a file system without hard links
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(_text(holder))
            except FileExistsError:
                return False
        return True
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def _text(holder):
    return json.dumps(dataclasses.asdict(holder)) + "\n"


def _read(path):
    """Returns the Holder of a lock, None if the file is damaged."""
    try:
        holder = Holder(**json_text.read_object(path, most=2**16))
    except (ValueError, TypeError):
        return None
    fields = dataclasses.fields(Holder)
    whole = all(type(getattr(holder, field.name)) is field.type for field in fields)
    return holder if whole and holder.pid > 0 else None


def _is_alive(there, here):
    """Whether a Holder still runs, seen from the process `here`; None if that cannot be told."""
    if there is None or not there.boot or (there.boot, there.folder) != (here.boot, here.folder):
        return None
    try:
        os.kill(there.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    if (found := _state(there.pid)) is None:
        return None
    state, started = found
    return started == there.started and state not in "ZX"  # ended, but its parent did not look


def _this_process(folder):
    found = _state(os.getpid())
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        boot=_boot() if found else "",
        started=found[1] if found else 0,
        folder=str(folder.resolve()),
        since=datetime.datetime.now().astimezone().isoformat(" ", timespec="seconds"),
        word=uuid.uuid4().hex,
    )


def _boot():
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _state(pid):
    """Returns (letter of its state, ticks at its start) of a process, None if unknown; proc(5)."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _check_shared(folder):
    """Raises ConfigError if this process does not see the folder of process 0."""
    if not processes.meet(folder, seconds=SHARED_SECONDS):
        raise command.ConfigError(
            f"Process {processes.index()} does not see in {folder} what process 0 writes there. "
            "Give a --workdir that all hosts share, such as a network file system."
        )
