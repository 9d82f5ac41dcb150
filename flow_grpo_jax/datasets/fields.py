"""Fields of a row: texts, accepted answers and options, in any spelling that means one thing."""

import ast
import io
import math
import re
import string
import tokenize
from collections.abc import Mapping, Sequence

# What other projects call the fields of a question.
LIKE = {
    "id": ("pid", "qid", "_id", "idx", "uid", "task_id", "question_id", "index"),
    "question": ("query", "problem", "Problem", "Question", "prompt", "input", "instruction"),
    "answer": (
        *("golden_answers", "answers", "final_answer", "reward_model", "result", "answerKey"),
        *("answer_idx", "ground_truth", "solution", "Answer", "gold", "target", "label", "output"),
    ),
    "kind": ("type", "task", "ability"),
    "source": ("data_source", "dataset", "subject"),
    "choices": ("options", "endings"),
}


class BadField(ValueError):
    """What is wrong with one row; `data.read_questions` collects them."""


def shown(value) -> str:
    """Returns `value` as an error shows it, 80 characters at most."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def is_number(value) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def looks_like(field: str, row: Mapping) -> str:
    """Returns the field of `row` that other projects use for `field`, or ""."""
    return next((name for name in LIKE.get(field, ()) if row.get(name) is not None), "")


def broken_text(value, name: str = "") -> tuple[str, str] | None:
    """Returns (field, text) of the first string in `value` that is no Unicode text, or None.

    JSON can write half a surrogate pair ("\\ud83d"), which no file, prompt or tokenizer takes.
    """
    if isinstance(value, str):
        return None if _encodes(value) else (name, value)
    if isinstance(value, Mapping):
        parts = [(key, f"{name}.{key}" if name else str(key)) for key in value]
        broken_key = next(((name or "a name", str(k)) for k in value if not _encodes(str(k))), None)
        return broken_key or next(filter(None, (broken_text(value[k], n) for k, n in parts)), None)
    if isinstance(value, list | tuple):
        return next(filter(None, (broken_text(part, name) for part in value)), None)
    return None


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def golds(answer) -> tuple[str, ...]:
    """Returns accepted answers as strings; a string that holds a list of strings is taken apart."""
    parts = list(answer) if isinstance(answer, list | tuple) else [answer]
    found = []
    for part in parts:
        if is_number(part):
            part = str(part)
        if not isinstance(part, str) or not part.strip():
            raise BadField(
                f"field 'answer' is {shown(answer)}; expected a non-empty string or a list of them"
            )
        found.extend(_unquoted_list(part))
    if not found:
        raise BadField(f"field 'answer' is {shown(answer)}; expected at least one accepted answer")
    return tuple(dict.fromkeys(found))


def _unquoted_list(text: str) -> list[str]:
    """Reads "['Prussian', 'German']" as two strings; any other text, also "[1, 2]", as itself.

    A list without quotes is an interval, a vector or a set of numbers, which is one answer. A
    single backslash in the quotes is one of LaTeX, no escape: '\\frac' and '\frac' are the same.
    """
    text = text.strip()
    if not re.match(r"\[\s*['\"]", text) or not text.endswith("]"):
        return [text]
    text = re.sub(r"\\\\|\\(?=[a-zA-Z{}%$,;!()\[\]])", r"\\\\", text)
    try:
        parts = ast.literal_eval(text)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (ValueError, SyntaxError, tokenize.TokenError):
        return [text]
    if not all(isinstance(part, str) and part.strip() for part in parts):
        raise BadField(f"field 'answer' is {shown(text)}; expected only non-empty strings in it")
    # ['a' 'b'], a printed numpy array, would be read as the one string "ab".
    if sum(token.type == tokenize.STRING for token in tokens) != len(parts):
        raise BadField(f"field 'answer' is {shown(text)}; there is a comma missing in the list")
    return [part.strip() for part in parts]


def choices(value) -> list[str] | None:
    """Returns options in order: of a list, a mapping from letters, or {"text": …, "label": …}."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            raise BadField(f"field 'choices' is {shown(value)}; expected a list") from None
    if isinstance(value, Mapping) and set(value) == {"text", "label"}:
        texts, labels = value["text"], value["label"]
        lists = all(isinstance(part, list | tuple) for part in (texts, labels))
        if not lists or list(labels) not in labels_of(len(texts)):
            raise BadField(
                f"field 'choices' is {shown(value)}; expected as many labels as texts, in the "
                "order A, B, C, … or 1, 2, 3, …"
            )
        value = texts
    if isinstance(value, Mapping):
        value = {letter: option for letter, option in value.items() if option is not None}
        letters = string.ascii_uppercase[: len(value)]
        if set(value) != set(letters):
            raise BadField(f"field 'choices' is {shown(value)}; expected the letters {letters}")
        value = [value[letter] for letter in letters]
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise BadField(f"field 'choices' is {shown(value)}; expected a list of strings")
    options = [str(option) if is_number(option) else option for option in value]
    if not all(isinstance(option, str) and option.strip() for option in options):
        raise BadField(f"field 'choices' is {shown(value)}; expected non-empty strings")
    return options


def labels_of(count: int) -> tuple[list[str], list[str]]:
    """Returns the two ways to label `count` options: A, B, C, … and 1, 2, 3, …"""
    return list(string.ascii_uppercase[:count]), [str(i) for i in range(1, count + 1)]


def letter_of(answer, options: Sequence[str], *, base: int) -> str:
    """Returns the letter of the option that a number names, counted from `base`."""
    index = int(answer) - base
    if not 0 <= index < min(len(options), len(string.ascii_uppercase)):
        raise BadField(
            f"field 'answer' is {shown(answer)}; expected a number from {base} to "
            f"{base + len(options) - 1} for {len(options)} options counted from {base}"
        )
    return string.ascii_uppercase[index]
