"""Measures the text search of the tools: building an index, queries of one and many threads.

    python -m experiments.benchmark search
    python -m experiments.benchmark search --documents=1000000

Documents are synthetic: 100 words each, drawn from Zipf's law over 200,000 words, with a title of
three of them. A query is either five words drawn from one document's text, with the common words
that questions have, or its title. Reported are the seconds and documents/s of the
build, the size of the file, the median and 95th percentile of a query in one thread, and the
queries/s of eight threads.
"""

import concurrent.futures
import json
import os
import pathlib
import random
import tempfile
import time

import numpy as np
from absl import flags, logging

from tools import text_index

VOCABULARY, EXPONENT = 200_000, 1.0
LENGTH, TITLE, QUERY = 100, 3, 5  # words
TOP_K, THREADS, BATCH = 5, 8, 10_000


def documents(count, *, seed=0):
    """Yields (title, text) of random words, Zipf-distributed."""
    random_words = np.random.default_rng(seed)
    weights = np.cumsum(1 / np.arange(1, VOCABULARY + 1) ** EXPONENT)
    for start in range(0, count, BATCH):
        size = (min(BATCH, count - start), LENGTH + TITLE)
        ranks = np.searchsorted(weights, random_words.random(size) * weights[-1])
        for row in ranks.tolist():
            words = [f"w{rank}" for rank in row]
            yield " ".join(words[:TITLE]), " ".join(words[TITLE:])


def queries(count, *, total, seed=0):
    """Returns {kind: list of queries} about documents among the first BATCH."""
    choose = random.Random(seed)
    known = list(documents(min(BATCH, total)))
    picked = [choose.choice(known) for _ in range(count)]
    return {
        "words": [" ".join(choose.sample(text.split(), QUERY)) for _, text in picked],
        "title": [title for title, _ in picked],
    }


def measure(path, *, total, count):
    """Builds an index at `path`, asks `count` queries of each kind: {name: number}."""
    start = time.perf_counter()
    text_index.build(path, documents(total))
    seconds = time.perf_counter() - start
    numbers = {
        "documents": total,
        "build_s": seconds,
        "build/documents_per_s": total / seconds,
        "file_mb": os.path.getsize(path) / 1e6,
    }
    index = text_index.Index.open(path)
    search = lambda query: index.search(query, top_k=TOP_K)
    for kind, asked in queries(count, total=total).items():
        times = []
        for query in asked:
            start = time.perf_counter()
            search(query)
            times.append(1e3 * (time.perf_counter() - start))
        numbers[f"{kind}/p50_ms"], numbers[f"{kind}/p95_ms"] = np.percentile(
            times, (50, 95)
        ).tolist()
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            start = time.perf_counter()
            list(pool.map(search, asked))
            numbers[f"{kind}/queries_per_s"] = count / (time.perf_counter() - start)
    index.close()
    return numbers


def define_flags():
    flags.DEFINE_integer("documents", 50_000, "How many are indexed.", lower_bound=1)
    flags.DEFINE_integer("queries", 1_000, "How many of each kind.", lower_bound=1)


def main():
    values = flags.FLAGS
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "index.sqlite"
        numbers = measure(path, total=values.documents, count=values.queries)
    logging.info(
        "search %s", json.dumps({name: round(value, 3) for name, value in numbers.items()})
    )
