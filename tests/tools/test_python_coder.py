"""What the model is told of its programs; tests/tools/test_sandbox.py has the programs."""

import pytest

from tests.tools import sandboxes, settings
from tools import python_coder
from tools.protocol import ToolError


def run(code, *, seconds=20.0, max_output_bytes=4096):
    return python_coder.run(
        sandboxes.without(),
        code,
        seconds=seconds,
        max_output_bytes=max_output_bytes,
        memory_bytes=sandboxes.MEMORY_BYTES,
        traceback=True,
    )


def error_of(code, **options):
    with pytest.raises(ToolError) as error:
        run(code, **options)
    return str(error.value)


@pytest.mark.parametrize(
    "code, text",
    [
        ("print(1)", "1"),
        ("x = 1", "(no output; use print)"),
        ("print()", "(no output; use print)"),
        ("", "(no output; use print)"),
        ("import sys\nprint('a', file=sys.stderr)\nprint('b')", "a\nb"),
        ("```python\nprint(1)\n```", "1"),
        ('\n````\nprint("""a\n```\nb""")\n````\n', "a\n```\nb"),
        ("```\nprint(2)", "2"),
    ],
)
def test_what_is_printed_is_the_result(code, text):
    assert run(code) == text


FENCED = ["```python\nprint(1)\n```", "\n```python\nprint(1)\n```\n", "```\nprint(1)\n```"]
FENCED += ["````py\r\nprint(1)\r\n````", "~~~python\nprint(1)\n~~~", "```tool_code\nprint(1)```"]
FENCED += [
    "```python\nprint(1)",
    "print(1)\n```",
    "print(1)```  \n",
    "```print(1)```",
    "`print(1)`",
]
FENCED += ["```python print(1)```", "```print(1)\n```", "  ```python\n  print(1)\n  ```"]
FENCED += ["\n   ```\n   if 1:\n     print(1)"]
FENCED += ["\ufeffprint(1)", "\ufeff```python\n\ufeffprint(1)\n```"]  # marks of byte order


@pytest.mark.parametrize("code", FENCED)
def test_a_fence_around_a_program_is_taken_off(code):
    assert run(code) == "1"


def test_only_the_fence_around_a_program_goes():
    assert run("x = '''\n```\na\n```\n'''\nprint(x)  # ```") == "\n```\na\n```"
    assert run("print(~~~1, '```')") == "-2 ```"
    text = error_of("\n```python\nx = 1\n\n1 / 0\n```")
    assert 'File "<program>", line 5' in text  # as the model wrote it


def test_hostile_fences_take_linear_time():
    for piece in ("`", "```", "\n```", "\n~~~", "~", "\n   ", " ", "```a\n", "` ", "``` "):
        for tail in ("", "x"):  # a quadratic search would take many minutes
            python_coder._unfenced(piece * (500_000 // len(piece)) + tail)


def test_a_failure_is_told_behind_the_output():
    text = error_of("print('so far')\n1 / 0")
    assert text.startswith("so far\nTraceback (most recent call last):\n")
    assert text.endswith("ZeroDivisionError: division by zero")
    assert error_of("exit('no solution')") == "no solution"
    assert error_of("print(1)\nexit(3)") == "1\nExit status 3."
    assert error_of("import os\nos.kill(os.getpid(), 9)") == "Killed by SIGKILL."
    assert error_of("import os\nos.kill(os.getpid(), 40)") == "Killed by signal 40."


def test_what_stopped_it_is_told():
    assert error_of("print(1)\nwhile True: pass", seconds=0.5) == "1\nTimed out after 0.5 s."
    flood = error_of("while True: print('a' * 100000)", max_output_bytes=2)
    assert flood == "aa\n[output truncated]\nStopped: more than 16 MiB of output."


def test_a_program_that_is_no_text():
    assert "not valid text" in error_of("print('\ud800')")


def test_make_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="must be positive"):
        settings.make("python_coder", seconds=0)
    with pytest.raises(ValueError, match="'high' is unknown"):
        settings.make("python_coder", sandbox="high")


def test_make_refuses_a_machine_below_the_level(monkeypatch):
    box = sandboxes.without("landlock")
    monkeypatch.setattr(python_coder.client, "Sandbox", lambda: box)
    with pytest.raises(
        ValueError, match=r"landlock \(missing.*--config.tools.python_coder.sandbox=minimal"
    ):
        settings.make("python_coder")
    assert settings.make("python_coder", sandbox="minimal").facts["level"] == "minimal"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero (line 2)"),
        (
            "def f():\n    return undefined\nf()",
            "NameError: name 'undefined' is not defined (line 2)",
        ),
        ("print('y'); 1 / 0", "y\nZeroDivisionError: division by zero (line 1)"),
        ("print('a'", "SyntaxError: '(' was never closed (line 1)"),
        ("raise SystemExit('enough')", "enough"),
    ],
)
def test_errors_in_one_line(code, message):
    tool = settings.make("python_coder", sandbox="minimal", traceback=False)
    with pytest.raises(ToolError) as error:
        tool.run(code=code)
    assert str(error.value) == message
