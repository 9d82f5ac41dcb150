"""Short answers as SQuAD compares them: exact match and token F1 after normalising."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

from flow_grpo_jax.answers.latex import SYMBOLS
from flow_grpo_jax.answers.text import MAX_EXPRESSION, golds_of

UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_PLAIN_NUMBER = re.compile(rf"([-+]?)\s?[$€£]?({UNSIGNED})\s?%?", re.ASCII)


def normalise(text: str) -> str:
    """Normalises as SQuAD does: lower case, no punctuation, no articles, single spaces.

    Differs from the original script: Unicode punctuation goes too (an en dash like a hyphen), and
    what makes another value stays: marks between digits, but commas (10.8 is not 108, 3:2 not 32),
    the sign of a number, and the marks of C++ and C#.
    """
    text = unicodedata.normalize("NFC", text).lower().translate(_DASHES)
    text = _KEPT.sub(lambda match: match[0].translate(_HIDDEN), text)
    text = "".join(
        c for c in text if c not in string.punctuation and unicodedata.category(c)[0] != "P"
    )
    text = re.sub(r"\b(a|an|the)\b", " ", text.translate(_SHOWN))
    return " ".join(text.split())


_DASHES = str.maketrans("‐‑‒–—−", "------")
_KEPT = re.compile(r"(?<=\d)[.:/-](?=\d)|(?<![^\s(])-(?=[.\d])|(?<=[a-z])[+#]{1,2}(?![\w+#])")
_HIDDEN = {ord(mark): 0xE000 + i for i, mark in enumerate(".:/-+#")}  # private characters
_SHOWN = {hidden: mark for mark, hidden in _HIDDEN.items()}


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
    match = re.match(r"\W{0,9}(yes|no)\b(?:[.,;:!]+(?:\s|$)|\W*$)", text, re.I)
    found = set(re.findall(r"\b(yes|no)\b", text.lower()))
    return match[1].lower() if match and len(found) == 1 else None


def check(question: Mapping, answer: str) -> bool:
    return any(exact_match(answer, gold) for gold in golds_of(question))
