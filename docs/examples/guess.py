"""A world with a state: guess a number, told each time whether the guess is too low or too high."""

import random

from agents.environments import protocol
from tools.protocol import Parameter, Tool, ToolError

HIGHEST = 20
FIRST_SEED = {"train": 0, "held_out": 1_000_000}


class Episode:
    def __init__(self, question):
        self._number = random.Random(question["seed"]).randint(1, HIGHEST)
        self._found = False

    def call(self, tool, arguments):
        guess = arguments["number"]
        if not 1 <= guess <= HIGHEST:
            raise ToolError(f"Guess a number from 1 to {HIGHEST}.")
        if guess != self._number:
            return "Too low." if guess < self._number else "Too high."
        self._found = True
        return "That is the number."

    def score(self, trajectory):
        return float(self._found)

    def close(self):
        pass


def questions(split, count):
    text = f"Find the number from 1 to {HIGHEST}."
    numbers = enumerate(range(FIRST_SEED[split], FIRST_SEED[split] + count))
    return [protocol.question("guess", split, i, text, seed=seed) for i, seed in numbers]


def make(settings):
    tool = Tool(
        name="guess",
        description="Says whether a number is too low or too high.",
        parameters=(Parameter("number", "int", f"from 1 to {HIGHEST}"),),
        limits="It answers one guess a call.",
        demo="guess(number=10)",
        run=None,  # calls go to the episode
        seconds=settings.seconds,
    )
    return protocol.Environment("guess", (tool,), questions, Episode)
