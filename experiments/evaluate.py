"""Evaluates a planner on benchmarks, and puts an honest table beside the paper's.

    python -m experiments.evaluate --config=FILE --benchmarks=gaia,aime24,mine --data=FOLDER \\
        --out=DIR --workdir=runs/a

Every finished trajectory is on the disk at once: the same command goes on after a kill, and asks
nothing twice. docs/evaluate.md says what the table holds.

Exit codes: 0 done, 1 error, 2 bad flags or config, 75 stopped by a signal.
"""

# ruff: noqa: E402  signals are taken before the long imports
from experiments.running import signals

if __name__ == "__main__":
    signals.leave_on(*signals.STOPPING)

import dataclasses
import pathlib
import sys

from absl import flags, logging
from ml_collections import config_flags

from experiments.evaluating import (
    analyses,
    beside,
    identity,
    models,
    output,
    plan,
    plots,
    questions,
    run,
    table,
)
from experiments.evaluating.ledger import Ledger
from experiments.running import command, fields, folder, stored, trust
from flow_grpo_jax import rollout


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to evaluate; the meanings are those of the flags."""

    benchmarks: tuple
    data: str
    trials: int = 1
    modes: tuple = ()
    protocols: tuple = ("honest",)
    max_turns: tuple = ()
    questions: int = 0
    against: str | None = None
    count_unsupported: bool = False
    beside: tuple = ()


def evaluate(config, out, wanted, source, *, should_stop=lambda: False):
    """Evaluates, or goes on with what `out` holds; returns the results dict.

    source: `models.Source`, the trained planner.

    Raises:
      rollout.Stopped: `should_stop` said so.
    """
    config = models.adapted(config, source)
    modes = wanted.modes or tuple(mode for mode in source.modes if mode != "bare")
    if absent := sorted(set(modes) - set(source.modes)):
        raise command.ConfigError(
            f"--modes={','.join(absent)}: there are no such weights. A trained planner is given by "
            "--workdir or --model; a server has one model, the trained one."
        )
    arms = plan.arms(
        config,
        modes=modes,
        protocols=wanted.protocols,
        budgets=wanted.max_turns,
        trials=wanted.trials,
    )
    names = beside.names(config, wanted.beside)
    found = questions.read(wanted.benchmarks, wanted.data, config, most=wanted.questions)
    verdicts = sorted({name for benchmark in found for name in beside.of(benchmark, names)})
    beside.check(config, verdicts)
    if wanted.against:
        pairing = dict(config=config, trials=wanted.trials, benchmarks=found, arms=arms)
        identity.check_against(wanted.against, **pairing)
    with folder.held(out) as check:
        should_end = lambda: check() or should_stop()
        about = identity.read(out)
        identity.check(about, out, config=config, benchmarks=found, arms=arms)
        ledger = Ledger(out)
        left, total = run.missing(found, arms, wanted.trials, ledger)
        logging.info("%d of %d trajectories are to be made", left, total)
        answering, columns = None, {}
        if left or verdicts or not identity.same_source(about, source):
            if source.step is None and source.workdir:
                known = about.get("weights", {}).get("trained", {}).get("step")
                source = dataclasses.replace(source, step=known)
            answering = models.build(config, source)
        try:
            if answering:
                columns = beside.build(config, answering, verdicts)
                identity.check_weights(about, out, answering.weights)
                how = dict(config=config, benchmarks=found, arms=arms, answering=answering)
                about = identity.write(out, about, **how)
                how = dict(answering=answering, ledger=ledger, config=config)
                run.run(found, arms, wanted.trials, **how, should_stop=should_end)
            return output.write(
                out,
                about=about,
                benchmarks=found,
                arms=arms,
                trials=wanted.trials,
                ledger=ledger,
                config=config,
                names=names,
                columns=columns,
                against=wanted.against,
                count_unsupported=wanted.count_unsupported,
            )
        finally:
            beside.close(columns)
            if answering:
                answering.close()


def choose_config(config, source, *, trusted=False):
    """Returns the config given, or the run's own.

    trusted: whether the user trusts the maker of the run.
    """
    if source.workdir:
        trust.check_links(source.workdir, trusted=trusted)
    if config is not None:
        fields.check(config)
        return config
    if not source.workdir:
        raise command.ConfigError("--config is missing; only a run (--workdir) has one of its own.")
    config, _ = stored.open_config(
        source.workdir,
        uses=lambda config: ("model", "tools", "backends", "compile_cache"),
        trusted=trusted,
        instead="Or give a config of your own instead: --config=FILE.",
    )
    return config


def analyse(folders, out):
    """Writes plots of runs and evaluations to a folder; returns the paths."""
    command.need("plots")
    return plots.write(analyses.of_folders(folders), pathlib.Path(out) / "plots")


def define_flags():
    config_flags.DEFINE_config_file(
        "config", lock_config=True, help_string="Limits, tools, model; else those of --workdir."
    )
    flags.DEFINE_list(
        "benchmarks", None, f"Of {', '.join(plan.PAPER)}; or FILE without its ending, in --data."
    )
    flags.DEFINE_string("data", None, "Folder with the questions' files.")
    flags.DEFINE_string("out", None, "Folder to write; an evaluation in it goes on.")
    flags.DEFINE_string("workdir", None, "Run whose planner is evaluated.")
    flags.DEFINE_integer("step", None, "Its checkpoint; the newest by default.", 0)
    flags.DEFINE_string("model", None, "Planner in a Hugging Face folder; its name with --url.")
    flags.DEFINE_string("url", None, "Server of OpenAI's API that answers for every module.")
    flags.DEFINE_string("api_key_variable", None, "Environment variable with the server's key.")
    flags.DEFINE_bool("trust", False, trust.HELP)
    flags.DEFINE_float("temperature", None, "Of the planner, instead of eval.temperature.", 0.0)
    flags.DEFINE_integer("trials", 1, "Trajectories of each question: avg@k, pass@k.", 1)
    flags.DEFINE_list("modes", [], f"Of {', '.join(plan.MODES)}; all weights there are by default.")
    flags.DEFINE_list("max_turns", [], "Turn budgets, from one run: 3,5,7,10. The config's else.")
    flags.DEFINE_list("protocol", ["honest"], "honest; authors adds rows by the paper's settings.")
    flags.DEFINE_integer("questions", 0, "Only the first N of each benchmark; 0 is all.", 0)
    flags.DEFINE_string("against", None, "Another evaluation, for paired differences.")
    flags.DEFINE_bool("count_unsupported", False, "Questions with attachments count as not solved.")
    flags.DEFINE_list("beside", [], f"Verdicts beside the scores, of {', '.join(beside.NAMES)}.")
    flags.DEFINE_bool("prepare", False, "Show three questions of each and counts; load no model.")
    flags.DEFINE_list("analyse", [], "Only plot these runs and evaluations, to --out/plots.")


def main():
    values = flags.FLAGS
    if values.analyse:
        _need("out")
        for path in analyse(values.analyse, values.out):
            logging.info("wrote %s", path)
        return
    _need("benchmarks", "data")
    source = models.Source(
        workdir=values.workdir,
        step=values.step,
        model=values.model,
        url=values.url,
        api_key_variable=values.api_key_variable,
    )
    config = choose_config(values.config, source, trusted=values.trust)
    if values.temperature is not None:
        config.eval.temperature = values.temperature
        fields.check(config)
    if values.prepare:
        for name in values.benchmarks:
            [found] = questions.read([name], values.data, config, most=values.questions)
            sys.stdout.write(questions.prepared(found) + "\n")
        return
    _need("out")
    command.check_out(values.out, folder=True)
    wanted = Wanted(
        benchmarks=tuple(values.benchmarks),
        data=values.data,
        trials=values.trials,
        modes=tuple(values.modes),
        protocols=tuple(dict.fromkeys(["honest", *values.protocol])),
        max_turns=_whole_numbers("max_turns", values.max_turns),
        questions=values.questions,
        against=values.against,
        count_unsupported=values.count_unsupported,
        beside=tuple(values.beside),
    )
    stop = signals.StopSignal(*signals.STOPPING, early=signals.leave)
    try:
        found = evaluate(config, values.out, wanted, source, should_stop=stop)
    except rollout.Stopped:
        logging.info("stopped by a signal; run the same command again to go on")
        sys.exit(signals.STOPPED)
    sys.stdout.write("\n" + table.terminal(found) + f"\nreport  {values.out}/report.html\n")
    sys.stdout.flush()


def _need(*names):
    missing = [f"--{name}" for name in names if not flags.FLAGS[name].present]
    if missing:
        raise command.ConfigError(f"{' and '.join(missing)} must be given; see --help.")


def _whole_numbers(flag, texts):
    if wrong := [text for text in texts if not (text.isascii() and text.isdigit())]:
        raise command.ConfigError(f"--{flag}={','.join(wrong)} must be whole numbers: 3,5,7,10.")
    return tuple(map(int, texts))


if __name__ == "__main__":
    define_flags()
    command.run(main)
