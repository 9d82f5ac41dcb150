"""GAIA's official scorer, quasi exact match: numbers by value, lists by parts, texts normalised.

Source: scorer.py of the leaderboard, huggingface.co/spaces/gaia-benchmark/leaderboard.
"""

import math
import re
import string

_TEMPLATE = re.compile(r"final answer\s*:", re.I)  # ends a reply to GAIA's prompt
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def final_answer(text: str) -> str:
    """Returns what follows the last "FINAL ANSWER:" of the prompt's template, else `text`."""
    return _TEMPLATE.split(text)[-1].strip()


def is_right(answer: str, gold: str) -> bool:
    """Compares an answer with a gold.

    A gold that is a number takes an answer of its value, without $, % and commas. One with a comma
    or semicolon is a list: as many parts, each equal to its own, in order; punctuation counts. Any
    other gold takes an answer equal to it without white space, punctuation and case.

    Differs from the source for the golds "inf" and "nan", which are texts here: the source finds
    every text that is no number equal to the first, and nothing to the second.
    """
    if (number := _float(gold)) is not None:
        return _number(answer) == number
    if re.search("[,;]", gold):
        parts, wanted = re.split("[,;]", answer), re.split("[,;]", gold)
        return len(parts) == len(wanted) and all(map(_is_same_part, parts, wanted))
    said, wanted = (_spaceless(text).translate(_NO_PUNCTUATION) for text in (answer, gold))
    return said == wanted


def _is_same_part(part: str, gold: str) -> bool:
    if (number := _float(gold)) is not None:
        return _number(part) == number
    return _spaceless(part) == _spaceless(gold)


def _number(text: str) -> float | None:
    return _float(re.sub("[$%,]", "", text))


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _spaceless(text: str) -> str:
    return re.sub(r"\s", "", text).lower()
