"""How a command starts and ends: flags, one message for an error, exit codes, extras.

Exit codes: 0 done (also --help), 1 error, 2 bad flags or configuration, 75 stopped by a signal
after saving. A traceback comes only with --verbosity=1.
"""

import contextlib
import importlib.util
import logging as python_logging
import re
import sys

from absl import app, flags, logging

FAILED, BAD_FLAGS, STOPPED = 1, 2, 75
EXTRAS = {
    "serve": ("prometheus_client", "starlette", "uvicorn"),
    "grammar": ("llguidance",),
}


class ConfigError(app.UsageError):
    """The config cannot be used; exit code 2."""


def run(main, *, required=()):
    """Parses the flags, calls `main()` and exits; the log shows this project's lines only.

    main: raises app.UsageError for settings that cannot be used, anything else for a failure.
    required: names of the flags that must be given; a sentence names those that are not.
    """
    logging.get_absl_handler().addFilter(
        lambda record: (
            record.levelno > python_logging.INFO or "site-packages" not in record.pathname
        )
    )
    app.run(lambda _: _guarded(main), flags_parser=lambda argv: _parsed(argv, required))


def exit_code(error):
    """Returns the exit code of an exception that ends a command."""
    return BAD_FLAGS if isinstance(error, app.UsageError) else FAILED


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
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:  # one that could not be loaded says so when it is touched
            getattr(flags.FLAGS.config, "lock", None)
    except SystemExit:  # --help has written its text
        sys.exit(0)
    except (flags.Error, ValueError, TypeError, OSError) as error:
        # ml_collections tells of an error in the file by its whole traceback.
        head, _, traceback = str(error).partition("Traceback (most recent call last)")
        _stop(_plain(" ".join([head.strip(), *traceback.strip().splitlines()[-1:]])), BAD_FLAGS)
    except (AttributeError, KeyError) as error:  # ml_collections: a field set by flag or by file
        _stop(_unknown_field(str(error)), BAD_FLAGS)
    missing = [f"--{name}" for name in required if not flags.FLAGS[name].present]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        _stop(f"{' and '.join(missing)} {verb} missing; see --help.", BAD_FLAGS)
    if len(rest) > 1:
        _stop(f"Unexpected argument {rest[1]!r}; settings are flags, see --help.", BAD_FLAGS)
    return rest


def _plain(text):
    """Returns a sentence for what Python and its libraries say of a flag."""
    if missing := re.search(r"\[Errno 2\] No such file or directory: '([^']+)'", text):
        return f"There is no file {missing[1]}; see --config."
    for raw, plain in (
        (r"Configuration is not available because of an earlier failure to load", "--config"),
        (r"\[Errno \d+\] (.*?): '(.*?)'", r"\2: \1"),
        (r"invalid literal for int\(\) with base 10: '.*?'", "it must be a whole number"),
        (r"could not convert string to float: '.*?'", "it must be a number"),
    ):
        text = re.sub(raw, plain, text)
    return text


def _unknown_field(text):
    """Returns one sentence for the text of ml_collections, which lists all fields."""
    key = re.search(r'Key "(\w+)" does not exist', text)  # set in a file
    key = key or re.match(r"\W*(\w+)\W*(?:nDid|$)", text)  # by a flag: a quoted, escaped KeyError
    meant = re.search(r'Did you mean "(\w+)"', text)
    name = repr(key.group(1)) if key else text
    return f"The configuration has no field {name}." + (
        f" Did you mean {meant.group(1)!r}?" if meant else ""
    )


def _guarded(main):
    try:
        main()
    except Exception as error:
        code = exit_code(error)
        if code == FAILED and logging.get_verbosity() >= logging.DEBUG:
            raise
        _stop(error if str(error) else repr(error), code)


def _stop(message, code):
    sys.stderr.write(f"error: {message}\n")
    sys.exit(code)
