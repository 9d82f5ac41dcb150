"""Ordinary programs work in the sandbox as they do elsewhere; many at once; what holds is told."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from tests.tools import sandboxes
from tools.sandbox import client, selftest, server

ORDINARY = {
    "functions": (
        "def f(n):\n    return n * f(n - 1) if n else 1\nprint(f(20))",
        "2432902008176640000",
    ),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(9000)\ndef f(n): return n and 1 + f(n - 1)\n"
        "print(f(8000))",
        "8000",
    ),
    "import in a function": (
        "def f():\n    import math\n    return math.tau\nprint(f())",
        "6.283185307179586",
    ),
    "main": ("if __name__ == '__main__': print('main')", "main"),
    "pickle of a class": (
        "import pickle\nclass P: pass\nprint(type(pickle.loads(pickle.dumps(P()))) is P)",
        "True",
    ),
    "threads": (
        "import threading\nt = threading.Thread(target=lambda: print('in a thread'))\nt.start()",
        "in a thread",
    ),
    "a pool of threads": (
        "import concurrent.futures as c\nwith c.ThreadPoolExecutor(16) as p:\n"
        "    print(sum(p.map(lambda i: i * i, range(100))))",
        "328350",
    ),
    "asyncio": (
        "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    return 3\n"
        "print(asyncio.run(f()))",
        "3",
    ),
    "at exit": ("import atexit\natexit.register(print, 'end')\nprint('start')", "start\nend"),
    "unicode": ("print('größe 漢字 🙂')", "größe 漢字 🙂"),
    "lone surrogate": (r"print('\ud800')", r"\ud800"),
    "errors in order": ("import sys\nprint('a', file=sys.stderr)\nprint('b')", "a\nb"),
    "invalid escape": (r"print(len('\d'))", "2"),
    "files": ("open('a.txt', 'w').write('x')\nprint(open('a.txt').read())", "x"),
    "folders and copies": (
        "import os, shutil, pathlib\nos.mkdir('d')\npathlib.Path('d/a').write_text('x')\n"
        "shutil.copytree('d', 'e')\nshutil.move('e', 'f')\nshutil.make_archive('z', 'zip', 'f')\n"
        "shutil.unpack_archive('z.zip', 'g')\nprint(sorted(os.listdir()), open('g/a').read())",
        "['d', 'f', 'g', 'z.zip'] x",
    ),
    "temporary files": (
        "import tempfile\nwith tempfile.NamedTemporaryFile('w+') as f, "
        "tempfile.TemporaryDirectory():\n    f.write('x')\n    f.seek(0)\n    print(f.read())",
        "x",
    ),
    "sqlite": (
        "import sqlite3\nc = sqlite3.connect('a.db')\nc.execute('create table t (x)')\n"
        "c.execute('insert into t values (7)')\nc.commit()\nprint(*c.execute('select * from t'))",
        "(7,)",
    ),
    "time": (
        "import time, datetime\ntime.sleep(0.01)\nprint(datetime.datetime(2024, 2, 29).weekday())",
        "3",
    ),
    "time zones": (
        "import zoneinfo, datetime\nprint(datetime.datetime(2024, 7, 1, "
        "tzinfo=zoneinfo.ZoneInfo('Europe/Paris')).utcoffset())",
        "2:00:00",
    ),
    "signals": (
        "import signal\nsignal.signal(signal.SIGALRM, lambda *_: print('alarm'))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.01)\nsignal.pause()",
        "alarm",
    ),
    "numpy": ("import numpy as np\nprint(np.arange(4).sum(), np.linalg.det(np.eye(3)))", "6 1.0"),
    "sympy": (
        "import sympy\nx = sympy.Symbol('x')\nprint(sympy.solve(x**2 - 2), sympy.integrate(1 / x))",
        "[-sqrt(2), sqrt(2)] log(x)",
    ),
    "exit": ("print(1)\nexit()", "1"),
    "sys.exit": ("import sys\nprint(1)\nsys.exit(0)", "1"),
    "the rest of the standard library": (
        "import argparse, difflib, email, gzip, html, http.client, locale, logging, lzma, "
        "multiprocessing, platform, secrets, shelve, ssl, unittest, urllib.request, xml.dom\n"
        "logging.warning('w')\nprint(platform.system())",
        "WARNING:root:w\nLinux",
    ),
    "order of a set": (
        "print({'a', 'b', 'c', 'd'} == {*'abcd'}, hash('a') == hash('a'))",
        "True True",
    ),
    "where it runs": (
        "import os, sys\nprint(sys.argv, repr(sys.stdin.read()), os.listdir(), os.getcwd() == "
        "os.environ['HOME'])",
        "['program.py'] '' [] True",
    ),
}


@pytest.mark.parametrize("box", [sandboxes.without, sandboxes.only], ids=["all layers", "few"])
@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_programs(name, box):
    code, output = ORDINARY[name]
    result = sandboxes.run(code, box=box())
    assert (result.output, result.explanation, result.status) == (output, "", 0)


TRACEBACK = """Traceback (most recent call last):
  File "<program>", line 4, in <module>
    f()
  File "<program>", line 2, in f
    return [][0]
           ~~^^^
IndexError: list index out of range"""

FAILING = {
    "in a function": ("def f():\n    return [][0]\n\nf()", [TRACEBACK]),
    "in a library": ("import json\njson.loads('{')", ["line 2, in <module>", "JSONDecodeError: "]),
    "with a cause": (
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e",
        ["ZeroDivisionError: division by zero", "direct cause", "KeyError: 'k'"],
    ),
    "syntax": ("x = 1\ny = (", ["line 2", "SyntaxError: '(' was never closed"]),
    "null byte": ("print(1)\0", ["null bytes"]),
    "no message": ("assert False", ["line 1", "AssertionError"]),
    "input": ("input()", ["EOFError"]),
    "endless recursion": ("def f():\n    f()\nf()", ["Previous line repeated", "RecursionError"]),
    "exit text": ("exit('no solution')", ["no solution"]),
    "hostile text": (
        "class E(Exception):\n    def __str__(self):\n        raise self\nraise E",
        ["line 4", "E: <exception str() failed>"],
    ),
    "hostile class": (
        "class M(type):\n  __name__ = 3\nclass E(Exception, metaclass=M): pass\nraise E",
        [],
    ),
    "keyboard interrupt": ("raise KeyboardInterrupt", ["KeyboardInterrupt"]),
    "memory": ("x = bytearray(10**10)", ["line 1", "MemoryError"]),
    "at its end": ("import atexit\natexit.register(lambda: 1 / 0)", []),
}


@pytest.mark.parametrize("name", FAILING)
def test_failing_programs_say_why(name):
    code, parts = FAILING[name]
    result = sandboxes.run(code)
    assert result.status == 1 or name == "at its end"
    text = result.explanation + result.output
    assert all(part in text for part in parts), text
    assert "helper" not in text and "program.py" not in text


def test_a_long_explanation_keeps_its_ends():
    said = sandboxes.run("raise ValueError('x' * 10**6)").explanation
    assert said.startswith("Traceback") and said.endswith("xxx...") and len(said) < 1000
    said = sandboxes.run("def f(x):\n    1 / 0" + " + 1" * 900 + "\nf(1)").explanation
    assert said.startswith("Traceback") and said.endswith("division by zero") and len(said) < 2100


@pytest.mark.parametrize(
    "code, status",
    [
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit(256 + 7)", 7),
        ("import os; os._exit(7)", 7),
        ("import os; os.kill(os.getpid(), 11)", -11),
        ("import os; os.abort()", -6),
        ("import ctypes; ctypes.string_at(0)", -11),
    ],
)
def test_status(code, status):
    for box in (sandboxes.only(), sandboxes.without()):
        assert sandboxes.run(code, box=box).status == status


def test_output_before_the_deadline_is_kept():
    result = sandboxes.run("print('so far', end='')\nwhile True: pass", seconds=0.5)
    assert (result.output, result.stopped) == ("so far", "time")


def test_output_is_capped_at_the_first_bytes():
    for code, output in (
        ("print('ab' * 50)", "ababa\n[output truncated]"),
        ("print('漢字' * 50)", "漢\n[output truncated]"),
        ("print('abcd')", "abcd"),
    ):
        assert sandboxes.run(code, max_output_bytes=5).output == output
    assert sandboxes.run("print('a' * 60000)", max_output_bytes=10**6).output == "a" * 60000


def test_no_environment_is_inherited(monkeypatch):
    monkeypatch.setenv("API_KEY", "hidden")
    box = client.Sandbox()
    names = sandboxes.run("import os\nprint(*os.environ)", box=box).output.split()
    box.close()
    assert set(names) <= set(selftest.VARIABLES.split())


def test_many_threads_do_not_mix_up_their_programs():
    with concurrent.futures.ThreadPoolExecutor(server.PROGRAMS + 8) as pool:
        results = list(pool.map(sandboxes.run, [f"print({i})" for i in range(120)]))
    assert [result.output for result in results] == [str(i) for i in range(120)]


def test_slow_programs_run_at_the_same_time():
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(sandboxes.run, ["import time\ntime.sleep(0.5)"] * 8))
    assert time.monotonic() - start < 3


def test_no_descriptor_stays_open():
    sandboxes.run("print(1)")
    before = len(os.listdir("/proc/self/fd"))
    for code in ("print(1)", "1 / 0", "while True: pass"):
        sandboxes.run(code, seconds=0.2)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("without", [(), ("namespaces",)])
def test_closing_leaves_nothing(without):
    box = client.Sandbox(without=without)
    folder, process = box.facts["folder"], box.process
    assert bool(folder) == bool(without)
    assert sandboxes.run("print(1)", box=box).output == "1"
    box.close()
    assert not pathlib.Path(f"/proc/{process}").exists()
    assert not folder or not pathlib.Path(folder).exists()


def test_programs_end_with_the_process_that_asked_for_them():
    """Also if that process is killed, and has no time to say so."""
    code = (
        "import os, signal, threading, time\n"
        "from tools.sandbox import client\n"
        "box = client.Sandbox()\n"
        "run = lambda: box.run('while True: pass', seconds=60, max_output_bytes=9, "
        "memory_bytes=2**28)\n"
        "threading.Thread(target=run).start()\ntime.sleep(0.3)\nprint(box.process, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = pathlib.Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    process = pathlib.Path("/proc") / ended.stdout.strip()
    deadline = time.monotonic() + 5
    while process.exists() and (process / "stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- what holds is told --------------------------------------------------------------------------


def test_everything_holds_here_or_says_why():
    facts = selftest.examine(sandboxes.without())
    assert list(facts["layers"]) == list(selftest.LAYERS)
    assert json.loads(json.dumps(facts)) == facts
    assert selftest.describe(facts)[-1] == f"sandbox level: {facts['level']}"
    selftest.require("standard", facts)


@pytest.mark.parametrize(
    "layer, level",
    [
        ("namespaces", "standard"),
        ("landlock", "minimal"),
        ("seccomp", "minimal"),
        ("privileges", "minimal"),
        ("limits", "none"),
    ],
)
def test_a_missing_layer_lowers_the_level_and_is_named(layer, level):
    facts = selftest.examine(sandboxes.without(layer))
    assert facts["level"] == level
    assert facts["layers"][layer] == "missing: left out on request"
    refused = [asked for asked in selftest.LEVELS if not holds(asked, facts)]
    reached = selftest.LEVELS.index(level) + 1 if level != "none" else 0
    assert refused == list(selftest.LEVELS[reached:])
    with pytest.raises(ValueError) as error:
        selftest.require(refused[0], facts)
    assert f"{layer} (missing: left out on request): a program could" in str(error.value)
    advice = (
        "leave python_coder out"
        if level == "none"
        else f"--config.tools.python_coder.sandbox={level}"
    )
    assert advice in str(error.value)


def holds(level, facts):
    try:
        selftest.require(level, facts)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("layer", [layer for layer in selftest.PROBES if layer != "process"])
def test_the_probe_of_a_layer_notices_that_it_is_missing(layer):
    """Run where the layer is left out, although it says that it is there."""
    box = sandboxes.without(layer)

    class Boasting:
        facts = box.facts | {"missing": {}}
        run = box.run

    assert selftest.examine(Boasting)["layers"][layer].startswith("failed: ")


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="unknown; valid: minimal, standard, strict"):
        selftest.require("high", {"level": "strict", "layers": {}})
