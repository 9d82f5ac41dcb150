"""The seccomp filters of both kinds of machine, run by an interpreter of their instructions."""

import errno
import os
import pathlib
import re
import signal
import socket
import struct

import pytest

from tools.sandbox import seccomp

MACHINES = tuple(seccomp.AUDIT_ARCH)
HEADERS = {
    "x86_64": pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": pathlib.Path("/usr/include/asm-generic/unistd.h"),
}
PROCESS = 4321
FORK = 0x01200000 | signal.SIGCHLD  # what glibc passes to clone for fork and for a thread
THREAD = 0x3D0F00


def filters_of(machine, monkeypatch, *, asks=True):
    monkeypatch.setattr(seccomp.platform, "machine", lambda: machine)
    return seccomp.Filters(asks=asks)


def numbers(machine):
    tables = (seccomp.ALLOWED, seccomp.CHECKED, seccomp.OWN, seccomp.IGNORED)
    tables += (seccomp.UNSUPPORTED, seccomp.REFUSED)
    return {name: number for table in tables for name, number in seccomp._numbers(table, machine)}


def verdict(assembled, machine, number, *arguments, architecture=None):
    """What the kernel would do: "allow", "ask", "kill" or the number of an error."""
    code, offsets = bytearray(assembled[0]), assembled[1]
    for offset in offsets:
        struct.pack_into("=I", code, offset, PROCESS)
    arguments = [*arguments, *[0] * (6 - len(arguments))]
    architecture = architecture or seccomp.AUDIT_ARCH[machine]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *(a & (2**64 - 1) for a in arguments))
    instructions, at, value = list(struct.iter_unpack("=HBBI", code)), 0, 0
    while True:
        kind, yes, no, constant = instructions[at]
        at += 1
        if kind == seccomp.LOAD:
            (value,) = struct.unpack_from("=I", data, constant)
        elif kind == seccomp.AND:
            value &= constant
        elif kind == seccomp.JUMP_IF_EQUAL:
            at += yes if value == constant else no
        elif constant == seccomp.ALLOW:
            return "allow"
        elif constant == seccomp.ASK:
            return "ask"
        else:
            return "kill" if constant == seccomp.KILL else constant & 0xFFFF


@pytest.mark.parametrize("machine", MACHINES)
def test_each_call_gets_what_its_table_says(machine, monkeypatch):
    filters, known = filters_of(machine, monkeypatch), numbers(machine)
    for table, expected in (
        (seccomp.UNSUPPORTED, errno.ENOTSUP),
        (seccomp.REFUSED, errno.EPERM),
        (seccomp.ALLOWED, "allow"),
    ):
        for name, number in seccomp._numbers(table, machine):
            assert verdict(filters._common, machine, number) == expected, name
    for _, number in seccomp._numbers(seccomp.IGNORED, machine):
        assert verdict(filters._own, machine, number) == 0
    assert verdict(filters._own, machine, known["read"]) == "allow"
    for unknown in set(range(600)) - set(known.values()) | {1 << 30, (1 << 30) + 1}:
        assert verdict(filters._common, machine, unknown) == errno.ENOSYS
    assert verdict(filters._common, machine, known["read"], architecture=1) == "kill"


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_decide(machine, monkeypatch):
    filters, known = filters_of(machine, monkeypatch), numbers(machine)
    common = lambda name, *values: verdict(filters._common, machine, known[name], *values)
    own = lambda name, *values: verdict(filters._own, machine, known[name], *values)
    refused = errno.EPERM
    assert own("kill", PROCESS, 9) == own("tgkill", PROCESS, 1, 9) == "allow"
    for other in (0, 1, -1, -PROCESS, PROCESS + 1):
        assert own("kill", other, 9) == own("tgkill", other, 1, 9) == refused
    assert own("getsid", 0) == own("getsid", PROCESS) == "allow"
    assert own("getsid", 1) == own("sched_getaffinity", 1) == refused
    assert (own("clone", THREAD), common("clone", THREAD)) == ("allow", "ask")
    counted = filters_of(machine, monkeypatch, asks=False)
    assert verdict(counted._common, machine, known["clone"], THREAD) == "allow"
    for shared in (0x100, 0x200, 0x400, 0x800, 0x10000):  # memory, folder, files, handlers, thread
        assert own("clone", THREAD & ~shared) == refused
    assert common("close_range", 3, 9, 0) == common("close_range", 3, 9, 4) == "allow"
    assert common("close_range", 3, 9, 2) == common("close_range", 3, 9, 6) == refused
    assert (own("clone", FORK), common("clone", FORK)) == (refused, "allow")  # the helper forks
    for namespace in (0x80, 0x20000, 0x2000000, 0x10000000, 0x20000000, 0x40000000):
        assert common("clone", THREAD | namespace) == refused
    assert (own("prctl", 1, 0), common("prctl", 1, 0)) == (refused, "allow")
    assert (own("prctl", 4, 1), common("prctl", 4, 1)) == (refused, "allow")
    assert (own("pidfd_open", 1), common("pidfd_open", 1)) == (refused, "allow")
    assert common("prctl", 38, 1) == refused
    assert own("setsid") == own("landlock_restrict_self") == refused
    stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
    assert common("socketpair", socket.AF_UNIX, stream | socket.SOCK_CLOEXEC) == "allow"
    assert common("socketpair", socket.AF_UNIX, datagram) == refused
    assert common("socketpair", socket.AF_INET, stream) == refused
    assert common("sendto", 3, 1, 1, 0, 0, 0) == "allow"
    assert common("sendto", 3, 1, 1, 0, 1 << 12, 16) == refused
    assert common("sendto", 3, 1, 1, 0, 1 << 32, 16) == refused
    assert common("prlimit64", 0) == "allow" and common("prlimit64", 1) == refused
    assert common("fcntl", 3, 3) == "allow" and common("fcntl", 3, 8) == refused
    assert common("ioctl", 3, 0x5401) == "allow" and common("ioctl", 3, 0x5412) == refused
    assert common("clock_gettime", 1) == "allow"
    assert common("clock_gettime", (~1 << 3) | 2) == refused
    opened = lambda flags: common("openat", 0, 0, flags)
    assert opened(os.O_RDONLY) == opened(os.O_WRONLY | os.O_TRUNC) == "allow"
    assert opened(os.O_RDONLY | os.O_TRUNC) == opened(3) == opened(3 | os.O_TRUNC) == refused


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_the_kernels(machine):
    if not HEADERS[machine].exists():
        pytest.skip(f"{HEADERS[machine]} is not installed")
    found = dict(
        re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)$", HEADERS[machine].read_text(), re.M)
    )
    if machine == "aarch64":
        found["newfstatat"] = found.pop("fstatat")  # its name on 64 bits
    known = numbers(machine)
    compared = {name: str(known[name]) for name in known if name in found}
    assert compared == {name: found[name] for name in compared}
    assert set(known) - set(compared) <= {"fchmodat2"}, "names that the header does not have"
    missing = {
        entry.split()[0]
        for table in (seccomp.ALLOWED, seccomp.CHECKED, seccomp.REFUSED)
        for entry in table.split(",")
    } - set(known)
    assert not missing & set(found), "calls that this machine has"


def test_an_unknown_machine_has_no_filter(monkeypatch):
    with pytest.raises(OSError, match="no table of system calls for riscv64"):
        filters_of("riscv64", monkeypatch)
