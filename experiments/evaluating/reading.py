"""Reads what another evaluation found, to compare with it and to draw it."""

import pathlib

from experiments.reporting import trajectories as records
from experiments.running import command
from flow_grpo_jax.bounds import json_text


def read(folder):
    """Returns (results dict, {row: {question id: [official score of each trial]}}) of a folder.

    Raises:
      ConfigError: it holds no evaluation, or a damaged one.
    """
    folder, scores = pathlib.Path(folder), {}
    try:
        values = json_text.read_object(folder / "results.json")
        for line in records.read_lines(folder / "scores.jsonl"):
            place = line["benchmark"], line["mode"], line["protocol"], line["max_turns"]
            scores.setdefault(place, {})[line["id"]] = _official(line, values["trials"])
        values["seed"], values["questions"].items(), values["config"].items(), values["rows"][0]
        [(row["mode"], row["protocol"]) for row in values["rows"]]
        [dict(one) for name in ("weights", "sampling") for one in values.get(name, {}).values()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise command.ConfigError(
            f"{folder} holds no finished evaluation (results.json and scores.jsonl): {error}"
        ) from error
    return values, scores


def _official(line, trials):
    """Returns the official score of each trial; raises ValueError where one is missing or none."""
    found = [[*one.values()][0] for one in line["scores"]]  # the official one comes first
    if len(found) != trials or not all(0 <= value <= 1 for value in found):
        raise ValueError(
            f"the question {line['id']!r} has the scores {found}, not {trials} from 0 to 1"
        )
    return found
