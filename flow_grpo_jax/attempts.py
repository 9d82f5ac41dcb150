"""What the rollout driver keeps of a question, of an attempt at it, and of what that waits for."""

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from agents import solve
from agents.trajectory import Status, Stop, Trajectory


@dataclasses.dataclass(frozen=True)
class Way:
    """How a question is solved, and who is told.

    settings: `rollout.Settings`; the driver's own decide on seconds, retries and `in_flight`.
    on_finished: called with each trajectory as it ends.
    planner: what answers the planner: a weight set of the engine or a remote model.
    top_p: of the planner, as in `Sampling`.
    solver: makes the generator that solves it; takes what `solve.solve` takes.
    """

    settings: Any
    on_finished: Callable
    planner: Any = "policy"
    top_p: float = 1.0
    solver: Callable = solve.solve


@dataclasses.dataclass(eq=False)
class Question:
    """A question and how far its rollouts are.

    step, index: the training step and the place in the batch that it was added with.
    rollouts: numbers of those that are wanted.
    address: (step, id, copy), the beginning of its requests' random addresses.
    analysis: the `Ticket` that will bring its `Reply`, or that; None before and after a failure.
    finished: rollout -> Trajectory.
    """

    fields: dict
    step: int
    index: int
    rollouts: tuple
    address: tuple
    way: Way
    analysis: Any = None
    finished: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class Ticket:
    """What attempts wait for: a request in the engine, or a call in a thread.

    attempts: several where they share the analysis of their question.
    prompt_tokens: ids that a request was sent.
    key: the request's id in the engine, or the call's Future.
    started: `time.monotonic()` when a thread took up a call of a tool, else inf. That thread writes
      it and the driver reads it: safe, because a ticket has one call.
    """

    attempts: list
    prompt_tokens: tuple = ()
    key: Any = None
    started: float = float("inf")

    @property
    def call(self):
        return self.key if isinstance(self.key, concurrent.futures.Future) else None

    @property
    def failed(self):
        """Whether a call ended without a result."""
        call = self.call
        return bool(call and call.done() and (call.cancelled() or call.exception()))


@dataclasses.dataclass(eq=False)
class Attempt:
    """A solver at work on a rollout.

    number: 0 for the first attempt at this rollout.
    ticket: what it waits for.
    """

    solver: Any
    question: Question
    rollout: int
    number: int
    started: float
    ticket: Ticket | None = None


def as_broken(attempt, error):
    """Returns the Trajectory of an attempt whose solver raised."""
    return Trajectory(
        question_id=attempt.question.fields["id"],
        rollout=attempt.rollout,
        analysis="",
        turns=(),
        answer="",
        status=Status.INFRA_ERROR,
        stop=Stop.BUDGET,
        seconds=time.monotonic() - attempt.started,
        error=error,
    )
