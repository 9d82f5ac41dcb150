"""What a run writes down of its steps, and what it says meanwhile."""

import dataclasses
import json
import logging
import sys

import numpy as np
import pytest

from agents.trajectory import Branch, Status, Stop, Trajectory, Turn
from experiments.running import record
from flow_grpo_jax import counterfactual, metrics, processes
from flow_grpo_jax.rewards import Reward

QUESTIONS = [
    {"question": "Capital of Spain?", "answer": "Madrid"},
    {"question": "Capital of Peru?", "answer": ["Lima"]},
]
VALUES = {
    "reward/mean": 0.5,
    "rollout/turns": 2.0,
    "rollout/tool_error_rate": 0.125,
    "loss/kl": 0.0012,
    "policy/entropy": 0.25,
    "policy/logprob_gap_max": 3e-6,
    "time/rollout": 2.0,
    "time/update": 1.0,
    "group/zero_variance": 0.0,
}
NEEDS_AN_UPDATE = ("loss/kl", "policy/entropy", "policy/logprob_gap_max")
EVALUATED = {
    "eval/success": 0.75,
    "eval/correct": 3.0,
    "eval/total": 4.0,
    "eval/tool_error_rate": 0.5,
    "eval/turns": 2.0,
}


def trajectory(question, rollout):
    return Trajectory(
        question_id=str(question),
        rollout=rollout,
        analysis="",
        turns=(),
        answer=f"answer {question}{rollout}",
        status=Status.OK,
        stop=Stop.BUDGET,
        seconds=1.0,
    )


@pytest.fixture
def said(caplog, monkeypatch):
    """The lines of the log."""
    monkeypatch.setattr(logging.getLogger("absl"), "propagate", True)
    caplog.set_level(logging.INFO, logger="absl")
    return lambda: [entry.getMessage() for entry in caplog.records]


def test_steps_without_a_token_are_skipped_until_they_are_too_many(tmp_path, said):
    kept = record.Record(tmp_path, steps=9)
    kept.write(1, VALUES | {"optim/steps": 1.0})
    empty = {name: value for name, value in VALUES.items() if name not in NEEDS_AN_UPDATE}
    for step in (2, 3):
        skipped = kept.skip(step, "all gone (4 of 4)", most=2)
        assert skipped == {"optim/steps": 0.0, "optim/skipped": 0.0, "tokens/trained": 0.0}
        kept.write(step, empty | skipped | {"group/zero_variance": 1.0})
    warning = "step 3: nothing to train on, no optimizer step: all gone (4 of 4)"
    assert said()[-2] == warning
    assert "| no optimizer step |" in said()[-1]  # and no word of groups that scored alike
    with pytest.raises(RuntimeError, match="Steps 2 to 4 had nothing .*empty_steps=2.* all gone"):
        record.Record(tmp_path, steps=9, resumed_after=3).skip(4, "all gone", most=2)
    kept.write(4, VALUES | {"optim/steps": 1.0})
    kept.skip(5, "all gone", most=1)  # counted anew
    with pytest.raises(RuntimeError, match="Step 5 had nothing to train on"):
        kept.skip(5, "all gone", most=0)


def test_a_line_is_written_replaced_and_kept_over_a_resumption(tmp_path):
    first = record.Record(tmp_path, steps=3)
    first.write(0, EVALUATED)
    first.write(1, VALUES)
    first.write(1, VALUES | EVALUATED)
    first.write(2, VALUES)
    first.close()
    lines = metrics.read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[1] == {"step": 1, **VALUES, **EVALUATED}
    again = record.Record(tmp_path, steps=3, resumed_after=1)
    assert again.line(1) == lines[1] and again.line(2) == {}
    again.close()
    assert metrics.read(tmp_path / "metrics.jsonl") == lines[:2]
    assert record.Record(tmp_path, steps=3).line(1) == {}  # not resumed: an empty file


def test_the_log_has_one_line_a_step_and_warns_of_steps_that_teach_nothing(tmp_path, said):
    written = record.Record(tmp_path, steps=9)
    written.write(2, VALUES | EVALUATED)
    written.write(3, VALUES | {"group/zero_variance": 1.0})
    written.close()
    line, next_line, warning = said()
    assert line == (
        "step 2/9 | reward 0.500 | turns 2.00 | tool errors 0.125 | kl 0.0012 | entropy 0.250 | "
        "gap 3.0e-06 | 2.0+1.0 s | held-out 0.750 (3/4)"
    )
    assert next_line.startswith("step 3/9 | reward 0.500") and "held-out" not in next_line
    assert warning == "step 3: all groups scored alike and taught nothing"


def test_the_summary_compares_the_first_evaluation_with_the_last(tmp_path, capsys):
    written = record.Record(tmp_path, steps=2)
    written.summarise()
    rest = [
        f"report     {tmp_path}/report.html",
        f'next       python -m experiments.solve --workdir={tmp_path} --query="…"',
    ]
    assert capsys.readouterr().out.splitlines() == ["", *rest]  # nothing was evaluated
    written.write(0, EVALUATED)
    written.write(1, VALUES)
    written.write(2, VALUES | EVALUATED | {"eval/success": 1.0, "eval/correct": 4.0})
    written.summarise()
    _, head, before, after, *last = capsys.readouterr().out.splitlines()
    assert head.startswith("held-out ") and last == rest
    assert before.split() == ["before", "0.750", "(3/4)", "0.500", "2.00"]
    assert after.split() == ["after", "1.000", "(4/4)", "0.500", "2.00"]


def test_trajectories_are_written_group_by_group_with_reward_and_advantage(tmp_path):
    written = record.Record(tmp_path, steps=1)
    scores_QG = [
        [Reward(1.0, "qa/exact_match"), Reward(0.0, "judge/no_verdict", known=False)],
        [Reward(0.0, "qa/exact_match"), Reward(0.5, "qa/f1")],
    ]
    trajectories_QG = [[trajectory(q, g) for g in range(2)] for q in range(2)]
    adv_QG = np.array([[1.0, 0.0], [-0.5, 0.5]])
    how = dict(step=7, adv_QG=adv_QG)
    written.write_trajectories("step", QUESTIONS, trajectories_QG, scores_QG, **how)
    text = (tmp_path / "trajectories" / "step_000007.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["answer"] for line in lines] == [
        "answer 00",
        "answer 01",
        "answer 10",
        "answer 11",
    ]
    assert [line["reward"] for line in lines] == [1.0, None, 0.0, 0.5]
    assert [line["reward_source"] for line in lines][:2] == ["qa/exact_match", "judge/no_verdict"]
    assert [line["advantage"] for line in lines] == [1.0, 0.0, -0.5, 0.5]
    assert [line["gold"] for line in lines] == ["Madrid", "Madrid", ["Lima"], ["Lima"]]
    written.write_trajectories("heldout", QUESTIONS, trajectories_QG, scores_QG, step=7)
    text = (tmp_path / "trajectories" / "heldout_000007.jsonl").read_text()
    assert {json.loads(line)["advantage"] for line in text.splitlines()} == {0.0}
    assert "branch" not in text  # nor has a turn an advantage, unless rollouts branch


def test_a_branch_is_written_with_its_parent_and_the_credit_of_its_turn(tmp_path):
    written = record.Record(tmp_path, steps=1)
    root = trajectory(0, 0)
    turn = Turn(1, (5,), (9,), (-1.0,), True, "", "", "", "", "", "", False, "CONTINUE", 0, 0, 1.0)
    turns = turn, dataclasses.replace(turn, index=2)
    branch = dataclasses.replace(root, rollout=1, turns=turns, branch=Branch(parent=0, turn=2))
    adv_QGN, share_QGN = np.array([[[0.0, 0.0], [0.0, -0.5]]]), np.array([[[0, 0], [0, 0.5]]])
    credit = counterfactual.Credit(adv_QGN, share_QGN, np.zeros(1))
    scores_QG = [[Reward(1.0, "qa/exact_match")] * 2]
    written.write_trajectories(
        "step", QUESTIONS[:1], [[root, branch]], scores_QG, step=1, turns=credit
    )
    text = (tmp_path / "trajectories" / "step_000001.jsonl").read_text()
    first, second = map(json.loads, text.splitlines())
    assert "branch" not in first and second["branch"] == {"parent": 0, "turn": 2}
    assert [turn["advantage"] for turn in second["turns"]] == [None, -0.5]
    assert first["advantage"] is second["advantage"] is None


def test_only_the_first_process_writes(tmp_path, monkeypatch, said):
    monkeypatch.setattr(processes, "index", lambda: 1)
    silent = record.Record(tmp_path, steps=1)
    silent.write(1, VALUES)
    silent.write_trajectories("step", QUESTIONS, [[]] * 2, [[]] * 2, step=1)
    silent.close()
    assert not silent.writes and not list(tmp_path.iterdir()) and said() == []


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_counts_this_process_share_on_a_terminal_only(terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with record.progress([1, 2], "step 3", 2) as advance:
        for _ in range(4):
            advance(None)
    shown = capsys.readouterr().err
    if not terminal:
        assert shown == ""
        return
    assert "step 3" in shown and "1/4" in shown and "4/4" in shown
    assert shown.endswith("\r\x1b[K")  # wiped at the end
