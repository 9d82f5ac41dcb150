r"""What Python, numpy and sympy print, rewritten as it is written by hand.

Rational(1, 2), Integer(3), np.float64(0.5)          (1/2), 3, 0.5
Interval.Ropen(0, 1), Union(A, B), FiniteSet(1, 2)   [0, 1), A ∪ B, {1, 2}
Eq(x, 2), (x > 1) & (x < 2), {x: 1, y: 2}            x = 2, x > 1 and x < 2, {x = 1, y = 2}
Matrix([[1], [2]]), array([1, 2, 3])                 \begin{matrix}1\\2\end{matrix}, [1, 2, 3]
1+2j, [5], [(1, 2), (3, 4)], inf, EmptySet           1+2i, 5, (1, 2), (3, 4), oo, \emptyset
"""

import re

_NAME = r"(?<![\w\\.])(?:np\.|numpy\.|sympy\.|S\.)?"
_CALL = re.compile(
    rf"{_NAME}(Interval(?:\.[LR]?open)?|Union|FiniteSet|(?:frozen)?set|Eq|Rational|Fraction"
    r"|Integer|Decimal|(?:float|int)(?:32|64)|(?:Mutable|Immutable)?(?:Dense)?Matrix|array)\("
)
_CONSTANTS = {
    r"EmptySet(?:\(\))?|set\(\)": r"\\emptyset",
    "Reals": r"\\mathbb{R}",
    "[Ii]nf(?:inity)?": "oo",
}
_INTERVALS = {
    "Interval": "[]",
    "Interval.open": "()",
    "Interval.Lopen": "(]",
    "Interval.Ropen": "[)",
}
_REAL = r"(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d{1,3})?"
_COMPLEX = re.compile(rf"\(?([-+]?(?:{_REAL}[-+])?{_REAL})j\)?", re.ASCII)
_ENTRY = re.compile(r"([a-zA-Z](?:_?\w)?)\s*:\s*([^\s=<>|:][^=<>|:]*)")  # of a dictionary


def as_written(text: str) -> str:
    """Returns `text` without what only programs write; any other text as it is."""
    text = text.strip()
    if number := _COMPLEX.fullmatch(text):
        return number[1] + "i"
    for printed, written in _CONSTANTS.items():
        text = re.sub(rf"{_NAME}(?:{printed})(?!\w)", written, text)
    start = 0
    while call := _CALL.search(text, start):
        end = _closing(text, call.end())
        written = None if end is None else _call(call[1], _items(text[call.end() : end]))
        if written is None:
            start = call.end()
        else:
            text, start = text[: call.start()] + written + text[end + 1 :], call.start()
    text = re.sub(r"(?<!\\)\{([^{}]*)\}", _dictionary, text)
    return _bracketed(text)


def _call(name: str, items: list[str]) -> str | None:
    """Returns what a call with these arguments stands for, or None."""
    if name in _INTERVALS and len(items) == 2:
        opening, closing = _INTERVALS[name]
        opening, closing = (
            "(" if items[0] == "-oo" else opening,
            ")" if items[1] == "oo" else closing,
        )
        return f"{opening}{items[0]}, {items[1]}{closing}"
    if name == "Union":
        return " ∪ ".join(items)
    if name == "FiniteSet":
        return f"{{{', '.join(items)}}}"
    if name == "Eq" and len(items) == 2:
        return " = ".join(items)
    if name in ("Rational", "Fraction") and len(items) == 2:
        return f"({items[0]}/{items[1]})" if re.fullmatch(r"-?\d+,\d+", ",".join(items)) else None
    if len(items) != 1:
        return None
    if name.endswith("set"):
        return items[0] if items[0].startswith("{") else None
    if name.endswith("Matrix") or name == "array":
        return _matrix(items[0], column=name != "array") or (name == "array" and items[0]) or None
    return items[0].strip("'\"")


def _matrix(text: str, *, column: bool) -> str | None:
    r"""Returns [[1, 2], [3, 4]] as a matrix in LaTeX. column: [1, 2] is one, too."""
    rows = [_list(row) for row in _list(text) or ()]
    if column and None in rows:
        rows = [[row] for row in _list(text) or ()]
    if len(rows) < (1 if column else 2) or None in rows or len({len(row) for row in rows}) > 1:
        return None
    return r"\begin{matrix}" + r"\\".join("&".join(row) for row in rows) + r"\end{matrix}"


def _dictionary(match: re.Match) -> str:
    entries = [_ENTRY.fullmatch(item) for item in _items(match[1])]
    if not entries or None in entries:
        return match[0]
    return f"{{{', '.join(f'{entry[1]} = {entry[2]}' for entry in entries)}}}"


def _bracketed(text: str) -> str:
    """Rewrites conditions in brackets, and lists that are no interval."""
    for sign, word in (("&", " and "), ("|", " or ")):
        parts = _items(text, sign)
        if len(parts) > 1 and all(map(_is_condition, parts)):
            return word.join(part[1:-1] for part in parts)
    items = _list(text)
    if items and all(item[0] in "({" for item in items):
        return ", ".join(items)
    if items and len(items) == 1 and re.fullmatch(r"[-+]?\d+(?:[./]\d+)?", items[0], re.ASCII):
        return items[0]
    return _matrix(text, column=False) or text


def _is_condition(text: str) -> bool:
    whole = text[0] == "(" and _closing(text, 1) == len(text) - 1
    return whole and bool(re.search("[<>=≤≥]", text))


def _list(text: str) -> list[str] | None:
    """Returns the items of a text in square brackets, or None."""
    if not text.startswith("[") or _closing(text, 1) != len(text) - 1:
        return None
    return _items(text[1:-1])


def _items(text: str, separator: str = ",") -> list[str]:
    """Returns the parts between separators outside brackets, stripped; [] if one is empty."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if c == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    parts = [part.strip() for part in parts]
    return parts if all(parts) else []


def _closing(text: str, start: int) -> int | None:
    """Returns where the bracket closes that opened before `start`, or None."""
    depth = 1
    for at in range(start, len(text)):
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if depth == 0:
            return at
    return None
