"""The names and docstrings of the source follow the house style, as far as a program can tell."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("tools", "agents", "models", "flow_grpo_jax", "experiments")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
SUFFIX = re.compile(r"^(?=.*[a-z]).*_((?=\w*[A-Z])[A-Z0-9]+)$")  # x_BTD, table_1TT; not MAX_TOKENS
KEY = re.compile(r"^Dimensions\b.*?:\n((?:  .*\n?)+)", re.MULTILINE)


def suffix_letters(tree):
    """Returns {letter: a name that uses it} of names that say their shape."""
    letters = {}
    for node in ast.walk(tree):
        names = {
            ast.Name: lambda n: [n.id],
            ast.Attribute: lambda n: [n.attr],
            ast.arg: lambda n: [n.arg],
            ast.keyword: lambda n: [n.arg or ""],
        }.get(type(node), lambda n: [])(node)
        for name in names:
            if found := SUFFIX.match(name):
                letters |= {letter: name for letter in found.group(1) if letter.isupper()}
    return letters


def letters_of_key(docstring):
    """Returns the letters that the Dimensions key of a docstring names."""
    return {
        letter
        for block in KEY.findall(docstring or "")
        for names in re.findall(r"(?<![\w.])((?:[A-Z], )*[A-Z])(?= )", block)
        for letter in names.split(", ")
    }


def unexplained(source):
    """Returns {letter: a name} of suffix letters that the key of a source leaves out."""
    tree = ast.parse(source)
    known = letters_of_key(ast.get_docstring(tree))
    return {letter: name for letter, name in suffix_letters(tree).items() if letter not in known}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_key_of_a_file_covers_the_letters_of_its_shapes(path):
    assert not unexplained(path.read_text(encoding="utf-8"))


def test_a_letter_without_a_key_is_noticed():
    key = '"""Adds.\n\nDimensions:\n  B rows    T, S tokens\n"""\n'
    assert unexplained(f"{key}x_BT = y_S1 + MAX_X + batch.z_Q") == {"Q": "z_Q"}
    assert unexplained('"""No key."""\ndef f(x_BT): ...') == {"B": "x_BT", "T": "x_BT"}
