"""Trains a config with each combination of some values, or prints what trains them elsewhere.

    python -m experiments.sweep --config=experiments/configs/quickstart.py --out=runs/rates \\
        --sweep='optim.lr=1e-4,3e-4;seed=0:3' --parallel=2
    python -m experiments.sweep --out=runs/rates --table

Every point is checked against the config before the first starts. Its run folder is
OUT/FIELD=VALUE,… and its log OUT/logs/FIELD=VALUE,….log. Started again, the command leaves points
alone that are done and goes on with the others. --print=slurm and --print=gcloud write a script
with these to standard output instead. --table writes OUT/table.md and OUT/plots: mean ± 95 %
interval over the seeds of each setting, of all run folders in OUT.

Exit codes: 0 done, 1 a training failed (the others run), 2 bad flags or config, 75 stopped by a
signal, which every training gets and saves after.
"""

# ruff: noqa: E402  signals are taken before the long imports
from experiments.running import signals

if __name__ == "__main__":
    signals.leave_on(*signals.STOPPING)

import pathlib
import sys

from absl import flags, logging
from ml_collections import config_flags

from experiments.evaluating import plots
from experiments.running import command, fields, places, trust
from experiments.sweeping import jobs, points, results, scripts
from flow_grpo_jax import files

PRINTED = ("slurm", "gcloud")


def main():
    values = flags.FLAGS
    out = pathlib.Path(values.out)
    if values.table:
        sys.stdout.write(tabulate(out, values.metric, trusted=values.trust))
        return
    for name in ("config", "sweep"):
        if not values[name].present:
            raise command.ConfigError(f"--{name} is missing; see --help.")
    fields.check(values.config)
    command.check_out(values.out, folder=True)
    file = config_flags.get_config_filename(values["config"])
    changes = dict(config_flags.get_override_values(values["config"]))
    found = points.make(file, changes, values.sweep)
    left = [point for point in found if not results.is_finished(out / point.name, point.config)]
    logging.info("%d of %d points are to be trained", len(left), len(found))
    if not left:
        return
    if values["print"].value:
        sys.stdout.write(script(values["print"].value, file, left, out))
        return
    sys.exit(launch(file, left, out, parallel=values.parallel))


def launch(file, left, out, *, parallel):
    """Trains points on this machine; returns the exit code."""
    wanted = [
        jobs.Job(
            point.name,
            jobs.training(file, points.overrides(point.changes), out / point.name),
            out / "logs" / f"{point.name}.log",
        )
        for point in left
    ]
    codes = jobs.run(wanted, parallel=parallel)
    ended = [codes.get(job.name) for job in wanted]
    stopped = sum(code in (None, signals.STOPPED) for code in ended)
    failed = len(ended) - ended.count(0) - stopped
    logging.info("%d done, %d failed, %d stopped", ended.count(0), failed, stopped)
    return jobs.exit_code(codes, [job.name for job in wanted])


def script(kind, file, left, out):
    """Returns a script that trains points elsewhere."""
    path = pathlib.Path(file)
    if kind == "gcloud" and path.is_relative_to(places.ROOT):
        file = path.relative_to(places.ROOT)  # the repository lies elsewhere on a TPU
    how = dict(
        name=out.resolve().name,
        config=f"--config={file}",
        workdirs=[out / point.name for point in left],
    )
    overrides = [points.overrides(point.changes) for point in left]
    if kind == "gcloud":
        return scripts.gcloud(overrides, **how)
    flag = flags.FLAGS["parallel"]
    return scripts.slurm(overrides, **how, parallel=flag.value if flag.present else None)


def tabulate(out, metric, *, trusted=False):
    """Writes table and plots of the runs in a folder; returns the table."""
    command.need("plots")
    found = results.settings(results.read(out, metric, trusted=trusted))
    text = results.table(found, metric)
    files.replace_text(out / "table.md", text)
    plots.write(results.charts(found, metric), out / "plots")
    return text


def define_flags():
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("out", None, "Folder of the run folders.")
    flags.DEFINE_string("sweep", None, "FIELD=VALUE,…;FIELD=A:B: values of fields of the config.")
    flags.DEFINE_integer("parallel", 1, "Trainings at once.", 1)
    flags.DEFINE_enum("print", None, PRINTED, "Print a script instead of training.")
    flags.DEFINE_bool("table", False, "Write a table and plots of the runs in --out.")
    flags.DEFINE_string("metric", "eval/success", "What --table compares.")
    flags.DEFINE_bool("trust", False, trust.HELP)


if __name__ == "__main__":
    define_flags()
    command.run(main, required=["out"])
