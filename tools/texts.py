"""Texts from elsewhere, made fit for a prompt, a JSON file and a terminal.

Whatever a tool or a server answers passes here once: the results of all tools in `protocol.call`,
JSON bodies in `loads`, replies of a remote model in `agents.backends.server`.
"""

import json
import re

# C0 and C1 without those that Python counts as blanks (tab, line feed, NEL, ...), and DEL.
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def clean(value):
    """Cleans a text, or all texts in a JSON value, keys of objects too.

    Surrogate pairs become the characters they stand for and lone halves U+FFFD, so that every text
    can be encoded. NUL, DEL and control characters that are no blanks are dropped.
    """
    if isinstance(value, str):
        if _SURROGATES.search(value):
            value = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return _CONTROLS.sub("", value)
    if isinstance(value, list):
        return [clean(inner) for inner in value]
    if isinstance(value, dict):
        return {clean(key): clean(inner) for key, inner in value.items()}
    return value


def loads(body):
    """Returns the value of JSON bytes with its texts clean; bytes that do not fit become U+FFFD.

    Raises:
      ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return clean(json.loads(body.decode(json.detect_encoding(body), "replace")))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
