r"""Answers that name one option: by its letter, its text or its place.

**Where.** The last `\boxed{}` or "answer is", "answer:" (also option, choice, 答案) that names an
option counts; if there is none, the whole text. A box with a formula names none, so a line
"Answer: D" below or above it counts. Two that name different options with no word of revision
between them ("The answer is A or the answer is B") count as none.

**What.** A letter ("B", "b", "(B)", "[B]", "B.", "option B", "B is correct"), an option's text,
both ("B. Paris", "B (Paris)"), or, where nothing else is said and no option holds a digit, a place
counted from 1 ("2"). Texts are compared by `options.equal`. A letter beside another option's text
("A. Paris") names two.

**Then** may follow an explanation: after because, since, as, due to or given, or in sentences of
their own. It may say of other options that they are wrong, and name them; it must not take the
letter back ("A is wrong", "A: no", "not A") or offer another ("or C", "C is possible", "B, C").
A letter in running text names nothing: "A bond", "I think", "A or B", "not A".

What can be read in two ways is worth 0. Which option a text names never depends on the gold.
"""

import re
from collections.abc import Mapping, Sequence

from flow_grpo_jax.answers import letters, options
from flow_grpo_jax.answers.text import golds_of

MAX_STATEMENTS = 20  # boxes and "answer is" that are read, from the end
_BRACES = re.compile(r"\\f?boxed\s*\{|\\[{}]|[{}]")
_LONE_BOX = re.compile(r"\\f?boxed\s+([A-Za-z])(?![A-Za-z])")
_SAYS = re.compile(
    r"(?:\bthe\s+)?(?:\b(?:correct|right|final|best|my)\s+){0,2}"
    r"(?:\banswer\b[^.\n:=]{0,60}?\b(?:is|(?:would|must|should|will)\s+be)\b|\b(?:option|choice)\s+is\b"
    r"|\b(?:answer|option|choice)\b[\s*_]{0,9}[:=]|答案(?:是|为|[\s*_]{0,9}:))[\s*_:]{0,9}",
    re.I,
)
_CLAUSE = re.compile(r"[.,;:!?\n]|\b(?:so|hence|thus|therefore)\b", re.I)
# Words before a statement, in its clause, with which it says nothing.
_UNSAID = re.compile(
    r"\b(?:not|never|no|nor|neither|nobody|doubt|wrong|incorrect|false|unlikely|if|whether|unless"
    r"|cannot|except|why|how|suppos\w+|assum\w+|(?:some|many|most|others?|people|students?|they)\s"
    r".*(?:says?|thinks?|claims?|argues?|believes?))\b|n['’]t\b",
    re.I,
)
_OR_ELSE = re.compile(r"\b(?:or|and|either)\W*\Z", re.I)
_REVISED = re.compile(
    r"\b(?!(?:or|and|also|the|alternatively|maybe|perhaps|either|is|it)\b)[a-z]{2,}", re.I
)


def option_index(text: str, choices: Sequence[str]) -> int | None:
    """Returns the index of the one option that `text` names, or None if it names none or several.

    The docstring of this module is the rule.
    """
    text, texts = options.plain(text), options.unlabelled(choices)
    option, chosen, following = None, 0, len(text)  # the last statement that names an option
    for start, end, content in reversed(_statements(text)[-MAX_STATEMENTS:]):
        stated = content is None
        named = _named(text[end:following] if stated else content, texts, stated=stated)
        after, following = following if stated else end, start
        if not named or _UNSAID.search(_CLAUSE.split(text[max(0, start - 200) : start])[-1]):
            continue
        if option is not None:
            return option if option in named or _REVISED.search(text[end:chosen]) else None
        if len(named) > 1 or _OR_ELSE.search(text[max(0, start - 20) : start]):
            return None
        [option], chosen = named, start
        if not letters.explains(text[after:], option, texts, sentence=True):
            return None
    if option is not None:
        return option
    named = _named(text, texts, stated=False) or _placed(text, texts)
    return named.pop() if len(named) == 1 else None


def _statements(text: str) -> list[tuple[int, int, str | None]]:
    r"""Returns (start, end, content) of boxes and of "answer is" (content None), in their order."""
    found, opened = [], []
    for brace in _BRACES.finditer(text):
        if brace[0].endswith("{"):
            opened.append(brace)
        elif opened and "boxed" in (first := opened.pop())[0]:
            found.append((first.start(), brace.end(), text[first.end() : brace.start()]))
    found += [(box.start(), box.end(), box[1]) for box in _LONE_BOX.finditer(text)]
    found += [(said.start(), said.end(), None) for said in _SAYS.finditer(text)]
    return sorted(found, key=lambda statement: statement[0])


def _named(text: str, texts: Sequence[str], *, stated: bool) -> set[int]:
    """Returns the options that `text` names; several if it can be read in two ways.

    stated: the text follows "answer is"; only its beginning is the answer.
    """
    text = re.sub(r"\\[()\[\]]|\\(?= )", "", options.unwrapped(text)).strip(letters.MARKS)
    if quoted := re.fullmatch(r"[\"“'‘](.*)[\"”'’]\.?", text):
        text = quoted[1].strip(letters.MARKS)
    if not text:
        return set()
    by_text, tail = letters.written(text, texts, whole=not stated)
    if len(by_text) == 1 and not letters.explains(tail, *by_text, texts, sentence=False):
        return set(range(len(texts)))
    if by_text and not tail and len(text) > 1:
        return by_text  # "A sun" is the option "A sun"
    by_letter = letters.labelled(text, texts, stated=stated)
    return by_text | by_letter


def _placed(text: str, texts: Sequence[str]) -> set[int]:
    """Returns the option whose place, from 1, is all that a text or its last statement says."""
    for _, end, content in _statements(text)[-1:]:
        text = content or text[end:].split("\n")[0]
    place = re.fullmatch(r"\(?(\d{1,2})[.)]{0,2}", text.strip(letters.MARKS), re.A)
    if place and not any(re.search(r"\d", option) for option in texts):
        return {int(place[1]) - 1} & set(range(len(texts)))
    return set()


def gold_index(gold: str, choices: Sequence[str]) -> int | None:
    """Returns the option that a gold names; a gold of one letter is a letter, never a text."""
    letter = re.fullmatch(r"\s*([A-Z])\s*", gold)
    if letter and ord(letter[1]) - ord("A") < len(choices):
        return ord(letter[1]) - ord("A")
    return option_index(gold, choices)


def check(question: Mapping, answer: str) -> bool:
    choices = question["choices"]
    accepted = {gold_index(gold, choices) for gold in golds_of(question)}
    if None in accepted:
        raise ValueError(
            f"Question {question.get('id')!r}: gold {question['answer']!r} is not one of its "
            f'choices {list(choices)!r}; write it as "letter. text".'
        )
    return option_index(answer, choices) in accepted
