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
        values["config"].items()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise command.ConfigError(
            f"{folder} holds no finished evaluation (results.json and scores.jsonl): {error}"
        ) from error
    return values, scores
