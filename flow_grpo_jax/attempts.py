"""What the rollout driver keeps of a question, of an attempt at it, and of what that waits for."""

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from agents import solve
from agents.trajectory import Branch, Status, Stop, Trajectory
from flow_grpo_jax import branches


@dataclasses.dataclass(frozen=True)
class Way:
    """How a question is solved, and who is told.

    settings: `rollout.Settings`; the driver's own decide on seconds, retries and `in_flight`.
    on_finished: called with each trajectory as it ends.
    planner: what answers the planner: a weight set of the engine or a remote model.
    top_p: of the planner, as in `Sampling`.
    solver: makes the generator that solves it; takes what `solve.solve` takes.
    branching: how all its rollouts branch; None if each starts at the question.
    """

    settings: Any
    on_finished: Callable
    planner: Any = "policy"
    top_p: float = 1.0
    solver: Callable = solve.solve
    branching: branches.Branching | None = None


@dataclasses.dataclass(eq=False)
class Question:
    """A question and how far its rollouts are.

    step, index: the training step and the place in the batch that it was added with.
    rollouts: numbers of those that are wanted.
    address: (step, id, copy), the beginning of its requests' random addresses.
    analysis: the `Ticket` that will bring its `Reply`, or that; None before and after a failure.
    finished: rollout -> Trajectory.
    branches: rollout -> Branch, of those whose parent is finished.
    """

    fields: dict
    step: int
    index: int
    rollouts: tuple
    address: tuple
    way: Way
    analysis: Any = None
    finished: dict = dataclasses.field(default_factory=dict)
    branches: dict = dataclasses.field(default_factory=dict)

    @property
    def roots(self):
        """The rollouts that start at the question."""
        branching = self.way.branching
        return self.rollouts[: branching.roots(len(self.rollouts)) if branching else None]

    def branch(self, root):
        """Lists the branches of a Trajectory that is a finished root.

        Returns:
          (rollouts, copies): branches to start; and, where there is nothing to draw anew because
          the root took no turn or infrastructure broke it, copies of its end, without its turns,
          which are finished in their place.
        """
        branching = self.way.branching
        of_point = branching.branches(root.rollout, len(self.rollouts))
        rollouts = sum(of_point, [])
        if root.broken or not root.turns:
            bare = dataclasses.replace(root, turns=(), seconds=0.0)  # the turns are the root's own
            copies = [dataclasses.replace(bare, rollout=g) for g in rollouts]
            self.finished |= {copy.rollout: copy for copy in copies}
            return [], copies
        turns = branching.turns(len(root.turns), (*self.address, root.rollout))
        for turn, siblings in zip(turns, of_point, strict=True):
            self.branches |= {g: Branch(root.rollout, turn) for g in siblings}
        return rollouts, []

    def start_of(self, rollout):
        """Returns the arguments of `solve.solve` that say where a rollout starts."""
        branch = self.branches.get(rollout)
        if branch is None:
            return dict(rollout=rollout)
        parent = self.finished[branch.parent]
        before = parent.turns[: branch.turn - 1]
        return dict(rollout=rollout, analysis=parent.analysis, before=before)

    def draws_as(self, rollout, request):
        """Returns the rollout in the random address of a `ModelRequest`.

        The analysis is one for all. A branch has its parent's address, so that what follows is
        drawn alike, but for the action that it is there to draw anew.
        """
        branch = self.branches.get(rollout)
        if request.role == "analyst":
            return 0
        if branch is None or (request.role, request.turn) == ("planner", branch.turn):
            return rollout
        return branch.parent


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

    @property
    def lane(self):
        """Of a trace: (place in the batch, id of the question, rollout)."""
        return self.question.index, self.question.fields["id"], self.rollout


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
