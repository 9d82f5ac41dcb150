"""Runs one program; started by `python_coder` as a script of its own, never imported.

Arguments: descriptor for the error text, CPU seconds, bytes of memory, then the directories of
installed packages. The program is read from standard input, which is at its end afterwards.
"""

import builtins
import os
import resource
import sys
import warnings

FILE_BYTES = 16 * 2**20
OPEN_FILES = 64
ERROR_CHARACTERS = 500
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SIGKILL = 9  # the modules signal and types would add a third to the start-up time


def restrict(*, cpu_seconds, memory_bytes):
    """Limits this process and all that it starts; limits are hard and cannot be raised again."""
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for option, value in ((PR_SET_PDEATHSIG, SIGKILL), (PR_SET_NO_NEW_PRIVS, 1)):
        if prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3):
            raise OSError(ctypes.get_errno(), f"prctl({option}) was refused")
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        resource.setrlimit(limit, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))


def run(source):
    """Runs the program as `__main__`.

    Returns:
      (exit status, error text); the text is empty if there is nothing to say.
    """
    module = type(sys)("__main__")
    module.__builtins__ = builtins
    sys.modules["__main__"] = module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string is no result
            code = compile(source.decode("utf-8"), "<program>", "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 - the purpose of this process
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0, ""
        return 1, str(stop.code)
    except BaseException as error:  # noqa: BLE001 - whatever the program raised is its result
        return 1, explain(error)
    return 0, ""


def explain(error):
    """The last line of the traceback, and the last line of the program that it passed through."""
    is_syntax = isinstance(error, SyntaxError)
    line = error.lineno if is_syntax else None
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<program>":
            line = frame.tb_lineno
        frame = frame.tb_next
    error.__traceback__ = frame = None  # frees what the program's frames hold: memory may be short
    try:
        message = str(error.msg if is_syntax else error)[:ERROR_CHARACTERS]
    except BaseException:  # noqa: BLE001 - __str__ may be the program's own
        message = ""
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return text if line is None else f"{text} (line {line})"


def main():
    report, cpu_seconds, memory_bytes = map(int, sys.argv[1:4])
    sys.path += sys.argv[4:]
    sys.argv = ["program.py"]
    builtins.exit = builtins.quit = sys.exit  # they come from the site module, which is left out
    sys.stdout.reconfigure(errors="backslashreplace")
    os.set_inheritable(report, False)
    with open(0, "rb", closefd=False) as standard_input:
        source = standard_input.read()
    restrict(cpu_seconds=cpu_seconds, memory_bytes=memory_bytes)
    status, text = run(source)
    if text:
        os.write(report, text.encode("utf-8", "backslashreplace"))
    sys.exit(status)


if __name__ == "__main__":
    main()
