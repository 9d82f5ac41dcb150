"""Selects the trajectories that a report shows, within a size budget.

Every step is listed with the rewards of its groups. The texts, which are the bulk, are kept for the
first and the last steps and for steps spread evenly between them, until the budget is spent.
"""

import dataclasses
import functools
import json
import math
import pathlib
import re

from agents.trajectory import Status
from flow_grpo_jax.bounds import files, json_text

FIELD_CHARACTERS = 6000
QUESTION_CHARACTERS = 300

_NAME = re.compile(r"(step|heldout)_(\d+)\.jsonl$")
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]"
)


@dataclasses.dataclass(frozen=True)
class Listing:
    """steps: JSON-ready summaries, in order of step.
    texts: {index into steps: JSON text of that step's trajectories}.
    damaged: lines that were no JSON object.
    """

    steps: list[dict]
    texts: dict[int, str]
    damaged: int


def read_lines(path):
    """Yields the JSON objects of a .jsonl file, and None for every line that is not one.

    A run that was killed leaves a truncated last line; a report must still be possible.
    """
    with open(path, "rb") as file:
        for line in files.lines(file):
            if line is not None and not line.strip():
                continue
            try:
                value = None if line is None else json_text.parse(line.decode("utf-8", "replace"))
            except ValueError:
                value = None
            yield value if isinstance(value, dict) else None


def dump(value):
    """Returns JSON that is inert inside an HTML script element: ASCII without "<" and "&"."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def number(value):
    """Returns a finite number rounded to six digits, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(f"{value:.6g}")
    except OverflowError:
        return None
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else value


def visible(value):
    """Writes out control and direction-changing characters, so that nothing hides."""
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", value)


def text(value, limit=FIELD_CHARACTERS):
    if value is None:
        return ""
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)
    if len(value) <= limit:
        return value
    return f"{value[:limit]}\n[{len(value) - limit} more characters are in the run folder]"


def gold(value):
    """Returns the accepted answers as one line."""
    if isinstance(value, list):
        return " | ".join(text(item) for item in value)
    return text(value)


def spread(count):
    """Orders the indices 0..count-1: the ends first, then the middle of each gap.

    spread(5) -> [0, 4, 2, 1, 3]
    """
    order = list(dict.fromkeys([0, count - 1])) if count else []
    open_ranges = [(0, count - 1)]
    while open_ranges:
        low, high = open_ranges.pop(0)
        middle = (low + high) // 2
        if high - low > 1:
            order.append(middle)
            open_ranges += [(low, middle), (middle, high)]
    return order


def files_of(folder):
    """Returns [(step, is held-out, path)] in order of step, held-out ones after training."""
    found = []
    for path in pathlib.Path(folder).glob("*.jsonl"):
        if match := _NAME.fullmatch(path.name):
            found.append((int(match[2]), match[1] == "heldout", path))
    return sorted(found)


def collect(folder, *, text_budget, listed_rollouts=200_000):
    """Returns the `Listing` of a run's `trajectories/` folder, which may be missing; as `listing`.

    The texts of training and of evaluations are chosen in turns.
    """
    files = files_of(folder)
    held = [i for i, (_, is_held, _) in enumerate(files) if is_held]
    trained = [i for i, (_, is_held, _) in enumerate(files) if not is_held]
    by_kind = [[kind[i] for i in spread(len(kind))] for kind in (held, trained)]
    order = [kind[i] for i in range(len(files)) for kind in by_kind if i < len(kind)]
    parts = [
        ({"step": step, "heldout": is_held}, functools.partial(read_lines, path))
        for step, is_held, path in files
    ]
    return listing(parts, order, text_budget=text_budget, listed_rollouts=listed_rollouts)


def listing(parts, order, *, text_budget, listed_rollouts=200_000):
    """Returns the `Listing` of parts: steps of a run, or rows of an evaluation.

    parts: [(what the page is told of a part, function that yields its trajectories as JSON objects
      and None for a damaged line)]. "step" places a part on the axis of the charts.
    order: of the parts, by importance of their texts.
    text_budget: bytes of trajectory texts to keep, at most a quarter of them for one part, so that
      both ends of training and of the evaluations are there. A part that does not fit whole keeps
      its first questions, at least one while anything is left.
    listed_rollouts: rollouts whose reward is listed; the means of all other parts remain.
    """
    steps, texts, damaged, left = {}, {}, 0, text_budget
    for index in order:
        told, read = parts[index]
        groups, bad = _groups(read())
        damaged += bad
        count = sum(len(rollouts) for rollouts in groups.values())
        listed_rollouts -= count
        steps[index] = told | _summary(groups, listed=listed_rollouts >= 0)
        if left > 0 and listed_rollouts >= 0 and groups:
            texts[index], kept = _texts(groups, min(left, text_budget // 4))
            left -= len(texts[index])
            steps[index]["texts"] = kept
    return Listing([steps[i] for i in range(len(parts))], texts, damaged)


def _groups(lines):
    """Returns ({question id: {rollout: trajectory}}, damaged lines); a repeated line wins."""
    groups, damaged = {}, 0
    for record in lines:
        if record is None:
            damaged += 1
            continue
        rollouts = groups.setdefault(text(record.get("question_id")), {})
        rollouts[record.get("rollout") if _is_index(record.get("rollout")) else len(rollouts)] = (
            _trajectory(record)
        )
    return groups, damaged


def _is_index(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _trajectory(record):
    turns = record.get("turns")
    turns = [_turn(turn) for turn in turns if isinstance(turn, dict)] if _is_list(turns) else []
    named = ("analysis", "answer", "reward_source", "status", "stop", "error", "question")
    trajectory = {name: text(record.get(name)) for name in named}
    trajectory["gold"] = gold(record.get("gold"))
    for name in ("reward", "advantage", "seconds"):
        trajectory[name] = number(record.get(name))
    branch = record.get("branch")
    if isinstance(branch, dict):
        trajectory["branch"] = {name: number(branch.get(name)) for name in ("parent", "turn")}
    return trajectory | {"turns": turns}


def _turn(turn):
    named = ("planner_text", "context", "sub_goal", "tool", "command", "result", "verdict")
    row = {name: text(turn.get(name)) for name in named}
    for name in ("logprob_sum", "seconds"):
        row[name] = number(turn.get(name))
    if "advantage" in turn:
        row["advantage"] = number(turn["advantage"])
    for name in ("prompt_tokens", "response_tokens"):
        tokens = turn.get(name)
        row[name] = len(tokens) if _is_list(tokens) else number(tokens)
    return row | {"tool_error": turn.get("tool_error") is True}


def _is_list(value):
    return isinstance(value, list)


def _summary(groups, *, listed):
    """Summarises a step: its means, and for each question [reward, turns, errors] a rollout."""
    trajectories = [t for rollouts in groups.values() for t in rollouts.values()]
    rewards = [t["reward"] for t in trajectories if t["reward"] is not None]
    summary = {
        "rollouts": len(trajectories),
        "scored": len(rewards),
        "mean": number(sum(rewards) / len(rewards)) if rewards else None,
        # As in metrics, of those from the question on: a branch repeats turns of another.
        "response_tokens": _mean_length([t for t in trajectories if "branch" not in t]),
        "questions": len(groups),
        "texts": 0,
        "groups": [],
    }
    if listed:
        for name, rollouts in groups.items():
            first = next(iter(rollouts.values()))
            rows = [
                [
                    t["reward"] if t["status"] != Status.INFRA_ERROR else None,
                    len(t["turns"]),
                    sum(turn["tool_error"] for turn in t["turns"]),
                ]
                for _, t in sorted(rollouts.items())
            ]
            question = text(first["question"], QUESTION_CHARACTERS)
            summary["groups"].append([name, question, rows])
    return summary


def _mean_length(trajectories):
    """Returns the mean tokens of a planner's response; None where none is known."""
    lengths = [turn["response_tokens"] for one in trajectories for turn in one["turns"]]
    lengths = [length for length in lengths if length is not None]
    return number(sum(lengths) / len(lengths)) if lengths else None


def _texts(groups, budget):
    """Returns (JSON text of the trajectories of each question, number of questions kept)."""
    kept, size = [], 2
    for rollouts in groups.values():
        part = dump([{"rollout": r} | t for r, t in sorted(rollouts.items())])
        size += len(part) + 1
        if kept and size > budget:
            break
        kept.append(part)
    return f"[{','.join(kept)}]", len(kept)
