"""Bounds of tokenizer.json, checked before the `tokenizers` library reads it, and its failures."""

import contextlib
import math

from bounds import json_text

MAX_PATTERN = 20_000  # characters of a regular expression; published ones have up to 2,000
MAX_GROWTH = 64  # of a text by replacements; published ones write 1 or 3 characters for one
MAX_IDS = 2**24  # the largest published vocabularies have 2**18
STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def check(path):
    """Raises ValueError if a tokenizer.json goes over a bound; the message names the file.

    Replacements, one after another, would otherwise turn a line into gigabytes.
    """
    values = json_text.read_object(path)
    for name in STEPS:
        growths = []
        for part in _objects(values.get(name)):
            pattern, content = part.get("pattern"), part.get("content")
            found = pattern.get("String", pattern.get("Regex")) if isinstance(pattern, dict) else ""
            if isinstance(found, str) and len(found) > MAX_PATTERN:
                raise ValueError(
                    f"{path}: {name} has a pattern of {len(found):,} characters; the most are "
                    f"{MAX_PATTERN:,}."
                )
            if isinstance(content, str):
                is_text = isinstance(pattern, dict) and isinstance(pattern.get("String"), str)
                growths.append(max(1, len(content) / max(1, len(found) if is_text else 1)))
        if math.prod(growths) > MAX_GROWTH:
            raise ValueError(
                f"{path}: {name} may replace a character by {math.prod(growths):.0f}; the most are "
                f"{MAX_GROWTH}."
            )


@contextlib.contextmanager
def failures(what):
    """Raises whatever the library raises as a ValueError that begins with `what`.

    Among it are Exception itself and, where Rust code panics, as when a regular expression gives
    up, a BaseException. OSErrors are left as they are.
    """
    try:
        yield
    except OSError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: {str(error)[:500] or type(error).__name__}") from error


def check_ids(ids, place):
    """Raises ValueError unless all are ids that a vocabulary may have."""
    for each in ids:
        if type(each) is not int or not 0 <= each < MAX_IDS:
            raise ValueError(f"{place} has the token id {each!r:.40}; ids go from 0 to {MAX_IDS}.")


def _objects(value):
    """Yields the objects in a JSON value, those inside others too."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
        if isinstance(each, dict | list):
            waiting += each.values() if isinstance(each, dict) else each
