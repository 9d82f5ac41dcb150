"""Search: ranking on small known sets, hostile queries, threads."""

import concurrent.futures
import contextlib
import sqlite3

import pytest

from tests.tools import settings
from tools import knowledge_base, text_index
from tools.http_client import HttpError
from tools.protocol import Tool, ToolError

ROWS = [
    ("country", "Spain", dict(continent="Europe", capital="Madrid", code="+34")),
    ("country", "France", dict(continent="Europe", capital="Paris", code="+33")),
    ("country", "Mexico", dict(continent="North America", capital="Mexico City", code="+52")),
    ("state", "New Mexico", dict(capital="Santa Fe", year="1912")),
    ("element", "Gold", dict(symbol="Au", number="79")),
    ("work", "Don Quixote", dict(form="novel", author="Miguel de Cervantes", year="1605")),
    ("work", "The Dogs", dict(form="novella", author="Miguel de Cervantes", year="1613")),
    ("person", "Miguel de Cervantes", dict(occupation="writer", country="Spain", year="1547")),
    ("person", "Émile Zola", dict(occupation="writer", country="France", year="1840")),
    ("place", "Prado", dict(kind="museum", country="Spain")),
]
DOCUMENTS = [(name, knowledge_base.render(kind, name, facts)) for kind, name, facts in ROWS]


@pytest.fixture(scope="module")
def index():
    return text_index.Index.of(DOCUMENTS)


@pytest.mark.parametrize(
    "query, title",
    [
        ("Spain capital", "Spain"),
        ("Miguel de Cervantes country", "Miguel de Cervantes"),
        ("Gold number", "Gold"),
        ("Don Quixote author", "Don Quixote"),
        ("Mexico capital", "Mexico"),
        ("New Mexico capital", "New Mexico"),
        ("dog", "The Dogs"),  # stemming
        ("emile zola", "Émile Zola"),  # accents and case
        ("E\u0301MILE", "Émile Zola"),  # a combining accent
    ],
)
def test_ranks_the_subject_first(index, query, title):
    assert index.search(query, top_k=3)[0][0] == title


def test_words_ignore_case_accents_and_punctuation():
    assert text_index.words('"São-Tomé" E\u0301cole_２ 漢字 がく') == [
        *("sao", "tome", "ecole", "2", "漢字", "がく")
    ]
    assert len(text_index.words("a " * 1000)) == text_index.MAX_WORDS


@pytest.mark.parametrize(
    "query",
    [
        'Spain"',
        '"Spain',
        '""Spain""',
        "Spain AND",
        "NOT Spain",
        "Spain NEAR(x, 2)",
        "title:Spain",
        "-title : Spain",
        "Spa* Spain*",
        "^Spain",
        "{title text}: Spain",
        "Spain; DROP TABLE article; --",
        "Spain\x00\n\t",
        "Spain \ud800",
        "Spain 西班牙 ١٢ _ __",
        "(((((Spain",
        "Spain " + '" OR ' * 2500,
        "Spain " + " ".join(f"w{i}" for i in range(3000)),
    ],
)
def test_no_query_is_an_operator(index, query):
    assert index.search(query, top_k=1) == [(*DOCUMENTS[0], "")]


@pytest.mark.parametrize("query", ["", " \n", '"*():^-', "_", "\ud800", "\x00"])
def test_a_query_without_words_is_the_callers_error(index, query):
    with pytest.raises(ToolError, match="no word"):
        index.search(query, top_k=1)


def test_tool_answers_one_article_per_line():
    tool = settings.make(
        "knowledge_search",
        articles=[("A", "First line.\nSecond line."), ("B", "First of B.")],
        top_k=2,
    )
    assert isinstance(tool, Tool)
    assert tool.run(query="first").splitlines() == ["First of B.", "First line. Second line."]
    assert tool.run(query="nothing") == "No article found."


def test_tool_cuts_a_long_answer():
    tool = settings.make("knowledge_search", articles=[("A", "word " * 100)], max_characters=14)
    assert tool.run(query="word") == "word word word [cut]"


def test_demo_of_the_tool_runs():
    tool = settings.make("knowledge_search", articles=DOCUMENTS, top_k=1)
    assert tool.demo == 'knowledge_search(query="Spain capital")'
    assert tool.run(query="Spain capital") == DOCUMENTS[0][1]


def test_ties_keep_the_given_order():
    index = text_index.Index.of([(f"t{i}", "same words") for i in range(20)])
    assert [title for title, *_ in index.search("same", top_k=20)] == [f"t{i}" for i in range(20)]


def test_a_file_answers_like_memory(index, tmp_path):
    path = tmp_path / "index.sqlite"
    assert text_index.build(path, iter(DOCUMENTS)) == len(DOCUMENTS)
    opened = text_index.Index.open(path)
    assert opened.documents == len(DOCUMENTS)
    for title, text in DOCUMENTS:
        for query in (title, text):
            assert opened.search(query, top_k=4) == index.search(query, top_k=4)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda _: opened.search("Spain", top_k=1)[0].title, range(100))
        assert set(found) == {"Spain"}
    opened.close()
    tool = settings.make("knowledge_search", index=str(path), top_k=1)
    assert tool.run(query="Spain capital") == DOCUMENTS[0][1]


def test_an_index_appears_only_when_it_is_complete(tmp_path):
    def broken():
        yield DOCUMENTS[0]
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="gone"):
        text_index.build(tmp_path / "index.sqlite", broken())
    assert not list(tmp_path.iterdir())


def test_other_files_are_no_index(tmp_path):
    with pytest.raises(ValueError, match="does not exist; make it by python -m experiments.index"):
        text_index.Index.open(tmp_path / "none.sqlite")
    (tmp_path / "text").write_text("no database " * 100)
    (tmp_path / "empty").write_text("")
    for name in ("text", "empty"):
        with pytest.raises(ValueError, match="is not an index of experiments.index"):
            text_index.Index.open(tmp_path / name)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "DROP TABLE facts; CREATE VIEW facts AS WITH RECURSIVE n(documents, longest_title) AS "
            "(SELECT 1, 1 UNION ALL SELECT documents + 1, 1 FROM n) SELECT * FROM n ORDER BY 1",
            "holds the view 'facts'",
        ),
        ("CREATE TRIGGER t AFTER INSERT ON facts BEGIN SELECT 1; END", "holds the trigger 't'"),
        ("DELETE FROM facts", "does not say what it holds"),
        ("UPDATE facts SET longest_title = 'x'", "does not say what it holds"),
        ("DROP TABLE frequent", "no such table: frequent"),
    ],
)
def test_an_index_of_another_maker_is_tables_alone(tmp_path, script, message):
    path = tmp_path / "index.sqlite"
    text_index.build(path, [("title", "text")])
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.executescript(script)
    with pytest.raises(ValueError, match=f"is not an index of experiments.index: .*{message}"):
        text_index.Index.open(path)


def test_words_of_very_many_documents_count_only_without_rarer_ones(monkeypatch):
    monkeypatch.setattr(text_index, "FREQUENT", 5)
    monkeypatch.setattr(text_index, "MOST_MATCHES", 12)
    rows = [(f"t{i}", "lakes " * (i + 1) + ("deep " if i % 2 else "")) for i in range(20)]
    index = text_index.Index.of([*rows, ("rare", "Siberian words about nothing else")])
    assert index._rarest(["lake", "siberian", "deep"]) == ["siberian", "deep"]
    assert index._rarest(["lakes", "siberian"]) == ["siberian"]
    assert index._rarest(["lake"]) == ["lake"]
    assert [title for title, *_ in index.search("lake Siberian", top_k=2)] == ["rare"]
    assert index.search("lake", top_k=1)[0].title == "t18"


def test_a_service_may_search(server):
    rows = [{"title": "A", "text": "of\nA", "score": 2.0}, {"title": "B", "text": "of B"}]
    server.answer("/search", rows, [], {"error": "x"})
    tool = settings.make("knowledge_search", url=server.url + "/search", top_k=2)
    assert tool.run(query="a letter") == "of A\nof B"
    assert server.seen[0].json == {"query": "a letter", "k": 2} and tool.remote
    assert tool.run(query="a letter") == "No article found."
    with pytest.raises(HttpError, match="did not answer a list"):
        tool.probe()
    with pytest.raises(ValueError, match="not both"):
        settings.make("knowledge_search", url=server.url, index="x")


def test_threads_get_the_same_answers(index):
    queries = [f"{title} year" for title, _ in DOCUMENTS] * 50
    expected = [index.search(query, top_k=3) for query in queries]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda query: index.search(query, top_k=3), queries)) == expected


def test_every_fact_of_the_knowledge_base_is_found_first():
    articles = knowledge_base.articles()
    index = text_index.Index.of((article.title, article.text) for article in articles)
    misses = []
    for article in articles:
        for fact in article.facts:
            query = f"{article.title} {fact}"
            ((title, text, _),) = index.search(query, top_k=1)
            if text != article.text:
                misses.append(f"{query} -> {title}")
    assert not misses, "\n".join(misses)
