"""Keys in what services say: every usual spelling, and texts that are cut."""

import base64
import html
import json
import urllib.parse

import pytest

from tools import keys

KEY = 'sk-proj/AbC+12_x=Z~9"q&'
SPELLINGS = [
    str,
    lambda key: urllib.parse.quote(key, safe=""),
    lambda key: urllib.parse.quote(urllib.parse.quote(key), safe=""),
    lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    lambda key: "".join(f"\\u{ord(character):04X}" for character in key),
    lambda key: "".join(f"%{ord(character):02x}" for character in key),
    lambda key: "".join(f"&#{ord(character)};" for character in key),
    html.escape,
    lambda key: key.encode().hex(),
    lambda key: key[:9] + urllib.parse.quote(key[9:]),
]


@pytest.mark.parametrize("spell", SPELLINGS)
def test_every_spelling_is_masked(spell):
    assert keys.masked({"a": [f"x {spell(KEY)} y", 1]}, KEY) == {"a": ["x *** y", 1]}


@pytest.mark.parametrize("before", ["", "Bearer ", "ab", "a:b", ":"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_is_masked_wherever_the_key_begins(before, encode):
    said = encode((before + KEY + "!").encode()).decode()
    start, rest = keys.masked(said, KEY).split(keys.MASK)
    assert len(start) <= len(before) * 8 / 6 + 1 and len(rest) <= 4


def test_texts_are_masked_before_they_are_cut():
    for spell in SPELLINGS:
        for start in range(20):
            assert "proj" not in keys.cut("x" * start + spell(KEY), KEY, most=20)
    assert keys.cut("sesame is wrong", "sesame", most=300) == "*** is wrong"
    assert keys.cut("a", "", most=300) == "a"


def test_a_placeholder_is_not_taken_out_of_answers():
    assert keys.masked("EMPTY", "EMPTY") == "EMPTY" and keys.masked("a", "") == "a"
