"""Trains in several ways, each with several seeds, and compares them at equal generated tokens.

    python -m experiments.compare --config=experiments/configs/quickstart.py --out=runs/credit \\
        --config.steps=40 --config.eval.every=5 --source=quickstart/3-hop --tokens=400000 \\
        --seeds=0,1,2 --arm=flow --arm="turns: loss.variant=turns"

An arm is a name and the fields of the config that are its own. Its runs are OUT/NAME-seedN. With
--tokens each goes on after its steps until it has generated so many. Held-out success between two
evaluations is interpolated in tokens, so evaluate often. Intervals are Student's, 95 %, over the
seeds; the difference to the first arm is paired by seed. All held-out questions are the same.

The table and the plots are written after every seed. Started again, the command goes on: runs that
are done stay as they are. Needs the extra `plots`.
Exit codes: 0 done, 2 bad flags, else that of the run that failed, 75 where a signal stopped it,
after saving if a training ran.
"""

# ruff: noqa: E402  signals are taken before the long imports
from experiments.running import signals

if __name__ == "__main__":
    signals.leave_on(*signals.STOPPING)

import dataclasses
import json
import math
import pathlib
import shlex
import sys

from absl import flags, logging
from ml_collections import config_flags

from experiments.evaluating import plots
from experiments.running import command, dataset, fields, stored
from experiments.sweeping import jobs, points, results
from flow_grpo_jax import files, metrics, statistics

LINES = 8  # in a chart
PLACES = 40  # where a line is drawn
OF_FILES = {"data.format": "auto", "data.held_out_format": ""}  # of what --source writes


@dataclasses.dataclass(frozen=True)
class Curve:
    """Held-out success of a run against the tokens that its planner has generated."""

    tokens: list
    success: list
    steps: int

    def at(self, tokens):
        """Returns the success at a number of tokens, interpolated between evaluations."""
        before = max(i for i, each in enumerate(self.tokens) if each <= tokens)
        after = min(before + 1, len(self.tokens) - 1)
        span = self.tokens[after] - self.tokens[before]
        part = (tokens - self.tokens[before]) / span if span else 0.0
        return (1 - part) * self.success[before] + part * self.success[after]


def main():
    values, flag = flags.FLAGS, flags.FLAGS["config"]
    fields.check(values.config)
    command.check_out(values.out, folder=True)
    command.need("plots")
    found = run(
        config_flags.get_config_filename(flag),
        dict(config_flags.get_override_values(flag)),
        arms=[parse(text) for text in values.arm],
        seeds=values.seeds,
        source=values.source,
        tokens=values.tokens,
        out=pathlib.Path(values.out),
    )
    sys.stdout.write(found)


def run(file, changes, *, arms, seeds, source, tokens, out):
    """Trains what is not trained yet; writes the results after every seed, returns the table.

    Args:
      file, changes: the config's file, and {field: value} that the command line changes in it.
      arms: [(name, {field: value})]; the first is what the others are compared with.
      seeds, source, tokens, out: as the flags.
    """
    if len(dict(arms)) < len(arms):
        raise command.ConfigError("Two of --arm have the same name.")
    if len(set(seeds)) < len(seeds) or not all(seed.isdecimal() for seed in seeds):
        raise command.ConfigError(f"--seeds={','.join(seeds)} must be different whole numbers.")
    if any("seed" in each for each in (changes, *(own for _, own in arms))):
        raise command.ConfigError("The field seed is set; give --seeds, which every arm has.")
    configs = [points.resolved(file, changes | own, f"--arm={name}") for name, own in arms]
    if not all(config.data.held_out and config.steps for config in configs):
        raise command.ConfigError(
            "There is nothing to compare: set data.held_out, and steps above 0, in every arm."
        )
    if source:
        check_source(source, arms, configs)
        changes = changes | only(source, configs[0], out / "questions")
    curves = {name: [] for name, _ in arms}
    for done, seed in enumerate(seeds, start=1):
        for name, own in arms:
            whole, workdir = changes | own | {"seed": seed}, out / f"{name}-seed{seed}"
            curves[name].append(train(file, whole, workdir, tokens=tokens))
        text = write(curves, seeds[:done], out, tokens=tokens)
    return text


def parse(text):
    """Returns (name, {field: value}) of an arm such as "turns: loss.variant=turns steps=80"."""
    name, _, rest = text.partition(":")
    try:
        pairs = [part.partition("=") for part in shlex.split(rest)]
    except ValueError as error:  # a quote that is not closed
        raise command.ConfigError(f'--arm="{text}": {error}.') from error
    if not name.strip().isidentifier() or not all(field and equals for field, equals, _ in pairs):
        raise command.ConfigError(
            f'--arm="{text}" must be a name of letters, digits and _, and fields of the config: '
            '--arm="turns: steps=80 loss.variant=turns"'
        )
    return name.strip(), {field: value for field, _, value in pairs}


def check_source(source, arms, configs):
    """Raises ConfigError where an arm would be asked other questions than those of a source."""
    for (name, own), config in zip(arms, configs, strict=True):
        if both := sorted({*OF_FILES, "data.train", "data.held_out"} & own.keys()):
            raise command.ConfigError(
                f"--arm={name} sets {both[0]}, and --source={source} gives all arms the questions "
                "of one file. Leave one of the two out."
            )
        if config.data.environment.id:
            raise command.ConfigError(
                f"--source={source} takes questions of files alone, and "
                f"data.environment.id={config.data.environment.id} adds others in --arm={name}. "
                "Leave one of the two out."
            )


def only(source, config, folder):
    """Writes the questions of one source; returns the fields of the config that name the files."""
    found = dict(OF_FILES)
    for name in ("train", "held_out"):
        rows = [row for row in dataset.read(config, config.data[name]) if row["source"] == source]
        if not rows:
            raise command.ConfigError(f"data.{name} has no question of --source={source}.")
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        found[f"data.{name}"] = str(path.absolute())
    return found


def train(file, changes, workdir, *, tokens):
    """Runs or resumes one training, in processes of its own; returns its Curve.

    tokens: after the steps of its config it goes on until it has generated so many.
    """
    config = points.resolved(file, changes, workdir.name)
    stored.check_config(config, workdir)
    curve, steps = read(workdir), config.steps
    while curve.steps < steps or curve.tokens[-1] < tokens:
        if curve.steps >= steps:
            # A little more: responses may grow shorter.
            share = 1.02 * tokens / max(curve.tokens[-1], 1)
            steps = max(curve.steps + 1, math.ceil(curve.steps * share))
        logging.info("%s: %d steps", workdir, steps)
        whole = points.overrides(changes | {"steps": steps})
        if code := launch(jobs.training(file, whole, workdir)):
            sys.exit(code)
        curve = read(workdir)
        if not any(curve.tokens[1:]):
            raise command.ConfigError(
                f"{workdir} has no evaluation after generated tokens: set data.held_out, and "
                "steps above 0."
            )
    return curve


def launch(arguments):
    """Runs a command; returns its exit code, STOPPED where a signal came and it has not failed.

    The first signal to stop is passed on to it; it may have just ended.
    """
    job, stopped = jobs.Job(" ".join(arguments), arguments, None), []
    code = jobs.run([job], parallel=1, on_stop=stopped.append).get(job.name, signals.STOPPED)
    return code or (signals.STOPPED if stopped else 0)


def read(workdir):
    """Returns the Curve of a run; one of -1 steps where nothing was trained yet."""
    path = workdir / "metrics.jsonl"
    tokens, curve, step = 0.0, Curve([], [], -1), -1
    for line in metrics.read(path) if path.exists() else ():
        step = line["step"]
        tokens += line.get("tokens/generated", 0.0)
        if "eval/success" in line:
            curve.tokens.append(tokens)
            curve.success.append(line["eval/success"])
    return dataclasses.replace(curve, steps=step)


def write(curves, seeds, out, *, tokens):
    """Writes the comparison of the seeds so far; returns the table."""
    found = compare(curves, tokens=tokens)
    text = table(found, seeds)
    files.replace_text(out / "comparison.json", json.dumps(found, indent=2) + "\n")
    files.replace_text(out / "comparison.md", text)
    plots.write(charts(curves, found), out / "plots")
    return text


def compare(curves, *, tokens):
    """Returns what a comparison found, ready for JSON.

    Args:
      curves: {arm: one Curve a seed}; the first arm is what the others are compared with.
      tokens: at which to compare; 0 is the most that all runs have generated.
    """
    least = min(curve.tokens[-1] for runs in curves.values() for curve in runs)
    tokens, arms = tokens or least, {}
    first = next(iter(curves.values()))
    for name, runs in curves.items():
        success = [curve.at(tokens) for curve in runs]
        paired = [a - b.at(tokens) for a, b in zip(success, first, strict=True)]
        a_step = [curve.tokens[-1] / max(curve.steps, 1) for curve in runs]
        arms[name] = {
            "before": statistics.of_runs([curve.success[0] for curve in runs])[0],
            "success": success,
            "mean": statistics.of_runs(success),
            "difference": statistics.of_runs(paired),
            "tokens a step": statistics.of_runs(a_step)[0],
        }
    return {"tokens": tokens, "arms": arms}


def table(found, seeds):
    """Returns the comparison as Markdown."""
    first = next(iter(found["arms"]))
    heads = ["arm", "before", *(f"seed {seed}" for seed in seeds)]
    rows = [[*heads, "mean ± 95 %", f"less {first} ± 95 %", "tokens a step"]]
    rows.append(["---"] * len(rows[0]))
    for name, arm in found["arms"].items():
        numbers = [f"{value:.3f}" for value in (arm["before"], *arm["success"])]
        ends = [results.with_half(arm["mean"]), results.with_half(arm["difference"], "+")]
        if name == first:
            ends[1] = ""
        rows.append([name, *numbers, *ends, f"{arm['tokens a step']:.0f}"])
    lines = [f"Held-out success after {found['tokens']:,.0f} generated tokens.", ""]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


def charts(curves, found):
    """Returns charts of `experiments.evaluating.plots`: success by tokens, and at the end.

    Each chart of lines has the first arm and up to seven others.
    """
    end, (first, *others) = found["tokens"], curves
    places = [end * i / PLACES for i in range(PLACES + 1)]
    lines = []
    for start in range(0, max(len(others), 1), LINES - 1):
        names = [first, *others[start : start + LINES - 1]]
        series = [
            {"label": name, "x": places, "points": False}
            | results.bounded([statistics.of_runs([c.at(x) for c in curves[name]]) for x in places])
            for name in names
        ]
        lines.append({"title": "Held-out success", "axis": "generated tokens", "series": series})
    bars = results.bounded([arm["mean"] for arm in found["arms"].values()]) | {
        "label": "mean of seeds"
    }
    title = f"Held-out success after {end:,.0f} tokens"
    ends = {"title": title, "bars": list(curves), "series": [bars]}
    return [chart | {"unit": "share"} for chart in (*lines, ends)]


def define_flags():
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("out", None, "Folder of the runs, of comparison.md and .json, and plots.")
    flags.DEFINE_multi_string("arm", None, 'NAME: FIELD=VALUE …, such as "short: steps=20".')
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of each arm.")
    flags.DEFINE_integer("tokens", 0, "Train up to these, compare there; 0: where a run ended.", 0)
    flags.DEFINE_string("source", "", "Questions of this source alone.")


if __name__ == "__main__":
    define_flags()
    command.run(main, required=["config", "out", "arm"])
