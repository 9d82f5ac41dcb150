"""Runs a Python program that a model wrote, in the sandbox; docs/tools.md says what holds there."""

import re
import signal
import textwrap

from tools.protocol import Parameter, Tool, ToolError
from tools.sandbox import client, folders, selftest, server

STOPPED = {
    "output": f"Stopped: more than {client.MAX_READ_BYTES // 2**20} MiB of output.",
    "disk": f"Stopped: more than {folders.BYTES // 2**20} MiB or {folders.FILES} files.",
    "written": f"Stopped: more than {server.WRITTEN_BYTES // 2**20} MiB written.",
    "threads": f"Stopped: more than {server.THREADS} threads at once.",
}
# A fence around a program. No program begins so; one that ends so has it in a comment at most.
_BEGIN = re.compile(r"(?:`{3,}[ \t]*[\w.+#-]*|~{3,}[ \t]*(?:python3?|py3?)?)[ \t]*\r?\n")
_END = re.compile(r"(?:(?<!`)`{3,}+|\n[ \t]*+~{3,}+)\s*+\Z")
_MARK = "\ufeff"  # of byte order: Python reads a file without it
_LINE = re.compile(r"(`+)(?:(?:python3?|py3?)[ \t])?([^`]+)\1\s*")


def make(
    *,
    sandbox: str,
    seconds: float,
    max_output_bytes: int,
    memory_bytes: int,
    traceback: bool,
) -> Tool:
    """Starts the sandbox and builds the tool.

    Args:
      sandbox: the level that has to hold, of `selftest.LEVELS`.
      seconds: wall time of one program.
      max_output_bytes: the first bytes of the output that are kept.
      memory_bytes: address space of the program, beyond Python and its packages.
      traceback: show the whole traceback of an exception, not only its last line.

    Raises:
      ValueError: the level does not hold on this machine.
      RuntimeError: programs do not run on this machine.
    """
    if seconds <= 0 or max_output_bytes < 1 or memory_bytes < 1:
        raise ValueError(
            f"seconds={seconds}, max_output_bytes={max_output_bytes} and "
            f"memory_bytes={memory_bytes} must be positive."
        )
    selftest.check_level(sandbox)
    box = client.Sandbox()
    facts = selftest.examine(box)
    try:
        selftest.require(sandbox, facts)
    except ValueError:
        box.close()
        raise

    def run_tool(*, code: str) -> str:
        return run(
            box,
            code,
            seconds=seconds,
            max_output_bytes=max_output_bytes,
            memory_bytes=memory_bytes,
            traceback=traceback,
        )

    packages = " and ".join(facts["packages"])
    return Tool(
        name="python_coder",
        description="Runs a Python program and returns what it prints."
        + (f" {packages} can be imported." if packages else ""),
        parameters=(Parameter("code", "str", "the whole program; print the result"),),
        limits=(
            f"Stops after {seconds:g} s and {memory_bytes // 2**20} MiB; shows the first "
            f"{max_output_bytes} bytes of output. No input, network or other processes; nothing is "
            "kept between calls."
        ),
        demo='python_coder(code="print(sum(range(10)))")',
        run=run_tool,
        seconds=seconds + 2.0,
        facts=facts,
    )


def run(
    box: client.Sandbox,
    code: str,
    *,
    seconds: float,
    max_output_bytes: int,
    memory_bytes: int,
    traceback: bool,
) -> str:
    """Runs one program; safe in many threads.

    Args:
      code: the source text; a code fence around it is taken off.
      seconds, max_output_bytes, memory_bytes, traceback: see `make`.

    Returns:
      The standard output and error output of a program that ended with status 0.

    Raises:
      ToolError: the program failed or was stopped; the text has its output and the reason.
    """
    try:
        result = box.run(
            _unfenced(code),
            seconds=seconds,
            max_output_bytes=max_output_bytes,
            memory_bytes=memory_bytes,
        )
    except UnicodeEncodeError as error:
        raise ToolError(f"The program is not valid text: {error.reason}.") from None
    except client.NotStarted as error:  # others may use up what there is
        raise ToolError(f"The program was not started, as there is no process: {error}.") from error
    if result.stopped == "time":
        reason = f"Timed out after {seconds:g} s."
    elif result.stopped:
        reason = STOPPED[result.stopped]
    elif result.status < 0:
        reason = f"Killed by {_signal_name(-result.status)}."
    elif result.status > 0:
        shown = result.explanation if traceback else _last_line(result.explanation)
        reason = shown or f"Exit status {result.status}."
    else:
        return result.output or "(no output; use print)"
    raise ToolError("\n".join(filter(None, (result.output, reason))))


def _unfenced(code):
    """Returns a program without a code fence and a mark at its start; lines keep their numbers."""
    code = code.removeprefix(_MARK)
    bare = code.lstrip()
    lead = code[: len(code) - len(bare)]
    if begin := _BEGIN.match(bare):
        program = _END.sub("", bare[begin.end() :]).removeprefix(_MARK)
        if lead.rpartition("\n")[2]:  # the fence is indented, and so is the program
            program = textwrap.dedent(program)
        return "\n" * (lead.count("\n") + 1) + program
    if line := _LINE.fullmatch(bare):
        return line[2].strip()
    return _END.sub("", code)


def _last_line(explanation):
    """Returns the last line of a traceback, with the number of the program's last line in it."""
    lines = explanation.strip().splitlines()
    numbers = re.findall(r'^  File "<program>", line (\d+)', explanation, re.MULTILINE)
    return "".join(lines[-1:]) + (f" (line {numbers[-1]})" if numbers else "")


def _signal_name(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
