"""Reads what another evaluation found, to compare with it and to draw it."""

import pathlib

from experiments.reporting import trajectories as records
from experiments.running import command
from flow_grpo_jax.bounds import json_text


def read(folder):
    """Returns (results dict, {row: {question id: [official score of each trial]}}) of a folder.

    Raises:
      ConfigError: it holds no evaluation.
    """
    folder, scores = pathlib.Path(folder), {}
    try:
        values = json_text.read_object(folder / "results.json")
        for line in records.read_lines(folder / "scores.jsonl"):
            place = line["benchmark"], line["mode"], line["protocol"], line["max_turns"]
            official = [next(iter(one.values())) for one in line["scores"]]
            scores.setdefault(place, {})[line["id"]] = official
        values["seed"], values["trials"], values["questions"].items(), values["rows"][0]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise command.ConfigError(
            f"{folder} holds no finished evaluation (results.json and scores.jsonl): {error}"
        ) from error
    return values, scores


def check_against(folder, *, seed, trials, benchmarks):
    """Refuses another evaluation that this one cannot be paired with.

    Raises:
      ConfigError: it has another seed or number of trials, or other questions.
    """
    values, _ = read(folder)
    for name, now in (("seed", seed), ("trials", trials)):
        if values[name] != now:
            raise command.ConfigError(
                f"--against={folder} has {name} {values[name]}, this evaluation {now}; the "
                "differences would not be paired."
            )
    hashes = {benchmark.name: benchmark.hash for benchmark in benchmarks}
    shared = [name for name in hashes if name in values["questions"]]
    other = [name for name in shared if values["questions"][name] != hashes[name]]
    if other or not shared:
        what = f"other questions of {', '.join(other)}" if other else "none of these benchmarks"
        raise command.ConfigError(f"--against={folder} has {what}; nothing can be paired.")
