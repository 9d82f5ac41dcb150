"""Runs programs through the helper process, for the tools.

This process never forks: the helper is started with a fresh interpreter, and forks the programs.
"""

import codecs
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import select
import socket
import subprocess
import sys
import threading
import time
import weakref

from tools.sandbox import folders, program, server

FLAGS = ("-s", "-S", "-P", "-B", "-u", "-X", "utf8")  # -u: output before a kill
START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from tools.sandbox import helper; helper.main()"
)
ROOT = pathlib.Path(__file__).resolve().parents[2]
START_SECONDS = 60.0
WAIT_SECONDS = 30.0  # for the start of a program: others may have left much to remove
END_SECONDS = 5.0  # from the time to kill a program to its end
MAX_READ_BYTES = 16 * 2**20  # a program that writes more is killed
TRUNCATED = "\n[output truncated]"


class HelperDied(Exception):
    """The helper ended, or does not answer."""


class NotStarted(Exception):
    """The kernel has no process for a program now; the message is its reason."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The end of a program.

    status: exit status, or minus the number of the signal that killed it; told by the kernel.
    output: its text, at most the bytes asked for.
    explanation: its traceback or last words, by its own account.
    stopped: the limit for which it was killed, or "": "time", "output", "threads", "disk" (files in
      its folder), "written" (to any files in all).
    """

    status: int
    output: str
    explanation: str
    stopped: str


class Sandbox:
    """A helper that is started again if it dies; `run` is safe in many threads.

    without: layers to leave out, of `selftest.LAYERS`; for tests.
    facts: what the helper says of itself; see `helper.main`.
    """

    def __init__(self, *, without=()):
        self._without = tuple(without)
        self._places = threading.BoundedSemaphore(server.PROGRAMS)
        self._lock = threading.Lock()
        self._helper = _Helper(self._without)

    @property
    def facts(self):
        return self._helper.facts

    @property
    def process(self):
        """Process number of the helper."""
        return self._helper.process.pid

    def run(self, code, *, seconds, max_output_bytes, memory_bytes):
        """Runs one program.

        Args:
          code: the source text.
          seconds: wall time, from its start.
          max_output_bytes: the first bytes of the output that are kept.
          memory_bytes: address space beyond what the helper has mapped.

        Returns:
          Result.

        Raises:
          UnicodeEncodeError: the code is no text.
          NotStarted: the kernel has no process for it now.
          RuntimeError: the helper died twice, or could not restrict this program.
        """
        source = code.encode("utf-8")
        with self._places:
            for is_last in (False, True):
                with self._lock:
                    used = self._helper
                try:
                    return used.run(
                        source,
                        seconds=seconds,
                        max_output_bytes=max_output_bytes,
                        memory_bytes=memory_bytes,
                    )
                except HelperDied as error:
                    with self._lock:
                        if self._helper is used:
                            used.close()
                            self._helper = _Helper(self._without)
                    if is_last:
                        raise RuntimeError(
                            f"The process that runs programs died twice: {error}. "
                            f"{used.last_words()}"
                        ) from error

    def close(self):
        self._helper.close()


class _Helper:
    """One helper process."""

    def __init__(self, without):
        if sys.platform != "linux":
            raise RuntimeError(f"Programs run on Linux only, not on {sys.platform}.")
        packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        settings = {"without": without, "packages": packages}
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors = os.memfd_create("errors", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._errors)
        with theirs:
            arguments = [str(ROOT), str(theirs.fileno()), json.dumps(settings)]
            self.process = subprocess.Popen(
                [sys.executable, *FLAGS, "-c", START, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd="/",
                env=_environment(),
            )
            theirs.close()
            homes = []  # folders of all programs, on disk
            self.close = weakref.finalize(self, _stop, self.process, self._control, homes)
            self._control.settimeout(START_SECONDS)
            try:
                ready = self._control.recv(65536)
            except TimeoutError:
                ready = b""
            if not ready:
                self.close()
                raise RuntimeError(
                    f"The process that runs programs did not start; programs need Linux. "
                    f"{self.last_words()}"
                )
        self._control.settimeout(None)
        self.facts = json.loads(ready)
        homes += filter(None, [self.facts["folder"]])

    def last_words(self):
        """Returns the end of the helper's standard error, "" if it wrote nothing."""
        text = os.pread(self._errors, 1 << 16, 0).decode("utf-8", "replace")
        return text.strip()[-1000:]

    def run(self, source, *, seconds, max_output_bytes, memory_bytes):
        """Runs a program, see `Sandbox.run`; raises HelperDied."""
        request = {"memory_bytes": memory_bytes, "seconds": seconds}
        with contextlib.ExitStack() as stack:
            text = os.memfd_create("program", os.MFD_CLOEXEC)
            stack.callback(os.close, text)
            os.pwrite(text, source, 0)
            output, output_start = os.pipe()
            stack.callback(os.close, output)
            call, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(call)
            files = [text, output_start, theirs.fileno()]
            try:
                socket.send_fds(self._control, [json.dumps(request).encode()], files)
            except OSError as error:
                raise HelperDied(str(error)) from error
            finally:
                os.close(output_start)
                theirs.close()
            kept = _Output(output, max_output_bytes)
            told, is_flood = _follow(call, kept, patience=WAIT_SECONDS + seconds + END_SECONDS)
            if "refused" in told:
                raise NotStarted(told["refused"])
            if "failed" in told:
                raise RuntimeError(f"A program could not be started: {told['failed']}")
            kept.drain()
            said = os.pread(text, program.EXPLANATION_BYTES, len(source))
        explanation = said.decode("utf-8", "replace")
        stopped = told["stopped"] or ("output" if is_flood else "")
        return Result(told["status"], kept.text(), explanation, stopped)


def _follow(call, output, *, patience):
    """Reads the output until the helper tells the end; returns (what it told, was it too much).

    patience: seconds after which the helper has to have told it.
    """
    poll = select.poll()
    for file in (output.file, call.fileno()):
        poll.register(file, select.POLLIN)
    is_flood, deadline = False, time.monotonic() + patience
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise HelperDied("it did not tell the end of a program in time")
        for file, _ in poll.poll(math.ceil(remaining * 1000)):
            if file == call.fileno():
                try:
                    message = call.recv(4096)
                except OSError as error:
                    raise HelperDied(str(error)) from error
                if not message:
                    raise HelperDied("it ended while a program ran")
                return json.loads(message), is_flood
            if output.read() == b"":
                poll.unregister(file)
            elif output.seen > MAX_READ_BYTES and not is_flood:
                is_flood, deadline = True, time.monotonic() + END_SECONDS
                _order_kill(call)


def _order_kill(call):
    with contextlib.suppress(OSError):  # it ended: the status is on its way
        call.shutdown(socket.SHUT_WR)  # a message, if not read, would undo what the helper sent


def _stop(process, control, homes):
    control.close()
    try:
        process.wait(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for home in homes:  # a helper that ended by itself has removed it
        folders.remove(home)


def _environment():
    threads = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    libraries = os.environ.get("LD_LIBRARY_PATH")  # the interpreter may need it to start
    return {
        **({"LD_LIBRARY_PATH": libraries} if libraries else {}),
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",  # the order of a set is the same in every run
        "MALLOC_ARENA_MAX": "2",  # an arena of each thread would count as 64 MiB of memory
        **dict.fromkeys(threads, "1"),
    }


class _Output:
    """The first bytes of what comes through a pipe."""

    def __init__(self, file, max_bytes):
        self.file, self.max_bytes = file, max_bytes
        self.seen = 0  # bytes
        self._kept = bytearray()
        os.set_blocking(file, False)

    def read(self):
        """Returns available bytes, at most 64 KiB: b"" at the end, None if there are none yet."""
        try:
            chunk = os.read(self.file, 65536)
        except BlockingIOError:
            return None
        self.seen += len(chunk)
        self._kept += chunk[: max(0, self.max_bytes - len(self._kept))]
        return chunk

    def drain(self):
        """Reads the rest of the pipe, at most 1 MiB."""
        for _ in range(16):
            if not self.read():
                return

    def text(self):
        is_whole = self.seen <= self.max_bytes
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        text = decode(bytes(self._kept), is_whole)  # half a character at the cut is dropped
        return text.rstrip() if is_whole else text + TRUNCATED
