"""Search over a set of articles: BM25 in an in-memory SQLite FTS5 index, nothing to install."""

import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable

from tools import knowledge_base
from tools.protocol import Parameter, Tool, ToolError

TITLE_WEIGHT = 8.0  # a word of the title counts as much as eight in the text
MAX_WORDS = 64  # words of a query that are searched


class Index:
    """Articles in an order: first those whose whole title stands in the query, then by BM25.

    BM25 alone saturates: a rare word anywhere can outweigh the name that was asked for. Words are
    stemmed; case and accents are ignored. Reads may come from any thread: one connection behind a
    lock, which is held for the microseconds of one lookup.
    """

    def __init__(self, documents: Iterable[tuple[str, str]]):
        """Builds the index.

        Args:
          documents: (title, text) pairs.
        """
        documents = [(title, " ".join(text.split())) for title, text in documents]
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(":memory:", check_same_thread=False)
        self._connection.execute(
            "CREATE VIRTUAL TABLE article USING fts5"
            "(title, text, tokenize = 'porter unicode61 remove_diacritics 2')"
        )
        self._connection.executemany("INSERT INTO article (title, text) VALUES (?, ?)", documents)
        self._connection.commit()
        self._by_title = {}  # words of a title -> rowids
        for rowid, (title, _) in enumerate(documents, 1):
            self._by_title.setdefault(tuple(words(title)), []).append(rowid)
        self._by_title.pop((), None)
        self._longest_title = max(map(len, self._by_title), default=0)

    def search(self, query: str, *, top_k: int) -> list[tuple[str, str]]:
        """Finds the articles that match any word of the query.

        Args:
          query: any text; operators of the query language have no meaning.
          top_k: largest number of articles.

        Returns:
          (title, text) pairs, best first; ties in the order the articles were given.

        Raises:
          ToolError: the query has no word.
        """
        query_words = words(query)
        if not query_words:
            raise ToolError(f"The query {query[:80]!r} has no word to search for.")
        named = self._named(query_words)[:top_k]
        match = " OR ".join(f'"{word}"' for word in dict.fromkeys(query_words))
        with self._lock:
            ranked = self._connection.execute(
                "SELECT rowid, title, text FROM article WHERE article MATCH ? "
                "ORDER BY bm25(article, ?, 1.0), rowid LIMIT ?",
                (match, TITLE_WEIGHT, top_k + len(named)),
            ).fetchall()
            first = [self._row(rowid) for rowid in named]
        others = [(title, text) for rowid, title, text in ranked if rowid not in named]
        return (first + others)[:top_k]

    def _named(self, query_words):
        """Rowids of the articles whose title is a run of the query's words, longest title first."""
        rowids = []
        for length in range(min(self._longest_title, len(query_words)), 0, -1):
            for start in range(len(query_words) - length + 1):
                run = tuple(query_words[start : start + length])
                rowids += self._by_title.get(run, ())
        return list(dict.fromkeys(rowids))

    def _row(self, rowid):
        return self._connection.execute(
            "SELECT title, text FROM article WHERE rowid = ?", (rowid,)
        ).fetchone()


def words(text: str) -> list[str]:
    """The first MAX_WORDS words of a text, in lower case, without accents and punctuation."""
    apart = unicodedata.normalize("NFKD", text.lower())
    plain = unicodedata.normalize("NFKC", re.sub("[\u0300-\u036f]", "", apart))
    return re.findall(r"[^\W_]+", plain)[:MAX_WORDS]


def make(
    articles: Iterable[knowledge_base.Article | tuple[str, str]],
    *,
    top_k: int = 3,
    max_characters: int = 2000,
    seconds: float = 5.0,
) -> Tool:
    """Builds the search tool.

    Args:
      articles: articles of the knowledge base, or any (title, text) pairs.
      top_k: articles in one answer.
      max_characters: length of one answer; a longer one is cut and says so.
      seconds: deadline of one call.
    """
    if top_k < 1 or max_characters < 1:
        raise ValueError(f"top_k={top_k} and max_characters={max_characters} must be positive.")
    index = Index(_pair(article) for article in articles)

    def run(*, query: str) -> str:
        found = index.search(query, top_k=top_k)
        if not found:
            return "No article found."
        text = "\n".join(text for _, text in found)
        return text if len(text) <= max_characters else text[:max_characters] + " [cut]"

    return Tool(
        name="knowledge_search",
        description=(
            "Searches an encyclopedia of countries, US states, chemical elements, books, people "
            "and places, and returns the best matching articles."
        ),
        parameters=(Parameter("query", "str", "a name and what to find out about it"),),
        limits=(
            "Finds articles by their words, not by meaning; one subject per query. "
            "It does not reason or compute."
        ),
        demo='knowledge_search(query="Spain capital")',
        run=run,
        seconds=seconds,
    )


def _pair(article):
    if isinstance(article, knowledge_base.Article):
        return article.title, article.text
    return article
