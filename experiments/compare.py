"""Trains in several ways, each with several seeds, and compares them at equal generated tokens.

    python -m experiments.compare --config=experiments/configs/quickstart.py --out=runs/credit \\
        --config.eval.every=5 --source=quickstart/3-hop --seeds=0,1,2 \\
        --arm="flow: steps=60" --arm="turns: steps=80 loss.variant=turns"

An arm is a name and the fields of the config that are its own. Its runs are OUT/NAME-seedN. Started
again, the command goes on: runs that are done stay as they are. Held-out success between two
evaluations is interpolated in tokens, so evaluate often. Exit codes: 0 done, 2 bad flags, else that
of the run that failed, 75 where a signal stopped it after saving.
"""

import dataclasses
import json
import math
import pathlib
import shlex
import statistics
import subprocess
import sys

from absl import flags, logging
from ml_collections import config_flags

from experiments.running import command, dataset, fields
from flow_grpo_jax import files, metrics


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
    found = run(
        config_flags.get_config_filename(flag),
        dict(config_flags.get_override_values(flag)),
        values.config,
        arms=[parse(text) for text in values.arm],
        seeds=values.seeds,
        source=values.source,
        tokens=values.tokens,
        out=pathlib.Path(values.out),
    )
    sys.stdout.write(found)


def run(file, changes, config, *, arms, seeds, source, tokens, out):
    """Trains what is not trained yet; writes and returns the table.

    Args:
      file, changes, config: the config's file, {field: value} that the command line changes in it,
        and what comes of both.
      arms: [(name, {field: value})]; the first is what the others are compared with.
      seeds, source, tokens, out: as the flags.
    """
    if len(dict(arms)) < len(arms):
        raise command.ConfigError("Two of --arm have the same name.")
    if source:
        changes = changes | only(source, config, out / "questions")
    curves = {name: [] for name, _ in arms}
    for seed in seeds:
        for name, own in arms:
            workdir = out / f"{name}-seed{seed}"
            train(file, changes | own | {"seed": seed}, workdir)
            curves[name].append(read(workdir))
    found = compare(curves, tokens=tokens)
    text = table(found, seeds)
    files.replace_text(out / "comparison.json", json.dumps(found, indent=2) + "\n")
    files.replace_text(out / "comparison.md", text)
    return text


def parse(text):
    """Returns (name, {field: value}) of an arm such as "turns: loss.variant=turns steps=80"."""
    name, _, rest = text.partition(":")
    pairs = [part.partition("=") for part in shlex.split(rest)]
    if not name.strip().isidentifier() or not all(field and equals for field, equals, _ in pairs):
        raise command.ConfigError(
            f'--arm="{text}" must be a name of letters, digits and _, and fields of the config: '
            '--arm="turns: steps=80 loss.variant=turns"'
        )
    return name.strip(), {field: value for field, _, value in pairs}


def only(source, config, folder):
    """Writes the questions of one source; returns the fields of the config that name the files."""
    found = {"data.format": "auto", "data.held_out_format": ""}  # of what is written here
    for name in ("train", "held_out"):
        rows = [row for row in dataset.read(config, config.data[name]) if row["source"] == source]
        if not rows:
            raise command.ConfigError(f"data.{name} has no question of --source={source}.")
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        found[f"data.{name}"] = str(path.absolute())
    return found


def train(file, changes, workdir):
    """Runs or resumes one training in a process of its own."""
    logging.info("%s", workdir)
    arguments = [f"--config.{field}={value}" for field, value in changes.items()]
    start = [sys.executable, "-m", "experiments.train", f"--config={file}", f"--workdir={workdir}"]
    if code := subprocess.run([*start, *arguments]).returncode:
        sys.exit(code)


def read(workdir):
    """Returns the Curve of a run."""
    tokens, curve = 0.0, Curve([], [], 0)
    lines = metrics.read(workdir / "metrics.jsonl")
    for line in lines:
        tokens += line.get("tokens/generated", 0.0)
        if "eval/success" in line:
            curve.tokens.append(tokens)
            curve.success.append(line["eval/success"])
    if not curve.tokens:
        raise command.ConfigError(f"{workdir} was never evaluated: set data.held_out.")
    return dataclasses.replace(curve, steps=lines[-1]["step"])


def compare(curves, *, tokens):
    """Returns what a comparison found, ready for JSON.

    Args:
      curves: {arm: one Curve a seed}; the first arm is what the others are compared with.
      tokens: at which to compare; 0 is the most that all runs have generated.
    """
    least = min(curve.tokens[-1] for runs in curves.values() for curve in runs)
    if tokens > least:
        raise command.ConfigError(
            f"--tokens={tokens}, but a run has generated {least:.0f} up to its last evaluation. "
            "Give its arm more steps, or compare at fewer tokens."
        )
    tokens, arms = tokens or least, {}
    first = next(iter(curves.values()))
    for name, runs in curves.items():
        success = [curve.at(tokens) for curve in runs]
        paired = [a - b.at(tokens) for a, b in zip(success, first, strict=True)]
        arms[name] = {
            "before": statistics.fmean(curve.success[0] for curve in runs),
            "success": success,
            "mean": spread(success),
            "difference": spread(paired),
            "tokens a step": statistics.fmean(c.tokens[-1] / max(c.steps, 1) for c in runs),
        }
    return {"tokens": tokens, "arms": arms}


def spread(values):
    """Returns [mean, standard error of it]; the error of a single value is None."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return [statistics.fmean(values), error]


def table(found, seeds):
    """Returns the comparison as Markdown."""
    first = next(iter(found["arms"]))
    heads = ["arm", "before", *(f"seed {seed}" for seed in seeds)]
    rows = [[*heads, "mean ± error", f"less {first} ± error", "tokens a step"]]
    rows.append(["---"] * len(rows[0]))
    for name, arm in found["arms"].items():
        numbers = [f"{value:.3f}" for value in (arm["before"], *arm["success"])]
        ends = [_with_error(arm["mean"], ""), _with_error(arm["difference"], "+")]
        if name == first:
            ends[1] = ""
        rows.append([name, *numbers, *ends, f"{arm['tokens a step']:.0f}"])
    lines = [f"Held-out success after {found['tokens']:,.0f} generated tokens.", ""]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


def _with_error(pair, sign):
    mean, error = pair
    return f"{mean:{sign}.3f}" + ("" if error is None else f" ± {error:.3f}")


def define_flags():
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("out", None, "Folder of the runs and of comparison.md and .json.")
    flags.DEFINE_multi_string("arm", None, 'NAME: FIELD=VALUE …, such as "short: steps=20".')
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of each arm.")
    flags.DEFINE_integer("tokens", 0, "Compare here; 0: where the first run ended.", 0)
    flags.DEFINE_string("source", "", "Questions of this source alone.")


if __name__ == "__main__":
    define_flags()
    command.run(main, required=["config", "out", "arm"])
