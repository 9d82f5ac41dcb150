"""How a command starts and ends: flags, one message for an error, exit codes.

Exit codes: 0 done (also --help), 1 error, 2 bad flags or configuration. A traceback comes only with
--verbosity=1.
"""

import sys

from absl import app, flags, logging

FAILED, BAD_FLAGS = 1, 2


def run(main, *, required=()):
    """Parse the flags, call `main(argv)` and exit.

    main: raises app.UsageError for settings that cannot be used, anything else for a failure.
    required: names of the flags that must be given.
    """
    flags.mark_flags_as_required(required)
    app.run(lambda argv: _guarded(main, argv), flags_parser=_parsed)


def _parsed(argv):
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:  # one that could not be loaded says so when it is touched
            getattr(flags.FLAGS.config, "lock", None)
    except SystemExit:  # --help has written its text
        sys.exit(0)
    except (flags.Error, ValueError, TypeError, OSError) as error:
        _stop(error, BAD_FLAGS)
    except (AttributeError, KeyError) as error:  # ml_collections: --config.field=value
        _stop(f"The configuration has no field {error}.", BAD_FLAGS)
    if len(rest) > 1:
        _stop(f"Unexpected argument {rest[1]!r}; settings are flags, see --help.", BAD_FLAGS)
    return rest


def _guarded(main, argv):
    try:
        main(argv)
    except app.UsageError as error:
        _stop(error, BAD_FLAGS)
    except Exception as error:
        if logging.get_verbosity() >= logging.DEBUG:
            raise
        _stop(error if str(error) else repr(error), FAILED)


def _stop(message, code):
    sys.stderr.write(f"error: {message}\n")
    sys.exit(code)
