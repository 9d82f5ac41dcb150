"""The model without the agent: one prompt, one answer. What an agent is compared with."""

import time

from agents import parsing, prompts, questions
from agents.effects import Interrupted, ModelRequest, Refusal
from agents.trajectory import Status, Stop, Trajectory


def solve(
    question,
    *,
    prompt_set,
    budget,
    rollout=0,
    clock=time.monotonic,
    on_refusal=lambda refusal: None,
    **of_turns,
):
    """Solves a question by one request of role "planner", which is sampled as the planner is.

    Args and returns as `agents.solve.solve`; those about turns and tools are not used.
    """
    questions.refuse_images(question)
    start, answer, status, error = clock(), "", Status.OK, ""
    stop = Stop.BUDGET
    messages = prompts.bare(prompt_set, question["question"])
    try:
        if not budget.fits(messages):
            raise prompts.PromptTooLong(f"The prompt is over its limit, {budget.limit} tokens.")
        wrote = yield ModelRequest("planner", messages)
        if not wrote.finished:
            status = Status.TRUNCATED
        answer = parsing.answer(wrote.text)
    except prompts.PromptTooLong as too_long:
        status, error = Status.TRUNCATED, str(too_long)
    except parsing.ParseError as refused:
        on_refusal(Refusal("planner", str(refused)))
        stop = Stop.PARSE_ERROR
    except Interrupted as interrupted:
        status, error = interrupted.status, str(interrupted)
        stop = Stop.DEADLINE if status == Status.TIMEOUT else stop
    return Trajectory(
        question_id=question["id"],
        rollout=rollout,
        analysis="",
        turns=(),
        answer=answer,
        status=status,
        stop=stop,
        seconds=clock() - start,
        error=error,
    )
