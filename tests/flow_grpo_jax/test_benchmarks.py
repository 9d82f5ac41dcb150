"""The ten benchmarks read from each published form, found by name, refused whole."""

import csv
import itertools
import json

import pytest

from flow_grpo_jax.answers import game24
from flow_grpo_jax.benchmarks import catalogue, forms, places
from flow_grpo_jax.datasets import fields, files

CONTEXT = {
    "supporting_facts": [["Lake Ohrid", 0], ["Lake Prespa", 1]],
    "context": [["Lake Ohrid", ["It is deep.", " It is old."]], ["Lake Prespa", ["It is high."]]],
}
HOTPOT = {
    "_id": "5a8b57f2",
    "question": "Which lake is deeper, Ohrid or Prespa?",
    "answer": "Lake Ohrid",
    "type": "comparison",
    "level": "hard",
    **CONTEXT,
}
TWO_WIKI = {
    "_id": "8813f87c",
    "type": "compositional",
    "question": "Where was the director of The Long Rain born?",
    "answer": "Skopje",
    "answer_id": "Q384",
    "evidences": [["The Long Rain", "director", "Ana Ilieva"]],
    **CONTEXT,
}
MUSIQUE = {
    "id": "2hop__1_2",
    "paragraphs": [{"idx": 0, "title": "Ohrid", "paragraph_text": "…", "is_supporting": True}],
    "question": "Who founded the town on the lake?",
    "question_decomposition": [{"id": 1, "question": "?"}, {"id": 2, "question": "?"}],
    "answer": "Clement",
    "answer_aliases": ["Saint Clement", ""],
    "answerable": True,
}
GAIA = {
    "task_id": "c61d22de",
    "Question": "How many lakes are listed?",
    "Level": 2,
    "Final answer": "3",
    "file_name": "",
    "Annotator Metadata": {"Steps": "1. Count."},
}
AIME = {"ID": "2024-I-4", "Problem": "Find $m+n$.", "Solution": "It is 7.", "Answer": 7}
AMC = {"id": 5, "problem": "How far?", "answer": 27.0, "url": "https://x.y/2023_AMC_12A_Problems"}
PUZZLE = {"Rank": "901", "Puzzles": "4 5 6 10", "AMT (s)": "4.4", "Solved rate": "80.7%"}
GPQA = {
    "Record ID": "rec06pnAkLOr2t2mp",
    "Question": "Which boils first?\n",
    "Correct Answer": "ether\n",
    "Incorrect Answer 1": "water",
    "Incorrect Answer 2": "acetone, and\nits mixtures",
    "Incorrect Answer 3": "mercury",
    "High-level domain": "Chemistry",
    "Explanation": 'It has the "lowest" boiling point.',
}
MEDQA = {
    "question": "Which vitamin is lacking?",
    "answer": "Vitamin C",
    "options": {letter: f"Vitamin {letter}" for letter in "ABCDE"},
    "meta_info": "step1",
    "answer_idx": "C",
}
AUTHORS = {"pid": 0, "query": "Who?When ready, output the final answer enclosed in <answer> …"}
AUTHORS |= {"answer": ["Ann"], "image": None}
STORED = {"idx": 0, "gen_text_store": "", "pid": "0", "image": None}


def asked(question):
    """A question twice with their instruction, as in most of the authors' files."""
    whole = (
        f"{question}When ready, output the final answer enclosed in <answer> and </answer> tags."
    )
    return {"question": whole, "query": whole}


# benchmark, file, row, what the question has; all other fields are checked against FIELDS
FORMS = [
    (
        "hotpotqa",
        "hotpot_dev_distractor_v1.json",
        HOTPOT,
        {"id": "5a8b57f2", "answer": ("Lake Ohrid",), "type": "comparison", "level": "hard"},
    ),
    ("hotpotqa", "hotpot_dev_fullwiki_v1.json", HOTPOT, {"question": HOTPOT["question"]}),
    (
        "hotpotqa",
        "hotpotqa/distractor/validation-00000-of-00001.parquet",
        {"id": "5a8b", "question": "Which?", "answer": "yes", "type": "bridge", "level": "easy"},
        {"id": "5a8b", "answer": ("yes",)},
    ),
    ("2wiki", "2wiki/dev.json", TWO_WIKI, {"answer": ("Skopje", "Üsküp", "Skopjan")}),
    (
        "2wiki",
        "2wiki.jsonl",
        {**TWO_WIKI, "answer_aliases": ["Uskub"]},
        {"id": "8813f87c", "answer": ("Skopje", "Uskub"), "type": "compositional"},
    ),
    (
        "musique",
        "musique_ans_v1.0_dev.jsonl",
        MUSIQUE,
        {"id": "2hop__1_2", "answer": ("Clement", "Saint Clement"), "type": "2hop"},
    ),
    (
        "bamboogle",
        "Bamboogle Prerelease - Sheet1.csv",
        {"Question": "Who wrote it,\nand when?", "Answer": "1999"},
        {"id": "bamboogle-0", "question": "Who wrote it,\nand when?", "answer": ("1999",)},
    ),
    (
        "bamboogle",
        "bamboogle/data/test-00000-of-00001-fd9def31e0acf72c.parquet",
        {"Question": "Who wrote it?", "Answer": "Ann"},
        {"id": "bamboogle-0", "answer": ("Ann",)},
    ),
    (
        "musique",
        "musique/dev.jsonl",
        {"id": "dev_3", "question": "Who?", "golden_answers": ["Ann", "Anna"], "metadata": {}},
        {"id": "musique-dev_3", "answer": ("Ann", "Anna")},
    ),
    (
        "gaia",
        "gaia/2023/validation/metadata.jsonl",
        GAIA,
        {"id": "c61d22de", "answer": ("3",), "level": "2"},
    ),
    ("gaia", "metadata.parquet", {**GAIA, "Level": "3"}, {"level": "3"}),
    (
        "aime24",
        "aime_2024_problems.parquet",
        AIME,
        {"id": "2024-I-4", "question": "Find $m+n$.", "answer": ("7",)},
    ),
    (
        "aime24",
        "aime24/data/train-00000-of-00001.parquet",
        {
            "ID": None,
            "id": 60,
            "problem": "Find.",
            "solution": "",
            "answer": "033",
            "url": "",
            "year": "2024",
        },
        {"id": "aime24-60", "answer": ("33",)},
    ),
    ("amc23", "amc23.parquet", AMC, {"id": "amc23-5", "question": "How far?", "answer": ("27",)}),
    ("amc23", "amc23/test.jsonl", {**AMC, "answer": "-1.5"}, {"answer": ("-1.5",)}),
    ("gameof24", "24.csv", PUZZLE, {"id": "gameof24-901", "numbers": [4, 5, 6, 10]}),
    ("gpqa", "gpqa_diamond.csv", GPQA, {"id": "rec06pnAkLOr2t2mp", "type": "Chemistry"}),
    (
        "medqa",
        "phrases_no_exclude_test.jsonl",
        MEDQA,
        {"id": "medqa-0", "answer": ("Vitamin C",), "type": "step1"},
    ),
    ("bamboogle", "Bamboogle/data/data.json", AUTHORS, {"question": "Who?", "answer": ("Ann",)}),
    ("gaia", "gaia.json", {**AUTHORS, "level": 1}, {"id": "gaia-0", "level": "1"}),
    ("gpqa", "gpqa.json", {"query": "?", "answer": "B", "choices": ["x", "y"]}, {"answer": ("B",)}),
    # With all the fields of the authors' files, of which there are three kinds.
    (
        "hotpotqa",
        "hotpotqa/data/data.json",
        {**asked("Which lake is deeper?"), "answer": ["Lake Ohrid"], **STORED},
        {"id": "hotpotqa-0", "question": "Which lake is deeper?", "answer": ("Lake Ohrid",)},
    ),
    (
        "2wiki",
        "2wiki/data/data.json",
        {"query": "Where was she born?", "image": None, "answer": "Skopje", "pid": 0},
        {"id": "2wiki-0", "question": "Where was she born?", "answer": ("Skopje",)},
    ),
    (
        "musique",
        "musique.json",
        {"query": "Who founded the town?", "image": None, "answer": "Clement", "pid": 0},
        {"id": "musique-0", "question": "Who founded the town?", "answer": ("Clement",)},
    ),
    (
        "aime24",
        "aime24/data/data.json",
        {**asked(r"Find $m+n$ of $\tfrac{m}{n}$."), "answer": 33, **STORED},
        {"id": "aime24-0", "question": r"Find $m+n$ of $\tfrac{m}{n}$.", "answer": ("33",)},
    ),
    (
        "amc23",
        "amc23.json",
        {"pid": "0", "question": "How far?", "answer": 27, "image": None, "query": "How far?"},
        {"id": "amc23-0", "question": "How far?", "answer": ("27",)},
    ),
    (
        "gameof24",
        "gameof24/data/data.json",
        {
            "pid": "0",
            "question": [2, 3, 4, 12],
            "answer": ["12×2×(4-3)"],
            "image": None,
            "query": "Using the numbers [2, 3, 4, 12], create an expression that equals 24.",
        },
        {"id": "gameof24-0", "numbers": [2, 3, 4, 12]},
    ),
    (
        "medqa",
        "medqa/data/data.json",
        {**asked("Which is lacking?"), "options": MEDQA["options"], "answer": "Vitamin C"}
        | {"answer_idx": "C", "meta_info": "step1", **STORED},
        {"id": "medqa-0", "answer": ("Vitamin C",), "type": "step1"},
    ),
]
FIELDS = {"id", "question", "answer", "kind", "source"}


def write(path, *rows):
    """Writes rows by the ending of the file, the way of a plain user."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        columns = {name: [row.get(name) for row in rows] for row in rows for name in row}
        parquet.write_table(pyarrow.table(columns), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]")
    return path


def refusal(folder, name):
    with pytest.raises(ValueError) as error:
        catalogue.read(name, folder, seed=0)
    return str(error.value)


# --------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("name, file, row, expected", FORMS, ids=[f"{n}-{f}" for n, f, *_ in FORMS])
def test_every_published_form(tmp_path, name, file, row, expected):
    path = write(tmp_path / file, row)
    if file.endswith("dev.json"):
        names = {"Q_id": "Q384", "aliases": ["Üsküp"], "demonyms": ["Skopjan"]}
        other = {"Q_id": "Q1", "aliases": ["all"], "demonyms": []}
        lines = [json.dumps(other), json.dumps(names)]
        (path.parent / catalogue.ALIASES).write_text("\n".join(lines))
    found = catalogue.read(name, str(tmp_path), seed=0)
    [question] = found.questions
    assert (found.name, found.unsupported, found.path) == (name, [], path)
    assert question | expected == question
    assert (question["source"], question["kind"]) == (name, catalogue.KINDS[name])
    choices = {"choices"} if question["kind"] == "choice" else set()
    numbers = {"numbers"} & set(question)
    assert set(question) - {"level", "type"} == FIELDS | choices | numbers


def test_every_kind_of_form_has_a_row_above():
    form_of = lambda name, row: next(
        form.name for form in forms.FORMS[name] if any(row.get(mark) for mark in form.marks)
    )
    seen = {(name, form_of(name, row)) for name, _, row, _ in FORMS}
    told = {(name, form.name) for name in catalogue.NAMES for form in forms.FORMS[name]}
    assert {name for name, form in told - seen if "published" in form} == set()
    assert {name for name, form in told - seen if "authors" in form} == set()
    # MedQA is published in the fields that the authors keep: one form, but both files.
    own = {name for name, form in seen if "published" in form}
    assert own | {"medqa"} == set(catalogue.NAMES)
    by_authors = {name for name, _, row, _ in FORMS if "query" in row}
    assert by_authors == set(catalogue.NAMES)
    assert any(name == "medqa" and "query" not in row for name, _, row, _ in FORMS)
    assert {form for _, form in seen} >= {"the authors' form", "format flashrag", "format medqa"}


def test_options_of_gpqa_are_shuffled_by_the_seed_alone(tmp_path):
    rows = [{**GPQA, "Record ID": f"rec{i}"} for i in range(60)]
    write(tmp_path / "gpqa_main.csv", *rows)
    one, again, other = (catalogue.read("gpqa", tmp_path, seed=s).questions for s in (7, 7, 8))
    assert one == again and [q["choices"] for q in one] != [q["choices"] for q in other]
    for question in one:
        [letter] = question["answer"]
        assert question["choices"][ord(letter) - ord("A")] == "ether"
        assert f"\n{letter}. ether" in question["question"]
    assert {q["answer"][0] for q in one} == set("ABCD")
    # The same question has the same order wherever it stands.
    write(tmp_path / "gpqa_main.csv", *rows[::-1])
    assert catalogue.read("gpqa", tmp_path, seed=7).questions == one[::-1]


def test_equal_options_of_gpqa_are_all_right(tmp_path):
    write(tmp_path / "gpqa.csv", {**GPQA, "Incorrect Answer 2": " ether"})
    [question] = catalogue.read("gpqa", tmp_path, seed=0).questions
    assert len(question["answer"]) == 2


def test_questions_beyond_text_are_named_and_left_out(tmp_path):
    write(
        tmp_path / "gaia.jsonl",
        GAIA,
        {**GAIA, "task_id": "a1", "file_name": "table.xlsx"},
        {**GAIA, "task_id": "a2", "image": "map.png"},
    )
    found = catalogue.read("gaia", tmp_path, seed=0)
    assert [question["id"] for question in found.questions] == ["c61d22de"]
    assert found.unsupported == [
        ("a1", "has the attachment table.xlsx", "qa", "2"),
        ("a2", "has an image in the field 'image'", "qa", "2"),
    ]
    first = catalogue.read("gaia", tmp_path, seed=0, most=2)
    assert (first.questions, first.unsupported) == (found.questions, found.unsupported[:1])
    assert first.held == found.held == "3 of 165 published"  # of the file, all of which was read
    write(tmp_path / "2wiki.jsonl", TWO_WIKI)
    assert catalogue.read("2wiki", tmp_path, seed=0).held == "1 of 200 or 12,576 published"


def test_only_solvable_hands_have_a_solution():
    for hand in itertools.islice(itertools.combinations_with_replacement(range(1, 14), 4), 60):
        solution = game24.solution(hand)
        assert solution is None or game24.expression_value(solution, hand) == 24
    assert game24.solution((1, 1, 1, 7)) is None
    assert game24.expression_value(game24.solution((3, 3, 8, 8)), (3, 3, 8, 8)) == 24


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "name, row, message",
    [
        ("hotpotqa", {"answer": None}, "it lacks answer"),
        ("hotpotqa", {"answer": " "}, "field 'answer' is [' ']"),
        ("hotpotqa", {"_id": "5a8b57f2"}, "already used in line 1"),
        ("2wiki", {"answer_aliases": "Uskub"}, "expected a list of texts"),
        ("musique", {"answerable": False}, "expected MuSiQue-Ans"),
        ("gaia", {"Final answer": "?"}, "expected the validation split"),
        ("gaia", {"Level": 4}, "field 'Level' is 4; expected 1, 2 or 3"),
        ("gaia", {"task_id": None}, "it lacks task_id"),
        ("aime24", {"Answer": 1000}, "field 'Answer' is 1000; expected an integer from 0 to 999"),
        ("aime24", {"Answer": 7.5}, "expected an integer from 0 to 999"),
        ("aime24", {"ID": "2023-I-4"}, "expected problems of 2024 alone"),
        ("amc23", {"answer": "B"}, "field 'answer' is 'B'; expected a number"),
        ("amc23", {"url": "https://x.y/2022_AMC_12A_Problems"}, "expected problems of 2023"),
        ("gameof24", {"Puzzles": "1 1 1 1"}, "of which nothing makes 24"),
        ("gameof24", {"Puzzles": "4 5 6"}, "expected 4 numbers"),
        ("gpqa", {"Incorrect Answer 3": None}, "it lacks Incorrect Answer 3"),
        ("gpqa", {"Correct Answer": " "}, "expected 4 texts"),
        ("medqa", {"answer_idx": "B"}, "has the answer 'Vitamin C', but answer_idx B"),
    ],
)
def test_one_bad_row_refuses_the_file(tmp_path, name, row, message):
    rows = {"hotpotqa": HOTPOT, "2wiki": TWO_WIKI, "musique": MUSIQUE, "gaia": GAIA}
    rows |= {"aime24": AIME, "amc23": AMC, "gameof24": PUZZLE, "gpqa": GPQA, "medqa": MEDQA}
    own = {"hotpotqa": "_id", "2wiki": "_id", "musique": "id", "gaia": "task_id", "aime24": "ID"}
    own |= {"amc23": "id", "gameof24": "Rank", "gpqa": "Record ID"}
    fresh = {own[name]: "fresh"} if name in own else {}
    path = write(tmp_path / f"{name}.jsonl", rows[name], {**rows[name], **fresh, **row})
    error = refusal(tmp_path, name)
    assert error.startswith(f"{path}: 1 of 2 rows are not questions:\n  line 2: ")
    assert message in error and "They were read in " in error


def test_files_of_another_benchmark_or_of_none(tmp_path):
    path = write(tmp_path / "hotpotqa.jsonl", GAIA)
    error = refusal(tmp_path, "hotpotqa")
    assert f"{path} holds no rows of hotpotqa: the first of 1 has the fields task_id" in error
    assert "the published form of hotpotqa: _id or id, question, answer" in error
    path.write_text('{"_id": "5a')
    assert "line 1 is not JSON" in refusal(tmp_path, "hotpotqa")
    path.write_text("")
    assert refusal(tmp_path, "hotpotqa") == f"{path} holds no rows."
    assert "'triviaqa' is unknown; valid: bamboogle, 2wiki" in refusal(tmp_path, "triviaqa")


def test_a_broken_file_of_aliases_is_refused(tmp_path):
    write(tmp_path / "2wiki.jsonl", TWO_WIKI)
    aliases = tmp_path / catalogue.ALIASES
    aliases.write_text('{"Q_id": "Q1", "aliases": [], "demonyms": []}\n{"Q_id": "Q3"}\n[]\n{')
    error = refusal(tmp_path, "2wiki")
    assert f"{aliases}: 3 of 4 rows are not aliases:\n  line 2: " in error
    assert "it lacks aliases" in error and "line 3: is [], not" in error and "line 4: " in error


# -------------------------------------------------------------------------------------- places


def test_two_files_of_a_benchmark_are_both_named(tmp_path):
    one = write(tmp_path / "gpqa_main.csv", GPQA)
    two = write(tmp_path / "GPQA" / "gpqa_diamond.csv", GPQA)
    error = refusal(tmp_path, "gpqa")
    assert f"{one} and {two}: leave one there" in error
    one.unlink()
    assert places.find("gpqa", tmp_path) == two


def test_no_file_says_what_it_may_be_called(tmp_path):
    assert "Expected is gaia.* or metadata.* with the ending .json" in refusal(tmp_path, "gaia")
    assert "There is no folder" in refusal(tmp_path / "none", "gaia")


def test_what_is_no_file_of_the_benchmark_is_passed_over(tmp_path):
    """A download of GAIA as it lies on the hub: splits beside each other, a hidden cache."""
    right = write(tmp_path / "gaia/2023/validation/metadata.parquet", GAIA)
    for other in ("test/metadata.parquet", "validation/metadata.level1.parquet"):
        write(tmp_path / "gaia/2023" / other, GAIA)
    write(tmp_path / "gaia/.cache/metadata.jsonl", GAIA)
    (tmp_path / "gaia.txt").write_text("notes")
    assert places.find("gaia", tmp_path) == right


@pytest.mark.parametrize("table", [places.FILES, places.SPLITS, catalogue.SIZES])
def test_tables_have_every_benchmark(table):
    assert tuple(table) == catalogue.NAMES


# ----------------------------------------------------------------------------------------- CSV


def test_csv(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfa, b ,a\r\n"1,\n2",,3\r\n\r\nx\r\n,y,\r\n')
    short, expected = (
        list(files.csv_rows(path)),
        [("line 2", {"a": "1,\n2"}), ("line 6", {"b": "y"})],
    )
    assert [short[0], short[2]] == expected
    place, problem = short[1]
    assert place == "line 5" and isinstance(problem, fields.BadField)
    assert str(problem) == "has 1 cells; the first line has 3"


@pytest.mark.parametrize(
    "text, message",
    [
        (b'a,b\n1,"2\n3,4\n', r"t.csv, line 2, is not CSV: unexpected end of data"),
        (b"a\n\xff\n", "t.csv is not UTF-8: byte 0xff in line 2"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        list(files.csv_rows(tmp_path / "t.csv"))
