"""Environments: sources of questions from outside, which keep a state for each trajectory.

An `Environment` lists questions, describes its tools and starts an `Episode` for each trajectory.
The episode runs the calls of that trajectory alone and gives its reward at the end. What is
random in it comes from the question, so equal calls have equal results.

An exception that is no `ToolError` is a failure of infrastructure: the trajectory is started again
with a new episode, then left out. It is never a wrong answer.
"""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from absl import logging

from agents import effects
from tools.protocol import Tool, ToolError, clean

KIND = "environment"  # of questions whose reward their environment gives
SPLITS = ("train", "held_out")
ROUNDING = 1e-6  # of a total's share of its range; rewards may be float32
MOST_REMEMBERED = 100_000  # results of calls that are compared with those of other trajectories


class Episode(Protocol):
    """What one trajectory changes. Its methods may wait; one is called at a time, in any thread."""

    def call(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """Returns what a tool says; raises `ToolError` for a mistake of the model."""

    def score(self, trajectory) -> float:
        """Returns the reward of the `Trajectory`, from 0 to 1, 1 for a success."""

    def close(self) -> None:
        """Gives up what the episode holds."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an environment is made; a config's section `data.environment`.

    seconds: deadline of a call, kept by the environment where it can.
    reward_low, reward_high: totals of rewards that are worth 0 and 1.
    rules: what a question begins with; "" for the environment's own.
    actions: names of numbered actions; () for the environment's own.
    max_characters: of a result.
    options: arguments of the environment itself.
    """

    seconds: float
    reward_low: float
    reward_high: float
    rules: str
    actions: tuple[str, ...]
    max_characters: int
    options: Mapping[str, Any]

    def __post_init__(self):
        if not self.reward_low < self.reward_high:
            raise ValueError(
                f"data.environment.reward_low={self.reward_low} must be less than "
                f"reward_high={self.reward_high}."
            )

    def scaled(self, total: float) -> float:
        """Returns the reward of a total; outside of 0 to 1 if the bounds are wrong.

        A sum of rewards that is a bound but for its rounding is that bound.
        """
        share = (total - self.reward_low) / (self.reward_high - self.reward_low)
        return next((end for end in (0.0, 1.0) if abs(share - end) < ROUNDING), share)

    def cut(self, text: str) -> str:
        most = self.max_characters
        return text if len(text) <= most else text[:most] + " [cut]"


@dataclasses.dataclass(frozen=True)
class Environment:
    """A source of questions from outside.

    name: the source of its questions.
    tools: as the model sees them; calls go to the episode, `Tool.run` is not used.
    questions: (split, count) -> so many questions of a split, as `question` makes them. Every
      process asks for them and must get the same.
    start: question -> a new Episode; it may wait.
    close: ends what the environment holds.
    cut: text of a result or an error -> what the model is shown of it.
    """

    name: str
    tools: tuple[Tool, ...]
    questions: Callable[[str, int], list[dict]]
    start: Callable[[Mapping], Episode]
    close: Callable[[], None] = lambda: None
    cut: Callable[[str], str] = lambda text: text


def question(environment: str, split: str, number: int, text: str, **fields) -> dict:
    """Returns a question; fields: JSON-able, such as the seed that its episodes begin with."""
    return {
        "id": f"{environment}/{split}/{number}",
        "question": clean(text),
        "answer": (),
        "kind": KIND,
        "source": environment,
        **fields,
    }


class Play:
    """The episode of one trajectory, started by what needs it first, in the thread of that.

    tools: name -> Tool of the environment, bound to this trajectory.
    """

    def __init__(self, environment: Environment, question: Mapping):
        self.tools = {tool.name: self._bound(tool) for tool in environment.tools}
        self._environment, self._question = environment, question
        self._episode, self._calls, self._closed = None, [], False
        self._lock = threading.Lock()

    def score(self, trajectory) -> float:
        """Returns the reward; raises ValueError if it is not from 0 to 1."""
        reward = float(self._with_episode(lambda episode: episode.score(trajectory)))
        if not 0 <= reward <= 1:
            raise ValueError(
                f"The environment {self._environment.name} gave the reward {reward}; rewards are "
                "from 0 to 1. Set data.environment.reward_low and reward_high to its lowest and "
                "highest total."
            )
        return reward

    @property
    def closed(self) -> bool:
        """Whether there is no episode any more, nor a call that may be starting one."""
        return self._closed and self._episode is None and not self._lock.locked()

    def close(self, *, wait: bool = False) -> None:
        """Closes the episode: now, or at the end of the call that is still running.

        wait: for that end.
        """
        self._closed = True
        if self._lock.acquire(blocking=wait):
            try:
                episode, self._episode = self._episode, None
                if episode is not None:
                    _held.pop(id(episode), None)
                    episode.close()
            finally:
                self._lock.release()

    def _bound(self, tool):
        def run(**arguments):
            return self._with_episode(lambda episode: self._call(episode, tool.name, arguments))

        return dataclasses.replace(tool, run=run)

    def _call(self, episode, tool, arguments):
        self._calls.append([tool, arguments])
        try:
            result = episode.call(tool, dict(arguments))
        except ToolError as error:
            raise ToolError(self._environment.cut(str(error))) from error
        if not isinstance(result, str):
            raise TypeError(
                f"The environment {self._environment.name} returned {type(result).__name__} as a "
                f"result of {tool}, which must be a text."
            )
        result = self._environment.cut(result)
        _compare(self._environment.name, [self._question["id"], self._calls], result)
        return result

    def _with_episode(self, do):
        try:
            with self._lock:
                if self._closed:
                    raise RuntimeError("The episode is closed.")
                if self._episode is None:
                    self._episode = self._started()
                return do(self._episode)
        finally:
            if self._closed:
                self.close()

    def _started(self):
        name = self._environment.name
        try:
            episode = self._environment.start(self._question)
        except ToolError as error:  # no mistake of the model: it was not asked for anything
            raise RuntimeError(f"The environment {name} did not start: {error}") from error
        if id(episode) in _held:
            logging.log_first_n(
                logging.WARNING,
                "The environment %s gave one episode to two trajectories at once. If it holds a "
                "state, they disturb each other: start must make a new one.",
                1,
                name,
            )
        _held[id(episode)] = episode
        return episode


def scored(solver, play: Play):
    """Runs a solver, then asks for the reward of its trajectory: yields `effects.Score` last."""
    trajectory = yield from solver
    if trajectory.broken:
        return trajectory
    try:
        reward = yield effects.Score(trajectory, play.score)
    except effects.Interrupted as interrupted:
        how = dict(status=interrupted.status, error=str(interrupted))
        return dataclasses.replace(trajectory, **how)
    return dataclasses.replace(trajectory, reward=reward)


_held = {}  # id of an episode that is not closed -> it
_results, _results_lock = {}, threading.Lock()  # digest of calls -> hash of their last result


def _compare(name, calls, result):
    """Warns once of an environment whose results differ after the same calls."""
    key = hashlib.sha256(json.dumps([name, calls], sort_keys=True).encode()).digest()
    with _results_lock:
        known = len(_results) >= MOST_REMEMBERED or _results.setdefault(key, hash(result))
    if known not in (True, hash(result)):
        logging.log_first_n(
            logging.WARNING,
            "The environment %s is not deterministic: the same calls gave two results in question "
            "%s. A run that is resumed will differ; what each trajectory saw is in trajectories/.",
            1,
            name,
            calls[0],
        )
