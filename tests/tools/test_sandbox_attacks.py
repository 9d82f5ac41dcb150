"""Programs that try to break out: each names the layers of which every single one must stop it.

An attack prints BROKE if it got what it wanted. It is run with all layers, with only one of those
it names, and without any of them: there it must succeed, or the test would prove nothing.
"""

import functools
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import pytest

from tests.tools import sandboxes
from tools.sandbox import layers, seccomp, server

pytestmark = pytest.mark.slow  # all together

SECRET = "the answer is 42"
BROKE = "broke out"

# name: (layers, program)
ATTACKS = {
    # ---- files -----------------------------------------------------------------------------------
    "read a file": (["landlock"], "assert open(FILE).read() == SECRET"),
    "read it through a link": (
        ["landlock"],
        "os.symlink(FILE, 'link')\nassert open('link').read() == SECRET",
    ),
    "read it by a path from here": (
        ["landlock"],
        "assert open(os.path.relpath(FILE)).read() == SECRET",
    ),
    "list a folder": (["landlock"], "assert os.listdir(FOLDER)"),
    "list the folders of other programs": (["landlock"], "assert os.listdir('..')"),
    "look at the processes": (["landlock"], "assert open('/proc/1/status').read()"),
    "read the settings of the system": (["landlock"], "assert open('/etc/passwd').read()"),
    "open a device": (["landlock"], "open('/dev/full')"),
    "change a file": (["landlock"], "with open(FILE, 'a') as f: f.write('x')"),
    "empty a file": (["landlock"], "open(FILE, 'w').close()"),
    "empty a file by reading": (
        ["landlock", "seccomp"],
        "os.open(FILE, os.O_RDONLY | os.O_TRUNC)\nassert os.path.getsize(FILE) == 0",
    ),
    "empty a file by path": (["landlock", "seccomp"], "os.truncate(FILE, 0)"),
    "make a file": (["landlock"], "open(FOLDER + '/new', 'x').close()"),
    "make a folder": (["landlock"], "os.mkdir(FOLDER + '/new')"),
    "delete a file": (["landlock"], "os.unlink(FILE)"),
    "rename a file": (["landlock"], "os.rename(FILE, FILE + '2')"),
    "change the mode": (
        ["seccomp"],
        "os.chmod(FILE, 0o777)\nassert os.stat(FILE).st_mode & 0o777 == 0o777",
    ),
    "change the mode of an open file": (
        ["seccomp"],
        "f = os.open(FILE, os.O_PATH)\nos.chmod(f'/proc/self/fd/{f}', 0o777)\n"
        "assert os.stat(FILE).st_mode & 0o777 == 0o777",
    ),
    "change the times": (
        ["seccomp"],
        "os.utime(FILE, (1, 1))\nassert os.stat(FILE).st_mtime == 1",
    ),
    "give it away": (["seccomp"], "os.chown(FILE, os.getuid(), os.getgid())"),
    # ---- network ---------------------------------------------------------------------------------
    "TCP": (["seccomp", "namespaces"], "socket.create_connection(('127.0.0.1', TCP), 5)"),
    "UDP": (
        ["seccomp", "namespaces"],
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.connect(('127.0.0.1', UDP))\n"
        "s.send(b'x')\ns.settimeout(2)\nassert s.recv(1) == b'x'",
    ),
    "listening": (
        ["seccomp"],
        "s = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()",
    ),
    "a socket with a path": (
        ["seccomp"],
        "s = socket.socket(socket.AF_UNIX)\ns.connect(FOLDER + '/socket')",
    ),
    "a datagram to a path": (
        ["seccomp"],
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "a.sendto(b'x', FOLDER + '/datagrams')",
    ),
    "an abstract socket": (
        ["seccomp", "namespaces"],
        "s = socket.socket(socket.AF_UNIX)\ns.connect('\\0' + ABSTRACT)",
    ),
    "netlink": (["seccomp"], "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)"),
    "any other family": (
        ["seccomp"],
        "made = 0\nfor family in range(50):\n"
        "    try: made += bool(socket.socket(family))\n    except OSError: pass\nassert made",
    ),
    # ---- processes -------------------------------------------------------------------------------
    "fork": (["seccomp"], "if not os.fork(): os._exit(0)"),
    "start a program": (["seccomp"], "subprocess.run(['/bin/true'], check=True)"),
    "spawn": (["seccomp"], "os.posix_spawn('/bin/true', ['true'], {})"),
    "become another program": (["seccomp", "landlock"], "os.execv('/bin/echo', ['echo', BROKE])"),
    "kill a process": (["seccomp", "namespaces"], "os.kill(VICTIM, 15)"),
    "kill a process by its descriptor": (
        ["seccomp", "namespaces"],
        "signal.pidfd_send_signal(os.pidfd_open(VICTIM), 15)",
    ),
    "kill its parent": (["seccomp"], "os.kill(os.getppid(), 0)"),
    "have the kernel signal a process": (
        ["seccomp"],
        "import fcntl\na, b = os.pipe()\nfcntl.fcntl(a, fcntl.F_SETOWN, os.getppid())",
    ),
    "see that a process exists": (["seccomp", "namespaces"], "os.getpgid(VICTIM)"),
    "see it by its clock": (
        ["seccomp", "namespaces"],
        "time.clock_gettime((~VICTIM << 3) | 2)",
    ),
    "see its processors": (["seccomp", "namespaces"], "os.sched_getaffinity(VICTIM)"),
    "trace a process": (
        ["seccomp", "namespaces"],
        "assert libc.ptrace(16, VICTIM, 0, 0) == 0",
    ),
    "read the trainer's environment": (
        ["landlock", "namespaces"],
        "assert open(f'/proc/{TRAINER}/environ').read()",
    ),
    "read the trainer's memory": (
        ["landlock", "namespaces"],
        "assert open(f'/proc/{TRAINER}/mem', 'rb')",
    ),
    "change its limits": (
        ["seccomp", "namespaces"],
        "resource.prlimit(VICTIM, resource.RLIMIT_NOFILE)",
    ),
    # ---- the kernel ------------------------------------------------------------------------------
    "a file that limits do not know": (["seccomp"], "os.memfd_create('x')"),
    "memory that limits do not know": (["seccomp"], "assert libc.shmget(0, 4096, 0o1600) >= 0"),
    "a user namespace": (["seccomp"], "assert libc.unshare(0x10000000) == 0"),
    "watch files": (["seccomp"], "assert libc.inotify_init1(0) >= 0"),
    "keys": (["seccomp"], "assert libc.syscall(KEYCTL, 0, -3, 1) >= 0"),
}
# Where the tests run as root, what is aimed at has capabilities, and that alone stops these.
SAME_PRIVILEGES = ("trace a process", "read the trainer's environment", "read the trainer's memory")
# Held by what is no wall of its own: dropped capabilities, or rules of the kernel that need them.
PRIVILEGED = {
    "raise a limit": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "become somebody else": "os.setuid(1)\nos.setuid(0)",
    "mount": "assert libc.mount(b'none', b'.', b'tmpfs', 0, None) == 0",
    "read the helper's memory": "assert open(f'/proc/{os.getppid()}/mem', 'rb')",
    "change the root": "os.chroot('.')",
    "make a device": "os.mknod('null', 0o20600, 0x103)",
    "set the clock": "time.clock_settime(time.CLOCK_REALTIME, 0)",
    "lock memory": "assert libc.mlockall(3) == 0",
    "a higher priority": "os.nice(-5)",
}
HEAD = "import ctypes, os, resource, signal, socket, subprocess, time\nlibc = ctypes.CDLL(None)\n"


class World:
    """What attacks aim at; it can be compared with what it was."""

    def __init__(self, folder):
        self.folder, self.file = folder, folder / "answers"
        self.file.write_text(SECRET)
        self.file.chmod(0o640)
        self.victim = subprocess.Popen(["sleep", "600"])
        self.sockets = [socket.create_server(("127.0.0.1", 0)), socket.socket(type=2)]
        self.sockets[1].bind(("127.0.0.1", 0))
        for kind, name in ((1, "socket"), (2, "datagrams"), (1, f"\0{os.getpid()}-test")):
            server = socket.socket(socket.AF_UNIX, kind)
            server.bind(name if name[0] == "\0" else str(folder / name))
            if kind == 1:
                server.listen()
            self.sockets.append(server)
        threading.Thread(target=self._echo, daemon=True).start()
        self.names = {
            "FILE": str(self.file),
            "FOLDER": str(folder),
            "SECRET": SECRET,
            "BROKE": BROKE,
            "VICTIM": self.victim.pid,
            "TRAINER": os.getpid(),
            "TCP": self.sockets[0].getsockname()[1],
            "UDP": self.sockets[1].getsockname()[1],
            "ABSTRACT": f"{os.getpid()}-test",
            "KEYCTL": {"x86_64": 250, "aarch64": 219}[os.uname().machine],
        }
        self.before = self.state()

    def _echo(self):
        while True:
            try:
                message, sender = self.sockets[1].recvfrom(10)
                self.sockets[1].sendto(message, sender)
            except OSError:
                return

    def state(self):
        facts = self.file.stat()
        return (
            (self.file.read_text(), facts.st_mode, facts.st_mtime),
            sorted(os.listdir(self.folder)),
            self.victim.poll(),
        )

    def program(self, attack):
        return f"{HEAD}globals().update({self.names!r})\n{attack}\nprint(BROKE)"

    def close(self):
        self.victim.kill()
        self.victim.wait()
        for waiting in self.sockets:
            waiting.close()


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


def breaks_out(world, attack, box):
    return BROKE in sandboxes.run(world.program(attack), box=box).output


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_stopped_by_each_layer_it_names(world, name):
    stopping, attack = ATTACKS[name]
    for walls in (sandboxes.WALLS, *([layer] for layer in stopping)):
        assert not breaks_out(world, attack, sandboxes.only(*walls)), walls
        assert world.state() == world.before, walls


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_would_be_noticed(world, name):
    if name in SAME_PRIVILEGES and os.getuid() == 0:
        pytest.skip("the kernel stops this, as the tests run as root")
    assert breaks_out(world, ATTACKS[name][1], sandboxes.only())


@pytest.mark.parametrize("name", PRIVILEGED)
def test_attack_needs_capabilities_that_are_dropped(world, name):
    for box in (sandboxes.without(), sandboxes.only()):
        assert not breaks_out(world, PRIVILEGED[name], box)
        assert world.state() == world.before


@pytest.mark.parametrize("box", [sandboxes.without, functools.partial(sandboxes.only, "seccomp")])
def test_calls_that_a_program_does_not_need_are_refused(box):
    """Layer: seccomp. Also those that this kernel is too old for, and the numbers of x32."""
    column = seccomp.COLUMN[os.uname().machine]
    known = {}
    for entry in seccomp.REFUSED.split(","):
        name, *numbers = entry.split()
        if numbers[column] != "-":
            known[name] = int(numbers[column])
    assert {"bpf", "io_uring_setup", "ptrace", "mount", "keyctl", "userfaultfd"} <= set(known)
    code = (
        f"refused, unknown = {sorted(known.values())}, [435, 446, 600, 9999, 1 << 30 | 1]\n"
        "found = lambda n: libc.syscall(n, -1, 0, 0, 0, 0, 0) and ctypes.get_errno()\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print({found(n) for n in refused}, {found(n) for n in unknown})"
    )
    assert sandboxes.run(HEAD + code, box=box()).output == "{1} {1, 38}"


@pytest.mark.skipif(layers.landlock_version() < 4, reason="Landlock knows TCP from version 4")
def test_landlock_refuses_tcp_too(world):
    assert not breaks_out(world, ATTACKS["TCP"][1], sandboxes.only("landlock"))


@pytest.mark.skipif(layers.landlock_version() < 6, reason="Landlock knows signals from version 6")
@pytest.mark.parametrize("name", ["kill a process", "an abstract socket"])
def test_landlock_refuses_signals_and_abstract_sockets_too(world, name):
    assert not breaks_out(world, ATTACKS[name][1], sandboxes.only("landlock"))
    assert world.victim.poll() is None


@pytest.mark.parametrize("walls", [sandboxes.WALLS, ("landlock", "seccomp")])
def test_disk_is_bounded(walls):
    """Layers: namespaces (a file system of fixed size), limits (one file), process (the sum)."""
    box = sandboxes.only(*walls)
    code = (
        "import time\nfor i in range(99):\n    f = open(f'{i}', 'wb')\n"
        "    f.write(bytes(2 * 2**20))\n    f.close()\n    time.sleep(0.01)"
    )
    result = sandboxes.run(code, box=box)
    if "namespaces" in walls:
        assert "No space left" in result.explanation
    else:
        assert result.stopped == "disk"
    big = sandboxes.run("f = open('big', 'wb')\nwhile True: f.write(bytes(10**6))", box=box)
    assert "File too large" in big.explanation
    assert sandboxes.run("import os\nprint(os.listdir())", box=box).output == "[]"


@pytest.mark.parametrize("walls", [sandboxes.WALLS, ("landlock", "seccomp")])
def test_number_of_files_is_bounded(walls):
    """Layers: namespaces, process."""
    # Too few to reach the limit of written bytes, and they stay until the next look.
    code = "import os, time\nfor i in range(10**4): os.mkdir(str(i))\ntime.sleep(60)"
    result = sandboxes.run(code, box=sandboxes.only(*walls))
    assert result.stopped == "disk" or "No space left" in result.explanation


@pytest.mark.parametrize("walls", [sandboxes.WALLS, ("landlock", "seccomp")])
def test_folders_of_any_depth_and_mode_are_removed(walls):
    """Layer: process."""
    code = (
        "import os\nos.mkdir('closed', 0)\nos.mkdir('written', 0o300)\n"
        "open('written/file', 'w').close()\nos.symlink('/', 'root')\n"
        "for i in range(1500):\n    os.mkdir('d' * 200)\n    os.chdir('d' * 200)\nprint(i)"
    )
    box = sandboxes.only(*walls)
    process = box.process
    result = sandboxes.run(code, box=box)
    assert result.output == "1499" or result.stopped == "disk"  # a path too long to be measured
    assert sandboxes.run("import os\nprint(os.listdir())", box=box).output == "[]"
    assert box.process == process


MEMORY = {
    "at once": "bytearray(2**33)",
    "in small pieces": "x = []\nwhile True: x.append(bytes(10**6))",
    "mapped": "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 2**24))",
    "in numpy": "import numpy as np\nx = []\nwhile True: x.append(np.ones(10**6))",
    "in threads": (
        "import threading, time\nwhile True:\n"
        "    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    ),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_is_bounded(name):
    """Layer: limits."""
    result = sandboxes.run(MEMORY[name])
    assert result.status != 0 and not result.stopped


def test_a_flood_of_output_is_stopped():
    """Layer: process."""
    result = sandboxes.run("while True: print('a' * 100000)", max_output_bytes=10)
    assert result.stopped == "output"
    assert result.output == "a" * 10 + "\n[output truncated]"


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import signal as s, time\nfor n in (15, 2, 1): s.signal(n, s.SIG_IGN)\ntime.sleep(60)",
        "import os, time\nos.close(1); os.close(2)\ntime.sleep(60)",
        "import threading\nthreading.Thread(target=threading.Event().wait).start()",
        "10 ** 10 ** 10",
        "import atexit, time\natexit.register(time.sleep, 60)",
        "import signal, os\nos.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass",
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
    ],
)
def test_time_is_bounded(code):
    """Layer: process."""
    assert sandboxes.run(code, seconds=0.4).stopped == "time"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGXCPU, signal.SIGALRM])
def test_a_program_cannot_say_that_its_time_is_over(number):
    """Layer: process."""
    result = sandboxes.run(f"import os\nos.kill(os.getpid(), {int(number)})")
    assert (result.status, result.stopped) == (-number, "")


def test_processor_time_is_bounded():
    """Layer: limits, as all threads together use more than the clock shows."""
    code = (
        "import ctypes, threading\nbusy = ctypes.CDLL(None).memset\nspace = bytearray(10**8)\n"
        "where = (ctypes.c_char * 10**8).from_buffer(space)\n"
        "def work():\n    while True: busy(where, 1, 10**8)\n"
        "for _ in range(8): threading.Thread(target=work).start()"
    )
    assert sandboxes.run(code, seconds=1.0).stopped == "time"


@pytest.mark.parametrize(
    "code, status",
    [
        ("import os\nos._exit = lambda _: None\n1 / 0", -9),
        ("import os\nos._exit = os.kill = print\n1 / 0", 1),
        ("import os\nos.closerange(0, 64)\n1 / 0", 1),
        ("import sys\nsys.modules.clear()\n1 / 0", 1),
        ("import gc\nfor x in gc.get_objects():\n    if type(x) is dict: x.clear()", None),
        ("import ctypes\nfor i in range(9): ctypes.memset(id(i) - 4096, 7, 8192)", None),
    ],
)
def test_a_program_that_breaks_its_own_process_breaks_nothing_else(code, status):
    """Layer: process."""
    box = sandboxes.without()
    process, result = box.process, sandboxes.run(code, seconds=1.0)
    assert result.status == status or status is None
    assert sandboxes.run("print(1)").output == "1"
    assert box.process == process


FORGED = '{"status": 0, "stopped": ""}'


@pytest.mark.parametrize(
    "ending, status",
    [("sys.exit(3)", 3), ("os._exit(3)", 3), ("os.kill(os.getpid(), 9)", -9), ("1 / 0", 1)],
)
def test_status_cannot_be_forged(ending, status):
    """Layer: process. The program writes what the helper would, wherever it can."""
    code = (
        "import os, sys\nfor file in range(256):\n"
        f"    try: os.write(file, b'{FORGED}')\n    except OSError: pass\n{ending}"
    )
    assert sandboxes.run(code).status == status


def test_nothing_is_left_for_the_next_program():
    """Layer: process."""
    code = (
        "import builtins, math, os, sys, random\nmath.pi = 3\nbuiltins.x = sys.x = 1\n"
        "os.environ['A'] = 'b'\nopen('file', 'w').close()\nsys.setrecursionlimit(50)\n"
        "import numpy\nnumpy.x = 1\nprint(math.pi)"
    )
    assert sandboxes.run(code).output == "3"
    code = (
        "import builtins, math, numpy, os, sys\n"
        "print(math.pi > 3, hasattr(builtins, 'x'), hasattr(sys, 'x'), hasattr(numpy, 'x'))\n"
        "print(os.environ.get('A'), os.listdir(), sys.getrecursionlimit())"
    )
    assert sandboxes.run(code).output == "True False False False\nNone [] 1000"


def test_numbers_are_drawn_anew_in_each_program():
    code = "import random, numpy as np\nprint(random.random(), np.random.rand())"
    first, second = (sandboxes.run(code).output.split() for _ in range(2))
    assert not set(first) & set(second)


def test_no_process_is_left():
    """Layer: process. What a program started without seccomp dies with its group."""
    box = sandboxes.only()
    code = "import os, time\nif not os.fork(): time.sleep(60)\nprint(os.getpid())"
    assert sandboxes.run(code, box=box).status == 0
    children = pathlib.Path(f"/proc/{box.process}/task/{box.process}/children")
    deadline = time.monotonic() + 5
    while children.exists() and children.read_text():  # adopted and reaped when it is killed
        assert time.monotonic() < deadline


@pytest.mark.parametrize("walls", [sandboxes.WALLS, ("landlock", "seccomp")])
def test_the_helper_that_dies_is_started_again(walls):
    box = sandboxes.only(*walls)
    before = box.process
    os.kill(before, signal.SIGKILL)
    assert sandboxes.run("print(1)", box=box).output == "1"
    assert box.process != before
    assert not any(
        str(before) == entry.name and (entry / "stat").read_text().split()[2] != "Z"
        for entry in pathlib.Path("/proc").iterdir()
    )


def test_a_program_whose_helper_dies_is_run_again():
    box = sandboxes.without()
    killed = threading.Timer(0.3, os.kill, (box.process, signal.SIGKILL))
    killed.start()
    assert sandboxes.run("import time\ntime.sleep(1)\nprint(1)", box=box).output == "1"
    killed.join()


def test_programs_do_not_see_each_other(world):
    """Layer: landlock. Both have a folder; neither can enter the other's."""
    results = []
    write = "import time\nopen('secret', 'w').write('x')\ntime.sleep(1)"
    other = threading.Thread(target=lambda: results.append(sandboxes.run(write)))
    other.start()
    code = (
        "import os, time\ntime.sleep(0.3)\nhere, found = os.path.abspath('..'), []\n"
        f"for i in range({server.PROGRAMS}):\n"
        "    try: found.append(open(f'{here}/{i}/secret').read())\n    except OSError: pass\n"
        "print(found)"
    )
    assert sandboxes.run(code).output == "[]"
    other.join()
    assert results[0].status == 0
