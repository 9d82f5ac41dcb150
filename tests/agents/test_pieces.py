"""Tokens and the characters that they write."""

import pathlib

import pytest

from agents import pieces
from models import tokenizer

MODEL = pathlib.Path(__file__).parents[2] / "experiments/data/quickstart/model"


@pytest.fixture(scope="module")
def shipped():
    return tokenizer.Tokenizer.load(MODEL)


@pytest.mark.parametrize(
    "text",
    ["Sub-goal: area of Lake Constance\n", "Zürich, 北京 🚀 1234 m²", " a  b", "\ufffd?", ""],
)
def test_characters_add_up_to_the_text(shipped, text):
    ids = [*shipped.encode(text), shipped.eos_ids[0]]
    found = pieces.characters(shipped.decode, ids, text)
    assert len(found) == len(ids) and sum(found) == len(text) and found[-1] == 0
    cut, parts = 0, []
    for count in found:
        parts.append(text[cut : cut + count])
        cut += count
    # Read alone, a token that writes whole characters says the same.
    alone = [shipped.decode([i]) for i in ids]
    assert "\ufffd" in text or all(
        a == b for a, b in zip(parts, alone, strict=True) if "\ufffd" not in b
    )


BYTES = {0: b"a", 1: b"\xe2", 2: b"\x82", 3: b"\xac", 4: b"", 5: b"END"}


def spelled(ids):
    return b"".join(BYTES[i] for i in ids).decode("utf-8", "replace")


@pytest.mark.parametrize(
    "ids, text, counts",
    [
        ((0, 1, 2, 3, 0), "a€a", [1, 0, 0, 1, 1]),
        ((0, 4), "a", [1, 0]),  # an end that decodes to nothing
        ((0, 5), "a", [1, 0]),  # one that the text leaves out
        ((0, 1), "a\ufffd", [1, 1]),  # cut off within a character
        ((0, 0), "ab", None),
        ((0,), "aa", None),
        ((), "", []),
    ],
)
def test_literal_counts(ids, text, counts):
    assert pieces.characters(spelled, ids, text) == counts


def test_a_blank_that_is_dropped_at_the_start_is_kept_behind_others():
    words = {0: " one", 1: " two"}
    decode = lambda ids: "".join(words[i] for i in ids).removeprefix(" ")
    assert pieces.characters(decode, (0, 1, 1), "one two two") == [3, 4, 4]
