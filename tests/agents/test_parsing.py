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


ADD = Tool(
    name="add",
    description="",
    parameters=(Parameter("a", "int", ""), Parameter("b", "int", "")),
    limits="",
    demo="add(a=1, b=2)",
    run=lambda a, b: str(a + b),
    seconds=1.0,
)
LONG = 'python_coder(\n    code="""\nfor i in range(3):\n    print(i)\n""",  # a loop\n)'


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('python_coder(code="print(1)")', {"code": "print(1)"}),
        ('  python_coder(code="a")  # comment', {"code": "a"}),
        ('# first\npython_coder(code="a")\n# last', {"code": "a"}),
        (LONG, {"code": "\nfor i in range(3):\n    print(i)\n"}),
        ('python_coder("positional")', {"code": "positional"}),
        ('```python\npython_coder(code="a")\n```', {"code": "a"}),
        ('The command is:\n```\npython_coder(code="a")\n```\nIt prints.', {"code": "a"}),
        ('python_coder(code="""\n```\nx\n```\n""")', {"code": "\n```\nx\n```\n"}),
        ("python_coder(code='a' 'b')", {"code": "ab"}),
        (r"python_coder(code='\d')", {"code": r"\d"}),
        (
            "python_coder(code='it\\'s', n=-3, xs=[1, {'a': None}])",
            {"code": "it's", "n": -3, "xs": [1, {"a": None}]},
        ),
    ],
)
def test_calls_with_literals_are_read(text, arguments):
    assert parsing.calls(text, TOOL) == [arguments]


@pytest.mark.parametrize(
    "text",
    [
        "````\n{}\n````",
        "~~~python\n{}\n~~~",
        "```python\r\n{}\r\n```",
        "```{}```",
        "```python {}```",
        "`{}`",
        "```python\n{}",
        "Here it is:\n```python\n{}",
        "The command:\n````tool_code\n{}\n````\nIt prints.",
        "Command: {}",
        "command:\n{}",
        "Generated Command:\n```python\n{}\n```",
        "Command: `{}`",
        "result = {}",
        "```\nresult = {}\n```",
        "\ufeff{}",
        "{};",
        "\n\n  {}\n",
    ],
)
def test_a_lone_call_is_read_from_wrappings_that_mean_one_thing(text):
    """Texts of models, with quotes, backticks and line breaks in the argument itself."""
    for call, code in (
        ('python_coder(code="print(1)")', "print(1)"),
        ('python_coder(code=f"print(1)")', "print(1)"),
        ("python_coder('a`b`c')", "a`b`c"),
        ('python_coder(\n  code="""\nx = 1\nprint(x)\n""",\n)', "\nx = 1\nprint(x)\n"),
    ):
        if "\n" in call and text.startswith(("`{", "```{", "```python {", "Command: `")):
            continue
        assert parsing.calls(text.format(call), TOOL) == [{"code": code}]


def test_several_calls_are_read_in_order():
    text = "add(a=1, b=2)  # first\nadd(3, b=4); add(\n  5,\n  6)"
    assert parsing.calls(text, ADD) == [{"a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": 5, "b": 6}]
    with pytest.raises(parsing.ParseError, match="6 calls; write 5 at most"):
        parsing.calls("add(1, 2)\n" * 6, ADD)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no command"),
        ("# only a comment", "no command"),
        ("print(1)", "calls print, not the tool python_coder"),
        ("python_coder", "no call"),
        ("python_coder('a', 'b')", r"takes 1 arguments \(code\), not 2"),
        ("python_coder('a', code='b')", "code is given twice"),
        ("python_coder(code='a', code='b')", "code is given twice"),
        ("python_coder(code=open('/etc/passwd').read())", "code is an expression"),
        ("python_coder(code=f'{1}')", "f-string; write the finished text"),
        ("python_coder(code='a' + 'b')", "code is an expression"),
        ("python_coder(code=1 + 2j)", "code is an expression"),
        ("python_coder(code=Spain)", "the name Spain; names have no value here"),
        ("python_coder(code=[x for x in 'ab'])", "code is an expression"),
        ("python_coder(code=-'a')", "not a literal value"),
        ("python_coder(code={[]: 1})", "not a literal value"),
        ("python_coder(**{'code': 'a'})", r"instead of using \*"),
        ("python_coder(*['a'])", r"instead of using \*"),
        ("python_coder.run(code='a')", r"no call \(Call\)"),
        ("x = y = python_coder(code='a')", r"no call \(Assign\)"),
        ("x = python_coder(code='a')\nprint(x)", r"no call \(Assign\)"),
        ("await python_coder(code='a')", r"no call \(Await\)"),
        ("- python_coder(code='a')", r"no call \(UnaryOp\)"),
        ("1. python_coder(code='a')", "not a Python call"),
        ("Note: python_coder(code='a')", r"no call \(AnnAssign\)"),
        ("To find it, I will use:\n\npython_coder(code='a')", "not a Python call"),
        ("```\npython_coder(code='a')\n```\nor\n```\npython_coder(code='b')\n```", "not a Python"),
        ("```python_coder(code='a')``` or ```python_coder(code='b')```", "not a Python call"),
        ("```\nI call python_coder(code='a')", "not a Python call"),
        ("`x` python_coder(code='a') `y`", "not a Python call"),
        ("Command: " * 2000 + "python_coder(code='a')", "not a Python call"),
        ("~~~" * 6000, "not a Python call"),
        ("`" * 19_000, "not a Python call"),
        ("import os\npython_coder(code='a')", r"Line 1 is no call \(Import\)"),
        ("python_coder(code='a'", r"'\(' was never closed in line 1"),
        ("python_coder(code='a\nb')", "unterminated string literal .* in line 1"),
        ("I call python_coder(code='a')", "not a Python call"),
        ("(" * 5000, "too many nested parentheses"),
        ("python_coder(code=" + "-" * 15_000 + "1)", "nested too deeply"),
        ("python_coder(code=" + "9" * 9000 + ")", "Exceeds the limit"),
        ("python_coder(code='" + "a" * 30_000 + "')", "30021 characters; 20000 allowed"),
        ("python_coder(code=__import__('os').system('true'))", "code is an expression"),
        ("python_coder(code='\0')", "null bytes"),
        ("python_coder(code='\\ud83d')", "half a surrogate pair"),
    ],
)
def test_everything_else_is_refused(text, message):
    with pytest.raises(parsing.ParseError, match=message):
        parsing.calls(text, TOOL)


def test_parsing_executes_nothing(tmp_path):
    target = tmp_path / "made"
    with pytest.raises(parsing.ParseError):
        parsing.calls(f"python_coder(code=open({str(target)!r}, 'w'))", TOOL)
    assert not pathlib.Path(target).exists()


def test_surrogate_pairs_become_characters():
    assert parsing.calls('python_coder(code="\\ud83d\\ude00")', TOOL) == [{"code": "😀"}]


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.lists(st.tuples(LITERALS, LITERALS, st.booleans()), min_size=1, max_size=5))
def test_whatever_python_writes_down_is_read_back(values):
    lines = [
        f"add({a!r},\n  {'' if positional else 'b='}{b!r},  # )'\n)" for a, b, positional in values
    ]
    assert parsing.calls("\n".join(lines), ADD) == [{"a": a, "b": b} for a, b, _ in values]


@given(st.text())
def test_any_string_survives_as_an_argument(text):
    assert parsing.calls(f"python_coder(code={text!r})", TOOL) == [{"code": text}]


# Pieces of Python, so that what is tried is nearly a call more often than chance would have it.
PIECES = st.sampled_from(
    ["python_coder", "(", ")", "code=", "'a'", "f'{1}'", ",", "\n", ";", "#", "*", "**", "[", "]"]
    + ["{", "}", ":", "1", "-", "x", ".", "lambda", " ", "```", '"""', "\\", "await ", "yield"]
)


@given(st.lists(PIECES, max_size=12).map("".join) | st.text())
def test_any_text_is_read_or_refused(text):
    for parse in (
        lambda: parsing.calls(text, TOOL),
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
