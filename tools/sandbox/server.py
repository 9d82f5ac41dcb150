"""The helper's loop: forks a restricted process for each program and tells how it ended.

It has one thread. Whatever may take long is beside the loop: a process empties the folders that
programs leave, and measuring one program takes a bounded share of the time.
"""

import collections
import contextlib
import gc
import json
import math
import os
import select
import signal
import socket
import tempfile
import time

from tools.sandbox import folders, layers, program, seccomp, usage

PROGRAMS = 32  # at once
SPARE_FOLDERS = 8  # for new programs while those of others are emptied
CLEANERS = 4  # processes that empty folders at once
FILE_BYTES = 16 * 2**20
WRITTEN_BYTES = 256 * 2**20  # in all, of one program whose folder is on disk
OPEN_FILES = 64
THREADS = 128
# Of all processes of this user together, as far as programs start them: timers of the kernel.
PENDING_SIGNALS = 256
KILL_ORDER, PROGRAM_KILL_ORDER = 900, 1000  # when memory runs out: long before the trainer
LOOK_SECONDS = 0.05  # how often a program is measured where the kernel does not do it
LOOK_SHARE = 1 / 32  # of the time, at most, for the measuring of one program
FORK_SECONDS = 2.0  # for which a fork that the kernel refuses is tried again
CHILD_SUBREAPER = 36


class KillOrder:
    """Which of helper and programs the kernel kills first when memory runs out: programs."""

    def __init__(self):
        try:
            self._file = layers.open_kill_order()
            own = int(os.read(self._file, 16))
            self._own = max(own, KILL_ORDER)
            layers.set_kill_order(self._file, self._own)
        except OSError:  # /proc is read-only
            self._file = None

    def fork_program(self):
        """Forks a process that comes before this one; it could not change that itself."""
        if self._file is None:
            return os.fork()
        layers.set_kill_order(self._file, PROGRAM_KILL_ORDER)
        process = None
        try:
            process = os.fork()
            return process
        finally:
            if process != 0:
                layers.set_kill_order(self._file, self._own)


class _Waiting:
    """A call whose program has not started; files: the program's text, the pipe, the socket."""

    def __init__(self, request, files):
        self.request, self.files = request, files


class _Running:
    """A program that has not ended.

    path: its folder in /proc, None if it is not known.
    deadline, look_at: times of time.monotonic; inf for never.
    """

    def __init__(self, process, call, folder, *, seconds, path, look_at):
        self.process, self.call, self.folder, self.path = process, call, folder, path
        self.seconds, self.deadline = seconds, time.monotonic() + seconds
        self.look_at = look_at
        self.stopped = ""  # the limit that it broke


class Server:
    """Forks programs and tells how they end.

    folders: private folders; one for each program that runs at the same time, and some more.
    rulesets: folder -> Landlock ruleset; empty to leave this layer out.
    filters: seccomp.Filters, or None.
    limits: whether rlimits are set.
    on_disk: whether the folders have no limit of their own and are measured.
    kill_order: KillOrder.
    """

    def __init__(self, connection, *, folders, rulesets, filters, limits, on_disk, kill_order):
        self.connection, self.free, self.rulesets = connection, list(folders), rulesets
        self.filters, self.limits, self.on_disk = filters, limits, on_disk
        self.kill_order = kill_order
        self.gate = None
        self.waiting = collections.deque()  # of _Waiting
        self.refused_since = None  # time of the first of the forks that the kernel refused
        self.running = {}  # descriptor of the call's socket -> _Running
        self.dirty = collections.deque()  # folders to be emptied
        self.cleaners = {}  # process -> the folder that it empties
        with open("/proc/self/statm") as file:
            self.own_memory = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        self.woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        layers.prctl(CHILD_SUBREAPER, 1)
        self.poll = select.poll()
        for file in (connection.fileno(), self.woken):
            self.poll.register(file, select.POLLIN)
        gc.collect()
        gc.disable()  # a collection would write to memory that is shared with the programs
        gc.freeze()

    def let_threads_ask(self, listener):
        self.gate = seccomp.Gate(listener, THREADS)
        self.poll.register(listener, select.POLLIN)

    def serve(self):
        """Serves until the client goes away."""
        while True:
            for file, _ in self.poll.poll(self._pause()):
                if file == self.woken:
                    self._reap()
                elif file == self.connection.fileno():
                    if not self._accept():
                        return self._stop()
                elif self.gate and file == self.gate.listener:
                    self._answer_a_thread()
                elif file in self.running:
                    self._kill(self.running[file].process)
                    self.poll.unregister(file)
            self._start()
            self._clean()
            self._look()

    def _pause(self):
        """Returns the milliseconds until something is due, None if nothing is."""
        times = [min(running.deadline, running.look_at) for running in self.running.values()]
        if self.refused_since and (self.waiting or self.dirty):
            times.append(time.monotonic() + LOOK_SECONDS)
        soonest = min(times, default=math.inf)
        if soonest == math.inf:
            return None
        return max(0, math.ceil(1000 * (soonest - time.monotonic())))

    def _accept(self):
        message, files, _, _ = socket.recv_fds(self.connection, 4096, 3)
        if message:
            self.waiting.append(_Waiting(json.loads(message), files))
        return bool(message)

    def _start(self):
        """Starts programs that wait, as far as there are folders and processes."""
        while self.waiting and self.free:
            waiting, folder = self.waiting[0], self.free[-1]
            source, output, call = waiting.files
            try:
                process = self._fork(self.kill_order.fork_program)
            except OSError as error:
                if time.monotonic() - self.refused_since < FORK_SECONDS:
                    return
                self.waiting.popleft()
                os.close(source)
                os.close(output)
                with socket.socket(fileno=call) as call:
                    self._tell(call, {"refused": error.strerror})
                continue
            if not process:
                self._become_program(waiting.request, source, output, call, folder)
            self.waiting.popleft()
            self.free.pop()
            os.close(source)
            os.close(output)
            self._note(process, socket.socket(fileno=call), folder, waiting.request["seconds"])

    def _fork(self, fork):
        """Forks, and notes since when the kernel refuses that."""
        try:
            process = fork()
        except OSError:
            self.refused_since = self.refused_since or time.monotonic()
            raise
        self.refused_since = None
        return process

    def _note(self, process, call, folder, seconds):
        looks = self.on_disk or (self.limits and not self.gate)
        self.running[call.fileno()] = _Running(
            process,
            call,
            folder,
            seconds=seconds,
            path=self._path(process) if looks else None,
            look_at=time.monotonic() + LOOK_SECONDS if looks else math.inf,
        )
        self.poll.register(call.fileno(), select.POLLIN)

    def _become_program(self, request, source, output, call, folder):
        """Becomes the program, in the fork; never returns."""
        call = socket.socket(fileno=call)
        try:
            os.setsid()
            layers.die_with_parent()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.dup2(source, program.SOURCE)
            os.chdir(folder)
            os.environ["HOME"] = os.environ["TMPDIR"] = folder
            tempfile.tempdir = None
            if self.limits:
                layers.limit(
                    AS=self.own_memory + request["memory_bytes"],
                    CORE=1,  # 0 would still start a program of the system that takes the dump
                    CPU=_processor_seconds(request["seconds"]),
                    FSIZE=FILE_BYTES,
                    MEMLOCK=0,
                    MSGQUEUE=0,
                    NOFILE=OPEN_FILES,
                    SIGPENDING=PENDING_SIGNALS,
                )
            if self.rulesets:
                layers.show_memory()  # the helper reads how much it wrote
                layers.landlock_restrict(self.rulesets[folder])
            if self.filters:
                self.filters.install_own(os.getpid(), layers.FOREIGN)
        except BaseException as error:  # noqa: BLE001 - told to the client, by a way of its own
            call.send(json.dumps({"failed": repr(error)}).encode())
            os._exit(1)
        os.closerange(program.SOURCE + 1, 1 << 16)
        try:
            program.run()
        finally:  # it has broken what ends a process
            os.kill(os.getpid(), signal.SIGKILL)

    def _reap(self):
        """Notes every process that ended."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.woken, 4096)
        by_process = {running.process: file for file, running in self.running.items()}
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(ended.si_pid, signal.SIGKILL)  # not reaped: the number is still its own
            _, status, used = os.wait4(ended.si_pid, 0)
            if ended.si_pid in by_process:
                self._finish(by_process[ended.si_pid], status, used)
            elif (folder := self.cleaners.pop(ended.si_pid, None)) and status == 0:
                self.free.append(folder)  # else it stays out of use

    def _finish(self, file, status, used):
        running = self.running.pop(file)
        with contextlib.suppress(KeyError):
            self.poll.unregister(file)
        if self.gate:
            self.gate.forget(running.process)
        (self.free if folders.is_clean(running.folder) else self.dirty).append(running.folder)
        status = os.waitstatus_to_exitcode(status)
        # By the kernel's account: a signal alone could come from the program.
        if status == -signal.SIGKILL and used.ru_utime + used.ru_stime >= running.seconds:
            running.stopped = running.stopped or "time"
        self._tell(running.call, {"status": status, "stopped": running.stopped})
        running.call.close()

    def _tell(self, call, told):
        with contextlib.suppress(OSError):  # the client went away
            call.send(json.dumps(told).encode())

    def _clean(self):
        """Starts processes that empty folders, as far as there may be more."""
        while self.dirty and len(self.cleaners) < CLEANERS:
            try:
                process = self._fork(os.fork)
            except OSError:
                return
            if not process:
                _become_cleaner(self.dirty[0])
            self.cleaners[process] = self.dirty.popleft()

    def _answer_a_thread(self):
        too_many = self.gate.answer(lambda process: usage.threads(self._path(process)))
        for running in self.running.values():
            if running.process == too_many:
                self._break_off(running, "threads")

    def _path(self, process):
        return usage.path_of(process, is_namespace=not self.on_disk)

    def _look(self):
        """Stops programs whose time is over, and measures the one that waited longest for it."""
        now, due = time.monotonic(), None
        for running in self.running.values():
            if running.deadline <= now:
                self._break_off(running, "time")
            elif running.look_at <= now and (due is None or running.look_at < due.look_at):
                due = running
        if due is None:
            return
        if broken := self._broken_limit(due):
            self._break_off(due, broken)
        else:
            end = time.monotonic()
            due.look_at = end + max(LOOK_SECONDS, (end - now) / LOOK_SHARE)

    def _broken_limit(self, running):
        if not self.gate and self.limits and (usage.threads(running.path) or 0) > THREADS:
            return "threads"
        if self.on_disk and self.rulesets and usage.written(running.path) > WRITTEN_BYTES:
            return "written"
        if self.on_disk and folders.is_too_large(running.folder):
            return "disk"
        return ""

    def _break_off(self, running, limit):
        running.stopped, running.deadline, running.look_at = limit, math.inf, math.inf
        self._kill(running.process)

    def _kill(self, process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)

    def _stop(self):
        for process in (*(running.process for running in self.running.values()), *self.cleaners):
            self._kill(process)
            os.waitpid(process, 0)


def _processor_seconds(seconds):
    """Returns the processor time of a program that may run for `seconds`."""
    return math.ceil(seconds) + 1


def _become_cleaner(folder):
    """Empties a folder, in a fork; never returns."""
    status = 1
    try:
        layers.die_with_parent()
        signal.set_wakeup_fd(-1)
        os.closerange(program.SOURCE, 1 << 16)
        folders.renew(folder)
        status = 0
    finally:
        os._exit(status)
