"""Articles to ask about, real and invented, and solutions that look facts up and compute.

A solution is a chain of steps. The query analysis names their needs, each step meets one: `search`
the fact `need` of an entity, or compute with what was found.
"""

import dataclasses
import functools
import random

from experiments.worlds.world import Problem, Stage, ask, program, search
from tools import knowledge_base

HELD_OUT_SHARE = 0.3
ARITHMETIC = {"add": "+", "subtract": "-", "multiply": "*"}
# Situation -> choices of the demonstrated planner, with their probabilities.
# right: the good step; ask: the model's own memory, which is empty; code: Python on words, an
# error; again: looks the first entity up once more.
ODDS = {
    "first look-up": {"right": 0.45, "ask": 0.35, "code": 0.2},
    "next look-up": {"right": 0.3, "ask": 0.2, "code": 0.1, "again": 0.4},
    "computation": {"right": 0.3, "ask": 0.45, "again": 0.25},
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a good solution: look `need` up in the article `entity`, or compute.

    need: a fact name; or what to compute from the values in `entity`.
    value: what the next steps take from the result.
    result: what the tool says.
    code: the program of a computation.
    """

    need: str
    entity: str
    value: str
    result: str
    code: str = ""


class Articles:
    """Articles by kind and by title: real ones, or invented ones for demonstrations."""

    def __init__(self, articles):
        self.by_title = {article.title: article for article in articles}
        self.by_kind = {}
        for article in articles:
            self.by_kind.setdefault(article.kind, []).append(article)

    def look_up(self, title, fact):
        article = self.by_title[title]
        return Step(fact, title, article.facts[fact], article.text)

    def follow(self, title, *facts):
        """Returns steps that look a fact up and go on with the article that its value names."""
        steps = []
        for fact in facts:
            steps.append(self.look_up(title, fact))
            title = steps[-1].value
        return tuple(steps)


def compute(need, first, second):
    """Returns the step that applies an operation of ARITHMETIC to two numbers."""
    a, b = int(first), int(second)
    value = str({"add": a + b, "subtract": a - b, "multiply": a * b}[need])
    return Step(
        need, f"{first}, {second}", value, value, f"print({first} {ARITHMETIC[need]} {second})"
    )


def odds_of(step, place):
    """Returns how often each move is demonstrated at a place of a chain of steps."""
    if step.code:
        return ODDS["computation"]
    return ODDS["next look-up" if place else "first look-up"]


def problem(question, steps, *, source, kind, analysis="", odds=odds_of):
    """Returns the Problem that a chain of steps solves; the last step's value is the answer.

    analysis: "" names the needs of all steps.
    odds: function (Step, its place) -> odds of its moves, of those in _MOVES.
    """
    stages = []
    for place, step in enumerate(steps):
        chances = odds(step, place)
        moves = {name: _MOVES[name](step, steps[0]) for name in chances}
        stages.append(Stage(moves, chances))
    analysis = analysis or ", ".join(step.need for step in steps)
    return Problem(question, steps[-1].value, kind, source, analysis, tuple(stages))


def good_move(step):
    """Returns the Move of a step: a search, or a program."""
    if step.code:
        return program(step.entity, step.need, step.code, step.result, leads=True)
    return search(step.entity, step.need, step.result, leads=True)


_MOVES = {  # name -> function (Step, first Step) -> Move
    "right": lambda step, first: good_move(step),
    "ask": lambda step, first: ask(step.entity, step.need),
    "code": lambda step, first: program(
        step.entity, step.need, f"print({step.need} of {step.entity})", None
    ),
    "again": lambda step, first: dataclasses.replace(good_move(first), leads=False),
}


def split(articles, *, seed=0):
    """Returns (train, held-out) Articles that share no entity, directly or by a question.

    People go with their country, works with their author, places with their country.
    """
    rng = random.Random(seed)
    held_out = set()
    for kind in ("country", "state", "element"):
        titles = sorted(article.title for article in articles if article.kind == kind)
        held_out |= set(rng.sample(titles, round(HELD_OUT_SHARE * len(titles))))
    by_title = {article.title: article for article in articles}

    def is_held_out(article):
        parent = article.facts.get("author") or article.facts.get("country")
        return is_held_out(by_title[parent]) if parent else article.title in held_out

    chosen = [article for article in articles if is_held_out(article)]
    rest = [article for article in articles if not is_held_out(article)]
    return Articles(rest), Articles(chosen)


@functools.cache
def splits():
    """Returns split -> Articles of the knowledge base."""
    everything = knowledge_base.articles()
    train, held_out = split(everything)
    return {"train": train, "held_out": held_out, "all": Articles(everything)}


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

    def articles(self, rng):
        """Makes a small consistent world: every reference leads to one of its articles."""
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
        return Articles(articles)
