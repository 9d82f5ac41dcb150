"""Questions whose prompts can never fit: refused or dropped before the first step."""

from absl import logging

from agents import prompts
from agents.environments.protocol import KIND
from experiments.running import command
from flow_grpo_jax import lengths

CHOICES = ("refuse", "drop")


def choose(questions, held_out, config, system, *, started):
    """Returns the training questions to draw from: all of them unless `data.too_long` drops some.

    Held-out questions stay: all are in the denominator, and those that cannot fit are wrong.

    Args:
      system: `services.System` with the tokenizer and the tools.
      started: whether the run began before. It goes on with the questions that it has, so nothing
        is refused any more.

    Raises:
      ConfigError: questions cannot fit, and the config refuses that or none is left.
    """
    drop = config.data.too_long == "drop"
    found = _too_long("train", questions, config, system, refuse=not (drop or started))
    _too_long("held_out", held_out, config, system, refuse=not (drop or started))
    if not (found and drop):
        return questions
    kept = [question for index, question in enumerate(questions) if index not in found]
    if not kept:
        raise command.ConfigError(
            "data.too_long=drop leaves no training question. Raise rollout.max_prompt_tokens."
        )
    logging.warning("%d training questions are left out, %d stay", len(found), len(kept))
    return kept


def _too_long(name, questions, config, system, *, refuse):
    """Returns what `lengths.too_long` finds; says how many these are, and the first."""
    limit = config.rollout.max_prompt_tokens
    found = {}
    for own in (False, True):  # of an environment, which adds tools
        places = [i for i, question in enumerate(questions) if (question["kind"] == KIND) == own]
        if not places:
            continue
        of_kind = lengths.too_long(
            [questions[place] for place in places],
            limit=limit,
            count=lambda messages: len(system.tokenizer.chat(messages)),
            prompt_set=prompts.SETS[config.rollout.prompts],
            tools=system.tools_of(questions[places[0]]),
        )
        found |= {places[index]: tokens for index, tokens in of_kind.items()}
    if found:
        index, tokens = next(iter(found.items()))
        message = (
            f"{len(found)} of {len(questions)} questions of data.{name} can never be solved: a "
            f"prompt of {questions[index]['id']!r} has {tokens} tokens before any module has "
            f"written a word, and rollout.max_prompt_tokens={limit}."
        )
        if refuse:
            raise command.ConfigError(
                f"{message} Raise that limit, take them out of the file, or set "
                "--config.data.too_long=drop: training leaves them out, evaluation counts them "
                "as wrong."
            )
        logging.warning("%s", message)
    return found
