"""Numbers with units, as exact fractions."""

import re
from dataclasses import dataclass
from fractions import Fraction

from flow_grpo_jax.answers.latex import one_spelling, without_latex
from flow_grpo_jax.answers.qa import UNSIGNED
from flow_grpo_jax.answers.text import MAX_EXPRESSION
from flow_grpo_jax.answers.units import MONEY, SHORT, Unit, parse_unit, same_unit

_GROUPED = r"\d{1,3}(?: \d{3})+(?![\d\s]*/)(?:\.\d+)?"  # 1 234 567
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?P<money>[$€£¥₹]?)\s*(?:(?P<whole>\d+)\s+(?=\d+\s*/))?"
    rf"(?P<top>{_GROUPED}|{UNSIGNED})(?P<repeated>\.?\\overline\{{\d+\}})?"
    rf"(?:\s*/\s*(?P<bottom>-?(?:{UNSIGNED})))?"
    r"(?:(?:e|\s*(?:\*|(?<=[\d ])x)\s*10\s*\^\s*)\{?(?P<exponent>[-+]?\d{1,3})\}?)?"
    r"\.?(?P<unit>(?!\d).*)",
    re.ASCII | re.I,
)
# Brackets that a value may wear: -(1/2), (-1)/(-2). In 2(3) they stand for a product.
_BRACKETS = re.compile(r"(?:(?<![^/])|^([-+]))\((-?[\d./]+)\)(?=/|$)")
_NAME = re.compile(r"[a-zA-Z](?:_\w|_\{\w+\})?(?:\(\w\))?\s*=(?!=)")
_MONEY_BEHIND = re.compile(r"(.*\d)\s*\\?([$€£¥₹¢])")
_CURRENCY_BEFORE = re.compile(r"(?:US\s*\\?\$|USD|EUR|GBP)\s*(?=[\d.])")
_CURRENCIES = {"E": "€", "G": "£"}
_SCALES = {"dozen": 12, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PERCENTS = ("%", "percent", "per cent", "percentage points", "pct")


@dataclass(frozen=True)
class Number:
    """number: as written (50 for "50%"). unit: "%" for percent; None: none."""

    number: Fraction
    unit: Unit | str | None

    def equals(self, other: "Number") -> bool:
        """Returns whether the values are the same, exactly: 1/3 is not 0.333.

        Units must agree where both have one. 50% equals 1/2, and 50 (the sign left out).
        """
        percents = [number.unit == "%" for number in (self, other)]
        if self.unit and other.unit and percents != [True, True]:
            return not any(percents) and same_unit(self.unit, other.unit) and self._same(other)
        if self._same(other):
            return True
        percent, plain = (self, other) if percents[0] else (other, self)
        return any(percents) and not all(percents) and percent.number / 100 == plain.number

    def _same(self, other: "Number") -> bool:
        return self.number == other.number


def parse_number(text: str) -> Number | None:
    r"""Returns the number that the whole of `text` is, or None.

    Takes 1,000 (also 1{,}000, 1\,000 and 1 000), -2.5, 3/4, \frac{3}{4}, 3 1/2, 3\frac12, 2.5e3,
    2.5 \times 10^{3}, 0.\overline{3}, 50\%, 2 million, $5$, \$5, x = 5, and a unit after the number
    or of money before it. Sums, products, powers and roots are not worked out: "17*23" is not an
    answer to 17 times 23.
    """
    if len(text) > MAX_EXPRESSION or ".." in text:  # 0.333... goes on
        return None
    text = one_spelling(text).strip()
    text = _CURRENCY_BEFORE.sub(lambda name: _CURRENCIES.get(name[0][0], "\\$"), text, count=1)
    money = re.match(r"[\s($]*[-+]?\s*\\\$", text) or (
        text.count("$") == 1 and re.match(r"[-+]?\$", text)
    )
    behind = _MONEY_BEHIND.fullmatch(text)
    if behind and text.count("$") < 2:
        text = behind[1]
    text = without_latex(text).replace("**", "^")
    text = re.sub(r"\\frac\{\s*([-+\d.,]+)\s*\}\{\s*(-?\d[\d.,]*)\s*\}", r" \1/\2", text)
    text = (text[name.end() :] if (name := _NAME.match(text)) else text).strip()
    while re.fullmatch(r"\([^(),]*\)|\{[^{},]*\}", text):
        text = text[1:-1].strip()
    text = _BRACKETS.sub(r"\1\2", text)
    match = _NUMBER.fullmatch(text)
    value = _value(match) if match else None
    if value is None:
        return None
    spelled = match["unit"].strip().rstrip(".")
    unit = spelled.lower()
    for word, scale in _SCALES.items():
        if unit.split()[:1] == [word]:
            value, spelled = value * scale, spelled[len(word) :].strip()
            unit = spelled.lower()
            break
    if unit in _PERCENTS:
        return Number(value, "%")
    before = "$" if money else match["money"] or (behind[2] if behind else "")
    before = parse_unit(MONEY[before]) if before else None
    if not unit:
        return Number(value, before)
    first = re.match(r"[a-zA-Z]*", spelled)[0]
    glued = match["unit"][0].isalpha()
    short = first == "L" or (first if len(first) == 1 else first.lower()) in SHORT  # 5M: millions
    if not first or ((glued or len(first) == 1) and not short):
        return None
    parsed = parse_unit(spelled)
    if parsed is None or (before and not same_unit(before, parsed)):
        return None
    return Number(value, parsed)


def _value(match: re.Match) -> Fraction | None:
    top, bottom = (re.sub("[, ]", "", match[group] or "1") for group in ("top", "bottom"))
    number = Fraction(top)
    if repeated := match["repeated"]:  # 0.1\overline{6}: after the point, the digits that come back
        if ("." in top) == repeated.startswith("."):
            return None
        digits = re.sub(r"\D", "", repeated)
        scale = 10 ** len(top.partition(".")[2])
        number += Fraction(int(digits), (10 ** len(digits) - 1) * scale)
    if Fraction(bottom) == 0:
        return None
    number = number / Fraction(bottom) + int(match["whole"] or 0)
    number *= Fraction(10) ** int(match["exponent"] or 0)
    return -number if match["sign"] == "-" else number
