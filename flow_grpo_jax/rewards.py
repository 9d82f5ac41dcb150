r"""Rule-based checkers: is the final answer right? Exact, local and fast; no model judges anything.

`score(question, answer)` looks at `question["kind"]`:

  qa        SQuAD exact match (or token F1), best over the accepted answers
  math      equal as exact fractions; a gold that is no number is compared as normalised text
  gameof24  an arithmetic expression over the given numbers that is worth 24
  choice    the letter, number or text of one option

Answers are written by the model that is rewarded, so every checker treats them as hostile: data
only, never evaluated, capped in length, and 0 wherever the text can be read in two ways. A fault in
the *question* (unknown kind, gold that is no option) raises ValueError instead of scoring 0.

What counts as the answer: the content of the last `<answer>...</answer>` if there is one, otherwise
the whole text. From that, math, gameof24 and choice take the last `\boxed{...}`, otherwise the
sentence after the last "answer is" / "answer:", otherwise all of it. Nothing is ever picked from
running text: "it is 5, or perhaps 7" is worth 0 whichever is right.
"""

import ast
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

MAX_ANSWER = 20_000  # characters; a longer answer scores 0 as "<kind>/too_long"
MAX_EXPRESSION = 300  # characters of a number, formula or arithmetic expression


@dataclass(frozen=True)
class Reward:
    """value: in [0, 1] (0 or 1 unless metric is "f1"). source: the checker that gave it.
    known: False if no checker came to a verdict; the value is then 0 and means nothing.
    """

    value: float
    source: str
    known: bool = True


def score(question: Mapping, answer: str, *, metric: str = "exact_match") -> Reward:
    """Returns the reward of `answer`, the text of a finished trajectory, to `question`.

    metric: for kind "qa": "exact_match" (0 or 1) or "f1" (token F1, in [0, 1]).

    Raises ValueError on an unknown kind or metric, and on a question without a usable gold.
    """
    kind = question["kind"]
    if kind not in CHECKERS:
        raise ValueError(
            f"Question {question.get('id')!r} has kind {kind!r}; valid: {', '.join(CHECKERS)}."
        )
    if metric not in ("exact_match", "f1"):
        raise ValueError(f"Unknown metric {metric!r}; valid: exact_match, f1.")
    if len(answer) > MAX_ANSWER:
        return Reward(0.0, f"{kind}/too_long")
    answer = tagged_answer(answer)
    if kind == "qa" and metric == "f1":
        return Reward(max(f1(answer, gold) for gold in golds_of(question)), "qa/f1")
    check, source = CHECKERS[kind]
    return Reward(float(bool(answer) and check(question, answer)), source)


def golds_of(question: Mapping) -> tuple[str, ...]:
    """Returns the accepted answers; `question["answer"]` is a string or a sequence of them."""
    answer = question["answer"]
    golds = (answer,) if isinstance(answer, str) else tuple(answer)
    if not golds or not all(isinstance(gold, str) and gold.strip() for gold in golds):
        raise ValueError(
            f"Question {question.get('id')!r} has answer {answer!r}; "
            "expected a non-empty string or a list of them."
        )
    return golds


def tagged_answer(text: str) -> str:
    """Returns the content of the last `<answer>...</answer>`, else `text`."""
    tagged = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", text, re.DOTALL)
    return (tagged[-1] if tagged else text).strip()


def final_answer(text: str, *, whole_line: bool = False) -> str:
    r"""Returns the last `\boxed{}`'s content, else the sentence after "answer is", else `text`.

    whole_line: take the rest of the line after "answer is" instead of its first sentence.
    """
    start = text.rfind(r"\boxed{")
    if start >= 0:
        depth = 0
        for end in range(start + 6, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start + 7 : end].strip()
    tail = text[max((m.end() for m in _ANSWER_IS.finditer(text)), default=len(text)) :].strip()
    if tail:
        text = tail.splitlines()[0]
        if not whole_line:
            text = re.split(r"\.(?=\s|$)", text, maxsplit=1)[0]
    return text.rstrip(" \t\r\n*_`.").lstrip(" \t\r\n*_`")


_ANSWER_IS = re.compile(
    r"\b(?:answer|option|choice)\b(?:[^.\n:=]{0,60}?\bis\b|[\s*_]{0,9}[:=])[\s*_:]{0,9}", re.I
)

# ---------------------------------------------------------------------------------------- qa


def normalise(text: str) -> str:
    """Normalises as SQuAD does: lower case, no punctuation, no articles, single spaces.

    Differs from the original script in two places: Unicode punctuation goes too (an en dash like a
    hyphen), and a point between digits stays, so that 10.8 is not 108.
    """
    text = unicodedata.normalize("NFC", text).lower()
    text = re.sub(r"(?<=\d)\.(?=\d)", "\0", text)
    text = "".join(
        c for c in text if c not in string.punctuation and unicodedata.category(c)[0] != "P"
    )
    text = re.sub(r"\b(a|an|the)\b", " ", text.replace("\0", "."))
    return " ".join(text.split())


def exact_match(prediction: str, gold: str) -> bool:
    """Compares after `normalise`; numbers by value; yes and no may carry an explanation.

    Gold "138,535" takes 138535 and 138535.0; "-1" does not take 1. Gold "yes" takes "Yes, both are
    French.", not "yes and no". A gold that normalises to nothing ("A") is compared as it stands.
    """
    if (number := _plain_number(gold)) is not None:
        return _plain_number(prediction) == number
    wanted = normalise(gold)
    if wanted in ("yes", "no"):
        return _yes_no(prediction) == wanted
    if not wanted:
        return prediction.strip().lower() == gold.strip().lower()
    return normalise(prediction) == wanted


def f1(prediction: str, gold: str) -> float:
    """Returns token F1 in [0, 1] after `normalise`; 1 on `exact_match`.

    0 where the two differ and one of them is yes, no or noanswer, or both are numbers.
    """
    if exact_match(prediction, gold):
        return 1.0
    words, wanted = normalise(prediction).split(), normalise(gold).split()
    all_or_nothing = (["yes"], ["no"], ["noanswer"])
    if words in all_or_nothing or wanted in all_or_nothing:
        return 0.0
    if _plain_number(gold) is not None and _plain_number(prediction) is not None:
        return 0.0
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2.0 * common / (len(words) + len(wanted)) if common else 0.0


def _plain_number(text: str) -> Fraction | None:
    """Reads a text that is nothing but a number; signs of money and percent are ignored."""
    text = text.strip().rstrip(".").translate(_SYMBOLS)
    if len(text) > MAX_EXPRESSION or not (match := _PLAIN_NUMBER.fullmatch(text)):
        return None
    return Fraction("".join(match.groups()).replace(",", ""))


def _yes_no(text: str) -> str | None:
    match = re.match(r"\W{0,9}(yes|no)\b(?:[.,;:!]+(?:\s|$)|\W*$)", text, re.I)
    found = set(re.findall(r"\b(yes|no)\b", text.lower()))
    return match[1].lower() if match and len(found) == 1 else None


# -------------------------------------------------------------------------------------- math

_SYMBOLS = str.maketrans(
    {"−": "-", "–": "-", "×": "*", "⋅": "*", "·": "*", "∗": "*", "÷": "/", "∕": "/", "⁄": "/"}
)
_TEXT_IN_LATEX = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*)\}")
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_PLAIN_NUMBER = re.compile(rf"([-+]?)\s?[$€£]?({_UNSIGNED})\s?%?", re.ASCII)
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*[€£]?\s*(?:(?P<whole>\d+)\s+(?=\d+\s*/))?(?P<top>{_UNSIGNED})"
    rf"(?:\s*/\s*(?P<bottom>{_UNSIGNED}))?"
    r"(?:(?:e|\s*\*\s*10\s*\^\s*)\{?(?P<exponent>[-+]?\d{1,2})\}?)?\.?(?P<unit>(?!\d).*)",
    re.ASCII | re.I,
)
_EQUATION = re.compile(r"(?:[^=,;<>!≠≤≥≈~\n]{1,40}=)+(?!=)")  # "x =", "p + q = 7 + 16 ="
_UNIT_WORD = r"[a-z]+\.?(?:\^\{?[23]\}?|[²³])?"
_UNIT = re.compile(rf"{_UNIT_WORD}(?:\s*/\s*{_UNIT_WORD}|\s+{_UNIT_WORD}){{0,3}}", re.I)
# A unit glued to its number, or of one letter, must be one of these: 5x, 5 i and 5pi are no units.
_SHORT_UNITS = frozenset(
    {"mm", "cm", "m", "km", "in", "ft", "yd", "mi", "mg", "g", "kg", "lb", "lbs", "oz", "ml", "l"}
    | {"ms", "s", "sec", "min", "h", "hr", "hrs", "mph", "kmh", "am", "pm", "kb", "mb", "gb", "tb"}
)
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
    """number: as written (50 for "50%"). unit: lower case, singular; "%" for percent; "": none."""

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
    text = _without_latex(text)
    text = re.sub(r"\\frac\{\s*([-+\d.,]+)\s*\}\{\s*(\d[\d.,]*)\s*\}", r" \1/\2", text)
    text = (text[left.end() :] if (left := _EQUATION.match(text)) else text).strip()
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
    if (match["unit"][0].isalpha() or len(words[0]) == 1) and words[0] not in _SHORT_UNITS:
        return None
    return Number(number, re.sub(r"[\s.{}]", "", unit).rstrip("s") or unit)


def _check_math(question: Mapping, answer: str) -> bool:
    answer = final_answer(answer)
    number = parse_number(answer)
    for gold in golds_of(question):
        gold = final_answer(gold)
        wanted = parse_number(gold)
        if wanted is None:
            if _formula(gold) and _formula(answer) == _formula(gold):
                return True
        elif number is not None and number.equals(wanted):
            return True
    return False


def _without_latex(text: str) -> str:
    """Removes delimiters, spacing, text wrappers and synonyms of LaTeX; leaves fractions."""
    text = text.translate(_SYMBOLS)
    text = re.sub(r"\\!\s*|\\[()\[\]]|\\(?:left|right|displaystyle)(?![a-zA-Z])|\$|\\\$", "", text)
    text = text.replace("\\%", "%").replace("{,}", ",")
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|°", " degrees", text)
    text = re.sub(r"(?<=\d)(?:\\[,;:]|[\u2009\u202f\xa0])(?=\d{3})", "", text)
    text = re.sub(r"\\[,;: ]|\\quad(?![a-zA-Z])|~|[\u2009\u202f\xa0]", " ", text)
    text = _TEXT_IN_LATEX.sub(r" \1", text)
    text = re.sub(r"\\(?:times|cdot)(?![a-zA-Z])", "*", text)
    text = re.sub(r"\\div(?![a-zA-Z])", "/", text)
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    return re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text).strip()


def _formula(text: str) -> str:
    """Reduces a formula or word to what must be equal: no spaces, no case, no needless braces."""
    text = _without_latex(text).replace("\\infty", "∞")
    text = re.sub(r"\{(\w|\\?pi)\}", r"\1", text).replace("\\pi", "π")
    text = re.sub(r"^[a-zA-Z](?:_\w|\([a-z]\))?\s*=(?!=)", "", text)
    return "".join(text.split()).casefold().rstrip(".")


# ---------------------------------------------------------------------------------- gameof24

_OPERATIONS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


def game_numbers(question: Mapping) -> tuple[int, ...]:
    """Returns `question["numbers"]`, or the first list like [1, 1, 4, 6] of its text."""
    if (numbers := question.get("numbers")) is None:
        listed = re.search(r"\[([\d\s,]+)\]", question["question"], re.ASCII)
        text = listed[1] if listed else question["question"]
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        if not numbers or not re.fullmatch(r"[\d\s,]+", text, re.ASCII):
            raise ValueError(
                f"Question {question.get('id')!r} names no numbers: {question['question'][:80]!r}. "
                'Add a field "numbers", e.g. [1, 1, 4, 6].'
            )
    return tuple(numbers)


def expression_value(text: str, numbers: Sequence[int]) -> Fraction | None:
    r"""Returns the exact value of an expression that uses each number exactly once, else None.

    Allowed: integers, + - * / and brackets; × ÷ − · \times \div \cdot \frac{}{} as other spellings,
    "x" between operands, and "= 24" at the end. Refused: a sign before an operand, powers, floor
    division, decimals, joined digits (12 from 1 and 2), multiplication without a sign, a division
    by zero.
    """
    if len(text) > MAX_EXPRESSION:
        return None
    text = re.sub(r"=\s*24$", "", _without_latex(text.rstrip(" .\n"))).strip()
    replaced = 1
    while replaced:  # innermost first, so that nested fractions need no brace matching
        text, replaced = re.subn(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", text)
    text = re.sub(r"(?<=[\d)\]])\s*[xX]\s*(?=[\d(\[])", "*", text)
    text = " ".join(text.translate(str.maketrans("[]{}", "()()")).split())
    if not re.fullmatch(r"[\d+\-*/() ]+", text, re.ASCII):
        return None
    if Counter(re.findall(r"\d+", text)) != Counter(str(number) for number in numbers):
        return None
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ZeroDivisionError, MemoryError, RecursionError):
        return None


def _value(node: ast.expr) -> Fraction | None:
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.BinOp(left, operator, right) if type(operator) in _OPERATIONS:
            a, b = _value(left), _value(right)
            return None if a is None or b is None else _OPERATIONS[type(operator)](a, b)
    return None


def _check_game(question: Mapping, answer: str) -> bool:
    return expression_value(final_answer(answer), game_numbers(question)) == 24


# ------------------------------------------------------------------------------------ choice

_LABEL = re.compile(
    r"(?:answer|option|choice)?\s*(?:\(([a-z])\)|([a-z])([.):]|\s|$))\s*(.*)", re.I | re.S
)
_MARKED = re.compile(r"\(([A-Z])\)|\b([A-Z])\)|\b(?:option|choice)\s+([A-Z])\b|\b([B-Z])\b")


def option_index(text: str, choices: Sequence[str]) -> int | None:
    """Returns the index of the one option that `text` names, or None if it names none or several.

    Names: "B", "b", "(B)", "B.", "option B", "B. Paris", "Paris", "Answer: B", and "2" (counted
    from 1, only if no option is itself a number). After a letter may follow an explanation, as long
    as it names no other option; letter and text of different options ("A. Paris") are ambiguous,
    and so is a letter that is another option's text.
    """
    text = _TEXT_IN_LATEX.sub(r"\1", final_answer(text, whole_line=True)).replace("**", "")
    named = _same_text(text, choices)
    match = _LABEL.fullmatch(text)
    label = _letter(match[1] or match[2]) if match else len(choices)
    if label < len(choices):
        marked, rest = bool(match[1] or match[3].strip()), match[4].strip(" \t\n*_`")
        if not rest.strip("."):
            named.add(label)
        elif by_text := _same_text(rest, choices):
            if marked or (label in by_text and not named):
                named |= {label} | by_text
        elif marked and not _names_other(rest, label, choices):
            named.add(label)
    if not named and (position := re.fullmatch(r"\(?(\d{1,2})[.)]?", text, re.ASCII)):
        numeric = any(_plain_number(choice) is not None for choice in choices)
        if not numeric and 1 <= int(position[1]) <= len(choices):
            named = {int(position[1]) - 1}
    return named.pop() if len(named) == 1 else None


def _same_text(text: str, choices: Sequence[str]) -> set[int]:
    """Returns options equal to `text` but for case and spaces; if none, those by `exact_match`."""
    plain = " ".join(text.lower().split()).rstrip(".")
    equal = {i for i, c in enumerate(choices) if " ".join(c.lower().split()).rstrip(".") == plain}
    return equal or {i for i, c in enumerate(choices) if normalise(text) and exact_match(text, c)}


def _names_other(text: str, label: int, choices: Sequence[str]) -> bool:
    letters = {_letter("".join(groups)) for groups in _MARKED.findall(text)}
    if any(letter != label and letter < len(choices) for letter in letters):
        return True
    padded = f" {normalise(text)} "
    others = (normalise(choice) for i, choice in enumerate(choices) if i != label)
    return any(other and f" {other} " in padded for other in others)


def _letter(letter: str) -> int:
    return ord(letter.upper()) - ord("A")


def _check_choice(question: Mapping, answer: str) -> bool:
    choices = question["choices"]
    accepted = {option_index(gold, choices) for gold in golds_of(question)}
    if None in accepted:
        raise ValueError(
            f"Question {question.get('id')!r}: gold {question['answer']!r} is not one of its "
            f'choices {list(choices)!r}; write it as "letter. text".'
        )
    return option_index(answer, choices) in accepted


def _check_qa(question: Mapping, answer: str) -> bool:
    return any(exact_match(answer, gold) for gold in golds_of(question))


CHECKERS = {
    "qa": (_check_qa, "qa/exact_match"),
    "math": (_check_math, "math/exact"),
    "gameof24": (_check_game, "gameof24/expression"),
    "choice": (_check_choice, "choice/option"),
}
