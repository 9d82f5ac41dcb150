"""The embedded knowledge base: tables of facts, and the sentences made of them.

A table is a file of tab-separated values in `data/`: lines that start with '#' name the sources,
the first other line names the columns, every further line is one article.
"""

import dataclasses
import functools
import pathlib
from collections import Counter
from collections.abc import Mapping

DATA = pathlib.Path(__file__).parent / "data"

TABLES = {  # kind -> (file, names of the facts)
    "country": ("countries.tsv", ("continent", "capital", "code")),
    "state": ("states.tsv", ("capital", "year")),
    "element": ("elements.tsv", ("symbol", "number")),
    "work": ("works.tsv", ("form", "author", "year")),
    "person": ("people.tsv", ("occupation", "country", "year")),
    "place": ("places.tsv", ("kind", "country")),
}

TEMPLATES = {
    "country": (
        "{name} is a country in {continent}. Its capital is {capital}. Its calling code is {code}."
    ),
    "state": "{name} is a state of the USA. Its capital is {capital}. It joined in {year}.",
    "element": "{name} is a chemical element with symbol {symbol} and atomic number {number}.",
    "work": "{name} is {a_form} by {author}, published in {year}.",
    "person": "{name} was {a_occupation} born in {country} in {year}.",
    "place": "{name} is {a_kind} in {country}.",
}


@dataclasses.dataclass(frozen=True)
class Article:
    """One article of the knowledge base.

    title: unique over all tables.
    kind: "country", "state", "element", "work", "person" or "place".
    text: the facts as sentences, one line.
    facts: fact name -> value, in the order of the table's columns.
    """

    title: str
    kind: str
    text: str
    facts: Mapping[str, str] = dataclasses.field(hash=False)


def render(kind: str, name: str, facts: Mapping[str, str]) -> str:
    """Writes the article text of one row; invented rows get the same sentences as real ones.

    Args:
      kind: a key of TABLES.
      name: the title.
      facts: fact name -> value; every fact of the kind is needed.
    """
    if kind not in TABLES:
        raise ValueError(f"Unknown kind {kind!r}; valid: {', '.join(TABLES)}.")
    needed = TABLES[kind][1]
    if set(facts) != set(needed):
        raise ValueError(
            f"{kind} {name!r} has facts {sorted(facts)}; give exactly {sorted(needed)}."
        )
    with_article = {f"a_{fact}": _with_article(value) for fact, value in facts.items()}
    return TEMPLATES[kind].format(name=name, **facts, **with_article)


def _with_article(noun):
    low = noun.lower()
    vowel = low.startswith(tuple("aeiou")) and not low.startswith(("uni", "eu", "one"))
    return f"an {noun}" if vowel else f"a {noun}"


@functools.cache
def articles() -> tuple[Article, ...]:
    """Reads and checks all tables.

    Returns:
      The articles in the order of TABLES and of the lines in each file.

    Raises:
      ValueError: lists everything wrong with the tables.
    """
    return read(DATA)


def read(folder: pathlib.Path) -> tuple[Article, ...]:
    """Reads and checks the tables of one folder; see `articles`."""
    found, problems = [], []
    for kind, (file, facts) in TABLES.items():
        rows, wrong = _read_table(folder / file, ("name", *facts))
        problems += wrong
        for row in rows:
            name = row.pop("name")
            found.append(Article(name, kind, render(kind, name, row), row))
    problems += _inconsistencies(found)
    if problems:
        raise ValueError(f"The fact tables in {folder} have errors:\n" + "\n".join(problems))
    return tuple(found)


def _read_table(path, columns):
    """Returns the rows as dicts, and the errors; a row with an error is left out."""
    if not path.exists():
        return [], [f"{path.name}: the file is missing."]
    lines = [
        (number, line)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if line.strip() and not line.startswith("#")
    ]
    header = tuple(lines[0][1].split("\t")) if lines else ()
    if header != columns:
        return [], [f"{path.name}: the columns are {header}; they must be {columns}."]
    rows, problems = [], []
    for number, line in lines[1:]:
        cells = line.split("\t")
        if len(cells) != len(columns):
            problems.append(f"{path.name}:{number}: {len(cells)} cells, not {len(columns)}.")
        elif any(not cell or cell != cell.strip() for cell in cells):
            problems.append(f"{path.name}:{number}: an empty cell or spaces around one.")
        else:
            rows.append(dict(zip(columns, cells, strict=True)))
    return rows, problems


def _inconsistencies(rows):
    titles = Counter(article.title for article in rows)
    problems = [f"{title!r} is the title of {n} articles." for title, n in titles.items() if n > 1]
    names = {kind: {article.title for article in rows if article.kind == kind} for kind in TABLES}
    refers_to = {"author": "person", "country": "country"}  # fact -> kind of the article it names
    for article in rows:
        for fact, kind in refers_to.items():
            name = article.facts.get(fact)
            if name is not None and name not in names[kind]:
                problems.append(f"{article.title!r}: {fact} {name!r} is no {kind} of the tables.")
    return problems
