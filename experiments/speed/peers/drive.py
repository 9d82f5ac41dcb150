"""Sends a load's requests to something that generates, on a clock that leaves out idle waiting.

A load is a list of chains, each a list of turns (prompt, new, wait): a turn may be sent `wait`
seconds after the one before it ended, as an agent waits for its tool. When nothing else is to be
done, the clock jumps over the wait, so a run takes as long as its work and reports the time that it
would have taken. This file runs in every contestant's environment and imports the standard library
alone.
"""

import collections
import heapq
import time
from typing import NamedTuple


class Turn(NamedTuple):
    """One request. prompt: token ids. new: tokens to generate. wait: seconds."""

    prompt: list
    new: int
    wait: float


class Run:
    """One pass over the chains: when each turn may be sent, and its results.

    tokens: {(chain, turn): tokens generated}. first: seconds from when a request could be sent to
    its first token. order: the keys, as they were sent.
    """

    def __init__(self, chains):
        self.chains = [[Turn(*turn) for turn in chain] for chain in chains]
        self.left = sum(map(len, self.chains))
        self.due = [(chain[0].wait, c, 0) for c, chain in enumerate(self.chains)]
        heapq.heapify(self.due)
        self.since, self.tokens, self.first, self.order = {}, {}, [], []
        self.offset = -time.perf_counter()

    def now(self):
        return self.at(time.perf_counter())

    def at(self, reading):
        """Returns seconds on this run's clock at a reading of `time.perf_counter`."""
        return reading + self.offset

    def until_next(self):
        """Returns the seconds until another turn may be sent; None if there is none to wait for."""
        return max(0.0, self.due[0][0] - self.now()) if self.due else None

    def jump(self):
        """Leaves out the time until the next turn may be sent."""
        self.offset += self.until_next()

    def forgive(self, seconds):
        """Leaves out time that was spent on something else, such as compilation."""
        self.offset -= seconds

    def arrived(self):
        """Returns [(key, Turn)] of turns that may be sent now and have not been."""
        ready, now = [], self.now()
        while self.due and self.due[0][0] <= now:
            since, c, t = heapq.heappop(self.due)
            self.since[c, t] = since
            self.order.append((c, t))
            ready.append(((c, t), self.chains[c][t]))
        return ready

    def ended(self, key, tokens, first):
        """Notes that a request ended now; `first` is the reading at its first token."""
        c, t = key
        self.tokens[key] = tokens
        self.first.append(self.at(first) - self.since[key])
        self.left -= 1
        if t + 1 < len(self.chains[c]):
            heapq.heappush(self.due, (self.now() + self.chains[c][t + 1].wait, c, t + 1))

    def report(self):
        return {
            "seconds": self.now(),
            "first": self.first,
            "tokens": [[*key, count] for key, count in sorted(self.tokens.items())],
        }


def in_batches(chains, generate, most):
    """Drives a generator of batches, each to the end of its longest request.

    Args:
      generate: (prompts, new of each) -> (tokens of each, reading at the first token, seconds to
        leave out).
      most: requests of a batch. A batch is whatever is ready when the last one ended, in order of
        arrival.
    """
    run, waiting = Run(chains), collections.deque()
    while run.left:
        waiting.extend(run.arrived())
        if not waiting:
            run.jump()
            continue
        batch = [waiting.popleft() for _ in range(min(most, len(waiting)))]
        prompts, new = [turn.prompt for _, turn in batch], [turn.new for _, turn in batch]
        tokens, first, aside = generate(prompts, new)
        run.forgive(aside)
        for (key, _), count in zip(batch, tokens, strict=True):
            run.ended(key, count, first)
    return run


def continuously(chains, submit, poll):
    """Drives an engine that takes requests at any time.

    Args:
      submit: (key, Turn).
      poll: (seconds to wait at most, or None) -> [(key, tokens, reading at the first token)] that
        ended.
    """
    run, sent = Run(chains), 0
    while run.left:
        for key, turn in run.arrived():
            submit(key, turn)
            sent += 1
        if sent == len(run.tokens):
            run.jump()
            continue
        for key, tokens, first in poll(run.until_next()):
            run.ended(key, tokens, first)
    return run
