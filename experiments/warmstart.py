"""Supervised training before Flow-GRPO: a model learns the agent's forms from demonstrations.

    python -m experiments.warmstart --config=FILE --workdir=DIR --config.warmstart.start=MODEL \
        --config.warmstart.worlds=quickstart
    python -m experiments.warmstart --config=FILE --workdir=DIR --config.warmstart.start=MODEL \
        --config.warmstart.data=replies.jsonl

Learns the replies of named modules in demonstrations of worlds, or in a file of conversations, with
all parameters or adapters (model.lora), and leaves DIR/model for model.path. Resumes if DIR holds
what it began. docs/warmstart.md has the fields, the format of files and expert iteration, which
learns from a run's own successes.

With warmstart.prompt_weight above 0 a small model learns whole rows; so the quickstart's was made:

    python -m experiments.warmstart --config=experiments/configs/quickstart.py --workdir=DIR

Exit codes: 0 done, 1 error, 2 bad flags or config, 75 stopped by a signal after saving.
"""

# ruff: noqa: E402  signals are taken before the long imports
from experiments.running import signals

if __name__ == "__main__":
    signals.leave_on(*signals.STOPPING)

import json
import sys
import time

import optax
from absl import flags, logging
from ml_collections import config_flags

from experiments.configs import common
from experiments.running import command, determinism, dotted, fields, folder, stored
from experiments.warmstarting import nano, replies
from flow_grpo_jax import checkpoint, files, metrics, optimizer
from flow_grpo_jax.bounds import json_text

CONFIG, LOG, SAVED = "warmstart.json", "warmstart.jsonl", "warmstart_checkpoints"
OF_WORLDS = ("train.jsonl", "held_out.jsonl", "articles.db", "tokenizer")
OF_WORLDS += ("demonstrations.jsonl", "held_out_demonstrations.jsonl")


class Stopped(Exception):
    """The caller asked to stop; what was learnt is saved."""


@folder.one_at_a_time
def warmstart(config, workdir, *, should_stop=lambda: False):
    """Trains or goes on training as `config.warmstart` says, and writes workdir/model.

    Returns:
      The last metrics of held-out replies, {"held_out/NAME/MODULE": float}.

    Raises:
      ConfigError: the config is wrong, or not that of what the folder holds.
      Stopped: `should_stop` said so; the last finished step is saved.
    """
    settings = config.warmstart
    fields.check(config)
    check_config(config, workdir)
    made = nano.WholeRows if settings.prompt_weight else replies.Replies
    adamw = make_optimizer(config)
    # First of all: what is written from now on is this warm start's.
    files.replace_text(workdir / CONFIG, json.dumps(stored.values_of(config), indent=2) + "\n")
    learner = made(config, workdir, adamw)
    checkpoints = checkpoint.Checkpoints(workdir / SAVED, keep=config.checkpoint.keep)
    log = None
    try:
        done, state, meta = restore(checkpoints, learner)
        known = dict(keep_to_step=done, saved=meta["metrics"]) if meta else {}
        log = metrics.MetricsFile(workdir / LOG, **known)
        if not meta:
            log.write(0, learner.measure(state))
            logging.info("%s", line_of(0, settings.steps, log.lines[0]))
        last = done
        for step in range(done + 1, settings.steps + 1):
            if enough(log.lines[step - 1], settings.enough):
                break
            if should_stop():
                save(checkpoints, learner, state, log.lines[last], last)
                raise Stopped
            started = time.monotonic()
            state, values = learner.step(state)
            seconds = time.monotonic() - started
            values |= {
                "time/step": seconds,
                "throughput/trained_tokens_per_s": values["tokens/trained"] / seconds,
            }
            due = step % settings.probe_every == 0 or step == settings.steps
            values |= learner.measure(state) if due else {}
            log.write(step, values)
            logging.info("%s", line_of(step, settings.steps, values))
            last = step
            if due:
                save(checkpoints, learner, state, log.lines[step], step)
        learner.write(state, workdir / "model")
    except files.CannotWrite as error:
        raise RuntimeError(f"{error} {checkpoints.safe()}") from error
    finally:
        checkpoints.close()
        learner.close()
    measured = [line for line in log.lines.values() if held_out(line)]
    return held_out(measured[-1]) if measured else {}


def make_optimizer(config):
    """Returns the optimizer: that of training, with a rate that rises and falls by a cosine."""
    settings, optim = config.warmstart, config.optim
    if settings.warmup_steps >= settings.steps:
        raise command.ConfigError(
            f"warmstart.warmup_steps={settings.warmup_steps} must be less than "
            f"warmstart.steps={settings.steps}."
        )
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.lr, settings.warmup_steps, settings.steps, settings.lr * settings.final_lr
    )
    with command.checking_config():
        return optimizer.make(
            lr=schedule,
            b1=optim.b1,
            b2=settings.b2,
            eps=optim.eps,
            weight_decay=settings.weight_decay,
            clip_norm=optim.clip_norm,
            warmup_steps=0,
            moment_dtype=optim.moment_dtype,
        )


# ---- going on ------------------------------------------------------------------------------------


def check_config(config, workdir):
    """Refuses a folder that began with another config, or holds files that are not a warm start's.

    While nothing was measured or saved the config may change.
    """
    path = workdir / CONFIG
    if not path.exists():
        written = (LOG, "model", *(OF_WORLDS if config.warmstart.worlds else ()))
        if others := [name for name in written if (workdir / name).exists()]:
            raise command.ConfigError(
                f"{workdir} holds {', '.join(others)}, which no warm start wrote, and this one "
                "would replace. Use a new --workdir."
            )
        return
    if not any((workdir / name).exists() for name in (LOG, SAVED)):
        return
    try:
        before = json_text.read_object(path, most=stored.MAX_CONFIG)
    except ValueError as error:
        raise command.ConfigError(f"{path} is damaged: {error} Use a new --workdir.") from error
    default, before, now = (
        dict(dotted.flat(values))
        for values in (stored.values_of(common.base()), before, stored.values_of(config))
    )
    changed = sorted(n for n in {**before, **now} if {**default, **before}.get(n) != now.get(n))
    if changed:
        raise command.ConfigError(
            f"{workdir} holds a warm start with another config; it differs in "
            f"{', '.join(changed)}. Use a new --workdir."
        )


def restore(checkpoints, learner):
    """Returns (step, state, metadata) of the newest checkpoint; metadata is None if there is none.

    Raises:
      ConfigError: its weights or examples are not those of the learner.
    """
    where = checkpoints.folder.parent
    try:
        restored = checkpoints.restore(learner.state)
    except checkpoint.OtherArrays as error:
        raise command.ConfigError(f"{error} Use a new --workdir instead of {where}.") from error
    if restored is None:
        return 0, learner.state, None
    _, _, meta = restored
    for name, value in learner.facts.items():
        if meta.get(name) != value:
            what = {"reference": "weights in warmstart.start", "held_out": "held-out replies"}
            raise command.ConfigError(
                f"The {what[name]} are not those that {where} began with. Bring them back, or use "
                "a new --workdir."
            )
    try:
        learner.go_to(meta["position"])
    except ValueError as error:
        raise command.ConfigError(
            f"The replies to learn are not those that {where} began with. Bring them back, or use "
            "a new --workdir."
        ) from error
    logging.info("resumed after step %d", restored[0])
    return restored


def save(checkpoints, learner, state, values, step):
    """Saves a step with the position in the examples and its line of metrics."""
    meta = {"position": learner.position(), **learner.facts, "metrics": values}
    checkpoints.save(step, state, meta)


# ---- what is said --------------------------------------------------------------------------------


def enough(values, share):
    """Whether the share of replies that are read is large enough in every module, if measured."""
    read = [value for name, value in values.items() if name.startswith("held_out/parsed/")]
    return bool(share and read) and min(read) >= share


def held_out(values):
    return {name: value for name, value in values.items() if name.startswith("held_out/")}


def line_of(step, steps, values):
    """Returns one line a step for the log."""
    parts = [f"step {step}/{steps}"]
    if "loss" in values:
        parts += [
            f"loss {values['loss']:.4f}",
            f"{values['throughput/trained_tokens_per_s']:.0f} tokens/s",
        ]
    for name, form in (("loss", ".3f"), ("parsed", ".2f"), ("exact", ".2f")):
        found = {n.split("/")[-1]: v for n, v in values.items() if n.startswith(f"held_out/{name}")}
        shown = ", ".join(f"{module} {value:{form}}" for module, value in found.items())
        parts += [f"held-out {name}: {shown}"] if found else []
    return " | ".join(parts)


def stop_signal():
    """Returns a `should_stop` for `signals.STOPPING`."""
    tell = lambda number: logging.info(
        "signal %d: stopping after a save; send it again to stop at once", number
    )
    return signals.StopSignal(*signals.STOPPING, on_first=tell, early=signals.leave)


def define_flags():
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder for the model; what began in it goes on.")


def main():
    values = flags.FLAGS
    determinism.ask(values.config.deterministic)
    try:
        warmstart(values.config, values.workdir, should_stop=stop_signal())
    except Stopped:
        logging.info("stopped by a signal; run the same command again to go on")
        sys.exit(signals.STOPPED)


if __name__ == "__main__":
    define_flags()
    command.run(main, required=("config", "workdir"))
