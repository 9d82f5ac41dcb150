"""An environment for tests: count to a goal, one call at a time."""

import threading

from agents.environments import protocol
from tools.protocol import Parameter, Tool, ToolError

GOAL = 2


def settings(**changes):
    values = dict(
        seconds=20.0,
        reward_low=0.0,
        reward_high=1.0,
        rules="",
        actions=(),
        max_characters=2_000,
        options={},
    )
    return protocol.Settings(**values | changes)


class Counter:
    """The episodes of `count` that were started and closed, and what goes wrong in them.

    broken: method -> exception, or a function that is called, in the first `times` episodes.
    """

    def __init__(self, *, broken=None, times=99):
        self.broken, self.times = broken or {}, times
        self.started = self.closed = 0
        self._lock = threading.Lock()

    def start(self, question):
        with self._lock:
            self.started += 1
            return Episode(self, breaks=self.started <= self.times)

    @property
    def environment(self):
        return protocol.Environment("counting", (TOOL,), questions, self.start)


class Episode:
    def __init__(self, counter, breaks):
        self._counter, self._breaks, self._count = counter, breaks, 0

    def call(self, tool, arguments):
        self._maybe_break("call")
        if arguments["by"] != 1:
            raise ToolError("Count by 1.")
        self._count += 1
        return f"It is {self._count}."

    def score(self, trajectory):
        self._maybe_break("score")
        return min(self._count / GOAL, 1.0)

    def close(self):
        self._counter.closed += 1

    def _maybe_break(self, method):
        if self._breaks and (what := self._counter.broken.get(method)):
            if isinstance(what, Exception):
                raise what
            what()


def questions(split, count):
    return [protocol.question("counting", split, i, f"Count to {GOAL}.") for i in range(count)]


TOOL = Tool("count", "Counts.", (Parameter("by", "int", "1"),), "", "count(by=1)", None, 1.0)
