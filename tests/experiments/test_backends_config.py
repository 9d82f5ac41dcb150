"""Backends as a config chooses them, and rescoring of a stored run."""

import dataclasses
import json

import loopback
import pytest

from agents.backends import modules, server
from experiments import rescore, train
from experiments.configs import common, smoke
from experiments.running import backends, command, sessions, stored
from flow_grpo_jax import metrics

URL = "http://127.0.0.1:9/v1"


def config(**changes):
    c = common.base()
    c.update_from_flattened_dict(changes)
    return c


def build(**changes):
    made = backends.build(config(**{f"backends.{name}": v for name, v in changes.items()}).backends)
    made.close()
    return made


def test_everything_is_the_frozen_model_unless_told_otherwise():
    made = build()
    assert made.models == dict.fromkeys(backends.ROLES.values(), "frozen")
    assert made.judge is None and made.counts() == {}


def test_limits_in_the_config_are_all_that_there_are():
    fields = {field.name for field in dataclasses.fields(server.Limits)}
    assert set(common.backend().limits) == fields


def test_modules_of_one_server_share_it():
    chosen = {
        f"{name}.{field}": value
        for name in ("executor", "judge")
        for field, value in {"kind": "server", "url": URL, "model": name}.items()
    }
    made = build(**chosen, **{"verifier.kind": "policy", "executor.structured": True})
    executor = made.models["executor"]
    assert isinstance(executor, modules.Module) and executor.structured
    assert executor.model.endpoint is made.judge.endpoint
    assert (executor.model.model, made.judge.model) == ("executor", "judge")
    assert made.models["verifier"] == "policy" and made.counts()["backend/calls"] == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verifier.kind": "gpt"}, "backends.verifier.kind='gpt' is unknown; valid: frozen, pol"),
        ({"verifier.kind": "none"}, "backends.verifier.kind='none' is unknown"),
        ({"judge.kind": "server"}, "backends.judge: url='' is no http"),
        (
            {"judge.kind": "server", "judge.url": "http://a:99999"},
            "url='http://a:99999' is no http",
        ),
        ({"judge.kind": "server", "judge.url": "http://[::1"}, "url='http://.::1' is no http"),
        ({"judge.kind": "server", "judge.url": URL}, "backends.judge: .* the name of a model"),
        (
            {"judge.kind": "server", "judge.url": URL, "judge.api_key_variable": "NO_SUCH_KEY"},
            "NO_SUCH_KEY is not set",
        ),
        (
            {"judge.kind": "server", "judge.url": URL, "judge.model": "m"}
            | {"executor.kind": "server", "executor.url": URL, "executor.model": "m"}
            | {"judge.limits.retries": 9},
            "backends.judge: another module gives",
        ),
        (
            {"judge.kind": "server", "judge.url": URL, "judge.limits.concurrency": 0},
            "concurrency=0 must be at least 1",
        ),
    ],
)
def test_what_cannot_be_used_is_said_with_its_place(changes, message):
    with pytest.raises(command.ConfigError, match=message):
        build(**changes)


def test_a_judge_that_decides_nothing_is_no_error_but_a_decider_without_judge_is():
    with pytest.raises(command.ConfigError, match="backends.judge.kind"):
        sessions.make_scorer(config(**{"reward.qa": "judge"}), build())


# ------------------------------------------------------------------------------------- rescoring

QUESTIONS = [
    {"id": "a", "question": "Capital of Spain?", "answer": "Madrid", "kind": "qa", "source": "s"},
    {"id": "b", "question": "2+2?", "answer": "4", "kind": "math", "source": "s"},
]


@pytest.fixture
def run(tmp_path):
    """A stored run of two files."""
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    c = config(**{"data.train": str(tmp_path / "questions.jsonl")})
    folder = tmp_path / "run"
    (folder / "trajectories").mkdir(parents=True)
    stored.write_config(c, folder)
    answers = [("a", "Madrid", "ok"), ("a", "The city of Madrid", "ok"), ("b", "", "timeout")]
    lines = [_line(*answer) for answer in answers]
    (folder / "trajectories" / "step_000001.jsonl").write_text("\n".join(lines) + "\n")
    cut = _line("b", "4", "ok")[:40]
    (folder / "trajectories" / "heldout_000000.jsonl").write_text(
        _line("b", "4", "ok") + "\n" + cut
    )
    return folder


def _line(id, answer, status):
    (question,) = (q for q in QUESTIONS if q["id"] == id)
    before = {"reward": 0.0, "reward_source": "old", "advantage": 0.5}
    fields = {"question_id": id, "question": question["question"], "answer": answer}
    return json.dumps(fields | before | {"status": status})


def read(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_stored_trajectories_are_scored_again(run, tmp_path):
    before = (run / "trajectories" / "step_000001.jsonl").read_text()
    summary = rescore.rescore(run, tmp_path / "out")
    first, second, third = read(tmp_path / "out" / "step_000001.jsonl")
    assert (first["reward"], first["reward_source"]) == (1.0, "qa/exact_match")
    assert (first["reward_before"], first["reward_source_before"]) == (0.0, "old")
    assert second["reward"] == 0.0 and first["advantage"] == 0.5
    assert "reward_before" not in third and third["reward"] == 0.0  # it ended without an answer
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["unscored"] == summary["damaged"] == 1 and summary["judge_agreement"] is None
    assert summary["kinds"]["qa"] == {
        "trajectories": 2,
        "mean_before": 0.0,
        "mean_after": 0.5,
        "raised": 1,
        "lowered": 0,
        "no_verdict": 0,
    }
    assert (run / "trajectories" / "step_000001.jsonl").read_text() == before


def test_rescoring_by_a_judge_on_a_server(run, tmp_path):
    def decide(body):
        right = "Madrid" in json.loads(body["messages"][-1]["content"])["answer"]
        return json.dumps({"analysis": "", "true_false": right})

    with loopback.Loopback(loopback.replies(decide)) as there:
        judge = {"kind": "server", "url": there.url, "model": "m"}
        judge["cache"] = str(tmp_path / "verdicts")
        changes = {f"backends.judge.{name}": value for name, value in judge.items()}
        for _ in range(2):
            summary = rescore.rescore(
                run, tmp_path / "out", config=config(**changes, **{"reward.qa": "judge"})
            )
        assert len(there.requests) == 2  # the second time from the cache of verdicts
    assert [line["reward"] for line in read(tmp_path / "out" / "step_000001.jsonl")[:2]] == [1, 1]
    assert summary["judge_agreement"] == 0.5 and summary["kinds"]["qa"]["raised"] == 2


def test_rescoring_refuses_other_questions_and_the_run_itself(run, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(QUESTIONS[1]) + "\n" + json.dumps(QUESTIONS[0] | {"question": "?"}))
    with pytest.raises(command.ConfigError, match="question 'a', which the question files do not"):
        rescore.rescore(run, tmp_path / "out", question_files=[str(other)])
    with pytest.raises(command.ConfigError, match="is the run itself"):
        rescore.rescore(run, run)
    with pytest.raises(command.ConfigError, match="holds no run"):
        rescore.rescore(tmp_path, tmp_path / "out")
    for path in (run / "trajectories").iterdir():
        path.write_text('{"torn\n{"status": "ok"}\n')
    with pytest.raises(command.ConfigError, match="Every line in .*/trajectories is damaged"):
        rescore.rescore(run, tmp_path / "out")


def test_rescoring_a_run_of_before_there_were_backends(run, tmp_path):
    stored = json.loads((run / "config.json").read_text())
    del stored["config"]["reward"], stored["config"]["backends"]
    (run / "config.json").write_text(json.dumps(stored))
    summary = rescore.rescore(run, tmp_path / "out", trusted=True)  # it was edited
    assert summary["kinds"]["math"]["mean_after"] == 1.0


@pytest.mark.slow
def test_a_step_of_training_with_a_remote_verifier_and_a_judge(tmp_path):
    def respond(body):
        if "response_format" not in body:
            return "Verdict: STOP"
        answer = json.loads(body["messages"][-1]["content"])["answer"]
        return json.dumps({"analysis": "", "true_false": len(answer) % 2 == 0})

    with loopback.Loopback(loopback.replies(respond)) as there:
        c = smoke.get_config()
        c.steps, c.rollout.questions, c.data.held_out = 1, 2, ""
        c.batch.row_lengths, c.batch.rows = (256,), (8,)
        for chosen in (c.backends.verifier, c.backends.judge):
            chosen.kind, chosen.url, chosen.model = "server", there.url, "m"
        c.reward.qa = "judge"
        train.train(c, tmp_path)
        verified = [body for body in there.bodies() if "response_format" not in body]
    (line,) = metrics.read(tmp_path / "metrics.jsonl")
    assert line["backend/calls"] == len(there.requests) and verified
    assert line["judge/no_verdict"] == 0 and line["rollout/infra_errors"] == 0
    stored = read(tmp_path / "trajectories" / "step_000001.jsonl")
    judged = [t for t in stored if t["reward_source"] == "judge/verdict"]
    assert judged and all(t["reward"] == (len(t["answer"]) % 2 == 0) for t in judged)
    assert all(
        turn["verdict"] == "STOP" for t in stored for turn in t["turns"] if not turn["tool_error"]
    )
