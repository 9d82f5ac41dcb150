"""Answers that name one option: its letter, number or text."""

import re
from collections.abc import Mapping, Sequence

from flow_grpo_jax.answers.latex import TEXT_IN_LATEX
from flow_grpo_jax.answers.qa import exact_match, normalise, plain_number
from flow_grpo_jax.answers.text import final_answer, golds_of

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
    text = TEXT_IN_LATEX.sub(r"\1", final_answer(text, whole_line=True)).replace("**", "")
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
        numeric = any(plain_number(choice) is not None for choice in choices)
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


def check(question: Mapping, answer: str) -> bool:
    choices = question["choices"]
    accepted = {option_index(gold, choices) for gold in golds_of(question)}
    if None in accepted:
        raise ValueError(
            f"Question {question.get('id')!r}: gold {question['answer']!r} is not one of its "
            f'choices {list(choices)!r}; write it as "letter. text".'
        )
    return option_index(answer, choices) in accepted
