"""Strict parsers of what the modules write. Commands are data: nothing here executes anything."""

import ast
import dataclasses
import re

PLAN_LABELS = ("Justification", "Context", "Sub-goal", "Tool")
MAX_COMMAND_CHARACTERS = 20_000

_LABEL = re.compile(rf"^({'|'.join(PLAN_LABELS)}):[ \t]*", re.MULTILINE | re.IGNORECASE)
_FENCE = re.compile(r"^```[a-z]*\n(.*)\n```$", re.DOTALL)


class ParseError(Exception):
    """The text does not have the required form; the message is written for the model."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The action a_t: context, sub-goal and tool; the justification stays in the planner's text."""

    context: str
    sub_goal: str
    tool: str


def plan(text, tool_names):
    """Reads `Context:`, `Sub-goal:` and `Tool:` lines; a value runs to the next label."""
    parts = _LABEL.split(text)
    labels = [label.capitalize() for label in parts[1::2]]
    repeated = {label for label in labels if labels.count(label) > 1}
    if repeated:
        raise ParseError(f"The plan repeats {', '.join(sorted(repeated))}.")
    fields = dict(zip(labels, (value.strip() for value in parts[2::2]), strict=True))
    missing = [label for label in ("Sub-goal", "Tool") if not fields.get(label)]
    if missing:
        raise ParseError(f"The plan has no {' and no '.join(missing)}.")
    if fields["Tool"] not in tool_names:
        raise ParseError(
            f"There is no tool {fields['Tool'][:60]!r}; choose from {', '.join(tool_names)}."
        )
    return Plan(fields.get("Context", ""), fields["Sub-goal"], fields["Tool"])


def command(text, tool):
    """Reads one call of `tool` with literal keyword arguments, such as `name(query="Spain")`.

    Returns:
      dict of the arguments; `tools.protocol.call` checks them against the tool's parameters.
    """
    text = text.strip()
    if len(text) > MAX_COMMAND_CHARACTERS:
        raise ParseError(
            f"The command has {len(text)} characters; {MAX_COMMAND_CHARACTERS} allowed."
        )
    fenced = _FENCE.match(text)
    try:
        call = ast.parse(fenced.group(1) if fenced else text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ParseError(f"The command is not one Python call: {type(error).__name__}.") from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ParseError(f"Write one call: {tool.demo}")
    if call.func.id != tool.name:
        raise ParseError(f"The command calls {call.func.id[:60]}, not the tool {tool.name}.")
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ParseError(f"Use keyword arguments only: {tool.demo}")
    arguments = {}
    for keyword in call.keywords:
        try:
            arguments[keyword.arg] = _text(ast.literal_eval(keyword.value))
        except (ValueError, TypeError, RecursionError, MemoryError) as error:
            raise ParseError(f"The argument {keyword.arg} is not a literal.") from error
    return arguments


def _text(value):
    """Joins surrogate pairs, which JSON-style escapes leave in a string; half a pair is refused."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16")


def verdict(text):
    """True for STOP, False for CONTINUE; the last line must say `Verdict: STOP` or `CONTINUE`."""
    lines = text.strip().splitlines()
    match = re.fullmatch(r"Verdict:\s*(STOP|CONTINUE)\.?", lines[-1].strip()) if lines else None
    if not match:
        raise ParseError("The last line must be `Verdict: STOP` or `Verdict: CONTINUE`.")
    return match.group(1) == "STOP"


def answer(text):
    """What follows the last line-leading `Answer:`, to the end of the text."""
    found = re.split(r"^Answer:[ \t]*", text.strip(), flags=re.MULTILINE)
    if len(found) < 2 or not found[-1].strip():
        raise ParseError("There is no `Answer:` line.")
    return found[-1].strip()
