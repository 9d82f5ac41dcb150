"""Forms: what the prompts ask for matches, and whatever matches is accepted by the parsers."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import forms, parsing
from tests.tools import settings as tool_settings
from tools import protocol, toolbox
from tools.protocol import Parameter, Tool

TYPES = {"text": "str", "other": "str", "count": "int", "share": "float", "exact": "bool"}
TOOL = Tool(
    name="look_up",
    description="",
    parameters=tuple(Parameter(name, type_, "") for name, type_ in TYPES.items()),
    limits="",
    demo="",
    run=lambda **arguments: repr(arguments),
    seconds=1.0,
)
CODER = Tool("code", "", (Parameter("code", "str", ""),), "", "", lambda code: code, 1.0)
NOTHING = Tool("now", "", (), "", "", lambda: "now", 1.0)

generated = settings(max_examples=60, deadline=None, derandomize=True)


def matching(form):
    """Texts made to match a form, by hypothesis's own reading of the expression."""
    return st.from_regex(re.compile(form), fullmatch=True, alphabet=st.characters(codec="utf-8"))


def run(text, tool):
    """What a tool answers to a command, by the parser and the check of its arguments."""
    [arguments] = parsing.calls(text, tool)
    return protocol.call(tool, arguments)


@pytest.mark.parametrize("tool", [TOOL, CODER, NOTHING], ids=lambda tool: tool.name)
def test_every_command_of_the_form_can_be_run(tool):
    @generated
    @given(matching(forms.command(tool)))
    def check(text):
        assert run(text, tool) is not None

    check()


@generated
@given(matching(forms.VERDICT))
def test_every_verdict_of_the_form_is_read(text):
    assert parsing.verdict(text) == text.endswith("STOP")


@generated
@given(matching(forms.ANSWER))
def test_every_answer_of_the_form_is_read(text):
    assert parsing.answer(text) in text.rpartition("\n")[2]


@generated
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.integers(-(10**17), 10**17)
)
def test_any_value_can_be_written(text, count):
    shares = dict(text=repr(text), other='"""a "quoted" word"""', count=count, share="-0.5e-3")
    written = ", ".join(f"{name}={value}" for name, value in (shares | {"exact": True}).items())
    command = f"look_up({written})"
    assert re.fullmatch(forms.command(TOOL), command)
    [arguments] = parsing.calls(command, TOOL)
    assert (arguments["text"], arguments["count"]) == (text, count)


def test_the_demo_of_every_tool_has_its_form():
    contact = {"contact": "a@example.org"}
    tools = tool_settings.build(tuple(toolbox.MAKERS), wikipedia_search=contact)
    for tool in tools.values():
        assert re.fullmatch(forms.command(tool), tool.demo), tool.demo


@pytest.mark.parametrize(
    "text, expected",
    [
        ('code(code="print(1)\\n")', True),
        ("code(code='''\nprint(\"1\")\n''')", True),
        ('code(\n    code="""x = "a"\nprint(x)"""\n)', True),
        ('code(code="")', True),
        ('code(code="\\d+")', True),
        ('code(code="\\x4")', False),
        ('code(code="\\ud83d")', False),
        ('code(code="a\nb")', False),
        ('code(code="a\\")', False),
        ('code("print(1)")', False),
        ('code(code=f"1")', False),
        ('```\ncode(code="1")\n```', False),
        ('code(code="1")\ncode(code="2")', False),
        ('other(code="1")', False),
    ],
)
def test_the_form_of_a_command(text, expected):
    assert bool(re.fullmatch(forms.command(CODER), text)) == expected


@pytest.mark.parametrize(
    "form, text, expected",
    [
        (forms.VERDICT, "Verdict: STOP", True),
        (forms.VERDICT, "The depth is known.\n\nNothing is open.\nVerdict: CONTINUE", True),
        (forms.VERDICT, "Verdict: STOP\nbecause it is known", False),
        (forms.VERDICT, "It is known. Verdict: STOP", False),
        (forms.VERDICT, "Verdict: PERHAPS", False),
        (forms.VERDICT, "x" * 1001 + "\nVerdict: STOP", False),
        (forms.ANSWER, "Answer: Madrid", True),
        (forms.ANSWER, "Both results agree.\nAnswer: 1,642 m", True),
        (forms.ANSWER, "Madrid", False),
        (forms.ANSWER, "Answer: ", False),
        (forms.ANSWER, "Answer:  \t", False),
    ],
)
def test_the_forms_of_verdict_and_answer(form, text, expected):
    assert bool(re.fullmatch(form, text)) == expected
