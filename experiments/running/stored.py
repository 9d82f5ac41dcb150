"""The run folder as data: its resolved config, and the weights of its checkpoints."""

import functools
import hashlib
import json
import pathlib
import time
import uuid

import jax
import jax.numpy as jnp
from absl import logging

from experiments.configs import common
from experiments.running import command, dotted, sessions
from flow_grpo_jax import checkpoint, files, processes
from models import huggingface, lora

SHARED_SECONDS = 60.0  # a network file system may show a new file this late


# ---- config.json -------------------------------------------------------------------------------


def check_config(config, workdir):
    """Refuses a folder that holds a run with another config.

    `steps` may differ: a run may be continued for longer.
    """
    path = workdir / "config.json"
    if not path.exists():
        return
    before, now = (
        {name: value for name, value in dotted.flat(values) if value != {}}
        for values in (json.loads(path.read_text())["config"], _values(config))
    )
    changed = sorted(
        name for name in {**before, **now} if name != "steps" and before.get(name) != now.get(name)
    )
    if changed:
        raise command.ConfigError(
            f"{workdir} holds a run with another config; it differs in {', '.join(changed)}. "
            "Use a new --workdir, or --force to go on with the new config."
        )


def write_config(config, workdir, **facts):
    """Writes workdir/config.json: the resolved config, its hash, and facts of the machine.

    Of several processes, 0 writes.

    Raises:
      ConfigError: in every process, if the folder is not the same one for all.
    """
    values = _values(config)
    text = json.dumps({"hash": hash_of(values), "config": values, **facts}, indent=2)
    if processes.index() == 0:
        files.replace_text(workdir / "config.json", text + "\n")
    _check_shared(workdir)


def read_config(workdir):
    """Returns (ConfigDict, hash) of a run.

    The config is `common.base()` with the run's values, so that it has every field; fields that
    this version does not know are left out with a warning.

    Raises:
      ConfigError: the folder holds no run.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise command.ConfigError(f"{workdir} holds no run: {path} does not exist.")
    stored = json.loads(path.read_text())
    config = common.base()
    unknown = _fill(config, stored["config"])
    if unknown:
        logging.warning(
            "%s has fields that this version does not know, and they are left out: %s",
            path,
            ", ".join(unknown),
        )
    return config, stored["hash"]


def config_hash(config):
    return hash_of(_values(config))


def hash_of(values):
    """Returns 16 hex digits of anything that is JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _values(config):
    return json.loads(config.to_json_best_effort())


def _check_shared(workdir):
    if processes.count() == 1:
        return
    path, word = workdir / ".shared", processes.of_first(uuid.uuid4().hex)
    if processes.index() == 0:
        files.replace_text(path, word)
    deadline = time.monotonic() + SHARED_SECONDS
    while not (seen := path.exists() and path.read_text() == word) and time.monotonic() < deadline:
        time.sleep(0.1)
    blind = processes.gather([] if seen else [processes.index()])
    if processes.index() == 0:
        path.unlink()
    if blind:
        raise command.ConfigError(
            f"Process {blind[0]} does not see in {workdir} what process 0 writes there. Give a "
            "--workdir that all hosts share, such as a network file system."
        )


def _fill(config, values, prefix=""):
    """Sets the fields of a ConfigDict from nested dicts; returns the names it does not have."""
    unknown = []
    for name, value in values.items():
        if name not in config and prefix + name not in common.FREE:
            unknown.append(prefix + name)
        elif isinstance(value, dict) and prefix + name not in common.FREE:
            unknown += _fill(config[name], value, f"{prefix}{name}.")
        else:
            with config.unlocked():
                config[name] = value
    return unknown


# ---- checkpoints -------------------------------------------------------------------------------


def restore_policy(workdir, config, *, step=None):
    """Returns (step, Qwen2 in host memory, meta) of a run's checkpoint; adapters are merged.

    Raises:
      ConfigError: the run has no checkpoint, or not that one.
    """
    step, params, meta = restore_params(workdir, config, step=step)
    if not config.model.lora.rank:
        return step, params, meta
    with jax.default_device(jax.devices("cpu")[0]):
        whole = huggingface.load(sessions.resolve(config.model.path), dtype=jnp.float32)
        return step, lora.merged(lora.combine(params, whole)), meta


def restore_params(workdir, config, *, step=None):
    """Returns (step, params, meta) of a run's checkpoint, params as `Session.params`.

    The params lie in host memory, which holds what one accelerator may not; the optimizer's
    moments, twice as many bytes, are not read.

    Raises:
      ConfigError: the run has no checkpoint, or not that one.
    """
    base = sessions.resolve(config.model.path)
    trained = sessions.abstract_model(huggingface.config_from_dict(huggingface.read_config(base)))
    if config.model.lora.rank:
        make = functools.partial(lora.init, settings=lora.Settings(**config.model.lora))
        trained = jax.eval_shape(make, trained, jax.random.key(0))
    host = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host), trained
    )
    folder = pathlib.Path(workdir) / "checkpoints"
    if not folder.is_dir():
        raise command.ConfigError(f"{workdir} has no checkpoint: {folder} does not exist.")
    checkpoints = checkpoint.Checkpoints(folder, keep=None)
    restored = checkpoints.restore_part(like, "params", step=step)
    checkpoints.close()
    if restored is None:
        raise command.ConfigError(f"{workdir} has no checkpoint yet.")
    return restored
