"""Rows as others publish them become questions that their own golds answer."""

import json

import pytest

from flow_grpo_jax import data, rewards
from flow_grpo_jax.datasets import formats

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q: 2+2?"}]
RULE = {"style": "rule", "ground_truth": "4"}
VERL = {"data_source": "openai/gsm8k", "prompt": CHAT, "ability": "math", "reward_model": RULE}
SEARCH_R1 = {
    "id": "train_0",
    "question": "who?",
    "golden_answers": ["Bob", "Robert"],
    "data_source": "nq",
    "prompt": [{"role": "user", "content": "Answer the given question. Question: who?"}],
    "ability": "fact-reasoning",
    "reward_model": {"style": "rule", "ground_truth": {"target": ["Bob", "Robert"]}},
}
AGENTFLOW = {
    "id": 7,
    "question": "who?",
    "chain": "",
    "result": "Bob; Robert",
    "source": "nq",
    "extra_info": {"ground_truth": "Bob; Robert", "idx": 7},
}
FLASHRAG = {"id": "test_0", "question": "who?", "golden_answers": ["Bob", "Robert"]}
DEEPMATH = {"question": "Evaluate.", "final_answer": r"\frac{1}{2}", "difficulty": 4.5}
GSM8K = {"question": "How many?", "answer": "3 + 4 = <<3+4=7>>7\nIt is 7.\n#### 1,007"}
ARC = {
    "id": "Mercury_1",
    "question": "Which?",
    "choices": {"text": ["iron", "zinc", "tin"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}
ARC_AI2 = {
    "id": "Mercury_1",
    "question": {
        "stem": "Which?",
        "choices": [{"text": t, "label": x} for t, x in zip(("iron", "zinc"), "AB", strict=True)],
    },
    "answerKey": "B",
}
MMLU = {"question": "Which?", "subject": "metals", "choices": ["iron", "zinc"], "answer": 1}
MMLU_PRO = {
    "question_id": 70,
    "question": "Which?",
    "options": ["iron", "zinc"],
    "answer": "B",
    "answer_index": 1,
    "category": "metals",
}
MEDQA = {
    "question": "Which?",
    "options": {"A": "iron", "B": "zinc"},
    "answer": "zinc",
    "answer_idx": "B",
}
LISTED = "Which?\nA. iron\nB. zinc"
METALS = {"question": LISTED, "kind": "choice", "choices": ["iron", "zinc"]}

# (format, row, question, an answer that is right)
ROWS = [
    (
        "verl",
        VERL,
        {
            "id": "verl-0",
            "question": "Q: 2+2?",
            "answer": ("4",),
            "kind": "math",
            "source": "openai/gsm8k",
        },
    ),
    (
        "verl",
        {**VERL, "extra_info": {"index": 3, "split": "train", "question": "2+2?"}},
        {
            "id": "verl-0",
            "question": "2+2?",
            "answer": ("4",),
            "kind": "math",
            "source": "openai/gsm8k",
        },
    ),
    (
        "verl",
        SEARCH_R1,
        {
            "id": "nq-train_0",
            "question": "who?",
            "answer": ("Bob", "Robert"),
            "kind": "qa",
            "source": "nq",
        },
    ),
    (
        "agentflow",
        AGENTFLOW,
        {
            "id": "nq-7",
            "question": "who?",
            "answer": ("Bob", "Robert"),
            "kind": "qa",
            "source": "nq",
        },
    ),
    (
        "agentflow",
        {**AGENTFLOW, "source": "mathhard", "result": "(1; 2)", "extra_info": None},
        {
            "id": "mathhard-7",
            "question": "who?",
            "answer": ("(1; 2)",),
            "kind": "math",
            "source": "mathhard",
        },
    ),
    (
        "flashrag",
        FLASHRAG,
        {
            "id": "flashrag-test_0",
            "question": "who?",
            "answer": ("Bob", "Robert"),
            "kind": "qa",
            "source": "flashrag",
        },
    ),
    (
        "deepmath",
        DEEPMATH,
        {
            "id": "deepmath-0",
            "question": "Evaluate.",
            "answer": (r"\frac{1}{2}",),
            "kind": "math",
            "source": "deepmath",
        },
    ),
    (
        "gsm8k",
        GSM8K,
        {
            "id": "gsm8k-0",
            "question": "How many?",
            "answer": ("1,007",),
            "kind": "math",
            "source": "gsm8k",
        },
    ),
    (
        "arc",
        ARC,
        {
            "id": "arc-Mercury_1",
            "question": f"{LISTED}\nC. tin",
            "answer": ("B",),
            "kind": "choice",
            "choices": ["iron", "zinc", "tin"],
            "source": "arc",
        },
    ),
    ("arc", ARC_AI2, {**METALS, "id": "arc-Mercury_1", "answer": ("B",), "source": "arc"}),
    ("mmlu", MMLU, {**METALS, "id": "mmlu-0", "answer": ("B",), "source": "mmlu"}),
    ("mmlu_pro", MMLU_PRO, {**METALS, "id": "mmlu_pro-0", "answer": ("B",), "source": "mmlu_pro"}),
    ("medqa", MEDQA, {**METALS, "id": "medqa-0", "answer": ("zinc",), "source": "medqa"}),
]
BLOOD = {"A": "A", "B": "O", "C": "B"}
QUOTED = [  # golds of other spellings: (format, row, an answer that is right)
    ("verl", {**VERL, "reward_model": {"ground_truth": r'["\frac{1}{2}"]'}}, "1/2"),
    ("verl", {**VERL, "reward_model": {"ground_truth": r'["\\frac{1}{2}"]'}}, "1/2"),
    ("verl", {**VERL, "reward_model": {"ground_truth": r"['\theta', '\pi']"}}, r"\theta"),
    ("medqa", {**MEDQA, "options": BLOOD, "answer": "B", "answer_idx": "C"}, "C. B"),
]
UNRECOGNISED = [  # forms that are read only where the format is named
    ("mmlu", {name: value for name, value in MMLU.items() if name != "subject"}),
    ("medqa", {"question": "Which?", "options": ["A. iron", "B. zinc"], "answer": "zinc"}),
    ("bamboogle", {"query": "Who?", "answer": "['Ann', 'A.']"}),
]


def read(tmp_path, row, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    return data.read_questions(path, **options)


@pytest.mark.parametrize(("name", "row", "question"), ROWS)
def test_rows_are_read_and_recognised(tmp_path, name, row, question):
    assert read(tmp_path, row, format=name) == [question]
    assert read(tmp_path, row) == [question]
    assert rewards.score(question, question["answer"][-1]).value == 1
    assert formats.recognised(row) == [name]


@pytest.mark.parametrize(("name", "row"), UNRECOGNISED)
def test_rows_of_no_sure_format_need_its_name(tmp_path, name, row):
    assert formats.recognised(row) == []
    with pytest.raises(ValueError, match="field 'id' is None"):
        read(tmp_path, row)
    [question] = read(tmp_path, row, format=name)
    assert rewards.score(question, question["answer"][0]).value == 1


@pytest.mark.parametrize(("name", "row", "answer"), QUOTED)
def test_golds_in_odd_spellings_are_reached(tmp_path, name, row, answer):
    [question] = read(tmp_path, row, format=name)
    assert rewards.score(question, answer).value == 1


def test_every_format_is_tested():
    assert set(formats.FORMATS) == {name for name, _, _ in ROWS} | set(formats.BENCHMARKS)


@pytest.mark.parametrize(("answer", "right"), [(0, "A"), (1, "B"), ("1", "B"), ("A", "A")])
def test_answers_of_mmlu_count_from_0(tmp_path, answer, right):
    [question] = read(tmp_path, {**MMLU, "answer": answer})
    assert question["answer"] == (right,)


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("verl", {**VERL, "reward_model": {"style": "model"}}, "expected {'ground_truth': answer}"),
        ("verl", {**VERL, "reward_model": "4"}, "field 'reward_model' is '4'"),
        ("verl", {**VERL, "ability": "code", "data_source": "codeforces"}, "tell no kind"),
        ("verl", {**VERL, "prompt": CHAT + CHAT}, "expected a list with one user message"),
        ("verl", {**VERL, "data_source": None}, "it lacks data_source"),
        ("verl", {**VERL, "images": ["x.png"]}, "Images are not supported"),
        ("verl", {**SEARCH_R1, "golden_answers": ["Ann"]}, "but the ground_truth"),
        ("agentflow", {**AGENTFLOW, "result": "Ann"}, "but the ground_truth 'Bob; Robert'"),
        ("agentflow", {**AGENTFLOW, "source": "codes"}, "tell no kind"),
        ("flashrag", {**FLASHRAG, "golden_answers": []}, "at least one accepted answer"),
        ("flashrag", {**FLASHRAG, "choices": ["x"]}, "has choices"),
        ("flashrag", {"question": "who?", "answer": "Bob"}, "it lacks golden_answers"),
        ("gsm8k", {**GSM8K, "answer": "It is 7."}, "ends in '#### 7'"),
        ("gsm8k", {**GSM8K, "answer": 7}, "ends in '#### 7'"),
        ("arc", {**ARC, "answerKey": "4"}, "field 'answerKey' is '4'; expected one of"),
        ("arc", {**ARC, "choices": ["iron", "zinc"]}, "expected its texts and labels"),
        (
            "arc",
            {**ARC, "choices": {"text": ["x", "y"], "label": ["B", "A"]}},
            "in the order A, B, C",
        ),
        ("mmlu", {**MMLU, "answer": 2}, "expected a number from 0 to 1"),
        ("mmlu", {**MMLU, "answer": "zinc"}, "expected a letter or a number counted from 0"),
        ("mmlu", {**MMLU, "answer": True}, "expected a letter or a number counted from 0"),
        ("mmlu_pro", {**MMLU_PRO, "answer_index": 0}, "has the answer B, but answer_index A"),
        ("medqa", {**MEDQA, "answer": "iron"}, "has the answer 'iron', but answer_idx B"),
        ("medqa", {**MEDQA, "answer_idx": "C"}, "expected a letter"),
        ("medqa", {"question": "Which?", "answer": "zinc"}, "it lacks options or choices"),
        ("deepmath", {**DEEPMATH, "question": " "}, "has no text for the question"),
    ],
)
def test_a_row_that_is_half_of_its_form_is_refused(tmp_path, name, row, said):
    with pytest.raises(ValueError, match="1 of 1 rows are not questions") as error:
        read(tmp_path, row, format=name)
    assert said in str(error.value)


def test_one_file_has_one_format(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ({"x": 1}, DEEPMATH, FLASHRAG))))
    with pytest.raises(ValueError) as error:
        data.read_questions(path)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("2 of 3 rows are not questions:")
    assert "line 1: is no row of format deepmath: it lacks question or Problem, final" in lines[1]
    assert "line 3: is no row of format deepmath: it lacks final_answer" in lines[2]


def test_rows_of_two_formats_name_both(tmp_path):
    with pytest.raises(ValueError, match="line 1 may be of the formats flashrag and arc"):
        read(tmp_path, {**FLASHRAG, "answerKey": "A"})


def test_options_are_listed_once():
    text = "Which?\n\n(A) iron\n(B) zinc"
    assert formats.listed(text, ["iron", "zinc"]) == text
    assert formats.listed("Iron or zinc?", ["iron", "zinc"]).endswith("?\nA. iron\nB. zinc")
    assert formats.listed("Which?", ["A. iron", "B. zinc"]) == LISTED
