r"""What an answer states: a value, several, an equation, an inequality, an interval.

`read` takes a whole text apart at its commas, "or", brackets and signs of relation; `same` compares
two. Nothing is dropped: what is not understood stays text, and is compared as text.

An assignment states its value: x = 5, f(2) = 7, \angle ABC = 40^\circ, m + n = 18 + 19 = 37 state
5, 7, 40 and 37. Other equations are equations: x^2 + y^2 = 25 does not state 25.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flow_grpo_jax.answers.expressions import GREEK, parse
from flow_grpo_jax.answers.latex import one_spelling, without_latex
from flow_grpo_jax.answers.numbers import Number, parse_number
from flow_grpo_jax.answers.printed import as_written
from flow_grpo_jax.answers.text import MAX_EXPRESSION, without_stop
from flow_grpo_jax.answers.trees import MINUS_ONE, Tree, symbols_of
from flow_grpo_jax.answers.units import MEASURES, parse_unit, same_unit

_LETTER = rf"(?:[a-zA-Z]|\\(?:{'|'.join(GREEK)})(?![a-zA-Z])|[α-ωΑ-Ω])"
_INDEX = r"(?:_(?:\w|\{[^{}]*\}))?'{0,3}"
_MARKED = r"\\(?:angle|triangle|overline|vec|hat|bar|mathbf|mathcal|overrightarrow)"
_CORE = rf"(?:{_LETTER}|[A-Z]{{2,4}}){_INDEX}"
# Words that make a name one of something else, or of nothing: "y = 2 when x = 5".
_DOUBT = (
    "(?:not|unless|let|if|suppose|never|cannot|no|wrong|incorrect|false|maybe|perhaps|possibly"
    "|probably|but|or|except|when|where|wait|guess)\\b"
)
_NAME = re.compile(
    rf"(?:{_CORE}|m?\s*{_MARKED}\s*(?:\{{\s*{_CORE}\s*\}}|{_CORE})|\|\s*{_CORE}\s*\|"
    rf"|[fghpqnFGHPEQTSVANR]{_INDEX}(?:\^\{{?-1\}}?)?\s*\([\w\s,.\\-]*\)"
    rf"|(?!{_DOUBT}|[w-z]+\b)(?:[A-Z][a-z]{{2,}}|[A-Za-z]*[a-z]{{4,}}|max|min|sum"
    rf"|[a-z]{{3}}(?= \w{{3}}))(?: (?!{_DOUBT})[A-Za-z]+){{0,5}}"
    r"|(?:P|E|Var)(?:\([^()]*\)|\[[^\[\]]*\])|\[[A-Z]{3,6}\]"
    r"|\\frac\{d\w?\}\{d\w\}|\([a-z](?:, ?[a-z]){1,3}\))"
)
_SUM = re.compile(rf"{_CORE}(?:\s*\+\s*{_CORE})+")
_PRODUCT = re.compile(
    rf"(?:{_CORE}){{1,3}}+(?:\s*+[*/]\s*+{_CORE})*+|\\frac\{{{_CORE}\}}\{{{_CORE}\}}"
)
_COORDINATES = re.compile(r"[xyz]|_")
_LIMITS = re.compile(r"\\(?:int|lim|sum|prod)(?=[_^])")

# One sign for each relation; ≈ stands for all that are not taken apart.
_MACROS = {"le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥", "geq": "≥", "geqslant": "≥"}
_MACROS |= {
    "lt": "<",
    "gt": ">",
    "ne": "≠",
    "neq": "≠",
    "in": "∈",
    "cup": "∪",
    "pm": "±",
    "mp": "∓",
}
_MACROS |= {"lor": " or ", "vee": " or ", "land": " and ", "wedge": " and "}
_MACROS |= {"langle": "(", "rangle": ")", "left": "", "right": ""}
_OTHER = "approx sim simeq cong equiv to implies Rightarrow iff mid"
_MACROS |= dict.fromkeys(re.findall(r"\w+", _OTHER), "≈")
_SIGNS = {"<=": "≤", ">=": "≥", "!=": "≠", "==": "≈", ":=": "≈"}
_AND_OR = r"[,;]?\s*(?:\bor\b|\band\b)|;"
_OR = re.compile(r"\bor\b")
_COMMA = r"(?<!\d),|,(?!\d{3}(?!\d))"  # not within 1,000
_ABOUT = re.compile(r"^\s*~")  # elsewhere a blank of LaTeX
_ASSIGNMENT = re.compile(r"[^=<>≤≥∈]*[^\s=<>≤≥∈][^=<>≤≥∈]*[=<>≤≥∈]")
_DOTS = re.compile(r"\\[lcvd]?dots|\.\.\.|…")
_RANGE = "[<>≤≥]"
_RELATION = r"[=<>≤≥≠∈≈≡≅∼~→⇒]"
_UNIT_IN_TEXT = re.compile(
    r"(?P<value>.*\S)\s*\\(?:text|mathrm|mbox|textrm)\{[~\s]*(?P<unit>[a-zA-Z][a-zA-Z /.]*)\s*\}"
    r"(?P<power>\s*(?:\^\s*\{?\s*[23]\s*\}?|[²³]))?",
    re.S,
)
_UNIT_BEHIND = re.compile(
    r"(?P<value>.*[\w})\]])\s+(?P<unit>[a-zA-Z]{2,}(?:[ /][a-zA-Z]+){0,3})"
    r"(?P<power>\^\{?[23]\}?|[²³])?",
    re.S,
)


@dataclass(frozen=True)
class Statement:
    """kind, and what it holds in parts:

    number (Number,)   expression (tree, unit or None)   text ()
    tuple (open, close, *statements)   list, union, ratio, matrix (*statements)
    named (name, statement, tree of the name or None)   equation (tree, tree)
    inequality (">" or "≥", tree that is greater, tree that is less)
    text: what it was read from.
    """

    kind: str
    parts: tuple
    text: str


_INFINITE = Statement("expression", (("symbol", "oo"), None), "∞")
_LOWEST = Statement("expression", (("multiply", MINUS_ONE, ("symbol", "oo")), None), "-∞")


def read(text: str, *, gold: bool) -> Statement:
    """Returns what `text` states. gold: it is the accepted answer, whose left side may be more than
    the name of its value: an answer's left side is believed to name what was asked for."""
    if len(text) > MAX_EXPRESSION:
        return Statement("text", (), text)
    text = as_written(_ABOUT.sub("≈", one_spelling(text)))
    text = re.sub(r"~(?=\s*\\(?:text|math|mbox))", " ", re.sub(r"(?:\\\s*)+\Z", "", text))
    if whole := re.fullmatch(r"\\text\{([^{}]*)\}", text):
        text = whole[1]
    text = re.sub(r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\text\{[\s,]*(or|and)\s*\}", r" \1 ", text)
    text = re.sub(r"\\(begin|end)\{(?:[pbB]matrix|array)\}(?:\{[lcr|]+\})?", r"\\\1{matrix}", text)
    text = re.sub(rf"\A(\s*{_CORE})\s+in\s+(?=\\?[(\[{{])", r"\1 ∈ ", text).replace("+/-", "±")
    text = re.sub(r"(?<=[)\]])\s*U\s*(?=[(\[])", " ∪ ", text)
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and all(map(_ASSIGNMENT.match, lines)):
        text = "; ".join(map(without_stop, lines))
    text = re.sub(r"\\([a-zA-Z]+)", lambda macro: _MACROS.get(macro[1], macro[0]), text)
    text = re.sub("[<>!=:]=", lambda sign: _SIGNS[sign[0]], text)
    text = re.sub(r"\\[bB]igg?[lrm]?(?![a-zA-Z])|\\[()\[\]]", "", text)
    if text.count("$") != 1:
        text = re.sub(r"(?<!\\)\$", "", text)
    return _list(without_stop(text).strip(), gold)


def _list(text: str, gold: bool) -> Statement:
    """Reads alternatives, or the one statement that the text is."""
    if inside := _inside(text, r"\{", r"\}") or _inside(text, "{", "}"):
        return _list(inside, gold)
    pieces = []
    for part in _split(text, _AND_OR)[0]:
        for piece in [part] if parse_number(part) else _split(part, _COMMA)[0]:
            pieces += _both_signs(piece)
    if len(pieces) == 1:
        return _piece(text, gold)
    if not all(piece.strip() for piece in pieces) or _DOTS.search(text):
        return Statement("text", (), text)  # 2, 4, 6, \\ldots goes on in its order
    statements = tuple(_piece(piece.strip(), gold) for piece in pieces)
    if all(re.search(_RANGE, piece) for piece in pieces):
        names = [symbols_of(t) for p in pieces for s in _split(p, _RANGE)[0] if (t := parse(s))]
        kind = "both" if re.search(r"\band\b", text) else "union"
        if kind == "both" and len(set().union(*names)) == 1 and (met := _met(statements, text)):
            return met
        if len(set().union(*names)) > 1 and any(s.kind == "tuple" for s in statements):
            return Statement("text", (), text)  # an interval does not say whose it is
        return Statement(kind, statements, text)
    return Statement("list", statements, text)


def _both_signs(piece: str) -> list[str]:
    """Returns the two readings of a piece with ±, ∓ or one of each; another piece as it is."""
    if not {"±", "∓"} & set(piece) or max(map(piece.count, "±∓")) > 1:
        return [piece]
    return [piece.translate(str.maketrans("±∓", signs)) for signs in ("+-", "-+")]


def _met(statements: Sequence[Statement], text: str) -> Statement | None:
    """Returns the interval that x > 1 and x < 2 are together."""
    if len(statements) != 2 or {s.kind for s in statements} != {"tuple"}:
        return None
    upper, lower = sorted((s.parts for s in statements), key=lambda parts: parts[2].text != "-∞")
    if upper[2].text != "-∞" or lower[3].text != "∞":
        return None
    return Statement("tuple", (lower[0], upper[1], lower[2], upper[3]), text)


def _piece(text: str, gold: bool) -> Statement:
    if (written := as_written(text)) != text.strip() and "&" in text:  # (x > 1) & (x < 2)
        return _list(written, gold)
    inside = _inside(text, "(", ")")
    if inside and len(_split(inside, _RELATION)[0]) > 1 and len(_split(inside, "[,;]")[0]) == 1:
        text = inside  # (x = 1) or (x = 2)
    sides, signs = _split(text, _RELATION)
    sides = [side.strip() for side in sides]
    if not signs:
        return _value(text, gold)
    if all(sides):
        if set(signs) == {"="}:
            return _equation(text, sides, gold)
        if signs == ["∈"] and _NAME.fullmatch(without_latex(sides[0])):
            return _list(sides[1], gold)
        if set(signs) <= set("<>≤≥"):
            return _inequality(text, sides, signs)
    return Statement("text", (), text)


def _equation(text: str, sides: list[str], gold: bool) -> Statement:
    first, last = without_latex(sides[0]), sides[-1]
    if len(sides) == 2 and re.fullmatch(_CORE, last) and _is_closed(parse(sides[0])):  # 5 = x
        first, last = last, sides[0]
    tree = parse(first)
    value = _list(last, gold)
    if any(_starts_again(side, first, tree) for side in sides[1:-1]):
        return Statement("text", (), text)
    others = [number for side in (first, *sides[1:-1]) if (number := parse_number(side))]
    if value.kind == "number" and not all(other.equals(value.parts[0]) for other in others):
        return Statement("text", (), text)  # 3 = 4
    if _names(first, gold):
        inner = parse(last) if tree and tree[0] in ("symbol", "add", "multiply") else None
        if inner is None or not symbols_of(tree) & symbols_of(inner):  # x = x^2 is an equation
            return Statement("named", (first, value, tree), text)
    if _is_closed(tree) and (value.kind == "number" or _is_closed(parse(last))):
        return value  # 12 + 13 = 25
    if len(sides) == 2 and tree is not None and (right := parse(last)) is not None:
        return Statement("equation", (tree, right), text)
    return Statement("text", (), text)


def _starts_again(side: str, first: str, tree: Tree | None) -> bool:
    """Returns whether a middle side ends one statement and starts another: x = 6 perhaps x = 5."""
    if (inner := parse(side)) is None:
        return bool(re.search(rf"(?:[a-z]{{2}}\s+|(?<!\w)){_CORE}\s*\Z", without_latex(side)))
    return bool(tree and tree[0] == "symbol" and symbols_of(tree) & symbols_of(inner))


def _names(side: str, gold: bool) -> bool:
    """Returns whether the left side of an equation only names what its right side is worth."""
    if _NAME.fullmatch(side) or _LIMITS.match(side):
        return True
    if _SUM.fullmatch(side):
        return not (gold and _COORDINATES.search(side))
    return not gold and bool(_PRODUCT.fullmatch(side))


def _inequality(text: str, sides: list[str], signs: list[str]) -> Statement:
    if signs[0] in ">≥":
        sides, signs = sides[::-1], [{">": "<", "≥": "≤"}.get(sign, ">") for sign in signs[::-1]]
    trees = [parse(side) for side in sides]
    if not set(signs) <= {"<", "≤"} or None in trees or len(sides) > 3:
        return Statement("text", (), text)
    closed = [_is_closed(tree) for tree in trees]
    named = [bool(re.fullmatch(_CORE, without_latex(side))) for side in sides]
    ends = [_value(side, False) for side in sides]
    brackets = [{"<": "(", "≤": "["}[signs[0]], {"<": ")", "≤": "]"}[signs[-1]]]
    if len(sides) == 3 and closed == [True, False, True] and named[1]:
        return Statement("tuple", (*brackets, ends[0], ends[2]), text)
    if len(sides) == 2 and closed[0] and named[1]:
        return Statement("tuple", (brackets[0], ")", ends[0], _INFINITE), text)
    if len(sides) == 2 and closed[1] and named[0]:
        return Statement("tuple", ("(", brackets[1], _LOWEST, ends[1]), text)
    if len(sides) == 2:
        return Statement("inequality", (signs[0], trees[1], trees[0]), text)
    return Statement("text", (), text)


def _value(text: str, gold: bool) -> Statement:
    """Reads a text without a sign of relation at its top."""
    if number := parse_number(text):
        return Statement("number", (number,), text)
    if len(parts := _split(text, "∪")[0]) > 1:
        return Statement("union", tuple(_value(part.strip(), gold) for part in parts), text)
    if re.fullmatch(r"\\(?:emptyset|varnothing)|\\?\{\s*\\?\}", text):
        return Statement("list", (), text)
    if re.fullmatch(r"\\mathbb\s*\{?R\}?|all real numbers", text):
        return Statement("tuple", ("(", ")", _LOWEST, _INFINITE), text)
    if (inside := _inside(text, r"\{", r"\}") or _inside(text, "{", "}")) is not None:
        return _list(inside, gold)
    if outside := re.fullmatch(r"([\[\]])([^\[\]]*)([\[\]])", text):  # ]0, 1[
        turned = {"]": "(", "[": "["}[outside[1]] + outside[2] + {"[": ")", "]": "]"}[outside[3]]
        text = turned
    for opening, closing in ("()", "[]", "(]", "[)"):
        inside = _inside(text, opening, closing)
        items = _split(inside, "[,;]")[0] if inside else []
        if len(items) > 1 and all(item.strip() for item in items):
            statements = tuple(_piece(item.strip(), gold) for item in items)
            return Statement("tuple", (opening, closing, *statements), text)
    if rows := _rows(text):
        statements = tuple(
            Statement("matrix", tuple(_value(item.strip(), gold) for item in row), text)
            for row in rows
        )
        return Statement("matrix", statements, text)
    parts = _split(text, ":")[0]
    if len(parts) > 1 and all(part.strip() for part in parts):
        statements = tuple(_value(part.strip(), gold) for part in parts)
        if all(_tree(part) is not None for part in statements):
            return Statement("ratio", statements, text)
        return Statement("text", (), text)
    return _expression(text)


def _expression(text: str) -> Statement:
    unit = None
    whole = text
    match = _UNIT_IN_TEXT.fullmatch(text)
    if match is None and (match := _UNIT_BEHIND.fullmatch(text)):
        words = re.findall("[a-z]+", match["unit"].lower())
        match = match if set(words) & MEASURES else None
    if match and (unit := parse_unit(match["unit"] + without_latex(match["power"] or ""))):
        text = match["value"]
    elif text.rstrip(" }").endswith("\\circ") or text.endswith("°"):
        unit = parse_unit("degrees")
        text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?$|°$", "", text)
    plain = without_latex(text)
    letter = re.fullmatch(r"\(?[a-zA-Z]\)?", plain)  # an option's too: compared without case
    if letter or _is_word(plain) or (tree := parse(text)) is None:
        return Statement("text", (), whole)
    return Statement("expression", (tree, unit), whole)


def _is_word(plain: str) -> bool:
    return plain.isalpha() and plain.isascii() and plain not in ("pi", "oo") and len(plain) > 1


def _rows(text: str) -> list[list[str]]:
    r"""Returns the items of \begin{matrix}...\end{matrix}, in brackets or not."""
    inside = re.fullmatch(r"([\[(]?)\s*\\begin\{matrix\}(.*)\\end\{matrix\}\s*([\])]?)", text, re.S)
    if not inside or inside[1] + inside[3] not in ("", "()", "[]"):
        return []
    rows = [row.split("&") for row in re.split(r"\\\\", inside[2].strip().removesuffix("\\\\"))]
    return rows if all(item.strip() for row in rows for item in row) else []


def _is_closed(tree: Tree | None) -> bool:
    return tree is not None and not symbols_of(tree)


def _inside(text: str, opening: str, closing: str) -> str | None:
    """Returns what stands in the brackets that enclose all of `text`, or None."""
    if not (text.startswith(opening) and text.endswith(closing)) or text == opening:
        return None
    depth = 0
    for match in re.finditer(r"[(\[{]|[)\]}]", text):
        depth += 1 if match[0] in "([{" else -1
        if depth == 0:
            return text[len(opening) : -len(closing)] if match.end() == len(text) else None
    return None


def _split(text: str, separator: str) -> tuple[list[str], list[str]]:
    """Returns the parts of `text` between separators outside brackets, and the separators."""
    parts, found, depth, start = [], [], 0, 0
    for match in re.finditer(rf"(?P<open>[(\[{{])|(?P<close>[)\]}}])|(?:{separator})", text):
        if match["open"] or match["close"]:
            depth += 1 if match["open"] else -1
        elif depth == 0:
            parts.append(text[start : match.start()])
            found.append(match[0])
            start = match.end()
    return [*parts, text[start:]], found


def is_read(statement: Statement) -> bool:
    """Returns whether every sign of the text was understood."""
    inner = [part for part in statement.parts if isinstance(part, Statement)]
    known = statement.kind != "text" or parse(statement.text) is not None  # a lone letter
    return known and all(map(is_read, inner))


# ------------------------------------------------------------------------------------ comparison

Equal = Callable[[Tree, Tree], bool]


def same(gold: Statement, answer: Statement, equal: Equal) -> bool:
    """Returns whether the two state the same; `equal` compares two expressions."""
    if by_name := _by_name(gold, answer):
        return _same_list(*by_name, equal)
    if gold.kind == "named" and answer.kind != "equation":
        return same(gold.parts[1], _stated(answer), equal)
    if gold.kind in ("equation", "named"):
        if gold.kind == "named" and _is_settled(gold.parts[1]):
            return False  # x = 5 is the solution, 2x - 10 = 0 only the problem
        left, right = _sides(gold), _sides(answer)
        return bool(left and right) and equal(("equation", *left), ("equation", *right))
    answer = _stated(answer)
    if answer.kind == "list" and gold.kind not in ("list", "text") and _OR.search(answer.text):
        return len(answer.parts) == 2 and all(same(gold, part, equal) for part in answer.parts)
    if gold.kind == "inequality":
        return (
            answer.kind == "inequality"
            and gold.parts[0] == answer.parts[0]
            and equal(("inequality", *gold.parts[1:]), ("inequality", *answer.parts[1:]))
        )
    if gold.kind == "number":
        return answer.kind == "number" and gold.parts[0].equals(answer.parts[0])
    if gold.kind == "expression":
        return _same_expression(gold, answer, equal)
    if gold.kind == "text" and answer.kind == "expression" and (tree := _tree(gold)):
        return equal(tree, answer.parts[0])  # ab is a*b
    if gold.kind == "text" or answer.kind == "text":
        return plain(gold.text, fold=True) == plain(answer.text, fold=True) != ""
    printed = answer.kind == "tuple" and answer.parts[:2] == ("[", "]")
    if gold.kind == "list" and printed and len(answer.parts) > 4:
        answer = Statement("list", answer.parts[2:], answer.text)  # [1, 2] may be an interval
    if gold.kind != answer.kind or len(gold.parts) != len(answer.parts):
        return False
    if gold.kind == "tuple":
        return gold.parts[:2] == answer.parts[:2] and all(
            same(a, b, equal) for a, b in zip(gold.parts[2:], answer.parts[2:], strict=True)
        )
    if gold.kind in ("matrix", "ratio"):
        return all(same(a, b, equal) for a, b in zip(gold.parts, answer.parts, strict=True))
    return _same_list(gold, answer, equal)


def _by_name(gold: Statement, answer: Statement) -> tuple[Statement, Statement] | None:
    """Returns both as lists of named values where one is a pair and the other names its parts:
    (x, y) = (1, 2), or (1, 2) alone, against x = 1, y = 2."""
    pairs = [_stated(s).kind == "tuple" for s in (gold, answer)]
    listed = answer if pairs[0] else gold
    if pairs[0] == pairs[1] or listed.kind != "list" or not all(map(_name, listed.parts)):
        return None
    pair = gold if pairs[0] else answer
    opening, closing, *values = _stated(pair).parts
    names = re.findall(_CORE, pair.parts[0]) if pair.kind == "named" else "xyz"[: len(values)]
    if opening + closing != "()" or len(names) != len(values):
        return None
    parts = zip(names, values, strict=True)
    named = Statement("list", tuple(Statement("named", (n, v, None), v.text) for n, v in parts), "")
    return (named, answer) if pairs[0] else (gold, named)


def _stated(statement: Statement) -> Statement:
    return statement.parts[1] if statement.kind == "named" else statement


def _is_settled(statement: Statement) -> bool:
    tree = _tree(statement)
    return tree is None or not symbols_of(tree)


def _tree(statement: Statement) -> Tree | None:
    if statement.kind == "expression" and statement.parts[1] is None:
        return statement.parts[0]
    if statement.kind == "number" and statement.parts[0].unit is None:
        return ("number", statement.parts[0].number)
    return parse(statement.text) if statement.kind == "text" else None


def _sides(statement: Statement) -> tuple[Tree, Tree] | None:
    if statement.kind == "equation":
        return statement.parts
    if statement.kind == "named":
        name, value = statement.parts[2], _tree(statement.parts[1])
        return (name, value) if name is not None and value is not None else None
    return None


def _same_expression(gold: Statement, answer: Statement, equal: Equal) -> bool:
    tree, unit = gold.parts
    if answer.kind == "expression":
        other, found = answer.parts
        return (unit is None or found is None or same_unit(unit, found)) and equal(tree, other)
    if answer.kind == "number" and answer.parts[0].unit != "%":
        number: Number = answer.parts[0]
        agrees = unit is None or number.unit is None or same_unit(unit, number.unit)
        return agrees and equal(tree, ("number", number.number))
    other = _tree(answer)
    return other is not None and equal(tree, other)


def _same_list(gold: Statement, answer: Statement, equal: Equal) -> bool:
    """Compares without order. With several names (a = 3, b = 4), each keeps its value."""
    named = [[p.parts[0] for p in s.parts if p.kind == "named"] for s in (gold, answer)]
    if not named[0] and len({name[:1] for name in named[1] if "_" in name[1:2]}) == 1:
        named[1] = []  # x_1 = 2, x_2 = 3 are the values of one unknown
    several = [len(set(names)) > 1 for names in named]
    if any(several) and (several != [True, True] or sorted(named[0]) != sorted(named[1])):
        return False
    left = list(answer.parts)
    for part in gold.parts:
        for i, other in enumerate(left):
            mixed = several[0] and _name(part) != _name(other)
            if not mixed and same(part, other, equal):
                del left[i]
                break
        else:
            return False
    return True


def _name(statement: Statement) -> str | None:
    return statement.parts[0] if statement.kind == "named" else None


def plain(text: str, *, fold: bool = False) -> str:
    """Reduces a formula or word to what must be equal: no spaces, no needless braces, no case if
    `fold`."""
    text = without_latex(_ABOUT.sub("≈", one_spelling(text))).replace("\\infty", "∞")
    text = re.sub(r"\{(\w|\\?pi)\}", r"\1", text).replace("\\pi", "π")
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)
    text = without_stop(text)
    if inside := re.fullmatch(r"\(([^(),]*)\)", text):
        text = inside[1]
    return text.casefold() if fold else text
