"""What answers the requests and calls of solvers."""

import concurrent.futures
import dataclasses
import threading
import time
from typing import Any

from absl import logging

from agents import effects
from agents.environments import protocol

# The weight set of the engine that answers a role, unless `System.models` names something else.
WEIGHTS = {role: "policy" if role == "planner" else "frozen" for role in effects.ROLES}
CLOSE_SECONDS = 5  # how long episodes have to close at the end


@dataclasses.dataclass(frozen=True)
class System:
    """What answers the requests and calls of solvers.

    engine: `models.engine.engine.Engine` or `Replicas` serving "policy" and "frozen".
    tokenizer: `models.tokenizer.Tokenizer` of its models.
    tools: dict name -> Tool, for all questions.
    pool: Executor of the tools, such as `workers.Workers`.
    models: role -> what answers it, "frozen" or "policy" of the engine, or a remote model
      (`agents.backends.modules.Module`). Roles left out are answered by "frozen"; the planner is
      always "policy".
    grammars: None, or the `models.engine.grammar.Grammars` that hold the engine's replies to the
      forms of their roles; the engine must be built for constraints. The planner is always free.
    environment: None, or the `environments.protocol.Environment` of the questions of its kind,
      whose tools only they have. Who made it closes it.
    plays: those of it that are not closed yet.
    """

    engine: Any
    tokenizer: Any
    tools: dict
    pool: concurrent.futures.Executor
    models: dict = dataclasses.field(default_factory=dict)
    grammars: Any = None
    environment: Any = None
    plays: set = dataclasses.field(default_factory=set)

    def __post_init__(self):
        if "planner" in self.models:
            raise ValueError("The planner is answered by the policy, which is trained.")
        if self.environment and not self.tool_names:
            raise ValueError(
                f"The environment {self.environment.name} has no tools, and tools.names and "
                "tools.mcp are empty; every turn of the agent calls a tool. Name one: "
                "--config.tools.names=base_generator"
            )
        if len(set(self.tool_names)) < len(self.tool_names):
            raise ValueError(
                f"The environment {self.environment.name} has a tool that is called as one of "
                f"tools.names or tools.mcp: {', '.join(self.tool_names)}. Leave that out."
            )

    def model_of(self, role):
        """Returns the weight set or the remote model that answers a role."""
        return self.models.get(role, WEIGHTS[role])

    def tools_of(self, question):
        """Returns name -> Tool of a question, for its prompts."""
        if question.get("kind") != protocol.KIND:
            return self.tools
        return self.tools | {tool.name: tool for tool in self.environment.tools}

    def begin(self, question):
        """Returns the `environments.protocol.Play` of a question; None if it has no environment."""
        if question.get("kind") != protocol.KIND:
            return None
        play = protocol.Play(self.environment, question)
        self.plays.add(play)
        return play

    def end(self, play):
        """Closes a play in the pool, since that may wait."""
        self.pool.submit(self._close, play)

    def close(self):
        """Ends calls of tools that have not begun, and all plays, for which it waits, not long."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        for play in [*self.plays]:
            how = dict(args=(play,), kwargs={"wait": True}, daemon=True)
            threading.Thread(target=self._close, **how).start()
        deadline = time.monotonic() + CLOSE_SECONDS
        while self.plays and time.monotonic() < deadline:
            time.sleep(0.01)
        if self.plays:
            logging.warning(
                "%d episodes of %s did not close within %d s",
                len(self.plays),
                self.environment.name,
                CLOSE_SECONDS,
            )

    def _close(self, play, *, wait=False):
        try:
            play.close(wait=wait)
        except Exception as error:  # noqa: BLE001  its trajectory has ended
            logging.warning("an episode could not be closed: %s: %s", type(error).__name__, error)
        if play.closed:
            self.plays.discard(play)

    @property
    def tool_names(self):
        """The names of all tools, whatever the question."""
        own = self.environment.tools if self.environment else ()
        return (*self.tools, *(tool.name for tool in own))
