"""Says what works on this machine and what does not; run it first, and paste it into a bug report.

    python -m experiments.doctor                                   a table
    python -m experiments.doctor --json                            one JSON object
    python -m experiments.doctor --model=Qwen/Qwen2.5-7B-Instruct  also: do its files fit each other

Takes less than a minute on a laptop and up to five on an accelerator. The checks do not depend on
each other: one that fails is a row with its reason, and the others go on. Where it says "broken",
something does not work that a default config needs, and the exit code is 1. Keys of services are
named, and what they hold is never shown.
"""

import dataclasses
import datetime
import json
import os
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import flags, logging

from experiments.diagnosis import rows
from experiments.running import command

CHECKS = {  # in this order: what may end the process comes last
    "versions": "machine.versions",
    "extras": "machine.extras",
    "keys": "surroundings.keys",
    "sandbox": "surroundings.sandbox",
    "search": "surroundings.search",
    "devices": "machine.devices",
    "compiled programs": "machine.cache",
    "models": "models.found",
    "speed": "machine.speed",
    "sampler against trainer": "sampler.sampler",
    "attention of rows": "kernels.rows",
    "attention of the engine": "kernels.pages",
}


def checks(model=""):
    """Returns {name: check} of `rows.run`.

    model: folder, URL or name in the hub's cache, to be looked at too.
    """
    found = {name: rows.later(function) for name, function in CHECKS.items()}
    if model:
        found[f"model {model}"] = rows.later("models.folder", model)
    return found


def to_dict(found):
    """Returns what `rows.run` found as a dict of plain values."""
    return {
        "version": 1,
        "time": _now(),
        "ok": not rows.is_broken(found),
        "checks": {name: [dataclasses.asdict(row) for row in each] for name, each in found.items()},
    }


def verdict(found):
    """Returns the last line of the table."""
    broken = [
        f"{name}: {row.what}"
        for name, each in found.items()
        for row in each
        if row.state == rows.BROKEN
    ]
    return (
        f"broken: {'; '.join(broken)}"
        if broken
        else "Nothing that a default config needs is broken."
    )


def _now():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def define_flags():
    flags.DEFINE_bool("json", False, "Print one JSON object and nothing else.")
    flags.DEFINE_string(
        "model",
        "",
        "Hugging Face folder of a model, or the name on the hub of one in its cache here.",
    )


def examine(model="", *, as_json=False):
    """Runs all checks and writes what they find; returns what `rows.run` returns."""
    if as_json:
        found = rows.run(checks(model))
        _say(json.dumps(to_dict(found), indent=2))
        return found
    _say(f"flow_grpo_jax, {_now()}")
    found = rows.run(
        checks(model),
        on_check=lambda name: _say(f"\n{name}"),
        on_row=lambda row: _say("\n".join(rows.lines(row))),
    )
    _say(f"\n{verdict(found)}")
    return found


def main():
    values = flags.FLAGS
    if not values["verbosity"].present:  # the rows say what the log would
        logging.set_verbosity(logging.ERROR)
    if rows.is_broken(examine(values.model, as_json=values.json)):
        sys.exit(command.FAILED)


if __name__ == "__main__":
    define_flags()
    command.run(main)
