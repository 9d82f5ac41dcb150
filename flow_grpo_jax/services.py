"""What answers the requests and calls of solvers."""

import concurrent.futures
import dataclasses
from typing import Any

from agents import effects
from agents.environments import protocol

# The weight set of the engine that answers a role, unless `System.models` names something else.
WEIGHTS = {role: "policy" if role == "planner" else "frozen" for role in effects.ROLES}


@dataclasses.dataclass(frozen=True)
class System:
    """What answers the requests and calls of solvers.

    engine: `models.engine.engine.Engine` or `Replicas` serving "policy" and "frozen".
    tokenizer: `models.tokenizer.Tokenizer` of its models.
    tools: dict name -> Tool, for all questions.
    pool: ThreadPoolExecutor for the tools.
    models: role -> what answers it, "frozen" or "policy" of the engine, or a remote model
      (`agents.backends.modules.Module`). Roles left out are answered by "frozen"; the planner is
      always "policy".
    grammars: None, or the `models.engine.grammar.Grammars` that hold the engine's replies to the
      forms of their roles; the engine must be built for constraints. The planner is always free.
    environment: None, or the `environments.protocol.Environment` of the questions of its kind,
      whose tools only they have.
    """

    engine: Any
    tokenizer: Any
    tools: dict
    pool: concurrent.futures.Executor
    models: dict = dataclasses.field(default_factory=dict)
    grammars: Any = None
    environment: Any = None

    def __post_init__(self):
        if "planner" in self.models:
            raise ValueError("The planner is answered by the policy, which is trained.")
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

    def close(self):
        """Ends calls of tools that have not begun, and the environment."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        if self.environment:
            self.environment.close()

    @property
    def tool_names(self):
        """The names of all tools, whatever the question."""
        own = self.environment.tools if self.environment else ()
        return (*self.tools, *(tool.name for tool in own))
