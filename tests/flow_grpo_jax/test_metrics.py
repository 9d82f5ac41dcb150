"""Counts over hand-made trajectories, intervals from the literature, the metrics file."""

import dataclasses
import json

import numpy as np
import pytest

from agents.trajectory import Branch, Trajectory, Turn
from flow_grpo_jax import counterfactual, metrics

TURN = Turn(
    index=1, prompt_tokens=(1,), response_tokens=(2,), logprobs=(-1.0,), finished=True,
    planner_text="", context="", sub_goal="", tool="search", command="", result="",
    tool_error=False, verdict="CONTINUE", parse_failures=0, shortened=0, seconds=0.1,
)  # fmt: skip
BAD = dataclasses.replace(TURN, tool="python", tool_error=True, parse_failures=2)
DONE = Trajectory("q", 0, "", (TURN, BAD, TURN), "a", "ok", "verified", 1.0)
CUT = Trajectory("q", 1, "", (BAD,), "", "truncated", "budget", 1.0)
BROKEN = Trajectory("q", 2, "", (BAD, BAD), "", "infra_error", "budget", 1.0)


def test_shares_leave_out_what_infrastructure_broke():
    found = metrics.of_trajectories([DONE, CUT, BROKEN], ("search", "python"), prefix="rollout")
    assert found["rollout/turns"] == 2.0
    assert found["rollout/tool_error_rate"] == 0.5
    assert found["rollout/parse_failure_rate"] == 0.5
    assert found["rollout/infra_errors"] == 1.0
    assert found["rollout/truncated"] == pytest.approx(1 / 3)
    assert found["rollout/too_long"] == 0.0
    assert (found["tool/search/share"], found["tool/python/share"]) == (0.5, 0.5)


def test_prompts_over_their_limit_are_counted_apart_from_cut_responses():
    too_long = dataclasses.replace(CUT, error="The prompt has 300 tokens", turns=())
    found = metrics.of_trajectories([DONE, CUT, too_long, BROKEN], (), prefix="eval")
    assert (found["eval/truncated"], found["eval/too_long"]) == (0.5, 0.25)


def test_rewards_are_over_valid_trajectories():
    found = metrics.of_rewards([[1, 0, 1], [1, 1, 0]], [[1, 1, 0], [1, 1, 0]])
    assert found["reward/mean"] == 0.75
    assert found["group/zero_variance"] == 0.5
    assert found["rollout/valid_share"] == pytest.approx(2 / 3)


def test_branches_are_counted_apart_from_roots():
    """The second branch drew its root's action again; the third broke before its own turn."""
    other = dataclasses.replace(BAD, index=2, response_tokens=(7, 8))
    root = dataclasses.replace(DONE, turns=(TURN, BAD))
    drawn = [dataclasses.replace(root, turns=(TURN, t)) for t in (other, BAD)]
    broken = dataclasses.replace(BROKEN, turns=(TURN,))
    group = [root] + [dataclasses.replace(t, branch=Branch(0, 2)) for t in (*drawn, broken)]
    of_points = np.array([0.0, 1.0])
    found = metrics.of_rollouts(
        [group], counterfactual.Credit(None, None, of_points), ("search", "python"), roots=1
    )
    assert found["rollout/turns"] == 2 and found["rollout/infra_errors"] == 0
    assert found["tool/search/share"] == 0.5
    assert found["group/zero_variance"] == found["branch/mean_range"] == 0.5
    assert (found["branch/points"], found["branch/tokens"]) == (2, 3)
    assert (found["branch/infra_errors"], found["branch/timeouts"]) == (1, 0)
    assert found["branch/same_action_share"] == 0.5
    plain = metrics.of_rollouts([[DONE], [CUT]], None, ("search",), roots=1)
    assert plain == metrics.of_trajectories([DONE, CUT], ("search",), prefix="rollout")


def test_file_is_truncated_to_the_restored_step_and_survives_a_cut_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = metrics.MetricsFile(path)
    for step in range(4):
        file.write(step, {"reward/mean": step / 2})
    with path.open("a") as stream:
        stream.write('{"step": 4, "rew')
    assert [line["step"] for line in metrics.read(path)] == [0, 1, 2, 3]
    metrics.MetricsFile(path, keep_to_step=2).write(3, {"reward/mean": 9.0})
    assert [line["reward/mean"] for line in metrics.read(path)] == [0, 0.5, 1.0, 9.0]
    amended = metrics.MetricsFile(path, keep_to_step=3)
    amended.write(2, {**amended.lines[2], "eval/success": 0.5})
    assert [line.get("eval/success") for line in metrics.read(path)] == [None, None, 0.5, None]
    metrics.MetricsFile(path)
    assert metrics.read(path) == []


def test_damaged_lines_are_left_out_and_named(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    lines = [b'{"step": 0}', b'{"step": 1, "rew', b"\xff\xfe", b"\0\0" + b'{"step": 2}', b"7", b""]
    path.write_bytes(b"\n".join([*lines, b'{"step": "3"}', b'{"step": 4}']))
    assert metrics.read(path) == [{"step": 0}, {"step": 2}, {"step": 4}]
    assert "line 2, 3, 5, 7" in caplog.text


def test_the_line_of_the_restored_step_is_made_whole_from_its_checkpoint(tmp_path, caplog):
    path, saved = tmp_path / "metrics.jsonl", {"reward/mean": 0.5, "loss/kl": 0.25}
    file = metrics.MetricsFile(path)
    for step in range(1, 4):
        file.write(step, saved | {"eval/success": 1.0})
    whole = path.read_text()
    path.write_text(whole[:-20])
    metrics.MetricsFile(path, keep_to_step=3, saved=saved | {"eval/success": 1.0})
    assert path.read_text() == whole
    assert "lacks" not in caplog.text
    # Values that only the file has stay, and those of the checkpoint replace damaged ones.
    path.write_text(whole.replace("0.25", "0.75"))
    kept = metrics.MetricsFile(path, keep_to_step=3, saved=saved)
    assert kept.lines[3] == {"step": 3, **saved, "eval/success": 1.0}
    path.write_text("")
    metrics.MetricsFile(path, keep_to_step=3, saved=saved)
    assert json.loads(path.read_text()) == {"step": 3, **saved}
    assert "lacks 2 of the 3 steps" in caplog.text


def test_a_file_without_a_checkpoint_is_not_replaced_silently(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    metrics.MetricsFile(path).write(1, {"a": 1.0})
    assert caplog.text == ""
    metrics.MetricsFile(path)
    assert "had 1 lines, but there is no checkpoint" in caplog.text
