"""The system calls that a program may make: a seccomp filter, assembled here.

A call outside the tables does not exist for the program (ENOSYS): libraries expect this answer, and
it holds for calls that future kernels add. Numbers: the kernel's headers,
asm/unistd_64.h for x86-64 and asm-generic/unistd.h for aarch64; "-" where there is no such call.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
COLUMN = {"x86_64": 0, "aarch64": 1}

# name, number on x86-64, number on aarch64
# Allowed with any argument.
ALLOWED = """
    read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68,
    preadv 295 69, pwritev 296 70, preadv2 327 286, pwritev2 328 287, close 3 57, lseek 8 62,
    stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79,
    statx 332 291, access 21 -, faccessat 269 48, faccessat2 439 439, readlink 89 -,
    readlinkat 267 78, getdents 78 -, getdents64 217 61, getcwd 79 17, chdir 80 49, fchdir 81 50,
    mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -,
    renameat 264 38, renameat2 316 276, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36,
    creat 85 -, ftruncate 77 46, fsync 74 82, fdatasync 75 83, flock 73 32,
    dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, poll 7 -, ppoll 271 73,
    select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21,
    epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19,
    timerfd_create 283 85, timerfd_settime 286 86, timerfd_gettime 287 87, sendfile 40 71,
    copy_file_range 326 285, statfs 137 43, fstatfs 138 44, fadvise64 221 223, readahead 187 213,
    recvfrom 45 207, recvmsg 47 212, shutdown 48 210, getsockopt 55 209, getsockname 51 204,
    getpeername 52 205, mmap 9 222, munmap 11 215, mremap 25 216, mprotect 10 226,
    madvise 28 233, brk 12 214, msync 26 227, mincore 27 232, membarrier 324 283, rseq 334 293,
    exit 60 93, exit_group 231 94, getpid 39 172, gettid 186 178, getppid 110 173,
    getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getgroups 115 158,
    getresuid 118 148, getresgid 120 150, getpgrp 111 -, getrlimit 97 163, setrlimit 160 164,
    getrusage 98 165, times 100 153, uname 63 160, sysinfo 99 179, set_robust_list 273 99,
    set_tid_address 218 96, futex 202 98, futex_waitv 449 449, sched_yield 24 124,
    sched_get_priority_max 146 125, sched_get_priority_min 147 126, getcpu 309 168, wait4 61 260,
    waitid 247 95, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
    rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132,
    restart_syscall 219 128, pause 34 -, alarm 37 -, setitimer 38 103, getitimer 36 102,
    timer_settime 223 110, timer_gettime 224 108, timer_getoverrun 225 109, timer_delete 226 111,
    nanosleep 35 101, gettimeofday 96 169, time 201 -, getrandom 318 278, umask 95 166,
    capget 125 90, arch_prctl 158 -, kill 62 129, tgkill 234 131, getpgid 121 155,
    getsid 124 156, pidfd_open 434 434, sched_getaffinity 204 123, sched_getparam 143 121,
    sched_getscheduler 145 120, setsid 112 157, landlock_restrict_self 446 446, chmod 90 -,
    fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, utime 132 -, utimes 235 -, futimesat 261 -,
    utimensat 280 88
"""
# Allowed with some arguments; see _checks.
CHECKED = """
    open 2 -, openat 257 56, fcntl 72 25, ioctl 16 29, prctl 157 167, prlimit64 302 261,
    clone 56 220, socketpair 53 199, sendto 44 206, getpriority 140 141, clock_gettime 228 113,
    clock_getres 229 114, clock_nanosleep 230 115, timer_create 222 107, close_range 436 436
"""
# Calls for the helper that a program may not make, or only with some arguments; see _own_checks.
OWN = """
    kill 62 129, tgkill 234 131, clone 56 220, prctl 157 167, getpgid 121 155, getsid 124 156,
    sched_getaffinity 204 123, sched_getparam 143 121, sched_getscheduler 145 120,
    setsid 112 157, landlock_restrict_self 446 446, pidfd_open 434 434
"""
# Does nothing in a program, and reports success: mode and times of files. Landlock does not guard
# them, and shutil and zipfile set them on every copy.
IGNORED = """
    chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, utime 132 -, utimes 235 -,
    futimesat 261 -, utimensat 280 88
"""
# As on a file system that has no extended attributes and cannot reserve space: shutil and the C
# library expect that error. Reserved space is in no account of what a process wrote.
UNSUPPORTED = """
    getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10, listxattr 194 11, llistxattr 195 12,
    flistxattr 196 13, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, removexattr 197 14,
    lremovexattr 198 15, fremovexattr 199 16, fallocate 285 47
"""
# Refused as a lack of permission, which Python reports as such.
REFUSED = """
    fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, socket 41 198, connect 42 203,
    bind 49 200, listen 50 201, accept 43 202, accept4 288 242, sendmsg 46 211, sendmmsg 307 269,
    setsockopt 54 208, tkill 200 130, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240,
    pidfd_send_signal 424 424, pidfd_getfd 438 438, ptrace 101 117,
    process_vm_readv 310 270, process_vm_writev 311 271, chown 92 -, fchown 93 55, lchown 94 -,
    fchownat 260 54, truncate 76 45, mount 165 40, umount2 166 39, unshare 272 97, setns 308 268,
    chroot 161 51, pivot_root 155 41, mknod 133 -, mknodat 259 33, setpgid 109 154,
    setuid 105 146, setgid 106 144, setpriority 141 140, sched_setaffinity 203 122,
    sched_setscheduler 144 119, sched_setparam 142 118, sched_setattr 314 274, ioprio_set 251 30,
    memfd_create 319 279, memfd_secret 447 447, shmget 29 194, semget 64 190, msgget 68 186,
    mq_open 240 180, bpf 321 280, perf_event_open 298 241, userfaultfd 323 282,
    io_uring_setup 425 425, keyctl 250 219, add_key 248 217, request_key 249 218,
    inotify_init 253 -, inotify_init1 294 26, fanotify_init 300 262, mlock 149 228,
    mlockall 151 230, seccomp 317 277, sync 162 81, personality 135 92, get_robust_list 274 100
"""

# Instructions of classic BPF.
LOAD, AND, JUMP_IF_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data
ALLOW, ASK, ERROR, KILL = 0x7FFF0000, 0x7FC00000, 0x00050000, 0x80000000

CLONE_THREAD, CLONE_NEW = 0x10000, 0x7E020080  # CLONE_NEW: all namespaces
# A thread shares memory, folder, open files and signal handlers with its process. Open files of its
# own would be as many again.
CLONE_SHARED = CLONE_THREAD | 0x100 | 0x200 | 0x400 | 0x800
CLOSE_RANGE_UNSHARE = 2
O_ACCMODE, O_TRUNC = 0o3, 0o1000
FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)  # no owners of signals, no leases
IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # is it a terminal; FIONREAD, -BIO, -CLEX
RECEIVE, SEND = 0xC0502100, 0xC0182101  # ioctl calls of a Gate, for the helper
PRCTL = (3, 15, 16, 21, 23, 39, 0x53564D41)  # GET_*, names of threads and of memory
HELPER_PRCTL = (1, 4, 22)  # SET_PDEATHSIG, SET_DUMPABLE, SET_SECCOMP

PR_SET_SECCOMP, MODE_FILTER = 22, 2
SECCOMP_SET_MODE_FILTER, NEW_LISTENER = 1, 8
NOTICE_BYTES, CONTINUE = 80, 1  # struct seccomp_notif; flag of struct seccomp_notif_resp


class _Program(ctypes.Structure):  # struct sock_fprog
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


class Filters:
    """The two filters of this machine; installing one is irreversible.

    The helper installs the large one once, and programs inherit it: preparing it takes the kernel a
    millisecond. Each program adds the small one, which takes away what only the helper needs.

    asks: a new thread waits until the helper allows it (`Gate`); not every kernel offers that.

    Raises:
      OSError: there is no table for this kind of machine.
    """

    def __init__(self, *, asks):
        machine = platform.machine()
        if machine not in AUDIT_ARCH:
            raise OSError(f"no table of system calls for {machine}")
        self._asks = asks
        self._seccomp = dict(_numbers(REFUSED, machine))["seccomp"]
        checks = _checks(ASK if asks else ALLOW)
        rules = {
            **{number: [(RETURN, 0, 0, ALLOW)] for _, number in _numbers(ALLOWED, machine)},
            **{number: checks[name] for name, number in _numbers(CHECKED, machine)},
            **{number: [_error(errno.ENOTSUP)] for _, number in _numbers(UNSUPPORTED, machine)},
            **{number: [_error(errno.EPERM)] for _, number in _numbers(REFUSED, machine)},
        }
        self._common = _assemble(rules, _error(errno.ENOSYS), machine)
        checks = _own_checks()
        rules = {
            **{number: checks[name] for name, number in _numbers(OWN, machine)},
            **{number: [_error(0)] for _, number in _numbers(IGNORED, machine)},
        }
        self._own = _assemble(rules, (RETURN, 0, 0, ALLOW), machine)

    def install_common(self, foreign):
        """Installs the helper's filter; returns the descriptor on which threads ask, or None.

        foreign: the C library; no_new_privs is set.
        """
        if not self._asks:
            return _install(self._common, 0, foreign)
        program, _kept = _program(self._common, 0)
        values = (SECCOMP_SET_MODE_FILTER, NEW_LISTENER, ctypes.addressof(program))
        return _check(foreign.syscall(self._seccomp, *map(ctypes.c_ulong, values)))

    def install_own(self, process, foreign):
        """Installs the filter of the program that is the calling process, number `process`."""
        _install(self._own, process, foreign)


class Gate:
    """Lets threads start until their program has too many.

    A thread that starts another one is stopped by the kernel until it is answered here.

    listener: descriptor on which the kernel asks, of `Filters.install_common`.
    limit: threads of one program that may be there at once.
    """

    def __init__(self, listener, limit):
        self.listener, self.limit = listener, limit
        self._spare = {}  # process -> threads that may start before they are counted again

    def answer(self, count):
        """Answers one question; returns the process that has too many threads, or None.

        That process is not answered: it has to be killed.
        count: maps a process to the number of its threads, None if they cannot be counted: then
          the limit holds for all that it ever started.
        """
        notice = bytearray(NOTICE_BYTES)
        try:
            fcntl.ioctl(self.listener, RECEIVE, notice)
            identity, task = struct.unpack_from("=QI", notice)
            process = os.getsid(task)  # a program leads a session, and cannot leave it
        except (FileNotFoundError, ProcessLookupError):
            return None  # it has just ended
        spare = self._spare.get(process, self.limit - 1)
        if spare < 1:
            threads = count(process)
            spare = 0 if threads is None else self.limit - threads
            if spare < 1:
                return process
        self._spare[process] = spare - 1
        with contextlib.suppress(FileNotFoundError):
            fcntl.ioctl(self.listener, SEND, struct.pack("=QqiI", identity, 0, 0, CONTINUE))
        return None

    def forget(self, process):
        self._spare.pop(process, None)


def _error(number):
    return (RETURN, 0, 0, ERROR | number)


def _assemble(rules, otherwise, machine):
    """Returns (instructions, offsets of the process number) of {number of a call: instructions}."""
    code = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (JUMP_IF_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
    ]
    for number, block in rules.items():
        code += [(JUMP_IF_EQUAL, 0, len(block), number), *block]
    code.append(otherwise)
    offsets = [8 * i + 4 for i, (*_, value) in enumerate(code) if value is OWN_PROCESS]
    return b"".join(
        struct.pack("=HBBI", kind, yes, no, 0 if value is OWN_PROCESS else value)
        for kind, yes, no, value in code
    ), offsets


def _install(assembled, process, foreign):
    program, _kept = _program(assembled, process)
    values = (PR_SET_SECCOMP, MODE_FILTER, ctypes.addressof(program), 0, 0)
    _check(foreign.prctl(*map(ctypes.c_ulong, values)))


def _program(assembled, process):
    """Returns (the kernel's structure, what it points to)."""
    code, offsets = bytearray(assembled[0]), assembled[1]
    for offset in offsets:
        struct.pack_into("=I", code, offset, process)
    buffer = (ctypes.c_char * len(code)).from_buffer(code)
    return _Program(len(code) // 8, ctypes.addressof(buffer)), buffer


def _check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "the kernel refused the seccomp filter")
    return result


OWN_PROCESS = object()  # replaced by the number of the process when the filter is installed


def _numbers(table, machine):
    for entry in table.split(","):
        name, *numbers = entry.split()
        if numbers[COLUMN[machine]] != "-":
            yield name, int(numbers[COLUMN[machine]])


def _checks(thread):
    """Returns {name of a call: instructions that look at its arguments and return}.

    thread: what happens to a call that starts a thread.
    """
    # The numbers of CPU clocks of other processes would tell whether they exist.
    named_clock = _unless(0, 1 << 31, (1 << 31,))
    # Opening for neither reading nor writing truncates without Landlock's old versions asking.
    truncating = (O_TRUNC, O_TRUNC | O_ACCMODE, O_ACCMODE)
    return {
        "open": _unless(1, O_ACCMODE | O_TRUNC, truncating),
        "openat": _unless(2, O_ACCMODE | O_TRUNC, truncating),
        "fcntl": _only(1, FCNTL),
        "ioctl": _only(1, (*IOCTL, RECEIVE, SEND)),
        "close_range": _unless(2, CLOSE_RANGE_UNSHARE, (CLOSE_RANGE_UNSHARE,)),
        "prctl": _only(0, (*PRCTL, *HELPER_PRCTL)),
        "prlimit64": _only(0, (0,)),
        "getpriority": _only(1, (0,)),
        **dict.fromkeys(("clock_gettime", "clock_getres", "clock_nanosleep"), named_clock),
        "timer_create": named_clock,
        "clone": [
            *_argument(0, CLONE_NEW),
            (JUMP_IF_EQUAL, 1, 0, 0),
            _error(errno.EPERM),
            *_argument(0, CLONE_THREAD),
            *_choice((CLONE_THREAD,), thread, ALLOW),
        ],
        # A pair of streams, as asyncio makes: datagrams could be sent to any socket by its path.
        "socketpair": [
            *_argument(0),
            (JUMP_IF_EQUAL, 1, 0, socket.AF_UNIX),
            _error(errno.EPERM),
            *_argument(1, 0xF),
            *_choice((socket.SOCK_STREAM,), ALLOW, ERROR | errno.EPERM),
        ],
        "sendto": [  # no address
            (LOAD, 0, 0, ARGUMENTS_AT + 8 * 4 + 4),
            (JUMP_IF_EQUAL, 1, 0, 0),
            _error(errno.EPERM),
            *_only(4, (0,)),
        ],
    }


def _own_checks():
    """Does as `_checks`, for the calls of OWN."""
    itself = _only(0, (0, OWN_PROCESS))
    return {
        **dict.fromkeys(("kill", "tgkill"), _only(0, (OWN_PROCESS,))),
        **dict.fromkeys(("getpgid", "getsid"), itself),
        **dict.fromkeys(("sched_getaffinity", "sched_getparam", "sched_getscheduler"), itself),
        "prctl": _only(0, PRCTL),
        # Threads, not processes.
        "clone": [
            *_argument(0, CLONE_SHARED),
            *_choice((CLONE_SHARED,), ALLOW, ERROR | errno.EPERM),
        ],
        **dict.fromkeys(("setsid", "landlock_restrict_self", "pidfd_open"), [_error(errno.EPERM)]),
    }


def _only(index, values):
    return [*_argument(index), *_choice(values, ALLOW, ERROR | errno.EPERM)]


def _unless(index, mask, values):
    return [*_argument(index, mask), *_choice(values, ERROR | errno.EPERM, ALLOW)]


def _argument(index, mask=None):
    """Loads the lower half of an argument: the part that the kernel uses in these calls."""
    load = [(LOAD, 0, 0, ARGUMENTS_AT + 8 * index)]
    return load if mask is None else [*load, (AND, 0, 0, mask)]


def _choice(values, found, otherwise):
    code = []
    for value in values:
        code += [(JUMP_IF_EQUAL, 0, 1, value), (RETURN, 0, 0, found)]
    return [*code, (RETURN, 0, 0, otherwise)]
