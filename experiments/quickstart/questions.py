"""Multi-hop questions over the knowledge base, with an entity-disjoint held-out split.

A question is a chain of needs. The query analysis names them, each step of a good solution meets
one: `search` the fact `need` of an entity, or compute with the numbers found.
"""

import dataclasses
import json
import pathlib
import random

from tools import knowledge_base

HELD_OUT_SHARE = 0.3
ARITHMETIC = {"add": "+", "subtract": "-", "multiply": "*"}


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a good solution: look `need` up in the article `entity`, or compute `entity`.

    need: a fact name, or a key of ARITHMETIC; then `entity` is "first, second" and `value` the
      result.
    """

    need: str
    entity: str
    value: str


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question with its good solution; the last step's value is the answer."""

    question: str
    steps: tuple[Step, ...]

    @property
    def needs(self):
        return tuple(step.need for step in self.steps)

    @property
    def answer(self):
        return self.steps[-1].value


class World:
    """Articles by kind and by title: real ones, or invented ones for demonstrations."""

    def __init__(self, articles):
        self.by_title = {article.title: article for article in articles}
        self.by_kind = {kind: [] for kind in knowledge_base.TABLES}
        for article in articles:
            self.by_kind[article.kind].append(article)

    def look_up(self, title, fact):
        return Step(fact, title, self.by_title[title].facts[fact])

    def follow(self, title, *facts):
        """Returns steps that look a fact up and go on with the article that its value names."""
        steps = []
        for fact in facts:
            steps.append(self.look_up(title, fact))
            title = steps[-1].value
        return tuple(steps)


def compute(need, first, second):
    values = {
        "add": int(first) + int(second),
        "subtract": int(first) - int(second),
        "multiply": int(first) * int(second),
    }
    return Step(need, f"{first}, {second}", str(values[need]))


# kind of the first entity, question, facts to follow
CHAINS = (
    ("country", "What is the capital of {0}?", ("capital",)),
    ("country", "On which continent is {0}?", ("continent",)),
    ("state", "What is the capital of the state of {0}?", ("capital",)),
    ("element", "What is the symbol of {0}?", ("symbol",)),
    ("work", "Who wrote {0}?", ("author",)),
    ("place", "In which country is {0}?", ("country",)),
    ("work", "In which country was the author of {0} born?", ("author", "country")),
    ("person", "What is the capital of the country where {0} was born?", ("country", "capital")),
    ("place", "What is the capital of the country of {0}?", ("country", "capital")),
    ("place", "On which continent is the country of {0}?", ("country", "continent")),
    (
        "work",
        "What is the capital of the country where the author of {0} was born?",
        ("author", "country", "capital"),
    ),
    (
        "work",
        "On which continent was the author of {0} born?",
        ("author", "country", "continent"),
    ),
)


def chain_problem(world, rng):
    kind, template, facts = rng.choice(CHAINS)
    title = rng.choice(world.by_kind[kind]).title
    return Problem(template.format(title), world.follow(title, *facts))


def number_and_constant(world, rng):
    title, constant = rng.choice(world.by_kind["element"]).title, str(rng.randint(2, 60))
    found = world.look_up(title, "number")
    need, template = rng.choice(
        (
            ("add", "What is the atomic number of {} plus {}?"),
            ("multiply", "What is the atomic number of {} times {}?"),
        )
    )
    return Problem(template.format(title, constant), (found, compute(need, found.value, constant)))


def sum_of_numbers(world, rng):
    first, second = rng.sample(world.by_kind["element"], 2)
    steps = (world.look_up(first.title, "number"), world.look_up(second.title, "number"))
    question = f"What is the atomic number of {first.title} plus that of {second.title}?"
    return Problem(question, (*steps, compute("add", steps[0].value, steps[1].value)))


def years_between(world, rng):
    earlier, later = sorted(
        rng.sample(world.by_kind["state"], 2), key=lambda article: int(article.facts["year"])
    )
    steps = (world.look_up(later.title, "year"), world.look_up(earlier.title, "year"))
    question = f"How many years after {earlier.title} did {later.title} join the USA?"
    return Problem(question, (*steps, compute("subtract", steps[0].value, steps[1].value)))


MAKERS = ((chain_problem, 12), (number_and_constant, 3), (sum_of_numbers, 2), (years_between, 2))


def draw(world, rng):
    """Draws one random problem of the world."""
    makers, weights = zip(*MAKERS, strict=True)
    return rng.choices(makers, weights)[0](world, rng)


def split(articles, *, seed=0):
    """Returns (train, held-out) worlds that share no entity, directly or by a question.

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
    return World(rest), World(chosen)


def distinct(world, count, *, seed):
    """Draws `count` different problems of a world, every number of hops equally often."""
    rng = random.Random(seed)
    wanted = {hops: count // 3 + (hops <= count % 3) for hops in (1, 2, 3)}
    problems, tries = {}, 0
    while len(problems) < count:
        problem = draw(world, rng)
        tries += 1
        if tries > 1000 * count:
            raise ValueError(f"The world has fewer than {count} different questions.")
        hops = len(problem.steps)
        if problem.question not in problems and wanted[hops]:
            problems[problem.question] = problem
            wanted[hops] -= 1
    return list(problems.values())


def to_row(problem, index, split):
    numeric = problem.needs[-1] in ARITHMETIC
    return {
        "id": f"{split}-{index:04d}",
        "question": problem.question,
        "answer": problem.answer,
        "kind": "math" if numeric else "qa",
        "source": f"quickstart/{len(problem.steps)}-hop",
    }


def write(path, problems, split):
    lines = [json.dumps(to_row(p, i, split)) + "\n" for i, p in enumerate(problems)]
    pathlib.Path(path).write_text("".join(lines), encoding="utf-8")
