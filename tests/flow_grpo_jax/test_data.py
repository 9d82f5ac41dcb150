"""Questions read from every kind of file, every bad row refused, batches that continue exactly."""

import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from flow_grpo_jax import data, rewards
from flow_grpo_jax.answers import game24

ROOT = pathlib.Path(__file__).parents[2]
ROWS = [
    {"id": "a", "question": "Où?", "answer": ["Paris", "Lutèce"], "kind": "qa", "source": "s"},
    {"id": "b", "question": "6*7?", "answer": "42", "kind": "math", "source": "s"},
    {
        "id": "c",
        "question": "Capital of Italy?",
        "answer": "B",
        "kind": "choice",
        "choices": ["Paris", "Rome"],
        "source": "s",
    },
    {
        "id": "d",
        "question": "Make 24.",
        "answer": "(1+1+1)×8",
        "kind": "gameof24",
        "numbers": [1, 1, 1, 8],
        "source": "s",
    },
]
QUESTIONS = [
    {**row, "answer": (row["answer"],) if isinstance(row["answer"], str) else ("Paris", "Lutèce")}
    for row in ROWS
]


def write(path, rows):
    """Writes rows as .jsonl or .json, the way of a plain user."""
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]")
    return path


def refusal(tmp_path, *rows, **options):
    with pytest.raises(ValueError) as error:
        data.read_questions(write(tmp_path / "bad.jsonl", rows), **options)
    return str(error.value)


# ------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["q.jsonl", "q.json"])
def test_json(tmp_path, name):
    assert data.read_questions(write(tmp_path / name, ROWS)) == QUESTIONS
    assert data.read_questions(str(tmp_path / name)) == QUESTIONS


def test_blank_lines_count_as_lines(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(f"\n{json.dumps(ROWS[0])}\n\n{json.dumps({**ROWS[1], 'kind': 'essay'})}\n\n")
    with pytest.raises(ValueError, match="line 4: field 'kind'"):
        data.read_questions(path)


def test_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{**row, "answer": list(q["answer"])} for row, q in zip(ROWS, QUESTIONS, strict=True)]
    columns = {name: [row.get(name) for row in rows] for name in [*ROWS[2], "numbers"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "q.parquet")
    assert data.read_questions(tmp_path / "q.parquet") == QUESTIONS


def write_tfds(folder, splits):
    """A TFDS data set in array_record files; returns its version folder."""
    import tensorflow_datasets as tfds

    class Questions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = {name: tfds.features.Text() for name in ("id", "question", "kind", "source")}
            lists = {
                "answer": tfds.features.Sequence(tfds.features.Text()),
                "choices": tfds.features.Sequence(tfds.features.Text()),
                "numbers": tfds.features.Sequence(tfds.features.Scalar(np.int32)),
            }
            features = tfds.features.FeaturesDict(text | lists)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, download):
            return {name: self._generate_examples(rows) for name, rows in splits.items()}

        def _generate_examples(self, rows):
            for row in rows:
                yield (
                    row["id"],
                    {"choices": [], "numbers": [], **row, "answer": list(row["answer"])},
                )

    builder = Questions(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return pathlib.Path(builder.data_path)


def by_id(questions):
    return sorted(questions, key=lambda question: question["id"])


def test_tfds(tmp_path):
    folder = write_tfds(tmp_path / "one", {"train": QUESTIONS})
    assert by_id(data.read_questions(folder)) == QUESTIONS
    folder = write_tfds(tmp_path / "two", {"train": QUESTIONS[:3], "test": QUESTIONS[3:]})
    with pytest.raises(ValueError, match="has the splits test, train; expected one"):
        data.read_questions(folder)
    with pytest.raises(ValueError, match="has no dataset_info.json"):
        data.read_questions(tmp_path)


@pytest.mark.slow
def test_tfds_is_read_without_tensorflow(tmp_path):
    folder = write_tfds(tmp_path / "tfds", {"train": QUESTIONS})
    # An importable package of that name would be loaded by any code that asks for TensorFlow.
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    program = (
        "import sys; from flow_grpo_jax import data\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"questions = data.read_questions({str(folder)!r})\n"
        "next(data.QuestionBatches(questions, batch=2, seed=0))\n"
        "assert 'tensorflow' not in sys.modules and 'tensorflow_datasets' in sys.modules\n"
        "print(len(questions))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
    )
    assert (run.returncode, run.stdout) == (0, "4\n"), run.stderr


def test_unusable_files(tmp_path):
    with pytest.raises(ValueError, match="There is no file or folder"):
        data.read_questions(tmp_path / "absent.jsonl")
    (tmp_path / "q.csv").write_text("id")
    with pytest.raises(ValueError, match="ends in '.csv'; expected .jsonl, .json, .parquet"):
        data.read_questions(tmp_path / "q.csv")
    (tmp_path / "q.json").write_text('{"id": 1}\n{"id": 2}')
    with pytest.raises(ValueError, match="is not JSON: .* Call it .jsonl"):
        data.read_questions(tmp_path / "q.json")
    (tmp_path / "q.json").write_text('{"id": 1}')
    with pytest.raises(ValueError, match="expected a list of questions"):
        data.read_questions(tmp_path / "q.json")
    (tmp_path / "q.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no questions"):
        data.read_questions(tmp_path / "q.jsonl")


# ------------------------------------------------------------------------------------ fields

BAD_FIELDS = [
    (0, "id", None),
    (0, "id", ""),
    (0, "id", ["a"]),
    (0, "question", 3),
    (0, "question", " "),
    (0, "kind", None),
    (0, "kind", "essay"),
    (0, "source", None),
    (0, "answer", None),
    (0, "answer", ""),
    (0, "answer", []),
    (0, "answer", ["Paris", ""]),
    (0, "answer", {"value": "Paris"}),
    (0, "answer", True),
    (0, "answer", float("nan")),
    (0, "answer", "['a' 'b']"),
    (0, "answer", "['a', 3]"),
    (2, "choices", None),
    (2, "choices", []),
    (2, "choices", ["Rome"]),
    (2, "choices", ["Rome", ""]),
    (2, "choices", "Rome"),
    (2, "choices", "[Rome"),
    (2, "choices", {"A": "Paris", "C": "Rome"}),
    (2, "answer", "C"),
    (2, "answer", "London"),
    (3, "numbers", 24),
    (3, "numbers", ["1", "1", "1", "8"]),
    (3, "numbers", [1, 1, 1.5, 8]),
]


@pytest.mark.parametrize(("row", "field", "value"), BAD_FIELDS)
def test_bad_field(tmp_path, row, field, value):
    message = refusal(tmp_path, ROWS[1], {**ROWS[row], field: value})
    assert "1 of 2 rows are not questions" in message
    assert f"line 2: field {field!r} is " in message
    assert repr(value) in message or field == "choices"


@pytest.mark.parametrize("field", ["id", "question", "kind", "source", "answer"])
def test_missing_field(tmp_path, field):
    row = {name: value for name, value in ROWS[0].items() if name != field}
    assert f"line 1: field {field!r} is None" in refusal(tmp_path, row)


def test_gameof24_without_numbers(tmp_path):
    row = {name: value for name, value in ROWS[3].items() if name != "numbers"}
    assert 'Add a field "numbers"' in refusal(tmp_path, row)
    (question,) = data.read_questions(
        write(tmp_path / "q.jsonl", [{**row, "question": "Make 24 from [1, 1, 1, 8]."}])
    )
    assert game24.game_numbers(question) == (1, 1, 1, 8)


def test_one_error_names_the_first_bad_rows(tmp_path):
    path = tmp_path / "q.jsonl"
    lines = [json.dumps(ROWS[0]), "{", json.dumps([1]), json.dumps(ROWS[0])]
    lines += [json.dumps({**ROWS[1], "id": str(i), "kind": "x" * 200}) for i in range(10)]
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError) as error:
        data.read_questions(path)
    head, *rows = str(error.value).splitlines()
    assert head == f"{path}: 13 of 14 rows are not questions:"
    assert rows[0].startswith("  line 2: is not JSON (") and rows[0].endswith(": '{'")
    assert rows[1] == "  line 3: is [1], not an object with fields"
    assert rows[2] == "  line 4: field 'id' is 'a', already used in line 1"
    assert rows[3].startswith("  line 5: field 'kind' is 'xxx") and len(rows[3]) < 160
    assert rows[4].startswith("  line 6: ") and rows[5] == "  ... and 8 more" and len(rows) == 6


def test_ids_are_equal_as_text(tmp_path):
    message = refusal(tmp_path, {**ROWS[0], "id": 7}, {**ROWS[1], "id": "7"})
    assert "line 2: field 'id' is '7', already used in line 1" in message


@pytest.mark.parametrize(
    ("answer", "golds"),
    [
        ("Paris", ("Paris",)),
        (42, ("42",)),
        (-0.5, ("-0.5",)),
        (["Paris", 42], ("Paris", "42")),
        ("['Prussian']", ("Prussian",)),
        (' ["It\'s", "a, b"]\n', ("It's", "a, b")),
        ("['a', ' a', 'b']", ("a", "b")),
        (["['Prussian']", "German"], ("Prussian", "German")),
        ("[1, 2]", ("[1, 2]",)),  # an interval, not two accepted answers
        ("[]", ("[]",)),
        ("['quoted' as in a poem]", ("['quoted' as in a poem]",)),
        ("['open", ("['open",)),
    ],
)
def test_accepted_answers(answer, golds):
    assert data.as_question({**ROWS[0], "answer": answer})["answer"] == golds


def test_choices_by_letter_and_as_text():
    for choices in (
        {"B": "Rome", "A": "Paris"},
        "['Paris', 'Rome']",
        "{'A': 'Paris', 'B': 'Rome'}",
    ):
        assert data.as_question({**ROWS[2], "choices": choices})["choices"] == ["Paris", "Rome"]


def test_input_is_not_changed_and_other_fields_are_kept():
    row = {**ROWS[3], "level": 5}
    before = json.dumps(row)
    assert data.as_question(row)["level"] == 5
    assert json.dumps(row) == before


# -------------------------------------------------------------------------------- benchmarks

TAGS = (
    "When ready, output the final answer enclosed in <answer> and </answer> tags. "
    "Do not generate any content after the </answer> tag."
)


@pytest.mark.parametrize(
    ("benchmark", "row", "expected"),
    [
        (
            "bamboogle",
            {
                "pid": 3,
                "question": f"Who?{TAGS}",
                "query": f"Who?{TAGS}",
                "answer": "['Ann', 'A.']",
            },
            {"question": "Who?", "answer": ("Ann", "A."), "kind": "qa"},
        ),
        (
            "aime24",
            {"pid": "0", "query": f"Find $m$.\n{TAGS}", "answer": 33},
            {"question": "Find $m$.", "answer": ("33",), "kind": "math"},
        ),
        (
            "gameof24",
            {"query": "Use the numbers", "question": [1, 1, 1, 8], "answer": ["(1+1+1)×8"]},
            {
                "question": "Use the numbers",
                "answer": ("(1+1+1)×8",),
                "kind": "gameof24",
                "numbers": [1, 1, 1, 8],
            },
        ),
        (
            "medqa",
            {"query": "Which?", "options": {"A": "iron", "B": "zinc"}, "answer": "B. zinc"},
            {
                "question": "Which?",
                "answer": ("B. zinc",),
                "kind": "choice",
                "choices": ["iron", "zinc"],
            },
        ),
        (
            "gpqa",
            {"question": "Which?", "choices": ["iron", "zinc"], "answer": "zinc"},
            {
                "question": "Which?",
                "answer": ("zinc",),
                "kind": "choice",
                "choices": ["iron", "zinc"],
            },
        ),
    ],
)
def test_benchmark_rows(tmp_path, benchmark, row, expected):
    path = write(tmp_path / "q.json", [row, row])  # with one pid twice
    first, second = data.read_questions(path, benchmark=benchmark)
    assert first == {"id": f"{benchmark}-0", "source": benchmark, **expected}
    assert second == {**first, "id": f"{benchmark}-1"}
    assert rewards.score(first, first["answer"][0]).value == 1


def test_images_are_refused(tmp_path):
    row = ROWS[0] | {"image": "photo.png"}
    assert "Images are not supported" in refusal(tmp_path, row)
    assert data.as_question(ROWS[0] | {"image": None})
    shown = {"query": "What is shown?", "answer": "a cat", "image": "photo.png"}
    assert "Images are not supported" in refusal(tmp_path, shown, benchmark="bamboogle")


def test_benchmarks_know_their_kind(tmp_path):
    assert len(data.BENCHMARKS) == 10
    assert set(data.BENCHMARKS.values()) == set(rewards.CHECKERS)
    with pytest.raises(ValueError, match="Unknown benchmark 'mmlu'; valid: bamboogle"):
        data.read_questions(tmp_path, benchmark="mmlu")
    assert "field 'answer' is None" in refusal(tmp_path, {"query": "Who?"}, benchmark="gaia")


# ----------------------------------------------------------------------------------- batches

SIXTY = [{"id": str(i)} for i in range(60)]


def ids(batches, count):
    return [[question["id"] for question in b] for b in itertools.islice(batches, count)]


def in_epochs(drawn):
    flat = list(itertools.chain(*drawn))
    return [flat[start : start + 60] for start in range(0, len(flat) - 59, 60)]


@pytest.mark.parametrize("batch", [1, 7, 20, 60, 90])
def test_every_epoch_is_a_new_order_of_all_questions(batch):
    drawn = ids(data.QuestionBatches(SIXTY, batch=batch, seed=1), -(-240 // batch))
    assert {len(b) for b in drawn} == {batch}
    epochs = in_epochs(drawn)
    assert len(epochs) == 4
    for epoch in epochs:
        assert sorted(epoch, key=int) == [str(i) for i in range(60)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert epochs[0] != sorted(epochs[0], key=int)
    assert epochs == in_epochs(ids(data.QuestionBatches(SIXTY, batch=60, seed=1), 4))


def test_seeds_are_separate_streams():
    epochs = []
    for seed in (0, 1, 2, 3, 2**32 - 1):
        drawn = ids(data.QuestionBatches(SIXTY, batch=60, seed=seed), 4)
        assert drawn[:1] == ids(data.QuestionBatches(SIXTY, batch=60, seed=seed), 1)
        epochs += [tuple(epoch) for epoch in drawn]
    assert len(set(epochs)) == 20  # a neighbour is not the same stream one epoch on


@pytest.mark.parametrize(
    ("batch", "stops", "total"),
    [(20, (0, 1, 2, 3, 4), 7), (7, (0, 1, 8, 9, 10), 12), (90, (0, 1, 2), 4)],
)
def test_state_restores_the_identical_continuation(batch, stops, total):
    whole = ids(data.QuestionBatches(SIXTY, batch=batch, seed=7), total)
    for done in stops:  # before the first batch, inside an epoch, and around its end
        stopped = data.QuestionBatches(SIXTY, batch=batch, seed=7)
        assert ids(stopped, done) == whole[:done]
        state = json.loads(json.dumps(stopped.get_state()))
        resumed = data.QuestionBatches(SIXTY, batch=batch, seed=7)
        ids(resumed, 1)  # a position of its own is given up
        resumed.set_state(state)
        assert resumed.get_state() == state
        assert ids(resumed, total - done) == whole[done:]
        assert ids(stopped, 1) == whole[done : done + 1]  # taking the state changes nothing


def test_state_of_another_run_is_refused():
    state = data.QuestionBatches(SIXTY, batch=3, seed=7).get_state()
    for name, other in [
        ("batch", data.QuestionBatches(SIXTY, batch=4, seed=7)),
        ("seed", data.QuestionBatches(SIXTY, batch=3, seed=8)),
        ("questions", data.QuestionBatches(SIXTY[:9], batch=3, seed=7)),
        ("questions", data.QuestionBatches(SIXTY[::-1], batch=3, seed=7)),
    ]:
        with pytest.raises(ValueError, match=f"saved data position has {name}="):
            other.set_state(state)


def test_batches_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="no questions"):
        data.QuestionBatches([], batch=1, seed=0)
    with pytest.raises(ValueError, match="batch=0"):
        data.QuestionBatches(SIXTY, batch=0, seed=0)
    with pytest.raises(ValueError, match="seed=-1"):
        data.QuestionBatches(SIXTY, batch=1, seed=-1)
