"""The kernel's means to restrict a process, called by ctypes: no package, no root.

Every function raises OSError if the kernel refuses.
"""

import ctypes
import os
import resource

FOREIGN = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
CAPABILITY_VERSION_3 = 0x20080522

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
NAMESPACES = ("user", "pid", "net", "mnt", "ipc", "uts")
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000

# The same numbers on all machines.
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
RULE_PATH_BENEATH, CREATE_VERSION = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
MAKE_CHAR, MAKE_SOCK, MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # version -> how many rights of files it knows
NETWORK_RIGHTS, NETWORK_VERSION = 0b11, 4  # bind and connect of TCP
SCOPES, SCOPE_VERSION = 0b11, 6  # abstract sockets, signals


def _check(result, what):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option, *values):
    arguments = [option, *values, *[0] * (4 - len(values))]
    return _check(FOREIGN.prctl(*map(ctypes.c_ulong, arguments)), f"prctl({option})")


# ---- privileges ----------------------------------------------------------------------------------


def set_no_new_privileges():
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities():
    """Gives up all capabilities, including those that executing a program could give."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except (
            OSError
        ):  # unknown to this kernel, or not ours to drop: then it cannot be gained either
            continue
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    _check(FOREIGN.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def hide_memory():
    """Closes this process's memory and /proc entries to everyone but root."""
    prctl(PR_SET_DUMPABLE, 0)


def show_memory():
    """Opens them again to processes of the same user, which Landlock keeps from each other."""
    prctl(PR_SET_DUMPABLE, 1)


def die_with_parent():
    prctl(PR_SET_PDEATHSIG, 9)


# ---- limits --------------------------------------------------------------------------------------


def limit(**values):
    """Sets hard limits by name: limit(CPU=3, NOFILE=64)."""
    for name, value in values.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def open_kill_order():
    """Returns a descriptor by which `set_kill_order` can change that of this process."""
    return os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)


def set_kill_order(descriptor, score):
    """Sets how early the kernel kills this process when memory runs out: 1000 is first."""
    os.pwrite(descriptor, str(score).encode(), 0)


# ---- namespaces ----------------------------------------------------------------------------------


def enter_namespaces():
    """Enters new namespaces of all kinds; process numbers change for the next process forked."""
    user, group = os.getuid(), os.getgid()
    flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS
    _check(FOREIGN.unshare(flags), "unshare")
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)
    _mount("none", "/", None, MS_REC | MS_PRIVATE, None)


def mount_memory(folder, *, nbytes, files):
    """Puts a new file system in memory at `folder`, which ends with the mount namespace."""
    settings = f"size={nbytes},nr_inodes={files},mode=700"
    _mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, settings)


def _mount(source, target, kind, flags, settings):
    encode = lambda text: None if text is None else os.fsencode(text)
    result = FOREIGN.mount(
        encode(source), encode(target), encode(kind), ctypes.c_ulong(flags), encode(settings)
    )
    _check(result, f"mount {target}")


# ---- Landlock ------------------------------------------------------------------------------------


class _Ruleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("files", "network", "scoped")]


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("rights", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def landlock_version():
    """Returns 0 if the kernel has no Landlock."""
    none = ctypes.c_void_p(None)
    size, flags = ctypes.c_size_t(0), ctypes.c_uint32(CREATE_VERSION)
    return max(0, FOREIGN.syscall(LANDLOCK_CREATE_RULESET, none, size, flags))


def landlock_ruleset(*, readable, writable, version):
    """Returns a ruleset's descriptor; it refuses everything but paths at or below the named.

    Args:
      readable: files and folders; those that do not exist are left out.
      writable: {path: True for a folder of one's own, False for a device}.
      version: of the kernel's Landlock, at least 1.
    """
    known = max(count for least, count in FILE_RIGHTS.items() if least <= version)
    every = (1 << known) - 1
    rules = _Ruleset(
        every,
        NETWORK_RIGHTS if version >= NETWORK_VERSION else 0,
        SCOPES if version >= SCOPE_VERSION else 0,
    )
    # Older kernels know shorter structures, and accept this one if the rest is zero.
    ruleset = _check(
        FOREIGN.syscall(
            LANDLOCK_CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(ctypes.sizeof(rules)), 0
        ),
        "landlock_create_ruleset",
    )
    own = every & ~(EXECUTE | MAKE_CHAR | MAKE_BLOCK | MAKE_SOCK)
    for path in readable:
        _allow(ruleset, path, READ_FILE | READ_DIR)
    for path, is_own in writable.items():
        _allow(ruleset, path, own if is_own else READ_FILE | WRITE_FILE)
    return ruleset


def _allow(ruleset, path, rights):
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        if not os.path.isdir(path):
            rights &= ~READ_DIR
        rule = _PathRule(rights, descriptor)
        arguments = (ctypes.c_int(ruleset), RULE_PATH_BENEATH, ctypes.byref(rule), 0)
        _check(FOREIGN.syscall(LANDLOCK_ADD_RULE, *arguments), f"landlock_add_rule {path}")
    finally:
        os.close(descriptor)


def landlock_restrict(ruleset):
    """Restricts the calling process for good; it must have no_new_privs."""
    result = FOREIGN.syscall(LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    _check(result, "landlock_restrict_self")
