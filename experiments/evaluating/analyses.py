"""The paper's analyses of runs and evaluations, as charts.

A chart is a dict: "title", "unit" ("share" or "number"), "note", "axis", what x is called, and
"series", lists of {"label", "x", "y"} and perhaps "low" and "high", a 95 % interval. One with
"bars", the names of groups, has for each series one y a group, None where there is none.
"""

import math
import pathlib

from experiments.evaluating import plan, reading
from experiments.reporting import report
from experiments.reporting import trajectories as records
from experiments.running import command

ENDS = 5  # steps whose mean is "before", and as many for "after"


def of_folders(folders):
    """Returns the charts of folders of runs and evaluations.

    Raises:
      ConfigError: one is neither.
    """
    runs, evaluations = [], []
    for folder in map(pathlib.Path, folders):
        name = folder.resolve().name
        if (folder / "results.json").exists():
            evaluations.append((name, reading.read(folder)[0]))
        elif (folder / "metrics.jsonl").exists():
            metrics, _ = report.read_metrics(folder / "metrics.jsonl")
            listing = records.collect(folder / "trajectories", text_budget=0)
            runs.append((name, report.with_lengths(metrics, listing.steps)))
        else:
            raise command.ConfigError(
                f"{folder} holds neither a run (metrics.jsonl) nor an evaluation (results.json)."
            )
    names = [name for name, _ in runs + evaluations]
    if len(set(names)) < len(names):
        raise command.ConfigError(
            f"Folders of one name cannot be told apart in plots: {', '.join(sorted(names))}."
        )
    if len(evaluations) == 1:
        evaluations = [("", evaluations[0][1])]
    charts = [*of_training(runs), *tool_shares(runs, evaluations), *of_budgets(evaluations)]
    return charts + [*ablation(evaluations), *sizes(evaluations)]


def of_training(runs):
    """Returns curves over the steps of runs.

    runs: [(name, [metrics of a step])].
    """
    told = (
        ("Reward", "share", "Mean outcome of the sampled trajectories.", "reward/mean"),
        ("Tool-call errors", "share", "Turns without a result.", "rollout/tool_error_rate"),
        ("Turns", "number", "Planner turns of a trajectory.", "rollout/turns"),
        ("Response length", "number", "Planner's tokens in a turn.", "rollout/response_tokens"),
        ("Held-out success", "share", "Questions never trained on.", "eval/success"),
    )
    charts = []
    for title, unit, note, metric in told:
        series = [
            _line(name, [(m["step"], m[metric]) for m in ms if metric in m]) for name, ms in runs
        ]
        charts.append(_chart(title, unit, note, "step", series))
    return [chart for chart in charts if chart["series"]]


def tool_shares(runs, evaluations):
    """Returns bars of the tools' shares of the turns, before and after training."""
    shares = {}
    for name, metrics in runs:
        trained = [one for one in metrics if any(n.startswith("tool/") for n in one)]
        for label, part in (("first", trained[:ENDS]), ("last", trained[-ENDS:])):
            if part:
                title = f"{name}, {label} {len(part)} steps"
                shares[title] = _mean_shares([_of_step(one) for one in part])
    for name, values in evaluations:
        for mode in ("untrained", "trained"):
            if rows := [row for row in _largest(values) if row["mode"] == mode]:
                shares[_joined(name, mode)] = _mean_shares([row["tool_shares"] for row in rows])
    tools = sorted({tool for found in shares.values() for tool in found})
    series = [{"label": n, "y": [found.get(t, 0.0) for t in tools]} for n, found in shares.items()]
    note = "Share of the planner's turns that went to each tool; none: an unreadable plan."
    return [_bars("Tools chosen", note, tools, series)] if tools else []


def of_budgets(evaluations):
    """Returns accuracy and mean turns against the turn budget, one chart a benchmark.

    evaluations: [(name, results dict)]; a name may be "" where there is one.
    """
    charts = []
    benchmarks = dict.fromkeys(row["benchmark"] for _, v in evaluations for row in v["rows"])
    for benchmark in benchmarks:
        lines = {}
        for name, values in evaluations:
            for row in values["rows"]:
                if row["benchmark"] == benchmark and row["mode"] != "bare":
                    lines.setdefault(_joined(name, _planner(row)), []).append(row)
        lines = {label: rows for label, rows in lines.items() if len(rows) > 1}
        if not lines:
            continue
        scored, turns = [], []
        for label, rows in lines.items():
            rows = sorted(rows, key=lambda row: row["max_turns"])
            budgets = [row["max_turns"] for row in rows]
            scores = [row["scores"][row["official"]] for row in rows]
            bounds = {side: [score[side] for score in scores] for side in ("low", "high")}
            values = [score["value"] for score in scores]
            scored.append(_line(label, zip(budgets, values, strict=True)) | bounds)
            used = [row["turns"] for row in rows]
            turns.append(_line(label, zip(budgets, used, strict=True)))
        note = "The official score of every question; 95 % interval."
        charts.append(_chart(f"{benchmark}: score", "share", note, "turns", scored))
        note = "Planner turns that a trajectory used."
        charts.append(_chart(f"{benchmark}: turns used", "number", note, "turns", turns))
    return charts


def ablation(evaluations):
    """Returns bars of the score by planner, at the largest budget, beside the paper's figures."""
    rows_of = {}
    for name, values in evaluations:
        for row in _largest(values):
            rows_of.setdefault(_joined(name, _planner(row)), {})[row["benchmark"]] = row
    benchmarks = list(dict.fromkeys(name for rows in rows_of.values() for name in rows))
    series = []
    for label, rows in rows_of.items():
        found = [rows[b]["scores"][rows[b]["official"]] if b in rows else None for b in benchmarks]
        pick = lambda side, found=found: [one and one[side] for one in found]
        sides = {"y": pick("value"), "low": pick("low"), "high": pick("high")}
        series.append({"label": label, **sides})
    for mode in ("untrained", "trained"):
        figures = [plan.paper_figure(name, mode) for name in benchmarks]
        if any(figure is not None for figure in figures):
            series.append({"label": f"paper (theirs, 7B), {mode}", "y": figures})
    note = "Official scores with 95 % intervals; the paper's figures are not measured here."
    return [_bars("Planner", note, benchmarks, series)] if benchmarks else []


def sizes(evaluations):
    """Returns the mean score against the size of the model, where evaluations differ in it."""
    lines = {}
    for _, values in evaluations:
        if values.get("parameters"):
            for label, score in _mean_scores(values).items():
                lines.setdefault(label, []).append((values["parameters"] / 1e9, score))
    series = [_line(label, sorted(points)) for label, points in lines.items()]
    series = [line for line in series if len(set(line["x"])) > 1]
    note = "Mean over the benchmarks, largest turn budget."
    chart = _chart("Size", "share", note, "10⁹ parameters", series)
    return [chart] if series else []


def _mean_scores(values):
    scores = {}
    for row in _largest(values):
        value = row["scores"][row["official"]]["value"]
        scores.setdefault(_planner(row), []).append(value)
    return {label: sum(found) / len(found) for label, found in scores.items()}


def _largest(values):
    """Returns the rows of the largest turn budget of each benchmark and planner."""
    found = {}
    for row in values["rows"]:
        place = row["benchmark"], row["mode"], row["protocol"]
        if place not in found or row["max_turns"] > found[place]["max_turns"]:
            found[place] = row
    return list(found.values())


def _of_step(metrics):
    return {
        name.split("/")[1]: value
        for name, value in metrics.items()
        if name.startswith("tool/") and name.endswith("/share")
    }


def _mean_shares(parts):
    names = {name for part in parts for name in part}
    return {name: sum(part.get(name, 0.0) for part in parts) / len(parts) for name in names}


def _planner(row):
    return row["mode"] if row["protocol"] == "honest" else f"{row['mode']}, authors'"


def _joined(name, label):
    return f"{name}, {label}" if name else label


def _line(label, points):
    points = [(x, y) for x, y in points if math.isfinite(y)]
    return {"label": label, "x": [x for x, _ in points], "y": [y for _, y in points]}


def _chart(title, unit, note, axis, series):
    series = [line | {"points": axis != "step"} for line in series if line["x"]]
    return {"title": title, "unit": unit, "note": note, "axis": axis, "series": series}


def _bars(title, note, groups, series):
    return {"title": title, "unit": "share", "note": note, "bars": groups, "series": series}
