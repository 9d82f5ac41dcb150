"""Options of a question, compared with what an answer writes: as strictly as they differ."""

import re
import string
import unicodedata
from collections.abc import Sequence

from flow_grpo_jax.answers.latex import without_latex
from flow_grpo_jax.answers.qa import plain_number

# Full-width forms, letters in brackets or circles, letters of mathematical alphabets.
_WIDE = re.compile("[\u249c-\u24e9\uff01-\uff5e\u3000\U0001d400-\U0001d7ff]")
_STOPS = str.maketrans({"。": ".", "、": ","})
_HYPHENS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"))
_WRAPPED = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|it|rm|sf|tt|normal)|mbox|boldsymbol)"
    r"\s*\{([^{}]*)\}"
)
_ARTICLES = re.compile(r"(?:\A(?:[Tt]he|[Aa]n?)|\b(?:the|an?))\s+(?=[^\W\d_]{2})")


def plain(text: str) -> str:
    """Returns `text` with full-width and circled letters as plain ones, without invisible ones."""
    text = re.sub("[\u200b-\u200f\u2060\ufeff]", "", text.translate(_STOPS))
    return _WIDE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)


def unwrapped(text: str) -> str:
    r"""Removes wrappers such as \text{}, up to three deep, and the marks of bold type."""
    for _ in range(3):
        text = _WRAPPED.sub(r"\1", text)
    return re.sub(r"\*\*|__", "", text)


def unlabelled(options: Sequence[str]) -> list[str]:
    """Returns the plain options without their letters, if each starts with its own: "A. iron"."""
    options = [plain(option) for option in options]
    labelled = [
        re.match(rf"\s*(?:\({letter}\)|{letter}[.):])\s*(?=\S)", option)
        for letter, option in zip(string.ascii_uppercase, options, strict=False)
    ]
    if len(labelled) < len(options) or not all(labelled):
        return options
    return [option[label.end() :] for option, label in zip(options, labelled, strict=True)]


def equal(text: str, options: Sequence[str]) -> set[int]:
    """Returns the options that `text` writes out, compared by the strictest form that finds one.

    Forms: character by character; without LaTeX's delimiters and spaces around signs; without case;
    without articles, quotes, commas, and hyphens between words; as numbers by value, with or
    without % and $. No form drops another sign or a bracket: "Na-" is not "Na+", "[0, 1)" not
    "(0, 1)".
    """
    for form in (_spaced, _tight, _caseless, _loose, plain_number):
        wanted = form(text)
        found = {i for i, option in enumerate(options) if form(option) == wanted}
        if found and wanted not in ("", None):
            return found
    return set()


def starts(text: str, options: Sequence[str]) -> tuple[set[int], int]:
    """Returns (the options with the longest text that `text` starts with, its length)."""
    lowered, found, longest = text.lower(), set(), 0
    for i, option in enumerate(options):
        start = option.strip().rstrip(".").lower()
        if not start or not lowered.startswith(start) or len(start) < longest:
            continue
        if start[-1].isalnum() and lowered[len(start) : len(start) + 1].isalnum():
            continue
        found = {i} | (found if len(start) == longest else set())
        longest = len(start)
    return found, longest


def _spaced(text):
    return " ".join(text.split()).rstrip(".")


def _tight(text):
    text = without_latex(unwrapped(text).translate(_HYPHENS))
    text = re.sub(r"\{(\w)\}", r"\1", text)
    return re.sub(r"\s*([^\w\s])\s*", r"\1", _spaced(text)).rstrip(".")


def _caseless(text):
    return _tight(text).casefold()


def _loose(text):
    text = without_latex(unwrapped(text).translate(_HYPHENS)).strip()
    text = re.sub(r"\A([\"“‘'])(.*)[\"”’']\Z", r"\2", text, flags=re.S)
    text = re.sub(r"(?<=[^\W\d_])['’](?=[^\W\d_])", "", text)
    text = re.sub(r"(?<=[^\W\d_]{2})(?:-(?=[^\W\d_]{2})|[!?]+)", " ", text)
    text = re.sub(r"(?<!\d),|,(?!\d)|[“”;]", " ", text)
    return _caseless(_ARTICLES.sub("", text.strip()))
