"""The numbers of an evaluation, each from trajectories of its ledger.

Dimensions:
  Q questions    K trials of a question
"""

import collections
import dataclasses

import numpy as np

from agents.trajectory import BROKEN, Status
from experiments.evaluating import plan
from experiments.evaluating.ledger import Key
from flow_grpo_jax import statistics
from flow_grpo_jax.benchmarks.catalogue import Unsupported

UNSUPPORTED = "unsupported"  # status of a question that was not asked, but counts as not solved


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What counts of a trajectory, or of an unsupported question.

    scores: {scorer: value}, all 0 without an answer.
    beside: {name: value} of the columns that its question has; None where there is no verdict.
    tools: how often each was chosen.
    """

    scores: dict
    beside: dict
    status: str
    answered: bool = False
    turns: int = 0
    tool_errors: int = 0
    tools: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    response_tokens: int = 0
    attempts: int = 1
    seconds: float = 0.0

    @property
    def exists(self):
        """Whether there is an output: neither infrastructure nor the clock ended it."""
        return self.status not in (*BROKEN, UNSUPPORTED)


def outcomes(benchmark, counted, arm, turns, trials, ledger, *, names=None, columns=None):
    """Returns outcomes_QK of one row, in the order of the questions.

    counted: Q questions, of `Benchmark.counted`.
    names, columns: what is decided beside the official score, of `beside`; None is nothing.
    """
    names, lines = names or {}, {}
    for q, question in enumerate(benchmark.questions):
        for k in range(trials):
            key = Key(benchmark.name, question["id"], arm.mode, arm.protocol, turns, k)
            lines[q, k] = ledger.read(key)["trajectory"]
    decided = {name: {} for name in columns or ()}
    for name, verdict_of in decided.items():  # equal answers to a question are decided once
        asked = [
            (q, line["answer"])
            for (q, _), line in lines.items()
            if line["status"] not in BROKEN and name in names[benchmark.questions[q]["kind"]]
        ]
        if asked := list(dict.fromkeys(asked)):
            asking = [benchmark.questions[q] for q, _ in asked]
            verdicts = columns[name].verdicts(asking, [answer for _, answer in asked])
            verdict_of |= dict(zip(asked, verdicts, strict=True))

    def outcome(q, k):
        question = counted[q]
        if isinstance(question, Unsupported):
            scores = dict.fromkeys(benchmark.score(benchmark.questions[0], ""), 0.0)
            return Outcome(scores, dict.fromkeys(names.get(question.kind, ())), UNSUPPORTED)
        line, own = lines[q, k], names.get(question["kind"], ())
        verdicts = {name: decided[name].get((q, line["answer"])) for name in own}
        return _outcome(benchmark, question, line, verdicts)

    return [[outcome(q, k) for k in range(trials)] for q in range(len(counted))]


def official_score(benchmark, question, line):
    """Returns the official score of a trajectory, a dict of the ledger; 0 of a broken one."""
    return next(iter(_scores(benchmark, question, line).values()))


def _scores(benchmark, question, line):
    scores = benchmark.score(question, line["answer"])
    return dict.fromkeys(scores, 0.0) if line["status"] in BROKEN else scores


def _outcome(benchmark, question, line, verdicts):
    return Outcome(
        scores=_scores(benchmark, question, line),
        beside=dict.fromkeys(verdicts) if line["status"] in BROKEN else verdicts,
        status=line["status"],
        answered=bool(line["answer"]),
        turns=len(line["turns"]),
        tool_errors=sum(turn["tool_error"] for turn in line["turns"]),
        tools=collections.Counter(turn["tool"] or "none" for turn in line["turns"]),
        response_tokens=sum(turn["response_tokens"] for turn in line["turns"]),
        attempts=line["attempts"],
        seconds=line["seconds"],
    )


def row(benchmark, counted, arm, turns, outcomes_QK):
    """Returns the numbers of one row of the table, JSON-able.

    counted: Q questions, those of `outcomes`.
    """
    trials = len(outcomes_QK[0])
    flat = [outcome for group in outcomes_QK for outcome in group]
    asked = [outcome for outcome in flat if outcome.status != UNSUPPORTED]
    names = list(flat[0].scores)
    scores = {name: scores_of(outcomes_QK, name) for name in names}
    official = scores[names[0]]
    if arm.protocol == "authors":
        estimates = {"authors'": _of_outputs(outcomes_QK, judged=True)}
    else:
        estimates = {name: statistics.average(found) for name, found in scores.items()}
    usable = [outcome for outcome in asked if outcome.status != Status.INFRA_ERROR]
    turn_count = sum(outcome.turns for outcome in usable)
    tools = sum((outcome.tools for outcome in usable), collections.Counter())
    beside = dict.fromkeys(name for outcome in flat for name in outcome.beside)
    return {
        "benchmark": benchmark.name,
        "mode": arm.mode,
        "protocol": arm.protocol,
        "max_turns": turns,
        "questions": len(official),
        "trials": trials,
        "official": next(iter(estimates)),
        "scores": {name: _shown(estimate) for name, estimate in estimates.items()},
        "of_outputs": _of_outputs(outcomes_QK, judged=False).value,
        "solved": sum(value == 1 for group in official for value in group),
        "pass_at": {
            str(k): _shown(statistics.pass_at(official, k)) for k in _powers(trials) if trials > 1
        },
        "infra_errors": sum(outcome.status == Status.INFRA_ERROR for outcome in asked),
        "timeouts": sum(outcome.status == Status.TIMEOUT for outcome in asked),
        "infra_retries": sum(outcome.attempts - 1 for outcome in asked),
        "no_answer": sum(not outcome.answered for outcome in asked),
        "unsupported": len(benchmark.unsupported),
        "unsupported_counted": len(asked) < len(flat),
        "truncated": sum(outcome.status == Status.TRUNCATED for outcome in asked),
        "turns": turn_count / max(len(usable), 1),
        "tool_error_rate": sum(o.tool_errors for o in usable) / max(turn_count, 1),
        "tool_shares": {name: count / turn_count for name, count in sorted(tools.items())},
        "response_tokens": sum(o.response_tokens for o in usable) / max(turn_count, 1),
        "paper": plan.paper_figure(benchmark.name, arm.mode),
        "beside": [_beside(outcomes_QK, names[0], name) for name in sorted(beside)],
        "levels": _levels(counted, official),
    }


def _levels(counted, official_QK):
    """Returns {level: estimate} where there are several."""
    by_level = collections.defaultdict(list)
    for question, values_K in zip(counted, official_QK, strict=True):
        apart = isinstance(question, Unsupported)
        if level := question.level if apart else question.get("level"):
            by_level[str(level)].append(values_K)
    levels = sorted(by_level) if len(by_level) > 1 else []
    return {level: _shown(statistics.average(by_level[level])) for level in levels}


def scores_of(outcomes_QK, name):
    return [[outcome.scores[name] for outcome in group] for group in outcomes_QK]


def _of_outputs(outcomes_QK, *, judged):
    """Returns the `Estimate` as the authors count: a share of the outputs that exist.

    judged: whether a judge's verdict counts where there is one, else the official score does.
    """
    counted = []
    for group in outcomes_QK:
        values = []
        for outcome in group:
            verdict = outcome.beside.get("judge") if judged else None
            official = next(iter(outcome.scores.values()))
            values += [official if verdict is None else verdict] if outcome.exists else []
        counted += [[float(np.mean(values))]] if values else []
    return statistics.average(counted or [[0.0]])


def _beside(outcomes_QK, official, name):
    """Returns the numbers of a column, over the questions that have it; no verdict counts as 0."""
    having_QK = [group for group in outcomes_QK if name in group[0].beside]
    flat = [outcome for group in having_QK for outcome in group]
    verdicts = [outcome.beside[name] for outcome in flat]
    agree = statistics.agreement([outcome.scores[official] for outcome in flat], verdicts)
    counted = [[outcome.beside[name] or 0.0 for outcome in group] for group in having_QK]
    return {
        "name": name,
        **_shown(statistics.average(counted)),
        "no_verdict": sum(
            verdict is None and outcome.exists
            for verdict, outcome in zip(verdicts, flat, strict=True)
        ),
        "agreement": agree,
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
