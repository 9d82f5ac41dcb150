"""The run folder as data: its resolved config, and the weights of its checkpoints."""

import functools
import hashlib
import json
import os
import pathlib

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from experiments.configs import common
from experiments.running import command, dotted, sessions, trust, versions
from flow_grpo_jax import checkpoint, files, processes
from flow_grpo_jax.bounds import json_text
from models import huggingface, lora

MAX_CONFIG = 2**24  # bytes of config.json

# Fields that runs of an earlier version have, and where their values belong now.
RENAMED = {
    "tools.search_results": (
        "tools.knowledge_search.top_k",
        "tools.wikipedia_search.top_k",
        "tools.google_search.top_k",
    ),
    "tools.python_seconds": ("tools.python_coder.seconds",),
    "tools.python_traceback": ("tools.python_coder.traceback",),
    "tools.sandbox": ("tools.python_coder.sandbox",),
}


# ---- config.json -------------------------------------------------------------------------------


def check_config(config, workdir):
    """Refuses a folder that holds a run with another config.

    `steps` may differ: a run may be continued for longer. So may what only watches it, and the
    section `warmstart`, which no training reads.
    """
    if not (workdir / "config.json").exists():
        return
    before, now = (
        {name: value for name, value in dotted.flat(values_of(each)) if value != {}}
        for each in (read_config(workdir)[0], config)
    )
    free = lambda name: name == "steps" or name.startswith(("warmstart.", *common.WATCHING))
    changed = sorted(
        name for name in {**before, **now} if not free(name) and before.get(name) != now.get(name)
    )
    if changed:
        raise command.ConfigError(
            f"{workdir} holds a run with another config; it differs in {', '.join(changed)}. "
            "Use a new --workdir, or --force to go on with the new config."
        )


def write_config(config, workdir, **facts):
    """Writes workdir/config.json: the resolved config, its hash, and facts of the machine.

    The config is remembered as this user's (`trust`). Of several processes, 0 writes.
    """
    values = values_of(config)
    facts |= {"versions": versions.installed()}
    text = json.dumps({"hash": hash_of(values), "config": values, **facts}, indent=2)
    if processes.index() == 0:
        files.replace_text(workdir / "config.json", text + "\n")
        trust.remember(values)


def read_config(workdir):
    """Returns (ConfigDict, hash) of a run, to look at; `open_config` is for what acts on it.

    The config is `common.base()` with the run's values, so that it has every field, also if an
    earlier version wrote it. Fields that this version does not know are left out with a warning.

    Raises:
      ConfigError: the folder holds no run, the file is damaged, or a value is of another type than
        its field.
    """
    stored = _read_file(workdir)
    return _as_config(stored, workdir), stored["hash"]


def open_config(workdir, *, uses, trusted, instead=""):
    """Returns (ConfigDict, hash) of a run, if its maker may decide all that is used of it.

    Args:
      uses: a function of the config: which sections the command will use, as in `trust.check`.
      trusted: whether the user trusts the maker of the folder.
      instead: of `trust.check`.

    Raises:
      ConfigError: as `read_config`; or the folder needs the user's word.
    """
    trust.check_links(workdir, trusted=trusted)
    stored = _read_file(workdir)
    config = _as_config(stored, workdir)
    if not (trusted or trust.was_given(stored["config"])):
        trust.check(workdir, config, uses=uses(config), instead=instead)
    return config, stored["hash"]


def _as_config(stored, workdir):
    path = pathlib.Path(workdir) / "config.json"
    config, unknown = common.base(), []
    for name, value in dotted.flat(stored["config"]):
        try:
            unknown += [n for n in RENAMED.get(name, (name,)) if not _set(config, n, value)]
        except (TypeError, OverflowError) as error:
            raise command.ConfigError(f"{path}: {ascii(name)[1:-1]}={value!r}: {error}") from error
    if unknown:
        logging.warning(
            "%s has fields that this version does not know, and they are left out: %s",
            path,
            ascii(", ".join(unknown))[1:-1],
        )
    return common.lock(config)


def _read_file(workdir):
    command.check_local("workdir", workdir)
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise command.ConfigError(f"{workdir} holds no run: {path} {kind}.")
    try:
        stored = json_text.read_object(path, most=MAX_CONFIG)
        if "architectures" in stored:
            raise command.ConfigError(f"{workdir} holds a model, no run: see its config.json.")
        whole = isinstance(stored["config"], dict) and isinstance(stored["hash"], str)
    except (ValueError, KeyError):
        whole = False
    if not whole:
        raise command.ConfigError(
            f"{path} is {'damaged' if path.stat().st_size else 'empty'}: a crash or a full disk "
            "may have cut it short. experiments.train with the run's own --config and --force "
            "writes it again."
        )
    return stored


def config_hash(config):
    return hash_of(values_of(config))


def hash_of(values):
    """Returns 16 hex digits of anything that is JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def values_of(config):
    """Returns a config as JSON-able values."""
    return json.loads(config.to_json_best_effort())


def _set(config, name, value):
    """Sets a field by its dotted name; returns whether the config may have it."""
    free = any(f"{name}.".startswith(f"{section}.") for section in common.FREE)
    *sections, field = name.split(".")
    for section in sections:
        if section not in config and free:
            with config.unlocked():
                config[section] = {}
        config = config.get(section)
        if not isinstance(config, ConfigDict):
            return False
    if field not in config and not free:
        return False
    section = isinstance(config.get(field), ConfigDict)
    if (value is None and not free) or (section and value != {}):
        raise TypeError(f"it must be {'a section' if section else 'a value'}")
    if not section:  # an empty one changes nothing
        with config.unlocked():
            config[field] = value
    return True


# ---- checkpoints -------------------------------------------------------------------------------


def restore_policy(workdir, config, *, step=None):
    """Returns (step, Decoder in host memory, meta) of a run's checkpoint; adapters are merged.

    Raises:
      ConfigError: the run has no checkpoint, or not that one.
    """
    step, params, meta = restore_params(workdir, config, step=step)
    if not config.model.lora.rank:
        return step, params, meta
    with jax.default_device(jax.devices("cpu")[0]):
        whole = huggingface.load(base_folder(config, meta), dtype=jnp.float32)
        return step, lora.merged(lora.combine(params, whole), donate=True), meta


def base_folder(config, meta):
    """Returns the folder of the initial weights: the snapshot that was read, if it is still there.

    A name on the hub may mean a newer snapshot by now.

    Args:
      meta: of a checkpoint; it names another snapshot of the same model or counts for nothing.
    """
    now, read = sessions.model_folder(config), str(meta.get("model_folder"))
    snapshots = os.path.dirname(now)
    beside = os.path.dirname(read) == snapshots and os.path.basename(snapshots) == "snapshots"
    if beside and os.path.isfile(os.path.join(os.path.realpath(read), huggingface.CONFIG)):
        return read
    return now


def restore_params(workdir, config, *, step=None):
    """Returns (step, params, meta) of a run's checkpoint, params as `Session.params`.

    The params lie in host memory, which holds what one accelerator may not; the optimizer's
    moments, twice as many bytes, are not read.

    Raises:
      ConfigError: the run has no checkpoint, or not that one.
    """
    base = sessions.model_folder(config)
    trained = sessions.abstract_model(huggingface.model_config(base))
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
    if step is not None and step not in checkpoints.steps():
        raise command.ConfigError(
            f"There is no checkpoint of step {step} in {folder}; there are {checkpoints.steps()}."
        )
    try:
        restored = checkpoints.restore_part(like, "params", step=step)
    except checkpoint.OtherArrays as error:
        raise command.ConfigError(
            f"{error} Is the model in model.path={config.model.path} the one that was trained?"
        ) from error
    finally:
        checkpoints.close()
    if restored is None:
        raise command.ConfigError(f"{workdir} has no checkpoint yet.")
    return restored
