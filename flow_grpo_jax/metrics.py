"""Metrics of a batch of trajectories, and the file they are written to.

Dimensions:
  Q questions    G rollouts of a question    P points where rollouts branch
"""

import json
import pathlib

import numpy as np
from absl import logging

from agents.trajectory import Status, Stop
from flow_grpo_jax import files
from flow_grpo_jax.bounds import files as bounded
from flow_grpo_jax.bounds import json_text

_SHOWN = 5  # damaged lines named in a warning


def of_trajectories(trajectories, tool_names, *, prefix):
    """Counts turns, tool use and failures of trajectories, as {prefix/name: float}.

    Shares of turns are over the planner turns of all trajectories that infrastructure did not
    break; shares of trajectories are over all of them.
    """
    usable = [t for t in trajectories if t.status != Status.INFRA_ERROR]
    turns = [turn for t in usable for turn in t.turns]
    count, turn_count = max(len(trajectories), 1), max(len(turns), 1)
    values = {
        f"{prefix}/turns": len(turns) / max(len(usable), 1),
        f"{prefix}/tool_error_rate": sum(turn.tool_error for turn in turns) / turn_count,
        f"{prefix}/parse_failure_rate": sum(bool(t.parse_failures) for t in turns) / turn_count,
        f"{prefix}/shortened_prompts": sum(turn.shortened > 0 for turn in turns) / turn_count,
        f"{prefix}/truncated": sum(t.status == Status.TRUNCATED for t in trajectories) / count,
        f"{prefix}/too_long": sum(t.too_long for t in trajectories) / count,
        f"{prefix}/timeouts": sum(t.status == Status.TIMEOUT for t in trajectories),
        f"{prefix}/infra_errors": sum(t.status == Status.INFRA_ERROR for t in trajectories),
        f"{prefix}/infra_retries": sum(t.attempts - 1 for t in trajectories),
        f"{prefix}/unreadable_answers": (
            sum(t.stop == Stop.PARSE_ERROR for t in trajectories) / count
        ),
        f"{prefix}/verified": sum(t.stop == Stop.VERIFIED for t in trajectories) / count,
    }
    if prefix == "rollout":
        for name in tool_names:
            share = sum(turn.tool == name for turn in turns) / turn_count
            values[f"tool/{name}/share"] = share
    return {name: float(value) for name, value in values.items()}


def of_rewards(rewards_QG, valid_QG):
    """Returns mean and spread of the rewards of valid trajectories, and groups without signal."""
    rewards_QG, valid_QG = np.asarray(rewards_QG), np.asarray(valid_QG, bool)
    valid = rewards_QG[valid_QG]
    flat = [
        len({*rewards_QG[q][valid_QG[q]]}) < 2 for q in range(len(rewards_QG)) if valid_QG[q].any()
    ]
    return {
        "reward/mean": float(valid.mean()) if valid.size else 0.0,
        "reward/std": float(valid.std()) if valid.size else 0.0,
        "group/zero_variance": float(np.mean(flat)) if flat else 0.0,
        "rollout/valid_share": float(valid_QG.mean()),
    }


def of_rollouts(trajectories_QG, turns, tool_names, roots):
    """Returns the metrics of a training step's trajectories.

    Those of `of_trajectories` are over roots, which start at the question; branches, the rollouts
    from number `roots` on, are further trajectories from states that roots were in.

    turns: `counterfactual.Credit`; None if there are no branches.
    """
    of_roots = sum((group[:roots] for group in trajectories_QG), [])
    values = of_trajectories(of_roots, tool_names, prefix="rollout")
    if turns is None:
        return values
    branches = [t for group in trajectories_QG for t in group[roots:]]
    pairs = [
        (group[t.branch.parent].turns[t.branch.turn - 1], t.own_turns[0])
        for group in trajectories_QG
        for t in group[roots:]
        if t.branch and t.own_turns
    ]
    alike = sum(theirs.response_tokens == own.response_tokens for theirs, own in pairs)
    of_branches = {
        "group/zero_variance": np.mean(turns.range_P == 0) if turns.range_P.size else 0.0,
        "branch/points": turns.range_P.size,
        "branch/mean_range": turns.range_P.mean() if turns.range_P.size else 0.0,
        "branch/same_action_share": alike / max(len(pairs), 1),
        "branch/tokens": sum(len(u.response_tokens) for t in branches for u in t.own_turns),
        "branch/timeouts": sum(t.status == Status.TIMEOUT for t in branches),
        "branch/infra_errors": sum(t.status == Status.INFRA_ERROR for t in branches),
    }
    return values | {name: float(value) for name, value in of_branches.items()}


class MetricsFile:
    """`metrics.jsonl`: one object a step, appended; truncated to the restored step on resume.

    lines: step -> its object, as in the file.
    """

    def __init__(self, path, *, keep_to_step=None, saved=None):
        """Opens the file; lines up to step `keep_to_step` stay, None starts an empty file.

        saved: values of step `keep_to_step` that the checkpoint holds; they make its line whole.
        """
        self.path, self.lines = pathlib.Path(path), {}
        found = read(self.path) if self.path.exists() else []
        if keep_to_step is None and found:
            logging.warning(
                "%s had %d lines, but there is no checkpoint: the run starts again",
                path,
                len(found),
            )
        if keep_to_step is not None:
            self.lines = {line["step"]: line for line in found if line["step"] <= keep_to_step}
            if saved:
                before = self.lines.pop(keep_to_step, {})
                self.lines[keep_to_step] = {"step": keep_to_step, **before, **saved}
            lost = keep_to_step - len(self.lines.keys() - {0})
            if lost:
                logging.warning(
                    "%s lacks %d of the %d steps that were trained; their metrics are lost, the "
                    "training goes on as if they were there",
                    path,
                    lost,
                    keep_to_step,
                )
        self._rewrite()

    def write(self, step, values):
        """Appends the line of a step, or replaces it; it is on the disk when this returns."""
        replaces = step in self.lines
        self.lines[step] = {"step": step, **values}
        if replaces:
            self._rewrite()
        else:
            files.append_text(self.path, json.dumps(self.lines[step]) + "\n")

    def _rewrite(self):
        text = "".join(json.dumps(self.lines[step]) + "\n" for step in sorted(self.lines))
        files.replace_text(self.path, text)


def read(path):
    """Reads the lines of a metrics file; those that a crash damaged are left out and named."""
    lines, damaged = [], []
    for number, text in enumerate(bounded.read_bytes(path).splitlines(), start=1):
        try:
            line = json_text.parse(text.strip(b"\0"))  # a file system may fill what was lost
        except ValueError:
            line = None
        if isinstance(line, dict) and type(line.get("step")) is int:
            lines.append(line)
        elif text.strip():
            damaged.append(number)
    if damaged:
        numbers = ", ".join(map(str, damaged[:_SHOWN])) + (", …" if damaged[_SHOWN:] else "")
        logging.warning("%s: left out what is no line of metrics: line %s", path, numbers)
    return lines
