"""The quickstart's world: multi-hop questions over the knowledge base.

Train and held-out questions share no entity.
"""

from experiments.worlds import encyclopedia
from experiments.worlds.encyclopedia import compute
from experiments.worlds.world import World
from tools import knowledge_base

NAME = "quickstart"
SOURCES = tuple(f"{NAME}/{hops}-hop" for hops in (1, 2, 3))

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


def chain_problem(articles, rng):
    kind, template, facts = rng.choice(CHAINS)
    title = rng.choice(articles.by_kind[kind]).title
    return template.format(title), articles.follow(title, *facts)


def number_and_constant(articles, rng):
    title, constant = rng.choice(articles.by_kind["element"]).title, str(rng.randint(2, 60))
    found = articles.look_up(title, "number")
    need, template = rng.choice(
        (
            ("add", "What is the atomic number of {} plus {}?"),
            ("multiply", "What is the atomic number of {} times {}?"),
        )
    )
    return template.format(title, constant), (found, compute(need, found.value, constant))


def sum_of_numbers(articles, rng):
    first, second = rng.sample(articles.by_kind["element"], 2)
    steps = (articles.look_up(first.title, "number"), articles.look_up(second.title, "number"))
    question = f"What is the atomic number of {first.title} plus that of {second.title}?"
    return question, (*steps, compute("add", steps[0].value, steps[1].value))


def years_between(articles, rng):
    earlier, later = sorted(
        rng.sample(articles.by_kind["state"], 2), key=lambda article: int(article.facts["year"])
    )
    steps = (articles.look_up(later.title, "year"), articles.look_up(earlier.title, "year"))
    question = f"How many years after {earlier.title} did {later.title} join the USA?"
    return question, (*steps, compute("subtract", steps[0].value, steps[1].value))


MAKERS = ((chain_problem, 12), (number_and_constant, 3), (sum_of_numbers, 2), (years_between, 2))


def draw_from(articles, rng):
    """Draws one random problem about the articles."""
    makers, weights = zip(*MAKERS, strict=True)
    question, steps = rng.choices(makers, weights)[0](articles, rng)
    numeric = steps[-1].need in encyclopedia.ARITHMETIC
    return encyclopedia.problem(
        question,
        steps,
        source=f"{NAME}/{len(steps)}-hop",
        kind="math" if numeric else "qa",
    )


def draw(split, rng):
    return draw_from(encyclopedia.splits()[split], rng)


def invent(tokenizer):
    inventor = encyclopedia.Inventor(knowledge_base.articles(), tokenizer)
    return lambda rng: draw_from(inventor.articles(rng), rng)


WORLD = World(
    name=NAME,
    tools=("knowledge_search", "python_coder"),
    sources=SOURCES,
    draw=draw,
    invent=invent,
)
