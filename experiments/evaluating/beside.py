"""Verdicts beside the official score: of math-verify, of a judge, or by another metric.

They are columns of the table; no score depends on them but that of the authors' protocol.
"""

import dataclasses
from collections.abc import Callable

from experiments.running import command, sessions
from flow_grpo_jax import scoring, symbolic

NAMES = tuple(sorted({name for valid in scoring.DECIDERS.values() for name in valid} - {"rule"}))


@dataclasses.dataclass(frozen=True)
class Column:
    """verdicts: (questions, answers) -> the value of each in [0, 1], None where there is none."""

    verdicts: Callable
    close: Callable = lambda: None


def names(config, wanted):
    """Returns {kind of question: names of its columns}.

    wanted: names that are asked for; what decides in the config's `reward` comes along.

    Raises:
      ConfigError: a name is unknown or given twice.
    """
    if set(wanted) - set(NAMES) or len(set(wanted)) < len(wanted):
        raise command.ConfigError(
            f"--beside={','.join(wanted)}: name each of {', '.join(NAMES)} at most once."
        )
    return {
        kind: tuple(
            name for name in NAMES if name in valid and name in (*wanted, config.reward[kind])
        )
        for kind, valid in scoring.DECIDERS.items()
    }


def of(benchmark, names):
    """Returns the names of a benchmark's columns, by `names` of its questions' kinds."""
    found = {name for question in benchmark.questions for name in names[question["kind"]]}
    return tuple(sorted(found))


def check(config, wanted):
    """Refuses `wanted` names for which something is missing, before a model is loaded.

    Raises:
      ConfigError: there is no judge, or no math-verify.
    """
    if "judge" in wanted and config.backends.judge.kind == "none":
        kinds = [kind for kind, decider in config.reward.items() if decider == "judge"]
        asking = f"reward.{kinds[0]}='judge'" if kinds else "--beside=judge"
        raise command.ConfigError(
            f"{asking} needs a judge; set backends.judge.kind, e.g. to 'frozen' or 'server'."
        )
    if "math_verify" in wanted:
        with command.checking_config():
            symbolic.need()


def build(config, answering, wanted):
    """Returns {name: Column} of `wanted` names, which `check` let pass."""
    made = {}
    try:
        for name in wanted:
            made[name] = _verified() if name == "math_verify" else _by(name, config, answering)
    except BaseException:
        close(made)
        raise
    return made


def close(columns):
    for column in columns.values():
        column.close()


def of_scorer(scorer):
    """Returns the Column of a `scoring.Scorer`."""

    def verdicts(questions, answers):
        found, _ = scorer.score(questions, answers)
        return [reward.value if reward.known else None for reward in found]

    return Column(verdicts, scorer.close)


def _by(name, config, answering):
    """Returns the Column of what decides on every kind of question that it can."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for kind, valid in scoring.DECIDERS.items():
            config.reward[kind] = name if name in valid else "rule"
    system = answering.system
    known = dict(engine=system.engine, vocabulary=system.tokenizer)
    return of_scorer(sessions.make_scorer(config, answering.parts.backends, **known))


def _verified():
    with command.checking_config():
        checker = symbolic.Symbolic()

    def verdicts(questions, answers):
        pairs = zip(questions, answers, strict=True)
        return [scoring.math_verdict(question, answer, checker) for question, answer in pairs]

    return Column(verdicts, checker.close)
