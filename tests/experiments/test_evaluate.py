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
    beside,
    exports,
    identity,
    models,
    output,
    plan,
    questions,
    results,
    run,
    table,
)
from experiments.evaluating.ledger import Key, Ledger
from experiments.reporting import trajectories
from experiments.running import backends, command, versions
from flow_grpo_jax import checkpoint, rollout, symbolic
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

    prints = {mode: facts["fingerprint"] for mode, facts in found["weights"].items()}
    assert set(prints) == {"trained", "untrained"}  # of two copies of one folder
    assert set(prints.values()) == {checkpoint.fingerprint(answering.parts.frozen)}
    assert f"trained {SHIPPED} (fingerprint {prints['trained']})" in found["setup"][1]

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

    chosen, recorded = config(), tmp_path / "recorded"
    chosen.tools.record = str(recorded)
    own_file(recorded, [{}], "one.json")
    with loopback.Loopback(loopback.replies(respond)) as server:
        source = models.Source(url=server.url, model="m")
        asked = wanted(data, modes=("trained", "bare"), max_turns=(1, 2))
        found = evaluate.evaluate(chosen, tmp_path / "out", asked, source)
        count = len(server.bodies())
        assert evaluate.evaluate(chosen, tmp_path / "out", asked, source)["rows"] == found["rows"]
        assert len(server.bodies()) == count  # nothing is asked again
    # Of a question: analysis, two turns of three requests, an answer at each budget; and the bare.
    assert count == 2 * (1 + 2 * 3 + 2 + 1)
    rows = {(row["mode"], row["max_turns"]): row for row in found["rows"]}
    shares = {place: row["scores"]["rule"]["value"] for place, row in rows.items()}
    assert shares == {("trained", 1): 0.5, ("trained", 2): 0.5, ("bare", 0): 0.5}
    assert rows["trained", 2]["levels"]["1"]["value"] == 1.0
    assert rows["trained", 2]["levels"]["2"]["value"] == 0.0
    assert not found["differences"]  # nothing untrained to compare with
    # What was evaluated, with what, by which versions.
    assert found["weights"] == {"trained": {"source": server.url, "model": "m"}}
    assert found["setup"][1].startswith(f"Here: all modules m ({server.url}); tools knowledge_sear")
    lines = (tmp_path / "out" / "atif.jsonl").read_text().splitlines()
    assert {json.loads(line)["agent"]["model_name"] for line in lines} == {"m"}
    assert "<b>m</b> planner" in (tmp_path / "out" / "report.html").read_text()
    of_run = {"source": "runs/a", "step": 4, "fingerprint": "f"}
    assert identity.model_name(of_run) == "runs/a, step 4"
    assert found["versions"] == versions.installed() and found["versions"]["jax"] == jax.__version__
    assert found["config_hash"] == identity.of_config(models.adapted(chosen, source))["config_hash"]
    other = chosen.copy_and_resolve_references()
    other.eval.temperature = 0.5
    assert found["config_hash"] != identity.of_config(other)["config_hash"]
    assert found["unsupported"] == {"mine": []} and found["files"] == {"mine": "mine.jsonl"}
    assert [tool["name"] for tool in found["tools"]] == ["knowledge_search"]
    answers = len([*recorded.rglob("*.json")])
    assert (found["recorded"]["folder"], found["recorded"]["answers"]) == (str(recorded), answers)
    (recorded / "one.json").write_text("[]")
    assert output.recorded(chosen)["hash"] != found["recorded"]["hash"]
    with pytest.raises(command.ConfigError, match="untrained: there are no such weights"):
        evaluate.evaluate(chosen, tmp_path / "o", wanted(data, modes=("untrained",)), source)


def answering(city_of):
    """A server's behaviour: as SAYS, but its answer to a question that names a country."""

    def respond(body):
        system, asked = (message["content"] for message in body["messages"][:2])
        if system.startswith("You write the final"):
            return "Answer: " + next(city for name, city in city_of.items() if f"{name}?" in asked)
        return next(text for start, text in SAYS.items() if system.startswith(start))

    return loopback.replies(respond)


def test_two_evaluations_are_paired_if_only_their_models_differ(tmp_path):
    data = own_file(tmp_path / "data", capitals(3))
    right = {"Spain": "Madrid", "Portugal": "Lisbon", "France": "Paris"}
    out, first = tmp_path / "second", tmp_path / "first"
    with loopback.Loopback(answering(dict.fromkeys(right, "Madrid"))) as server:
        source = models.Source(url=server.url, model="m")
        evaluate.evaluate(config(), first, wanted(data, max_turns=(1,)), source)
    asked = wanted(data, max_turns=(1,), against=str(first))
    with loopback.Loopback(answering(right)) as server:
        source = models.Source(url=server.url, model="other")
        found = evaluate.evaluate(config(), out, asked, source)
        for name, value, told in (
            ("eval.temperature", 0.5, r"eval.temperature \(0.0, now 0.5\)"),
            ("rollout.max_response_tokens", 64, r"rollout.max_response_tokens \(2048, now 64\)"),
            ("seed", 1, "has seed 0, this evaluation 1"),
        ):
            changed = config()
            changed.update_from_flattened_dict({name: value})
            with pytest.raises(command.ConfigError, match=told):
                evaluate.evaluate(changed, tmp_path / "third", asked, source)
        # An older one lacks fields that are new: they had their defaults.
        values = json.loads((first / "results.json").read_text())
        del values["config"]["rollout"]["grammar"], values["config"]["reward"]["judge_tokens"]
        (first / "results.json").write_text(json.dumps(values))
        assert evaluate.evaluate(config(), out, asked, source)["rows"] == found["rows"]
        changed = config()
        changed.rollout.grammar = True
        with pytest.raises(command.ConfigError, match=r"rollout.grammar \(False, now True\)"):
            evaluate.evaluate(changed, tmp_path / "third", asked, source)
        # Scores that cannot be compared are found before anything is asked.
        whole, count = (first / "scores.jsonl").read_text(), len(server.bodies())
        for scores in ([], [{"rule": 1.5}], [{"rule": float("nan")}], [{"rule": 1.0}] * 2, [{}]):
            line = json.loads(whole.splitlines()[0]) | {"scores": scores}
            (first / "scores.jsonl").write_text(json.dumps(line) + "\n")
            with pytest.raises(command.ConfigError, match="holds no finished evaluation"):
                evaluate.evaluate(config(), tmp_path / "third", asked, source)
        assert len(server.bodies()) == count
    # Gains are 0, 1 and 1: mean 2/3, standard deviation 1/√3, so the error is 1/3.
    [gain] = found["differences"]
    assert gain["compared"] == "trained less that of first"
    assert (gain["mean"], gain["error"]) == pytest.approx((2 / 3, 1 / 3))
    assert (gain["low"], gain["high"]) == pytest.approx((2 / 3 - 1.96 / 3, 1.0))
    assert (gain["better"], gain["worse"], gain["questions"], gain["unpaired"]) == (2, 0, 3, 0)
    assert "+66.7 ± 33.3 (+1.3 to +100.0), better 2, worse 0 of 3" in table.terminal(found)


def test_a_server_samples_as_the_protocol_says(tmp_path, monkeypatch):
    data, made, planner_of = own_file(tmp_path / "data", capitals(3)), [], backends.planner
    keep = lambda *given, **how: made.append(planner_of(*given, **how)) or made[-1]
    monkeypatch.setattr(backends, "planner", keep)
    with loopback.Loopback(
        answering(dict.fromkeys(("Spain", "Portugal", "France"), "Madrid"))
    ) as server:
        source = models.Source(url=server.url, model="m")
        asked = wanted(data, max_turns=(1,), protocols=("honest", "authors"))
        chosen = config()
        chosen.eval.temperature = 0.25
        with chosen.unlocked():
            chosen.backends.base_generator.extra.seed = 3
        found = evaluate.evaluate(chosen, tmp_path / "out", asked, source)
    fields = "temperature", "top_p", "frequency_penalty"
    sampling = [
        (body["messages"][0]["content"][:19], *(body.get(field) for field in fields))
        for body in server.bodies()
    ]
    planner = "You are the planner"
    assert {s for s in sampling if s[0] == planner} == {
        (planner, 0.25, None, None),
        (planner, 0.7, 0.99, 1.2),
    }
    assert {s[1:] for s in sampling if s[0] != planner} == {(0.0, None, None)}
    assert sum(s == (planner, 0.7, 0.99, 1.2) for s in sampling) == 3 * plan.AUTHORS["max_turns"]
    assert len(made) == 2  # of each protocol one, however many questions: a round looks at each
    setup = "\n".join(found["setup"])
    assert "penalty of 1.2 is the server's to apply" in setup
    assert "at most 10 turns; the planner sampled at temperature 0.7" in setup
    assert {body.get("seed") for body in server.bodies()} == {None, 3}
    assert found["sampling"] == {
        "trained": dict(temperature=0.25, top_p=1.0, frequency_penalty=0.0),
        "trained, authors'": dict(temperature=0.7, top_p=0.99, frequency_penalty=1.2),
    }
    # An earlier version sampled every planner as the base generator, and kept nothing of it.
    for name in ("evaluation.json", "results.json"):
        kept = json.loads((tmp_path / "out" / name).read_text())
        del kept["sampling"]
        (tmp_path / "out" / name).write_text(json.dumps(kept))
    told = "sampled otherwise: trained: temperature 0.0, now 0.25; trained, authors': temper"
    against = dataclasses.replace(asked, against=str(tmp_path / "out"))
    for out, one in ((tmp_path / "out", asked), (tmp_path / "new", against)):
        with pytest.raises(command.ConfigError, match=told):
            evaluate.evaluate(chosen, out, one, source)
    # Where it was sampled alike, it goes on, and the authors' rows stay what they are.
    chosen.backends.base_generator.temperature = chosen.eval.temperature
    about = identity.read(tmp_path / "out")
    about["config"]["backends"]["base_generator"]["temperature"] = 0.25
    honest, authors = (
        plan.arms(chosen, modes=("trained",), protocols=(one,), budgets=(1,), trials=1)[-1:]
        for one in ("honest", "authors")
    )
    how = dict(config=models.adapted(chosen, source), benchmarks=())
    identity.check(about, "out", **how, arms=honest)
    first = questions.read(["mine"], data, chosen, most=1)
    with pytest.raises(command.ConfigError, match="another --questions, which counts rows of the"):
        identity.check(about, "out", **how | {"benchmarks": first}, arms=honest)
    made = models.Answering(mock.Mock(tools={}), None, about["weights"], None, None)
    about = identity.write(tmp_path / "out", about, **how, arms=honest, answering=made)
    with pytest.raises(command.ConfigError, match="otherwise: trained, authors': temperature 0.25"):
        identity.check(about, "out", **how, arms=authors)
    for name, value in (("top_p", 1), ("temperature", 0.9), ("max_tokens", 64)):
        with chosen.unlocked():
            chosen.backends.base_generator.extra = {name: value}
        with pytest.raises(command.ConfigError, match=rf"extra.{name}={value} would also be the"):
            models.adapted(chosen, source)


IDENTITY = r"\sin^2 x+\cos^2 x"


class Checker:
    """Stands for math-verify: knows one identity."""

    def equal(self, gold, answer):
        return None if answer == "hang" else (gold, answer) == (IDENTITY, "1")

    def close(self):
        pass


def test_math_verify_and_a_judge_stand_beside_the_score(tmp_path, monkeypatch):
    monkeypatch.setattr(symbolic, "Symbolic", Checker)
    monkeypatch.setattr(symbolic, "need", lambda: None)
    golds = {"One": IDENTITY, "Two": "1/2", "Three": "7", "Four": "8"}
    rows = [
        {"id": name, "question": f"{name}?", "answer": gold, "kind": "math", "source": "mine"}
        for name, gold in golds.items()
    ]
    capital = {"id": "c", "question": "Capital?", "answer": "Madrid", "kind": "qa", "source": "m"}
    data = own_file(tmp_path / "data", [*rows, capital])
    said = {"One": "1", "Two": "0.5", "Three": "hang", "Four": "9", "Capital": "Madrid"}
    answer = answering(said)

    def behave(connection, request, server):
        asked = request[1]["messages"][0]["content"]
        if asked.startswith(tuple(SAYS)):
            return answer(connection, request, server)
        right = any(f"{name}?" in str(request[1]["messages"]) for name in ("Two", "Four"))
        verdict = json.dumps({"analysis": "So.", "true_false": right})
        return loopback.says(verdict)(connection, request, server)

    with loopback.Loopback(behave) as server:
        source, chosen = models.Source(url=server.url, model="m"), config()
        chosen.backends.judge.update(kind="server", url=server.url, model="j")
        asked = wanted(data, max_turns=(1,), beside=("math_verify", "judge"))
        found = evaluate.evaluate(chosen, tmp_path / "out", asked, source)
        plain = evaluate.evaluate(
            chosen, tmp_path / "out", dataclasses.replace(asked, beside=()), source
        )
    [row], [alone] = found["rows"], plain["rows"]
    assert row["scores"] == alone["scores"] and alone["beside"] == []
    assert row["scores"]["rule"]["value"] == 2 / 5  # Two and Capital
    judge, verify = row["beside"]
    assert (judge["name"], verify["name"]) == ("judge", "math_verify")
    assert (judge["value"], judge["questions"]) == (2 / 5, 5)
    assert (verify["value"], verify["questions"], verify["no_verdict"]) == (1 / 4, 4, 1)
    assert judge["agreement"] == 3 / 5  # not on Four and Capital
    assert verify["agreement"] == pytest.approx(1 / 3)  # on Four; Three has no verdict
    assert "judge 40.0 agree 60.0, math_verify 25.0 agree 33.3 no verdict 1" in table.terminal(
        found
    )
    values = [line.split(",") for line in table.comma_separated(found).splitlines()]
    assert [line[6:8] for line in values[1:]] == [
        ["rule", "0.4"],
        ["judge", "0.4"],
        ["math_verify", "0.25"],
    ]
    with pytest.raises(
        command.ConfigError, match="--beside=rule: name each of f1, judge, math_ver"
    ):
        beside.names(config(), ("rule",))
    # What is missing is said before anything is loaded.
    monkeypatch.setattr(models, "build", None)
    none = mock.Mock(side_effect=ValueError("math-verify is not installed"))
    monkeypatch.setattr(symbolic, "need", none)
    asking = config()
    asking.reward.qa = "judge"
    for chosen, names, message in (
        (config(), ("judge",), "^--beside=judge needs a judge; set backends.judge.kind"),
        (asking, (), "^reward.qa='judge' needs a judge"),
        (config(), ("math_verify",), "math-verify is not installed"),
    ):
        with pytest.raises(command.ConfigError, match=message):
            how = dataclasses.replace(asked, beside=names)
            evaluate.evaluate(chosen, tmp_path / "no", how, source)


def test_what_a_server_failed_at_is_shown_and_asked_again(tmp_path, monkeypatch):
    bars, progress = [], run.Progress
    monkeypatch.setattr(run, "Progress", lambda **how: bars.append(progress(**how)) or bars[-1])
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
    page = (tmp_path / "out" / "report.html").read_text()
    _, cards = page.split(">Planners and tools ")  # also with one turn budget
    assert '<rect class="c0" x="0.0" width="50.0" height="9">' in cards
    cards = re.sub(r"<svg.*?</svg>", "", cards[: cards.index("<section")])
    cards = re.sub(r"(<[^>]+>)+", "|", cards)
    assert "|Planner|" in cards and "|mine|trained (9.5 % – 90.5 %)|50.0 %|" in cards
    assert "|Tools chosen|" in cards and "|knowledge_search|trained|100.0 %|" in cards
    before, after = failed["rows"][0], whole["rows"][0]
    assert (before["infra_errors"], before["questions"], before["solved"]) == (1, 2, 1)
    assert before["infra_retries"] == 1 and before["of_outputs"] == 1.0
    assert (after["infra_errors"], after["solved"], after["no_answer"]) == (0, 1, 0)
    told = [bar.text("mine", "trained").rpartition(" left")[0] for bar in bars]
    assert told == [f"2/2 mine trained score {0.5:.3f}"] * 2  # with what was there before
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


def gaia(folder, count):
    """A file of GAIA's with as many rows; every second one has an attachment."""
    files = ("", "map\u001b[2J.png")
    rows = [
        {"task_id": f"t{i}", "Question": "The capital of Spain?", "Level": 1 + i % 2}
        | {"Final answer": "Madrid", "file_name": files[i % 2]}
        for i in range(count)
    ]
    return own_file(folder, rows, "gaia.jsonl")


def test_the_first_questions_are_rows_of_the_file_with_and_without_attachments(tmp_path):
    data, chosen = gaia(tmp_path / "data", 30), config()
    [found] = questions.read(["gaia"], data, chosen, most=3)
    assert [question["id"] for question in found.questions] == ["t0", "t2"]
    assert [(one.id, one.kind, one.level) for one in found.unsupported] == [("t1", "qa", "2")]
    shown = questions.prepared(found)
    assert "2 questions from" in shown and "the file holds 30 of 165 published" in shown
    assert r"unsupported t1: has the attachment map\x1b[2J.png" in shown
    [whole] = questions.read(["gaia"], data, chosen)
    assert (len(whole.questions), len(whole.unsupported)) == (15, 15)
    own_file(data, [{"Question": "?", "Answer": str(i)} for i in range(125)], "bamboogle.jsonl")
    [full] = questions.read(["bamboogle"], data, chosen)
    assert full.held == "" and "published" not in questions.prepared(full)


def test_what_is_left_out_is_counted_and_named(tmp_path):
    data = gaia(tmp_path / "data", 30)
    asked = evaluate.Wanted(("gaia",), str(data), max_turns=(1,), count_unsupported=True)
    with loopback.Loopback(answering({"Spain": "Madrid"})) as server:
        source = models.Source(url=server.url, model="m")
        evaluate.evaluate(config(), tmp_path / "first", asked, source)
        asked = dataclasses.replace(asked, against=str(tmp_path / "first"))
        found = evaluate.evaluate(config(), tmp_path / "out", asked, source)
    lines = (tmp_path / "out" / "scores.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    assert len(lines) == 30 and [line["id"] for line in lines[15:17]] == ["t1", "t3"]
    assert lines[15]["scores"] == [{"gaia": 0.0}] and lines[15]["status"] == ["unsupported"]
    [gain] = found["differences"]
    assert (gain["questions"], gain["unpaired"], gain["mean"]) == (30, 0, 0.0)
    [row] = found["rows"]
    assert (row["solved"], row["questions"]) == (15, 30)
    shown = table.terminal(found)
    assert "Left out, counted as not solved:" in shown and "gaia.jsonl holds 30 of 165" in shown
    assert r"gaia t1: has the attachment map\x1b[2J.png" in shown and "\x1b" not in shown
    assert "gaia t19: " in shown and "gaia t21: " not in shown  # the first ten
    assert "gaia: 5 more, in results.json" in shown
    text = (tmp_path / "out" / "results.md").read_text()
    assert r"- gaia t1: has the attachment map\\x1b\[2J.png" in text and "\x1b" not in text
    hostile = [["a\n# b", "![c](http://d) <e> `f` *g*"], ["\u2028# h", ""]]
    lines = table.markdown(found | {"unsupported": {"gaia": hostile, "# i": [["", ""]]}}).split(
        "\n"
    )
    assert r"- gaia a\\n# b: !\[c\](http://d) &lt;e> \`f\` \*g\*" in lines
    assert r"- gaia \\u2028# h: " in lines and r"- \# i : " in lines
    assert "gaia t1: has the attachment" in (tmp_path / "out" / "report.html").read_text()


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
    found = results.outcomes(benchmark, benchmark.questions, arm, 3, 2, ledger)
    row = results.row(benchmark, benchmark.questions, arm, 3, found)
    assert (row["infra_errors"], row["timeouts"], row["no_answer"]) == (1, 1, 1)
    assert row["scores"]["rule"]["value"] == 0.5 and row["of_outputs"] == 1.0
    assert row["pass_at"]["2"]["value"] == 1.0
    judged = results.outcomes(
        benchmark, benchmark.questions, arm, 3, 2, ledger, **column("judge", Judge())
    )
    assert [outcome.beside["judge"] for outcome in judged[0]] == [1.0, None]
    authors = dataclasses.replace(arm, protocol="authors")
    theirs = results.row(benchmark, benchmark.questions, authors, 3, found)
    assert theirs["scores"]["authors'"]["value"] == 1.0  # a crash is left out, as they do


def test_unsupported_questions_count_everywhere_or_nowhere(tmp_path):
    benchmark, arm, ledger = filled(tmp_path, [["Madrid", "Madrid"], ["Madrid", "Lisbon"]])
    apart = [catalogue.Unsupported(id, "has a picture", "qa", "2") for id in ("p", "r")]
    benchmark = dataclasses.replace(benchmark, unsupported=apart)
    counted = benchmark.counted(unsupported=True)
    judge = column("judge", Judge())
    found = results.outcomes(benchmark, counted, arm, 3, 2, ledger, **judge)
    row = results.row(benchmark, counted, arm, 3, found)
    assert (row["questions"], row["solved"], row["scores"]["rule"]["value"]) == (4, 3, 0.375)
    assert row["levels"]["1"]["value"] == 1.0  # q0
    assert row["levels"]["2"]["value"] == pytest.approx(0.5 / 3)  # q1, p, r
    assert row["levels"]["2"]["questions"] == 3
    [verdicts] = row["beside"]
    assert (verdicts["value"], verdicts["questions"]) == ((1 + 0.5 + 0 + 0) / 4, 4)
    assert (verdicts["agreement"], verdicts["no_verdict"]) == (2 / 4, 0)  # q1 is in Portugal
    assert row["pass_at"]["2"]["value"] == 0.5
    # They are no trajectories: nothing of them failed, and no output of theirs exists.
    assert (row["no_answer"], row["infra_errors"], row["turns"]) == (0, 0, 1.0)
    assert row["of_outputs"] == 0.75
    left_out = results.row(benchmark, benchmark.questions, arm, 3, found[:2])
    assert (left_out["questions"], left_out["unsupported"]) == (2, 2)
    assert (left_out["scores"]["rule"]["value"], row["unsupported_counted"]) == (0.75, True)


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

    def close(self):
        pass


def column(name, scorer):
    """Arguments of `results.outcomes`: a column of questions of kind qa."""
    return dict(names={"qa": (name,)}, columns={name: beside.of_scorer(scorer)})


def test_a_judge_is_a_column_beside_the_official_score(tmp_path):
    answers = [["Madrid", "It is Madrid", "Madrid"], ["Madrid", "none", "Lisbon"]]
    benchmark, arm, ledger = filled(tmp_path, answers)
    asking = config()
    asking.reward.qa = "judge"
    assert beside.of(benchmark, beside.names(asking, ())) == ("judge",)
    assert beside.of(benchmark, beside.names(config(), ())) == ()
    judge = Judge()
    how = column("judge", judge)
    found = results.outcomes(benchmark, benchmark.questions, arm, 3, 3, ledger, **how)
    assert len(judge.asked) == 5  # equal answers once
    row = results.row(benchmark, benchmark.questions, arm, 3, found)
    assert row["scores"]["rule"]["value"] == pytest.approx(0.5)
    [verdicts] = row["beside"]
    assert verdicts["value"] == pytest.approx((1 + 1 / 3) / 2)
    assert verdicts["no_verdict"] == 1
    assert verdicts["agreement"] == pytest.approx(2 / 5)
    authors = dataclasses.replace(arm, protocol="authors")
    theirs = results.row(benchmark, benchmark.questions, authors, 3, found)
    assert theirs["scores"]["authors'"]["value"] == pytest.approx((1 + 1 / 3) / 2)


def test_the_bar_shows_score_and_time_left():
    now = [0.0]
    progress = run.Progress(done=10, total=40, clock=lambda: now[0])
    now[0] = 30.0
    progress.advance("mine", "trained", 1.0)
    progress.advance("mine", "trained", 0.0)
    assert progress.text("mine", "trained") == "12/40 mine trained score 0.500 left 0:07:00"
    progress.count("mine", "trained", 1.0)  # was there before this process
    progress.advance("mine", "bare", 0.0)
    assert progress.text("mine", "trained").startswith("13/40 mine trained score 0.667 ")
    assert progress.text("mine", "bare").startswith("13/40 mine bare score 0.000 ")


# ---- formats of others --------------------------------------------------------------------------

SEARCH = Tool("search", "finds", (Parameter("query", "str", "what"),), "", "demo", str, 1.0)


def test_messages_answer_every_call(tmp_path):
    turns = (
        turn(),
        turn(
            index=2,
            command='search(query="a")\nsearch(query="b")',
            result="one\ntwo\nthree",
            results=("one\ntwo", "three"),
        ),
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
    results = [m["content"] for m in found["messages"] if m["role"] == "tool"]
    assert results == ["found", "one\ntwo", "three"]
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
    observed = form["steps"][3]["observation"]["results"]
    assert [(one["source_call_id"], one["content"]) for one in observed] == [
        ("call_2_1", "one\ntwo"),
        ("call_2_2", "three"),
    ]
    # After a call that failed the others were not made; a line without results apart is an old one.
    two = line["trajectory"]["turns"][1]
    failed = two | {"result": "Error: no", "results": ["Error: no"], "tool_error": True}
    assert [(given["query"], r) for _, given, r in exports.calls(failed, tools)] == [
        ("a", "Error: no")
    ]
    old = {name: value for name, value in two.items() if name != "results"}
    assert [r for *_, r in exports.calls(old, tools)] == ["", "one\ntwo\nthree"]
    assert form["steps"][0]["source"] == "user" and form["steps"][-1]["message"] == "Madrid"
    times = [step["timestamp"] for step in form["steps"]]
    assert times == sorted(times)
    assert form["final_metrics"]["total_completion_tokens"] == 6
