"""The questions of a config: of its files, read as it says, and of its environment."""

import dataclasses

from absl import logging

from agents.environments import catalogue, protocol
from experiments.running import command, places
from flow_grpo_jax import data


def read(config, path):
    """Returns the questions of `path`, which may be one of the config's own files or another.

    Raises:
      ConfigError: it cannot be read, or rows are not questions.
    """
    own_format = config.data.held_out_format if path == config.data.held_out else ""
    judged = [kind for kind, decider in config.reward.items() if decider == "judge"]
    with command.checking_config():
        return data.read_questions(
            places.resolve(path),
            format=own_format or config.data.format,
            index_base=config.data.index_base,
            bad_rows=config.data.bad_rows,
            judged=judged,
        )


def open_environment(settings):
    """Returns the `Environment` that `data.environment` names, None for "".

    It imports code that the name says, so the config must be the user's own.

    settings: the section `data.environment`.

    Raises:
      ConfigError: there is no such environment, or it does not take the settings.
    """
    if not settings.id:
        return None
    names = [field.name for field in dataclasses.fields(protocol.Settings)]
    values = settings.to_dict()
    with command.checking_config():
        return catalogue.make(
            settings.id, protocol.Settings(**{name: values[name] for name in names})
        )


def of_environment(environment, settings):
    """Returns (training questions, held-out ones) of an environment; ([], []) for None.

    Raises:
      ConfigError: it has not so many, or cannot be reached.
    """
    if environment is None:
        return [], []
    with command.checking_config():
        splits = [environment.questions(split, settings[split]) for split in ("train", "held_out")]
    texts, held_out = ({question["question"] for question in split} for split in splits)
    if held_out and held_out <= texts:
        logging.warning(
            "All held-out questions of %s begin as training questions do: eval/success says "
            "nothing of new ones.",
            environment.name,
        )
    return splits
