"""The helper: a process with numpy and sympy loaded that forks a restricted process per program.

It is started by `client` with a clean environment, has one thread, and ends when the client's end
of its socket is closed. A request is a JSON object with three descriptors: the program's text, the
pipe for its output, and a socket for this one call. On that socket the helper is told to kill the
program (by its end) and tells how it ended: the status that the kernel reports, and the limit for
which the helper stopped it. A program's clock starts with the program. Nothing that a program
writes is read here; what it leaves is removed by another process, while the helper serves.
"""

import contextlib
import fcntl
import functools
import importlib
import json
import os
import socket
import sys
import sysconfig
import tempfile

from tools.sandbox import folders, layers, program, seccomp, server

PACKAGES = ("numpy", "numpy.random", "numpy.linalg", "numpy.fft", "sympy", "mpmath")
MODULES = """array ast asyncio base64 bisect calendar cmath collections concurrent.futures
    contextlib copy csv dataclasses datetime decimal enum fractions functools hashlib heapq io
    itertools json math numbers operator pathlib pickle pprint queue random re statistics string
    struct tempfile textwrap threading time traceback types typing unicodedata uuid warnings"""
SYSTEM = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/nix/store")
SYSTEM += ("/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/urandom", "/dev/random", "/dev/zero")
MEMORY_FOLDERS = ("/dev/shm", "/tmp", "/mnt")  # one is covered by files in memory


def main():
    """Serves; arguments: where this package is, descriptor of the socket, settings in JSON."""
    root, control, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    sys.path.remove(root)
    sys.path += settings["packages"]
    connection = socket.socket(fileno=fcntl.fcntl(control, fcntl.F_DUPFD_CLOEXEC, 10))
    os.close(control)
    os.dup2(0, program.SOURCE)  # taken, so that no other file gets this number
    os.umask(0o077)
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
    home, private = _make_folders(readable, in_memory="namespaces" not in missing)
    kill_order = server.KillOrder()
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
            for folder in private
        }
    filters = None
    if "seccomp" not in missing:
        try:
            filters = _choose_filters()
        except OSError as error:
            missing["seccomp"] = str(error)
    program.prepare()
    loop = server.Server(
        connection,
        folders=private,
        rulesets=rulesets,
        filters=filters,
        limits="limits" not in missing,
        on_disk="namespaces" in missing,
        kill_order=kill_order,
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
        listener = filters.install_common(layers.FOREIGN)
        if listener is not None:
            loop.let_threads_ask(listener)
    loop.serve()
    if "namespaces" in missing:
        folders.remove(home)


def _use_sympy_once():
    """Lets sympy import and build what it needs at first use, once instead of in each program."""
    if sympy := sys.modules.get("sympy"):
        x = sympy.Symbol("x")
        sympy.solve(x**2 - x - 1, x)
        sympy.simplify(sympy.integrate(x * sympy.sin(x), x).diff(x))
        sympy.core.cache.clear_cache()


def _choose_filters():
    """Returns seccomp filters that the kernel takes here; raises OSError if it takes none."""
    for asks in (True, False):
        filters = seccomp.Filters(asks=asks)
        reason = _in_a_fork(functools.partial(filters.install_common, layers.FOREIGN))
        if not reason:
            return filters
    raise OSError(0, reason)


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


def _make_folders(readable, *, in_memory):
    """Makes (folder of all, the programs' folders in it): on disk, or of a fixed size in memory."""
    count = server.PROGRAMS + server.SPARE_FOLDERS
    if in_memory:
        home = _memory_folder(readable)
        layers.mount_memory(home, nbytes=2**20, files=2 * count)
    else:
        home = tempfile.mkdtemp(prefix="programs-")
    made = [os.path.join(home, str(i)) for i in range(count)]
    for folder in made:
        os.mkdir(folder, 0o700)
        if in_memory:
            layers.mount_memory(folder, nbytes=folders.BYTES, files=folders.FILES)
    return home, made


def _memory_folder(readable):
    for folder in MEMORY_FOLDERS:
        if os.path.isdir(folder) and not any(
            os.path.realpath(path).startswith(folder + "/") for path in readable
        ):
            return folder
    raise OSError(0, f"none of {', '.join(MEMORY_FOLDERS)} is free for files in memory")
