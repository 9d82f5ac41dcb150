"""What a report concludes: literal numbers and sentences."""

import pytest

from experiments.reporting import mistakes, summary
from tests.experiments.fake_runs import write_lines


def turn(tool="python_coder", *, error=False, parse_failures=0):
    return {"tool": tool, "tool_error": error, "parse_failures": parse_failures}


def trajectory(*turns, reward=1.0, status="ok", stop="verified", source="a"):
    return {
        "turns": turns,
        "reward": reward,
        "status": status,
        "stop": stop,
        "source": source,
        "mistakes": [],
    }


@pytest.mark.parametrize(
    "found, names",
    [
        (trajectory(turn()), []),
        (trajectory(turn(""), reward=0), ["stopped with a wrong answer"]),
        (trajectory(turn("", error=True, parse_failures=1)), ["unreadable plan"]),
        (trajectory(turn(error=True, parse_failures=1)), ["python_coder: unreadable command"]),
        (trajectory(turn(error=True), turn(error=True)), ["python_coder: error"]),
        (trajectory(turn(error=True, parse_failures=None)), ["python_coder: error"]),
        (trajectory(turn(parse_failures=1)), ["unreadable verdict"]),
        (trajectory(turn(), reward=0, stop="budget"), ["turns used up, not solved"]),
        (trajectory(turn(), stop="budget"), []),
        (trajectory(turn(), reward=0, stop="parse_error"), ["no readable answer"]),
        (trajectory(turn(), reward=None, status="infra_error"), ["infrastructure failed"]),
        (trajectory(turn(), reward=0, status="truncated"), ["met a token limit"]),
        (trajectory(turn(), reward=None, status="no such", stop="thing"), []),
    ],
)
def test_mistakes_have_names(found, names):
    assert mistakes.of_trajectory(found) == names


def ends(before, after, *, held_out=True):
    groups = [
        {f"q{i}": {0: trajectory(turn(), reward=reward)} for i, reward in enumerate(each)}
        for each in (before, after)
    ]
    places = ((0, held_out), (9, held_out))
    return summary.Ends(("Before training", "After step 9"), *groups, held_out, places)


@pytest.mark.parametrize(
    "before, after, state, start",
    [
        ([0] * 20, [1] * 15 + [0] * 5, summary.GOOD, "Yes: +75.0 points on the same 20 questions"),
        ([1] * 15 + [0] * 5, [0] * 20, summary.BAD, "No, it got worse: -75.0 points"),
        ([0, 1] * 10, [1, 0] * 10, summary.NOTE, "Not shown: +0.0 points"),
        ([0] * 20, [1] + [0] * 19, summary.NOTE, "Not shown: +5.0 points"),
        ([None] * 20, [0] * 20, summary.NOTE, "Not shown: +0.0 points"),
    ],
)
def test_learning_is_judged_by_the_interval(before, after, state, start):
    found, sentence, _ = summary.learned([], ends(before, after))
    assert found == state and sentence.startswith(start)


def test_newly_solved_and_lost_questions():
    assert summary.changed(ends([0, 1, 1, 0], [1, 0, 1, 0])) == (["q0"], ["q1"])


@pytest.mark.parametrize(
    "metrics, sentence",
    [
        ([{"step": 0, "eval/success": 0.5}], "There is one evaluation so far"),
        ([], "Too few steps to tell."),
        (
            [{"step": i, "reward/mean": i / 10} for i in range(1, 5)],
            "Not measured: the sampled reward went from 0.150 to 0.350 (means of the first and "
            "last 2 steps)",
        ),
    ],
)
def test_without_two_evaluations_nothing_is_claimed(metrics, sentence):
    state, found, _ = summary.learned(metrics, None)
    assert state == summary.NOTE and found.startswith(sentence)


def test_shares_before_and_after():
    pair = ends([0, 1], [1, 1])
    pair.before["q0"][0]["turns"] = (turn("search"), turn("search"), turn())
    found = {title: rows for title, _, rows in summary.habits(pair)}
    assert found["Tools chosen"] == [("python_coder", 0.5, 1.0), ("search", 0.5, 0.0)]
    assert found["Turns used"] == [("1 turn", 0.5, 1.0), ("3 turns", 0.5, 0.0)]


def test_ends_are_the_first_and_last_evaluation_on_their_common_questions(tmp_path):
    for step, names in ((0, "abc"), (5, "xyz"), (10, "cba"), (20, "bcd")):
        lines = [{"question_id": name, "reward": 1.0} for name in names]
        write_lines(tmp_path / f"heldout_{step:06d}.jsonl", lines)
        write_lines(tmp_path / f"step_{step + 1:06d}.jsonl", lines)
    found = summary.ends_of(tmp_path)
    assert found.titles == ("Before training", "After step 20") and found.held_out
    assert list(found.before) == list(found.after) == ["b", "c"]
    for path in list(tmp_path.glob("heldout_*"))[1:]:
        path.unlink()
    found = summary.ends_of(tmp_path)
    assert found.titles == ("Step 1", "Step 21") and not found.held_out


def states(metrics, damaged=0):
    found = summary.checks(metrics, damaged=damaged)
    return {check.title: (check.state, check.value) for check in found}


def test_checks_of_a_sound_run():
    steps = [
        {
            "policy/logprob_gap_k3": -2e-13,
            "policy/logprob_gap_max": 2e-5,
            "loss/kl": 0.02,
            "rollout/valid_share": 1.0,
            "rollout/infra_errors": 0.0,
            "rollout/truncated": 0.01,
            "group/zero_variance": 0.5,
            "optim/steps": 1.0,
            "optim/skipped": 0.0,
            "eval/total": 120.0,
        }
    ] * 3
    assert states(steps) == {
        "Log-prob gap": (summary.GOOD, "largest 2.0e-05 nats, KL 2.0e-13 nats a token at most"),
        "KL to the reference": (summary.GOOD, "0.02"),
        "Failures excluded": (summary.GOOD, "none"),
        "Cut at a limit": (summary.GOOD, "1.0 % of the rollouts"),
        "Groups without signal": (summary.GOOD, "50.0 % of the groups"),
        "Updates": (summary.GOOD, "3 taken"),
        "Held-out questions": (summary.GOOD, "120, evaluated 3 times"),
    }


@pytest.mark.parametrize(
    "step, title, state, value",
    [
        (
            {"policy/logprob_gap_k3": 0.02, "policy/logprob_gap_max": 3.0},
            "Log-prob gap",
            "bad",
            "KL",
        ),
        (
            {"policy/logprob_gap_k3": 2e-3, "policy/logprob_gap_max": 1.0},
            "Log-prob gap",
            "note",
            "",
        ),
        ({"loss/kl": 7.0}, "KL to the reference", "bad", "7"),
        (
            {"rollout/valid_share": 0.75, "rollout/infra_errors": 2.0, "rollout/timeouts": 1.0},
            "Failures excluded",
            "bad",
            "25.0 % of the rollouts (2 by infrastructure, 1 by deadline)",
        ),
        ({"rollout/truncated": 0.1}, "Cut at a limit", "note", "10.0 %"),
        ({"group/zero_variance": 1.0}, "Groups without signal", "bad", "100.0 %"),
        ({"optim/steps": 0.0, "optim/skipped": 0.0}, "Updates", "note", "1 without anything"),
        ({"optim/steps": 2.0, "optim/skipped": 1.0}, "Updates", "note", "1 taken, 1 not finite"),
        ({"eval/total": 20.0}, "Held-out questions", "note", "20, evaluated 1 times"),
        (
            {"eval/total": 200.0, "eval/infra_errors": 3.0},
            "Held-out questions",
            "note",
            "3 failures count as wrong",
        ),
        ({"reward/mean": 0.5}, "Held-out questions", "note", "none"),
    ],
)
def test_checks_that_warn(step, title, state, value):
    found = states([step])[title]
    assert found[0] == state and value in found[1]


def test_damaged_lines_are_a_check():
    assert states([], damaged=3) == {"Lines left out": (summary.NOTE, "3")}
