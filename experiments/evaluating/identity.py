"""What an evaluation's folder was begun with; its ledger goes on only with the same.

`evaluation.json` holds the config, the seed, the questions' hashes, the weights' fingerprints and
the tools. Further benchmarks, modes, budgets and trials may be added to a folder at any time.
"""

import json
import pathlib

from experiments.evaluating import exports
from experiments.running import command, dotted, stored, versions
from flow_grpo_jax import files
from flow_grpo_jax.bounds import json_text

NAME = "evaluation.json"
# Sections of a config that decide on trajectories and verdicts; others are not kept.
KEPT = ("seed", "model", "tools", "rollout", "engine", "backends", "eval", "reward")
# Of these, what may change: it decides on no trajectory, or is part of a trajectory's key.
FREE = ("reward", "backends.judge", "eval.every", "eval.questions", "tools.workers")
FREE += tuple(
    f"rollout.{name}"
    for name in ("max_turns", "temperature", "questions", "group", "in_flight", "infra_retries")
)
FREE += ("rollout.min_valid_share", "rollout.empty_steps")


def read(folder):
    """Returns what a folder was begun with, {} of a new one.

    Raises:
      ConfigError: the file is damaged.
    """
    path = pathlib.Path(folder) / NAME
    if not path.exists():
        return {}
    try:
        found = json_text.read_object(path)
        dict(dotted.flat(found["config"])), found["questions"].items(), found["weights"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise command.ConfigError(f"{path} is damaged; use a new --out.") from error
    return found


def check(before, folder, *, config, benchmarks):
    """Refuses to go on in a folder with another config or other questions.

    Raises:
      ConfigError: names what differs.
    """
    if not before:
        return
    old, new = (_deciding(values) for values in (before["config"], _kept(config)))
    if changed := sorted(n for n in {**old, **new} if old.get(n) != new.get(n)):
        raise command.ConfigError(
            f"{folder} holds an evaluation with another config; it differs in "
            f"{', '.join(changed)}. Use a new --out."
        )
    for benchmark in benchmarks:
        known = before["questions"].get(benchmark.name, benchmark.hash)
        if known != benchmark.hash:
            raise command.ConfigError(
                f"{folder} evaluated other questions of {benchmark.name} than {benchmark.path} "
                "holds now (or another --questions). Use a new --out."
            )


def same_source(before, source):
    """Whether a folder's weights are named as a `models.Source` does; only then they go unread."""
    known = before.get("weights", {}).get("trained", {})
    given = source.url or source.workdir or source.model
    if source.url and known.get("model") != source.model:
        return False
    step = source.step is None or source.step == known.get("step")
    return bool(before) and (given is None or known.get("source") == given) and step


def check_weights(before, folder, weights):
    """Refuses weights other than those that the folder's trajectories are of."""
    for mode, facts in weights.items():
        known = before.get("weights", {}).get(mode, facts)
        same = "fingerprint" if "fingerprint" in facts else "model"
        if known.get(same) != facts[same]:
            raise command.ConfigError(
                f"{folder} evaluated other {mode} weights: {_told(known)}, now {_told(facts)}. "
                "Use a new --out, or give the --step of before."
            )


def write(folder, before, *, config, benchmarks, answering):
    """Writes what the folder's trajectories are of; returns it."""
    hashes = {benchmark.name: benchmark.hash for benchmark in benchmarks}
    found = {
        "version": 1,
        **of_config(config),
        "questions": before.get("questions", {}) | hashes,
        "weights": before.get("weights", {}) | answering.weights,
        "parameters": answering.parameters,
        "tools": exports.describe(answering.system.tools),
        "sandbox": _sandbox(answering.system.tools),
        "versions": versions.installed(),
    }
    path = pathlib.Path(folder) / NAME
    files.replace_text(path, json.dumps(found, indent=2) + "\n")
    return found


def of_config(config):
    """Returns what is kept of a config, its hash and the seed, JSON-able."""
    kept = _kept(config)
    return {"config_hash": stored.hash_of(kept), "config": kept, "seed": config.seed}


def _kept(config):
    return {name: json.loads(json.dumps(_plain(config[name]))) for name in KEPT}


def _deciding(values):
    """Returns {dotted name: value} of what must stay."""
    return {
        name: value
        for name, value in dotted.flat(values)
        if not any(f"{name}.".startswith(f"{free}.") for free in FREE)
    }


def _plain(value):
    return value.to_dict() if hasattr(value, "to_dict") else value


def _sandbox(tools):
    return dict(tools["python_coder"].facts) if "python_coder" in tools else {}


def _told(facts):
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
