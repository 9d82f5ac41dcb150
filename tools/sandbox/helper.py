"""The helper: a process with numpy and sympy loaded that forks a restricted process per program.

It is started by `client` with a clean environment, has one thread, and ends when the client's end
of its socket is closed. A request is a JSON object with three descriptors: the program's text, the
pipe for its output, and a socket for this one call. On that socket the helper is told to kill the
program (by its end) and tells how it ended: the status that the kernel reports.
Nothing that a program writes is read here.
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import sysconfig
import tempfile

from tools.sandbox import layers, program, seccomp

PROGRAMS = 32  # at once
FOLDER_BYTES, FOLDER_FILES = 64 * 2**20, 2048  # in all, of one program
FILE_BYTES = 16 * 2**20
OPEN_FILES = 64
PACKAGES = ("numpy", "numpy.random", "numpy.linalg", "numpy.fft", "sympy", "mpmath")
MODULES = """array ast asyncio base64 bisect calendar cmath collections concurrent.futures
    contextlib copy csv dataclasses datetime decimal enum fractions functools hashlib heapq io
    itertools json math numbers operator pathlib pickle pprint queue random re statistics string
    struct tempfile textwrap threading time traceback types typing unicodedata uuid warnings"""
SYSTEM = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/nix/store")
SYSTEM += ("/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/urandom", "/dev/random", "/dev/zero")
MEMORY_FOLDERS = ("/dev/shm", "/tmp", "/mnt")  # one is covered by files in memory
LOOK_SECONDS = 0.05  # how often folders on disk are measured
CHILD_SUBREAPER = 36


def main():
    """Serves; arguments: where this package is, descriptor of the socket, settings in JSON."""
    root, control, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    sys.path.remove(root)
    sys.path += settings["packages"]
    connection = socket.socket(fileno=fcntl.fcntl(control, fcntl.F_DUPFD_CLOEXEC, 10))
    os.close(control)
    os.dup2(0, program.SOURCE)  # taken, so that no other file gets this number
    missing = dict.fromkeys(settings["without"], "left out on request")
    if "namespaces" not in missing:
        if reason := _in_a_fork(_try_namespaces):
            missing["namespaces"] = reason
        else:
            layers.enter_namespaces()
            _continue_in_fork(connection)
    for name in (*MODULES.split(), *PACKAGES):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _use_sympy_once()
    readable = _readable(settings["packages"])
    home, folders = _make_folders(readable, in_memory="namespaces" not in missing)
    if "privileges" not in missing:
        layers.drop_capabilities()
        layers.hide_memory()
    layers.set_no_new_privileges()
    version = layers.landlock_version()
    if not version:
        missing.setdefault("landlock", "this kernel has or allows no Landlock")
    rulesets = {}
    if "landlock" not in missing:
        rulesets = {
            folder: layers.landlock_ruleset(
                readable=readable, writable={folder: True, "/dev/null": False}, version=version
            )
            for folder in folders
        }
    filters = None
    if "seccomp" not in missing:
        try:
            filters = seccomp.Filters()
            _in_a_fork(lambda: filters.install_common(layers.FOREIGN.prctl), check=True)
        except OSError as error:
            filters, missing["seccomp"] = None, str(error)
    program.prepare()
    server = Server(
        connection,
        folders=folders,
        rulesets=rulesets,
        filters=filters,
        limits="limits" not in missing,
        on_disk="namespaces" in missing,
    )
    facts = {
        "landlock_version": version,
        "missing": missing,
        "namespaces": {n: os.stat(f"/proc/self/ns/{n}").st_ino for n in layers.NAMESPACES},
        "packages": {n: sys.modules[n].__version__ for n in ("numpy", "sympy") if n in sys.modules},
        "folder": home if "namespaces" in missing else "",
    }
    connection.send(json.dumps(facts).encode())
    if filters:
        filters.install_common(layers.FOREIGN.prctl)
    server.serve()
    if "namespaces" in missing:
        _wipe(home)
        os.rmdir(home)


class _Running:
    """A program that has not ended."""

    def __init__(self, process, call, folder):
        self.process, self.call, self.folder = process, call, folder
        self.stopped = ""  # the limit that it broke


class Server:
    """Forks programs and tells how they end.

    folders: one private folder for each program that runs at the same time.
    rulesets: folder -> Landlock ruleset; empty to leave this layer out.
    filters: seccomp.Filters, or None.
    limits: whether rlimits are set.
    on_disk: whether the folders have no limit of their own and are measured.
    """

    def __init__(self, connection, *, folders, rulesets, filters, limits, on_disk):
        self.connection, self.free, self.rulesets = connection, list(folders), rulesets
        self.filters, self.limits, self.on_disk = filters, limits, on_disk
        self.running = {}  # descriptor of the call's socket -> _Running
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

    def serve(self):
        """Serves until the client goes away."""
        while True:
            wait = LOOK_SECONDS * 1000 if self.on_disk and self.running else None
            for file, _ in self.poll.poll(wait):
                if file == self.woken:
                    self._reap()
                elif file == self.connection.fileno():
                    if not self._accept():
                        return self._stop()
                elif file in self.running:
                    self._kill(self.running[file])
                    self.poll.unregister(file)
            if self.on_disk:
                for running in self.running.values():
                    if not running.stopped and _is_too_large(running.folder):
                        running.stopped = "disk"
                        self._kill(running)

    def _accept(self):
        message, files, _, _ = socket.recv_fds(self.connection, 4096, 3)
        if not message:
            return False
        request, (source, output, call) = json.loads(message), files
        call, folder = socket.socket(fileno=call), self.free.pop()
        process = os.fork()
        if not process:
            self._become_program(request, source, output, call, folder)
        os.close(source)
        os.close(output)
        self.running[call.fileno()] = _Running(process, call, folder)
        self.poll.register(call.fileno(), select.POLLIN)
        return True

    def _become_program(self, request, source, output, call, folder):
        """Becomes the program, in the fork; never returns."""
        try:
            os.setsid()
            layers.die_with_parent()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.dup2(source, program.SOURCE)
            os.umask(0o077)
            os.chdir(folder)
            os.environ["HOME"] = os.environ["TMPDIR"] = folder
            tempfile.tempdir = None
            if self.limits:
                layers.limit(
                    AS=self.own_memory + request["memory_bytes"],
                    CORE=0,
                    CPU=request["cpu_seconds"],
                    FSIZE=FILE_BYTES,
                    MEMLOCK=0,
                    NOFILE=OPEN_FILES,
                )
            if self.rulesets:
                layers.landlock_restrict(self.rulesets[folder])
            if self.filters:
                self.filters.install_own(os.getpid(), layers.FOREIGN.prctl)
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
            _, status = os.waitpid(ended.si_pid, 0)
            if ended.si_pid in by_process:
                self._finish(by_process[ended.si_pid], status)

    def _finish(self, file, status):
        running = self.running.pop(file)
        with contextlib.suppress(KeyError):
            self.poll.unregister(file)
        _wipe(running.folder)
        self.free.append(running.folder)
        told = {"status": os.waitstatus_to_exitcode(status), "stopped": running.stopped}
        with contextlib.suppress(OSError):  # the client went away
            running.call.send(json.dumps(told).encode())
        running.call.close()

    def _kill(self, running):
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.process, signal.SIGKILL)

    def _stop(self):
        for running in self.running.values():
            self._kill(running)
            os.waitpid(running.process, 0)
            _wipe(running.folder)


def _make_folders(readable, *, in_memory):
    """Makes (folder of all, the programs' folders in it): on disk, or of a fixed size in memory."""
    if in_memory:
        home = _memory_folder(readable)
        layers.mount_memory(home, nbytes=2**20, files=2 * PROGRAMS)
    else:
        home = tempfile.mkdtemp(prefix="programs-")
    folders = [os.path.join(home, str(i)) for i in range(PROGRAMS)]
    for folder in folders:
        os.mkdir(folder, 0o700)
        if in_memory:
            layers.mount_memory(folder, nbytes=FOLDER_BYTES, files=FOLDER_FILES)
    return home, folders


def _use_sympy_once():
    """Lets sympy import and build what it needs at first use, once instead of in each program."""
    if sympy := sys.modules.get("sympy"):
        x = sympy.Symbol("x")
        sympy.solve(x**2 - x - 1, x)
        sympy.simplify(sympy.integrate(x * sympy.sin(x), x).diff(x))
        sympy.core.cache.clear_cache()


def _try_namespaces():
    layers.enter_namespaces()

    def mount():
        layers.mount_memory(_memory_folder(()), nbytes=2**20, files=16)

    _in_a_fork(mount, check=True)


def _in_a_fork(function, *, check=False):
    """Calls a function in a process of its own; returns what went wrong, or raises it."""
    end, start = os.pipe()
    process = os.fork()
    if not process:
        reason = ""
        try:
            function()
        except OSError as error:
            reason = error.strerror or str(error)
        os.write(start, reason.encode())
        os._exit(0)
    os.close(start)
    with open(end, encoding="utf-8") as file:
        reason = file.read()
    os.waitpid(process, 0)
    if reason and check:
        raise OSError(0, reason)
    return reason


def _continue_in_fork(connection):
    """Returns in a fork, process 1 of the new namespace; this process waits until it ends."""
    process = os.fork()
    if process:
        connection.close()
        os.waitpid(process, 0)
        os._exit(0)
    layers.die_with_parent()


def _readable(packages):
    """Lists what programs may read: the interpreter's and the system's libraries."""
    names = ("stdlib", "platstdlib")
    own = [sysconfig.get_path(name) for name in names] + [sysconfig.get_config_var("LIBDIR")]
    own += [os.path.join(sys.base_prefix, "lib"), *packages]
    return sorted({path for path in (*own, *SYSTEM) if path and os.path.isabs(path)})


def _memory_folder(readable):
    for folder in MEMORY_FOLDERS:
        if os.path.isdir(folder) and not any(
            os.path.realpath(path).startswith(folder + "/") for path in readable
        ):
            return folder
    raise OSError(0, f"none of {', '.join(MEMORY_FOLDERS)} is free for files in memory")


def _is_too_large(folder):
    """Whether a program's folder holds more than one of the limits."""
    waiting, size, files = [folder], 0, 0
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    files += 1
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if size > FOLDER_BYTES or files > FOLDER_FILES:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except (FileNotFoundError, PermissionError):
            continue  # it has just gone; nothing can lie in a folder that its owner cannot enter
        except OSError:  # a path that is too long
            return True
    return False


def _wipe(folder):
    """Empties a folder, however deep: folders inside are moved up before they are emptied."""
    prefix, moved = os.path.join(folder, os.urandom(16).hex()), 0
    while entries := list(os.scandir(folder)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in list(os.scandir(entry.path)):
                if inner.is_dir(follow_symlinks=False):
                    os.chmod(inner.path, 0o700)
                    os.rename(inner.path, f"{prefix}-{moved}")
                    moved += 1
                else:
                    os.unlink(inner.path)
            os.rmdir(entry.path)
