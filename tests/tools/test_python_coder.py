"""Model-written programs: ordinary ones work, bad ones end, and nothing of them is left."""

import concurrent.futures
import os
import pathlib
import re
import signal
import time

import pytest

from tools import python_coder
from tools.protocol import ToolError


def run(code, *, seconds=20.0, max_output_bytes=4096, memory_bytes=512 * 2**20):
    return python_coder.run(
        code, seconds=seconds, max_output_bytes=max_output_bytes, memory_bytes=memory_bytes
    )


def error_of(code, **options):
    with pytest.raises(ToolError) as error:
        run(code, **options)
    return str(error.value)


def is_alive(pid):
    try:
        os.kill(pid, 0)
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


ORDINARY = {
    "print": ("print(1)", "1"),
    "no output": ("x = 1", "(no output; use print)"),
    "only newlines": ("print()", "(no output; use print)"),
    "empty program": ("", "(no output; use print)"),
    "recursion": (
        "def f(n):\n    return n * f(n - 1) if n else 1\nprint(f(20))",
        str(2432902008176640000),
    ),
    "import used in a function": (
        "import math\ndef f():\n    return math.pi\nprint(f())",
        "3.141592653589793",
    ),
    "comprehension over outer variables": ("n = 3\nprint([n * i for i in range(n)])", "[0, 3, 6]"),
    "main guard": ("if __name__ == '__main__':\n    print('main')", "main"),
    "dataclass": (
        "import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\nprint(P(1))",
        "P(x=1)",
    ),
    "pickle of a class": (
        "import pickle\nclass P: pass\nprint(type(pickle.loads(pickle.dumps(P()))) is P)",
        "True",
    ),
    "the word exit in a string": ("print('exit(')", "exit("),
    "exit": ("print(1)\nexit()", "1"),
    "sys.exit(0)": ("import sys\nprint(1)\nsys.exit(0)", "1"),
    "threads": (
        "import threading\nt = threading.Thread(target=lambda: print('in a thread'))\nt.start()",
        "in a thread",
    ),
    "unicode": ("print('größe 漢字 🙂')", "größe 漢字 🙂"),
    "lone surrogate": (r"print('\ud800')", r"\ud800"),
    "standard error": ("import sys\nprint('a', file=sys.stderr)\nprint('b')", "a\nb"),
    "invalid escape": (r"print(len('\d'))", "2"),
    "numpy": ("import numpy as np\nprint(np.arange(4).sum())", "6"),
    "files in its folder": ("open('a.txt', 'w').write('x')\nprint(open('a.txt').read())", "x"),
    "subprocess": (
        "import subprocess\nprint(subprocess.run(['echo', 'hi'], capture_output=True).stdout)",
        "b'hi\\n'",
    ),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_programs(name):
    code, output = ORDINARY[name]
    assert run(code) == output


FAILING = {
    "exception": ("print(1)\n\n1 / 0", "1\nZeroDivisionError: division by zero (line 3)"),
    "inside a function": (
        "def f():\n    return [][0]\n\nf()",
        "IndexError: list index out of range (line 2)",
    ),
    "inside a library": ("import json\njson.loads('{')", r"JSONDecodeError: .* \(line 2\)"),
    "syntax": ("x = 1\ny = (", r"SyntaxError: '\(' was never closed \(line 2\)"),
    "null byte": ("print(1)\0", r".*null bytes.*"),
    "no message": ("assert False", r"AssertionError \(line 1\)"),
    "input": ("input()", r"EOFError: EOF when reading a line \(line 1\)"),
    "endless recursion": ("def f():\n    f()\nf()", r"RecursionError: .* \(line 2\)"),
    "exit code": ("print(1)\nexit(3)", "1\nExit status 3."),
    "exit text": ("exit('no solution')", "no solution"),
    "os._exit": ("import os\nos._exit(7)", "Exit status 7."),
    "kills itself": ("import os\nos.kill(os.getpid(), 9)", "Killed by SIGKILL."),
    "segmentation fault": ("import ctypes\nctypes.string_at(0)", "Killed by SIGSEGV."),
    "hostile exception": (
        "class E(Exception):\n    def __str__(self):\n        raise self\nraise E",
        r"E \(line 4\)",
    ),
    "keyboard interrupt": ("raise KeyboardInterrupt", r"KeyboardInterrupt \(line 1\)"),
    "huge allocation": ("x = bytearray(10**10)", r"MemoryError \(line 1\)"),
    "memory used up": (
        "x = []\nwhile True:\n    x.append(bytes(10**6))",
        r"MemoryError \(line 3\)",
    ),
    "huge file": (
        "f = open('big', 'wb')\nfor _ in range(100):\n    f.write(bytes(10**6))",
        r"OSError: \[Errno 27\] File too large \(line 3\)",
    ),
    "too many files": ("x = [open('/dev/null') for _ in range(99)]", r"OSError: \[Errno 24\].*"),
}


@pytest.mark.parametrize("name", FAILING)
def test_failing_programs_say_why(name):
    code, message = FAILING[name]
    pattern = message if "\\" in message or ".*" in message else re.escape(message)
    assert re.fullmatch(pattern, error_of(code))


def test_a_program_that_is_no_text():
    assert "not valid text" in error_of("print('\ud800')")


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
    ],
)
def test_an_endless_program_is_killed_in_time(code):
    start = time.monotonic()
    assert error_of(code, seconds=0.5) == "Timed out after 0.5 s."
    assert time.monotonic() - start < 3


def test_output_before_the_deadline_is_kept():
    code = "print('so far', end='')\nwhile True: pass"
    assert error_of(code, seconds=1.5) == "so far\nTimed out after 1.5 s."


def test_a_process_left_behind_dies_with_the_program():
    start = time.monotonic()
    code = "import os, time\npid = os.fork()\nif pid: print(pid)\nelse: time.sleep(60)"
    pid = int(run(code))
    assert time.monotonic() - start < 5
    time.sleep(0.1)
    assert not is_alive(pid)


def test_the_processes_of_an_endless_program_die():
    code = "import os, time\npid = os.fork()\nif pid: print(pid)\ntime.sleep(60)"
    pid = int(error_of(code, seconds=1.5).splitlines()[0])
    time.sleep(0.1)
    assert not is_alive(pid)


def test_a_process_outside_the_group_does_not_hold_the_call():
    code = "import os, time\npid = os.fork()\nif pid: print(pid)\nelse: os.setsid(); time.sleep(60)"
    start = time.monotonic()
    pid = int(run(code))
    assert time.monotonic() - start < 5
    os.kill(pid, signal.SIGKILL)


def test_output_is_capped_at_the_first_bytes():
    assert run("print('ab' * 50)", max_output_bytes=5) == "ababa\n[output truncated]"
    assert run("print('漢字' * 50)", max_output_bytes=5) == "漢\n[output truncated]"
    assert run("print('abcd')", max_output_bytes=5) == "abcd"
    error = error_of("print('a' * 9999)\n1 / 0", max_output_bytes=3)
    assert error == "aaa\n[output truncated]\nZeroDivisionError: division by zero (line 2)"


def test_output_still_in_the_pipe_at_the_end_is_read(monkeypatch):
    def wait_for_the_end(process):
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(python_coder, "_has_ended", wait_for_the_end)
    assert run("print('a' * 60000)", max_output_bytes=10**6) == "a" * 60000


def test_a_flood_is_stopped(monkeypatch):
    monkeypatch.setattr(python_coder, "MAX_READ_BYTES", 2**20)
    error = error_of("while True: print('a' * 100000)", max_output_bytes=10)
    assert error == "a" * 10 + "\n[output truncated]\nStopped: more than 1 MiB of output."


def test_an_exception_text_is_capped():
    assert len(error_of("raise ValueError('x' * 10**6)")) < 600


def test_no_environment_and_no_input_is_inherited(monkeypatch):
    monkeypatch.setenv("API_KEY", "hidden")
    code = "import os, sys\nprint(repr(sys.stdin.read()), sys.argv)\nprint(*sorted(os.environ))"
    state, names = run(code).splitlines()
    assert state == "'' ['program.py']"
    threads = {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}
    assert set(names.split()) - {"LC_CTYPE"} == {"PATH", "LANG", "HOME", "TMPDIR"} | threads


def test_no_open_file_is_inherited(tmp_path):
    code = (
        "import os\n"
        "for n in range(64):\n"
        "    try: print(n, os.readlink(f'/proc/self/fd/{n}').split(':')[0])\n"
        "    except OSError: pass"
    )
    with open(tmp_path / "secret", "w") as file:
        os.set_inheritable(file.fileno(), True)
        (stdin, *others) = run(code).splitlines()
    assert stdin.startswith("0 ") and stdin.endswith("(deleted)")
    assert [line.split()[1] for line in others] == ["pipe"] * 3  # output, errors, report


def test_the_program_runs_once(tmp_path):
    count = tmp_path / "count"
    run(f"open({str(count)!r}, 'a').write('x')")
    assert count.read_text() == "x"
    error_of(f"open({str(count)!r}, 'a').write('x')\n1 / 0")
    assert count.read_text() == "xx"


def test_nothing_is_left_for_the_next_program():
    assert run("import math\nx = 1\nmath.pi = 3\nopen('a', 'w').close()\nprint(math.pi)") == "3"
    code = "import math, os\nprint('x' in globals(), math.pi > 3, os.listdir())"
    assert run(code) == "False True []"


def test_the_trainer_is_untouched():
    before = os.getcwd(), dict(os.environ)
    folder = run(
        "import os\nos.environ['A'] = 'b'\nprint(os.getcwd())\nos.mkdir('x')\nos.chdir('/')"
    )
    assert (os.getcwd(), dict(os.environ)) == before
    assert not pathlib.Path(folder).exists()
    assert pathlib.Path(folder) != pathlib.Path(os.getcwd())


def test_limits_are_hard():
    code = (
        "import resource as r\n"
        "for name in ('AS', 'CPU', 'CORE', 'FSIZE', 'NOFILE'):\n"
        "    print(r.getrlimit(getattr(r, 'RLIMIT_' + name)))\n"
        "print([l for l in open('/proc/self/status') if 'NoNewPrivs' in l])"
    )
    memory = 256 * 2**20
    expected = [(memory, memory), (6, 7), (0, 0), (16 * 2**20, 16 * 2**20), (64, 64)]
    *limits, privileges = run(code, seconds=5.0, memory_bytes=memory).splitlines()
    assert limits == [str(limit) for limit in expected]
    assert privileges == r"['NoNewPrivs:\t1\n']"


def test_no_descriptor_stays_open():
    run("print(1)")
    before = len(os.listdir("/proc/self/fd"))
    run("print(1)")
    error_of("1 / 0")
    error_of("while True: pass", seconds=0.3)
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_threads_do_not_mix_up_their_programs():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(run, [f"print({i})" for i in range(32)]))
    assert outputs == [str(i) for i in range(32)]


def test_make_refuses_a_machine_that_cannot_run_programs(monkeypatch):
    with pytest.raises(RuntimeError, match="cannot run an empty program"):
        python_coder.make(memory_bytes=2**20)
    with pytest.raises(ValueError, match="must be positive"):
        python_coder.make(seconds=0)
