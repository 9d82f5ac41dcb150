"""Keys of services: read from the environment, and taken out of what services say.

A service may echo its key, in an error or in an answer, and spell it as URLs, JSON, HTML or base64
do. Texts are masked before they are cut: half a key is no longer found.
"""

import base64
import functools
import html
import os
import re

MASK = "***"
SECRET = 8  # characters; a shorter key is a placeholder, such as EMPTY, and a word of answers
LONGEST = 8  # characters of the longest spelling of one


def api_key(variable: str) -> str:
    """Returns the key in an environment variable; "" if no variable is named.

    Raises:
      ValueError: it is not set, or holds what a header cannot carry.
    """
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"The environment variable {variable} is not set; it must hold a key.")
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"The key in {variable} holds characters that a header cannot carry.")
    return key


def cut(text: str, key: str, *, most: int) -> str:
    """Returns the first characters of a message without the key, however short."""
    text = text[: most + LONGEST * len(key)]
    return (_spellings(key).sub(MASK, text) if key else text)[:most]


def masked(value, key: str):
    """Returns an answer, a text or a JSON value, without the key."""
    if len(key) < SECRET:
        return value
    if isinstance(value, str):
        return _spellings(key).sub(MASK, value)
    if isinstance(value, list):
        return [masked(inner, key) for inner in value]
    if isinstance(value, dict):
        return {masked(name, key): masked(inner, key) for name, inner in value.items()}
    return value


@functools.lru_cache
def _spellings(key):
    """Returns the pattern of a key in all its spellings, also mixed ones."""
    code = key.encode()
    found = ["".join(map(_spelt, key)), "".join(map(_hexadecimal, code))]
    for before in range(3):  # bytes in front of it shift what base64 makes of it
        start, end = -(-before * 8 // 6), (before + len(code)) * 8 // 6
        text = base64.b64encode(b"\0" * before + code).decode()[start:end]
        if len(text) >= SECRET:
            found.append("".join(map(_spelt_base64, text)))
    return re.compile("|".join(found))


def _spelt(character):
    number = _hexadecimal(ord(character))
    return (
        rf"(?:{re.escape(html.escape(character))}|&#0?{ord(character)};|&#[xX]0?{number};"
        rf"|%(?:25)?{number}|\\u00{number}|\\x{number}|\\?{re.escape(character)})"
    )


def _spelt_base64(character):
    other = {"+": "-", "/": "_"}.get(character)
    return f"(?:{_spelt(character)}|{other})" if other else character


def _hexadecimal(number):
    return "".join(f"[{digit}{digit.upper()}]" for digit in f"{number:02x}")
