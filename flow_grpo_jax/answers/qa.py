"""Short answers as SQuAD compares them: exact match and token F1 after normalising."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

from flow_grpo_jax.answers.latex import SYMBOLS, TEXT_IN_LATEX
from flow_grpo_jax.answers.text import MAX_EXPRESSION, golds_of

UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_DASHES = dict.fromkeys(map(ord, "‐‑‒–—−"), "-")
_KEPT = re.compile(
    r"(?<=\d)[./:+-](?=\d)|(?<=\d),(?=\d)(?!\d{3}(?!\d))|(?<![\w.])\.(?=\d)"
    r"|(?<![\w-])-(?=\.?\d)|(?<=\w)[+#]+(?!\w)"
)
_TO_MARKS = {ord(sign): 0xE000 + i for i, sign in enumerate("./:-+#,")}
_FROM_MARKS = {mark: sign for sign, mark in _TO_MARKS.items()}
_PLAIN_NUMBER = re.compile(rf"([-+]?)\s?[$€£]?({UNSIGNED})\s?%?", re.ASCII)


def normalise(text: str) -> str:
    """Normalises as SQuAD does: lower case, no punctuation, no articles, single spaces.

    Differs from the original script where punctuation tells two answers apart: Unicode punctuation
    goes too (an en dash like a hyphen), but a point, slash, colon, plus or dash between digits
    stays, and so do a comma that groups no thousands, a minus or point before a number and the
    signs of C++, C# and A+: 10.8 is not 108, 2-1 and 2,1 are not 21, -5 is not 5.
    """
    text = unicodedata.normalize("NFC", text).lower().translate(_DASHES)
    text = _KEPT.sub(lambda match: match[0].translate(_TO_MARKS), text)
    text = "".join(
        c for c in text if c not in string.punctuation and unicodedata.category(c)[0] != "P"
    )
    text = re.sub(r"(?<![\w\uE000-\uE006])(a|an|the)(?![\w\uE000-\uE006])", " ", text)
    return " ".join(text.translate(_FROM_MARKS).split())


def unboxed(text: str) -> str:
    r"""Returns what is in the box if the whole text is one: \boxed{Paris}."""
    box = re.fullmatch(r"\$?\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)?)\}\$?\.?", text)
    return TEXT_IN_LATEX.sub(r"\1", box[1]) if box else text


def exact_match(prediction: str, gold: str) -> bool:
    """Compares after `normalise`; numbers by value; yes and no may carry an explanation.

    Gold "138,535" takes 138535 and 138535.0; "-1" does not take 1. Gold "yes" takes "Yes, both are
    French.", not "yes and no". A gold that normalises to nothing ("A") is compared as it stands.
    """
    if (number := plain_number(gold)) is not None:
        return plain_number(prediction) == number
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
    if plain_number(gold) is not None and plain_number(prediction) is not None:
        return 0.0
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2.0 * common / (len(words) + len(wanted)) if common else 0.0


def plain_number(text: str) -> Fraction | None:
    """Reads a text that is nothing but a number; signs of money and percent are ignored."""
    text = text.strip().rstrip(".").translate(SYMBOLS)
    if len(text) > MAX_EXPRESSION or not (match := _PLAIN_NUMBER.fullmatch(text)):
        return None
    return Fraction("".join(match.groups()).replace(",", ""))


def _yes_no(text: str) -> str | None:
    match = re.match(r"\W{0,9}(yes|no)\b(?:[.,;:!]+(?:\s+(?!\d)|$)|\s+[-–—]+\s|\W*$)", text, re.I)
    found = set(re.findall(r"\b(yes|no)\b", text.lower()))
    return match[1].lower() if match and len(found) == 1 else None


def check(question: Mapping, answer: str) -> bool:
    return any(exact_match(answer, gold) for gold in golds_of(question))
