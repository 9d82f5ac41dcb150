"""Selects the trajectories that a report shows, within a size budget.

Every step is listed with the rewards of its groups. The texts, which are the bulk, are packed, and
kept for the first and the last steps and for steps spread evenly between them, until the budget is
spent.
"""

import base64
import dataclasses
import functools
import gzip
import json
import math
import pathlib
import re

from agents.trajectory import BROKEN
from experiments.reporting import mistakes
from flow_grpo_jax.bounds import files, json_text

FIELD_CHARACTERS = 6000
QUESTION_CHARACTERS = 300
NAME_CHARACTERS = 80  # of tools and the like, which are short unless somebody means harm
RATIO = 16  # texts that pack better than this count as if they did not; browsers unpack them

_NAME = re.compile(r"(step|heldout)_(\d+)\.jsonl$")


@dataclasses.dataclass(frozen=True)
class Listing:
    """steps: JSON-ready summaries, in order of step.
    texts: {index into steps: that step's trajectories, packed}.
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


def pack(text):
    """Returns a text of `dump` as base64 of gzip, a tenth of its size; equal texts pack alike."""
    return base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii")


def unpack(packed):
    """Returns the value that was dumped and packed."""
    return json.loads(gzip.decompress(base64.b64decode(packed)))


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


def parts_of(folder, **told):
    """Returns (parts of a run's `trajectories/` folder for `listing`, their order).

    folder: may be missing.    told: what the page is told of all parts.

    The texts of training and of evaluations are chosen in turns.
    """
    files = files_of(folder)
    held = [i for i, (_, is_held, _) in enumerate(files) if is_held]
    trained = [i for i, (_, is_held, _) in enumerate(files) if not is_held]
    by_kind = [[kind[i] for i in spread(len(kind))] for kind in (held, trained)]
    parts = [
        (told | {"step": step, "heldout": is_held}, functools.partial(read_lines, path))
        for step, is_held, path in files
    ]
    return parts, interleaved(by_kind)


def interleaved(lists):
    """Returns the first of each list, then the second of each, ..."""
    longest = max(map(len, lists), default=0)
    return [one[i] for i in range(longest) for one in lists if i < len(one)]


def collect(folder, *, text_budget, listed_rollouts=200_000):
    """Returns the `Listing` of a run's `trajectories/` folder, which may be missing."""
    parts, order = parts_of(folder)
    return listing(parts, order, text_budget=text_budget, listed_rollouts=listed_rollouts)


def listing(parts, order, *, text_budget, listed_rollouts=200_000):
    """Returns the `Listing` of parts: steps of a run, or rows of an evaluation.

    parts: [(what the page is told of a part, function that yields its trajectories as JSON objects
      and None for a damaged line)]. "step" places a part on the axis of the charts.
    order: of the parts, by importance of their texts.
    text_budget: bytes of packed texts to keep, at most a quarter of them for one part, so that
      both ends of training and of the evaluations are there. A part that does not fit whole keeps
      its first questions, at least one while anything is left.
    listed_rollouts: rollouts whose reward is listed; the means of all other parts remain.
    """
    steps, texts, damaged, left = {}, {}, 0, text_budget
    for index in order:
        told, read = parts[index]
        groups, bad = groups_of(read())
        damaged += bad
        count = sum(len(rollouts) for rollouts in groups.values())
        listed_rollouts -= count
        steps[index] = told | _summary(groups, heldout=told["heldout"], listed=listed_rollouts >= 0)
        if left > 0 and listed_rollouts >= 0 and groups:
            texts[index], kept, cost = _texts(groups, min(left, text_budget // 4))
            left -= cost
            steps[index]["texts"] = kept
    return Listing([steps[i] for i in range(len(parts))], texts, damaged)


def groups_of(lines):
    """Returns ({question id: {rollout: trajectory}}, damaged lines); a repeated line wins.

    A trajectory is a dict of texts and numbers, whatever the line held.
    """
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
    named = ("analysis", "answer", "reward_source", "status", "stop", "error", "question", "source")
    trajectory = {name: text(record.get(name)) for name in named}
    trajectory["gold"] = gold(record.get("gold"))
    for name in ("reward", "advantage", "seconds"):
        trajectory[name] = number(record.get(name))
    branch = record.get("branch")
    if isinstance(branch, dict):
        trajectory["branch"] = {name: number(branch.get(name)) for name in ("parent", "turn")}
    if trajectory["status"] in BROKEN:  # it was written as 0, but nothing was scored
        trajectory["reward"] = None
    trajectory["turns"] = turns
    return trajectory | {"mistakes": mistakes.of_trajectory(trajectory)}


def _turn(turn):
    named = ("planner_text", "context", "sub_goal", "tool", "command", "result", "verdict")
    row = {name: text(turn.get(name)) for name in named}
    for name in ("logprob_sum", "seconds", "parse_failures"):
        row[name] = number(turn.get(name))
    if "advantage" in turn:
        row["advantage"] = number(turn["advantage"])
    for name in ("prompt_tokens", "response_tokens"):
        tokens = turn.get(name)
        row[name] = len(tokens) if _is_list(tokens) else number(tokens)
    row["tool_error"] = turn.get("tool_error") is True
    return row | {"mistake": mistakes.of_turn(row)} | _tokens(turn, row["planner_text"])


def _tokens(turn, shown):
    """Returns {"tokens": [[characters, log-prob], ...]} of a planner's text; {} if unknown."""
    counts, logprobs = turn.get("token_characters"), turn.get("token_logprobs")
    if not _is_list(counts) or not _is_list(logprobs) or len(counts) != len(logprobs):
        return {}
    both = zip(counts, logprobs, strict=True)
    pairs = [[number(count), number(logprob)] for count, logprob in both]
    if any(not isinstance(c, int) or c < 0 or p is None for c, p in pairs):
        return {}
    whole = turn.get("planner_text")
    if shown != whole or sum(count for count, _ in pairs) != len(shown):
        return {}  # cut
    return {"tokens": [pair for pair in pairs if pair[0]]}


def _is_list(value):
    return isinstance(value, list)


def _summary(groups, *, heldout, listed):
    """Summarises a step: its means, and for each question what a list of it needs.

    What has no reward is in no mean of training, and wrong on held-out questions.

    A group is [question id, question, source, rows], and a row of it, one a rollout, [reward,
    turns, errors, status, mistakes, tools].
    """
    trajectories = [t for rollouts in groups.values() for t in rollouts.values()]
    rewards = [t["reward"] for t in trajectories if t["reward"] is not None]
    count = len(trajectories) if heldout else len(rewards)
    summary = {
        "rollouts": len(trajectories),
        "scored": len(rewards),
        "mean": number(sum(rewards) / count) if rewards else None,
        # As in metrics, of those from the question on: a branch repeats turns of another.
        "response_tokens": _mean_length([t for t in trajectories if "branch" not in t]),
        "questions": len(groups),
        "texts": 0,
        "groups": [],
    }
    if listed:
        for name, rollouts in groups.items():
            first = next(iter(rollouts.values()))
            rows = [_row(t) for _, t in sorted(rollouts.items())]
            question = text(first["question"], QUESTION_CHARACTERS)
            source = first["source"][:NAME_CHARACTERS]
            summary["groups"].append([name, question, source, rows])
    return summary


def _row(trajectory):
    tools = dict.fromkeys(turn["tool"][:NAME_CHARACTERS] for turn in trajectory["turns"])
    return [
        trajectory["reward"],
        len(trajectory["turns"]),
        sum(turn["tool_error"] for turn in trajectory["turns"]),
        trajectory["status"][:NAME_CHARACTERS],
        [name[:NAME_CHARACTERS] for name in trajectory["mistakes"]],
        list(tools),
    ]


def _mean_length(trajectories):
    """Returns the mean tokens of a planner's response; None where none is known."""
    lengths = [turn["response_tokens"] for one in trajectories for turn in one["turns"]]
    lengths = [length for length in lengths if length is not None]
    return number(sum(lengths) / len(lengths)) if lengths else None


def _texts(groups, budget):
    """Returns (the trajectories of each question, packed; number of questions kept; cost).

    cost: bytes packed, and at least a RATIO-th of those of the texts.
    """
    parts = [dump([{"rollout": r} | t for r, t in sorted(one.items())]) for one in groups.values()]
    while True:
        whole = f"[{','.join(parts)}]"
        packed = pack(whole)
        cost = max(len(packed), len(whole) // RATIO)
        if cost <= budget or len(parts) == 1:
            return packed, len(parts), cost
        parts = parts[: max(1, min(len(parts) - 1, len(parts) * budget // cost))]
