"""Demonstrations for the quickstart's warm start.

A script drives the real `solve` instead of models, so every prompt is one that will be seen later.
Executor, verifier, generator and analyst are demonstrated well. The planner knows the form but
chooses badly on purpose (MISTAKES), for Flow-GRPO to mend. Most demonstrations play in invented
worlds, where nothing can be remembered and names must be copied.
"""

import dataclasses
import random

from agents import effects, prompts, solve
from experiments.quickstart import questions
from tools import knowledge_base

UNKNOWN = "unknown"

# Situation -> choices of the demonstrated planner, with their probabilities.
# right: the good step; ask: the model's own memory, which is empty; code: Python on words, an
# error; again: looks the first entity up once more.
MISTAKES = {
    "first look-up": {"right": 0.45, "ask": 0.35, "code": 0.2},
    "next look-up": {"right": 0.3, "ask": 0.2, "code": 0.1, "again": 0.4},
    "computation": {"right": 0.3, "ask": 0.45, "again": 0.25},
}
NO_MISTAKES = {situation: {"right": 1.0} for situation in MISTAKES}


@dataclasses.dataclass(frozen=True)
class Sample:
    """One model call: chat messages and the text to be written."""

    role: str
    messages: tuple[dict, ...]
    response: str


class Demonstrator:
    """Plays the four modules for one problem."""

    def __init__(self, problem, world, rng, mistakes, syntax_error):
        self.problem, self.world, self.rng = problem, world, rng
        self.mistakes, self.syntax_error = mistakes, syntax_error
        self.done = 0  # good steps whose value is known
        self.context = self.need = self.tool = self.result = ""

    def reply(self, request):
        return getattr(self, request.role)()

    def analyst(self):
        return ", ".join(self.problem.needs)

    def planner(self):
        step, first = self.problem.steps[self.done], self.problem.steps[0]
        if step.need in questions.ARITHMETIC:
            situation = "computation"
        else:
            situation = "next look-up" if self.done else "first look-up"
        moves = self.mistakes[situation]
        move = self.rng.choices(list(moves), list(moves.values()))[0]
        right_tool = "python_coder" if situation == "computation" else "knowledge_search"
        tool = {"ask": "base_generator", "code": "python_coder"}.get(move, right_tool)
        if move == "again":
            step, tool = first, "knowledge_search"
        self.context, self.need, self.tool = step.entity, step.need, tool
        return f"Context: {self.context}\nSub-goal: {self.need}\nTool: {self.tool}"

    def executor(self):
        # A name always follows a blank: its tokens are then the same wherever it is copied.
        if self.tool != "python_coder":
            return f'{self.tool}(query="{self.need} of {self.context}")'
        if self.need in questions.ARITHMETIC:
            first, second = self.context.split(", ")
            return f'python_coder(code="print({first} {questions.ARITHMETIC[self.need]} {second})")'
        return f'python_coder(code="print({self.need} of {self.context})")'

    def base(self):
        self.result = UNKNOWN
        return UNKNOWN

    def run_tool(self):
        """Returns the tool's result in this world; moves on when it holds the next value."""
        expected = self.problem.steps[self.done]
        if self.tool == "base_generator":
            return effects.ToolResult("", ask=f"{self.need} of {self.context}")
        useful = (self.context, self.need) == (expected.entity, expected.need)
        self.done += useful
        if self.tool == "knowledge_search":
            return effects.ToolResult(self.world.by_title[self.context].text)
        if self.need in questions.ARITHMETIC:
            return effects.ToolResult(expected.value)
        self.done -= useful
        return effects.ToolResult(self.syntax_error, error=True)

    def verifier(self):
        return "Verdict: STOP" if self.done == len(self.problem.steps) else "Verdict: CONTINUE"

    def generator(self):
        solved = self.done == len(self.problem.steps)
        return f"Answer: {self.problem.answer if solved else UNKNOWN}"


def demonstrate(problem, world, rng, *, tools, mistakes, syntax_error, max_turns):
    """Yields the samples of one trajectory, in order."""
    actor = Demonstrator(problem, world, rng, mistakes, syntax_error)
    question = {"id": "demonstration", "question": problem.question}
    solver = solve.solve(question, tools=tools, prompt_set=prompts.COMPACT, max_turns=max_turns)
    samples, effect = [], next(solver)
    while True:
        if isinstance(effect, effects.ToolCall):
            sent = actor.run_tool()
        else:
            text = actor.reply(effect)
            samples.append(Sample(effect.role, effect.messages, text))
            sent = effects.Reply(text)
        try:
            effect = solver.send(sent)
        except StopIteration:
            return samples


class Inventor:
    """Invents worlds whose names are made of the pieces that a tokenizer gives real names."""

    def __init__(self, articles, tokenizer):
        self.facts = {
            kind: [article.facts for article in articles if article.kind == kind]
            for kind in knowledge_base.TABLES
        }
        self.starts, self.continuations, self.lengths = [], [], []
        names = {article.title for article in articles}
        names |= {article.facts["capital"] for article in articles if "capital" in article.facts}
        for word in sorted({word for name in names for word in name.split()}):
            pieces = [tokenizer.decode([token]) for token in tokenizer.encode(f" {word}")]
            if not all(piece.isascii() and piece.strip() for piece in pieces):
                continue
            self.starts.append(pieces[0].strip())
            self.continuations += pieces[1:]
            self.lengths.append(len(pieces))

    def name(self, rng):
        words = rng.choices((1, 2, 3, 4, 5), (50, 30, 12, 5, 3))[0]
        return " ".join(self._word(rng) for _ in range(words))

    def _word(self, rng):
        more = min(rng.choice(self.lengths), 4) - 1
        return rng.choice(self.starts) + "".join(rng.choices(self.continuations, k=more))

    def world(self, rng):
        """Makes a small consistent world: every reference leads to an article of the world."""
        unused = set()
        while len(unused) < 4 * len(knowledge_base.TABLES):
            unused.add(self.name(rng))
        unused = sorted(unused)
        rng.shuffle(unused)
        names = {kind: [unused.pop() for _ in range(4)] for kind in knowledge_base.TABLES}
        invented = {
            "capital": lambda: self.name(rng),
            "symbol": lambda: rng.choice(self.starts)[:2].capitalize(),
            "number": lambda: str(rng.randint(1, 150)),
            "code": lambda: str(rng.randint(1, 999)),
            "year": lambda: str(rng.randint(1500, 1999)),
            "author": lambda: rng.choice(names["person"]),
            "country": lambda: rng.choice(names["country"]),
        }
        articles = []
        for kind, (_, fact_names) in knowledge_base.TABLES.items():
            for name in names[kind]:
                facts = dict(rng.choice(self.facts[kind]))  # forms, occupations: real ones
                facts |= {fact: invented[fact]() for fact in fact_names if fact in invented}
                text = knowledge_base.render(kind, name, facts)
                articles.append(knowledge_base.Article(name, kind, text, facts))
        return questions.World(articles)


def stream(articles, tokenizer, *, tools, seed, real_share, max_turns, mistakes=None):
    """Yields endless samples; `real_share` of the problems are about the (training) articles given.

    tools: name -> Tool, as the config makes them.
    """
    rng = random.Random(seed)
    real, inventor = questions.World(articles), Inventor(knowledge_base.articles(), tokenizer)
    syntax_error = _syntax_error(tools["python_coder"])
    while True:
        world = real if rng.random() < real_share else inventor.world(rng)
        yield from demonstrate(
            questions.draw(world, rng),
            world,
            rng,
            tools=tools,
            mistakes=mistakes or MISTAKES,
            syntax_error=syntax_error,
            max_turns=max_turns,
        )


def _syntax_error(python_coder):
    """Returns what the real tool says of words that are not Python."""
    from tools import protocol

    try:
        protocol.call(python_coder, {"code": "print(number of Gold)"})
    except protocol.ToolError as error:
        return str(error)
    raise AssertionError("The Python tool ran words that are not Python.")
