"""Every field of a config with its default, what it may be and what it means, read from the source.

The meaning is the comment beside or above the assignment in experiments/configs/common.py; what a
number may be, and what to use instead, is its row in experiments/configs/ranges.py.
"""

import ast
import dataclasses
import io
import tokenize

from ml_collections import ConfigDict

from experiments.configs import common, ranges
from experiments.running import places

SOURCE = places.CONFIGS / "common.py"
PREFIXES = {"base": "", "backend": "backends.NAME.", "tools": "tools."}  # function -> its fields
NAMED = "backends.NAME."
KINDS = {bool: "true or false", str: "text", int: "whole number", float: "number"}


@dataclasses.dataclass(frozen=True)
class Field:
    """name: dotted.    default: as in Python.    allowed: a clause.    meaning: clauses, or ""."""

    name: str
    default: str
    allowed: str
    meaning: str


def collect():
    """Returns the Fields of `common.base()` in order; those of all backends once, as NAMED."""
    told, found = comments(SOURCE.read_text(encoding="utf-8")), {}
    for name, value in _flat(common.base()):
        allowed = ranges.of(name)
        if name.startswith("backends."):
            name = NAMED + name.split(".", 2)[2]
        meaning = told.get(name, "")
        found.setdefault(name, Field(name, _shown(value), _allowed(value, allowed), meaning))
    return list(found.values())


def comments(source):
    """Returns {dotted field: its comment} of the functions in PREFIXES."""
    beside, alone = _comments(source)
    found, shared = {}, {}
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef) or function.name not in PREFIXES:
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.Assign):
                continue
            lines = range(node.lineno, node.end_lineno + 1)
            text = " ".join(beside[line] for line in lines if line in beside)
            above = node.lineno - 1
            while above in alone:
                text = f"{alone[above]} {text}".strip()
                above -= 1
            target = ast.unparse(node.targets[0])
            keys = {k.value for d in ast.walk(node.value) for k in getattr(d, "keys", ())}
            for name in (n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)):
                for key, told in shared.get(name, {}).items():
                    found[f"{PREFIXES[function.name]}{target.removeprefix('c.')}.{key}"] = told
            if not target.startswith("c"):
                shared[target] = dict.fromkeys(keys, text)
                continue
            field = PREFIXES[function.name] + target.removeprefix("c").removeprefix(".")
            found |= {
                ".".join(filter(None, (field.rstrip("."), key))): text for key in keys if text
            }
            if text and not keys:
                found[field] = text
    return found


def _comments(source):
    """Returns {line: comment} of comments beside code, and of those alone on their lines."""
    beside, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            kind = alone if token.line.strip().startswith("#") else beside
            kind[token.start[0]] = token.string.strip("# ")
    return beside, alone


def _flat(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _flat(value, f"{prefix}{name}.") if len(value) else [(prefix + name, {})]
        else:
            yield prefix + name, value


def _is_number(value):
    numbers = value if isinstance(value, tuple) else (value,)
    return all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)


def _shown(value):
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:_}" if value >= 10_000 else str(value)
    return repr(value)


def _allowed(value, allowed):
    if isinstance(value, tuple):
        return f"several, each {allowed}" if _is_number(value) and value else "several"
    if _is_number(value):
        instead = "" if allowed.instead == ranges.GOOD_START else f"; {allowed.instead}"
        return f"{KINDS[type(value)]}, {allowed}{instead}"
    return KINDS.get(type(value), "fields of your own")
