"""Questions: read from files, checked once, and served in shuffled batches with an exact position.

A question is {"id", "question", "answer": (accepted answers,), "kind": "qa|math|gameof24|choice",
"source"}, with "choices" for kind "choice" and optionally "numbers" for kind "gameof24".
"""

import hashlib
import json
import pathlib
import re
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import grain
from absl import logging

from agents import questions
from flow_grpo_jax import rewards
from flow_grpo_jax.answers import choice, game24, options
from flow_grpo_jax.answers.text import MAX_EXPRESSION, final_answer
from flow_grpo_jax.datasets import fields, files, formats
from flow_grpo_jax.datasets.fields import BadField, shown

OWN = "questions"  # the format of this project, as `as_question` reads it
AUTO = "auto"
OPTIONS = {  # of `read_questions`, and their values
    "format": (AUTO, OWN, *formats.FORMATS),
    "index_base": ("", "0", "1"),
    "bad_rows": ("refuse", "drop"),
}
MAX_GOLD = {"math": MAX_EXPRESSION, "qa": 1_000}  # characters of an answer that a rule compares
_SHOWN = 5  # bad rows named in an error


def read_questions(
    path: str | pathlib.Path,
    *,
    format: str = AUTO,
    index_base: str = "",
    bad_rows: str = "refuse",
    judged: Collection[str] = (),
) -> list[dict]:
    """Reads .jsonl, .json (a list), .parquet, or a TFDS folder of one split in array_record files.

    format:     one of OPTIONS. "auto": the format that the first row with a sign of one has, else
                the project's own.
    index_base: "0" or "1": numbers as golds of kind choice count from there; "" refuses them. A row
                may say it itself, in the field "index_base".
    bad_rows:   "refuse", or "drop": leaves them out, with their count and the first in the log.
    judged:     kinds whose golds a model compares, so that no rule has to reach them.

    Raises one ValueError that names the first bad rows: not JSON or UTF-8, fields missing or of the
    wrong form, an id used twice, a gold that no answer can equal, a game of 24 without numbers.
    """
    path = pathlib.Path(path)
    check_options(format=format, index_base=index_base, bad_rows=bad_rows)
    rows = list(files.rows(path))
    if format == AUTO:
        format = _recognised(path, rows)

    def question_of(row, index):
        row = row if format == OWN else formats.converted(row, format, index)
        return as_question(row, index_base=index_base, judged=judged)

    found, bad = collected(rows, question_of)
    if bad:
        names = formats.suggested(rows) if format == OWN else []
        hint = f"Did you mean --config.data.format={' or '.join(names)}?" if names else ""
        message = refusal(path, bad, len(rows), hint=hint)
        if bad_rows == "refuse":
            raise ValueError(message)
        logging.warning("%s\nThey are left out.", message)
    if not found:
        raise ValueError(f"{path} holds no questions.")
    _warn_of_hidden_choices(path, found)
    return found


def collected(
    rows: Iterable[tuple[str, object]], question_of: Callable[[Mapping, int], dict]
) -> tuple[list[dict], list[str]]:
    """Returns (questions, what is wrong with each row that is none) of rows and their places.

    question_of: function (row, its number) -> question; it may raise BadField.
    """
    found, bad, first_place = [], [], {}
    for index, (place, row) in enumerate(rows):
        try:
            if isinstance(row, BadField):
                raise row
            if not isinstance(row, Mapping):
                raise BadField(f"is {shown(row)}, not an object with fields")
            question = question_of(row, index)
            if question["id"] in first_place:
                raise BadField(
                    f"field 'id' is {shown(question['id'])}, "
                    f"already used in {first_place[question['id']]}"
                )
            first_place[question["id"]] = place
            found.append(question)
        except BadField as problem:
            bad.append(f"{place}: {problem}")
    return found, bad


def refusal(
    path: pathlib.Path, bad: Sequence[str], total: int, *, what: str = "questions", hint: str = ""
) -> str:
    """Returns the error that names the first of the bad rows of a file, with a hint below."""
    shown = list(bad[:_SHOWN])
    if len(bad) > _SHOWN:
        shown.append(f"... and {len(bad) - _SHOWN} more")
    rows = "".join(f"\n  {row}" for row in shown)
    return f"{path}: {len(bad)} of {total} rows are not {what}:{rows}" + (
        f"\n{hint}" if hint else ""
    )


def check_options(**options: str) -> None:
    """Raises ValueError if an option of `read_questions` has an unknown value."""
    for name, value in options.items():
        if value not in OPTIONS[name]:
            valid = ", ".join(map(repr, OPTIONS[name]))
            raise ValueError(f"data.{name}={value!r} is unknown; valid: {valid}.")


def as_question(row: Mapping, *, index_base: str = "", judged: Collection[str] = ()) -> dict:
    """Returns a checked copy of `row`: id a string, answer a tuple of strings, choices a list.

    Fields outside the schema are kept. The rest is as in `read_questions`. Raises BadField.
    """
    question = dict(row)
    if broken := fields.broken_text(question):
        name, text = broken
        raise BadField(f"field {name!r} is {shown(text)}, which holds half of a surrogate pair")
    _check_texts(question)
    kind = question["kind"]
    try:
        questions.refuse_images(question)
    except ValueError as problem:
        raise BadField(str(problem)) from None
    base = index_base if (own := question.pop("index_base", None)) is None else own
    base = str(int(base)) if fields.is_number(base) and int(base) == base else base
    if base not in OPTIONS["index_base"]:
        raise BadField(f"field 'index_base' is {shown(base)}; expected 0 or 1")
    if (choices := fields.choices(question.pop("choices", None))) is not None:
        question["choices"] = choices
    if kind == "choice":
        _check_choices(row, choices)
        question["answer"] = _letters(question["answer"], choices, base)
    question["answer"] = fields.golds(question["answer"])
    if kind in ("math", "qa"):
        question["answer"] = tuple(formats.last_line(g) or g for g in question["answer"])
    if kind == "gameof24":
        _check_numbers(question)
    if kind not in judged:
        _check_golds(question)
    return question


class QuestionBatches(Iterator[list[dict]]):
    """Iterator over lists of `batch` questions: every epoch is a new permutation of all of them.

    Epochs follow one another without a gap: if `batch` does not divide the number of questions, a
    batch holds the end of one epoch and the start of the next, and nothing is dropped or padded.
    The order depends on the seed and the number of questions alone.
    """

    def __init__(self, questions: Sequence[Mapping], *, batch: int, seed: int):
        if not questions:
            raise ValueError("There are no questions to make batches of.")
        if batch < 1:
            raise ValueError(f"batch={batch}; expected 1 or more questions in a batch.")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed}; expected a seed from 0 to 2**32 - 1.")
        ids = json.dumps([question["id"] for question in questions])
        self._run = {
            "batch": batch,
            "seed": seed,
            "questions": hashlib.sha256(ids.encode()).hexdigest()[:16],
        }
        # The questions are in memory already: there is nothing for reader threads to wait for.
        in_memory = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        endless = grain.MapDataset.source(list(questions)).seed(seed).shuffle().repeat()
        # There is no remainder to drop; without the option grain overflows at batch=1.
        batches = endless.batch(batch, drop_remainder=True, batch_fn=list)
        self._batches = iter(batches.to_iter_dataset(in_memory))

    def __next__(self) -> list[dict]:
        return next(self._batches)

    def get_state(self) -> dict:
        """Returns the position as JSON-able data, for `set_state`."""
        return {**self._run, "next_batch": self._batches.get_state()["next_index"]}

    def set_state(self, state: Mapping) -> None:
        """Continues from `state`; raises ValueError if it is of other questions, batch or seed."""
        for name, value in self._run.items():
            if (saved := state.get(name)) != value:
                raise ValueError(
                    f"The saved data position has {name}={saved!r}, this run has {value!r}; "
                    "resume with the same questions, batch and seed, or start a new run."
                )
        self._batches.set_state({"next_index": int(state["next_batch"])})


# ------------------------------------------------------------------------------------ formats


def _recognised(path: pathlib.Path, rows: Sequence[tuple[str, object]]) -> str:
    """Returns the format of the first row that has the signs of one; OWN if none has."""
    for place, row in rows:
        if isinstance(row, Mapping) and row.get("kind") is None:
            names = formats.recognised(row)
            if len(names) > 1:
                raise ValueError(
                    f"{path}, {place} may be of the formats {' and '.join(names)}; say which by "
                    f"--config.data.format={names[0]}."
                )
            if names:
                logging.info("%s is read in the format %s.", path, names[0])
                return names[0]
        elif isinstance(row, Mapping):
            return OWN
    return OWN


def _warn_of_hidden_choices(path: pathlib.Path, found: Sequence[Mapping]) -> None:
    chosen = [q for q in found if q["kind"] == "choice"]
    hidden = [q for q in chosen if not formats.lists(q["question"], q["choices"])]
    if hidden:
        logging.warning(
            "%s: %d of %d questions of kind choice do not list their options as 'A. …', first %r. "
            "The models read the field 'question' alone.",
            *(path, len(hidden), len(chosen), hidden[0]["id"]),
        )


# ------------------------------------------------------------------------------------- checks


def _check_texts(question: dict) -> None:
    """Names all fields at once that are missing or no text; turns a number as id into text."""
    wrong = []
    for field in ("id", "question", "kind", "source", "answer"):
        value = question.get(field)
        if field == "id" and fields.is_number(value):
            value = question[field] = str(value)
        if value is None or field != "answer" and not (isinstance(value, str) and value.strip()):
            wrong.append(f"field {field!r} is {shown(value)}{_instead(field, question)}")
    kinds = ", ".join(rewards.CHECKERS)
    if wrong:
        raise BadField(f"{', '.join(wrong)}; expected non-empty texts, and as kind one of {kinds}")
    if question["kind"] not in rewards.CHECKERS:
        raise BadField(f"field 'kind' is {shown(question['kind'])}; valid: {kinds}")


def _instead(field: str, row: Mapping) -> str:
    """Returns a note of the field that looks like a missing one, or ""."""
    like = fields.looks_like(field, row) if row.get(field) is None else ""
    return f" (there is {like!r})" if like else ""


def _check_choices(row: Mapping, choices: Sequence[str] | None) -> None:
    if choices is None or not 2 <= len(choices) <= len(string.ascii_uppercase):
        raise BadField(
            f"field 'choices' is {shown(choices)}{_instead('choices', row)}; expected two options "
            "or more, at most one for each letter"
        )


def _letters(answer, choices: Sequence[str], base: str):
    """Returns golds of kind choice with letters for numbers, which only a base makes plain."""
    texts = [option.strip() for option in options.unlabelled(choices)]
    parts = list(answer) if isinstance(answer, list | tuple) else [answer]
    for place, gold in enumerate(parts):
        if fields.is_number(gold) and int(gold) == gold:
            written = False
        elif isinstance(gold, str) and re.fullmatch(r"\s*\d+\s*", gold, re.ASCII):
            written = gold.strip() in texts
        else:
            continue
        if base:
            parts[place] = fields.letter_of(gold, choices, base=int(base))
            if written and texts[ord(parts[place]) - ord("A")] != gold.strip():
                raise BadField(
                    f"field 'answer' is {shown(gold)}, the text of one option and the number of "
                    "another; write the letter"
                )
        elif not written:
            raise BadField(
                f"field 'answer' is {shown(gold)}, a number: does it count options from 0 or from "
                "1? Say so by --config.data.index_base=0 or =1, by a field 'index_base' of the "
                "row, or write the letter"
            )
    return parts


def _check_numbers(question: dict) -> None:
    given = question.pop("numbers", None)
    if given is not None:
        if not isinstance(given, list | tuple) or not all(type(n) is int for n in given):
            raise BadField(f"field 'numbers' is {shown(given)}; expected a list of integers")
        question["numbers"] = list(given)
    try:
        game24.game_numbers(question)
    except ValueError as problem:
        raise BadField(str(problem)) from None


def _check_golds(question: Mapping) -> None:
    """Refuses a gold that the rule of its kind does not find equal to itself: nothing can be."""
    kind, golds = question["kind"], question["answer"]
    for gold in golds:
        if kind == "choice" and choice.gold_index(gold, question["choices"]) is None:
            raise BadField(
                f"field 'answer' is {shown(gold)}, not one of {shown(question['choices'])}"
            )
        if kind not in MAX_GOLD:
            continue
        said = final_answer(gold) if kind == "math" else gold
        if len(said) > MAX_GOLD[kind]:
            raise BadField(
                f"field 'answer' has {len(said)} characters, {shown(said)}; the rule of kind "
                f"{kind} reads no more than {MAX_GOLD[kind]}"
            )
        if kind == "math" and re.search(r"\\f?box(?:ed)?\s*\{", said):
            raise BadField(f"field 'answer' is {shown(said)}, a box that does not close")
        if "\n" in said and "\\begin{" not in said:
            raise BadField(
                f"field 'answer' has {len(said.splitlines())} lines, {shown(said)}; expected the "
                "final answer alone"
            )
    if kind == "gameof24" and any(_pays(question, gold) for gold in golds):
        return  # one solution is enough: the rule works out every answer
    for gold in golds:
        if not _pays(question, gold):
            raise BadField(
                f"field 'answer' is {shown(gold)}, which the rule of kind {kind} does not find "
                "right itself, so that no answer can be"
            )


def _pays(question: Mapping, gold: str) -> bool:
    return rewards.score({**question, "answer": (gold,)}, gold).value == 1.0
