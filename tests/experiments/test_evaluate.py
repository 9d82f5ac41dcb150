"""Evaluations: what is asked, what is counted, what goes on after a kill, and what is written."""

import dataclasses
import functools
import json
import pathlib
import re
from unittest import mock

import jax
import loopback
import pytest

from agents.trajectory import Status, Stop, Trajectory, Turn
from experiments import evaluate
from experiments.configs import common, quickstart
from experiments.evaluating import (
    exports,
    identity,
    models,
    plan,
    questions,
    results,
    run,
    table,
)
from experiments.evaluating.ledger import Key, Ledger
from experiments.reporting import trajectories
from experiments.running import command
from flow_grpo_jax import rollout
from flow_grpo_jax.benchmarks import catalogue
from flow_grpo_jax.rewards import Reward
from models import sharding
from tools.protocol import Parameter, Tool

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = "experiments/data/quickstart/model"
SAYS = {
    "You analyse": "The capital is asked.",
    "You are the planner": "Context: Spain\nSub-goal: its capital\nTool: knowledge_search",
    "You write the command": 'knowledge_search(query="Spain capital")',
    "You check": "Look again.\nVerdict: CONTINUE",
    "You write the final": "It is in the memory.\nAnswer: Madrid",
    "Answer the question": "A guess.\nAnswer: Lisbon",
}


def own_file(folder, rows, name="mine.jsonl"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def capitals(count=2):
    asked = ("Spain", "Madrid"), ("Portugal", "Lisbon"), ("France", "Paris")
    return [
        {"id": f"q{i}", "question": f"The capital of {country}?", "answer": city}
        | {"kind": "qa", "source": "mine", "level": i % 2 + 1}
        for i, (country, city) in enumerate(asked[:count])
    ]


def config(**changes):
    made = common.base()
    made.tools.names = ("knowledge_search",)
    with made.unlocked():
        for name, value in changes.items():
            made[name] = value
    return made


def wanted(folder, **how):
    return evaluate.Wanted(("mine",), str(folder), **how)


# ---- the whole command --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano():
    """(config, source, what answers): the shipped planner, sampled, as both sets of weights."""
    chosen, source = quickstart.get_config(), models.Source(model=SHIPPED)
    chosen.eval.temperature, chosen.engine.replicas = 0.8, 1
    one = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    with mock.patch.object(sharding, "make_mesh", one):
        answering = models.build(models.adapted(chosen, source), source)
    yield chosen, source, answering
    answering.close()


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_equals_an_undisturbed_one(nano, tmp_path, monkeypatch):
    chosen, source, answering = nano
    monkeypatch.setattr(models, "build", lambda *_: dataclasses.replace(answering, parts=Kept()))
    lines = (ROOT / "experiments/data/quickstart/held_out.jsonl").read_text().splitlines()[:12]
    data = own_file(tmp_path / "data", map(json.loads, lines))
    modes = ("trained", "untrained", "bare")
    asked = wanted(data, trials=2, modes=modes, max_turns=(1, 3))
    found = evaluate.evaluate(chosen, tmp_path / "whole", asked, source)

    with pytest.raises(rollout.Stopped):  # as SIGTERM
        rounds = iter(range(100))
        stop = lambda: next(rounds) > 25
        evaluate.evaluate(chosen, tmp_path / "cut", asked, source, should_stop=stop)
    ledger = tmp_path / "cut" / "ledger.jsonl"
    done = ledger.read_text().splitlines(keepends=True)
    assert 3 < len(done) < 200
    ledger.write_text("".join(done[:-1]) + done[-1][:50])  # as SIGKILL in the midst of a line
    again = evaluate.evaluate(chosen, tmp_path / "cut", asked, source)
    differing = {name for name in found if found[name] != again[name]}
    assert differing <= {"times"}
    assert ledger.read_text().startswith("".join(done[:-1]))  # nothing was asked twice
    keys = [tuple(json.loads(line)["key"]) for line in ledger.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 12 * 2 * (2 * 2 + 1)
    for name in ("scores.jsonl", "messages.jsonl", "results.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    # Equal weights give equal trajectories: the random numbers do not depend on the mode.
    rows = {(row["mode"], row["protocol"], row["max_turns"]): row for row in found["rows"]}
    assert rows["trained", "honest", 3]["scores"] == rows["untrained", "honest", 3]["scores"]
    assert rows["untrained", "honest", 3]["solved"] > 0
    by_label = {(one["compared"], one["second"][3]): one for one in found["differences"]}
    assert by_label["trained less untrained", 3]["error"] == 0.0
    assert rows["untrained", "honest", 1]["turns"] == 1.0

    # A smaller budget alone, and more trials later, give the same numbers.
    alone = wanted(data, trials=2, modes=("untrained",), max_turns=(1,))
    [row] = evaluate.evaluate(chosen, tmp_path / "one", alone, source)["rows"]
    assert row == rows["untrained", "honest", 1]
    compared = dataclasses.replace(alone, against=str(tmp_path / "whole"))
    paired = evaluate.evaluate(chosen, tmp_path / "one", compared, source)["differences"]
    assert [one["mean"] for one in paired if "less that of whole" in one["compared"]] == [0.0]

    # Every number is of a trajectory on the page.
    page = (tmp_path / "whole" / "report.html").read_text()
    blocks = re.findall(r'id="data-(\w+)">([^<]*)<', page)
    blocks = {name: trajectories.unpack(packed) for name, packed in blocks}
    assert "mine · untrained · 3 turns" in {step["name"] for step in blocks["steps"]}
    assert "mine: score" in {chart["title"] for chart in blocks["charts"]["main"]}
    assert re.search(r"untrained\s+3\s", table.terminal(found))

    with pytest.raises(command.ConfigError, match="another config; it differs in seed"):
        other = chosen.copy_and_resolve_references()
        other.seed = 1
        evaluate.evaluate(other, tmp_path / "one", alone, source)
    with pytest.raises(command.ConfigError, match="other questions of mine"):
        evaluate.evaluate(chosen, tmp_path / "one", dataclasses.replace(alone, questions=3), source)
    about = identity.read(tmp_path / "one")
    with pytest.raises(command.ConfigError, match="other trained weights"):
        new = {"trained": {"source": "x", "fingerprint": "0" * 16}}
        identity.check_weights(about, tmp_path / "one", new)


class Kept:
    """Stays open: the next evaluation of the test uses it."""

    def close(self):
        pass


def test_a_server_answers_for_every_module_and_the_bare_model(tmp_path):
    data = own_file(tmp_path / "data", capitals())

    def respond(body):
        system = body["messages"][0]["content"]
        return next(text for start, text in SAYS.items() if system.startswith(start))

    with loopback.Loopback(loopback.replies(respond)) as server:
        source = models.Source(url=server.url, model="m")
        asked = wanted(data, modes=("trained", "bare"), max_turns=(1, 2))
        found = evaluate.evaluate(config(), tmp_path / "out", asked, source)
        count = len(server.bodies())
        assert evaluate.evaluate(config(), tmp_path / "out", asked, source)["rows"] == found["rows"]
        assert len(server.bodies()) == count  # nothing is asked again
    # Of a question: analysis, two turns of three requests, an answer at each budget; and the bare.
    assert count == 2 * (1 + 2 * 3 + 2 + 1)
    rows = {(row["mode"], row["max_turns"]): row for row in found["rows"]}
    shares = {place: row["scores"]["rule"]["value"] for place, row in rows.items()}
    assert shares == {("trained", 1): 0.5, ("trained", 2): 0.5, ("bare", 0): 0.5}
    assert rows["trained", 2]["levels"]["1"]["value"] == 1.0
    assert rows["trained", 2]["levels"]["2"]["value"] == 0.0
    assert not found["differences"]  # nothing untrained to compare with
    assert found["weights"] == {"trained": {"source": server.url, "model": "m"}}
    with pytest.raises(command.ConfigError, match="untrained: there are no such weights"):
        evaluate.evaluate(config(), tmp_path / "o", wanted(data, modes=("untrained",)), source)


def test_what_a_server_failed_at_is_shown_and_asked_again(tmp_path):
    data, refuses = own_file(tmp_path / "data", capitals()), [True]

    def behave(connection, request, server):
        said = request[1]["messages"]
        if refuses[0] and "Portugal" in said[1]["content"]:
            return loopback.fails(400, "too long")(connection, request, server)
        text = next(text for start, text in SAYS.items() if said[0]["content"].startswith(start))
        return loopback.says(text)(connection, request, server)

    with loopback.Loopback(behave) as server:
        source = models.Source(url=server.url, model="m")
        asked = wanted(data, max_turns=(1,))
        failed = evaluate.evaluate(config(), tmp_path / "out", asked, source)
        refuses[0], count = False, len(server.bodies())
        whole = evaluate.evaluate(config(), tmp_path / "out", asked, source)
        again = [body for body in server.bodies()[count:] if "Portugal" in str(body)]
    before, after = failed["rows"][0], whole["rows"][0]
    assert (before["infra_errors"], before["questions"], before["solved"]) == (1, 2, 1)
    assert before["infra_retries"] == 1 and before["of_outputs"] == 1.0
    assert (after["infra_errors"], after["solved"], after["no_answer"]) == (0, 1, 0)
    assert again and len(server.bodies()) - count == 5  # the other question is not asked again


# ---- plan and questions -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how, message",
    [
        (dict(trials=4), "would be the same 4 times"),
        (dict(budgets=(3, 3)), "different numbers"),
        (dict(budgets=(0, 3)), "different numbers from 1"),
        (dict(modes=("frozen",)), "name each of trained, untrained, bare"),
        (dict(modes=("bare", "bare")), "at most once"),
        (dict(protocols=("paper",)), "honest, authors"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(how, message):
    usual = dict(modes=("trained",), protocols=("honest",), budgets=(), trials=1)
    with pytest.raises(command.ConfigError, match=message):
        plan.arms(common.base(), **usual | how)


def test_the_authors_rows_stand_beside_the_honest_ones():
    how = dict(protocols=("honest", "authors"), budgets=(5, 3), trials=1)
    found = plan.arms(common.base(), modes=("bare", "trained"), **how)
    assert [(arm.name, arm.budgets, arm.temperature, arm.top_p) for arm in found] == [
        ("trained", (3, 5), 0.0, 1.0),
        ("trained, authors'", (10,), 0.7, 0.99),
        ("bare", (0,), 0.0, 1.0),
    ]
    assert sorted(plan.PAPER) == sorted(catalogue.NAMES)
    assert plan.paper_figure("gaia", "untrained") == pytest.approx(0.172)
    assert plan.paper_figure("gaia", "bare") is plan.paper_figure("mine", "trained") is None


def test_files_of_ones_own_are_benchmarks(tmp_path):
    own_file(tmp_path, capitals(3))
    [found] = questions.read(["mine"], tmp_path, config(), most=2)
    assert [question["id"] for question in found.questions] == ["q0", "q1"]
    assert found.score(found.questions[0], "Madrid") == {"rule": 1.0}
    shown = questions.prepared(found)
    assert "mine: 2 questions" in shown and "q1 (qa, scored by rule)" in shown
    assert "= Lisbon" in shown
    own_file(tmp_path, capitals(), "mine.json")
    own_file(tmp_path, capitals(), "esc.jsonl")
    for names, message in (
        (["mine"], "mine.jsonl and mine.json"),
        (["yours"], "no benchmark 'yours'"),
        (["../mine"], "is no name"),
        (["esc", "esc"], "esc twice"),
    ):
        with pytest.raises(command.ConfigError, match=message):
            questions.read(names, tmp_path, config())
    with pytest.raises(command.ConfigError, match="is no folder"):
        questions.read(["mine"], tmp_path / "none", config())


# ---- ledger and numbers -------------------------------------------------------------------------


def turn(**changes):
    usual = dict(
        index=1,
        prompt_tokens=(1, 2, 3),
        response_tokens=(4, 5),
        logprobs=(-0.5, -0.25),
        finished=True,
        planner_text="Context: c\nSub-goal: s\nTool: search",
        context="c",
        sub_goal="s",
        tool="search",
        command='search(query="x")',
        result="found",
        tool_error=False,
        verdict="STOP",
        parse_failures=0,
        shortened=0,
        seconds=1.5,
    )
    return Turn(**usual | changes)


def solved(answer="Madrid", status=Status.OK, turns=(), trial=0):
    return Trajectory("x", trial, "Look.", turns, answer, status, Stop.VERIFIED, seconds=6.0)


def filled(tmp_path, answers, statuses=None, turns=None):
    """Returns (benchmark, arm, ledger) of a question each, `answers` its trials'."""
    [benchmark] = questions.read(["mine"], own_file(tmp_path / "d", capitals()), config())
    arm = plan.Arm("trained", "honest", (3,), 0.5, 1.0, 8)
    ledger = Ledger(tmp_path)
    for q, trials in enumerate(answers):
        for k, answer in enumerate(trials):
            status = (statuses or {}).get((q, k), Status.OK)
            key = Key("mine", f"q{q}", "trained", "honest", 3, k)
            one = solved(answer, status, turns or (turn(),), k)
            ledger.add({key: one}, benchmark.questions[q])
    return benchmark, arm, ledger


def test_failures_of_infrastructure_are_counted_and_open(tmp_path):
    statuses = {(0, 1): Status.INFRA_ERROR, (1, 1): Status.TIMEOUT}
    answers = [["Madrid", "Madrid"], ["Lisbon", ""]]  # an answer of a broken one counts for nothing
    benchmark, arm, ledger = filled(tmp_path, answers, statuses)
    assert run.missing([benchmark], [arm], 2, ledger) == (1, 4)  # the deadline has the last word
    found = results.outcomes(benchmark, arm, 3, 2, ledger, scorer=None)
    row = results.row(benchmark, arm, 3, found, beside="", count_unsupported=False)
    assert (row["infra_errors"], row["timeouts"], row["no_answer"]) == (1, 1, 1)
    assert row["scores"]["rule"]["value"] == 0.5 and row["of_outputs"] == 1.0
    assert row["pass_at"]["2"]["value"] == 1.0
    judged = results.outcomes(benchmark, arm, 3, 2, ledger, scorer=Judge())
    assert [outcome.beside for outcome in judged[0]] == [1.0, None]
    authors = dataclasses.replace(arm, protocol="authors")
    theirs = results.row(benchmark, authors, 3, found, beside="", count_unsupported=False)
    assert theirs["scores"]["authors'"]["value"] == 1.0  # a crash is left out, as they do
    apart = dataclasses.replace(benchmark, unsupported=[("p", "has a picture")] * 2)
    counted = results.row(apart, arm, 3, found, beside="", count_unsupported=True)
    assert (counted["questions"], counted["scores"]["rule"]["value"]) == (4, 0.25)
    left_out = results.row(apart, arm, 3, found, beside="", count_unsupported=False)
    assert (left_out["questions"], left_out["unsupported"]) == (2, 2)


def test_a_damaged_or_torn_line_leaves_its_question_open(tmp_path):
    benchmark, arm, ledger = filled(tmp_path, [["Madrid"], ["Lisbon"]])
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b'{"key": 1}\nnonsense\n' + lines[0] + lines[1][:-1])
    again = Ledger(tmp_path)
    assert run.missing([benchmark], [arm], 1, again) == (1, 2)
    assert ledger.path.read_bytes().endswith(lines[0])
    key = Key("mine", "q1", "trained", "honest", 3, 0)
    again.add({key: solved("Porto")}, benchmark.questions[1])
    again.add({key: solved("Lisbon")}, benchmark.questions[1])
    assert again.read(key)["trajectory"]["answer"] == "Lisbon"  # the later line counts
    assert Ledger(tmp_path).read(key) == again.read(key)


class Judge:
    """Believes in Madrid."""

    def score(self, questions, answers):
        self.asked = list(zip((q["id"] for q in questions), answers, strict=True))
        return [self._reward(answer) for answer in answers], {}

    def _reward(self, answer):
        return Reward(float("Madrid" in answer), "judge/verdict", known=answer != "none")


def test_a_judge_is_a_column_beside_the_official_score(tmp_path):
    answers = [["Madrid", "It is Madrid", "Madrid"], ["Madrid", "none", "Lisbon"]]
    benchmark, arm, ledger = filled(tmp_path, answers)
    asking = config()
    asking.reward.qa = "judge"
    assert (
        results.decider(asking, benchmark) == "judge" and results.decider(config(), benchmark) == ""
    )
    judge = Judge()
    found = results.outcomes(benchmark, arm, 3, 3, ledger, scorer=judge)
    assert len(judge.asked) == 5  # equal answers once
    row = results.row(benchmark, arm, 3, found, beside="judge", count_unsupported=False)
    assert row["scores"]["rule"]["value"] == pytest.approx(0.5)
    assert row["beside"]["value"] == pytest.approx((1 + 1 / 3) / 2)
    assert row["beside"]["no_verdict"] == 1
    assert row["beside"]["agreement"] == pytest.approx(2 / 5)
    authors = dataclasses.replace(arm, protocol="authors")
    theirs = results.row(benchmark, authors, 3, found, beside="judge", count_unsupported=False)
    assert theirs["scores"]["authors'"]["value"] == pytest.approx((1 + 1 / 3) / 2)


def test_the_bar_shows_score_and_time_left():
    now = [0.0]
    progress = run.Progress(done=10, total=40, clock=lambda: now[0])
    now[0] = 30.0
    progress.advance("mine", 1.0)
    progress.advance("mine", 0.0)
    assert progress.text("mine") == "12/40 mine score 0.500 left 0:07:00"


# ---- formats of others --------------------------------------------------------------------------

SEARCH = Tool("search", "finds", (Parameter("query", "str", "what"),), "", "demo", str, 1.0)


def test_messages_answer_every_call(tmp_path):
    turns = (
        turn(),
        turn(index=2, command='search(query="a")\nsearch(query="b")', result="one\ntwo"),
        turn(index=3, tool="", command="", result="Error: no plan", tool_error=True),
    )
    benchmark, _, ledger = filled(tmp_path, [["Madrid"]], turns=turns)
    line = ledger.read(Key("mine", "q0", "trained", "honest", 3, 0))
    tools = exports.described(exports.describe({"search": SEARCH}))
    found = exports.messages(line, tools)
    roles = [message["role"] for message in found["messages"]]
    assert " ".join(roles) == (
        "user assistant assistant tool assistant tool tool assistant user assistant"
    )
    made = [call for message in found["messages"] for call in message.get("tool_calls", ())]
    told = [m["tool_call_id"] for m in found["messages"] if m["role"] == "tool"]
    assert [call["id"] for call in made] == told and len(set(told)) == 3
    given = [json.loads(call["function"]["arguments"])["query"] for call in made]
    assert given == ["x", "a", "b"]
    assert found["tools"][0]["function"]["parameters"]["required"] == ["query"]

    # ATIF 1.4: numbered steps; calls and metrics are of agents; results name a call of their step.
    form = exports.atif(line, tools, model="nano", version="1", scores={"rule": 1.0})
    assert form["schema_version"] == "ATIF-v1.4" and {"name", "version"} <= set(form["agent"])
    assert [step["step_id"] for step in form["steps"]] == [1, 2, 3, 4, 5, 6]
    for step in form["steps"]:
        assert set(step) <= {
            *("step_id", "timestamp", "source", "message", "tool_calls", "observation"),
            *("metrics", "extra"),
        }
        calls = [call["tool_call_id"] for call in step.get("tool_calls", ())]
        named = [
            one.get("source_call_id") for one in step.get("observation", {"results": ()})["results"]
        ]
        assert set(named) - {None} <= set(calls)
        assert step["source"] == "agent" or len(step) == 4
    assert form["steps"][0]["source"] == "user" and form["steps"][-1]["message"] == "Madrid"
    times = [step["timestamp"] for step in form["steps"]]
    assert times == sorted(times)
    assert form["final_metrics"]["total_completion_tokens"] == 6
