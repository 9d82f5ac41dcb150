"""The points of a sweep: configs that differ in a few fields, each checked before anything starts.

    optim.lr=1e-6,3e-6;seed=0:3      six points; A:B and A:B:STEP count as Python's range does

Commas and semicolons inside brackets or quotes belong to a value: engine.stop_ids=(1,2),(3,)
Quotes around a whole value are no part of it: tracking.run_name="a,b"
"""

import dataclasses
import hashlib
import itertools
import math
import re

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.running import command, limits

MOST = 1_000  # points
NAME_CHARACTERS = 80
RANGE = re.compile(r"(-?\d+):(-?\d+)(?::([1-9]\d*))?")
OPENING, CLOSING, QUOTES = "([{", ")]}", "'\""


@dataclasses.dataclass(frozen=True)
class Point:
    """name: of its run folder. changes: {field: text} of the config. config: resolved, locked."""

    name: str
    changes: dict
    config: ConfigDict


def make(file, changes, sweep):
    """Returns the `Point`s of a sweep, in the order of its text, the last field fastest.

    Args:
      file: of the config, with an argument perhaps, as --config.
      changes: {field: value} that the command line sets for all.
      sweep: text as above.

    Raises:
      ConfigError: no training could start with one of them; or two are the same.
    """
    values = parse(sweep)
    if both := [field for field in values if field in changes]:
        raise command.ConfigError(f"{both[0]} stands in --sweep and as --config.{both[0]}.")
    found, names = [], {}
    for combination in itertools.product(*values.values()):
        own = dict(zip(values, combination, strict=True))
        text = ";".join(f"{field}={value}" for field, value in own.items())
        config = resolved(file, changes | own, f"--sweep point {text}")
        name = _name({field: _value(config, field) for field in own})
        if name in names:
            raise command.ConfigError(f"Points of --sweep are the same: {names[name]} and {text}.")
        names[name] = text
        found.append(Point(name, changes | own, config))
    return found


def parse(sweep):
    """Returns {field: [texts of its values]} of the text of a sweep."""
    found = {}
    for part in filter(None, map(str.strip, _split(sweep, ";"))):
        field, equals, texts = (piece.strip() for piece in part.partition("="))
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", field):
            raise command.ConfigError(
                f"--sweep: {part!r} must be FIELD=VALUE,VALUE,…; fields are split by semicolons, "
                "such as optim.lr=1e-6,3e-6;seed=0:3"
            )
        if field in found:
            raise command.ConfigError(f"--sweep names {field} twice.")
        found[field] = [*itertools.chain(*map(_expand, _split(texts, ",")))]
        if not found[field] or "" in found[field]:
            raise command.ConfigError(f"--sweep: {part!r} has an empty value or range.")
        if (count := math.prod(map(len, found.values()))) > MOST:
            raise command.ConfigError(f"--sweep has {count:,} points or more; at most {MOST:,}.")
    if not found:
        raise command.ConfigError("--sweep names no field.")
    return found


def resolved(file, changes, what):
    """Returns the config that a training with these changes reads, checked as that checks it.

    what: whose changes they are, for the message.

    Raises:
      ConfigError: no training could start with it.
    """
    values, line = flags.FlagValues(), ["", f"--config={file}", *overrides(changes)]
    how = dict(lock_config=True, flag_values=values, sys_argv=line)
    config_flags.DEFINE_config_file("config", **how)
    try:
        values(line)
        limits.check(values.config)
    except (AttributeError, KeyError) as error:  # ml_collections: a field that is not there
        raise command.ConfigError(f"{what}: {command.unknown_field(str(error))}") from error
    except (command.ConfigError, flags.Error, TypeError, ValueError) as error:
        raise command.ConfigError(f"{what}: {command.plain(str(error))}") from error
    return values.config


def overrides(changes):
    """Returns the flags that set fields of the config."""
    return [f"--config.{field}={value}" for field, value in changes.items()]


def _split(text, mark):
    """Splits a text at a mark that stands outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES:
            quote = letter
        elif letter in OPENING:
            depth += 1
        elif letter in CLOSING:
            depth -= 1
        if letter == mark and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _expand(text):
    """Returns the values of a text: those of a range, else itself without quotes around it."""
    text = text.strip()
    if len(text) > 1 and text[0] in QUOTES and text.find(text[0], 1) == len(text) - 1:
        return [text[1:-1]]
    if not (found := RANGE.fullmatch(text)):
        return [text]
    start, stop, step = int(found[1]), int(found[2]), int(found[3] or 1)
    if (count := -(-(stop - start) // step)) > MOST:  # a range may be too long to have a length
        raise command.ConfigError(f"--sweep: {text} has {count:,} values; at most {MOST:,}.")
    return [*map(str, range(start, stop, step))]


def _value(config, field):
    for part in field.split("."):
        config = config[part]
    return config


def _name(values):
    """Returns the name of a run folder, by the values themselves: 1e-6 and 0.000001 are one."""
    shown = lambda value: "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
    whole = ",".join(f"{field}={shown(value)}" for field, value in values.items())
    name = re.sub(r"[^\w.,=+-]+", "_", whole, flags=re.ASCII)[:NAME_CHARACTERS]
    if name == whole:
        return name
    return f"{name}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
