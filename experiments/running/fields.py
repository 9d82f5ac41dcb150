"""Every field of a config is known, of its default's type (configs/common.py) and in its range."""

from ml_collections import ConfigDict

from experiments.configs import common, ranges
from experiments.running import command, dotted


def check(config):
    """Refuses a config with a field too many, too few, of another type than its default, or with
    a number outside its range (configs/ranges.py).

    A locked ConfigDict refuses most of these where they are written. It lets pass: a section or a
    tuple that is replaced as a whole, None, and True for a whole number. (True for a
    float it stores as 1.0.)

    Raises:
      ConfigError: names all such fields.
    """
    problems = list(_problems(config, common.base(), ""))
    if problems:
        raise command.ConfigError(
            f"{' '.join(problems)} experiments/configs/common.py has all fields and their types."
        )
    if problems := list(ranges.problems(dotted.flat(config.to_dict()))):
        raise command.ConfigError(" ".join(problems))


def _problems(values, defaults, prefix):
    missing = [name for name in defaults if name not in values and prefix + name not in common.FREE]
    if missing:
        yield (
            f"The section {prefix[:-1]!r} lacks {', '.join(missing)}: set single fields instead of "
            "replacing it."
        )
    for name in sorted(values):
        full = prefix + name
        if full in common.FREE:
            continue
        if name not in defaults:
            yield f"There is no field {full}."
        elif isinstance(defaults[name], ConfigDict) and not isinstance(values[name], ConfigDict):
            yield f"{full}={values[name]!r} must be a section with fields."
        elif isinstance(defaults[name], ConfigDict):
            yield from _problems(values[name], defaults[name], f"{full}.")
        elif full in common.MIXED:
            items = values[name]
            if not (isinstance(items, tuple) and all(type(item) in (int, str) for item in items)):
                yield f"{full}={items!r} must be a tuple, each item a text or a whole number."
        elif full in common.WHOLE:
            if not isinstance(values[name], tuple) or _mismatch(values[name], (0,)):
                yield f"{full}={values[name]!r} must be a tuple of whole numbers, such as (2, 3)."
        elif wanted := _mismatch(values[name], defaults[name]):
            yield f"{full}={values[name]!r} must be {wanted}."


def _mismatch(value, default):
    """Returns what a value must be instead, or "" if it has the type of the default."""
    if isinstance(default, tuple):
        item = default[0] if default else ""
        fits = isinstance(value, tuple) and not any(_mismatch(part, item) for part in value)
        return "" if fits else f"a tuple, each item {_mismatch(None, item)}"
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    kinds = (int, float) if isinstance(default, float) else (type(default),)
    return "" if type(value) in kinds else names[type(default)]
