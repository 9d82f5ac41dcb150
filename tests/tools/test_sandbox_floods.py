"""Programs that take what the machine has once: threads, timers, open files, processes, time.

Each runs at the levels strict, standard without namespaces, and minimal.
"""

import os
import threading
import time

import pytest

from tests.tools import sandboxes
from tools import python_coder
from tools.protocol import ToolError
from tools.sandbox import client, server

pytestmark = pytest.mark.slow  # all together

LEVELS = {"strict": sandboxes.WALLS, "standard": ("landlock", "seccomp"), "minimal": ()}
THREADS = (
    "import threading\nwait = threading.Event().wait\nthreading.stack_size(32768)\n"
    "while True: threading.Thread(target=wait, daemon=True).start()"
)
TIMERS = (
    "import ctypes\ncreate, timer, made = ctypes.CDLL(None).timer_create, ctypes.c_void_p(), 0\n"
    "while made < 5000 and create(1, None, ctypes.byref(timer)) == 0: made += 1\nprint(made)"
)
DELETED = (
    "import os\nheld = []\nwhile len(held) < 50:\n    held.append(open(f'{len(held)}', 'wb'))\n"
    "    os.unlink(held[-1].name)\n    for _ in range(15): held[-1].write(bytes(2**20))\n"
    "    held[-1].flush()"
)
DEEP = "import os\nfor _ in range({}):\n    os.mkdir('d' * 200)\n    os.chdir('d' * 200)"


@pytest.fixture(params=LEVELS)
def box(request):
    return sandboxes.only(*LEVELS[request.param])


def test_threads_are_bounded(box):
    """Layer: seccomp, by asking the helper; process, by counting."""
    result = sandboxes.run(THREADS, box=box, memory_bytes=2**33)
    assert result.stopped == "threads"


def test_threads_that_stay_within_the_bound_are_let_through():
    code = (
        "import concurrent.futures as f\nfor _ in range(20):\n"
        "    with f.ThreadPoolExecutor(60) as pool: found = set(pool.map(str, range(99)))\n"
        "print(len(found))"
    )
    assert sandboxes.run(code).output == "99"


def test_timers_are_bounded(box):
    """Layer: limits."""
    made = int(sandboxes.run(TIMERS, box=box).output)
    assert 0 < made <= server.PENDING_SIGNALS


def test_files_that_are_deleted_and_open_are_bounded(box):
    """Layers: namespaces (a file system of fixed size), process (all that is written)."""
    result = sandboxes.run(DELETED, box=box, seconds=60)
    assert (
        "No space left" in result.explanation
        or result.stopped == "written"
        or (
            box is sandboxes.only() and result.status == 0  # its files are nobody's concern there
        )
    )


def test_the_kernel_ends_programs_first(box):
    running = threading.Thread(
        target=sandboxes.run, args=("import time\ntime.sleep(0.5)",), kwargs=dict(box=box)
    )
    running.start()
    time.sleep(0.2)
    *_, helper, program = descendants(box.process)  # in namespaces, the helper has a parent
    assert helper[1] >= server.KILL_ORDER and program[1] == server.PROGRAM_KILL_ORDER
    running.join()
    assert kill_order("self") < server.KILL_ORDER  # the trainer's own is left alone


def descendants(process):
    """Returns (process, its place in the kernel's order) of a chain of children."""
    found = [(process, kill_order(process))]
    with open(f"/proc/{process}/task/{process}/children") as file:
        children = file.read().split()
    return found + (descendants(children[-1]) if children else [])


def kill_order(process):
    with open(f"/proc/{process}/oom_score_adj") as file:
        return int(file.read())


def test_a_program_may_remove_its_folder(box):
    """Layer: process."""
    process = box.process
    sandboxes.run("import os, shutil\nshutil.rmtree(os.getcwd(), True)", box=box)
    ending = sandboxes.run("import os\nos.rmdir(os.getcwd())", box=box)
    assert ending.status in (0, 1)
    assert sandboxes.run("import os\nprint(os.listdir())", box=box).output == "[]"
    assert box.process == process


def test_removing_deep_folders_stops_nobody(box):
    """Layer: process: the helper answers while another process removes what was left."""
    sandboxes.run(DEEP.format(1900), box=box, seconds=60)
    started = time.monotonic()
    result = sandboxes.run("print(1)", box=box, seconds=5)
    assert result.output == "1" and time.monotonic() - started < 5  # of minutes without


def test_a_fork_that_is_refused_fails_one_call(monkeypatch):
    """As under a limit of processes: the helper lives on, the turn has failed."""
    refused = (
        "; real, count = server.KillOrder.fork_program, iter(range(10**9))\n"
        "server.FORK_SECONDS = 0.1\n"
        "def fork(self):\n"
        "    if os.path.exists(FLAG): raise BlockingIOError(11, 'no more processes')\n"
        "    return real(self)\n"
        "server.KillOrder.fork_program = fork\n"
    )
    flag = f"/dev/shm/refuse-{os.getpid()}"
    before, end = client.START.rsplit(";", 1)
    patched = f"{before}; import os; from tools.sandbox import server; FLAG = {flag!r}"
    monkeypatch.setattr(client, "START", f"{patched}{refused}{end.strip()}")
    box = client.Sandbox(without=("namespaces",))  # which would hide the flag
    settings = dict(seconds=5, max_output_bytes=99, memory_bytes=2**28, traceback=False)
    try:
        process = box.process
        assert python_coder.run(box, "print(1)", **settings) == "1"
        with open(flag, "x"), pytest.raises(ToolError, match="no more processes"):
            python_coder.run(box, "print(2)", **settings)
        os.unlink(flag)
        assert python_coder.run(box, "print(3)", **settings) == "3"
        assert box.process == process
    finally:
        box.close()
