"""The questions of a config: of its files, read as it says, and of its environment."""

import contextlib
import dataclasses
import json

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


@contextlib.contextmanager
def environment(settings):
    """Yields the `Environment` that `data.environment` names, None for ""; closes it at the end.

    It imports code that the name says, so the config must be the user's own.

    settings: the section `data.environment`.

    Raises:
      ConfigError: there is no such environment, or it does not take the settings.
      RuntimeError: it fails otherwise.
    """
    if not settings.id:
        yield None
        return
    names = [field.name for field in dataclasses.fields(protocol.Settings)]
    values = settings.to_dict()
    with _asking(settings.id):
        found = catalogue.make(
            settings.id, protocol.Settings(**{name: values[name] for name in names})
        )
    try:
        yield found
    finally:
        try:
            found.close()
        except Exception as error:  # noqa: BLE001  what was asked of it is done
            kind = type(error).__name__
            logging.warning("%s could not be closed: %s: %s", settings.id, kind, error)


def of_environment(environment, settings):
    """Returns (training questions, held-out ones) of an environment; ([], []) for None.

    Raises:
      ConfigError: it has not so many, cannot be reached, or they are no questions of its own.
      RuntimeError: it fails otherwise.
    """
    if environment is None:
        return [], []
    with _asking(environment.name):
        splits = [environment.questions(split, settings[split]) for split in protocol.SPLITS]
        for questions in splits:
            _check(environment.name, questions)
    texts, held_out = ({question["question"] for question in split} for split in splits)
    if held_out and held_out <= texts:
        logging.warning(
            "All held-out questions of %s begin as training questions do: eval/success says "
            "nothing of new ones.",
            environment.name,
        )
    return splits


@contextlib.contextmanager
def _asking(name):
    """Says whose code raised what is no error about the config."""
    try:
        with command.checking_config():
            yield
    except command.ConfigError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise RuntimeError(f"The environment {name} failed: {kind}: {error}") from error


def _check(name, questions):
    """Raises ValueError if an environment's questions are not as `protocol.question` makes them."""
    texts, ids = ("id", "question", "source"), set()
    for place, question in enumerate(questions):
        if not isinstance(question, dict) or question.get("kind") != protocol.KIND:
            problem = "was not made by protocol.question"
        elif wrong := [field for field in texts if not isinstance(question.get(field), str)]:
            problem = f"has no text in {wrong[0]!r}"
        elif question["id"] in ids:
            problem = f"has the id {question['id']!r} of another"
        else:
            ids.add(question["id"])
            try:
                json.dumps(question)
                continue
            except TypeError as error:
                problem = f"cannot be written as JSON: {error}"
        raise ValueError(f"Question {place} of the environment {name} {problem}.")
