"""Full-text search over documents: BM25 in SQLite FTS5, in memory or in a file."""

import contextlib
import functools
import os
import pathlib
import queue
import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from tools.protocol import ToolError

TITLE_WEIGHT = 8.0  # a word of the title counts as much as eight in the text
MAX_WORDS = 64  # words of a query that are searched
MAX_TITLE_WORDS = 12  # a longer title is not looked for as a whole
CONNECTIONS = 8  # to one file, and so threads that search it at once
FREQUENT = 1_000  # documents of a word, from which on their number is kept
MOST_MATCHES = 20_000  # documents that are ranked; of the query's words, the rarest ones count
TOKENIZER = "tokenize = 'porter unicode61 remove_diacritics 2'"
FORMAT = 1  # of the file, its user_version
# What a file may hold besides the tables of the full-text search: no views, no triggers.
TABLES = ("article", "title", "facts", "frequent")
MAX_VALUE = 2**26  # bytes of one text in a file


class Document(NamedTuple):
    title: str
    text: str
    url: str = ""


class Index:
    """Documents in an order: first those whose whole title stands in the query, then by BM25.

    BM25 alone saturates: a rare word anywhere can outweigh the name in the query. Words are
    stemmed; case and accents are ignored. Very common words only count in a query without rarer
    ones: ranking all their documents takes a second in a million documents. Any thread may read.
    """

    def __init__(self, connections: Iterable[sqlite3.Connection]):
        """Takes connections over; use `of` or `open`."""
        self._free = queue.LifoQueue()
        for connection in connections:
            self._free.put(connection)
        with self._connection() as connection:
            self.documents, self._longest_title = connection.execute(
                "SELECT documents, longest_title FROM facts"
            ).fetchone()
            self._frequent = dict(connection.execute("SELECT stem, documents FROM frequent"))

    @classmethod
    def of(cls, documents: Iterable[tuple]) -> "Index":
        """Indexes (title, text) or (title, text, url) in memory."""
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        _fill(connection, documents)
        return cls([connection])

    @classmethod
    def open(cls, path: str | os.PathLike) -> "Index":
        """Opens a file that `build` made, to read.

        Raises:
          ValueError: there is none, or another kind of file.
        """
        path = pathlib.Path(path)
        if not path.exists():
            raise ValueError(
                f"The index {path} does not exist; make it by "
                f"python -m experiments.index --source=docs.jsonl --out={path}"
            )
        address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        connections = [
            sqlite3.connect(address, uri=True, check_same_thread=False) for _ in range(CONNECTIONS)
        ]
        try:
            for connection in connections:
                connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
            if not (problem := _wrong(connections[0])):
                return cls(connections)
        except (sqlite3.DatabaseError, TypeError, ValueError) as error:
            problem = str(error)
        for connection in connections:
            connection.close()
        raise ValueError(f"{path} is not an index of experiments.index: {problem}.")

    def search(self, query: str, *, top_k: int) -> list[Document]:
        """Finds the documents that match any word of the query.

        Args:
          query: any text; operators of the query language have no meaning.
          top_k: largest number of documents.

        Returns:
          Documents, best first; ties in the order they were given.

        Raises:
          ToolError: the query has no word.
        """
        query_words = words(query)
        if not query_words:
            raise ToolError(f"The query {query[:80]!r} has no word to search for.")
        match = " OR ".join(f'"{word}"' for word in self._rarest(dict.fromkeys(query_words)))
        with self._connection() as connection:
            named = self._named(connection, query_words)[:top_k]
            ranked = connection.execute(
                "SELECT rowid FROM article WHERE article MATCH ? "
                "ORDER BY bm25(article, ?, 1.0, 0.0), rowid LIMIT ?",
                (match, TITLE_WEIGHT, top_k + len(named)),
            ).fetchall()
            rowids = list(dict.fromkeys(named + [rowid for (rowid,) in ranked]))[:top_k]
            return [
                Document(
                    *connection.execute(
                        "SELECT title, text, url FROM article WHERE rowid = ?", (rowid,)
                    ).fetchone()
                )
                for rowid in rowids
            ]

    def close(self):
        """Closes the connections; call it once no thread searches any more."""
        while not self._free.empty():
            self._free.get().close()

    def _rarest(self, query_words):
        """Returns the rarest words that MOST_MATCHES allows, in the order of the query."""
        if not self._frequent:
            return list(query_words)
        holders = {word: self._frequent.get(_stem(word), 0) for word in query_words}
        kept, matches = set(), 0
        for word in sorted(holders, key=holders.get):
            matches += holders[word]
            if kept and matches > MOST_MATCHES:
                break
            kept.add(word)
        return [word for word in query_words if word in kept]

    def _named(self, connection, query_words):
        """Returns the rowids of documents whose title is a run of the query, longest first."""
        longest = min(self._longest_title, len(query_words))
        runs = [
            " ".join(query_words[start : start + length])
            for length in range(longest, 0, -1)
            for start in range(len(query_words) - length + 1)
        ]
        rowids = {}
        for at in range(0, len(runs), 500):
            batch = runs[at : at + 500]
            marks = ", ".join("?" * len(batch))
            rows = connection.execute(
                f"SELECT words, article FROM title WHERE words IN ({marks}) ORDER BY article", batch
            )
            for run, rowid in rows:
                rowids.setdefault(run, []).append(rowid)
        return list(dict.fromkeys(rowid for run in runs for rowid in rowids.get(run, ())))

    @contextlib.contextmanager
    def _connection(self):
        connection = self._free.get()
        try:
            yield connection
        finally:
            self._free.put(connection)


def build(path: str | os.PathLike, documents: Iterable[tuple]) -> int:
    """Writes the index of (title, text) or (title, text, url) to a file.

    Documents are read as they are written: memory does not grow with them. The file appears when
    it is complete.

    Returns:
      The number of documents.
    """
    path = pathlib.Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished.unlink(missing_ok=True)
    unfinished.touch()  # names the file in its error, which SQLite does not
    try:
        with contextlib.closing(sqlite3.connect(unfinished)) as connection:
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            count = _fill(connection, documents)
            connection.execute("INSERT INTO article (article) VALUES ('optimize')")
            connection.commit()
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _fill(connection, documents):
    connection.execute(
        f"CREATE VIRTUAL TABLE article USING fts5(title, text, url UNINDEXED, {TOKENIZER})"
    )
    connection.execute(
        "CREATE TABLE title (words TEXT, article INTEGER, PRIMARY KEY (words, article)) "
        "WITHOUT ROWID"
    )
    count = longest = 0
    for document in documents:
        title, text, url = Document(*document)
        count += 1
        connection.execute(
            "INSERT INTO article (rowid, title, text, url) VALUES (?, ?, ?, ?)",
            (count, title, text, url),
        )
        name = words(title)
        if 0 < len(name) <= MAX_TITLE_WORDS:
            longest = max(longest, len(name))
            connection.execute("INSERT INTO title VALUES (?, ?)", (" ".join(name), count))
    connection.execute("CREATE TABLE facts (documents INTEGER, longest_title INTEGER)")
    connection.execute("INSERT INTO facts VALUES (?, ?)", (count, longest))
    connection.execute("CREATE VIRTUAL TABLE temp.terms USING fts5vocab(main, article, row)")
    connection.execute("CREATE TABLE frequent (stem TEXT, documents INTEGER)")
    connection.execute(
        "INSERT INTO frequent SELECT term, doc FROM temp.terms WHERE doc >= ?", (FREQUENT,)
    )
    connection.execute("DROP TABLE temp.terms")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    connection.commit()
    return count


def _wrong(connection):
    """Returns what is wrong with a file, "" if nothing is. Whatever is no table may never end."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != FORMAT:
        return f"its format is {version}, not {FORMAT}"
    for kind, name in connection.execute("SELECT type, name FROM sqlite_master"):
        if kind != "table" or not (name in TABLES or name.startswith("article_")):
            return f"it holds the {kind} {name!r:.60}"
    facts = connection.execute("SELECT documents, longest_title FROM facts").fetchone()
    return "" if facts and all(type(n) is int for n in facts) else "it does not say what it holds"


@functools.cache
def _stemmer():
    connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    connection.execute(f"CREATE VIRTUAL TABLE asked USING fts5(word, {TOKENIZER})")
    connection.execute("CREATE VIRTUAL TABLE stem USING fts5vocab(asked, row)")
    return connection, threading.Lock()


@functools.lru_cache(100_000)
def _stem(word):
    """Returns the index's form of a word; only SQLite's own tokenizer knows it."""
    connection, lock = _stemmer()
    with lock:
        connection.execute("DELETE FROM asked")
        connection.execute("INSERT INTO asked VALUES (?)", (word,))
        found = connection.execute("SELECT term FROM stem").fetchone()
    return found[0] if found else word


def words(text: str) -> list[str]:
    """Returns the first MAX_WORDS words of a text: lower case, no accents, no punctuation."""
    apart = unicodedata.normalize("NFKD", text.lower())
    plain = unicodedata.normalize("NFKC", re.sub("[\u0300-\u036f]", "", apart))
    return re.findall(r"[^\W_]+", plain)[:MAX_WORDS]
