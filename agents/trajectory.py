"""The record of one solved question, and its stable JSON form."""

import dataclasses
import enum

from agents import pieces

VERSION = 1


class Status(enum.StrEnum):
    """How the attempt at a question went."""

    OK = "ok"
    TRUNCATED = "truncated"  # a planner response or a prompt met its limit
    TIMEOUT = "timeout"
    INFRA_ERROR = "infra_error"  # not the model's fault


class Stop(enum.StrEnum):
    """What ended the turns."""

    VERIFIED = "verified"
    BUDGET = "budget"
    DEADLINE = "deadline"
    PARSE_ERROR = "parse_error"  # no answer could be read


# Statuses of trajectories that say nothing about the planner: not trained on, not scored.
BROKEN = (Status.TIMEOUT, Status.INFRA_ERROR)


@dataclasses.dataclass(frozen=True)
class Turn:
    """One planner turn and its outcome.

    prompt_tokens, response_tokens: the token ids the planner saw and sampled; training uses these,
      never a re-tokenised text.
    logprobs: nats, log π_old of response_tokens under the distribution they were drawn from.
    finished: False if the token limit cut the planner off.
    tool_error: the turn has no result: unreadable plan or command, unknown tool, failed call.
    parse_failures: how many texts of this turn's modules their parsers refused.
    verdict: "CONTINUE" or "STOP".
    results: of each call of the command that was made, in order; `result` is these on lines of
      their own, or what the parser said.
    """

    index: int
    prompt_tokens: tuple[int, ...]
    response_tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool
    planner_text: str
    context: str
    sub_goal: str
    tool: str
    command: str
    result: str
    tool_error: bool
    verdict: str
    parse_failures: int
    shortened: int
    seconds: float
    results: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Branch:
    """Where a trajectory leaves another of its question, whose turns before are its own too.

    parent: the rollout of the other.    turn: the first one, from 1, that is drawn anew.
    """

    parent: int
    turn: int


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One solved question.

    seconds: wall-clock; of a branch, from there on.
    error: what ended a trajectory that is not ok, or "".
    attempts: times it was started; more than 1 after infrastructure failures.
    earlier: turn budget -> what the same solver would have returned with that smaller budget.
    branch: None for a trajectory that began at the question.
    reward: from its environment, 0 to 1; None where the answer is scored, or it is `broken`.
    """

    question_id: str
    rollout: int
    analysis: str
    turns: tuple[Turn, ...]
    answer: str
    status: Status
    stop: Stop
    seconds: float
    error: str = ""
    attempts: int = 1
    earlier: dict = dataclasses.field(default_factory=dict)
    branch: Branch | None = None
    reward: float | None = None

    @property
    def own_turns(self):
        """The turns that were drawn for this trajectory, not taken from its parent."""
        return self.turns[self.branch.turn - 1 :] if self.branch else self.turns

    @property
    def broken(self):
        """Whether infrastructure or a deadline ended it, so that it says nothing of the planner."""
        return self.status in BROKEN

    @property
    def too_long(self):
        """Whether a prompt over its limit ended it."""
        return self.status == Status.TRUNCATED and bool(self.error)


KINDS = (Trajectory, Turn, Branch, Status, Stop)  # of which a trajectory is made


def to_json(
    trajectory, *, question, step, reward, reward_source, advantage, of_turns=None, decode=None
):
    """Returns the line written to `trajectories/*.jsonl`; docs/design.md has the schema.

    of_turns: advantages of the turns, None for those not trained on; None if they have no own.
    decode: token ids -> text; with it, turns have the log-probs of single tokens.
    """
    turns = [
        {
            "index": turn.index,
            "prompt_tokens": len(turn.prompt_tokens),
            "response_tokens": len(turn.response_tokens),
            "planner_text": turn.planner_text,
            "context": turn.context,
            "sub_goal": turn.sub_goal,
            "tool": turn.tool,
            "command": turn.command,
            "result": turn.result,
            **_of_calls(turn),
            "tool_error": turn.tool_error,
            "verdict": turn.verdict,
            "parse_failures": turn.parse_failures,
            "logprob_sum": float(sum(turn.logprobs)),
            **_of_tokens(turn, decode),
            "seconds": round(turn.seconds, 4),
        }
        for turn in trajectory.turns
    ]
    if of_turns is not None:
        for turn, own in zip(turns, of_turns, strict=False):  # there may be longer trajectories
            turn["advantage"] = own
    branch = {"branch": dataclasses.asdict(trajectory.branch)} if trajectory.branch else {}
    return {
        "version": VERSION,
        "step": step,
        "question_id": trajectory.question_id,
        "rollout": trajectory.rollout,
        **branch,
        "question": question["question"],
        "gold": question["answer"],
        "source": question.get("source"),
        "analysis": trajectory.analysis,
        "turns": turns,
        "answer": trajectory.answer,
        "reward": reward,
        "reward_source": reward_source,
        "advantage": advantage,
        "status": trajectory.status,
        "stop": trajectory.stop,
        "seconds": round(trajectory.seconds, 4),
        "error": trajectory.error,
        "attempts": trajectory.attempts,
    }


def _of_calls(turn):
    """Returns the result of each call, where `result` does not say whose they are."""
    apart = len(turn.results) > 1 or (turn.results and turn.tool_error)
    return {"results": list(turn.results)} if apart else {}


def _of_tokens(turn, decode):
    """Returns characters and log-prob of each sampled token; {} where they cannot be told apart."""
    found = decode and pieces.characters(decode, turn.response_tokens, turn.planner_text)
    if not found:
        return {}
    return {
        "token_characters": found,
        "token_logprobs": [round(logprob, 4) + 0.0 for logprob in turn.logprobs],
    }
