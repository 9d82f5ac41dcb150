"""What the commands share: start and end, config.json, signals, progress and console lines."""

import contextlib
import hashlib
import importlib.util
import json
import logging as python_logging
import signal
import sys
import time
import uuid

from absl import app, logging

from experiments.running import exits
from flow_grpo_jax import files, processes, rollout

STOPPED = 75
BAR_WIDTH = 24
SHARED_SECONDS = 60.0  # a network file system may show a new file this late
EXTRAS = {"serve": ("starlette", "uvicorn"), "grammar": ("llguidance",)}


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
        except Exception as error:
            bad = isinstance(error, app.UsageError)
            processes.tell_failure(error, exit_code=exits.BAD_FLAGS if bad else exits.FAILED)
            raise

    exits.run(stoppable, required=required)


@contextlib.contextmanager
def checking_config():
    """Turns a ValueError about something the config asked for into a ConfigError."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


def installed(extra):
    """Whether the packages of an extra are there."""
    return all(importlib.util.find_spec(name) for name in EXTRAS[extra])


def need(extra):
    """Raises ConfigError where an extra is not installed."""
    if not installed(extra):
        raise ConfigError(f"This needs {' and '.join(EXTRAS[extra])}: pip install '.[{extra}]'.")


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


def write_config(config, workdir, **facts):
    """Writes workdir/config.json: the resolved config, its hash, and facts of the machine."""
    values, path = _values(config), workdir / "config.json"
    text = json.dumps({"hash": hash_of(values), "config": values, **facts}, indent=2)
    files.replace_text(path, text + "\n")


def config_hash(config):
    return hash_of(_values(config))


def hash_of(values):
    """16 hex digits of anything that is JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def check_shared(workdir):
    """Refuses a run folder that is not the same one for all processes."""
    if processes.count() == 1:
        return
    path, word = workdir / ".shared", processes.of_first(uuid.uuid4().hex)
    if processes.index() == 0:
        files.replace_text(path, word)
    deadline = time.monotonic() + SHARED_SECONDS
    while not (found := path.exists() and path.read_text() == word) and time.monotonic() < deadline:
        time.sleep(0.1)
    blind = processes.gather([] if found else [processes.index()])
    if processes.index() == 0:
        path.unlink()
    if blind:
        raise ConfigError(
            f"Process {blind[0]} does not see in {workdir} what process 0 writes there. Give a "
            "--workdir that all hosts share, such as a network file system."
        )


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
    """SIGTERM and SIGINT set a flag that the rollouts poll; a second signal ends at once.

    The signal of one process stops all of them.
    """

    def __init__(self):
        self.received = False
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._receive)

    def _receive(self, number, frame):
        self.received = True
        processes.tell_stop()
        signal.signal(number, signal.SIG_DFL)
        logging.info("signal %d: stopping after a save; send it again to stop at once", number)

    def __call__(self):
        return processes.told_to_stop() or self.received


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
