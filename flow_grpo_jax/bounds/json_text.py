"""JSON of files and answers, refused by size, depth and number of values before it is parsed.

A file of another maker may be short and still cost much: a value takes up to 40 times its text, and
what is nested deeply ends in a RecursionError here or in whatever walks through it later.
"""

import json
import os

import numpy as np

from flow_grpo_jax.bounds import files

MAX_DEPTH = 100  # brackets open at once; files of the hub have 8, schemas of tools 20
DOWNLOAD = "Download it again."  # advice on a file that came from elsewhere
MAX_VALUES = 20_000_000  # the largest tokenizer.json have 2 million

_BLOCK = 2**22  # bytes that are looked at at once
_STEPS = np.zeros(256, np.int8)  # of each byte into or out of brackets
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1


def parse(data: bytes | bytearray | str, *, most: int = files.MAX_BYTES, **how):
    """Returns the value of a JSON text.

    Args:
      data: text, or bytes of it in UTF-8, UTF-16 or UTF-32.
      most: bytes or characters.
      how: arguments of `json.loads`, such as parse_int.

    Raises:
      ValueError: it is no JSON (JSONDecodeError), not in its encoding (UnicodeDecodeError), or over
        a bound; the message goes on from the name of a file and a colon.
    """
    if len(data) > most:
        raise ValueError(f"it has {len(data):,} bytes; the most are {most:,}")
    text = data if isinstance(data, str) else data.decode(json.detect_encoding(data))
    opened = text.count("[") + text.count("{")
    if opened > MAX_DEPTH or opened + text.count(",") > MAX_VALUES:
        _check(text)
    return json.loads(text, **how)


def _check(text):
    """Raises ValueError if JSON holds too much or is nested too deeply."""
    # Without its escapes, every other quotation mark ends a text.
    plain = text.replace(r"\\", "").replace(r"\"", "").encode("utf-8", "replace")
    depth = values = deepest = inside = 0
    for start in range(0, len(plain), _BLOCK):
        codes = np.frombuffer(plain, np.uint8, min(_BLOCK, len(plain) - start), start)
        in_text = (np.cumsum(codes == ord('"'), dtype=np.uint8) + np.uint8(inside)) & 1
        steps = _STEPS[codes] * (1 - in_text).astype(np.int8)
        depths = depth + np.cumsum(steps, dtype=np.int32)
        deepest, depth, inside = max(deepest, depths.max()), depths[-1], in_text[-1]
        values += np.count_nonzero(steps > 0) + np.count_nonzero(
            (codes == ord(",")) & (in_text == 0)
        )
    if values > MAX_VALUES:
        raise ValueError(f"it holds {values:,} values; the most are {MAX_VALUES:,}")
    if deepest > MAX_DEPTH:
        raise ValueError(f"it is nested too deeply: {deepest:,} brackets, {MAX_DEPTH} at most")


def read_object(path: str | os.PathLike, *, most: int = files.MAX_BYTES, advice: str = "") -> dict:
    """Returns the object in a JSON file; `advice` is a sentence that ends an error.

    Raises:
      OSError: it cannot be read.
      ValueError: it holds something else, or is over a bound; the message names the file.
    """
    return as_object(files.read_bytes(path, most=most), path, advice=advice)


def as_object(data: bytes | str, place, *, advice: str = "") -> dict:
    """Returns the object that a JSON text holds; a ValueError names its `place`, such as a file."""
    advice = advice and f" {advice}"
    try:
        value = parse(data)
    except ValueError as error:
        raise ValueError(f"{place} is damaged: {error}.{advice}") from error
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise ValueError(f"{place} is damaged: it holds a {kind}, not an object.{advice}")
    return value
