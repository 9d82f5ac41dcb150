"""What a run says to three questions: did it learn, what did it learn, can it be trusted.

Before and after are the first and the last evaluation, on the questions that both have. A run
without evaluations is judged by its first and last training step, whose questions differ.
"""

import dataclasses

from experiments.reporting import trajectories as records
from flow_grpo_jax import statistics

GOOD, NOTE, BAD = "good", "note", "bad"  # states of a check
ENDS = 5  # steps whose mean stands for a beginning or an end
EXAMPLES = 3  # questions that are named
SHOWN_MISTAKES = 8

# Bounds of the checks: from the first on it is a note, from the second on it is bad.
GAP_K3 = 1e-3, 1e-2  # nats a token, largest of a step
KL = 0.5, 5.0  # nats a token, mean of the last steps
LEFT_OUT = 0.01, 0.1  # share of the rollouts
CUT = 0.05, 0.3  # share of the rollouts in the last steps
FLAT = 0.8, 0.98  # share of the groups in the last steps
QUESTIONS = 100  # fewer than these are a note


@dataclasses.dataclass(frozen=True)
class Ends:
    """Trajectories before and after.

    titles: of the two.    before, after: {question id: {rollout: trajectory}}.
    held_out: whether they are of evaluations, and so of the same questions.
    places: (step, is held-out) of the two.
    """

    titles: tuple[str, str]
    before: dict
    after: dict
    held_out: bool
    places: tuple


@dataclasses.dataclass(frozen=True)
class Check:
    """state: GOOD, NOTE or BAD.    value: what was found.    why: what it means."""

    state: str
    title: str
    value: str
    why: str


def ends_of(folder):
    """Returns the `Ends` of a run's trajectories/ folder; None with fewer than two files."""
    files = records.files_of(folder)
    for held_out in (True, False):
        kept = [(step, path) for step, is_held, path in files if is_held == held_out]
        if len(kept) >= 2:
            (first, before), (last, after) = kept[0], kept[-1]
            before, _ = records.groups_of(records.read_lines(before))
            after, _ = records.groups_of(records.read_lines(after))
            if held_out:
                shared = [name for name in before if name in after]
                before, after = ({n: each[n] for n in shared} for each in (before, after))
            return Ends(
                titles=(_title(first, held_out), _title(last, held_out)),
                before=before,
                after=after,
                held_out=held_out,
                places=((first, held_out), (last, held_out)),
            )
    return None


def _title(step, held_out):
    if not held_out:
        return f"Step {step}"
    return f"After step {step}" if step else "Before training"


# ---- did it learn ------------------------------------------------------------------------------


def learned(metrics, ends):
    """Returns (state, sentence, `statistics.Difference` or None)."""
    if ends and ends.held_out and ends.before:
        change = difference(ends.before, ends.after)
        interval = f"95 %: {points(change.low)} to {points(change.high)}"
        told = f"{points(change.mean)} points on the same {change.questions:,} questions"
        told = f"{told} ({interval}); {change.better:,} newly solved, {change.worse:,} lost."
        if change.low > 0:
            return GOOD, f"Yes: {told}", change
        if change.high < 0:
            return BAD, f"No, it got worse: {told}", change
        return NOTE, f"Not shown: {told} The interval holds 0.", change
    rewards = [step["reward/mean"] for step in metrics if "reward/mean" in step]
    if any("eval/success" in step for step in metrics):
        return NOTE, "There is one evaluation so far, so nothing to compare it with.", None
    if len(rewards) < 2:
        return NOTE, "Too few steps to tell.", None
    count = min(ENDS, len(rewards) // 2)
    first, last = (sum(part) / count for part in (rewards[:count], rewards[-count:]))
    told = f"the sampled reward went from {first:.3f} to {last:.3f}"
    told += f" (means of the first and last {count} steps)" if count > 1 else ""
    return NOTE, f"Not measured: {told}, on other questions each time.", None


def difference(before, after):
    """Returns the paired `statistics.Difference` in solved questions of {id: {rollout: ...}}."""
    scores = [
        [[float(t["reward"] == 1) for t in group.values()] for group in each.values()]
        for each in (before, after)
    ]
    means = [[[sum(group) / len(group)] for group in each] for each in scores]
    return statistics.difference(*means)


def changed(ends):
    """Returns (ids newly solved, ids lost)."""
    solved = [
        {n for n, g in each.items() if all(t["reward"] == 1 for t in g.values())}
        for each in (ends.before, ends.after)
    ]
    newly = [name for name in ends.after if name in solved[1] - solved[0]]
    return newly, [name for name in ends.after if name in solved[0] - solved[1]]


def points(share):
    return f"{100 * share:+.1f}"


# ---- what did it learn -------------------------------------------------------------------------


def habits(ends):
    """Returns [(title, what the shares are of, [(label, share before, share after)])]."""
    sides = [[t for g in each.values() for t in g.values()] for each in (ends.before, ends.after)]
    found = [
        ("Tools chosen", "Share of the turns.", _shares(sides, _tools)),
        (
            "Turns used",
            "Share of the trajectories.",
            [
                (f"{count} turn{'' if count == 1 else 's'}", before, after)
                for count, before, after in sorted(_shares(sides, lambda t: [len(t["turns"])]))
            ],
        ),
        (
            "What goes wrong",
            "Share of the trajectories in which it happens.",
            _shares(sides, lambda t: t["mistakes"], of_items=False)[:SHOWN_MISTAKES],
        ),
    ]
    by_source = []
    for source in sorted({t["source"] for side in sides for t in side} - {""}):
        rewards = [[t["reward"] == 1 for t in s if t["source"] == source] for s in sides]
        if all(rewards):
            by_source.append(
                (source[: records.NAME_CHARACTERS], *(sum(each) / len(each) for each in rewards))
            )
    if len(by_source) > 1:
        found.append(("Solved, by source", "Share of the questions.", by_source))
    return [(title, note, rows) for title, note, rows in found if rows]


def _tools(trajectory):
    return [turn["tool"] or "no tool" for turn in trajectory["turns"]]


def _shares(sides, names_of, *, of_items=True):
    """Returns [(name, share before, share after)], the largest first.

    of_items: shares of all names together, else of the trajectories.
    """
    counts = []
    for side in sides:
        count = {}
        for trajectory in side:
            for name in names_of(trajectory):
                name = name if isinstance(name, int) else name[: records.NAME_CHARACTERS]
                count[name] = count.get(name, 0) + 1
        total = sum(count.values()) if of_items else len(side)
        counts.append({name: number / max(total, 1) for name, number in count.items()})
    before, after = counts
    rows = [(n, before.get(n, 0.0), after.get(n, 0.0)) for n in dict.fromkeys([*before, *after])]
    return sorted(rows, key=lambda row: -max(row[1:]))


# ---- can it be trusted -------------------------------------------------------------------------


def checks(metrics, *, damaged):
    """Returns the `Check`s of a run, without those that nothing is known of."""
    found = [
        _gap(metrics),
        _kl(metrics),
        _left_out(metrics),
        _cut(metrics),
        _flat(metrics),
        _skipped(metrics),
        _size(metrics),
    ]
    if damaged:
        why = "Damaged or unfinished lines of the run's files, as after a killed process."
        found.append(Check(NOTE, "Lines left out", f"{damaged:,}", why))
    return [check for check in found if check]


def _gap(metrics):
    k3 = _all(metrics, "policy/logprob_gap_k3")
    largest = _all(metrics, "policy/logprob_gap_max")
    if not largest:
        return None
    value = f"largest {max(largest):.1e} nats"
    state = GOOD
    if k3:
        value += f", KL {max(map(abs, k3)):.1e} nats a token at most"
        state = _state(max(map(abs, k3)), GAP_K3)
    why = "Log-probs of the sampler against those of the trainer: trained is what was drawn."
    return Check(state, "Log-prob gap", value, why)


def _kl(metrics):
    kl = _all(metrics, "loss/kl")
    if not kl:
        return None
    last = _mean(kl[-ENDS:])
    why = "How far the policy is from the initial one, in nats a token; mean of the last steps."
    return Check(_state(last, KL), "KL to the reference", f"{last:.3g}", why)


def _left_out(metrics):
    valid = _all(metrics, "rollout/valid_share")
    lost = {
        what: sum(_all(metrics, name))
        for what, name in (
            ("infrastructure", "rollout/infra_errors"),
            ("deadline", "rollout/timeouts"),
            ("no verdict", "reward/no_verdict"),
        )
    }
    if not any(name.startswith("rollout/") for step in metrics for name in step):
        return None
    share = 1 - _mean(valid) if valid else 0.0
    causes = ", ".join(f"{count:.0f} by {what}" for what, count in lost.items() if count)
    value = f"{_percent(share)} of the rollouts" if share or causes else "none"
    state = _state(share, LEFT_OUT) if share else NOTE if causes else GOOD
    why = "Rollouts without a trusted reward. They count in no average, and never as wrong."
    value += f" ({causes})" if causes else ""
    return Check(state, "Failures excluded", value, why)


def _cut(metrics):
    return _late(metrics, "rollout/truncated", CUT, "Cut at a limit", "rollouts", CUT_WHY)


def _flat(metrics):
    return _late(metrics, "group/zero_variance", FLAT, "Groups without signal", "groups", FLAT_WHY)


CUT_WHY = "A planner response or a prompt met its limit; mean of the last steps."
FLAT_WHY = "All rollouts of a question scored alike and taught nothing; mean of the last steps."


def _late(metrics, name, bounds, title, what, why):
    values = _all(metrics, name)
    if not values:
        return None
    last = _mean(values[-ENDS:])
    return Check(_state(last, bounds), title, f"{_percent(last)} of the {what}", why)


def _skipped(metrics):
    tried, skipped = _all(metrics, "optim/steps"), _all(metrics, "optim/skipped")
    if not tried:
        return None
    empty = sum(count == 0 for count in tried)
    value = f"{sum(tried) - sum(skipped):,.0f} taken"
    if sum(skipped) or empty:
        value += f", {sum(skipped):,.0f} not finite, {empty} without anything to train on"
    why = "Optimizer steps; one is left out where something in it is not finite."
    return Check(NOTE if sum(skipped) or empty else GOOD, "Updates", value, why)


def _size(metrics):
    totals = [total for total in _all(metrics, "eval/total") if total > 0]
    if not totals:
        why = "Without held-out questions nothing tells learning from luck."
        return Check(NOTE, "Held-out questions", "none", why) if metrics else None
    failed = sum(_all(metrics, "eval/infra_errors")) + sum(_all(metrics, "eval/timeouts"))
    half = statistics.wilson_interval(totals[-1] / 2, totals[-1])[1] - 0.5
    value = f"{totals[-1]:,.0f}, evaluated {len(totals):,} times"
    value += f"; {failed:,.0f} failures count as wrong" if failed else ""
    why = f"One evaluation of this size is known to ± {100 * half:.0f} points at worst."
    few = totals[-1] < QUESTIONS or failed
    return Check(NOTE if few else GOOD, "Held-out questions", value, why)


def _all(metrics, name):
    return [step[name] for step in metrics if name in step]


def _mean(values):
    return sum(values) / len(values)


def _percent(share):
    return f"{100 * share:.1f} %"


def _state(value, bounds):
    note, bad = bounds
    return BAD if value >= bad else NOTE if value >= note else GOOD


def ran_where(config):
    """Returns [(name, value)] of what a run says of the machine: versions, devices, kernels.

    config: {dotted name: value} of config.json.
    """
    found = []
    for key, value in config.items():
        section, _, name = key.partition(".")
        if section == "versions":
            found.append((name, value))
        elif section == "kernels":
            found.append((f"kernels: {name}", value))
        elif key in ("sandbox.level", "sandbox.kernel", "sandbox.machine"):
            found.append((f"sandbox: {name}", value))
    return sorted(found, key=lambda pair: (pair[0] != "devices", pair[0].startswith("sandbox")))
