"""Files that are never seen half-written."""

import os


def replace_text(path, text):
    """Writes a text file so that a crash leaves either the old content or the new."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
