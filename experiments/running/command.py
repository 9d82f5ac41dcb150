"""How a command starts and ends: flags, one message for an error, exit codes, extras.

Exit codes: 0 done (also --help), 1 error, 2 bad flags or configuration, 75 stopped by a signal
after saving. A traceback comes only with --verbosity=1.
"""

import contextlib
import importlib.util
import itertools
import logging as python_logging
import math
import os
import pathlib
import re
import sys
import traceback

from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments.running import places

FAILED, BAD_FLAGS = 1, 2
CONFIG = ("--config", "-config")
PATHS = ("workdir", "out")  # flags that name files and folders to write
URL = r"[A-Za-z][\w+.-]+:/"
UNFIT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # surrogates: bytes that are not UTF-8
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # steer terminals
EXTRAS = {
    "serve": ("prometheus_client", "starlette", "uvicorn"),
    "grammar": ("llguidance",),
    "plots": ("matplotlib",),
    "tensorboard": ("tensorboardX",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
}
# What Python and its libraries say of a flag, and what is said instead.
PLAIN = (
    (r"Configuration is not available because of an earlier failure to load", "--config"),
    (r"\[Errno \d+\] (.*?): '(.*?)'", r"\2: \1"),
    (r"invalid literal for int\(\) with base 10: '.*?'", "it must be a whole number"),
    (r"could not convert string to float: '.*?'", "it must be a number"),
    (r"\('Non-boolean argument to boolean flag', '.*?'\)", "it must be true or false"),
    (r"Could not parse '(.*?)': SyntaxError.*", r"The configuration has no field '\1'."),
    (r"(?s)Error whilst parsing config file:.*\n(\w+: .*?)\s*$", r"\1"),
    (r"Failed to parse '.*?' as a ConfigDict: .*", "it is a section; set one of its fields"),
)


class ConfigError(app.UsageError):
    """The config cannot be used; exit code 2."""


def run(main, *, required=(), remote=()):
    """Parses the flags, calls `main()` and exits; the log shows this project's lines only.

    main: raises app.UsageError for settings that cannot be used, anything else for a failure.
    required: names of the flags that must be given; a sentence names those that are not.
    remote: which of the flags in PATHS may be URLs.
    """
    started = sys.modules["__main__"]
    started.__doc__ = manual(started)  # absl shows it
    logging.get_absl_handler().addFilter(
        lambda record: (
            record.levelno > python_logging.INFO or "site-packages" not in record.pathname
        )
    )
    app.run(lambda _: _guarded(main, remote), flags_parser=lambda argv: _parsed(argv, required))


def manual(module):
    """Returns a module's docstring without the part for readers of its code."""
    return (module.__doc__ or "").partition("\nDimensions:")[0].strip()


def exit_code(error):
    """Returns the exit code of an exception that ends a command."""
    return BAD_FLAGS if isinstance(error, app.UsageError) else FAILED


def check_path(name, path):
    """Refuses what would become a file or folder of a name that nobody meant.

    name: what to call it.    path: a path or URL.

    Raises:
      ConfigError: says what to do instead.
    """
    path = str(path)
    if not path:
        raise ConfigError(f"{name} is empty; give a path.")
    if UNFIT.search(path):
        raise ConfigError(
            f"{name}={path!r} holds a control character or a byte that is not UTF-8; give a path "
            "without."
        )
    if path.split("/")[0] == "~":  # shells leave it as it is behind a =
        raise ConfigError(f"{name}={path} begins with ~; write {name}=$HOME{path[1:]}")
    if re.match(f"{URL}(?!/)", path):
        raise ConfigError(f"{name}={path} is no URL; write {path.replace(':/', '://', 1)}")


def check_local(name, path):
    """Refuses what `check_path` refuses, and a URL: it would become a folder of that name.

    Raises:
      ConfigError: says what to do instead.
    """
    if re.match(URL, str(path)):
        raise ConfigError(
            f"{name}={path} is a URL, and this must be a path on a file system. For a bucket, use "
            "a local folder and copy it (gcloud storage rsync -r DIR gs://…), or mount the bucket "
            "(gcsfuse) and give the path of the mount."
        )
    check_path(name, path)


def check_out(path, *, folder):
    """Refuses an --out that cannot be written, before the work is done; a URL is not looked at.

    folder: whether it is to be a folder, which may be there; else a file, which is replaced.

    Raises:
      ConfigError: says why.
    """
    if re.match(URL, str(path)):
        return
    out = pathlib.Path(path)
    try:
        held = next(place for place in (out, *out.absolute().parents) if place.exists())
    except OSError as error:  # too long a name, a circle of links
        raise ConfigError(f"--out={path}: {error.strerror}.") from error
    if held != out and not held.is_dir():
        raise ConfigError(f"--out={path}: {held} is a file, not a folder.")
    if held == out and folder and not out.is_dir():
        raise ConfigError(f"--out={path} is a file; give a folder.")
    if held == out and not folder and not out.is_file():
        kind = "a folder" if out.is_dir() else "no regular file"
        raise ConfigError(f"--out={path} is {kind}; give a file.")
    if folder and (out / "metrics.jsonl").exists():
        raise ConfigError(f"--out={path} holds a run, which stays as it is; give another folder.")
    held = held if held.is_dir() else out.absolute().parent
    if not os.access(held, os.W_OK | os.X_OK):
        raise ConfigError(f"--out={path}: {held} cannot be written.")


@contextlib.contextmanager
def checking_config():
    """Turns an error about a value of the config, or a file that it names, into a ConfigError."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(_text(error)) from error


def installed(extra):
    """Whether the packages of an extra are there."""
    return all(importlib.util.find_spec(name) for name in EXTRAS[extra])


def need(extra, what="This"):
    """Raises ConfigError where an extra that `what` needs is not installed."""
    if not installed(extra):
        packages = " and ".join(EXTRAS[extra])
        raise ConfigError(f"{what} needs {packages}: pip install '.[{extra}]'.")


def with_files(arguments):
    """Returns arguments with the files of configs that ship in place of their names."""

    def found(before, argument):
        flag, equals, value = argument.partition("=")
        if equals and flag in CONFIG:
            return f"{flag}={places.config_file(value)}"
        return places.config_file(argument) if before in CONFIG else argument

    return [found(*pair) for pair in itertools.pairwise(["", *arguments])]


def _parsed(argv, required):
    argv = with_files(["--help" if argument == "-h" else argument for argument in argv])
    named = next((a.partition("=")[2] for a in argv if re.match("--?config=", a)), "")
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:  # one that could not be loaded says so when it is touched
            getattr(flags.FLAGS.config, "lock", None)
    except SystemExit as error:
        if message := _of_config_file(error, named):
            _stop(message, BAD_FLAGS)
        sys.exit(0)  # --help has written its text
    except Exception as error:  # a config is a program and may raise anything
        if message := _of_config_file(error, named):
            _stop(message, BAD_FLAGS)
        if isinstance(error, (AttributeError, KeyError)):  # ml_collections: a field set by flag
            _stop(unknown_field(str(error)), BAD_FLAGS)
        if isinstance(error, (flags.Error, ValueError, TypeError, OSError)):
            _stop(plain(str(error)), BAD_FLAGS)
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
    empty = [f"--{n}" for n in flags.FLAGS if flags.FLAGS[n].present and _is_empty(n)]
    if empty:
        _stop(f"{empty[0]} is empty; give a value or leave it out.", BAD_FLAGS)
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value if flags.FLAGS[name].present else None
        if isinstance(value, float) and not math.isfinite(value) and not name.startswith("config."):
            _stop(f"--{name}={value} must be finite.", BAD_FLAGS)
    if len(rest) > 1:
        _stop(f"Unexpected argument {rest[1]!r}; settings are flags, see --help.", BAD_FLAGS)
    return rest


def _is_empty(name):
    """Whether a flag was given an empty text that it does not have anyway; config fields may be."""
    value = flags.FLAGS[name].value
    empty = value == "" or (isinstance(value, list) and not any(value))
    return empty and value != flags.FLAGS[name].default and not name.startswith("config.")


def _of_config_file(error, named):
    """Returns a sentence for what went wrong in the file of --config, "" if that is elsewhere.

    named: the value of --config, a path and perhaps ":ARGUMENT".
    """
    path, _, argument = named.partition(":")
    while error is not None:  # what the libraries raise has the error of the file as its context
        if isinstance(error, SyntaxError):
            text = error.msg
            if path and error.filename is None:  # no text
                return f"{path}: {text}."
            lines = [error.lineno or 0] if _is_file(error.filename, path) else []
        else:
            text = " ".join(str(error).split())
            frames = traceback.walk_tb(error.__traceback__)
            lines = [n for frame, n in frames if _is_file(frame.f_code.co_filename, path)]
        if lines and re.search(r"Key .* does not exist", text):  # of ml_collections: it is locked
            text = unknown_field(text)
        elif lines and not isinstance(error, ValueError):
            text = f"{type(error).__name__}: {text}"
        if lines:
            return f"{path}, line {lines[-1]}: {text}"
        if re.search("has no attribute 'get_config'|object is not callable", text):
            return f"{path} has no function get_config."
        if text.startswith("get_config() takes 0"):
            return f"{path} takes no argument; leave out :{argument}."
        if text.startswith("get_config()"):
            return f"{path}: {text}."
        error = error.__context__
    return ""


def _is_file(name, path):
    return bool(name and path) and os.path.abspath(name) == os.path.abspath(path)


def plain(text):
    """Returns a sentence for what Python and its libraries say of a flag."""
    if missing := re.search(r"\[Errno 2\] No such file or directory: '([^']+)'", text):
        names = ", ".join(places.configs())
        return f"There is no file {missing[1]}; --config is a file, or a config by name: {names}."
    if "Path to config file is an empty string" in text:
        return "--config is empty; give a file."
    for raw, plain in PLAIN:
        text = re.sub(raw, plain, text)
    return text


def unknown_field(text):
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


def _guarded(main, remote):
    try:
        for name in PATHS:
            if name in flags.FLAGS and flags.FLAGS[name].present:
                check = check_path if name in remote else check_local
                given = flags.FLAGS[name].value
                for value in given if isinstance(given, list) else [given]:
                    check(f"--{name}", value)
        main()
    except Exception as error:
        code = exit_code(error)
        if code == FAILED and logging.get_verbosity() >= logging.DEBUG:
            raise
        _stop(_text(error), code)


def _text(error):
    """Returns what an exception says, an OSError without its number."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}."
    return str(error) or repr(error)


def visible(text):
    """Returns a text without characters that steer a terminal: their escapes instead."""
    return UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def _stop(message, code):
    sys.stderr.write(f"error: {visible(message)}\n")
    sys.exit(code)
