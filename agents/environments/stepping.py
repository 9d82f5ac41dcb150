"""Environments of the form reset, step, reward: one step a call, the reward is their sum."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from agents.environments import protocol
from tools.protocol import Tool, ToolError, clean

FIRST_SEED = {"train": 0, "held_out": 2**30}  # of the questions of a split


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step shows.

    reward: of this step alone.    over: whether there is no further step.
    """

    text: str
    reward: float
    over: bool


class World(Protocol):
    """One copy of an environment, for one trajectory at a time."""

    def reset(self, seed: int) -> str:
        """Begins anew; returns the rules and what there is to see."""

    def step(self, tool: str, arguments: Mapping[str, Any]) -> Step:
        """Takes a step; raises `ToolError` for what is no action."""

    def close(self) -> None:
        """Gives the copy up."""


class Episode:
    """A `protocol.Episode` of a World."""

    def __init__(self, world: World, question: Mapping, settings: protocol.Settings):
        self._world, self._settings = world, settings
        self._total, self._over = 0.0, False
        try:
            self._begin(question)
        except BaseException:
            world.close()
            raise

    def _begin(self, question):
        if (begins := _begins(self._world, question["seed"])) != question["question"]:
            raise RuntimeError(
                f"The environment does not begin as it did with seed {question['seed']}: "
                f"{begins!r:.200} instead of {question['question']!r:.200}."
            )

    def call(self, tool: str, arguments: Mapping[str, Any]) -> str:
        if self._over:
            raise ToolError("It is over: no further action counts.")
        step = self._world.step(tool, arguments)
        if not math.isfinite(step.reward):
            raise RuntimeError(f"The environment gave the reward {step.reward}.")
        self._total += step.reward
        self._over = step.over
        text = self._settings.cut(step.text)
        if step.reward:
            text += f" Reward: {step.reward:g}."
        return text + (" It is over." if step.over else "")

    def score(self, trajectory) -> float:
        return self._settings.scaled(self._total)

    def close(self) -> None:
        self._world.close()


def environment(
    name: str,
    *,
    tools: tuple[Tool, ...],
    open_world: Callable[[], World],
    settings: protocol.Settings,
) -> protocol.Environment:
    """Returns an Environment whose questions are what its worlds begin with, one a seed."""

    def questions(split, count):
        world = open_world()
        try:
            return [
                protocol.question(name, split, number, _begins(world, seed), seed=seed)
                for number, seed in enumerate(range(FIRST_SEED[split], FIRST_SEED[split] + count))
            ]
        finally:
            world.close()

    return protocol.Environment(
        name=name,
        tools=tools,
        questions=questions,
        start=lambda question: Episode(open_world(), question, settings),
    )


def _begins(world, seed):
    return clean(world.reset(seed))
