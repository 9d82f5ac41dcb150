"""Rows of the ten benchmarks, as their makers or the paper's authors publish them, as questions.

A question made here lacks "kind" and "source", which are the benchmark's, and has "level" or "type"
where the benchmark sorts its questions. `data.as_question` still checks it. Ids that are unique in
a file only get the name of the benchmark before them. What is asked is the question alone: the
paragraphs that HotpotQA, 2WikiMultihopQA and MuSiQue give with it are left to the search tools.
"""

import dataclasses
import functools
import hashlib
import re
import string
from collections.abc import Callable, Mapping, Sequence

from flow_grpo_jax.answers import game24, numbers
from flow_grpo_jax.datasets import fields, formats
from flow_grpo_jax.datasets.fields import BadField, shown

GAME = (
    "Using the numbers {}, create an expression that equals 24. Use each number exactly once, with "
    "+, -, ×, / and parentheses."
)


@dataclasses.dataclass(frozen=True)
class Form:
    """One way in which a benchmark is written.

    name: as errors call it.
    marks: fields each of which shows that a row is of this form.
    fields: what every row has; "a|b" for either.
    convert: function (row, number in the file, seed) -> question.
    """

    name: str
    marks: tuple[str, ...]
    fields: tuple[str, ...]
    convert: Callable[[Mapping, int, int], dict]


def converted(form: Form, row: Mapping, index: int, *, seed: int) -> dict:
    """Returns the question of row `index` of a file in a form; raises BadField."""
    formats.require(row, form.fields, form.name)
    return form.convert(row, index, seed)


# ----------------------------------------------------------------------------- short answers


def _multihop(row: Mapping, index: int, seed: int) -> dict:
    """HotpotQA, 2WikiMultihopQA, MuSiQue: `type` and `level`, or the number of hops, sort them."""
    if row.get("answerable") is False:
        raise BadField(
            "is a question without an answer (field 'answerable' is False); expected MuSiQue-Ans, "
            "not MuSiQue-Full"
        )
    hops = row.get("question_decomposition")
    hops = {"type": f"{len(hops)}hop"} if isinstance(hops, list) and hops else {}
    return {
        "id": str(_first(row, "_id", "id")),
        "question": row["question"],
        "answer": [row["answer"], *aliases(row, "answer_aliases")],
        **hops,
        **_sorting(row, level="level", type="type"),
    }


def aliases(row: Mapping, field: str) -> list[str]:
    """Returns the texts in the list that a field may hold; raises BadField if it is none."""
    found = row.get(field)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise BadField(f"field {field!r} is {shown(found)}; expected a list of texts")
    return [text for text in found if text.strip()]


def _bamboogle(row: Mapping, index: int, seed: int) -> dict:
    return {"id": f"bamboogle-{index}", "question": row["Question"], "answer": row["Answer"]}


def _gaia(row: Mapping, index: int, seed: int) -> dict:
    answer = row["Final answer"]
    if isinstance(answer, str) and answer.strip() == "?":
        raise BadField(
            "field 'Final answer' is '?', as in the test split, whose answers are not published; "
            "expected the validation split"
        )
    level = str(row["Level"]).strip()
    if level not in ("1", "2", "3"):
        raise BadField(f"field 'Level' is {shown(row['Level'])}; expected 1, 2 or 3")
    return {
        "id": str(row["task_id"]),
        "question": row["Question"],
        "answer": answer,
        "level": level,
    }


def _flashrag(row: Mapping, index: int, seed: int, *, name: str) -> dict:
    question = formats.converted(row, "flashrag", index)
    return question | {"id": _numbered(name, row, "id", index)}


# ----------------------------------------------------------------------------------- numbers


def _aime(row: Mapping, index: int, seed: int) -> dict:
    _check_year(row, "2024")
    answer = _first(row, "Answer", "answer")
    whole = re.fullmatch(r"\s*(\d{1,3})(?:\.0*)?\s*", str(answer), re.ASCII)
    if whole is None or isinstance(answer, bool):
        raise BadField(f"field 'Answer' is {shown(answer)}; expected an integer from 0 to 999")
    own = row.get("ID")
    return {
        "id": _numbered("aime24", row, "id", index) if own is None else str(own),
        "question": _first(row, "Problem", "problem"),
        "answer": str(int(whole[1])),
    }


def _amc(row: Mapping, index: int, seed: int) -> dict:
    _check_year(row, "2023")
    answer = str(row["answer"]).strip()
    answer = re.sub(r"(?<=\d)\.0*\Z", "", answer)  # a column of floats holds 27 as 27.0
    if numbers.parse_number(answer) is None:
        raise BadField(f"field 'answer' is {shown(row['answer'])}; expected a number")
    return {
        "id": _numbered("amc23", row, "id", index),
        "question": _first(row, "problem", "question"),
        "answer": answer,
    }


def _check_year(row: Mapping, year: str):
    """Raises BadField if a row names the contest of another year."""
    for field in ("ID", "year", "url"):
        found = re.findall(r"(?<!\d)20\d\d(?!\d)", str(row.get(field, "")))
        if found and year not in found:
            raise BadField(
                f"is of another year (field {field!r} is {shown(row[field])}); expected problems "
                f"of {year} alone: leave the others out"
            )


def _puzzle(row: Mapping, index: int, seed: int) -> dict:
    """24.csv of Tree of Thoughts, which has no solutions: one is worked out as the gold."""
    parts = re.split(r"[\s,]+", str(row["Puzzles"]).strip())
    if len(parts) != 4 or not all(re.fullmatch(r"\d{1,3}", part, re.ASCII) for part in parts):
        raise BadField(f"field 'Puzzles' is {shown(row['Puzzles'])}; expected 4 numbers")
    given = [int(part) for part in parts]
    if (solution := game24.solution(given)) is None:
        raise BadField(f"field 'Puzzles' is {shown(row['Puzzles'])}, of which nothing makes 24")
    return {
        "id": _numbered("gameof24", row, "Rank", index),
        "question": GAME.format(given),
        "answer": solution,
        "numbers": given,
    }


# ----------------------------------------------------------------------------------- options


def _gpqa(row: Mapping, index: int, seed: int) -> dict:
    """The order of the options depends on the seed and the row's own texts alone."""
    own = row.get("Record ID")
    texts = [row["Correct Answer"], *(row[f"Incorrect Answer {i}"] for i in (1, 2, 3))]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise BadField(f"has the options {shown(texts)}; expected 4 texts")
    correct, *_ = texts = [text.strip() for text in texts]
    key = str(row["Question"] if own is None else own)
    place = lambda text: hashlib.sha256("\0".join((str(seed), key, text)).encode()).digest()
    options = sorted(texts, key=place)
    letters = zip(string.ascii_uppercase, options, strict=False)
    return {
        "id": f"gpqa-{index}" if own is None else str(own),
        "question": formats.listed(str(row["Question"]).strip(), options),
        "answer": [letter for letter, option in letters if option == correct],
        "choices": options,
        **_sorting(row, type="High-level domain"),
    }


def _medqa(row: Mapping, index: int, seed: int) -> dict:
    return formats.converted(row, "medqa", index) | _sorting(row, type="meta_info")


def _authors(row: Mapping, index: int, seed: int, *, name: str) -> dict:
    return formats.converted(row, name, index) | _sorting(row, level="level", type="type")


def _first(row: Mapping, *names: str):
    """Returns the value of the first of the fields that has one, or None."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def _numbered(name: str, row: Mapping, field: str, index: int) -> str:
    """Returns an id of a benchmark's name and the row's own number, or else its place."""
    own = row.get(field)
    return f"{name}-{index if own is None else own}"


def _sorting(row: Mapping, **names: str) -> dict[str, str]:
    """Returns {field: text of the row's field of that name} of those that are texts or numbers."""
    found = {field: row.get(name) for field, name in names.items()}
    return {
        field: str(value)
        for field, value in found.items()
        if (isinstance(value, str) and value.strip()) or fields.is_number(value)
    }


def _published(name: str, marks: Sequence[str], needed: Sequence[str], convert) -> Form:
    return Form(f"the published form of {name}", tuple(marks), tuple(needed), convert)


_QA = ("_id|id", "question", "answer")
_CONTEXT = ("_id", "id", "type", "supporting_facts", "context")
_HOPS = ("id", "paragraphs", "question_decomposition", "answerable", "answer_aliases")
_INCORRECT = tuple(f"Incorrect Answer {i}" for i in (1, 2, 3))
_TWO_WIKI = (*_CONTEXT, "answer_id", "answer_aliases", "evidences")
_PUBLISHED = {
    "bamboogle": (("Question", "Answer"), ("Question", "Answer"), _bamboogle),
    "2wiki": (_TWO_WIKI, _QA, _multihop),
    "hotpotqa": (_CONTEXT, _QA, _multihop),
    "musique": (_HOPS, _QA, _multihop),
    "gaia": (("task_id", "Final answer"), ("task_id", "Question", "Level", "Final answer"), _gaia),
    "aime24": (
        ("ID", "Problem", "problem", "url", "year"),
        ("Problem|problem", "Answer|answer"),
        _aime,
    ),
    "amc23": (("problem", "url"), ("problem|question", "answer"), _amc),
    "gameof24": (("Puzzles", "Rank"), ("Puzzles",), _puzzle),
    "gpqa": (("Correct Answer", *_INCORRECT), ("Question", "Correct Answer", *_INCORRECT), _gpqa),
}
_FLASHRAG = ("bamboogle", "2wiki", "hotpotqa", "musique")


def _forms_of(name: str) -> tuple[Form, ...]:
    if name == "medqa":  # the authors keep its fields
        needed = formats.FORMATS[name].fields
        return (Form("format medqa", ("options", "choices"), needed, _medqa),)
    authors = Form(
        "the authors' form",
        ("query", "question"),
        formats.FORMATS[name].fields,
        functools.partial(_authors, name=name),
    )
    own = _published(name, *_PUBLISHED[name])
    if name not in _FLASHRAG:
        return own, authors
    needed, convert = ("question", "golden_answers"), functools.partial(_flashrag, name=name)
    return Form("format flashrag", ("golden_answers",), needed, convert), own, authors


NAMES = (*formats.BENCHMARKS, "medqa")
FORMS = {name: _forms_of(name) for name in NAMES}  # of each benchmark, the more special first
