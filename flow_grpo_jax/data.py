"""Questions: read from files, checked once, and served in shuffled batches with an exact position.

A question is {"id", "question", "answer": (accepted answers,), "kind": "qa|math|gameof24|choice",
"source"}, with "choices" for kind "choice" and optionally "numbers" for kind "gameof24".
"""

import ast
import hashlib
import io
import json
import math
import pathlib
import re
import string
import tokenize
from collections.abc import Iterator, Mapping, Sequence

import grain

from agents import questions
from flow_grpo_jax import rewards
from flow_grpo_jax.answers import choice, game24

# Kind of each benchmark that `read_questions(..., benchmark=name)` converts.
BENCHMARKS = {
    "bamboogle": "qa",
    "2wiki": "qa",
    "hotpotqa": "qa",
    "musique": "qa",
    "gaia": "qa",
    "aime24": "math",
    "amc23": "math",
    "gameof24": "gameof24",
    "gpqa": "choice",
    "medqa": "choice",
}
_SHOWN = 5  # bad rows named in an error
_INSTRUCTION = re.compile(r"\s*When ready, output the final answer enclosed in <answer>.*$", re.S)


class BadField(ValueError):
    """A field of one row that is missing or wrong; `read_questions` collects them."""


def read_questions(path: str | pathlib.Path, *, benchmark: str | None = None) -> list[dict]:
    """Reads .jsonl, .json (a list), .parquet, or a TFDS folder of one split in array_record files.

    benchmark: one of BENCHMARKS, if the rows have the form of that benchmark's own files
               ("query", "pid", "options", ...); ids are then "<benchmark>-<row>", counted from 0.

    Raises one ValueError that names the first bad rows: not JSON, a field missing or of the wrong
    form, an id used twice, a gold that is none of the choices, a game of 24 without numbers.
    """
    path = pathlib.Path(path)
    if benchmark is not None and benchmark not in BENCHMARKS:
        raise ValueError(f"Unknown benchmark {benchmark!r}; valid: {', '.join(BENCHMARKS)}.")
    questions, bad, first_place = [], [], {}
    for index, (place, row) in enumerate(_rows(path)):
        try:
            if isinstance(row, BadField):
                raise row
            if not isinstance(row, Mapping):
                raise BadField(f"is {_shown(row)}, not an object with fields")
            if benchmark is not None:
                row = convert(row, benchmark=benchmark, index=index)
            question = as_question(row)
            if question["id"] in first_place:
                raise BadField(
                    f"field 'id' is {_shown(question['id'])}, "
                    f"already used in {first_place[question['id']]}"
                )
            first_place[question["id"]] = place
            questions.append(question)
        except BadField as problem:
            bad.append(f"  {place}: {problem}")
    if bad:
        more = [f"  ... and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
        raise ValueError(
            f"{path}: {len(bad)} of {len(bad) + len(questions)} rows are not questions:\n"
            + "\n".join(bad[:_SHOWN] + more)
        )
    if not questions:
        raise ValueError(f"{path} holds no questions.")
    return questions


def as_question(row: Mapping) -> dict:
    """Returns a checked copy of `row`: id a string, answer a tuple of strings, choices a list.

    Fields outside the schema are kept. Raises BadField.
    """
    question = dict(row)
    for field in ("id", "question", "kind", "source"):
        value = question.get(field)
        if field == "id" and _is_number(value):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise BadField(f"field {field!r} is {_shown(value)}; expected a non-empty string")
        question[field] = value
    try:
        questions.refuse_images(question)
    except ValueError as problem:
        raise BadField(str(problem)) from None
    kind = question["kind"]
    if kind not in rewards.CHECKERS:
        valid = ", ".join(rewards.CHECKERS)
        raise BadField(f"field 'kind' is {_shown(kind)}; valid: {valid}")
    question["answer"] = _golds(question.get("answer"))
    if (choices := _choices(question.pop("choices", None))) is not None:
        question["choices"] = choices
    if kind == "choice":
        if choices is None or len(choices) < 2:
            raise BadField(f"field 'choices' is {_shown(choices)}; expected two options or more")
        for gold in question["answer"]:
            if choice.option_index(gold, choices) is None:
                raise BadField(f"field 'answer' is {_shown(gold)}, not one of {_shown(choices)}")
    if kind == "gameof24":
        given = question.pop("numbers", None)
        if given is not None:
            if not isinstance(given, list | tuple) or not all(type(n) is int for n in given):
                raise BadField(f"field 'numbers' is {_shown(given)}; expected a list of integers")
            question["numbers"] = list(given)
        try:
            game24.game_numbers(question)
        except ValueError as problem:
            raise BadField(str(problem)) from None
    return question


def convert(row: Mapping, *, benchmark: str, index: int) -> dict:
    """Brings a row of a benchmark's own file into the schema of `as_question`, unchecked.

    The text is "query" or "question" without its trailing request for <answer> tags; options are
    in "choices" or "options", as a list or by letter. "pid" is not used: it is not always unique.
    """
    text = row.get("query") or row.get("question")
    question = {
        "id": f"{benchmark}-{index}",
        "question": _INSTRUCTION.sub("", text) if isinstance(text, str) else text,
        "answer": row.get("answer"),
        "kind": BENCHMARKS[benchmark],
        "source": benchmark,
        **{field: row[field] for field in questions.IMAGE_FIELDS if row.get(field)},
    }
    if question["kind"] == "choice":
        question["choices"] = row.get("choices", row.get("options"))
    if question["kind"] == "gameof24" and not isinstance(row.get("question"), str):
        question["numbers"] = row.get("question")
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
            if state[name] != value:
                raise ValueError(
                    f"The saved data position has {name}={state[name]!r}, this run has {value!r}; "
                    "resume with the same questions, batch and seed, or start a new run."
                )
        self._batches.set_state({"next_index": int(state["next_batch"])})


# ------------------------------------------------------------------------------------- files


def _rows(path: pathlib.Path) -> Iterator[tuple[str, object]]:
    """Yields (place, row) for every row; a line that is no JSON comes as the BadField to report."""
    if path.is_dir():
        return _tfds_rows(path)
    if not path.exists():
        raise ValueError(f"There is no file or folder {path}.")
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise ValueError(
            f"{path} ends in {path.suffix!r}; expected .jsonl, .json, .parquet or a TFDS folder."
        )
    return readers[path.suffix](path)


def _jsonl_rows(path: pathlib.Path) -> Iterator[tuple[str, object]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as problem:
                row = BadField(f"is not JSON ({problem}): {_shown(line.strip())}")
            yield f"line {number}", row


def _json_rows(path: pathlib.Path) -> Iterator[tuple[str, object]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as problem:
        raise ValueError(
            f"{path} is not JSON: {problem}. One object a line? Call it .jsonl."
        ) from None
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds {_shown(rows)}; expected a list of questions.")
    yield from ((f"row {number}", row) for number, row in enumerate(rows))


def _parquet_rows(path: pathlib.Path) -> Iterator[tuple[str, object]]:
    from pyarrow import parquet

    rows = parquet.read_table(path).to_pylist()
    for number, row in enumerate(rows):
        # Parquet has a column for every row: an absent optional field is a null.
        yield f"row {number}", {name: value for name, value in row.items() if value is not None}


def _tfds_rows(path: pathlib.Path) -> Iterator[tuple[str, object]]:
    if not (path / "dataset_info.json").exists():
        raise ValueError(
            f"{path} has no dataset_info.json; a TFDS folder is .../<name>/[<config>/]<version>."
        )
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path)
    splits = sorted(builder.info.splits)
    if len(splits) != 1:
        raise ValueError(
            f"{path} has the splits {', '.join(splits)}; expected one. Export the one you want as "
            ".jsonl or .parquet."
        )
    [split] = splits
    for number, row in enumerate(builder.as_data_source(split)):
        row = {name: _from_tfds(value) for name, value in row.items()}
        # TFDS has every feature in every row: an absent optional field is an empty list.
        yield f"{split} row {number}", {name: v for name, v in row.items() if v != []}


def _from_tfds(value):
    """Turns bytes into str, numpy arrays into lists and numbers; keeps other values."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if hasattr(value, "tolist"):
        value = value.tolist()
        return _from_tfds(value) if isinstance(value, bytes | list) else value
    if isinstance(value, list | tuple):
        return [_from_tfds(part) for part in value]
    return value


# ------------------------------------------------------------------------------------ fields


def _is_number(value) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def _golds(answer) -> tuple[str, ...]:
    """Returns accepted answers as strings; a string that holds a list of strings is taken apart."""
    parts = list(answer) if isinstance(answer, list | tuple) else [answer]
    golds = []
    for part in parts:
        if _is_number(part):
            part = str(part)
        if not isinstance(part, str) or not part.strip():
            raise BadField(
                f"field 'answer' is {_shown(answer)}; expected a non-empty string or a list of them"
            )
        golds.extend(_unquoted_list(part))
    if not golds:
        raise BadField(f"field 'answer' is {_shown(answer)}; expected at least one accepted answer")
    return tuple(dict.fromkeys(golds))


def _unquoted_list(text: str) -> list[str]:
    """Reads "['Prussian', 'German']" as two strings; any other text, also "[1, 2]", as itself.

    A list without quotes is an interval, a vector or a set of numbers, which is one answer.
    """
    text = text.strip()
    if not re.match(r"\[\s*['\"]", text) or not text.endswith("]"):
        return [text]
    try:
        parts = ast.literal_eval(text)
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (ValueError, SyntaxError, tokenize.TokenError):
        return [text]
    if not all(isinstance(part, str) and part.strip() for part in parts):
        raise BadField(f"field 'answer' is {_shown(text)}; expected only non-empty strings in it")
    # ['a' 'b'], a printed numpy array, would be read as the one string "ab".
    if sum(token.type == tokenize.STRING for token in tokens) != len(parts):
        raise BadField(f"field 'answer' is {_shown(text)}; there is a comma missing in the list")
    return [part.strip() for part in parts]


def _choices(value) -> list[str] | None:
    """Returns options in order; a mapping from letters is read in the order of its letters."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            raise BadField(f"field 'choices' is {_shown(value)}; expected a list") from None
    if isinstance(value, Mapping):
        letters = string.ascii_uppercase[: len(value)]
        if set(value) != set(letters):
            raise BadField(f"field 'choices' is {_shown(value)}; expected the letters {letters}")
        value = [value[letter] for letter in letters]
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise BadField(f"field 'choices' is {_shown(value)}; expected a list of strings")
    options = [str(option) if _is_number(option) else option for option in value]
    if not all(isinstance(option, str) and option.strip() for option in options):
        raise BadField(f"field 'choices' is {_shown(value)}; expected non-empty strings")
    return options


def _shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
