"""Answers of kind "math": a number by value, any other formula as normalised text."""

import re
from collections.abc import Mapping

from flow_grpo_jax.answers.latex import without_latex
from flow_grpo_jax.answers.numbers import parse_number
from flow_grpo_jax.answers.text import final_answer, golds_of


def check(question: Mapping, answer: str) -> bool:
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


def _formula(text: str) -> str:
    """Reduces a formula or word to what must be equal: no spaces, no case, no needless braces."""
    text = without_latex(text).replace("\\infty", "∞")
    text = re.sub(r"\{(\w|\\?pi)\}", r"\1", text).replace("\\pi", "π")
    text = re.sub(r"^[a-zA-Z](?:_\w|\([a-z]\))?\s*=(?!=)", "", text)
    return "".join(text.split()).casefold().rstrip(".")
