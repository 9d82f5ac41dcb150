"""Processes that work on hostile text for this one, and can be killed: pages, formulas.

A child is started when it is first needed, lives on, and does one piece of work at a time. It knows
nothing of this process's environment. Once it has imported what it needs it gives up what it can,
as programs of the model do (`sandbox`): files but the libraries, network, other processes,
privileges; and its memory is limited. Where the machine lacks a layer the others hold.

The work is a module with two functions: `prepare()` imports, `answer(**ask)` maps a JSON object to
a JSON value, null for none. An answer that takes too long, too much memory or raises ends the child
and is none; the next piece of work gets a new one.
"""

import contextlib
import importlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import weakref

from tools.sandbox import layers, seccomp

START = "import sys, json; sys.path[:] = json.loads(sys.argv[1])['path']; "
START += "from tools import children; children.main()"
FLAGS = ("-s", "-S", "-P", "-B", "-X", "utf8")
ROOT = str(pathlib.Path(__file__).resolve().parents[1])
START_SECONDS = 60.0  # sympy is large
GRACE_SECONDS = 1.0  # for a child to end by its own alarm
MAX_ANSWER_BYTES = 32 * 2**20
OPEN_FILES, ERROR_BYTES = 64, 2**20
LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/nix/store")
LIBRARIES += ("/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/urandom")
READY = "ready"


class Children:
    """Some processes for one kind of work; safe in many threads.

    Args:
      module: of the work, by its dotted name.
      most: pieces of work at once; further ones wait.
      memory_bytes: address space of each process.
    """

    def __init__(self, module, *, most, memory_bytes):
        self._module, self._memory = module, memory_bytes
        self._places, self._lock = threading.BoundedSemaphore(most), threading.Lock()
        self._free = []

    def ask(self, ask, *, seconds):
        """Returns the answer to a piece of work; None if there is none.

        seconds: for the work alone, not for the wait or the start of a process.

        Raises:
          RuntimeError: the process does not start.
        """
        with self._places:
            child = self._waiting() or _Child(self._module, self._memory)
            answer = child.ask(ask, seconds)
            if child.ended:
                return None
            with self._lock:
                self._free.append(child)
            return answer

    def _waiting(self):
        """Returns a child that waits for work, or None; one that was ended meanwhile is none."""
        with self._lock:
            while self._free:
                child = self._free.pop()
                if child.process.poll() is None:
                    return child
                child.end()
        return None

    def processes(self):
        """Returns the numbers of the processes that wait for work."""
        with self._lock:
            return [child.process.pid for child in self._free]

    def close(self):
        with self._lock:
            for child in self._free:
                child.end()
            self._free.clear()


class _Child:
    """One process."""

    def __init__(self, module, memory_bytes):
        path = [ROOT, *(os.path.abspath(path) for path in sys.path if path)]
        settings = {"path": path, "memory_bytes": memory_bytes}
        self._socket, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile() as errors:
            arguments = [json.dumps(settings), module, str(theirs.fileno())]
            self.process = subprocess.Popen(
                [sys.executable, *FLAGS, "-c", START, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd="/",
                env=_environment(),
            )
            theirs.close()
            self.end = weakref.finalize(self, _end, self.process, self._socket)
            if self._answer(time.monotonic() + START_SECONDS) != READY:
                self.end()
                errors.seek(0)
                said = errors.read(ERROR_BYTES).decode("utf-8", "replace").splitlines()[-1:]
                raise RuntimeError(f"The process of {module} does not start. {' '.join(said)}")

    @property
    def ended(self):
        return not self.end.alive

    def ask(self, ask, seconds):
        """Returns the answer; None also if the process had to be ended."""
        deadline = time.monotonic() + seconds + GRACE_SECONDS
        line = json.dumps({"seconds": seconds, "ask": ask}).encode() + b"\n"
        try:
            self._socket.settimeout(seconds + GRACE_SECONDS)
            self._socket.sendall(line)
        except OSError:  # it has ended
            self.end()
            return None
        return self._answer(deadline)

    def _answer(self, deadline):
        """Returns the value of the next line; ends the process and returns None without one."""
        line = bytearray()
        try:
            while not line.endswith(b"\n"):
                self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
                part = self._socket.recv(1 << 16)
                line += part
                if not part or len(line) > MAX_ANSWER_BYTES:
                    raise EOFError
            return json.loads(line)
        except (OSError, EOFError, ValueError, RecursionError):
            self.end()
            return None


def _end(process, connection):
    connection.close()
    process.kill()
    process.wait()


def _environment():
    libraries = os.environ.get("LD_LIBRARY_PATH")  # the interpreter may need it to start
    return {
        **({"LD_LIBRARY_PATH": libraries} if libraries else {}),
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",  # the order of a set is the same in every run
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


# ---- in the child --------------------------------------------------------------------------------


def main():
    """Works; arguments: settings in JSON, the module, the descriptor of the socket."""
    settings, module, connection = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    work = importlib.import_module(module)
    work.prepare()
    _give_up_rights(settings["memory_bytes"])
    with open(connection, "rb") as asked, open(connection, "wb", closefd=False) as answers:

        def say(value):
            answers.write(json.dumps(value).encode() + b"\n")
            answers.flush()

        say(READY)
        for line in asked:
            ask = json.loads(line)
            signal.setitimer(signal.ITIMER_REAL, ask["seconds"])  # whatever it is doing then
            answer = work.answer(**ask["ask"])
            signal.setitimer(signal.ITIMER_REAL, 0)
            say(answer)


def _give_up_rights(memory_bytes):
    layers.limit(AS=memory_bytes, CORE=0, FSIZE=ERROR_BYTES, NOFILE=OPEN_FILES)
    if sys.platform != "linux":
        return
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    own = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    own += [sysconfig.get_config_var("LIBDIR"), os.path.join(sys.base_prefix, "lib")]
    readable = [*filter(None, own), *packages, *LIBRARIES]
    with contextlib.suppress(OSError):  # not ours to drop
        layers.drop_capabilities()
    with contextlib.suppress(OSError):
        layers.set_no_new_privileges()
        layers.hide_memory()
    with contextlib.suppress(OSError):
        if version := layers.landlock_version():
            rights = dict(readable=readable, writable={"/dev/null": False}, version=version)
            layers.landlock_restrict(layers.landlock_ruleset(**rights))
    with contextlib.suppress(OSError):
        filters = seccomp.Filters(asks=False)
        filters.install_common(layers.FOREIGN)
        filters.install_own(os.getpid(), layers.FOREIGN)
