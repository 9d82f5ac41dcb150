"""The numbers of an evaluation, each from trajectories of its ledger.

Dimensions:
  Q questions    K trials of a question
"""

import collections
import dataclasses

import numpy as np

from agents.trajectory import Status
from experiments.evaluating import plan
from experiments.evaluating.ledger import Key
from flow_grpo_jax import statistics


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What counts of a trajectory.

    scores: {scorer: value}, all 0 without an answer.
    beside: value of the config's decider; None where it has no verdict.
    tools: how often each was chosen.
    """

    scores: dict
    beside: float | None
    status: str
    answered: bool
    turns: int
    tool_errors: int
    tools: collections.Counter
    response_tokens: int
    attempts: int
    seconds: float

    @property
    def exists(self):
        """Whether there is an output: neither infrastructure nor the clock ended it."""
        return self.status not in (Status.INFRA_ERROR, Status.TIMEOUT)


def decider(config, benchmark):
    """Returns the name of what decides in the config beside the official scorer; "" for no more."""
    kinds = {question["kind"] for question in benchmark.questions}
    return " or ".join(sorted({config.reward[kind] for kind in kinds} - {"rule"}))


def outcomes(benchmark, arm, turns, trials, ledger, *, scorer):
    """Returns outcomes_QK of one row, in the order of the questions.

    scorer: decides beside the official one; None where the config has rules alone.
    """
    lines = {}
    for q, question in enumerate(benchmark.questions):
        for k in range(trials):
            key = Key(benchmark.name, question["id"], arm.mode, arm.protocol, turns, k)
            lines[q, k] = ledger.read(key)["trajectory"]
    asked, decided = [], []
    if scorer is not None:  # equal answers to a question are decided once
        asked = list(
            dict.fromkeys((q, one["answer"]) for (q, _), one in lines.items() if _exists(one))
        )
    if asked:
        asking = [benchmark.questions[q] for q, _ in asked]
        decided, _ = scorer.score(asking, [answer for _, answer in asked])
    beside = dict(zip(asked, decided, strict=True))
    return [
        [
            _outcome(benchmark, question, lines[q, k], beside.get((q, lines[q, k]["answer"])))
            for k in range(trials)
        ]
        for q, question in enumerate(benchmark.questions)
    ]


def _exists(line):
    return line["status"] not in (Status.INFRA_ERROR, Status.TIMEOUT)


def _outcome(benchmark, question, line, decided):
    scores = benchmark.score(question, line["answer"])
    if not _exists(line):
        scores, decided = dict.fromkeys(scores, 0.0), None
    return Outcome(
        scores=scores,
        beside=decided.value if decided is not None and decided.known else None,
        status=line["status"],
        answered=bool(line["answer"]),
        turns=len(line["turns"]),
        tool_errors=sum(turn["tool_error"] for turn in line["turns"]),
        tools=collections.Counter(turn["tool"] or "none" for turn in line["turns"]),
        response_tokens=sum(turn["response_tokens"] for turn in line["turns"]),
        attempts=line["attempts"],
        seconds=line["seconds"],
    )


def row(benchmark, arm, turns, outcomes_QK, *, beside, count_unsupported):
    """Returns the numbers of one row of the table, JSON-able.

    beside: name of what decides beside the official scorer; "" is nothing.
    count_unsupported: whether unsupported questions are in the denominator, as not solved.
    """
    trials = len(outcomes_QK[0])
    flat = [outcome for group in outcomes_QK for outcome in group]
    names = list(flat[0].scores)
    extra = len(benchmark.unsupported) if count_unsupported else 0
    scores = {name: scores_of(outcomes_QK, name) + [[0.0] * trials] * extra for name in names}
    official = scores[names[0]]
    if arm.protocol == "authors":
        estimates = {"authors'": _of_outputs(outcomes_QK, beside)}
    else:
        estimates = {name: statistics.average(found) for name, found in scores.items()}
    usable = [outcome for outcome in flat if outcome.status != Status.INFRA_ERROR]
    turn_count = sum(outcome.turns for outcome in usable)
    tools = sum((outcome.tools for outcome in usable), collections.Counter())
    found = {
        "benchmark": benchmark.name,
        "mode": arm.mode,
        "protocol": arm.protocol,
        "max_turns": turns,
        "questions": len(official),
        "trials": trials,
        "official": next(iter(estimates)),
        "scores": {name: _shown(estimate) for name, estimate in estimates.items()},
        "of_outputs": _of_outputs(outcomes_QK, "").value,
        "solved": sum(value == 1 for group in official for value in group),
        "pass_at": {
            str(k): _shown(statistics.pass_at(official, k)) for k in _powers(trials) if trials > 1
        },
        "infra_errors": sum(outcome.status == Status.INFRA_ERROR for outcome in flat),
        "timeouts": sum(outcome.status == Status.TIMEOUT for outcome in flat),
        "infra_retries": sum(outcome.attempts - 1 for outcome in flat),
        "no_answer": sum(not outcome.answered for outcome in flat),
        "unsupported": len(benchmark.unsupported),
        "unsupported_counted": bool(extra),
        "truncated": sum(outcome.status == Status.TRUNCATED for outcome in flat),
        "turns": turn_count / max(len(usable), 1),
        "tool_error_rate": sum(o.tool_errors for o in usable) / max(turn_count, 1),
        "tool_shares": {name: count / turn_count for name, count in sorted(tools.items())},
        "response_tokens": sum(o.response_tokens for o in usable) / max(turn_count, 1),
        "paper": plan.paper_figure(benchmark.name, arm.mode),
    }
    if beside:
        found |= _beside(outcomes_QK, names[0], beside)
    by_level = collections.defaultdict(list)
    for q, question in enumerate(benchmark.questions):
        if question.get("level"):
            by_level[str(question["level"])].append(official[q])
    levels = sorted(by_level) if len(by_level) > 1 else []
    found["levels"] = {level: _shown(statistics.average(by_level[level])) for level in levels}
    return found


def scores_of(outcomes_QK, name):
    return [[outcome.scores[name] for outcome in group] for group in outcomes_QK]


def _of_outputs(outcomes_QK, beside):
    """Returns the `Estimate` as the authors count: a share of the outputs that exist.

    beside: "judge" takes the judge's verdicts where it has one, else the official score counts.
    """
    counted = []
    for group in outcomes_QK:
        values = [
            outcome.beside
            if beside == "judge" and outcome.beside is not None
            else next(iter(outcome.scores.values()))
            for outcome in group
            if outcome.exists
        ]
        counted += [[float(np.mean(values))]] if values else []
    return statistics.average(counted or [[0.0]])


def _beside(outcomes_QK, official, name):
    verdicts_QK = [[outcome.beside for outcome in group] for group in outcomes_QK]
    flat = [outcome for group in outcomes_QK for outcome in group]
    verdicts = [outcome.beside for outcome in flat]
    agree = statistics.agreement([outcome.scores[official] for outcome in flat], verdicts)
    counted = [[0.0 if value is None else value for value in group] for group in verdicts_QK]
    return {
        "beside": {
            "name": name,
            **_shown(statistics.average(counted)),
            "no_verdict": sum(
                verdict is None and outcome.exists
                for verdict, outcome in zip(verdicts, flat, strict=True)
            ),
            "agreement": agree,
        }
    }


def means(rows):
    """Returns a row for the mean over benchmarks of each arm and budget, all of one weight."""
    groups = collections.defaultdict(list)
    for one in rows:
        groups[one["mode"], one["protocol"], one["max_turns"]].append(one)
    found = []
    for (mode, protocol, turns), group in groups.items():
        if len(group) < 2:
            continue
        estimates = [statistics.Estimate(**one["scores"][one["official"]]) for one in group]
        papers = [one["paper"] for one in group]
        found.append(
            {
                "benchmark": "mean",
                "mode": mode,
                "protocol": protocol,
                "max_turns": turns,
                **_shown(statistics.mean_of(estimates)),
                "paper": None if None in papers else sum(papers) / len(papers),
            }
        )
    return found


def differences(scores, pairs):
    """Returns the paired differences of rows, JSON-able.

    scores: {row's (benchmark, mode, protocol, max_turns): {question id: [score of each trial]}}.
    pairs: [(label, first row's key, {id: scores} of the first, key of the second row)].
    """
    found = []
    for label, first, before, second in pairs:
        after = scores[second]
        common = [name for name in after if name in before]
        if not common:
            continue
        gain = statistics.difference([before[n] for n in common], [after[n] for n in common])
        found.append(
            {
                "benchmark": second[0],
                "compared": label,
                "first": list(first),
                "second": list(second),
                "unpaired": len(after) + len(before) - 2 * len(common),
                **dataclasses.asdict(gain),
            }
        )
    return found


def within(scores):
    """Returns the pairs of an evaluation itself: trained and bare less untrained, where both are.

    The bare model has no turns; it is compared with the largest budget.
    """
    pairs = []
    for key in scores:
        benchmark, mode, protocol, turns = key
        if mode == "trained":
            first = benchmark, "untrained", protocol, turns
        elif mode == "untrained" and protocol == "honest":
            first = benchmark, "bare", protocol, 0
        else:
            continue
        if first in scores:
            pairs.append((f"{mode} less {first[1]}", first, scores[first], key))
    return pairs


def _powers(trials):
    """Returns 1, 2, 4, … up to `trials`, which is the last."""
    found = [1]
    while 2 * found[-1] < trials:
        found.append(2 * found[-1])
    return sorted({*found, trials})


def _shown(estimate):
    return dataclasses.asdict(estimate)
