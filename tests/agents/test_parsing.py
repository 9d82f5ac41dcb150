"""Parsers: what is accepted, what is refused, and that nothing is ever executed."""

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import parsing
from tools.protocol import Parameter, Tool

TOOL = Tool(
    name="python_coder",
    description="",
    parameters=(Parameter("code", "str", ""),),
    limits="",
    demo='python_coder(code="print(1)")',
    run=lambda code: code,
    seconds=1.0,
)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('python_coder(code="print(1)")', {"code": "print(1)"}),
        ('  python_coder(code="a")  # comment', {"code": "a"}),
        ('python_coder(\n    code="""\nfor i in range(3):\n    print(i)\n""",\n)', None),
        ('```python\npython_coder(code="a")\n```', {"code": "a"}),
        ("python_coder(code='it\\'s', n=-3, xs=[1, {'a': None}])", None),
    ],
)
def test_calls_with_literals_are_read(text, arguments):
    found = parsing.command(text, TOOL)
    assert found == arguments if arguments else isinstance(found["code"], str)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "print(1)",
        "python_coder",
        'python_coder("positional")',
        "python_coder(code=open('/etc/passwd').read())",
        "python_coder(code=f'{1}')",
        "python_coder(code='a' + 'b')",
        "python_coder(**{'code': 'a'})",
        "python_coder.run(code='a')",
        "x = python_coder(code='a')",
        "python_coder(code='a'); python_coder(code='b')",
        "python_coder(code='a'",
        "(" * 5000,
        "python_coder(code='" + "a" * 30_000 + "')",
        "python_coder(code=__import__('os').system('true'))",
        "python_coder(code='\0')",
        "python_coder(code='\\ud83d')",
    ],
)
def test_everything_else_is_refused(text):
    with pytest.raises(parsing.ParseError):
        parsing.command(text, TOOL)


def test_parsing_executes_nothing(tmp_path):
    target = tmp_path / "made"
    with pytest.raises(parsing.ParseError):
        parsing.command(f"python_coder(code=open({str(target)!r}, 'w'))", TOOL)
    assert not pathlib.Path(target).exists()


def test_surrogate_pairs_become_characters():
    assert parsing.command('python_coder(code="\\ud83d\\ude00")', TOOL) == {"code": "😀"}


@given(st.text())
def test_any_string_survives_as_an_argument(text):
    assert parsing.command(f"python_coder(code={text!r})", TOOL) == {"code": text}


@given(st.text())
def test_any_text_is_read_or_refused(text):
    for parse in (
        lambda: parsing.command(text, TOOL),
        lambda: parsing.plan(text, ("python_coder",)),
        lambda: parsing.verdict(text),
        lambda: parsing.answer(text),
    ):
        try:
            parse()
        except parsing.ParseError as refused:
            assert str(refused)


def test_plan_values_run_to_the_next_label():
    text = (
        "Justification: we need it\nContext: a\nb\nSub-Goal: find: the year\nTool: python_coder\n"
    )
    assert parsing.plan(text, ("python_coder",)) == parsing.Plan(
        context="a\nb", sub_goal="find: the year", tool="python_coder"
    )


@pytest.mark.parametrize(
    ("text", "stop"),
    [("Verdict: STOP", True), ("It is valid.\nVerdict: CONTINUE", False), ("Verdict: STOP.", True)],
)
def test_verdicts(text, stop):
    assert parsing.verdict(text) is stop


@pytest.mark.parametrize(
    "text", ["STOP", "do not stop", "Verdict: STOP or CONTINUE", "Verdict: STOP\nbut go on", ""]
)
def test_unclear_verdicts_are_refused(text):
    with pytest.raises(parsing.ParseError):
        parsing.verdict(text)


def test_answers():
    assert parsing.answer("Because.\nAnswer: Madrid") == "Madrid"
    assert parsing.answer("Answer: a\nAnswer: two\nlines") == "two\nlines"
    for text in ("Madrid", "Answer:", "The Answer: Madrid"):
        with pytest.raises(parsing.ParseError):
            parsing.answer(text)
