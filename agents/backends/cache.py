"""Keeps replies in an SQLite file that threads and processes share, to pay for each once."""

import hashlib
import json
import pathlib
import sqlite3
import threading

from agents.backends.errors import Fatal

WAIT_SECONDS = 10.0  # for another process that writes


class Cache:
    """Keeps JSON values under keys that are JSON too.

    path: of the file, created with its folder; ":memory:" keeps it in this process.
    """

    def __init__(self, path):
        self.path = str(path)
        self._lock = threading.Lock()
        if self.path != ":memory:":
            pathlib.Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = sqlite3.connect(
                self.path, timeout=WAIT_SECONDS, check_same_thread=False, isolation_level=None
            )
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
            )
        except sqlite3.Error as error:
            raise ValueError(
                f"{self.path} cannot be used as a cache: {error}. Delete it or name another file."
            ) from error

    def get(self, key):
        """Returns the value, or None."""
        row = self._run("SELECT value FROM replies WHERE key = ?", (digest(key),))
        return json.loads(row[0]) if row else None

    def put(self, key, value):
        text = json.dumps(value)
        self._run("INSERT OR REPLACE INTO replies VALUES (?, ?)", (digest(key), text))

    def close(self):
        self._file.close()

    def _run(self, statement, values):
        try:
            with self._lock:
                return self._file.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise Fatal(f"The cache {self.path} failed: {error}.") from error


def digest(key):
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
