"""Runs a Python program that a model wrote, in a process of its own that is really killed.

What holds, on Linux: the program runs once, in one namespace, as `__main__`, in a fresh interpreter
that is neither the trainer nor a fork of it. It inherits no environment variable, no open file and
no input, works in a private folder that is removed afterwards, and cannot gain privileges. Its wall
time, CPU time, memory, size of a file and open files are limited. Its output is capped while it is
read. At the deadline, or when it ends, its process group is killed.

What does not hold: the program can read every file that the user can read (through /proc also the
environment variables of the trainer) and write every file that the user can write; it can use the
network; it can signal other processes of the user, the trainer included; it can start processes,
each with the full memory and CPU limit, and one that makes a session or a group of its own outlives
the call; the number of files it writes is not limited.
"""

import codecs
import math
import os
import pathlib
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from tools.protocol import Parameter, Tool, ToolError

FLAGS = ("-I", "-S", "-B", "-u", "-X", "utf8")  # no site module: 2 ms; -u: output before a kill
CHILD = pathlib.Path(__file__).with_name("python_child.py")
PACKAGES = tuple(p for p in sys.path if p.endswith(("site-packages", "dist-packages")))
MAX_READ_BYTES = 64 * 2**20  # a program that writes more is killed
REPORT_BYTES = 4096
MAX_LEFT_READS = 32  # of what was in the pipe at the end; a process outside the group may add
POLL_SECONDS = 0.05  # how late the end is seen if a process left behind keeps the output open
TRUNCATED = "\n[output truncated]"


def make(
    *, seconds: float = 5.0, max_output_bytes: int = 4096, memory_bytes: int = 512 * 2**20
) -> Tool:
    """Builds the tool.

    Args:
      seconds: wall time of one program, start of the interpreter included.
      max_output_bytes: the first bytes of the output that are kept.
      memory_bytes: address space of the program.

    Raises:
      RuntimeError: programs do not run on this machine.
    """
    if seconds <= 0 or max_output_bytes < 1 or memory_bytes < 1:
        raise ValueError(
            f"seconds={seconds}, max_output_bytes={max_output_bytes} and "
            f"memory_bytes={memory_bytes} must be positive."
        )

    def run_tool(*, code: str) -> str:
        return run(
            code, seconds=seconds, max_output_bytes=max_output_bytes, memory_bytes=memory_bytes
        )

    try:
        run("pass", seconds=60.0, max_output_bytes=4096, memory_bytes=memory_bytes)
    except ToolError as error:
        raise RuntimeError(
            f"python_coder cannot run an empty program with memory_bytes={memory_bytes}; "
            f"it needs Linux and about 64 MiB. The program's output: {error}"
        ) from None
    return Tool(
        name="python_coder",
        description="Runs a Python program and returns what it prints. numpy is installed.",
        parameters=(Parameter("code", "str", "the whole program; print the result"),),
        limits=(
            f"Stops after {seconds:g} s and {memory_bytes // 2**20} MiB; shows the first "
            f"{max_output_bytes} bytes of output. No input; nothing is kept between calls."
        ),
        demo='python_coder(code="print(sum(range(10)))")',
        run=run_tool,
        seconds=seconds + 2.0,
    )


def run(code: str, *, seconds: float, max_output_bytes: int, memory_bytes: int) -> str:
    """Runs one program; safe in many threads.

    Args:
      code: the source text.
      seconds, max_output_bytes, memory_bytes: see `make`.

    Returns:
      The standard output and error output of a program that ended with status 0.

    Raises:
      ToolError: the program failed or was stopped; the text has its output and the reason.
    """
    try:
        source = code.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ToolError(f"The program is not valid text: {error.reason}.") from None
    output, report = _Stream(max_output_bytes), _Stream(REPORT_BYTES)
    folder = tempfile.mkdtemp(prefix="program-")
    try:
        reason = _run_process(
            source, folder, output, report, seconds=seconds, memory_bytes=memory_bytes
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if reason:
        raise ToolError("\n".join(filter(None, (output.text(), reason))))
    return output.text() or "(no output; use print)"


def _run_process(source, folder, output, report, *, seconds, memory_bytes):
    """Runs the program to its end or its deadline; returns what went wrong, or ""."""
    deadline = time.monotonic() + seconds
    report_end, report_start = os.pipe()
    arguments = [report_start, math.ceil(seconds) + 1, memory_bytes, *PACKAGES]
    with tempfile.TemporaryFile() as standard_input, open(report_end, "rb", 0) as report_file:
        standard_input.write(source)
        standard_input.seek(0)
        try:
            process = subprocess.Popen(
                [sys.executable, *FLAGS, CHILD, *map(str, arguments)],
                stdin=standard_input,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                pass_fds=(report_start,),
                start_new_session=True,
                cwd=folder,
                env=_environment(folder),
            )
        finally:
            os.close(report_start)
        with process.stdout as output_file:
            stopped = ""
            try:
                streams = {output_file: output, report_file: report}
                stopped = _follow(process, streams, deadline=deadline)
            finally:
                _kill(process)
            for file, stream in streams.items():
                for _ in range(MAX_LEFT_READS):
                    if not stream.read(file):
                        break
    if stopped == "deadline" or process.returncode == -signal.SIGXCPU:
        return f"Timed out after {seconds:g} s."
    if stopped:
        return stopped
    if process.returncode < 0:
        return f"Killed by {_signal_name(-process.returncode)}."
    if process.returncode > 0:
        return report.text() or f"Exit status {process.returncode}."
    return ""


def _follow(process, streams, *, deadline):
    """Reads until the program ends; returns "", "deadline" or the limit that it broke."""
    with selectors.DefaultSelector() as selector:
        for file in streams:
            os.set_blocking(file.fileno(), False)
            selector.register(file, selectors.EVENT_READ)
        while not _has_ended(process):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return "deadline"
            if not selector.get_map():
                time.sleep(min(remaining, 0.001))
                continue
            for key, _ in selector.select(min(remaining, POLL_SECONDS)):
                if streams[key.fileobj].read(key.fileobj) == b"":
                    selector.unregister(key.fileobj)
            if sum(stream.seen for stream in streams.values()) > MAX_READ_BYTES:
                return f"Stopped: more than {MAX_READ_BYTES // 2**20} MiB of output."
    return ""


def _has_ended(process):
    """True when the process ended. It is not reaped, so its group number is not given away."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, flags) is not None


def _kill(process):
    """Kills all that is left of the process group, and reaps the process."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(folder):
    threads = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": folder,
        "TMPDIR": folder,
        **dict.fromkeys(threads, "1"),
    }


def _signal_name(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _Stream:
    """The first bytes of what was read from a pipe."""

    def __init__(self, max_bytes):
        self.max_bytes = max_bytes
        self.seen = 0  # bytes
        self._kept = bytearray()

    def read(self, file):
        """Takes and returns what is there, at most 64 KiB: b"" at the end, None if nothing yet."""
        chunk = file.read(65536)
        if chunk:
            self.seen += len(chunk)
            self._kept += chunk[: self.max_bytes - len(self._kept)]
        return chunk

    def text(self):
        is_whole = self.seen <= self.max_bytes
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        text = decode(bytes(self._kept), is_whole)  # half a character at the cut is dropped
        return text.rstrip() if is_whole else text + TRUNCATED
