"""Conversations to learn: what is read, what is refused, and the ids that a rollout would see."""

import json

import pytest

from agents import drive, effects, prompts, solve, trajectory
from experiments import successes
from experiments.configs import quickstart
from experiments.running import command, sessions, stored
from experiments.warmstarting import conversations, probes, replies
from experiments.worlds import catalogue, world
from models.tokenizer import Tokenizer

MODEL = "experiments/data/quickstart/model"
ASK = {"role": "user", "content": "Question: Is it?"}
SAY = {"role": "assistant", "content": "Answer: yes"}
LIMITS = conversations.Limits(
    prompt=40, reply={"": 9, "planner": 9, "generator": 9}, row=48, row_replies=8
)


@pytest.fixture(scope="module")
def vocabulary():
    return Tokenizer.load(MODEL)


@pytest.fixture(scope="module")
def tools():
    return sessions.make_tools(quickstart.get_config())


def read(tmp_path, *rows, modules=(), replies="last", bad_rows="refuse"):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return conversations.read(path, modules=modules, replies=replies, bad_rows=bad_rows)


def encode(examples, vocabulary, *, limits=LIMITS, too_long="refuse", bad_rows="refuse"):
    how = dict(limits=limits, too_long=too_long, bad_rows=bad_rows)
    return conversations.encode(examples, vocabulary, **how)


# ---- rows ----------------------------------------------------------------------------------------


def test_the_last_reply_is_learnt_or_all_of_them(tmp_path):
    row = {"messages": [ASK, SAY, ASK, SAY | {"name": "x"}], "extra": 1}
    [last] = read(tmp_path, row)
    assert last.messages == (ASK, SAY, ASK) and (last.reply, last.module) == ("Answer: yes", "")
    both = read(tmp_path, row, replies="all")
    assert [len(example.messages) for example in both] == [1, 3]
    assert last.place.endswith("rows.jsonl, line 1")


def test_modules_are_chosen_and_written_rows_are_read_again(tmp_path):
    rows = [{"module": module, "messages": [ASK, SAY]} for module in ("planner", "verifier")]
    found = read(tmp_path, *rows, modules=("verifier",))
    assert [example.module for example in found] == ["verifier"]
    conversations.write(tmp_path / "again.jsonl", found)
    [again] = conversations.read(
        tmp_path / "again.jsonl", modules=(), replies="last", bad_rows="refuse"
    )
    assert (again.module, again.messages, again.reply) == ("verifier", (ASK,), SAY["content"])
    with pytest.raises(ValueError, match="rows.jsonl has no conversation of base to learn from"):
        read(tmp_path, *rows, modules=("base",))
    [missing] = read(tmp_path, {"module": None, "messages": [ASK, SAY]})  # as Parquet has it
    assert missing.module == ""


BAD = {
    "no messages": ({"text": "x"}, r"line 2 has 'messages' None; .* \(its fields: text\)"),
    "no list": ({"messages": "x"}, "has 'messages' 'x'; expected a list of messages"),
    "empty": ({"messages": []}, r"has 'messages' \[\]"),
    "no row": ([1], r"is \[1\]; expected an object with 'messages'"),
    "no reply": ({"messages": [ASK]}, "has no message of the assistant, so no reply to learn"),
    "reply first": ({"messages": [SAY]}, "begins with a message of the assistant"),
    "question last": ({"messages": [ASK, SAY, ASK]}, "ends with a message of the user"),
    "role": ({"messages": [ASK | {"role": "tool"}, SAY]}, "role 'tool'; valid: system, user, as"),
    "no message": ({"messages": ["hi", SAY]}, "a message of role 'hi'"),
    "parts": ({"messages": [ASK | {"content": [{}]}, SAY]}, r"'content' \[{}\]; expected a text"),
    "blank": ({"messages": [ASK, SAY | {"content": " "}]}, "an empty message of the assistant"),
    "module": ({"module": "planer", "messages": [ASK, SAY]}, "'module' 'planer'; valid: analyst"),
    "list": ({"module": ["planner"], "messages": [ASK, SAY]}, r"'module' \['planner'\]; valid"),
    "half": ('{"messages": [{"role": "user", "content": "\\ud83d"}]}', "is no Unicode text"),
    "torn": ('{"messages": [', "is not JSON"),
}


@pytest.mark.parametrize("row, why", BAD.values(), ids=BAD)
def test_bad_rows_are_refused_by_line_or_dropped(tmp_path, row, why, caplog):
    good = {"messages": [ASK, SAY]}
    with pytest.raises(ValueError, match=why) as caught:
        read(tmp_path, good, row)
    assert "line 2" in str(caught.value) and "warmstart.bad_rows=drop" in str(caught.value)
    assert len(read(tmp_path, good, row, bad_rows="drop")) == 1
    assert "left out 1 rows" in caplog.text


def test_rows_without_a_module_are_refused_where_modules_are_named(tmp_path):
    with pytest.raises(ValueError, match="line 1 has no 'module', and warmstart.modules names bas"):
        read(tmp_path, {"messages": [ASK, SAY]}, modules=("base",))
    with pytest.raises(ValueError, match="There is no file"):
        conversations.read(tmp_path / "absent.jsonl", modules=(), replies="last", bad_rows="drop")


# ---- ids -----------------------------------------------------------------------------------------


def test_prompts_and_replies_have_the_ids_of_a_rollout(tmp_path, vocabulary, tools):
    """The prompt that the agent sends, and what the engine draws after it, its stop id last."""
    worlds, how = [catalogue.WORLDS["quickstart"]], dict(tools=tools, max_turns=3, seed=0)
    stream = world.demonstrations(worlds, **how)
    shown = [next(stream) for _ in range(20)]
    examples = [conversations.Example("", s.role, s.messages, s.response) for s in shown]
    conversations.write(tmp_path / "shown.jsonl", examples)
    found = conversations.read(
        tmp_path / "shown.jsonl", modules=(), replies="last", bad_rows="refuse"
    )
    config = quickstart.get_config()
    for encoded, sample in zip(
        encode(found, vocabulary, limits=replies.limits(config)), shown, strict=True
    ):
        assert encoded.prompt_tokens == tuple(vocabulary.chat(sample.messages))
        *text, end = encoded.reply_tokens
        assert vocabulary.decode(text) == sample.response and end in vocabulary.eos_ids
        assert encoded.example.module == sample.role


def test_marks_in_a_reply_are_text(vocabulary):
    end = vocabulary.decode(vocabulary.eos_ids[:1], keep_special=True)
    ids = vocabulary.reply(f"a{end}b")
    assert ids.count(vocabulary.eos_ids[0]) == 1 and ids[-1] == vocabulary.eos_ids[0]


@pytest.mark.parametrize(
    "changes, why",
    [
        (dict(prompt=5), r"its prompt has \d+ tokens; rollouts allow 5"),
        (dict(reply={"": 1}), r"its reply has \d tokens; rollouts allow 1"),
        (dict(row_replies=1), r"its reply has \d tokens; batch.response_lengths end at 1"),
        (dict(row=9), r"it has \d+ tokens; batch.row_lengths end at 9"),
    ],
)
def test_what_is_too_long_is_refused_or_dropped(vocabulary, changes, why, caplog):
    limits = conversations.Limits(**vars(LIMITS) | changes)
    example = conversations.Example("file, line 3", "", (ASK,), "Answer: yes")
    with pytest.raises(ValueError, match=f"file, line 3 is too long: {why}"):
        encode([example], vocabulary, limits=limits)
    with pytest.raises(ValueError, match="None of 1 replies is left to learn"):
        encode([example], vocabulary, limits=limits, too_long="drop")
    assert "file, line 3 is too long" in caplog.text


# ---- what is measured ----------------------------------------------------------------------------

PLAN = "Context: Spain\nSub-goal: capital\nTool: knowledge_search"
ACT = PLAN.replace("knowledge_search", "act")  # a tool of an environment
CODE = 'python_coder(code="print(1)")'


@pytest.mark.parametrize(
    "module, held_out, good, bad",
    [
        ("planner", PLAN, PLAN + "\n", PLAN.replace("knowledge_search", "google")),
        ("planner", PLAN, PLAN.replace("Tool: k", "**Tool:** K"), PLAN.replace("Tool", "Use")),
        ("planner", ACT, PLAN + "\n", PLAN.replace("knowledge_search", "google")),
        ("planner", ACT, ACT.replace("capital", "else"), ACT.replace("Tool", "Use")),
        ("planner", "Go on.", PLAN, ACT),  # a held-out reply without a plan names no tool
        ("executor", CODE, 'python_coder(code="print(2)")', 'knowledge_search(query="1")'),
        ("verifier", "Verdict: STOP", "So.\nVerdict: CONTINUE", "STOP"),
        ("generator", "Answer: 1", "Well.\nAnswer: 2", "2"),
    ],
)
def test_replies_are_read_by_the_parser_of_their_module(tools, module, held_out, good, bad):
    example = conversations.Example("", module, (ASK,), held_out)
    encoded = [conversations.Encoded(example, (1,), (2,))] * 4
    written = [(good, (2,)), (good, (3,)), (good, (3,)), (bad, (3,))]
    assert probes.compare(encoded, written, tools) == {
        f"held_out/parsed/{module}": 0.75,
        f"held_out/exact/{module}": 0.25,
    }


def test_what_has_no_form_is_only_compared(tools):
    encoded = [
        conversations.Encoded(conversations.Example("", module, (ASK,), "x"), (1,), (2,))
        for module in ("base", "", "executor")  # a command of no tool is read by none
    ]
    found = probes.compare(encoded, [("x", (2,))] * 3, tools)
    assert found == dict.fromkeys([f"held_out/exact/{m}" for m in ("base", "executor", "reply")], 1)
    assert [each.example.module for each in probes.chosen(encoded * 2, 4)] == [
        *("base", "executor", ""),
        "base",
    ]


# ---- successes of a run --------------------------------------------------------------------------

SEARCHES = 'knowledge_search(query="capital of Spain")\nknowledge_search(query="Teide")'
PROGRAMS = 'python_coder(code="print(1, chr(10), 2)")\npython_coder(code="1 / 0")'
SAID = {
    "analyst": ["capital"],
    "planner": [f" {PLAN}\n", PLAN.replace("knowledge_search", "python_coder"), "no plan", PLAN],
    "executor": [SEARCHES, PROGRAMS, "search"],
    "verifier": ["Well.\nVerdict: CONTINUE"],
    "generator": ["Well.\nAnswer: Madrid"],
}


@pytest.fixture(scope="module")
def played(tools, vocabulary):
    """(line of a stored trajectory with all that can go wrong, its requests with their texts)"""
    texts, asked = {role: iter(said) for role, said in SAID.items()}, []

    def ask(request):
        text = next(texts[request.role])
        asked.append((request, text))
        return effects.Reply(text, tuple(vocabulary.chat(request.messages)), (1,), (0.0,))

    question = {"id": "q", "question": "Is it?\nOr: not?", "answer": ["Madrid"]}
    solver = solve.solve(question, tools=tools, prompt_set=prompts.COMPACT, max_turns=4)
    found = drive.to_the_end(solver, ask=ask, tools=tools)
    how = dict(question=question, step=3, reward=1.0, reward_source="rule", advantage=0.5)
    return json.loads(json.dumps(trajectory.to_json(found, **how))), asked


def play(line, tools, vocabulary):
    budget = prompts.Budget(1000, lambda messages: len(vocabulary.chat(messages)))
    how = dict(tools=tools, prompt_set=prompts.COMPACT, budget=budget)
    return list(successes.replay(line, "here", **how))


def test_a_stored_trajectory_gives_the_prompts_of_its_rollout(played, tools, vocabulary):
    """Calls of one turn, an error after a result, a plan and a command that are refused."""
    line, asked = played
    assert [turn["tool_error"] for turn in line["turns"]] == [False, True, True, True]
    assert "\nError: " in line["turns"][1]["result"] and line["answer"] == "Madrid"
    good = [(request, text) for request, text in asked if request.turn < 2]
    wanted = [
        (request.role, request.messages, text)
        for request, text in good
        if request.role in successes.STORED
    ]
    found = play(line, tools, vocabulary)
    assert [(e.module, e.messages, e.reply) for e in found] == wanted and len(found) == 3


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda line: line.update(question="Is it now?"), "asks the planner with 26 tokens in tu"),
        (lambda line: line["turns"][1].update(result="x"), "asks the planner with"),
        (lambda line: line["turns"][0].update(verdict="STOP"), "ends after turn 1 of 4"),
        (lambda line: line["turns"][0].update(command="search"), "a command that is refused"),
        (lambda line: line["turns"][0].update(tool="google"), "calls google, which is no tool"),
        (lambda line: line["turns"][0].pop("result"), "is damaged"),
        (lambda line: line.update(turns=[1]), "is damaged"),
    ],
)
def test_a_trajectory_that_would_go_otherwise_today_is_refused(
    played, tools, vocabulary, change, why
):
    line = json.loads(json.dumps(played[0]))
    change(line)
    with pytest.raises(successes.Unlike, match=why):
        play(line, tools, vocabulary)


def test_successes_are_chosen_and_written_once(played, tmp_path):
    line, _ = played
    (tmp_path / "trajectories").mkdir()
    stored.write_config(quickstart.get_config(), tmp_path)
    other = line | {"rollout": 1}
    failed = line | {"reward": 0.0}
    broken = line | {"status": "truncated"}
    write = lambda step, *lines: (tmp_path / "trajectories" / f"step_{step:06d}.jsonl").write_text(
        "".join(json.dumps(each) + "\n" for each in lines)
    )
    write(3, line, other, failed, broken)
    write(4, line | {"question_id": "r"}, line | {"reward": None}, {"torn": 1})
    how = dict(modules=("planner",), reward=1.0, per_question=1)
    out = tmp_path / "new" / "out.jsonl"
    counts = successes.successes(tmp_path, out, **how)
    assert counts == dict(trajectories=6, successes=2, questions=2, replies=1, unlike=0, damaged=1)
    [found] = conversations.read(out, modules=("planner",), replies="last", bad_rows="refuse")
    assert found.reply == SAID["planner"][0]
    with pytest.raises(command.ConfigError, match="none of 6 training trajectories earned"):
        successes.successes(tmp_path, out, **how | {"reward": 2.0})
    with pytest.raises(command.ConfigError, match="No step from 5 to the last: .* of 3 to 4"):
        successes.successes(tmp_path, out, first_step=5, **how)
    with pytest.raises(command.ConfigError, match="No step from 0 to 0"):
        successes.successes(tmp_path, out, last_step=0, **how)
    with pytest.raises(command.ConfigError, match="stores the texts of planner, executor, analyst"):
        successes.successes(tmp_path, out, **how | {"modules": ("verifier",)})
