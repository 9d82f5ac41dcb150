"""How a command starts and ends: flags, one message for an error, exit codes, extras.

Exit codes: 0 done (also --help), 1 error, 2 bad flags or configuration, 75 stopped by a signal
after saving. A traceback comes only with --verbosity=1.
"""

import contextlib
import importlib.util
import logging as python_logging
import os
import re
import sys
import traceback

from absl import app, flags, logging
from ml_collections import ConfigDict

FAILED, BAD_FLAGS = 1, 2
LOCAL = ("workdir", "out")  # flags that name files and folders to write
EXTRAS = {
    "serve": ("prometheus_client", "starlette", "uvicorn"),
    "grammar": ("llguidance",),
}


class ConfigError(app.UsageError):
    """The config cannot be used; exit code 2."""


def run(main, *, required=(), remote=()):
    """Parses the flags, calls `main()` and exits; the log shows this project's lines only.

    main: raises app.UsageError for settings that cannot be used, anything else for a failure.
    required: names of the flags that must be given; a sentence names those that are not.
    remote: which of the flags in LOCAL may be URLs.
    """
    logging.get_absl_handler().addFilter(
        lambda record: (
            record.levelno > python_logging.INFO or "site-packages" not in record.pathname
        )
    )
    here = [name for name in LOCAL if name not in remote]
    app.run(lambda _: _guarded(main, here), flags_parser=lambda argv: _parsed(argv, required))


def exit_code(error):
    """Returns the exit code of an exception that ends a command."""
    return BAD_FLAGS if isinstance(error, app.UsageError) else FAILED


def check_local(name, path):
    """Refuses a path that is a URL, or empty: it would become a folder of that name.

    name: what to call it.

    Raises:
      ConfigError: says what to do instead.
    """
    if not str(path):
        raise ConfigError(f"{name} is empty; give a path.")
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
        raise ConfigError(
            f"{name}={path} is a URL, and this must be a path on a file system. For a bucket, use "
            "a local folder and copy it (gcloud storage rsync -r DIR gs://…), or mount the bucket "
            "(gcsfuse) and give the path of the mount."
        )


@contextlib.contextmanager
def checking_config():
    """Turns a ValueError about a value of the config into a ConfigError."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


def installed(extra):
    """Whether the packages of an extra are there."""
    return all(importlib.util.find_spec(name) for name in EXTRAS[extra])


def need(extra):
    """Raises ConfigError where an extra is not installed."""
    if not installed(extra):
        raise ConfigError(f"This needs {' and '.join(EXTRAS[extra])}: pip install '.[{extra}]'.")


def _parsed(argv, required):
    named = next((a.partition("=")[2] for a in argv if re.match("--?config=", a)), "")
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:  # one that could not be loaded says so when it is touched
            getattr(flags.FLAGS.config, "lock", None)
    except SystemExit:  # --help has written its text
        sys.exit(0)
    except Exception as error:  # a config is a program and may raise anything
        if message := _of_config_file(error, named):
            _stop(message, BAD_FLAGS)
        if isinstance(error, (AttributeError, KeyError)):  # ml_collections: a field set by flag
            _stop(_unknown_field(str(error)), BAD_FLAGS)
        if isinstance(error, (flags.Error, ValueError, TypeError, OSError)):
            _stop(_plain(str(error)), BAD_FLAGS)
        raise
    if named and not isinstance(flags.FLAGS.config, ConfigDict):
        kind = type(flags.FLAGS.config).__name__
        _stop(
            f"get_config() of {named} returns {kind}, no config: begin with "
            "`c = common.base()` and end with `return c`.",
            BAD_FLAGS,
        )
    missing = [f"--{name}" for name in required if not flags.FLAGS[name].present]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        _stop(f"{' and '.join(missing)} {verb} missing; see --help.", BAD_FLAGS)
    if len(rest) > 1:
        _stop(f"Unexpected argument {rest[1]!r}; settings are flags, see --help.", BAD_FLAGS)
    return rest


def _of_config_file(error, named):
    """Returns a sentence for what went wrong in the file of --config, "" if that is elsewhere.

    named: the value of --config, a path and perhaps ":ARGUMENT".
    """
    path, _, argument = named.partition(":")
    while error is not None:  # what the libraries raise has the error of the file as its context
        if isinstance(error, SyntaxError):
            text = error.msg
            lines = [error.lineno or 0] if _is_file(error.filename, path) else []
        else:
            text = str(error)
            frames = traceback.walk_tb(error.__traceback__)
            lines = [n for frame, n in frames if _is_file(frame.f_code.co_filename, path)]
        if lines and re.search(r"Key .* does not exist", text):  # of ml_collections: it is locked
            text = _unknown_field(text)
        elif lines and not isinstance(error, ValueError):
            text = f"{type(error).__name__}: {text}"
        if lines:
            return f"{path}, line {lines[-1]}: {text}"
        if "has no attribute 'get_config'" in text:
            return f"{path} has no function get_config."
        if text.startswith("get_config() takes 0"):
            return f"{path} takes no argument; leave out :{argument}."
        if text.startswith("get_config()"):
            return f"{path}: {text}."
        error = error.__context__
    return ""


def _is_file(name, path):
    return bool(name and path) and os.path.abspath(name) == os.path.abspath(path)


def _plain(text):
    """Returns a sentence for what Python and its libraries say of a flag."""
    if missing := re.search(r"\[Errno 2\] No such file or directory: '([^']+)'", text):
        return f"There is no file {missing[1]}; see --config."
    for raw, plain in (
        (r"Configuration is not available because of an earlier failure to load", "--config"),
        (r"\[Errno \d+\] (.*?): '(.*?)'", r"\2: \1"),
        (r"invalid literal for int\(\) with base 10: '.*?'", "it must be a whole number"),
        (r"could not convert string to float: '.*?'", "it must be a number"),
        (r"\('Non-boolean argument to boolean flag', '.*?'\)", "it must be true or false"),
        (r"Failed to parse '.*?' as a ConfigDict: .*", "it is a section; set one of its fields"),
    ):
        text = re.sub(raw, plain, text)
    return text


def _unknown_field(text):
    """Returns one sentence for the text of ml_collections, which lists all fields."""
    if below := re.search(r"Attempting to lookup: ([\w.]+)\.(\w+)", text):
        return f"{below[1]} is one value; it has no field {below[2]!r}."
    key = re.search(r'Key "(\w+)" does not exist', text)  # set in a file
    key = key or re.match(r"\W*(\w+)\W*(?:nDid|$)", text)  # by a flag: a quoted, escaped KeyError
    meant = re.search(r'Did you mean "(\w+)"', text)
    name = repr(key.group(1)) if key else text
    return f"The configuration has no field {name}." + (
        f" Did you mean {meant.group(1)!r}?" if meant else ""
    )


def _guarded(main, here):
    try:
        for name in here:
            if name in flags.FLAGS and flags.FLAGS[name].present:
                check_local(f"--{name}", flags.FLAGS[name].value)
        main()
    except Exception as error:
        code = exit_code(error)
        if code == FAILED and logging.get_verbosity() >= logging.DEBUG:
            raise
        if isinstance(error, OSError) and error.strerror and error.filename:
            _stop(f"{error.filename}: {error.strerror}.", code)
        _stop(error if str(error) else repr(error), code)


def _stop(message, code):
    sys.stderr.write(f"error: {message}\n")
    sys.exit(code)
