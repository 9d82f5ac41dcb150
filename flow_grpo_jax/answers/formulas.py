r"""Answers of kind "math": what a text says, and whether two texts say the same.

A text is read as one of: a number with a unit, a formula, an equation, alternatives (a set), a
tuple or an interval; what is none of these is compared as text. The rules:

- A number must be written as one: 1024 is not answered by 2^{10}, nor 1/12 by 0.0833.
- Formulas are equal if they are by arithmetic (`algebra`), in LaTeX or as Python prints them.
- x = 5 names a value and equals 5 (`equations`). Other equations equal equations alone: both sides
  brought to one, up to a number.
- "or", "and", commas, semicolons and \pm give alternatives, equal as sets, whatever their order.
  One of them alone, or one too many, is not.
- (1, 2) keeps its order and its brackets; 2 \le x < 5 is [2, 5).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from flow_grpo_jax.answers import algebra, equations, expressions, units
from flow_grpo_jax.answers.latex import without_latex
from flow_grpo_jax.answers.numbers import Number, parse_number
from flow_grpo_jax.answers.text import MAX_EXPRESSION, final_answer, golds_of

MAX_PARTS = 20  # of alternatives or a tuple
_SEPARATOR = re.compile(r"\s*(?:[;∪∨]|,\s*(?:and|or)\b|,(?=\s)|\b(?:and|or)\b|\\(?:cup|lor)\b)\s*")
_COMMA = re.compile(r"\s*,\s*")
_DOTS = re.compile(r"\\[lc]?dots|…|\.\.")
_RELATION = re.compile(r"<=|>=|[<>≤≥⩽⩾]|\\(?:[lg]eq?(?:slant)?|[lg]t)(?![a-zA-Z])")
_STRICT = ("<", ">", "\\lt", "\\gt")
_UNIT = re.compile(r"(.*\S)\s+((?:(?:square|sq|cubic)\s+)?[a-zA-Z]{2,}(?:\^\{?[23]\}?)?)")
_LETTER = re.compile(r"(?:[^\W\d_]|\\[a-z]{2,7})(?:_\w)?")


@dataclass(frozen=True)
class Formula:
    """A value with a unit, "" for none."""

    value: algebra.Value
    unit: str = ""


@dataclass(frozen=True)
class Equation:
    """named: the text of the value that it names, None if none. difference: of its two sides."""

    name: str
    named: str | None
    difference: algebra.Value | None
    text: str


@dataclass(frozen=True)
class Parts:
    """kind: "set", or the two brackets of a tuple or interval. items: what was read of each."""

    kind: str
    items: tuple


def check(question: Mapping, answer: str) -> bool:
    answer = final_answer(answer)
    return any(same(final_answer(gold), answer) for gold in golds_of(question))


def same(gold: str, answer: str) -> bool:
    """Returns whether `answer` says what `gold` says, by the rules above."""
    if gold.split() == answer.split():
        return bool(_text(without_latex(gold)))
    if max(len(gold), len(answer)) > MAX_EXPRESSION:
        return False
    golds = [gold]
    if re.search(r"(?<![\\a-z])log\b", answer):  # a program's, natural; LaTeX may mean the same
        golds.append(re.sub(r"\\log(?![a-zA-Z_])", r"\\ln", gold))
    found = read(answer, strict=False)
    try:
        return any(_same(read(wanted, strict=True), found) for wanted in golds)
    except algebra.TooMuch:
        return False


def read(text: str, *, strict: bool):
    """Returns Number, Formula, Equation, Parts, or the normalised text.

    Args:
      strict: of `equations.named_value`.
    """
    plain = without_latex(text).strip().rstrip(".").strip()
    bare = _unwrapped(plain)
    if (number := _number(bare)) is not None:
        return number
    if (parts := _parts(bare, strict=strict)) is not None:
        return parts
    if (interval := _inequality(bare)) is not None:
        return interval
    if len(equations.sides(bare)) > 1:
        return _equation(bare, strict=strict)
    if "±" in bare or "\\pm" in bare or "∓" in bare:
        both = [expressions.value_of(bare, plus_minus=sign) for sign in (1, -1)]
        if None not in both:
            return Parts("set", tuple(map(Formula, both)))
    if (formula := _formula(bare)) is not None:
        return formula
    return _text(plain)


def _number(text):
    """Reads a number; "x = 5" is left to `_equation`."""
    return None if len(equations.sides(text)) > 1 else parse_number(text)


def _formula(text):
    if re.fullmatch(r"[a-zA-Z]{2,}", text) and text not in (*expressions.NAMES, *expressions.GREEK):
        return None  # a word
    if (match := _UNIT.fullmatch(text)) and (unit := units.canonical(match[2])) in _KNOWN_UNITS:
        value = expressions.value_of(match[1])
        if value is not None:
            return Formula(value, unit)
    value = expressions.value_of(text)
    return None if value is None else Formula(value)


_KNOWN_UNITS = frozenset(
    name + power for name in units.NAMES.values() for power in ("", "^2", "^3")
) | {"unit", "unit^2", "unit^3"}


def _equation(text, *, strict):
    sides = equations.sides(text)
    difference = None
    if len(sides) == 2:
        left, right = map(expressions.value_of, sides)
        if left is not None and right is not None:
            try:
                difference = left - right
            except algebra.TooMuch:
                difference = None
    named = equations.named_value(text, strict=strict)
    return Equation(equations.name_of(text), named, difference, _text(text))


def _parts(text, *, strict):
    """Reads a set, a tuple or alternatives; None if the text is none."""
    for opening, closing in (("\\{", "\\}"), ("{", "}")):
        if text.startswith(opening) and text.endswith(closing):
            inside = text[len(opening) : -len(closing)]
            items = _split(inside, _COMMA)
            if _balanced(inside) and items and (len(items) > 1 or opening == "\\{"):
                return _of("set", items, strict)
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _balanced(text[1:-1]):
        items = _split(text[1:-1], _COMMA)
        if items and len(items) > 1:
            return _of(text[0] + text[-1], items, strict)
    if _DOTS.search(text):  # a sequence
        return None
    items = _split(text, _SEPARATOR)
    if items and len(items) == 1 and _number(text) is None:
        items = _split(text, _COMMA)
    return _of("set", items, strict) if items and len(items) > 1 else None


def _of(kind, items, strict):
    if len(items) > MAX_PARTS or not all(items):
        return None
    return Parts(kind, tuple(read(item, strict=strict) for item in items))


def _split(text, separator):
    """Splits where no bracket is open; None if brackets do not match."""
    found, start, at, depth = [], 0, 0, 0
    while at < len(text):
        if text[at] in "([{":
            depth += 1
        elif text[at] in ")]}":
            depth -= 1
            if depth < 0:
                return None
        elif depth == 0 and (match := separator.match(text, at)) and match.end() > at:
            boundary = match[0].strip()[:1].isalpha()
            if not boundary or at == 0 or not text[at - 1].isalnum():
                found.append(text[start:at].strip())
                start = at = match.end()
                continue
        at += 1
    return None if depth else [*found, text[start:].strip()]


def _balanced(text):
    return _split(text, _COMMA) is not None


def _unwrapped(text):
    """Takes off brackets that stand around everything and hold no list."""
    while len(text) > 1 and text[0] + text[-1] in ("()", "{}"):
        inside = text[1:-1].strip()
        if not _balanced(inside) or len(_split(inside, _COMMA)) > 1 or inside.endswith("\\"):
            break
        text = inside
    return text


def _inequality(text):
    """Reads 2 <= x < 5 and x > 3 as intervals."""
    signs = [match[0] for match in _RELATION.finditer(text)]
    sides = [side.strip() for side in _RELATION.split(text)]
    if not 1 <= len(signs) <= 2 or not all(sides) or "=" in "".join(sides):
        return None
    down = {sign.startswith((">", "≥", "⩾", "\\g")) for sign in signs}
    if len(down) > 1:
        return None
    closed = [sign not in _STRICT for sign in signs]
    if down == {True}:
        sides, closed = sides[::-1], closed[::-1]
    infinite = Formula(algebra.symbol("∞"))
    if len(sides) == 3:
        low, name, high = sides
        ends = (read(low, strict=True), read(high, strict=True))
    elif _LETTER.fullmatch(sides[0]):
        name, ends = sides[0], (Formula(-infinite.value), read(sides[1], strict=True))
        closed = [False, *closed]
    else:
        name, ends = sides[1], (read(sides[0], strict=True), infinite)
        closed = [*closed, False]
    if not _LETTER.fullmatch(name):
        return None
    return Parts(("[" if closed[0] else "(") + ("]" if closed[1] else ")"), ends)


def _text(text):
    """Reduces a text to what must be equal: no spaces, no case, no needless braces."""
    text = text.replace("\\infty", "∞")
    text = re.sub(r"\{(\w|\\?pi)\}", r"\1", text).replace("\\pi", "π")
    return "".join(text.split()).casefold().rstrip(".")


# ---- comparing ---------------------------------------------------------------------------------


def _same(gold, answer):
    match gold, answer:
        case Equation(), Equation():
            return _same_equation(gold, answer)
        case Equation(), _:
            return gold.named is not None and _same(read(gold.named, strict=True), answer)
        case _, Equation():
            return answer.named is not None and _same(gold, read(answer.named, strict=False))
        case Number(), Number():
            return answer.equals(gold)
        case Formula(), Formula() | Number():
            return _same_value(gold, answer)
        case Parts(), Parts():
            return _same_parts(gold, answer)
        case Parts(kind="set"), _:
            return all(_same(item, answer) for item in gold.items)
        case _, Parts(kind="set"):
            return all(_same(gold, item) for item in answer.items)
        case str(), str():
            return bool(gold) and gold == answer
    return False


def _same_value(gold, answer):
    if isinstance(answer, Number):
        if answer.unit == "%":
            return False
        answer = Formula(algebra.constant(answer.number), answer.unit)
    units_agree = gold.unit == answer.unit or not (gold.unit and answer.unit)
    return units_agree and gold.value.equals(answer.value)


def _same_equation(gold, answer):
    if gold.text == answer.text:
        return True
    if gold.difference is not None and answer.difference is not None:
        tops = [Fraction(1), gold.difference, answer.difference][1:]
        if _polynomial(tops[0]).vanishes_with(_polynomial(tops[1])):
            return True
    if gold.named is None or answer.named is None:
        return False
    return _same(read(gold.named, strict=True), read(answer.named, strict=False))


def _polynomial(value):
    return algebra.Value(value.top, algebra.ONE)


def _same_parts(gold, answer):
    if gold.kind != "set" or answer.kind != "set":
        return (
            gold.kind == answer.kind
            and len(gold.items) == len(answer.items)
            and all(map(_same, gold.items, answer.items))
        )
    names = [
        {item.name for item in each.items if isinstance(item, Equation) and item.named is not None}
        for each in (gold, answer)
    ]
    by_name = any(len(each) > 1 for each in names)  # x = 1, y = 4
    if by_name and names[0] != names[1]:
        return False

    def equal(wanted, found):
        if by_name and getattr(wanted, "name", "") != getattr(found, "name", ""):
            return False
        return _same(wanted, found)

    return all(any(equal(w, f) for f in answer.items) for w in gold.items) and all(
        any(equal(w, f) for w in gold.items) for f in answer.items
    )
