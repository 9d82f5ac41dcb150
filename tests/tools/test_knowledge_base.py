"""The fact tables: what a row becomes, and which mistakes are found."""

import pytest

from tools import knowledge_base

TABLES = {
    "countries.tsv": "name\tcontinent\tcapital\tcode\nSpain\tEurope\tMadrid\t+34\n",
    "states.tsv": "name\tcapital\tyear\nOhio\tColumbus\t1803\n",
    "elements.tsv": "name\tsymbol\tnumber\nGold\tAu\t79\n",
    "works.tsv": "# source\nname\tform\tauthor\tyear\nDon Quixote\tnovel\tMiguel\t1605\n",
    "people.tsv": "name\toccupation\tcountry\tyear\nMiguel\tauthor\tSpain\t1547\n",
    "places.tsv": "name\tkind\tcountry\nPrado\tart museum\tSpain\n",
}


def write(folder, **changed):
    for file, text in TABLES.items():
        (folder / file).write_text(changed.get(file[:-4], text), encoding="utf-8")
    return folder


def test_one_article_per_row(tmp_path):
    assert [article.text for article in knowledge_base.read(write(tmp_path))] == [
        "Spain is a country in Europe. Its capital is Madrid. Its calling code is +34.",
        "Ohio is a state of the USA. Its capital is Columbus. It joined in 1803.",
        "Gold is a chemical element with symbol Au and atomic number 79.",
        "Don Quixote is a novel by Miguel, published in 1605.",
        "Miguel was an author born in Spain in 1547.",
        "Prado is an art museum in Spain.",
    ]


def test_an_article_knows_its_facts(tmp_path):
    work = knowledge_base.read(write(tmp_path))[3]
    assert (work.title, work.kind) == ("Don Quixote", "work")
    assert work.facts == {"form": "novel", "author": "Miguel", "year": "1605"}


def test_all_errors_are_listed_at_once(tmp_path):
    write(
        tmp_path,
        countries="name\tcontinent\tcapital\nSpain\tEurope\tMadrid\n",
        states=TABLES["states.tsv"] + "Gold\tX\t1\nTexas\tAustin\nUtah\t\t1896\n",
        works=TABLES["works.tsv"].replace("\tMiguel", "\tNobody"),
    )
    (tmp_path / "places.tsv").unlink()
    with pytest.raises(ValueError) as error:
        knowledge_base.read(tmp_path)
    for part in (
        "countries.tsv: the columns are",
        "'Gold' is the title of 2 articles",
        "states.tsv:4: 2 cells, not 3",
        "states.tsv:5: an empty cell",
        "'Don Quixote': author 'Nobody' is no person",
        "'Miguel': country 'Spain' is no country",
        "places.tsv: the file is missing",
    ):
        assert part in str(error.value)


def test_render_refuses_other_facts():
    with pytest.raises(ValueError, match="Unknown kind 'city'; valid: country"):
        knowledge_base.render("city", "Rome", {})
    with pytest.raises(ValueError, match="give exactly"):
        knowledge_base.render("element", "Gold", {"symbol": "Au"})


@pytest.mark.parametrize(
    "noun, text", [("engineer", "an engineer"), ("poet", "a poet"), ("university", "a university")]
)
def test_indefinite_article(noun, text):
    facts = {"kind": noun, "country": "Spain"}
    assert knowledge_base.render("place", "X", facts) == f"X is {text} in Spain."


def test_the_shipped_tables_are_consistent():
    articles = knowledge_base.articles()
    assert {article.kind for article in articles} == set(knowledge_base.TABLES)
    assert all("\n" not in article.text for article in articles)
