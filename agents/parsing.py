"""Strict parsers of the modules' texts. Commands are data: nothing here executes anything."""

import ast
import dataclasses
import re
import warnings

PLAN_LABELS = ("Justification", "Context", "Sub-goal", "Tool")
MAX_COMMAND_CHARACTERS = 20_000
MAX_CALLS = 5
MAX_WRAPPINGS = 3  # of a lone call, within each other

_LABEL = re.compile(rf"^({'|'.join(PLAN_LABELS)}):[ \t]*", re.MULTILINE | re.IGNORECASE)
_FENCE = re.compile(r"^```\w*[ \t]*\n(.*)^```[ \t]*$", re.DOTALL | re.MULTILINE)
# What is peeled off a lone call. A fence is three or more of one character; it may lack its end.
_OPENING = re.compile(r"[ \t]*(`{3,}|~{3,})(.*)")
_TITLE = re.compile(r"((generated|final|tool|next)\s+)?(command|call|action)\s*:", re.IGNORECASE)
_LITERAL = (ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.Load)
_LITERAL += (ast.UnaryOp, ast.USub, ast.UAdd)


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


def calls(text, tool):
    """Reads calls of one tool with literal arguments, such as `name(query="Spain")`.

    Several calls stand on lines of their own. Comments, line breaks within a call, one code fence
    around everything and prose around that fence are allowed. Positional arguments get the names of
    the tool's parameters.

    A lone call is also read from wrappings in which it can mean one thing only: any other code
    fence (longer, of tildes, on one line, without an end), backticks, a title such as `Command:`,
    an assignment to a name, a byte order mark, and these within each other.

    Returns:
      List of dicts, the arguments of each call in the order of the text; `tools.protocol.call`
      checks them against the tool's parameters.
    """
    text = text.strip()
    if len(text) > MAX_COMMAND_CHARACTERS:
        raise ParseError(
            f"The command has {len(text)} characters; {MAX_COMMAND_CHARACTERS} allowed."
        )
    try:
        statements = _statements(text, tool)
        if not statements:
            raise ParseError(f"There is no command. Write one call: {tool.demo}")
        if len(statements) > MAX_CALLS:
            raise ParseError(f"There are {len(statements)} calls; write {MAX_CALLS} at most.")
        return [_arguments(statement, tool) for statement in statements]
    except ParseError:
        call = _lone_call(text)
        if call is None:
            raise
        return [_arguments(call, tool)]


def _lone_call(text):
    """Returns the statement that is the only thing in a wrapping, None if there is no such."""
    for _ in range(1 + MAX_WRAPPINGS):
        text = text.strip().removeprefix("\ufeff").strip()
        try:
            statements = _parsed(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            statements = []
        if len(statements) == 1:
            match statements[0]:
                case ast.Expr(value=ast.Call()) as statement:
                    return statement
                case ast.Assign(targets=[ast.Name()], value=ast.Call() as call) as statement:
                    return ast.copy_location(ast.Expr(call), statement)
        text = _peeled(text)
        if text is None:
            return None
    return None


def _peeled(text):
    """Returns what stands in the outermost wrapping of a text, None if it has none."""
    if title := _TITLE.match(text):
        return text[title.end() :]
    lines = text.splitlines()
    opening = next((i for i, line in enumerate(lines) if _OPENING.match(line)), None)
    if opening is None:
        quoted = len(text) > 2 and text[0] == text[-1] == "`" and "\n" not in text
        return text[1:-1] if quoted else None
    fence, rest = _OPENING.match(lines[opening]).groups()
    if fence in rest:  # on one line, the language before the call
        inside, _, after = rest.rpartition(fence)
        first, _, others = inside.strip().partition(" ")
        inside = others if first.isalnum() and others else inside
        return None if opening or after.strip() or lines[1:] else inside
    if rest.strip() and not re.fullmatch(r"[\w+.-]+", rest.strip()):
        return None
    closes = lambda line: line.strip().startswith(fence) and not line.strip().strip(fence[0])
    closing = next((i for i in range(opening + 1, len(lines)) if closes(lines[i])), len(lines))
    if any(_OPENING.match(line) for line in lines[closing + 1 :]):  # which of the two is meant?
        return None
    return "\n".join(lines[opening + 1 : closing])


def _statements(text, tool):
    fenced = _FENCE.search(text)
    try:
        return _parsed(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        refused = error
    try:
        if fenced:
            return _parsed(fenced.group(1))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        refused = error
    if isinstance(refused, SyntaxError):
        line = f" in line {refused.lineno}" if refused.lineno else ""
        reason = f"{(refused.msg or 'invalid syntax')[:100]}{line}"
    else:
        reason = "it is nested too deeply" if not isinstance(refused, ValueError) else str(refused)
    raise ParseError(
        f"The command is not a Python call: {reason}. Write only the call: {tool.demo}"
    ) from refused


def _parsed(text):
    with warnings.catch_warnings():  # an unknown escape such as "\d" stays what it is
        warnings.simplefilter("ignore")
        return ast.parse(text).body


def _arguments(statement, tool):
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        kind = type(call or statement).__name__
        raise ParseError(f"Line {statement.lineno} is no call ({kind}). Write only {tool.demo}")
    if call.func.id != tool.name:
        raise ParseError(f"The command calls {call.func.id[:60]}, not the tool {tool.name}.")
    names = [parameter.name for parameter in tool.parameters]
    if len(call.args) > len(names):
        raise ParseError(
            f"{tool.name} takes {len(names)} arguments ({', '.join(names)}), not {len(call.args)}."
        )
    given = [*zip(names, call.args, strict=False)]
    given += [(keyword.arg, keyword.value) for keyword in call.keywords]
    arguments = {}
    for name, node in given:
        if name is None or isinstance(node, ast.Starred):
            raise ParseError(f"Write the arguments out instead of using *: {tool.demo}")
        if name in arguments:
            raise ParseError(f"The argument {name[:60]} is given twice.")
        arguments[name] = _literal(name, node)
    return arguments


class _WithoutEmptyFormats(ast.NodeTransformer):
    """Turns f-strings without a placeholder into the text that they are."""

    def visit_JoinedStr(self, node):
        if all(isinstance(part, ast.Constant) for part in node.values):
            text = "".join(part.value for part in node.values)
            return ast.copy_location(ast.Constant(text), node)
        return node


def _literal(name, node):
    name = name[:60]
    node = _WithoutEmptyFormats().visit(node)
    outside = next((inner for inner in ast.walk(node) if not isinstance(inner, _LITERAL)), None)
    if isinstance(outside, ast.JoinedStr):
        raise ParseError(
            f"The argument {name} is an f-string; write the finished text in plain quotes."
        )
    if isinstance(outside, ast.Name):
        raise ParseError(
            f"The argument {name} uses the name {outside.id[:60]}; names have no value here. "
            "Text needs quotes."
        )
    if outside is not None:
        raise ParseError(f"The argument {name} is an expression; write the value itself.")
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ParseError(f"The argument {name} is not a literal value.") from error
    try:
        return _text(value)
    except UnicodeError as error:
        raise ParseError(f"The argument {name} holds half a surrogate pair.") from error


def _text(value):
    """Joins surrogate pairs, which JSON-style escapes leave in a string; half a pair is refused."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16")
    if isinstance(value, dict):
        return {_text(key): _text(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(map(_text, value))
    return value


def verdict(text):
    """Returns True for STOP, False for CONTINUE; the last line must be a `Verdict:` line."""
    lines = text.strip().splitlines()
    match = re.fullmatch(r"Verdict:\s*(STOP|CONTINUE)\.?", lines[-1].strip()) if lines else None
    if not match:
        raise ParseError("The last line must be `Verdict: STOP` or `Verdict: CONTINUE`.")
    return match.group(1) == "STOP"


def answer(text):
    """Returns the text after the last `Answer:` that begins a line."""
    found = re.split(r"^Answer:[ \t]*", text.strip(), flags=re.MULTILINE)
    if len(found) < 2 or not found[-1].strip():
        raise ParseError("There is no `Answer:` line.")
    return found[-1].strip()
