"""The paper's ten benchmarks: which there are, and their questions from the files of a folder.

docs/benchmarks.md says where each is published, in which forms it is read, and how it is scored.
"""

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from absl import logging

from agents import questions
from flow_grpo_jax import data
from flow_grpo_jax.benchmarks import forms, places
from flow_grpo_jax.datasets import files, formats
from flow_grpo_jax.datasets.fields import BadField, shown

NAMES = forms.NAMES
KINDS = formats.BENCHMARKS | {"medqa": "choice"}
# Questions of each in the authors' files and in its own, or in its parts.
SIZES = {
    "bamboogle": (125,),
    "2wiki": (200, 12_576),
    "hotpotqa": (100, 7_405),
    "musique": (200, 2_417),
    "gaia": (165,),
    "aime24": (30,),
    "amc23": (40,),
    "gameof24": (300, 1_362),
    "gpqa": (198, 448, 546),
    "medqa": (1_273,),
}
ALIASES = "id_aliases.json"  # of 2WikiMultihopQA: one object a line, in spite of its ending


class Unsupported(NamedTuple):
    """A question that is more than text, and why. level: as in a question, or ""."""

    id: str
    why: str
    kind: str
    level: str = ""


@dataclass(frozen=True)
class Benchmark:
    """The questions of a file, in its order.

    questions: as `data.as_question` returns them; "level" and "type" sort them, where they are.
    unsupported: those that are more than text.
    held: "60 of 125 published" of a file that holds another number of questions, else "".
    """

    name: str
    questions: Sequence[dict]
    unsupported: Sequence[Unsupported]
    path: pathlib.Path
    held: str = ""


def read(name: str, folder: str | pathlib.Path, *, seed: int, most: int = 0) -> Benchmark:
    """Reads a benchmark from the one file in `folder` that holds it.

    seed: of the order of the options of GPQA.
    most: rows that are returned, the first in the file; 0 is all. All are checked.

    Raises ValueError: the name is unknown, no file or several hold the benchmark, or it has rows
    that are no questions of it; the message names the first of them.
    """
    if name not in NAMES:
        raise ValueError(f"Benchmark {name!r} is unknown; valid: {', '.join(NAMES)}.")
    path = places.find(name, pathlib.Path(folder))
    rows = list(files.csv_rows(path) if path.suffix == ".csv" else files.rows(path))
    if name == "2wiki":
        rows = _with_aliases(rows, path)
    form = _form_of(rows, name, path)

    def question_of(row, index):
        question = forms.converted(form, row, index, seed=seed)
        if why := _beyond_text(row):
            return {"id": question["id"], "why": why, "level": question.get("level", "")}
        question |= {"kind": KINDS[name], "source": name}
        return data.as_question(question)

    found, bad = data.collected(rows, question_of)
    if bad:
        raise ValueError(data.refusal(path, bad, len(rows), hint=f"They were read in {form.name}."))
    held = ""
    if len(found) not in SIZES[name]:
        sizes = " or ".join(f"{size:,}" for size in SIZES[name])
        held = f"{len(found):,} of {sizes} published"
        logging.warning("%s: %s questions of %s.", path, held, name)
    found = found[: most or None]
    unsupported = [
        Unsupported(row["id"], row["why"], KINDS[name], row["level"])
        for row in found
        if "why" in row
    ]
    return Benchmark(name, [row for row in found if "why" not in row], unsupported, path, held)


def _form_of(rows: Sequence[tuple[str, object]], name: str, path: pathlib.Path) -> forms.Form:
    """Returns the first form of a benchmark whose marks any row has."""
    if not rows:
        raise ValueError(f"{path} holds no rows.")
    objects = [row for _, row in rows if isinstance(row, Mapping)]
    for form in forms.FORMS[name]:
        if any(row.get(mark) is not None for row in objects for mark in form.marks):
            return form
    expected = "\n".join(
        f"  {form.name}: {', '.join(form.fields).replace('|', ' or ')}"
        for form in forms.FORMS[name]
    )
    problem = next((f" ({place} {row})" for place, row in rows if isinstance(row, BadField)), "")
    has = ", ".join(map(str, objects[0])) if objects else "none"
    raise ValueError(
        f"{path} holds no rows of {name}{problem}: the first of {len(rows)} has the fields {has}. "
        f"Expected are those of\n{expected}"
    )


def _beyond_text(row: Mapping) -> str:
    """Returns what a question needs beside its text, or ""."""
    name = row.get("file_name")
    if isinstance(name, str) and name.strip():
        return f"has the attachment {name.strip()}"
    held = [field for field in questions.IMAGE_FIELDS if row.get(field)]
    return f"has an image in the field {held[0]!r}" if held else ""


def _with_aliases(
    rows: Sequence[tuple[str, object]], path: pathlib.Path
) -> Sequence[tuple[str, object]]:
    """Adds to the rows of 2WikiMultihopQA the aliases of their answers from the file beside it."""
    place = path.parent / ALIASES
    if not any(isinstance(row, Mapping) and row.get("answer_id") for _, row in rows):
        return rows
    if not place.exists():
        logging.warning("Other names of an answer of 2wiki count as wrong, for want of %s.", place)
        return rows
    names = _names_in(place)

    def with_aliases(row):
        more = isinstance(row, Mapping) and names.get(str(row.get("answer_id")))
        if not more:
            return row
        try:
            return row | {"answer_aliases": forms.aliases(row, "answer_aliases") + more}
        except BadField as problem:
            return problem

    return [(at, with_aliases(row)) for at, row in rows]


def _names_in(place: pathlib.Path) -> dict[str, list[str]]:
    """Returns {id of an answer: its aliases}."""
    names, bad = {}, []
    for number, row in files.json_lines(place):
        try:
            if isinstance(row, BadField):
                raise row
            if not isinstance(row, Mapping):
                raise BadField(f"is {shown(row)}, not an object with fields")
            formats.require(row, ("Q_id", "aliases"), "aliases")
            names[str(row["Q_id"])] = forms.aliases(row, "aliases") + forms.aliases(row, "demonyms")
        except BadField as problem:
            bad.append(f"line {number}: {problem}")
    if bad:
        raise ValueError(data.refusal(place, bad, len(names) + len(bad), what="aliases"))
    return names
