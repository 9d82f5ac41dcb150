"""Builds a search index for knowledge_search and wikipedia_search from JSONL or Parquet.

    python -m experiments.index --source=docs.jsonl --out=index.sqlite

Every line or row has the fields title and text, and may have url. As in other projects, text may be
called contents; its first line is then the title. Exit codes: 0 done, 1 error, 2 bad flags.
"""

import glob
import os
import pathlib
import time

from absl import flags, logging

from experiments.running import command
from flow_grpo_jax.datasets import fields, parquet_file
from flow_grpo_jax.datasets import files as dataset_files
from tools import text_index

COLUMNS = ("title", "text", "contents", "url")  # those of them that a file has
EVERY = 100_000  # documents between two lines of the log


def main():
    values, start = flags.FLAGS, time.monotonic()
    count = build(values.source, values.out)
    seconds = time.monotonic() - start
    logging.info("Wrote %s: %d documents in %.1f s.", values.out, count, seconds)


def build(source, out):
    """Writes the index of the files that the pattern `source` matches; returns their documents.

    Raises:
      ConfigError: a file or row cannot be read, or `out` cannot be written or is one of the files.
    """
    paths = sorted(glob.glob(source))
    if not paths:
        raise command.ConfigError(f"--source={source} matches no file.")
    command.check_out(out, folder=False)
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            raise command.ConfigError(
                f"{path} is a folder; give its files: --source='{path}/*.jsonl'."
            )
        if os.path.exists(out) and path.samefile(out):
            raise command.ConfigError(f"--out={out} is a file of --source; give another file.")
    with command.checking_config():
        documents = (document for path in paths for document in read(path))
        return text_index.build(out, _counted(documents))


def read(path):
    """Yields the (title, text, url) of a .parquet file, or of a JSONL file, one at a time."""
    parquet = path.endswith(".parquet")
    rows = enumerate(_parquet(path), 1) if parquet else dataset_files.json_lines(pathlib.Path(path))
    for number, row in rows:
        if isinstance(row, fields.BadField):
            raise ValueError(f"{path}:{number} {row}.")
        yield document(row, f"{path}:{number}")


def document(row, where):
    """Returns (title, text, url) of one row.

    Raises:
      ValueError: fields are missing, or they are not text.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no object with the fields title and text.")
    title, text, url = row.get("title"), row.get("text"), row.get("url") or ""
    if text is None and isinstance(row.get("contents"), str):
        first, _, text = row["contents"].partition("\n")
        title, text = title or first.strip().strip('"'), text or first
    if not all(isinstance(part, str) for part in (title, text, url)):
        raise ValueError(
            f"{where} has the fields {', '.join(map(str, row))}; title and text must be strings, "
            "and url, if there is one."
        )
    if broken := fields.broken_text([title, text, url]):
        raise ValueError(f"{where} holds half of a surrogate pair: {fields.shown(broken[1])}.")
    return title, text, url


def _parquet(path):
    for batch in parquet_file.batches(pathlib.Path(path), columns=COLUMNS):
        yield from batch.to_pylist()


def _counted(documents):
    count = 0
    for count, found in enumerate(documents, 1):
        yield found
        if count % EVERY == 0:
            logging.info("%d documents", count)
    if not count:
        raise ValueError("--source holds no documents.")


def define_flags():
    flags.DEFINE_string("source", None, "JSONL or Parquet file, or a pattern such as docs/*.jsonl.")
    flags.DEFINE_string("out", None, "File to write.")


if __name__ == "__main__":
    define_flags()
    command.run(main, required=["source", "out"])
