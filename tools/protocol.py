"""The tool protocol: data that describes a tool to the planner, and one function that runs it.

A tool's `run` takes keyword arguments and returns text, or an `Ask` to have the frozen model
answer. It raises `ToolError`, whose text the model is shown, for the model's mistakes; any other
exception is a defect of the tool or the machine, not the model's fault.

Texts from elsewhere pass through `clean` once: results of all tools in `call`, JSON bodies in
`http_client.loads`, replies of remote models in `agents.backends.server`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

TYPES = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}

# C0 and C1 without those that Python counts as blanks (tab, line feed, NEL, ...), and DEL.
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


class ToolError(Exception):
    """A call that failed through the caller's fault. Its text is shown to the model."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """A tool's request that the frozen model answer this prompt."""

    prompt: str


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One keyword argument of a tool.

    name: a Python identifier.
    type: "str", "int", "float" or "bool".
    description: one line for the model.
    """

    name: str
    type: str
    description: str

    def __post_init__(self):
        if self.type not in TYPES:
            raise ValueError(
                f"Parameter {self.name!r} has type {self.type!r}; use one of {', '.join(TYPES)}."
            )


@dataclasses.dataclass(frozen=True)
class Tool:
    """A tool as the planner and the executor see it.

    name: a Python identifier, the name that the planner writes.
    description: its use, for the model.
    parameters: its keyword arguments; all of them are required.
    limits: its limits, for the model.
    demo: one command that works, for the model.
    run: keyword arguments only; returns text or an Ask, raises ToolError. Safe in many threads.
    seconds: deadline of one call.
    facts: JSON-able findings about the machine, for a run's records.
    probe: raises if the tool cannot be used, such as for a service that does not answer; None where
      nothing can go wrong.
    remote: whether its answers come from elsewhere and may change; `tools.recording` keeps those.
    """

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    limits: str
    demo: str
    run: Callable[..., str | Ask]
    seconds: float
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    probe: Callable[[], None] | None = None
    remote: bool = False


def call(tool: Tool, arguments: Mapping[str, Any]) -> str | Ask:
    """Runs a tool after its arguments were checked against its parameters.

    Args:
      tool: the tool.
      arguments: argument name -> value, as parsed from the model's command.

    Returns:
      What `tool.run` returns, its text `clean`.

    Raises:
      ToolError: an argument is unknown, missing or of another type, or the tool said so.
    """
    expected = {parameter.name: parameter for parameter in tool.parameters}
    problems = [f"unknown argument {name!r}" for name in arguments if name not in expected]
    for name, parameter in expected.items():
        if name not in arguments:
            problems.append(f"missing argument {name!r}")
        elif not _fits(arguments[name], parameter.type):
            given = type(arguments[name]).__name__
            problems.append(f"argument {name!r} must be {parameter.type}, not {given}")
    if problems:
        raise ToolError(f"{tool.name}: {'; '.join(problems)}. Example: {tool.demo}")
    try:
        answer = tool.run(**arguments)
    except ToolError as error:
        raise ToolError(clean(str(error))) from error
    return Ask(clean(answer.prompt)) if isinstance(answer, Ask) else clean(answer)


def clean(value):
    """Cleans a text, or all texts in a JSON value, keys of objects too.

    Surrogate pairs become the characters they stand for and lone halves U+FFFD, so that every text
    can be encoded. NUL, DEL and control characters that are no blanks are dropped.
    """
    if isinstance(value, str):
        if _SURROGATES.search(value):
            value = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return _CONTROLS.sub("", value)
    if isinstance(value, list):
        return [clean(inner) for inner in value]
    if isinstance(value, dict):
        return {clean(key): clean(inner) for key, inner in value.items()}
    return value


def _fits(value, type_name):
    if isinstance(value, bool):  # a bool is an int to isinstance
        return type_name == "bool"
    return isinstance(value, TYPES[type_name])
