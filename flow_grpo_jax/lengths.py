"""Questions whose prompts can never fit, found before any rollout."""

import time

from absl import logging

from agents import prompts
from agents.memory import Memory

JOINTS = 16  # tokens by which a prompt may exceed what its parts alone say
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

    A text has no more tokens than UTF-8 bytes, so most questions need not be tokenised; of the
    others, most show by one prompt that they fit.

    Args:
      questions: dicts with "question".
      limit: most tokens of a prompt.
      count: messages -> tokens of their prompt.
      prompt_set, tools: of the rollouts.
    """

    def counted(text):
        """Returns an iterator over the tokens of the prompts, those of the longest role first."""
        made = shortest_prompts(text, prompt_set=prompt_set, tools=tools)
        return (count(made[role]) for role in order)

    alone = [count(made) for made in shortest_prompts("", prompt_set=prompt_set, tools=tools)]
    order = sorted(range(len(alone)), key=lambda role: -alone[role])
    found, around, told = {}, max(alone) + JOINTS, time.monotonic()
    for index, question in enumerate(questions):
        text = question["question"]
        fits = around + len(text.encode()) <= limit or next(counted(text)) + JOINTS <= limit
        if not fits and (tokens := max(counted(text))) > limit:
            found[index] = tokens
        if time.monotonic() - told > LOG_SECONDS:
            told = time.monotonic()
            logging.info("measured the prompts of %d of %d questions", index + 1, len(questions))
    return found
