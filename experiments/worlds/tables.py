"""Arithmetic on tables and dates with the Python tool, in one to three programs.

Each program after the first takes the result of the one before.
The rows of a table are articles of the knowledge base, of the entities of the split. A date stands
in the questions of one split alone.
"""

import datetime
import statistics

from experiments.worlds import encyclopedia
from experiments.worlds.encyclopedia import Step, compute
from experiments.worlds.world import World
from tools import knowledge_base

NAME = "tables"
# kind of the articles -> (fact, heading)
COLUMNS = {
    "element": ("number", "Atomic numbers"),
    "state": ("year", "Years of joining the USA"),
    "country": ("code", "Calling codes"),
}
ROWS = 3  # of different numbers, so that each is easily copied
# operation -> (end of its program, function). All programs begin alike, with the line that the
# executor is shown: a table of new names is copied most easily with the word before it.
OPERATIONS = {
    "total": ("print(sum(x))", sum),
    "smallest": ("print(min(x))", min),
    "largest": ("print(max(x))", max),
    "median": ("from statistics import median; print(median(x))", statistics.median),
}
WORDS = {"add": "plus", "multiply": "times"}
DATES = "from datetime import *; d = date.fromisoformat; "
DAYS = (datetime.date(1900, 1, 1).toordinal(), datetime.date(2049, 12, 31).toordinal())
# What is most often done first is right; then the same program is run again.
FIRST = {"right": 0.65, "ask": 0.35}
NEXT = {"right": 0.4, "ask": 0.1, "again": 0.5}
LAST = {"right": 0.14, "ask": 0.1, "again": 0.76}


def operate(operation, table):
    """Returns the step that computes one number of a table, "Gold 79, Iron 26, Zinc 30"."""
    end, function = OPERATIONS[operation]
    value = str(function(int(row.split()[-1]) for row in table.split(",")))
    code = f"x = [int(row.split()[-1]) for row in 'Context: {table}'.split(',')]; {end}"
    return Step(operation, table, value, value, code)


def days(first, second):
    value = str((datetime.date.fromisoformat(second) - datetime.date.fromisoformat(first)).days)
    code = f"{DATES}print((d('{second}') - d('{first}')).days)"
    return Step("days", f"{first}, {second}", value, value, code)


def later(date, count):
    value = str(datetime.date.fromisoformat(date) + datetime.timedelta(count))
    return Step(
        "later", f"{date}, {count}", value, value, f"{DATES}print(d('{date}') + timedelta({count}))"
    )


def weekday(date):
    value = datetime.date.fromisoformat(date).strftime("%A")
    return Step("weekday", date, value, value, f"{DATES}print(d('{date}').strftime('%A'))")


def table_problem(articles, rng):
    """Returns (question, steps) about a table of articles."""
    kind = rng.choice([kind for kind in COLUMNS if kind in articles.by_kind])
    fact, heading = COLUMNS[kind]
    plain = [article for article in articles.by_kind[kind] if not set("',") & set(article.title)]
    rows = []
    while len({article.facts[fact] for article in rows}) < ROWS:
        rows = rng.sample(plain, ROWS)
    table = ", ".join(f"{article.title} {article.facts[fact]}" for article in rows)
    operation = rng.choice(list(OPERATIONS))
    steps, wanted = [operate(operation, table)], f"the {operation}"
    for need in rng.choice(((), ("add",), ("multiply",), ("multiply", "add"))):
        constant = str(rng.randint(2, 60))
        steps.append(compute(need, steps[-1].value, constant))
        wanted += f" {WORDS[need]} {constant}"
    return f"{heading}: {table}. What is {wanted}?", tuple(steps)


def date_problem(date, rng):
    """Returns (question, steps) about dates; date: () -> a random one of the split."""
    start = date()
    asked = rng.choice(("days", "later", "weekday", "weekday of two"))
    if asked == "days":
        end = date()
        return f"How many days are there from {start} to {end}?", (days(start, end),)
    steps, counts = [], []
    for _ in range(2 if asked == "weekday of two" else 1):
        counts.append(rng.randint(20, 900))
        steps.append(later(steps[-1].value if steps else start, counts[-1]))
    after = " and then ".join(f"{count} days" for count in counts)
    if asked == "later":
        return f"Which date is {after} after {start}?", tuple(steps)
    return f"Which weekday comes {after} after {start}?", (*steps, weekday(steps[-1].value))


def dates(split, rng):
    """Returns () -> a random date of a split: of every ten days, the first three are held out."""
    digits = {"train": range(3, 10), "held_out": range(3), "all": range(10)}[split]

    def date():
        day = rng.randrange(DAYS[0] // 10, DAYS[1] // 10) * 10 + rng.choice(digits)
        return str(datetime.date.fromordinal(day))

    return date


def problem(articles, date, rng):
    make, about = rng.choice(((table_problem, articles), (date_problem, date)))
    question, steps = make(about, rng)
    numeric = steps[-1].need not in ("later", "weekday")
    odds = [FIRST, *[NEXT] * (len(steps) - 2), LAST]  # one step takes the first
    return encyclopedia.problem(
        question,
        steps,
        source=f"{NAME}/{len(steps)}-step",
        kind="math" if numeric else "qa",
        odds=lambda step, place: odds[place],
    )


def draw(split, rng):
    return problem(encyclopedia.splits()[split], dates(split, rng), rng)


def invent(tokenizer):
    inventor = encyclopedia.Inventor(knowledge_base.articles(), tokenizer)

    def invented(rng):
        facts = ({"number": str(rng.randint(1, 2000))} for _ in range(5))
        rows = [knowledge_base.Article(inventor.name(rng), "element", "", f) for f in facts]
        return problem(encyclopedia.Articles(rows), dates("train", rng), rng)

    return invented


WORLD = World(
    name=NAME,
    tools=("python_coder",),
    sources=tuple(f"{NAME}/{steps}-step" for steps in (1, 2, 3)),
    draw=draw,
    invent=invent,
)
