r"""Rows as others publish them, brought into the form of a question.

Every converter takes a row with the fields that its `Format` names, and its number in the file,
and returns a question that `data.as_question` still checks. It raises BadField for a row that is
only half of its form. Ids that are unique in a source only get the source before them. Options are
written below a question that does not list them, since the models read the question alone.
"""

import dataclasses
import functools
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence

from agents import questions
from flow_grpo_jax.answers import choice
from flow_grpo_jax.datasets import fields
from flow_grpo_jax.datasets.fields import BadField, shown

# Kind of each benchmark of the paper, in the form of its authors' files.
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
}
_INSTRUCTION = re.compile(r"\s*When ready, output the final answer enclosed in <answer>.*$", re.S)
_SOLUTION = re.compile(r"####[ \t]*([^\n#]+?)\s*\Z")  # how a solution of GSM8K ends
# Words of a source's name that tell its kind, where the row does not.
_MATH = ("math", "gsm8k", "aime", "amc", "deepscaler", "dapo", "numina", "olympiad")
_QA = ("nq", "hotpot", "trivia", "popqa", "2wiki", "musique", "bamboogle", "searchr1")


@dataclasses.dataclass(frozen=True)
class Format:
    """convert: function (row, number in the file) -> question.

    fields: what every row has; "a|b" for either.
    signs: fields that together mean this format where no format is named; () if none do.
    mark: the field that only this format has, or "".
    """

    convert: Callable[[Mapping, int], dict]
    fields: tuple[str, ...]
    signs: tuple[str, ...] = ()
    mark: str = ""


def converted(row: Mapping, name: str, index: int) -> dict:
    """Returns the question of row `index` of a file in the format `name`; raises BadField."""
    form = FORMATS[name]
    require(row, form.fields, f"format {name}")
    question = form.convert(row, index)
    held = {field: row[field] for field in questions.IMAGE_FIELDS if row.get(field)}
    return {**question, **held}


def require(row: Mapping, names: Sequence[str], form: str):
    """Raises BadField unless `row` has a value in every field; "a|b" stands for either."""
    missing = [name for name in names if all(row.get(option) is None for option in name.split("|"))]
    if missing:
        lacks = ", ".join(name.replace("|", " or ") for name in missing)
        has = ", ".join(map(str, row)) or "none"
        raise BadField(f"is no row of {form}: it lacks {lacks} (it has the fields {has})")


def recognised(row: Mapping) -> list[str]:
    """Returns the formats whose signs `row` has."""
    return [
        name
        for name, form in FORMATS.items()
        if form.signs and all(row.get(sign) is not None for sign in form.signs) and _fits(name, row)
    ]


def suggested(rows: Iterable[tuple[str, object]]) -> list[str]:
    """Returns the formats that rows may be meant to have, by the first row with a mark of one."""
    for _, row in rows:
        if isinstance(row, Mapping):
            held = {name for name, value in row.items() if value is not None}
            if names := [name for name, form in FORMATS.items() if form.mark in held]:
                return names
            if "query" in held:
                return list(BENCHMARKS)
    return []


def last_line(solution: str) -> str | None:
    """Returns what follows the last "####" of a solution as GSM8K writes it, or None."""
    found = _SOLUTION.search(solution)
    return found[1] if found else None


def listed(text: str, options: Sequence[str]) -> str:
    """Returns a question with its options below it, "A. …" a line, unless it lists them already."""
    if lists(text, options):
        return text
    letters = string.ascii_uppercase
    return "\n".join(
        [text, *(f"{x}. {_bare(o, x)}" for x, o in zip(letters, options, strict=False))]
    )


def lists(text: str, options: Sequence[str]) -> bool:
    """Returns whether a question's text shows every option behind its letter."""
    return all(
        re.search(rf"(?<!\w){letter}\W{{1,4}}{re.escape(_bare(option, letter))}", text)
        for letter, option in zip(string.ascii_uppercase, options, strict=False)
    )


def _bare(option: str, letter: str) -> str:
    return re.sub(rf"\A\s*(?:\({letter}\)|{letter}[.):])\s*", "", option).strip()


def _fits(name: str, row: Mapping) -> bool:
    """Returns whether a row with the signs of a format is of it, and not of another one."""
    if name == "gsm8k":
        return isinstance(row["answer"], str) and last_line(row["answer"]) is not None
    if name == "flashrag":
        return row.get("reward_model") is None  # else verl: Search-R1 kept FlashRAG's fields
    return True


def _text(row: Mapping, *names: str) -> str:
    """Returns the first of the fields that holds text, without a request for <answer> tags."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return _INSTRUCTION.sub("", value)
    found = {name: row.get(name) for name in names}
    raise BadField(f"has no text for the question: {shown(found)}")


def _kind_of(source: str, ability: str) -> str:
    """Returns "math" or "qa" by the names that verl's and the authors' rows give."""
    for words in (ability.lower(), source.lower()):
        math = any(word in words for word in _MATH)
        qa = any(word in words for word in (*_QA, "fact-reasoning"))
        if math != qa:
            return "math" if math else "qa"
    raise BadField(
        f"is of the source {source!r} and the ability {ability!r}, which tell no kind; "
        "write kind, source, question and answer into the row"
    )


# ---------------------------------------------------------------------------------- converters


def _verl(row: Mapping, index: int) -> dict:
    """verl and Search-R1: reward_model.ground_truth is a text, a list, or {"target": [...]}."""
    model, extra = row["reward_model"], row.get("extra_info")
    truth = model.get("ground_truth") if isinstance(model, Mapping) else None
    if isinstance(truth, Mapping):
        truth = truth.get("target")
    if truth is None:
        raise BadField(
            f"field 'reward_model' is {shown(model)}; expected {{'ground_truth': answer}} or "
            "{'ground_truth': {'target': [answers]}}"
        )
    source = row.get("data_source")
    if not isinstance(source, str) or not source.strip():
        raise BadField(f"field 'data_source' is {shown(source)}; expected the name of the source")
    golden = row.get("golden_answers")
    if golden is not None and fields.golds(golden) != fields.golds(truth):
        raise BadField(
            f"has the golden_answers {shown(golden)}, but the ground_truth {shown(truth)}"
        )
    asked = [part.get("question") for part in (extra, row) if isinstance(part, Mapping)]
    asked += [row.get("prompt") if isinstance(row.get("prompt"), str) else None]
    text = next((part for part in asked if isinstance(part, str) and part.strip()), None)
    return {
        "id": f"{source}-{row['id']}" if row.get("id") is not None else f"verl-{index}",
        "question": text or _user_message(row.get("prompt")),
        "answer": truth,
        "kind": _kind_of(source, str(row.get("ability") or "")),
        "source": source,
    }


def _user_message(prompt) -> str:
    """Returns the one user message of a chat."""
    messages = prompt if isinstance(prompt, list | tuple) else ()
    if all(isinstance(m, Mapping) and isinstance(m.get("content"), str) for m in messages):
        users = [m["content"] for m in messages if m.get("role") == "user"]
        if len(users) == 1 and {m.get("role") for m in messages} <= {"system", "user"}:
            return users[0]
    raise BadField(
        f"field 'prompt' is {shown(prompt)}; expected a list with one user message, or the text "
        "in extra_info.question"
    )


def _agentflow(row: Mapping, index: int) -> dict:
    """The authors' combined_train.parquet: answers of NQ are joined by "; "."""
    source, result, extra = str(row["source"]), row["result"], row.get("extra_info")
    truth = extra.get("ground_truth") if isinstance(extra, Mapping) else None
    if truth is not None and truth != result:
        raise BadField(f"has the result {shown(result)}, but the ground_truth {shown(truth)}")
    kind = _kind_of(source, "")
    if kind == "qa" and isinstance(result, str):
        result = [part for part in result.split("; ") if part.strip()]
    return {
        "id": f"{source}-{row.get('id', index)}",
        "question": _text(row, "question"),
        "answer": result,
        "kind": kind,
        "source": source,
    }


def _flashrag(row: Mapping, index: int) -> dict:
    """FlashRAG's NQ, HotpotQA, …: golden_answers is the list of accepted answers."""
    if row.get("choices") is not None:
        raise BadField("has choices: only short answers of format flashrag are read")
    source = str(row.get("source") or row.get("data_source") or "flashrag")
    return {
        "id": f"{source}-{row.get('id', index)}",
        "question": _text(row, "question"),
        "answer": row["golden_answers"],
        "kind": "qa",
        "source": source,
    }


def _deepmath(row: Mapping, index: int) -> dict:
    return {
        "id": f"deepmath-{index}",
        "question": _text(row, "question", "Problem"),
        "answer": row["final_answer"],
        "kind": "math",
        "source": "deepmath",
    }


def _gsm8k(row: Mapping, index: int) -> dict:
    answer = last_line(row["answer"]) if isinstance(row["answer"], str) else None
    if answer is None:
        raise BadField(
            f"field 'answer' is {shown(row['answer'])}; expected a solution that ends in '#### 7'"
        )
    return {
        "id": f"gsm8k-{index}",
        "question": _text(row, "question"),
        "answer": answer,
        "kind": "math",
        "source": "gsm8k",
    }


def _choice(row, index, *, name, text, options, answer) -> dict:
    return {
        "id": f"{name}-{row.get('id', index)}",
        "question": listed(text, options),
        "answer": answer,
        "kind": "choice",
        "choices": options,
        "source": name,
    }


def _arc(row: Mapping, index: int) -> dict:
    """ARC: labels are letters or numbers; in AI2's own files the question holds the options."""
    question, choices = row["question"], row.get("choices")
    if isinstance(question, Mapping):
        question, choices = question.get("stem"), question.get("choices")
    if isinstance(choices, list | tuple) and all(isinstance(part, Mapping) for part in choices):
        choices = {key: [part.get(key) for part in choices] for key in ("text", "label")}
    if not isinstance(choices, Mapping) or not {"text", "label"} <= set(choices):
        raise BadField(f"field 'choices' is {shown(choices)}; expected its texts and labels")
    labels = [str(label) for label in choices["label"]]
    options = fields.choices({"text": choices["text"], "label": labels})
    if (key := str(row["answerKey"]).strip()) not in labels:
        raise BadField(f"field 'answerKey' is {shown(row['answerKey'])}; expected one of {labels}")
    letter = string.ascii_uppercase[labels.index(key)]
    text = _text({"question": question}, "question")
    return _choice(row, index, name="arc", text=text, options=options, answer=letter)


def _mmlu(row: Mapping, index: int, *, name: str) -> dict:
    """MMLU: answer counts from 0, or is a letter. MMLU-Pro: options, answer and answer_index."""
    options = fields.choices(row.get("choices", row.get("options")))
    letter, stated = _letter(row["answer"], options), _letter(row.get("answer_index"), options)
    if stated and stated != letter:
        raise BadField(f"has the answer {letter}, but answer_index {stated}")
    text = _text(row, "question")
    return _choice(row, index, name=name, text=text, options=options, answer=letter)


def _medqa(row: Mapping, index: int, *, name: str) -> dict:
    """MedQA: answer is a text and answer_idx its letter. GPQA of the authors: a text or letter."""
    options = row.get("options", row.get("choices"))
    if isinstance(options, list | tuple) and options and isinstance(options[0], Mapping):
        options = {part.get("key"): part.get("value") for part in options}
    options = fields.choices(options)
    answer, letter = row.get("answer"), _letter(row.get("answer_idx"), options)
    named = choice.gold_index(answer, options) if isinstance(answer, str) else None
    agrees = named is not None and letter == string.ascii_uppercase[named]
    if letter and (named is None or answer == options[ord(letter) - ord("A")] and not agrees):
        answer = letter  # of a text that looks like another letter, too: blood group A as option B
    elif letter and not agrees:
        raise BadField(f"has the answer {shown(answer)}, but answer_idx {letter}")
    text = _text(row, "query", "question")
    return _choice({}, index, name=name, text=text, options=options, answer=answer)


def _letter(value, options: Sequence[str]) -> str:
    """Returns the letter that a letter or a number counted from 0 means; "" for None."""
    if value is None:
        return ""
    if isinstance(value, str) and value.strip() in fields.labels_of(len(options))[0]:
        return value.strip()
    if type(value) is int or (isinstance(value, str) and value.strip().isdecimal()):
        return fields.letter_of(value, options, base=0)
    raise BadField(f"has the index {shown(value)}; expected a letter or a number counted from 0")


def _benchmark(row: Mapping, index: int, *, name: str) -> dict:
    """A benchmark's row in the authors' files; pid is not used, since it is not always unique."""
    kind = BENCHMARKS[name]
    if kind == "choice":
        return _medqa(row, index, name=name)
    question = {
        "id": f"{name}-{index}",
        "question": _text(row, "query", "question"),
        "answer": row["answer"],
        "kind": kind,
        "source": name,
    }
    if kind == "gameof24" and not isinstance(row.get("question"), str):
        question["numbers"] = row.get("question")
    return question


FORMATS = {
    "verl": Format(
        _verl, ("data_source", "reward_model"), signs=("reward_model",), mark="reward_model"
    ),
    "agentflow": Format(
        _agentflow,
        ("question", "result", "source"),
        signs=("question", "chain", "result", "source"),
        mark="result",
    ),
    "flashrag": Format(
        _flashrag,
        ("question", "golden_answers"),
        signs=("question", "golden_answers"),
        mark="golden_answers",
    ),
    "deepmath": Format(
        _deepmath,
        ("question|Problem", "final_answer"),
        signs=("final_answer",),
        mark="final_answer",
    ),
    "gsm8k": Format(_gsm8k, ("question", "answer"), signs=("question", "answer")),
    "arc": Format(
        _arc, ("question", "answerKey"), signs=("question", "answerKey"), mark="answerKey"
    ),
    "mmlu": Format(
        functools.partial(_mmlu, name="mmlu"),
        ("question", "choices", "answer"),
        signs=("subject", "question", "choices", "answer"),
    ),
    "mmlu_pro": Format(
        functools.partial(_mmlu, name="mmlu_pro"),
        ("question", "options", "answer"),
        signs=("question", "options", "answer_index"),
        mark="answer_index",
    ),
    "medqa": Format(
        functools.partial(_medqa, name="medqa"),
        ("query|question", "options|choices", "answer|answer_idx"),
        signs=("question", "options", "answer_idx"),
        mark="answer_idx",
    ),
} | {
    name: Format(functools.partial(_benchmark, name=name), ("query|question", "answer"))
    for name in BENCHMARKS
}
