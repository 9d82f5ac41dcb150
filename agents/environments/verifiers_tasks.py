"""Tasksets of verifiers: prompts of its tasks, and their own rewards of the final answer.

A task sees a trace of two messages, its prompt and the answer. Every fifth task is held out.
"""

import asyncio
import inspect
import itertools

from agents.environments import protocol

HELD_OUT_EVERY = 5


def make(target: str, settings: protocol.Settings) -> protocol.Environment:
    """Makes the environment of an installed taskset.

    settings: `options` are fields of the taskset's config.

    Raises:
      ValueError: there is no verifiers or no such taskset, or it asks for more than a text.
    """
    try:
        from verifiers.v1.utils import loaders
    except ImportError as error:
        raise ValueError(f"verifiers cannot be imported ({error}); see docs/worlds.md.") from error
    try:
        config = loaders.taskset_config_type(target).model_validate(
            dict(settings.options) | {"id": target}
        )
        taskset = loaders.load_taskset(config)
        kind = loaders.environment_class(target)
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(f"verifiers makes no taskset {target}: {error}") from error
    if kind is not loaders.SingleAgentEnv:
        raise ValueError(f"The taskset {target} has a loop of its own ({kind.__name__}).")
    if taskset.toolsets(config):
        raise ValueError(_SERVERS.format(target))
    tasks = {}

    def questions(split, count):
        drawn = (
            (number, task)
            for number, task in enumerate(taskset)
            if (number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == (split == "held_out")
        )
        found = []
        for number, task in itertools.islice(drawn, count):
            text = _text(target, task, settings)
            tasks[number] = task
            found.append(protocol.question(target, split, number, text, task=number))
        if len(found) < count:
            raise ValueError(
                f"{target} has {len(found)} tasks to {_USES[split]}; "
                f"data.environment.{split}={count} asks for more."
            )
        return found

    return protocol.Environment(
        name=target,
        tools=(),
        questions=questions,
        start=lambda question: _Episode(tasks[question["task"]], question["question"], settings),
    )


_USES = {"train": "train on", "held_out": "hold out"}
_SERVERS = (
    "Tools of the taskset {} are servers of its own. Start them, name them in tools.mcp, and leave "
    "them out of the taskset."
)


def _text(target, task, settings):
    """Returns the prompt of a task; refuses a task that needs more than an answer."""
    name = f"Task {task.data.idx} of {target}"
    if type(task).toolsets(task.config):
        raise ValueError(_SERVERS.format(target))
    if task.NEEDS_CONTAINER:
        raise ValueError(f"{name} needs a container.")
    rewards = task.hooks("reward")
    if not rewards:
        raise ValueError(f"{name} has no reward.")
    for reward in rewards:
        parameter = inspect.signature(reward).parameters.get("runtime")
        if parameter and parameter.default is inspect.Parameter.empty:
            raise ValueError(f"{name} needs a runtime for its reward {reward.__name__}.")
    prompt = task.data.prompt
    parts = [prompt] if isinstance(prompt, str) else [each.content for each in prompt or ()]
    if not parts or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{name} has no prompt of text alone.")
    return "\n\n".join(filter(None, (settings.rules or task.data.system_prompt, *parts)))


class _Episode:
    """Scores an answer by a task; nothing is called in it."""

    def __init__(self, task, prompt, settings):
        self._task, self._prompt, self._settings = task, prompt, settings

    def call(self, tool, arguments):
        raise AssertionError("The tasks have no tools of their own.")

    def score(self, trajectory):
        trace = _trace(self._task, self._prompt, trajectory.answer)
        scoring = asyncio.wait_for(self._task.score(trace), self._settings.seconds)
        asyncio.run(scoring)
        return self._settings.scaled(trace.reward)

    def close(self):
        pass


def _trace(task, prompt, answer):
    import verifiers.v1 as vf

    return vf.Trace(
        task=vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        nodes=[
            vf.MessageNode(message=vf.UserMessage(content=prompt)),
            vf.MessageNode(parent=0, message=vf.AssistantMessage(content=answer), sampled=True),
        ],
        is_completed=True,
        ok=True,
    )
