"""Every field of a config with its default, what it may be and what it means, read from the source.

The meaning is the comment beside or above the assignment in experiments/configs/common.py; what a
number may be, and what to use instead, is its row in experiments/configs/ranges.py; which texts an
option takes is what the code that checks it knows.
"""

import ast
import dataclasses
import io
import tokenize

from ml_collections import ConfigDict

from agents import effects, prompts
from experiments.configs import common, ranges
from experiments.running import backends, fitting, places, sessions, trackers
from experiments.warmstarting import conversations
from flow_grpo_jax import data, loss, packing, scoring, update
from models import decoder
from models.attention import kernels
from tools import google_search, toolbox
from tools.sandbox import selftest

SOURCE = places.CONFIGS / "common.py"
NAMED = "backends.NAME."  # the fields of all backends
CHOICES = {
    "backends.NAME.kind": (*backends.ENGINE, "server"),
    "batch.layout": packing.LAYOUTS,
    "data.bad_rows": data.OPTIONS["bad_rows"],
    "data.format": data.OPTIONS["format"],
    "data.held_out_format": ("", *data.OPTIONS["format"]),
    "data.index_base": data.OPTIONS["index_base"],
    "data.too_long": fitting.CHOICES,
    "engine.layers": sessions.LAYERS,
    "loss.old_logprobs": update.OLD_LOGPROBS,
    "loss.variant": loss.VARIANTS,
    "model.attention": ("auto", *kernels.KERNELS),
    "model.dtype": sessions.DTYPES,
    "model.remat": decoder.REMAT,
    "optim.moment_dtype": sessions.DTYPES,
    **{f"reward.{kind}": names for kind, names in scoring.DECIDERS.items()},
    "rollout.prompts": prompts.SETS,
    "tools.google_search.engine": google_search.ENGINES,
    "tools.names": toolbox.MAKERS,
    "tools.python_coder.sandbox": selftest.LEVELS,
    "trackers": trackers.NAMES,
    "warmstart.bad_rows": conversations.CHOICES,
    "warmstart.modules": effects.ROLES,
    "warmstart.replies": conversations.REPLIES,
    "warmstart.too_long": conversations.CHOICES,
}
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
        allowed = _choices(name, value) or _allowed(value, allowed)
        found.setdefault(name, Field(name, _shown(value), allowed, meaning))
    return list(found.values())


def comments(source):
    """Returns {dotted field: its comment} of `base` and of the functions that make its sections."""
    beside, alone = _comments(source)
    functions = {n.name: n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
    found = {}
    for name, prefix in _sections(functions).items():
        shared = {}  # name of a dict -> {key: comment}
        for node in ast.walk(functions[name]):
            if not isinstance(node, ast.Assign):
                continue
            inside = list(ast.walk(node.value))
            keys = {k.value for part in inside for k in getattr(part, "keys", ())}
            told = dict.fromkeys(keys, _comment(node, beside, alone))
            for part in inside:
                told |= shared.get(getattr(part, "id", ""), {})
            target = ast.unparse(node.targets[0])
            if target.split(".")[0] != "c":
                shared[target] = told
                continue
            field = f"{prefix}{target.removeprefix('c').removeprefix('.')}".removesuffix(".")
            told = {f"{field}.{key}": text for key, text in told.items()}
            found |= told or {field: _comment(node, beside, alone)}
    return {field: text for field, text in found.items() if text}


def _sections(functions):
    """Returns {function: prefix of its fields} of `base` and of those that it calls."""
    found = {"base": ""}
    for node in ast.walk(functions["base"]):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            name, place = ast.unparse(node.value.func), ast.unparse(node.targets[0])[2:]
            if name in functions:
                found[name] = NAMED if place.startswith("backends") else f"{place}."
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "c.update":
            found[ast.unparse(node.args[0].func)] = ""  # sections of several names at once
    return found


def _comment(node, beside, alone):
    """Returns the comments above a statement and beside it as one text."""
    lines = [beside[n] for n in range(node.lineno, node.end_lineno + 1) if n in beside]
    above = node.lineno - 1
    while above in alone:
        lines.insert(0, alone[above])
        above -= 1
    return " ".join(lines)


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


def _choices(name, value):
    """Returns a clause with the texts that a field takes, "" where they are not fixed."""
    texts = ", ".join(f"`{text}`" if text else '""' for text in CHOICES.get(name, ()))
    return texts and f"{'several' if isinstance(value, tuple) else 'one'} of {texts}"


def _allowed(value, allowed):
    if isinstance(value, tuple):
        return f"several, each {allowed}" if _is_number(value) and value else "several"
    if _is_number(value):
        instead = "" if allowed.instead == ranges.GOOD_START else f"; {allowed.instead}"
        return f"{KINDS[type(value)]}, {allowed}{instead}"
    return KINDS.get(type(value), "fields of your own")
