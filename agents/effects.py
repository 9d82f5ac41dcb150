"""An agent's requests to the world, and the replies.

`solve` yields a `ModelRequest` or a `ToolCall` and is sent a `Reply` or a `ToolResult`. Its driver
owns threads, batching, tokens and time. In an environment it ends with a `Score`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

# A role's place in this tuple is part of every request's random address: another order changes all
# draws. New roles go to the end.
ROLES = ("analyst", "planner", "executor", "verifier", "generator", "base")


@dataclasses.dataclass(frozen=True)
class ModelRequest:
    """A chat request of one module.

    role: one of ROLES. The planner is the trained one; the driver maps roles to weights.
    messages: chat messages, ({"role": "system" | "user", "content": str}, ...).
    turn: 1-based turn, 0 before the first and for requests outside a turn.
    form: regular expression of the replies that the role's parser accepts (`forms`); "" for any
      text, and always for the planner, which is trained on its own free text.
    """

    role: str
    messages: tuple[dict, ...]
    turn: int = 0
    form: str = ""


@dataclasses.dataclass(frozen=True)
class Reply:
    """A model's answer: its text and the exact tokens the model saw and sampled.

    logprobs: nats, one for each token, under the distribution the token was drawn from.
    finished: False when the token limit cut the answer off.
    """

    text: str
    prompt_tokens: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finished: bool = True


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call of a named tool with literal keyword arguments that fit its parameters."""

    tool: str
    arguments: dict


@dataclasses.dataclass(frozen=True)
class ToolResult:
    """A tool's output: text for the memory, or `ask`, a prompt that the frozen model answers."""

    text: str
    error: bool = False
    ask: str | None = None


@dataclasses.dataclass(frozen=True)
class Score:
    """A request for the reward of a finished `Trajectory`; the reply is the number.

    by: trajectory -> its reward; it may wait.
    """

    trajectory: Any
    by: Callable
    role: ClassVar[str] = "environment"


@dataclasses.dataclass(frozen=True)
class Refusal:
    """What a parser says of a module's text. Told to who watches; nothing is sent for it."""

    role: str
    text: str


class Interrupted(Exception):
    """Thrown into `solve` by its driver; the trajectory so far is returned with this status.

    status: one of `trajectory.BROKEN`.
    """

    def __init__(self, status, reason):
        super().__init__(reason)
        self.status = status
