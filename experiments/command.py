"""What the commands share: start and end, config.json, signals, progress and console lines."""

import contextlib
import hashlib
import json
import logging as python_logging
import signal
import sys

from absl import app, logging

from experiments import exits
from flow_grpo_jax import files, rollout

STOPPED = 75
BAR_WIDTH = 24


class ConfigError(app.UsageError):
    """The config cannot be used; exit code 2."""


def run(main, *, required):
    """Runs an absl main with the exit codes of `exits`; the log shows this project's lines only."""
    logging.get_absl_handler().addFilter(
        lambda record: (
            record.levelno > python_logging.INFO or "site-packages" not in record.pathname
        )
    )

    def stoppable(_):
        try:
            main()
        except rollout.Stopped:
            logging.info("stopped by a signal; run the same command again to go on")
            sys.exit(STOPPED)

    exits.run(stoppable, required=required)


@contextlib.contextmanager
def checking_config():
    """Turns a ValueError about something the config asked for into a ConfigError."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_config(config, workdir):
    """Refuses a folder that holds a run with another config.

    `steps` may differ: a run may be continued for longer.
    """
    values, path = _values(config), workdir / "config.json"
    if path.exists():
        before = json.loads(path.read_text())["config"]
        changed = sorted(
            name
            for name in {**_flat(before), **_flat(values)}
            if name != "steps" and _flat(before).get(name) != _flat(values).get(name)
        )
        if changed:
            raise ConfigError(
                f"{workdir} holds a run with another config; it differs in {', '.join(changed)}. "
                "Use a new --workdir, or --force to go on with the new config."
            )


def write_config(config, workdir):
    """Writes workdir/config.json: the resolved config and its hash."""
    values, path = _values(config), workdir / "config.json"
    text = json.dumps(values, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    files.replace_text(path, json.dumps({"hash": digest, "config": values}, indent=2) + "\n")


def _values(config):
    return json.loads(config.to_json_best_effort())


def _flat(values, prefix=""):
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


class StopSignal:
    """SIGTERM and SIGINT set a flag that the rollouts poll; a second signal ends at once."""

    def __init__(self):
        self.received = False
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._receive)

    def _receive(self, number, frame):
        self.received = True
        signal.signal(number, signal.SIG_DFL)
        logging.info("signal %d: stopping after a save; send it again to stop at once", number)

    def __call__(self):
        return self.received


@contextlib.contextmanager
def progress(total, label):
    """A progress bar on a terminal; nothing elsewhere. Yields the function that advances it."""
    shown = sys.stderr.isatty()
    done = 0

    def advance(_):
        nonlocal done
        done += 1
        if shown:
            filled = BAR_WIDTH * done // max(total, 1)
            bar = "█" * filled + "·" * (BAR_WIDTH - filled)
            sys.stderr.write(f"\r{label} {bar} {done}/{total}")
            sys.stderr.flush()

    yield advance
    if shown:
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()


def step_line(step, steps, values):
    """One line a step for the log."""
    parts = [f"step {step}/{steps}"]
    if "reward/mean" in values:
        parts += [
            f"reward {values['reward/mean']:.3f}",
            f"turns {values['rollout/turns']:.2f}",
            f"tool errors {values['rollout/tool_error_rate']:.3f}",
            f"kl {values['loss/kl']:.4f}",
            f"entropy {values['policy/entropy']:.3f}",
            f"gap {values['policy/logprob_gap_max']:.1e}",
            f"{values['time/rollout']:.1f}+{values['time/update']:.1f} s",
        ]
    if "eval/success" in values:
        parts.append(f"held-out {_share(values)}")
    return " | ".join(parts)


def _share(values):
    return f"{values['eval/success']:.3f} ({values['eval/correct']:.0f}/{values['eval/total']:.0f})"


def summary(lines):
    """Logs held-out results before and after."""
    evaluated = [line for line in lines if "eval/success" in line]
    if not evaluated:
        return
    logging.info("held-out   %-18s %-16s %s", "success (k/N)", "tool-error rate", "turns")
    for name, line in (("before", evaluated[0]), ("after", evaluated[-1])):
        logging.info(
            "%-10s %-18s %-16.3f %.2f",
            name,
            _share(line),
            line["eval/tool_error_rate"],
            line["eval/turns"],
        )
