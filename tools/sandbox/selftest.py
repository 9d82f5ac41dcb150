"""Finds the layers that hold on this machine, by programs that try; sums them up in one word.

Levels, each with all that stand before it:

  minimal   process, limits: resources of a program, and its surroundings
  standard  privileges, landlock, seccomp: files, network, other processes
  strict    namespaces: a second wall behind these, and folders of a fixed size in memory

Every layer that the kernel offers is used at every level; a run insists on those of its level.
"""

import os
import platform
import tempfile

LEVELS = ("minimal", "standard", "strict")
LAYERS = {
    "process": "minimal",
    "limits": "minimal",
    "privileges": "standard",
    "landlock": "standard",
    "seccomp": "standard",
    "namespaces": "strict",
}
GUARDS = {  # the danger without the layer
    "process": "find the environment and the files of others",
    "limits": "use up the memory of this machine",
    "privileges": "use the privileges of this user",
    "landlock": "read and write the files of this user",
    "seccomp": "use the network, start processes and signal those of this user",
    "namespaces": "go on where one of the other layers has a hole",
}
VERIFIED = "verified"
FIELD = "tools.python_coder.sandbox"  # of the config, in messages
SECONDS, MEMORY_BYTES, OUTPUT_BYTES = 20.0, 128 * 2**20, 1000
VARIABLES = """PATH LD_LIBRARY_PATH LANG TZ HOME TMPDIR LC_CTYPE PYTHONHASHSEED MALLOC_ARENA_MAX
    OPENBLAS_NUM_THREADS OMP_NUM_THREADS MKL_NUM_THREADS"""

# Programs that end with status 0 if the layer of this name refuses what it must refuse.
PROBES = {
    "process": f"""
import os, sys
assert os.getsid(0) == os.getpid() == os.getpgid(0), "no session of its own"
assert set(os.environ) <= set({VARIABLES!r}.split()), "a foreign environment"
assert sys.stdin.read() == "", "an input"
assert os.listdir() == [], "a folder with files"
open("a", "w").close()
for descriptor in range(4, 64):
    try: os.fstat(descriptor)
    except OSError: pass
    else: raise AssertionError("an open file")
""",
    "limits": f"""
import resource
try: bytearray({2 * MEMORY_BYTES})
except MemoryError: pass
else: raise AssertionError("memory without limit")
for name in ("AS", "CPU", "FSIZE", "NOFILE", "CORE"):
    assert resource.getrlimit(getattr(resource, "RLIMIT_" + name))[1] >= 0, name
""",
    "privileges": """
import ctypes
libc = ctypes.CDLL(None)
sets = (ctypes.c_uint32 * 6)()
assert libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), sets) == 0
assert not any(sets), "capabilities"
assert libc.prctl(39, 0, 0, 0, 0) == 1, "new privileges can be had"
""",
    "landlock": """
import errno
for mode in ("r", "a"):
    try: open(CANARY, mode)
    except OSError as error: assert error.errno == errno.EACCES, error
    else: raise AssertionError("a file of the user can be opened")
""",
    "seccomp": """
import errno, os, socket
for refused in (os.fork, socket.socket, lambda: os.kill(1, 0), lambda: os.execv("/bin/sh", ["sh"])):
    try: process = refused()
    except OSError as error: assert error.errno == errno.EPERM, error
    else: os._exit(3)
""",
}


def examine(sandbox):
    """Tries every layer; returns JSON-able facts.

    level: the highest that holds; "none" if not even minimal does.
    layers: name -> "verified", "missing: why" or "failed: what the probe could do".
    """
    missing, states = sandbox.facts["missing"], {}
    with tempfile.NamedTemporaryFile() as canary:
        for name in LAYERS:
            if name in missing:
                states[name] = f"missing: {missing[name]}"
            elif name == "namespaces":
                states[name] = _compare_namespaces(sandbox.facts["namespaces"])
            else:
                states[name] = _probe(sandbox, f"CANARY = {canary.name!r}{PROBES[name]}")
    level = "none"
    for candidate in LEVELS:
        if any(state != VERIFIED and LAYERS[n] == candidate for n, state in states.items()):
            break
        level = candidate
    return {
        "level": level,
        "layers": states,
        "landlock_version": sandbox.facts["landlock_version"],
        "packages": sandbox.facts["packages"],
        "kernel": platform.release(),
        "machine": platform.machine(),
    }


def _probe(sandbox, code):
    result = sandbox.run(
        code, seconds=SECONDS, max_output_bytes=OUTPUT_BYTES, memory_bytes=MEMORY_BYTES
    )
    if result.status == 0 and not result.stopped:
        return VERIFIED
    said = (result.explanation or result.stopped or f"status {result.status}").splitlines()[-1]
    return f"failed: {said}"


def _compare_namespaces(theirs):
    """Compares the numbers of their namespaces, as the helper tells them, with ours."""
    shared = [name for name, number in theirs.items() if _own_namespace(name) == number]
    return f"failed: shares {', '.join(shared)}" if shared else VERIFIED


def _own_namespace(name):
    return os.stat(f"/proc/self/ns/{name}").st_ino


def check_level(level):
    if level not in LEVELS:
        raise ValueError(f"{FIELD}={level!r} is unknown; valid: {', '.join(LEVELS)}.")


def require(level, facts):
    """Raises ValueError with the missing layers if `facts` are below a level."""
    check_level(level)
    if facts["level"] != "none" and LEVELS.index(facts["level"]) >= LEVELS.index(level):
        return
    needed = LEVELS[: LEVELS.index(level) + 1]
    lacking = [
        f"{name} ({state}): a program could {GUARDS[name]}"
        for name, state in facts["layers"].items()
        if state != VERIFIED and LAYERS[name] in needed
    ]
    advice = (
        f"Not even {FIELD}=minimal holds here: leave python_coder out of tools.names."
        if facts["level"] == "none"
        else f"To accept that, pass --config.{FIELD}={facts['level']}; see docs/tools.md."
    )
    raise ValueError(
        f"{FIELD}={level} does not hold on this machine. {'; '.join(lacking)}. {advice}"
    )


def describe(facts):
    """Returns one line for each layer, and one for the level."""
    lines = [f"sandbox layer {name}: {state}" for name, state in facts["layers"].items()]
    return [*lines, f"sandbox level: {facts['level']}"]
