"""Tables and charts of runs over their seeds.

Runs whose configs differ in the seed alone are one setting. Means are over its runs, with the 95 %
interval of Student's t; a single run has none.
"""

import dataclasses
import pathlib

from experiments.configs import common
from experiments.running import command, dotted, stored, trust
from flow_grpo_jax import metrics, statistics

LINES = 8  # of a chart
AGREE = (
    "seed",
    "compile_cache",
    "warmstart.",
    *common.WATCHING,
)  # fields that make no setting


@dataclasses.dataclass(frozen=True)
class Run:
    """values: step -> the metric. steps: last step. config: {dotted field: value}."""

    name: str
    seed: int
    steps: int
    wanted: int
    values: dict
    config: dict


def is_finished(workdir, config):
    """Whether a folder holds a run of this config that has done all its steps.

    Raises:
      ConfigError: it holds a run of another config.
    """
    if not (workdir / "config.json").exists():
        return False
    try:
        stored.check_config(config, workdir)
        lines = metrics.read(workdir / "metrics.jsonl")
    except FileNotFoundError:
        return False
    last = lines[-1] if lines else {"step": -1}
    evaluated = "eval/success" in last or not config.data.held_out
    saved = not config.steps or (workdir / "checkpoints" / f"step_{config.steps}").is_dir()
    return last["step"] == config.steps and evaluated and saved


def read(folder, metric, *, trusted=False):
    """Returns the `Run`s among the folders in a folder, by their names.

    trusted: whether the user trusts the makers of these folders.

    Raises:
      ConfigError: there is none, none has the metric, or one leads elsewhere.
    """
    found, known = [], set()
    for path in sorted(pathlib.Path(folder).glob("*/metrics.jsonl")):
        workdir = path.parent
        trust.check_links(workdir, trusted=trusted)
        config, _ = stored.read_config(workdir)
        lines = metrics.read(path)
        known |= {name for line in lines for name in line}
        found.append(
            Run(
                name=workdir.name,
                seed=config.seed,
                steps=lines[-1]["step"] if lines else 0,
                wanted=config.steps,
                values={
                    line["step"]: line[metric] for line in lines if _is_number(line.get(metric))
                },
                config=dict(dotted.flat(config.to_dict())),
            )
        )
    if not found:
        raise command.ConfigError(f"{folder} holds no folder with a run.")
    if not any(run.values for run in found):
        raise command.ConfigError(
            f"No run in {folder} has --metric={metric}; there are {', '.join(sorted(known))}."
        )
    return found


def settings(runs):
    """Returns {label: runs}: those that differ in the seed alone are together.

    The label holds the fields in which settings differ.
    """
    fields = sorted(
        name
        for name in {name for run in runs for name in run.config}
        if not name.startswith(AGREE) and len({repr(run.config.get(name)) for run in runs}) > 1
    )
    found = {}
    for run in runs:
        label = ", ".join(f"{name}={run.config.get(name)}" for name in fields)
        found.setdefault(label or "all", []).append(run)
    return found


def table(found, metric):
    """Returns settings as Markdown: the last value of the metric, and its mean over seeds."""
    rows = [["setting", "runs", "step", f"{metric} at first", "last, by seed", "mean ± 95 %"]]
    rows.append(["---"] * len(rows[0]))
    for label, runs in found.items():
        runs = sorted((run for run in runs if run.values), key=lambda run: run.seed)
        if not runs:
            continue
        first = [run.values[min(run.values)] for run in runs]
        last = [run.values[max(run.values)] for run in runs]
        steps = sorted({run.steps for run in runs})
        reached = str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        if unfinished := sum(run.steps < run.wanted for run in runs):
            reached += f" ({unfinished} unfinished)"
        by_seed = ", ".join(f"{number(v)} ({r.seed})" for v, r in zip(last, runs, strict=True))
        before, _ = statistics.of_runs(first)
        cells = [label, len(runs), reached, number(before), by_seed]
        rows.append([*map(str, cells), with_half(statistics.of_runs(last))])
    return "\n".join([*(f"| {' | '.join(map(_cell, row))} |" for row in rows), ""])


def charts(found, metric):
    """Returns charts of `experiments.evaluating.plots`: the metric by step, and its last value."""
    series, last = [], {}
    for label, runs in found.items():
        runs = [run for run in runs if run.values]
        if not runs:
            continue
        steps = sorted(set.intersection(*(set(run.values) for run in runs)))
        pairs = [statistics.of_runs([run.values[step] for run in runs]) for step in steps]
        series.append({"label": label, "x": steps, "points": True} | bounded(pairs))
        last[label] = statistics.of_runs([run.values[max(run.values)] for run in runs])
    lines = [
        {"title": metric, "axis": "step", "series": series[start : start + LINES]}
        for start in range(0, len(series), LINES)
    ]
    bars = bounded([*last.values()]) | {"label": "mean of runs"}
    ends = {"title": f"{metric}, last", "bars": [*last], "series": [bars]}
    share = all(0 <= y <= 1 for line in series for y in line["y"])
    return [chart | {"unit": "share" if share else "number"} for chart in (*lines, ends)]


def bounded(pairs):
    """Returns the y of a chart's series, and its bounds where every mean has an interval.

    pairs: [(mean, half of its interval or None)].
    """
    y = [mean for mean, _ in pairs]
    if any(half is None for _, half in pairs):
        return {"y": y}
    low, high = ([mean + sign * half for mean, half in pairs] for sign in (-1, 1))
    return {"y": y, "low": low, "high": high}


def with_half(pair, sign=""):
    """Returns a mean and half its interval as text; sign: "+" shows that of positive means too."""
    mean, half = pair
    return number(mean, sign) + ("" if half is None else f" ± {number(half)}")


def number(value, sign=""):
    return f"{value:{sign}.3f}" if abs(value) >= 5e-4 or not value else f"{value:{sign}.2e}"


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(text):
    """Returns one cell, whatever the maker of a run folder wrote into its config."""
    return command.visible(" ".join(text.split())).replace("|", "\\|")
