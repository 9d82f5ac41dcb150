"""Questions whose prompts can never fit, found before any rollout."""

import time

from absl import logging

from agents import prompts
from agents.memory import Memory

JOINTS = 16  # tokens by which a prompt may exceed the sum of its parts
LOG_SECONDS = 5.0


def shortest_prompts(text, *, prompt_set, tools):
    """Returns the prompts that every rollout of a question has, as short as they can be.

    What the modules write comes on top: the analysis and the memory are empty.
    """
    return (
        prompts.analyst(prompt_set, tools, text),
        prompts.planner(prompt_set, tools, text, "", Memory()),
        prompts.generator(prompt_set, text, "", Memory()),
    )


def too_long(questions, *, limit, count, prompt_set, tools):
    """Returns {index: tokens} of the questions that no rollout can solve within `limit`.

    A text has no more tokens than UTF-8 bytes, so most questions need not be tokenised.

    Args:
      questions: dicts with "question".
      limit: most tokens of a prompt.
      count: messages -> tokens of their prompt.
      prompt_set, tools: of the rollouts.
    """

    def longest(text):
        return max(map(count, shortest_prompts(text, prompt_set=prompt_set, tools=tools)))

    found, around, told = {}, longest("") + JOINTS, time.monotonic()
    for index, question in enumerate(questions):
        text = question["question"]
        if around + len(text.encode()) > limit and (tokens := longest(text)) > limit:
            found[index] = tokens
        if time.monotonic() - told > LOG_SECONDS:
            told = time.monotonic()
            logging.info("measured the prompts of %d of %d questions", index + 1, len(questions))
    return found
