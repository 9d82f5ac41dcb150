"""Strict parsers of the modules' texts. Commands are data: nothing here executes anything."""

import ast
import dataclasses
import math
import re
import warnings

PLAN_LABELS = ("Justification", "Context", "Sub-goal", "Tool")
MAX_COMMAND_CHARACTERS = 20_000
MAX_CALLS = 5
INTEGERS = range(-(2**63), 2**63)  # what every JSON reader and database takes
MAX_READINGS = 12  # of one command, its wrappings taken off in different ways

_LABEL = re.compile(rf"^({'|'.join(PLAN_LABELS)}):[ \t]*", re.MULTILINE | re.IGNORECASE)
# The same as an item of a list or a heading, in bold or italics, with another hyphen or colon.
_BLANKS, _MARKS = r"[^\S\n]*", r"[*_`]{1,3}"
_ITEM = rf"^{_BLANKS}(?:(?:[-*+•]|#{{1,6}}|\d{{1,2}}[.)])[ \t]+)?(?:{_MARKS})?"
_COLON = rf"(?:{_BLANKS}{_MARKS})?{_BLANKS}[:：](?:{_MARKS})?{_BLANKS}"
_ODD_LABEL = re.compile(
    rf"{_ITEM}(justification|context|sub[- \u2010\u2011\u2013]?goal|tool){_COLON}",
    re.MULTILINE | re.IGNORECASE,
)
_ODD_ANSWER = re.compile(
    rf"{_ITEM}(?:(?:final[ \t]+)?answer|the(?:[ \t]+final)?[ \t]+answer[ \t]+is){_COLON}",
    re.MULTILINE | re.IGNORECASE,
)
_ODD_VERDICT = re.compile(
    rf"{_ITEM}verdict{_COLON}(?:{_MARKS})?[\"'“]?(STOP|CONTINUE)[\"'”]?(?:{_MARKS})?[.!]?"
    rf"(?:{_MARKS})?",
    re.IGNORECASE,
)
_FENCE_AT_END = re.compile(r"(?:\n|^)[ \t]*(?:```|~~~)[ \t]*$")
_AROUND_NAMES = " \t*_`\"'“”‘’«».,;"
_BEGIN = re.compile(r"^```\w*[ \t]*\n", re.MULTILINE)
_END = re.compile(r"^```[ \t]*$", re.MULTILINE)
# The same with longer fences, tildes, indentation, CRLF and the names of more languages.
_ODD_BEGIN = re.compile(
    r"^[ \t]{0,3}(`{3,}|~{3,})[ \t]*(?:[a-zA-Z][\w.+#-]*)?[ \t]*\r?$", re.MULTILINE
)
_ODD_END = {
    mark: re.compile(rf"^[ \t]{{0,3}}{mark}{{3,}}[ \t]*\r?$", re.MULTILINE) for mark in "`~"
}
_LANGUAGE = re.compile(  # on the same line as the call
    r"(?:python3?|py3?|tool_code|tool_call|code|text|txt|plain|plaintext)[ \t]+", re.IGNORECASE
)
_INVISIBLE = "\ufeff\u200b\u2060"  # byte order mark, zero-width space, word joiner
_LEAD = re.compile(
    r"[*_]{0,2}(?:(?:generated|final|tool|function|python)[ _-])?(?:command|call|action|code)"
    r"[*_]{0,2}[ \t]*[:：][*_]{0,2}",
    re.IGNORECASE,
)
_TAGGED = re.compile(r"<(tool_call|tool_code|code|command|call)>(.*)</\1>", re.DOTALL)
_QUOTES = ("``", "`", '"""', "'''", '"', "'", "**", "*")
_ANNOTATIONS = {"str", "int", "float", "bool", "list", "dict", "object"}
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
    """Reads `Context:`, `Sub-goal:` and `Tool:` lines; a value runs to the next label.

    A text that cannot be read so is read once more with labels as chat models decorate them:
    `**Tool:**`, `- Tool:`, `### Tool:`, `Subgoal:`. A tool's name may then stand in quotes or
    backticks, in other case or with blanks for underscores, before its parameters in brackets, and
    before a remark on lines of its own that names no other tool.
    """
    try:
        return _plan(_LABEL.split(text), tool_names, str.strip, lambda value: value)
    except ParseError:
        try:
            find = lambda value: _tool(value, tool_names)
            return _plan(_ODD_LABEL.split(text), tool_names, _undecorated, find)
        except ParseError:
            pass
        raise


def _plan(parts, tool_names, clean, find_tool):
    """Reads a plan that is divided into what precedes it, then labels and values in turn.

    clean: function of a value. find_tool: from the value of `Tool` to a name.
    """
    labels = [_label(found) for found in parts[1::2]]
    values = map(clean, parts[2::2])
    repeated = {label for label in labels if labels.count(label) > 1}
    if repeated:
        raise ParseError(f"The plan repeats {', '.join(sorted(repeated))}.")
    fields = dict(zip(labels, values, strict=True))
    missing = [label for label in ("Sub-goal", "Tool") if not fields.get(label)]
    if missing:
        raise ParseError(f"The plan has no {' and no '.join(missing)}.")
    tool = find_tool(fields["Tool"])
    if tool not in tool_names:
        raise ParseError(
            f"There is no tool {fields['Tool'][:60]!r}; choose from {', '.join(tool_names)}."
        )
    return Plan(fields.get("Context", ""), fields["Sub-goal"], tool)


def _label(found):
    """Returns one of PLAN_LABELS, however it is written."""
    return "Sub-goal" if found[0] in "Ss" else found.capitalize()


def _tool(value, tool_names):
    """Returns the tool that a decorated value names, "" if none or several may be meant."""
    if value in tool_names:
        return value
    plain = lambda name: re.sub(r"[\s-]+", "_", name.casefold())
    named = {plain(name): name for name in tool_names}
    line = value.partition("\n")[0].partition("(")[0].strip(_AROUND_NAMES)
    tool = named.get(plain(line), "") if len(named) == len(tool_names) else ""
    others = [name for name in tool_names if name != tool]
    if any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", value, re.IGNORECASE) for name in others):
        return ""
    return tool


def _undecorated(value):
    """Returns a value without a fence or an odd mark of bold text at its end."""
    value = _FENCE_AT_END.sub("", value.strip()).strip()
    for mark in ("**", "__", "*", "`"):
        if value.endswith(mark) and value.count(mark) % 2:
            value = value.removesuffix(mark).rstrip()
    return value


def calls(text, tool):
    """Reads calls of one tool with literal arguments, such as `name(query="Spain")`.

    Several calls stand on lines of their own. Comments, line breaks within a call, one code fence
    around everything and prose around that fence are allowed. Positional arguments get the names of
    the tool's parameters.

    A text that cannot be read so is read once more without its wrapping, if all that is wrapped is
    one call of the tool and all ways of taking wrappings off give the same call: another fence (of
    tildes, of four backticks, on one line, unclosed, unopened), `call` in backticks, quotes or
    stars, <tool_call>, a lead such as `Command:`, `name = call`, a full stop or comma behind it,
    invisible characters around it. A fence may hold several calls. Prose outside of a fence, items
    of a list, print(call), await call, JSON and a second call beside the fence stay refused: they
    may mean something else.

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
        return _read(text, tool)
    except ParseError:
        if (found := _read_unwrapped(text, tool)) is None:
            raise
        return found


def _read(text, tool):
    statements = _statements(text, tool)
    if not statements:
        raise ParseError(f"There is no command. Write one call: {tool.demo}")
    if len(statements) > MAX_CALLS:
        raise ParseError(f"There are {len(statements)} calls; write {MAX_CALLS} at most.")
    return [_arguments(statement, tool) for statement in statements]


def _read_unwrapped(text, tool):
    """Returns the calls of a text without its wrappings; None if there are none, or several."""
    waiting, seen, found = [(text, True)], {text}, []
    while waiting:
        text, may_be_several = waiting.pop(0)
        for inside, holds_several in _insides(text, tool):
            inside, several = inside.strip(), may_be_several and holds_several
            if inside in seen or len(seen) > MAX_READINGS:
                continue
            seen.add(inside)
            try:
                calls = _read(inside, tool)
            except ParseError:
                waiting.append((inside, several))
                continue
            if several or len(calls) == 1:
                found.append(calls)
    return found[0] if found and all(calls == found[0] for calls in found) else None


def _insides(text, tool):
    """Yields (text without its outermost wrapping, whether that may hold several calls)."""
    yield text.strip(_INVISIBLE), True
    if lead := _LEAD.match(text):
        yield text[lead.end() :], False
    if tagged := _TAGGED.fullmatch(text):
        yield tagged[2], False
    if text.endswith((").", "),", "`.", "`,")):
        yield text[:-1], False
    if assigned := _assigned(text):
        yield assigned, False
    yield from ((inside, True) for inside in _fenced(text, tool))
    quote = next((mark for mark in _QUOTES if text.startswith(mark) and text.endswith(mark)), None)
    # What an escape within quotes means depends on who reads it.
    if quote and len(text) > 2 * len(quote) and not ("\\" in text and quote[0] in "\"'"):
        yield text[len(quote) : -len(quote)], False


def _assigned(text):
    """Returns the source of the value in `name = value`, or None."""
    try:
        statements = _parsed(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if len(statements) != 1:
        return None
    (statement,) = statements
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
    elif isinstance(statement, ast.AnnAssign) and statement.value:
        about = statement.annotation
        known = isinstance(about, ast.Name) and about.id in _ANNOTATIONS
        target = statement.target if known else None
    else:
        return None
    is_call = isinstance(target, ast.Name) and isinstance(statement.value, ast.Call)
    return ast.get_source_segment(text, statement.value) if is_call else None


def _fenced(text, tool):
    """Yields what fences of odd forms hold, unless a fence or a call stands beside them."""
    if begin := _ODD_BEGIN.search(text):
        mark = begin[1][0]
        rest = text[begin.end() :]
        ends = list(_ODD_END[mark].finditer(rest))
        inside = rest[: ends[-1].start()] if ends else _without_end(rest, mark)
        around = text[: begin.start()] + "\n" + (rest[ends[-1].end() :] if ends else "")
        beside = rf"```|~~~|\b{re.escape(tool.name)}\s*\("
        if not re.search(beside, around):
            yield inside
        if not ends and not rest.strip():
            yield text[: begin.start()]  # the end of a fence that does not begin
    elif text.startswith(("```", "~~~")):
        inside = _without_end(text.lstrip(text[0]), text[0]).strip()
        yield inside
        if language := _LANGUAGE.match(inside):
            yield inside[language.end() :]


def _without_end(text, mark):
    """Returns a text without the fence at its end."""
    bare = text.rstrip().rstrip(mark)
    return bare if len(text.rstrip()) - len(bare) >= 3 else text


def _statements(text, tool):
    begin = _BEGIN.search(text)
    ends = list(_END.finditer(text, begin.end())) if begin else []
    fenced = text[begin.end() : ends[-1].start()] if ends else None
    try:
        return _parsed(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        refused = error
    try:
        if fenced is not None:
            return _parsed(fenced)
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


def _literal(name, node):
    name = name[:60]
    if isinstance(node, ast.JoinedStr) and all(isinstance(v, ast.Constant) for v in node.values):
        node = ast.Constant("".join(part.value for part in node.values))  # f"…" without a field
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
        return _checked(name, ast.literal_eval(node))
    except UnicodeError as error:
        raise ParseError(f"The argument {name} holds half a surrogate pair.") from error
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ParseError(f"The argument {name} is not a literal value.") from error


def _checked(name, value):
    """Joins surrogate pairs, which JSON-style escapes leave in a string; half a pair is refused.

    So are numbers that not every reader of JSON takes.
    """
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16")
    if isinstance(value, int) and value not in INTEGERS:
        raise ParseError(f"The argument {name} is an integer of more than 64 bits.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ParseError(f"The argument {name} is a number that is too large.")
    if isinstance(value, dict):
        return {_checked(name, key): _checked(name, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(_checked(name, inner) for inner in value)
    return value


def verdict(text):
    """Returns True for STOP, False for CONTINUE; the last line must be a `Verdict:` line.

    It may be in bold, an item or a heading, in any case, its word in quotes; a fence may end there.
    """
    lines = _FENCE_AT_END.sub("", text.strip()).strip().splitlines()
    match = _ODD_VERDICT.fullmatch(lines[-1].strip()) if lines else None
    if not match:
        raise ParseError("The last line must be `Verdict: STOP` or `Verdict: CONTINUE`.")
    return match[1].upper() == "STOP"


def answer(text):
    """Returns the text after the last `Answer:` that begins a line.

    Where there is none, after the last that is decorated, such as `**Answer:**`, `## Answer:`,
    `Final answer:` or `The answer is:`, without what is left of the decoration.
    """
    found = re.split(r"^Answer:[ \t]*", text.strip(), flags=re.MULTILINE)
    if len(found) < 2 or not found[-1].strip():
        found = [_undecorated(part) for part in _ODD_ANSWER.split(text.strip())]
    if len(found) < 2 or not found[-1].strip():
        raise ParseError("There is no `Answer:` line.")
    return found[-1].strip()
