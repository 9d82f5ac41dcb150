"""Numbers with units, as exact fractions."""

import re
from dataclasses import dataclass
from fractions import Fraction

from flow_grpo_jax.answers import equations, units
from flow_grpo_jax.answers.latex import without_latex
from flow_grpo_jax.answers.qa import UNSIGNED
from flow_grpo_jax.answers.text import MAX_EXPRESSION

_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*[€£]?\s*(?:(?P<whole>\d+)\s+(?=\d+\s*/))?(?P<top>{UNSIGNED})"
    rf"(?:\s*/\s*(?P<bottom>{UNSIGNED}))?"
    r"(?:(?:e|\s*\*\s*10\s*\^\s*)\{?(?P<exponent>[-+]?\d{1,2})\}?)?\.?(?P<unit>(?!\d).*)",
    re.ASCII | re.I,
)
_UNIT_WORD = r"[a-z]+\.?(?:\^\{?[23]\}?)?"
_UNIT = re.compile(rf"{_UNIT_WORD}(?:\s*/\s*{_UNIT_WORD}|\s+{_UNIT_WORD}){{0,3}}", re.I)
# Words that change the number before them instead of naming what is counted.
_NOT_UNITS = frozenset(
    {"or", "and", "nor", "not", "to", "if", "but", "than", "more", "less", "fewer", "greater"}
    | {"plus", "minus", "times", "over", "by", "mod", "modulo", "choose", "power", "negative"}
    | {"squared", "cubed", "factorial", "root", "sqrt", "pi", "log", "ln", "sin", "cos", "tan"}
    | {"hundred", "infinity", "half", "halves", "third", "thirds", "quarter", "quarters"}
    | {"fourth", "fourths", "fifth", "fifths", "sixth", "sixths", "seventh", "sevenths", "eighth"}
    | {"eighths", "ninth", "ninths", "tenth", "tenths", "hundredths", "thousandths"}
)
_SCALES = {"dozen": 12, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PERCENTS = ("%", "percent", "per cent", "percentage points", "pct")


@dataclass(frozen=True)
class Number:
    """number: as written (50 for "50%"). unit: of `units`; "%" for percent; "": none."""

    number: Fraction
    unit: str

    def equals(self, other: "Number") -> bool:
        """Returns whether the values are the same, exactly: 1/3 is not 0.333.

        Units must agree where both have one. 50% equals 1/2, and 50 (the sign left out).
        """
        if self.unit == other.unit or not (self.unit and other.unit):
            if self.number == other.number:
                return True
            if "%" in (self.unit, other.unit) and self.unit != other.unit:
                percent, plain = (self, other) if self.unit == "%" else (other, self)
                return percent.number / 100 == plain.number
        return False


def parse_number(text: str) -> Number | None:
    r"""Returns the number that the whole of `text` is, or None.

    Takes 1,000 (also 1{,}000 and 1\,000), -2.5, 3/4, \frac{3}{4}, 3 1/2, 3\frac12, 2.5e3,
    2.5 \times 10^{3}, 50\%, 2 million, $5$, \$5, x = 5, and a unit after the number. Sums,
    products, powers and roots are not worked out: "17*23" is not an answer to 17 times 23.
    """
    if len(text) > MAX_EXPRESSION:
        return None
    text = without_latex(text)
    text = re.sub(r"\\frac\{\s*([-+\d.,]+)\s*\}\{\s*(\d[\d.,]*)\s*\}", r" \1/\2", text)
    text = re.sub(r"\\frac\{\s*([\d.,]+)\s*\}\{\s*-(\d[\d.,]*)\s*\}", r" -\1/\2", text)
    text = re.sub(
        r"(?<![\d.,])(\d{1,3}(?: \d{3})+)(?![\d/])", lambda m: m[0].replace(" ", ","), text
    )
    text = re.sub(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", "*", text)
    text = re.sub(r"(\d*)\.(\d{0,9})\\overline\s*\{(\d{1,9})\}", _repeating, text)
    text = (equations.named_value(text, strict=False) or text).strip()
    while re.fullmatch(r"\([^()]*\)|\{[^{}]*\}", text):
        text = text[1:-1].strip()
    match = _NUMBER.fullmatch(text)
    if not match:
        return None
    number, bottom = (Fraction((match[g] or "1").replace(",", "")) for g in ("top", "bottom"))
    if bottom == 0:
        return None
    number = number / bottom + int(match["whole"] or 0)
    number *= Fraction(10) ** int(match["exponent"] or 0) * (-1 if match["sign"] == "-" else 1)
    unit = match["unit"].strip().rstrip(".").lower()
    for word, scale in _SCALES.items():
        if unit.split()[:1] == [word]:
            number, unit = number * scale, unit[len(word) :].strip()
            break
    if unit in _PERCENTS:
        return Number(number, "%")
    if not unit:
        return Number(number, "")
    words = re.findall(r"[a-z]+", unit)
    if not _UNIT.fullmatch(unit) or not _NOT_UNITS.isdisjoint(words):
        return None
    if (match["unit"][0].isalpha() or len(words[0]) == 1) and words[0] not in units.SHORT:
        return None
    return Number(number, units.canonical(unit))


def _repeating(match):
    whole, fixed, again = match.groups()
    nines = (10 ** len(again) - 1) * 10 ** len(fixed)
    value = Fraction(int(again), nines) + Fraction(f"{whole or 0}.{fixed or 0}")
    return f"{value.numerator}/{value.denominator}"
