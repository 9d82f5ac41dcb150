"""Runs one program inside the process forked and restricted for it."""

import atexit
import builtins
import contextlib
import gc
import linecache
import os
import sys
import threading
import traceback
import warnings

SOURCE = 3  # descriptor of the program's text; the explanation of its end is written behind it
EXPLANATION_BYTES = 2000
MESSAGE_CHARACTERS = 500
FRAMES = 6  # of a traceback, the innermost ones
NAME = "<program>"


def prepare():
    """Prepares what all programs find, once before the first fork."""
    builtins.exit = builtins.quit = sys.exit  # they come from the site module, which is left out
    sys.stdout.reconfigure(errors="backslashreplace")
    sys.argv = ["program.py"]
    atexit._clear()


def run():
    """Runs the program at SOURCE as `__main__` and ends the process."""
    gc.enable()
    size = os.fstat(SOURCE).st_size
    source = os.pread(SOURCE, size, 0).decode("utf-8")
    if "random" in source:  # else it is not worth half a millisecond
        _reseed()
    status, explanation = _execute(source)
    for end in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
        try:
            end()
        except BaseException as error:  # noqa: BLE001 - the program's own, at its end
            status, explanation = status or 1, explanation or _explain(error)
    if explanation:
        with contextlib.suppress(OSError):  # the program closed it
            os.pwrite(SOURCE, _fitting(explanation), size)
    os._exit(status)  # without taking apart what the helper imported, which costs more than a fork


def _reseed():
    """Reseeds generators that would give all programs the same numbers."""
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()


def _execute(source):
    """Returns (exit status, explanation); the explanation is empty if there is nothing to say."""
    module = type(sys)("__main__")
    module.__builtins__ = builtins
    sys.modules["__main__"] = module
    linecache.cache[NAME] = (len(source), None, source.splitlines(keepends=True), NAME)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string is no result
            code = compile(source, NAME, "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 - the purpose of this process
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 0xFF, ""
        return 1, str(stop.code)
    except BaseException as error:  # noqa: BLE001 - whatever the program raised is its result
        if isinstance(error, MemoryError):
            module.__dict__.clear()
        return 1, _explain(error)
    return 0, ""


def _explain(error):
    """Returns the traceback as Python prints it, from the program on, innermost frames only."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != NAME:
        trace = trace.tb_next
    try:
        traceback.clear_frames(trace)  # frees their objects: memory may be short
        told = traceback.TracebackException(type(error), error, trace, limit=-FRAMES, compact=True)
        *frames, last = told.format()
        if len(last) > MESSAGE_CHARACTERS:
            last = last[:MESSAGE_CHARACTERS] + "...\n"
        return "".join([*frames, last]).rstrip()
    except BaseException:  # noqa: BLE001 - its methods are the program's own
        return type(error).__name__


def _fitting(text):
    """Returns the first and the last bytes of a text that is too long."""
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= EXPLANATION_BYTES:
        return encoded
    half = EXPLANATION_BYTES // 2 - 3
    return encoded[:half] + b"\n...\n" + encoded[-half:]
