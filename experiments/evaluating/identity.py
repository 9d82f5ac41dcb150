"""What an evaluation's folder was begun with; its ledger goes on only with the same.

`evaluation.json` holds the config, the seed, the questions' hashes, the weights' fingerprints,
how the planners were sampled and the tools. Further benchmarks, modes, budgets and trials may be
added to a folder at any time.
"""

import json
import pathlib

from experiments.configs import common
from experiments.evaluating import exports, plan, reading
from experiments.running import backends, command, dotted, stored, versions
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
# And what two evaluations that are compared may each have of its own: models, where and how they
# run. Limits, sampling, tools and prompts are the same.
COMPARED = ("model", "engine") + tuple(
    f"backends.{module}.{name}"
    for module in backends.ROLES
    for name in ("kind", "url", "model", "api_key_variable", "seconds", "cache", "token_field")
)
COMPARED += tuple(f"backends.{module}.limits" for module in backends.ROLES)


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
        [dict(one) for one in found.get("sampling", {}).values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise command.ConfigError(f"{path} is damaged; use a new --out.") from error
    return found


def check(before, folder, *, config, benchmarks, arms):
    """Refuses to go on in a folder with another config, other questions or planners.

    Raises:
      ConfigError: names what differs.
    """
    if not before:
        return
    if changed := changes(before["config"], config):
        raise command.ConfigError(
            f"{folder} holds an evaluation with another config; it differs in "
            f"{', '.join(changed)}. Use a new --out."
        )
    for benchmark in benchmarks:
        known = before["questions"].get(benchmark.name, benchmark.hash)
        if known != benchmark.hash:
            raise command.ConfigError(
                f"{folder} evaluated other questions of {benchmark.name} than {benchmark.path} "
                "holds now, or another --questions, which counts rows of the file; in an earlier "
                "version it counted those without attachments. Use a new --out."
            )
    if other := _other_sampling(before, arms):
        raise command.ConfigError(f"{folder} sampled otherwise: {other}. Use a new --out.")


def check_against(folder, *, config, trials, benchmarks, arms):
    """Refuses another evaluation that this one cannot be paired with.

    Raises:
      ConfigError: it has another seed or number of trials, other questions, anything else in its
        config than other models, or planners that were sampled in another way.
    """
    values, _ = reading.read(folder)
    for name, now in (("seed", config.seed), ("trials", trials)):
        if values[name] != now:
            raise command.ConfigError(
                f"--against={folder} has {name} {values[name]}, this evaluation {now}; the "
                "differences would not be paired."
            )
    if changed := changes(values["config"], config, compared=True):
        told = ", ".join(f"{name} ({old}, now {new})" for name, (old, new) in changed.items())
        raise command.ConfigError(
            f"--against={folder} has another config; it differs in {told}. Compare evaluations "
            "that differ in the planner alone."
        )
    hashes = {benchmark.name: benchmark.hash for benchmark in benchmarks}
    shared = [name for name in hashes if name in values["questions"]]
    other = [name for name in shared if values["questions"][name] != hashes[name]]
    if other or not shared:
        what = f"other questions of {', '.join(other)}" if other else "none of these benchmarks"
        raise command.ConfigError(f"--against={folder} has {what}; nothing can be paired.")
    rows = {(row["mode"], row["protocol"]) for row in values["rows"]}
    shared = [arm for arm in arms if (arm.mode, arm.protocol) in rows]
    if other := _other_sampling(values, shared):
        raise command.ConfigError(
            f"--against={folder} sampled otherwise: {other}; the differences would not be paired."
        )


def changes(before, config, *, compared=False):
    """Returns {dotted name: (value before, value now)} of what decides on trajectories.

    before: of `of_config`, the "config" of another evaluation. A field that it lacks, because an
      earlier version wrote it, has its default.
    compared: whether only what must not differ between two that are compared counts.
    """
    free = (*FREE, *COMPARED) if compared else FREE
    old, new = (_deciding(values, free) for values in (_whole(before), _flat(_kept(config))))
    names = sorted({**old, **new})
    return {
        name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)
    }


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


def write(folder, before, *, config, benchmarks, arms, answering):
    """Writes what the folder's trajectories are of; returns it."""
    hashes = {benchmark.name: benchmark.hash for benchmark in benchmarks}
    sampling = {"sampling": before.get("sampling", {}) | {arm.name: _sampling(arm) for arm in arms}}
    if before and "sampling" not in before:
        sampling = {}  # what an earlier version has asked for stays as `_other_sampling` knows it
    found = {
        "version": 1,
        **of_config(config),
        "questions": before.get("questions", {}) | hashes,
        "weights": before.get("weights", {}) | answering.weights,
        **sampling,
        "parameters": answering.parameters,
        "tools": exports.describe(answering.system.tools),
        "sandbox": _sandbox(answering.system.tools),
        "versions": versions.installed(),
    }
    path = pathlib.Path(folder) / NAME
    files.replace_text(path, json.dumps(found, indent=2) + "\n")
    return found


def model_name(facts):
    """Returns how the facts of weights are called: a server's model, a folder, a step of a run."""
    if "model" in facts:
        return facts["model"]
    step = facts.get("step")
    return str(facts["source"]) if step is None else f"{facts['source']}, step {step}"


def described(facts):
    """Returns the same and what tells it from others of its name."""
    apart = f"fingerprint {facts['fingerprint']}" if "fingerprint" in facts else facts["source"]
    return f"{model_name(facts)} ({apart})"


def of_config(config):
    """Returns what is kept of a config, its hash and the seed, JSON-able."""
    kept = _kept(config)
    return {"config_hash": stored.hash_of(kept), "config": kept, "seed": config.seed}


def _kept(config):
    return {name: json.loads(json.dumps(_plain(config[name]))) for name in KEPT}


def _flat(values):
    """Returns {dotted name: value}, without empty sections."""
    return {name: value for name, value in dotted.flat(values) if value != {}}


def _whole(before):
    """Returns {dotted name: value} of the "config" of an evaluation that may be of an old version.

    As `stored` reads a run's.
    """
    known = _flat(before).items()
    known = {new: value for name, value in known for new in stored.RENAMED.get(name, (name,))}
    return _flat(_kept(common.base())) | known


def _deciding(values, free):
    """Returns what of {dotted name: value} must stay."""
    return {
        name: value
        for name, value in values.items()
        if not any(f"{name}.".startswith(f"{one}.") for one in free)
    }


def _sampling(arm):
    return {name: getattr(arm, name) for name in plan.SAMPLING}


def _other_sampling(before, arms):
    """Returns how the planners of an evaluation were sampled where arms are not, "" if nowhere.

    Where no sampling is kept, an earlier version sampled an engine's as now, and a server's as its
    base generator.
    """
    found, known = [], before.get("sampling", {})
    if "sampling" not in before and "model" in before.get("weights", {}).get("trained", {}):
        temperature = _whole(before["config"])["backends.base_generator.temperature"]
        asked = dict(temperature=temperature, top_p=1.0, frequency_penalty=0.0)
        known = {arm.name: asked for arm in arms}
    for arm in arms:
        now = _sampling(arm)
        was = known.get(arm.name, now)
        other = [
            f"{name} {was.get(name)}, now {now[name]}" for name in now if was.get(name) != now[name]
        ]
        found += [f"{arm.name}: {' and '.join(other)}"] if other else []
    return "; ".join(found)


def _plain(value):
    return value.to_dict() if hasattr(value, "to_dict") else value


def _sandbox(tools):
    return dict(tools["python_coder"].facts) if "python_coder" in tools else {}


def _told(facts):
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
