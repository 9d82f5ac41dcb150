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
from flow_grpo_jax.datasets import formats

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


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("name", ["q.jsonl", "q.json"])
def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    path.write_bytes(BOM + path.read_bytes().replace(b"\n", b"\r\n"))
    assert data.read_questions(path) == QUESTIONS


def test_joined_files_with_marks_are_read(tmp_path):
    first, second = (write(tmp_path / f"{i}.jsonl", ROWS[i : i + 1]) for i in range(2))
    path = tmp_path / "q.jsonl"
    path.write_bytes(BOM + first.read_bytes() + b"\n\n" + BOM + second.read_bytes() + b"\n" + BOM)
    assert data.read_questions(path) == QUESTIONS[:2]


def test_lines_that_are_no_utf8_are_named(tmp_path):
    path = tmp_path / "q.jsonl"
    latin = json.dumps({**ROWS[1], "question": "Molière?"}, ensure_ascii=False).encode("latin-1")
    path.write_bytes(json.dumps(ROWS[0]).encode() + b"\n" + latin)
    with pytest.raises(ValueError, match="line 2: is not UTF-8: byte 0xe8 after .*Moli'; save it"):
        data.read_questions(path)
    path = tmp_path / "q.json"
    path.write_bytes(b"[\n" + latin + b"]")
    with pytest.raises(ValueError, match=r"q.json is not UTF-8: byte 0xe8 in line 2 after"):
        data.read_questions(path)
    path.write_bytes(json.dumps(ROWS).encode("utf-16"))
    with pytest.raises(ValueError, match="q.json is not UTF-8: byte 0xff after ''; save it"):
        data.read_questions(path)


@pytest.mark.parametrize(
    ("value", "said"),
    [("9" * 5_000, "a number of 5000 digits, 999999999999…"), ("[" * 100_000, "nested too deep")],
)
def test_json_that_cannot_be_read_is_named(tmp_path, value, said):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(ROWS[0]) + '\n{"id": "x", "answer": ' + value)
    with pytest.raises(ValueError, match="1 of 2 rows are not questions:\n  line 2: ") as error:
        data.read_questions(path)
    assert said in str(error.value)
    path = tmp_path / "q.json"
    path.write_text(f"[{value}")
    with pytest.raises(ValueError, match=f"q.json .*{said}"):
        data.read_questions(path)


def write_parquet(path, **columns):
    import pyarrow
    from pyarrow import parquet

    count = len(next(iter(columns.values())))
    rows = {"id": list("abcdefgh"[:count]), "question": ["?"] * count, "source": ["s"] * count}
    parquet.write_table(pyarrow.table({"kind": ["math"] * count, **rows, **columns}), path)
    return path


def test_numbers_of_parquet_keep_their_decimals(tmp_path):
    import decimal

    import pyarrow

    wide = [2**53 + 1, -3]
    golds = {
        "float32": pyarrow.array([0.1, 1 / 3], pyarrow.float32()),
        "float16": pyarrow.array([np.float16(0.1), np.float16(7)], pyarrow.float16()),
        "float64": pyarrow.array([0.1, 1 / 3], pyarrow.float64()),
        "int64": pyarrow.array(wide, pyarrow.int64()),
        "uint64": pyarrow.array([2**64 - 1, 0], pyarrow.uint64()),
        "decimal": pyarrow.array([decimal.Decimal("7.50"), decimal.Decimal(0)]),
        "list": pyarrow.array([[0.1], [0.2, 3]], pyarrow.list_(pyarrow.float32())),
    }
    expected = {
        "float32": [("0.1",), ("0.33333334",)],
        "float16": [("0.1",), ("7.0",)],
        "float64": [("0.1",), ("0.3333333333333333",)],
        "int64": [("9007199254740993",), ("-3",)],
        "uint64": [("18446744073709551615",), ("0",)],
        "decimal": [("7.50",), ("0.00",)],
        "list": [("0.1",), ("0.2", "3.0")],
    }
    for name, column in golds.items():
        read = data.read_questions(write_parquet(tmp_path / f"{name}.parquet", answer=column))
        assert [question["answer"] for question in read] == expected[name], name


def test_parquet_values_that_json_has_not(tmp_path):
    import datetime

    import pyarrow

    when = pyarrow.array([datetime.date(2026, 1, 2)])
    raw = pyarrow.array([{"x": b"a", "y": 0.1}])
    narrow = pyarrow.struct([("x", pyarrow.binary()), ("y", pyarrow.float32())])
    path = write_parquet(tmp_path / "q.parquet", answer=["4"], when=when, raw=raw.cast(narrow))
    [question] = data.read_questions(path)
    assert question["when"] == "2026-01-02" and question["raw"] == {"x": "a", "y": 0.1}
    assert json.loads(json.dumps(question))
    with pytest.raises(ValueError, match="field 'answer' is True"):
        data.read_questions(write_parquet(tmp_path / "q.parquet", answer=[True]))


def test_parquet_that_cannot_be_read(tmp_path):
    import pyarrow

    bad = pyarrow.array([b"ok", b"Moli\xe8re"]).view(pyarrow.string())
    with pytest.raises(ValueError, match="row 1: field 'answer' is not UTF-8"):
        data.read_questions(write_parquet(tmp_path / "q.parquet", answer=bad))
    (tmp_path / "q.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="q.parquet cannot be read as Parquet: "):
        data.read_questions(tmp_path / "q.parquet")


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
    (2, "choices", [str(i) for i in range(27)]),
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


def test_all_missing_fields_are_named_at_once(tmp_path):
    row = {"pid": "1", "query": "Who?", "golden_answers": ["Bob"], "data_source": "nq"}
    message = refusal(tmp_path, row, row)
    for field, like in [("id", "pid"), ("question", "query"), ("source", "data_source")]:
        assert f"field {field!r} is None (there is {like!r})" in message
    assert "field 'answer' is None (there is 'golden_answers')" in message
    assert "as kind one of qa, math, gameof24, choice" in message
    assert message.endswith("Did you mean --config.data.format=flashrag?")
    row = {**ROWS[2], "options": ROWS[2]["choices"], "choices": None}
    assert "field 'choices' is None (there is 'options')" in refusal(tmp_path, row)


@pytest.mark.parametrize("field", ["id", "question", "answer", "choices", "source", "note"])
def test_half_a_surrogate_pair_is_refused(tmp_path, field):
    row = {**ROWS[2], "note": {"by": ["x"]}}
    broken = {"answer": ["B", "\ud83d"], "choices": ["\udc00", "Rome"], "note": {"by": ["\ud83d"]}}
    row[field] = broken.get(field, "x \ud83d")
    message = refusal(tmp_path, ROWS[0], row)  # JSON writes it as \\ud83d
    assert f"line 2: field '{'note.by' if field == 'note' else field}' is " in message
    assert "half of a surrogate pair" in message
    [question] = data.read_questions(
        write(tmp_path / "q.jsonl", [{**ROWS[0], "question": "\U0001f600"}])
    )
    assert question["question"] == "\U0001f600"


def test_numbers_as_golds_of_a_choice_need_a_base(tmp_path):
    row = {**ROWS[2], "choices": ["Paris", "Rome", "Oslo"]}
    for gold in (1, "1", [0, 1], 1.0, " 2 "):
        assert "does it count options from 0 or from 1?" in refusal(
            tmp_path, row | {"answer": gold}
        )
    for gold, base, letters in [
        (1, "0", ("B",)),
        (1, "1", ("A",)),
        ("2", "0", ("C",)),
        (1.0, "0", ("B",)),
        ([0, 1], "0", ("A", "B")),
        ("Rome", "0", ("Rome",)),
        ("C", "1", ("C",)),
    ]:
        path = write(tmp_path / "q.jsonl", [row | {"answer": gold}])
        [question] = data.read_questions(path, index_base=base)
        assert question["answer"] == letters
        [question] = data.read_questions(
            write(path, [row | {"answer": gold, "index_base": int(base)}])
        )
        assert question["answer"] == letters and "index_base" not in question
    for gold, base in [(3, "0"), (0, "1"), (-1, "0")]:
        message = refusal(tmp_path, row | {"answer": gold}, index_base=base)
        assert f"counted from {base}" in message
    for base in (2, 0.5, True, "one", [0]):
        assert "expected 0 or 1" in refusal(tmp_path, row | {"answer": 1, "index_base": base})


def test_texts_of_options_that_are_numbers_stay_texts(tmp_path):
    row = {**ROWS[2], "choices": ["2", "3", "4"], "answer": "3"}
    assert data.as_question(row)["answer"] == ("3",)
    assert "does it count" in refusal(tmp_path, row | {"answer": 3})
    assert "the text of one option and the number of another" in refusal(
        tmp_path, row | {"answer": "2"}, index_base="1"
    )


@pytest.mark.parametrize("kind", ["math", "qa"])
def test_solutions_are_cut_to_their_last_line(kind):
    row = {**ROWS[1], "kind": kind, "answer": "3 + 4 = <<3+4=7>>7\nSo 7.\n#### 7 "}
    assert data.as_question(row)["answer"] == ("7",)
    assert data.as_question(row | {"answer": "7 #### 8"})["answer"] == ("8",)


@pytest.mark.parametrize(
    ("row", "gold", "said"),
    [
        (1, "3 + 4 = 7\nSo it is 7.", "has 2 lines"),
        (1, "1" * 301, "has 301 characters"),
        (1, r"\boxed{7", "a box that does not close"),
        (0, "Paris\nLondon", "has 2 lines"),
        (0, "long " * 300, "has 1499 characters"),
        (0, "<answer>x</answer>", "does not find right itself"),
        (3, "8 + 8", "does not find right itself"),
        (2, "A", "does not find right itself"),
    ],
)
def test_golds_that_nothing_can_equal_are_refused(tmp_path, row, gold, said):
    row = {**ROWS[row], "answer": gold}
    if row["kind"] == "choice":
        row["choices"] = ["B", "A"]  # a letter that is another option's text
    assert said in refusal(tmp_path, row)
    assert data.as_question(row, judged=[row["kind"]])  # a judge may read it


@pytest.mark.parametrize(
    "gold",
    [
        "It follows that\n$x = 7$, so \\boxed{7}.",
        "\\begin{pmatrix}\n1 \\\\ 2\n\\end{pmatrix}",
        "x^2 + y^2 = 25",
        "Yes",
    ],
)
def test_golds_in_many_words_that_an_answer_can_equal_stay(gold):
    assert data.as_question({**ROWS[1], "answer": gold})["answer"] == (gold,)


def test_a_solution_of_24_is_enough(tmp_path):
    [question] = data.read_questions(
        write(tmp_path / "q.jsonl", [{**ROWS[3], "answer": ["24", "8*(1+1+1)"]}])
    )
    assert question["answer"] == ("24", "8*(1+1+1)")


def test_bad_rows_can_be_dropped(tmp_path, caplog):
    rows = [ROWS[0], {**ROWS[1], "kind": "essay"}, ROWS[2]]
    path = write(tmp_path / "q.jsonl", rows)
    assert data.read_questions(path, bad_rows="drop") == [QUESTIONS[0], QUESTIONS[2]]
    assert "1 of 3 rows are not questions" in caplog.text and "left out" in caplog.text
    with pytest.raises(ValueError, match="holds no questions"):
        data.read_questions(write(path, rows[1:2]), bad_rows="drop")
    with pytest.raises(ValueError, match="bad_rows='skip' is unknown; valid: 'refuse', 'drop'"):
        data.read_questions(path, bad_rows="skip")


def test_choices_that_the_question_does_not_show_are_counted(tmp_path, caplog):
    shown = {**ROWS[2], "id": "e", "question": "Capital of Italy?\nA) Paris\nB) Rome"}
    data.read_questions(write(tmp_path / "q.jsonl", [shown]))
    assert "list their options" not in caplog.text
    data.read_questions(write(tmp_path / "q.jsonl", [*ROWS, shown]))
    assert "1 of 2 questions of kind choice do not list their options" in caplog.text


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
        {"A": "Paris", "B": "Rome", "C": None},  # Parquet has a field for the longest row
        {"text": ["Paris", "Rome"], "label": ["A", "B"]},
        {"text": ["Paris", "Rome"], "label": ["1", "2"]},
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
                "question": "Which?\nA. iron\nB. zinc",
                "answer": ("B. zinc",),
                "kind": "choice",
                "choices": ["iron", "zinc"],
            },
        ),
        (
            "gpqa",
            {"question": "Which?", "choices": ["iron", "zinc"], "answer": "zinc"},
            {
                "question": "Which?\nA. iron\nB. zinc",
                "answer": ("zinc",),
                "kind": "choice",
                "choices": ["iron", "zinc"],
            },
        ),
    ],
)
def test_benchmark_rows(tmp_path, benchmark, row, expected):
    path = write(tmp_path / "q.json", [row, row])  # with one pid twice
    first, second = data.read_questions(path, format=benchmark)
    assert first == {"id": f"{benchmark}-0", "source": benchmark, **expected}
    assert second == {**first, "id": f"{benchmark}-1"}
    assert rewards.score(first, first["answer"][0]).value == 1


def test_images_are_refused(tmp_path):
    row = ROWS[0] | {"image": "photo.png"}
    assert "Images are not supported" in refusal(tmp_path, row)
    assert data.as_question(ROWS[0] | {"image": None})
    shown = {"query": "What is shown?", "answer": "a cat", "image": "photo.png"}
    assert "Images are not supported" in refusal(tmp_path, shown, format="bamboogle")


def test_benchmarks_know_their_kind(tmp_path):
    assert len(formats.BENCHMARKS) == 9  # and medqa, which has a form of its own
    assert set(formats.BENCHMARKS.values()) == set(rewards.CHECKERS)
    with pytest.raises(
        ValueError, match="data.format='squad' is unknown; valid: 'auto', 'questions'"
    ):
        data.read_questions(tmp_path, format="squad")
    assert "it lacks answer" in refusal(tmp_path, {"query": "Who?"}, format="gaia")


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
