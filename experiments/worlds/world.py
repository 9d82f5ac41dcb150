"""What a world is: questions in splits without overlap, and how they are solved, well and badly.

A script drives the real `solve` instead of models, so every demonstrated prompt is one that will be
seen later. Executor, verifier, generator and analyst are demonstrated well. The planner knows the
form but often chooses badly on purpose (Stage.odds), for Flow-GRPO to mend. docs/worlds.md shows
how to make a world.
"""

import collections
import dataclasses
import json
import random
from collections.abc import Callable, Iterator, Mapping

from agents import effects, prompts, solve
from tools import protocol

UNKNOWN = "unknown"  # what the model's own memory says, and the answer to what is not solved
SPLITS = ("train", "held_out", "all")  # "all": both, for the words of a tokenizer
WORDS = "print(number of Gold)"  # as a program
# Draws without a new question after which a source has no more: so many, and so many for each that
# it gave. The last of n is missed by 30n draws with a chance of e^-30.
FRUITLESS, FRUITLESS_EACH = 1_000, 30


@dataclasses.dataclass(frozen=True)
class Move:
    """A step that a planner may take, the command that follows, and what the tool says to it.

    context, sub_goal: the executor sees nothing else, so the command must follow from them.
    result: of the real tool; None if the command is words that Python refuses.
    leads: whether the solution is one stage further with it.
    answer: what is answered if the solution ends with it; "" if that is the problem's answer.
    """

    context: str
    sub_goal: str
    tool: str
    command: str
    result: str | None
    leads: bool = False
    answer: str = ""


# A name always follows a blank: its tokens are then the same wherever it is copied.


def search(entity, need, result, *, leads=False):
    """Returns the Move that searches for the fact `need` of an entity."""
    command = f'knowledge_search(query="{need} of {entity}")'
    return Move(entity, need, "knowledge_search", command, result, leads)


def program(context, need, code, result, **outcome):
    """Returns the Move of a program; outcome: `leads` and `answer` of it."""
    command = f'python_coder(code="{code}")'
    return Move(context, need, "python_coder", command, result, **outcome)


def ask(context, need):
    """Returns the Move that asks the model's own memory, which is empty."""
    command = f'base_generator(query="{need} of {context}")'
    return Move(context, need, "base_generator", command, UNKNOWN)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a solution: what may be done in it by name, and how often it is demonstrated.

    odds: name -> weight. The moves that lead on are the good ones.
    """

    moves: Mapping[str, Move]
    odds: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question with its solution.

    answer, kind, source: of the question's row (docs/data.md). The source is the world's name,
      or begins with it and a slash.
    analysis: what the analyst says: the needs in their order.
    stages: met in their order.
    numbers: of a game of 24.
    """

    question: str
    answer: str
    kind: str
    source: str
    analysis: str
    stages: tuple[Stage, ...]
    numbers: tuple[int, ...] = ()

    def row(self, name):
        """Returns the row of a question file."""
        row = {"id": name, "question": self.question, "answer": self.answer}
        row |= {"kind": self.kind, "source": self.source}
        return row | ({"numbers": list(self.numbers)} if self.numbers else {})


@dataclasses.dataclass(frozen=True)
class World:
    """A source of questions, all about things that one agent can find out with its tools.

    name: also the first part of every question's source.
    tools: that solutions call.
    sources: of its questions; files hold equally many of each.
    draw: (split, rng) -> a random Problem of that split; nothing is asked in both.
    documents: () -> (title, text) pairs that knowledge_search must find.
    invent: tokenizer -> (rng -> Problem about invented things, so that names must be copied). None:
      demonstrations show the training split alone.
    """

    name: str
    tools: tuple[str, ...]
    sources: tuple[str, ...]
    draw: Callable
    documents: Callable = lambda: ()
    invent: Callable | None = None

    def questions(self, split: str, rng: random.Random) -> Iterator[Problem]:
        """Yields endless random problems of a split; some come again."""
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is unknown; valid: {', '.join(SPLITS)}.")
        while True:
            yield self.draw(split, rng)

    def demonstrations(self, rng, *, split="train", tokenizer=None, real_share=1.0):
        """Yields endless problems to demonstrate.

        real_share: of the problems that are about the split, where others can be invented from the
          pieces of a tokenizer.
        """
        if self.invent is None:
            yield from self.questions(split, rng)
        invent = None if real_share == 1.0 else self.invent(tokenizer)
        while True:
            real = rng.random() < real_share
            yield self.draw(split, rng) if real else invent(rng)


def distinct(world: World, split: str, count: int, *, seed: int) -> list[Problem]:
    """Draws `count` different questions of a split, equally many of each source.

    Raises:
      ValueError: a source has fewer: its last new question came long ago.
    """
    size = len(world.sources)
    wanted = {
        source: count // size + (place < count % size) for place, source in enumerate(world.sources)
    }
    found, of_source = {}, collections.Counter()
    last_new = dict.fromkeys(world.sources, 0)  # by draws
    for draws, problem in enumerate(world.questions(split, random.Random(seed))):
        if len(found) == count:
            break
        for source, last in last_new.items():
            more = FRUITLESS + FRUITLESS_EACH * of_source[source]
            if of_source[source] < wanted[source] and draws - last > size * more:
                raise ValueError(
                    f"{world.name} has fewer than {count} different questions of {split}: "
                    f"{of_source[source]} of {source}. Ask for fewer."
                )
        source = problem.source
        if problem.question not in found and of_source[source] < wanted[source]:
            found[problem.question] = problem
            of_source[source] += 1
            last_new[source] = draws
    return list(found.values())


def write(path, problems, split):
    """Writes a question file, with ids such as "train-0000"."""
    rows = (problem.row(f"{split}-{index:04d}") for index, problem in enumerate(problems))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# ---- demonstrations ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sample:
    """One model call: chat messages and the text to be written."""

    role: str
    messages: tuple[dict, ...]
    response: str


class Actor:
    """Plays the modules for one problem.

    flawless: take only moves that lead on, the likeliest one.
    temperature: above 0, of the choice of moves by their odds: lower takes the likeliest more.
    """

    def __init__(self, problem, rng, *, flawless, temperature=1.0):
        self.problem, self.rng = problem, rng
        self.flawless, self.temperature = flawless, temperature
        self.done, self.move = 0, None  # finished stages; the latest move

    @property
    def solved(self):
        return self.done == len(self.problem.stages)

    def reply(self, request):
        return getattr(self, request.role)()

    def analyst(self):
        return self.problem.analysis

    def planner(self):
        stage = self.problem.stages[self.done]
        odds = stage.odds
        if self.flawless:
            odds = {name: odds.get(name, 0.0) for name, move in stage.moves.items() if move.leads}
            odds = {max(odds, key=odds.get): 1.0}
        weights = [weight ** (1 / self.temperature) for weight in odds.values()]
        self.move = stage.moves[self.rng.choices(list(odds), weights)[0]]
        return (
            f"Context: {self.move.context}\nSub-goal: {self.move.sub_goal}\nTool: {self.move.tool}"
        )

    def executor(self):
        return self.move.command

    def base(self):
        return UNKNOWN

    def advance(self):
        """Notes that the latest move's result is known."""
        self.done += self.move.leads

    def verifier(self):
        return "Verdict: STOP" if self.solved else "Verdict: CONTINUE"

    def generator(self):
        known = self.move.answer or self.problem.answer
        return f"Answer: {known if self.solved else UNKNOWN}"


def demonstrate(
    problem,
    rng,
    *,
    syntax_error,
    flawless=False,
    temperature=1.0,
    prompt_set=prompts.COMPACT,
    **how,
):
    """Yields the samples of one trajectory, in order; tools are not run, moves know their results.

    syntax_error: what the Python tool says of WORDS.
    flawless, temperature: of `Actor`.
    how: of `solve.solve`: tools, as the config makes them, and max_turns.
    """
    actor = Actor(problem, rng, flawless=flawless, temperature=temperature)
    question = {"id": "demonstration", "question": problem.question}
    solver = solve.solve(question, prompt_set=prompt_set, **how)
    effect = next(solver)
    while True:
        if isinstance(effect, effects.ToolCall):
            actor.advance()
            sent = _result(actor.move, effect, syntax_error)
        else:
            text = actor.reply(effect)
            yield Sample(effect.role, effect.messages, text)
            sent = effects.Reply(text)
        try:
            effect = solver.send(sent)
        except StopIteration:
            return


def _result(move, call, syntax_error):
    if call.tool == "base_generator":
        return effects.ToolResult("", ask=call.arguments["query"])
    if move.result is None:
        return effects.ToolResult(syntax_error, error=True)
    return effects.ToolResult(move.result)


def trajectories(problems, rng, *, tools, **how):
    """Yields the samples of each of endless problems, which may draw from the same `rng`.

    how: of `demonstrate`.
    """
    how |= dict(tools=tools, syntax_error=refusal_of_words(tools["python_coder"]))
    for problem in problems:
        yield list(demonstrate(problem, rng, **how))


def demonstrations(
    worlds, *, seed, split="train", tokenizer=None, real_share=1.0, **how
) -> Iterator[Sample]:
    """Yields endless samples of all worlds, whole trajectories of a random one after another.

    split, tokenizer, real_share: of `World.demonstrations`.
    how: of `trajectories`.
    """

    def play(world):
        rng = random.Random(seed)
        which = dict(split=split, tokenizer=tokenizer, real_share=real_share)
        return trajectories(world.demonstrations(rng, **which), rng, **how)

    playing, order = [play(world) for world in worlds], random.Random(seed)
    while True:
        yield from next(order.choice(playing))


def refusal_of_words(python_coder):
    """Returns what the real tool says of words that are not Python."""
    try:
        protocol.call(python_coder, {"code": WORDS})
    except protocol.ToolError as error:
        return str(error)
    raise AssertionError("The Python tool ran words that are not Python.")
