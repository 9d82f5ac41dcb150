"""Whether two formulas are equal, by math-verify and sympy in a process that can be killed.

Both hang on hostile input such as 9^9^9^9, and math-verify's own time limits work in the main
thread only. A comparison that runs out of time or memory has no verdict; what is believed of the
others stands in symbolic_child.py.
"""

import importlib.util
import json
import pathlib
import selectors
import subprocess
import sys
import threading
import time

CHILD = str(pathlib.Path(__file__).with_name("symbolic_child.py"))
MAX_CHARACTERS = 300
START_SECONDS = 60.0  # sympy is large
VERDICTS = {b"true\n": True, b"false\n": False, b"null\n": None}


class Symbolic:
    """One child process, started when it is first needed and again when it had to be killed.

    Raises ValueError if math-verify is not installed.
    """

    def __init__(self, *, seconds=3.0, memory_bytes=2 * 2**30):
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError('math-verify is not installed: pip install -e ".[math]".')
        self._seconds, self._memory = seconds, memory_bytes
        self._process, self._lock = None, threading.Lock()

    def equal(self, gold, answer):
        """Returns True, False, or None for no verdict."""
        if max(len(gold), len(answer)) > MAX_CHARACTERS:
            return False
        ask = {"gold": gold, "answer": answer, "seconds": self._seconds}
        with self._lock:
            try:
                if self._process is None:
                    self._start()
                self._process.stdin.write(json.dumps(ask).encode() + b"\n")
                self._process.stdin.flush()
                line = self._line(self._seconds + 1.0)
            except BrokenPipeError:
                line = b""
            if line not in VERDICTS:
                self._stop()
                return None
            return VERDICTS[line]

    def close(self):
        with self._lock:
            self._stop()

    def _start(self):
        self._process = subprocess.Popen(
            [sys.executable, "-P", CHILD, str(self._memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        if self._line(START_SECONDS) != b"ready\n":
            self._stop()
            raise RuntimeError("math-verify does not start; try `python -c 'import math_verify'`.")

    def _line(self, seconds):
        """Reads the child's next line; only its beginning if the time is up or the child ends."""
        deadline, line = time.monotonic() + seconds, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    return line
                part = self._process.stdout.read(64)
                if not part:
                    return line
                line += part
        return line

    def _stop(self):
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._process = None
