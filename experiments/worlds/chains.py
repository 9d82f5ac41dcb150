"""Longer chains of look-ups: 2 to 5 hops, comparisons, counts, and names that must be asked anew.

The knowledge base is joined by pages made of it: lists of an author's works and of a country's
places, and pages that only say what a family name, a capital or a symbol belongs to. A search for
such a name finds no fact, and the same has to be asked of what the page names. Train and held-out
questions share no entity.
"""

import functools

from experiments.worlds import encyclopedia
from experiments.worlds.encyclopedia import Step, compute
from experiments.worlds.world import World
from tools import knowledge_base
from tools.knowledge_base import Article

NAME = "chains"
# What is most often done is right, but where a search found no fact: there it is made again.
ODDS = {
    "first": {"right": 0.6, "ask": 0.25, "code": 0.15},
    "next": {"right": 0.75, "ask": 0.1, "code": 0.05, "again": 0.1},
    "anew": {"right": 0.35, "ask": 0.05, "code": 0.05, "again": 0.55},
    "computation": {"right": 0.7, "ask": 0.2, "again": 0.1},
}
LISTS = (("work", "author", "works"), ("place", "country", "places"))
PAGES = {  # kind of a page that only names another article -> its text
    "family": "{0} is the family name of {1}.",
    "capital": "{0} is the capital of {1}.",
    "symbol": "The {0} is that of {1}.",
}


def pages(articles):
    """Returns the further pages that articles give; the fact "of" is the title they belong to.

    A name that several share, or that is the title of an article, gets no page.
    """
    found = []
    for kind, owner, what in LISTS:
        titles = {}
        for article in articles:
            if article.kind == kind:
                titles.setdefault(article.facts[owner], []).append(article.title)
        for name, several in titles.items():
            title, listed = f"{what.title()} of {name}", ", ".join(several)
            facts = {"of": name, what: listed}
            found.append(Article(title, what, f"{title}: {listed}.", facts))
    owners = {}
    for article in articles:
        for kind, name in _other_names(article):
            owners.setdefault(name, []).append((kind, article.title))
    for article in articles:
        owners.pop(article.title, None)
    for name, those in owners.items():
        if len(those) == 1:
            kind, title = those[0]
            found.append(Article(name, kind, PAGES[kind].format(name, title), {"of": title}))
    return found


def _other_names(article):
    """Yields (kind of the page, name) of names that stand for an article."""
    if article.kind == "person" and " " in article.title:
        yield "family", article.title.split()[-1]
    elif article.kind == "country":
        yield "capital", article.facts["capital"]
    elif article.kind == "element":
        yield "symbol", f"symbol {article.facts['symbol']}"


# ---- steps -------------------------------------------------------------------------------------


def anew(articles, title, need):
    """Returns the steps that ask a page in vain for a fact, and then what the page names."""
    page = articles.by_title[title]
    owner = page.facts["of"]
    return Step(need, title, owner, page.text), articles.look_up(owner, need)


def counted(articles, what, name):
    """Returns the steps that look a list up and count what is on it."""
    page = articles.by_title[f"{what.title()} of {name}"]
    listed = page.facts[what]
    value = str(listed.count(",") + 1)
    code = f"print(len(' {listed}'.split(',')))"
    return Step(what, name, listed, page.text), Step("count", listed, value, value, code)


def earlier(first, second):
    """Returns the step that compares two look-ups of years; its value is an entity."""
    told = [f"{step.value} {step.entity}" for step in (first, second)]
    listed, value = ", ".join(told), min(told)[5:]
    return Step("earlier", listed, value, value, f"print(min(' {listed}'.split(','))[6:])")


# ---- questions: functions (articles, rng) -> (question, steps), None if there is nothing to ask --


def chosen(articles, rng, kind, fits=lambda article: True):
    """Returns the title of a random article of a kind, None if there is none that fits."""
    titles = [article.title for article in articles.by_kind.get(kind, ()) if fits(article)]
    return rng.choice(titles) if titles else None


def is_long(what):
    """Returns whether a page lists several titles, and none that ends a text in a program."""
    return lambda page: "," in page.facts[what] and "'" not in page.facts[what]


def born(articles, rng):
    if name := chosen(articles, rng, "family"):
        steps = anew(articles, name, "country")
        if rng.random() < 0.5:
            return f"In which country was {name} born?", steps
        steps += articles.follow(steps[-1].value, "capital")
        return f"What is the capital of the country where {name} was born?", steps


def governed(articles, rng):
    if name := chosen(articles, rng, "capital"):
        question = f"On which continent is the country with the capital {name}?"
        return question, anew(articles, name, "continent")


def symbols(articles, rng):
    title = chosen(articles, rng, "symbol")
    other = chosen(articles, rng, "symbol", lambda page: page.title != title)
    if title is None:
        return None
    steps = anew(articles, title, "number")
    if rng.random() < 0.4:
        return f"What is the atomic number of the element with the {title}?", steps
    if other is None or rng.random() < 0.3:
        constant = str(rng.randint(2, 60))
        steps += (compute("add", steps[-1].value, constant),)
        return f"What is the atomic number of the element with the {title} plus {constant}?", steps
    more = anew(articles, other, "number")
    question = f"What is the atomic number of the {title} plus that of the {other}?"
    return question, (*steps, *more, compute("add", steps[-1].value, more[-1].value))


def shelf(articles, rng):
    if title := chosen(articles, rng, "works", is_long("works")):
        listed = articles.by_title[title].facts
        work = rng.choice(listed["works"].split(", "))
        steps = articles.follow(work, "author") + counted(articles, "works", listed["of"])
        return f"How many works by the author of {work} are listed?", steps


def sights(articles, rng):
    if title := chosen(articles, rng, "places", is_long("places")):
        country = articles.by_title[title].facts["of"]
        steps = counted(articles, "places", country)
        born_here = lambda article: article.facts.get("country") == country
        works_here = lambda work: born_here(articles.by_title[work.facts["author"]])
        if (work := chosen(articles, rng, "work", works_here)) and rng.random() < 0.7:
            question = (
                f"How many places are listed of the country where the author of {work} was born?"
            )
            return question, articles.follow(work, "author", "country") + steps
        place = chosen(articles, rng, "place", born_here)
        question = f"How many places are listed of the country of {place}?"
        return question, articles.follow(place, "country") + steps


def older(articles, rng):
    kind, template = rng.choice(
        (
            ("work", "Which was published earlier, {} or {}?"),
            ("person", "Who was born earlier, {} or {}?"),
        )
    )
    fits = lambda article: len(article.facts["year"]) == 4 and not set("',") & set(article.title)
    first = chosen(articles, rng, kind, fits)
    second = chosen(
        articles,
        rng,
        kind,
        lambda other: fits(other) and other.facts["year"] != articles.by_title[first].facts["year"],
    )
    if first and second:
        steps = articles.look_up(first, "year"), articles.look_up(second, "year")
        return template.format(first, second), (*steps, earlier(*steps))


def codes(articles, rng):
    if rng.random() < 0.3:
        work, constant = chosen(articles, rng, "work"), str(rng.randint(2, 60))
        steps = articles.follow(work, "author", "country", "code")
        place = f"the country where the author of {work} was born"
        question = f"What is the calling code of {place} plus {constant}?"
        return question, (*steps, compute("add", steps[-1].value, constant))
    first, second = (chosen(articles, rng, "place") for _ in range(2))
    if first != second:
        steps = (
            articles.follow(first, "country", "code"),
            articles.follow(second, "country", "code"),
        )
        question = f"What is the calling code of the country of {first} plus that of {second}?"
        total = compute("add", steps[0][-1].value, steps[1][-1].value)
        return question, (*steps[0], *steps[1], total)


MAKERS = (born, governed, symbols, shelf, sights, older, codes)


def draw_from(articles, rng):
    """Draws one random problem about articles and their pages."""
    made = None
    while made is None:
        made = rng.choice(MAKERS)(articles, rng)
    question, steps = made

    def is_anew(place):
        return place > 0 and (steps[place - 1].need, steps[place - 1].value) == (
            steps[place].need,
            steps[place].entity,
        )

    def odds(step, place):
        if step.code:
            return ODDS["computation"]
        return ODDS["anew" if is_anew(place) else "next" if place else "first"]

    needs = [step.need for place, step in enumerate(steps) if not is_anew(place)]
    return encyclopedia.problem(
        question,
        steps,
        source=f"{NAME}/{len(steps)}-hop",
        kind="math" if needs[-1] in ("number", "count", *encyclopedia.ARITHMETIC) else "qa",
        analysis=", ".join(needs),
        odds=odds,
    )


@functools.cache
def splits():
    """Returns split -> Articles with their pages."""
    found = pages(knowledge_base.articles())
    return {
        name: encyclopedia.Articles(
            [
                *part.by_title.values(),
                *(page for page in found if page.facts["of"] in part.by_title),
            ]
        )
        for name, part in encyclopedia.splits().items()
    }


def draw(split, rng):
    return draw_from(splits()[split], rng)


def documents():
    return [(article.title, article.text) for article in splits()["all"].by_title.values()]


def invent(tokenizer):
    inventor = encyclopedia.Inventor(knowledge_base.articles(), tokenizer)

    def invented(rng):
        articles = inventor.articles(rng)
        known = list(articles.by_title.values())
        return draw_from(encyclopedia.Articles([*known, *pages(known)]), rng)

    return invented


WORLD = World(
    name=NAME,
    tools=("knowledge_search", "python_coder"),
    sources=tuple(f"{NAME}/{hops}-hop" for hops in (2, 3, 4, 5)),
    draw=draw,
    documents=documents,
    invent=invent,
)
