"""Parsers: what is accepted, what is refused, and that nothing is ever executed."""

import ast
import pathlib
import re

import pytest
from hypothesis import given
from hypothesis import settings as generated
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
        (
            "python_coder(code=-9223372036854775808, n=0x7fffffffffffffff)",
            {"code": -(2**63), "n": 2**63 - 1},
        ),
    ],
)
def test_calls_with_literals_are_read(text, arguments):
    assert parsing.calls(text, TOOL) == [arguments]


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
        ("import os\npython_coder(code='a')", r"Line 1 is no call \(Import\)"),
        ("python_coder(code='a'", r"'\(' was never closed in line 1"),
        ("python_coder(code='a\nb')", "unterminated string literal .* in line 1"),
        ("I call python_coder(code='a')", "not a Python call"),
        ("(" * 5000, "too many nested parentheses"),
        ("python_coder(code=" + "-" * 15_000 + "1)", "nested too deeply"),
        ("python_coder(code=" + "9" * 9000 + ")", "Exceeds the limit"),
        ("python_coder(code=0x" + "f" * 15_000 + ")", "code is an integer of more than 64 bits"),
        ("python_coder(code=[{'a': -9223372036854775809}])", "more than 64 bits"),
        ("python_coder(code=1e999)", "too large"),
        ("python_coder(code={-1e999})", "too large"),
        ("python_coder(code=" + "{1:" * 60 + "0x" + "f" * 99 + "}" * 60 + ")", "64 bits"),
        ("python_coder(code='" + "a" * 30_000 + "')", "30021 characters; 20000 allowed"),
        ("python_coder(code=__import__('os').system('true'))", "code is an expression"),
        ("python_coder(code='\0')", "null bytes"),
        ("python_coder(code='\\ud83d')", "half a surrogate pair"),
    ],
)
def test_everything_else_is_refused(text, message):
    with pytest.raises(parsing.ParseError, match=message):
        parsing.calls(text, TOOL)


CALL = "add(a=1, b=2)"
WRAPPED = ["````\n{}\n````", "```{}```", "```python\r\n{}\r\n```", "~~~\n{}\n~~~", "```\n{}"]
WRAPPED += [
    "```python\n{}",
    "```python\n{}```",
    "{}\n```",
    "  ```py\n  {}\n  ```",
    "```python {}```",
]
WRAPPED += ["```tool_call\n{}\n```", "```{}\n```", "````python\n{}\n```", "``` python\n{}\n```"]
WRAPPED += ["It is:\n~~~\n{}\n~~~\nIt adds.", "It is:\n```python\n{}", "```c++\n{}\n```"]
WRAPPED += [
    "`{}`",
    "``{}``",
    "**{}**",
    '"{}"',
    "'{}'",
    "<tool_call>\n{}\n</tool_call>",
    "<code>{}</code>",
]
WRAPPED += [
    "Command: {}",
    "command:{}",
    "Generated Command:\n{}",
    "**Command:** `{}`",
    "Tool call: {}",
]
WRAPPED += [
    "Command:\n```python\n{}",
    "**Command**: {}",
    "Command：{}",
    "Action: {}",
    "`Command: {}`",
]
WRAPPED += [
    "result = {}",
    "result = {}  # it",
    "result: str = {}",
    "```\nx = {}\n````",
    "Command: x = {}",
]
WRAPPED += ["\ufeff{}", "{}\u200b", "\ufeff```\n{}\n```", "{}.", "{},", "`{}`.", "x = {};"]


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_a_lone_call_is_read_in_odd_wrappings(wrapping):
    assert parsing.calls(wrapping.format(CALL), ADD) == [{"a": 1, "b": 2}]
    code = 'python_coder(code="""\n`a`\n""")'  # what looks like a wrapping stays
    if not wrapping.startswith('"'):
        assert parsing.calls(wrapping.format(code), TOOL) == [{"code": "\n`a`\n"}]


def test_a_fence_may_hold_several_calls_and_nothing_else_may():
    for wrapping in ("~~~\n{}\n~~~", "````python\n{}", "\ufeff{}"):
        assert len(parsing.calls(wrapping.format("add(1, 2)\nadd(3, 4)"), ADD)) == 2
    for wrapping in ("Command: {}", "`{}`", "<code>{}</code>"):
        with pytest.raises(parsing.ParseError):
            parsing.calls(wrapping.format("add(1, 2)\nadd(3, 4)"), ADD)


MORE = [
    "- {}",
    "* {}",
    "1. {}",
    "1) {}",
    "Step 1: {}",
    "> {}",
    "print({})",
    "await {}",
    "return {}",
]
MORE += [
    "x = {}\nprint(x)",
    "x, y = {}",
    "x = y = {}",
    "x += {}",
    "x = [{}]",
    "x = -{}",
    "x.y = {}",
]
MORE += ["I will use:\n\n{}", "{}\nIt adds.", "Command: {}\nIt adds.", "Do not: {}", "Never {}"]
MORE += ["```await {}```", "```print {}```", "```- {}```", "Use `{}` now", "`{}` or `{}`", "x: {}"]
MORE += ["~~~\n{}\n~~~\nor\n~~~\nadd(3, 4)\n~~~", "````\n{}\n````\nor add(3, 4)", "`{}", "'{}`"]
MORE += ["not add(3, 4):\n````\n{}\n````", "```\n{}\nThen the sum is there.", "not_it: x = {}"]
MORE += ["<think>{}</think>", "<think>\n?\n</think>\n{}", "'{}'.strip()", "lambda: {}", "(x := {})"]
MORE += [
    "{}.real",
    "{}[0]",
    "{} + 1",
    "{} if 1 else 2",
    "{}...",
    "{}\n{}\n{}\n{}\n{}\n{}",
    "add = 1",
]
MORE += ["```\n{}\n```\nprose\n```", "```\n{}\n```\n```\n{}\n```", "{}\n```\n{}\n```\n```"]
MORE += ["``````", "Command:", "x =", "\ufeff", "''", "other = sub(1, 2)", "```add```", "`add`"]


@pytest.mark.parametrize("text", MORE)
def test_what_may_mean_something_else_is_refused(text):
    with pytest.raises(parsing.ParseError):
        parsing.calls(text.replace("{}", CALL), ADD)


def test_quotes_with_escapes_may_mean_two_things():
    assert parsing.calls(""" "python_coder('a')" """, TOOL) == [{"code": "a"}]
    with pytest.raises(parsing.ParseError):
        parsing.calls(r""" "python_coder('a\nb')" """, TOOL)


def test_an_f_string_without_fields_is_its_text():
    assert parsing.calls("python_coder(code=f'a{{b}}' 'c')", TOOL) == [{"code": "a{b}c"}]
    assert parsing.calls("python_coder(f'')", TOOL) == [{"code": ""}]


def test_one_command_is_tried_in_a_few_readings_only(monkeypatch):
    parsed, tried = parsing._parsed, []
    monkeypatch.setattr(parsing, "_parsed", lambda text: tried.append(text) or parsed(text))
    for piece in ("Command: ", "`", "'\"", "<code>", "```\n", "```\n~~~\n", "`'", "x = ", "*`"):
        tried.clear()
        with pytest.raises(parsing.ParseError):
            parsing.calls(piece * 500 + "add(" + piece[::-1] * 500, ADD)
        assert len(tried) <= 4 * parsing.MAX_READINGS


def test_parsing_executes_nothing(tmp_path):
    target = tmp_path / "made"
    with pytest.raises(parsing.ParseError):
        parsing.calls(f"python_coder(code=open({str(target)!r}, 'w'))", TOOL)
    assert not pathlib.Path(target).exists()


def test_surrogate_pairs_become_characters():
    assert parsing.calls('python_coder(code="\\ud83d\\ude00")', TOOL) == [{"code": "😀"}]


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
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
    + ["`", "~~~", "x = ", "Command: ", "\ufeff", "<code>", "</code>", "python_coder('a')"]
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


# ---- a text that was read before odd wrappings were is read as before ------------------------

FENCE = re.compile(r"^```\w*[ \t]*\n(.*)^```[ \t]*$", re.DOTALL | re.MULTILINE)  # quadratic
PARTS = ["add(1, 2)", "add(a=3, b=4)", "```", "```\n", "```python\n", "\n", "\n```\n", "~~~\n", "`"]
PARTS += [
    "````\n",
    "x = ",
    "Command: ",
    "prose ",
    "add('''\n```\n''', 1)",
    "\ufeff",
    "# c\n",
    "\r\n",
]


def read_before(text):
    """The arguments as Python's own evaluation of the text's literals gives them, or None."""
    fenced = FENCE.search(text.strip())
    for part in [text.strip()] + ([fenced[1]] if fenced else []):
        try:
            body = ast.parse(part).body
        except SyntaxError:
            continue
        found = []
        for statement in body:
            call = getattr(statement, "value", None)
            if not isinstance(statement, ast.Expr) or ast.unparse(call)[:4] != "add(":
                return None
            given = {"ab"[i]: ast.literal_eval(node) for i, node in enumerate(call.args)}
            found.append(given | {k.arg: ast.literal_eval(k.value) for k in call.keywords})
        return found if 0 < len(found) <= 5 else None
    return None


@generated(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=8).map("".join))
def test_what_was_read_before_is_read_as_before(text):
    before = read_before(text)
    if before is not None:
        assert parsing.calls(text, ADD) == before


def test_plan_values_run_to_the_next_label():
    text = (
        "Justification: we need it\nContext: a\nb\nSub-Goal: find: the year\nTool: python_coder\n"
    )
    assert parsing.plan(text, ("python_coder",)) == parsing.Plan(
        context="a\nb", sub_goal="find: the year", tool="python_coder"
    )


NAMES = ("knowledge_search", "python_coder")
ODD_PLANS = [
    "**Context:** Spain\n**Sub-goal:** its capital\n**Tool:** knowledge_search",
    "**Context**: Spain\n**Sub-goal**: its capital\n**Tool**: `knowledge_search`",
    "- **Context:** Spain\n- **Sub-goal:** its capital\n- **Tool:** knowledge_search",
    "1. Context: Spain\n2. Sub-goal: its capital\n3. Tool: knowledge_search",
    "### Context: Spain\n\n### Sub-goal: its capital\n\n### Tool: knowledge_search",
    "Context: Spain\nSubgoal: its capital\nTool: knowledge_search",
    "Context: Spain\nSub\u2011goal: its capital\nTool: knowledge_search",
    "  Context： Spain\n  Sub goal： its capital\n  Tool： knowledge_search",
    "**Context: Spain**\n**Sub-goal: its capital**\n**Tool: knowledge_search**",
    "```\nContext: Spain\nSub-goal: its capital\nTool: knowledge_search\n```",
    "```\nTool: knowledge_search\nContext: Spain\n**Sub-goal:** its capital\n```",
    'Context: Spain\nSub-goal: its capital\nTool: "knowledge_search".',
    "Context: Spain\nSub-goal: its capital\nTool: Knowledge Search",
    "Context: Spain\nSub-goal: its capital\nTool: knowledge_search(query)",
    'Context: Spain\nSub-goal: its capital\nTool: knowledge_search(query="Spain")',
    "Context: Spain\nSub-goal: its capital\nTool: knowledge_search\n\nThis finds the capital.",
    "Here is the plan:\n\n*Context:* Spain\n*Sub-goal:* its capital\n*Tool:* knowledge_search",
]


@pytest.mark.parametrize("text", ODD_PLANS)
def test_plans_are_read_as_chat_models_decorate_them(text):
    assert parsing.plan(text, NAMES) == parsing.Plan("Spain", "its capital", "knowledge_search")


@pytest.mark.parametrize(
    "tool",
    [
        "knowledge_search or python_coder",
        "knowledge_search\npython_coder",
        "knowledge_search\nThen use python_coder.",
        "knowledge_search(query=python_coder)",
        "not knowledge_search",
        "knowledge_search is of no use",
        "search",
        "**",
        "",
    ],
)
def test_a_tool_that_is_not_clear_is_refused(tool):
    with pytest.raises(parsing.ParseError):
        parsing.plan(f"**Context:** Spain\n**Sub-goal:** its capital\n**Tool:** {tool}", NAMES)


def test_decorated_labels_count_only_where_plain_ones_do_not_suffice():
    text = (
        "Context: in the shed\n- Tool: hammer\n**Sub-goal:** none\nSub-goal: x\nTool: python_coder"
    )
    assert parsing.plan(text, NAMES) == parsing.Plan(
        "in the shed\n- Tool: hammer\n**Sub-goal:** none", "x", "python_coder"
    )
    for text in ("- Sub-goal: a\n- Sub-goal: b\n- Tool: python_coder", "- Tool: python_coder"):
        with pytest.raises(parsing.ParseError, match="repeats Sub-goal|no Sub-goal"):
            parsing.plan(text, NAMES)
    plan = parsing.plan("- Sub-goal: 2 ** 3 ** 4\n- Tool: Python-Coder", NAMES)
    assert plan == parsing.Plan("", "2 ** 3 ** 4", "python_coder")
    with pytest.raises(parsing.ParseError):  # two tools by names that look alike
        parsing.plan("- Sub-goal: a\n- Tool: Add It", ("add_it", "add-it"))


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("Verdict: STOP", True),
        ("It is valid.\nVerdict: CONTINUE", False),
        ("Verdict: STOP.", True),
        ("Verdict:\u00a0STOP", True),
        ("**Verdict: STOP**", True),
        ("So:\n\n**Verdict:** CONTINUE", False),
        ("**Verdict:** **Stop**.", True),
        ("### Verdict: `CONTINUE`", False),
        ('- verdict: "stop"!', True),
        ("```\nVerdict: STOP\n```", True),
        ("Verdict: STOP\n**Verdict:** CONTINUE", False),
    ],
)
def test_verdicts(text, stop):
    assert parsing.verdict(text) is stop


@pytest.mark.parametrize(
    "text",
    [
        "STOP",
        "do not stop",
        "Verdict: STOP or CONTINUE",
        "Verdict: STOP\nbut go on",
        "Verdict: STOP, unless a part is open",
        "The verdict: STOP",
        "> Verdict: STOP",
        "**Verdict:**\nSTOP",
        "Verdict: not STOP",
        "",
    ],
)
def test_unclear_verdicts_are_refused(text):
    with pytest.raises(parsing.ParseError):
        parsing.verdict(text)


def test_answers():
    assert parsing.answer("Because.\nAnswer: Madrid") == "Madrid"
    assert parsing.answer("Answer: a\nAnswer: two\nlines") == "two\nlines"
    assert parsing.answer("Answer: a\n**Answer:** b") == "a\n**Answer:** b"  # as it always was
    for text in (
        "Madrid",
        "Answer:",
        "The Answer: Madrid",
        "**Answer:**",
        "So the answer is: Madrid",
    ):
        with pytest.raises(parsing.ParseError):
            parsing.answer(text)


@pytest.mark.parametrize(
    "text",
    [
        "**Answer:** Madrid",
        "**Answer**: Madrid",
        "**Answer: Madrid**",
        "It is there.\n\n## Answer: Madrid",
        "- answer: Madrid",
        "Final answer: Madrid",
        "**Final Answer:** Madrid",
        "Answer： Madrid",
        "The answer is: Madrid",
        "The **answer is** not Lisbon.\n**The final answer is:** Madrid",
        "**Answer:** Lisbon\n\nNo:\n\n**Answer:** Madrid",
        "```\n  Answer: Madrid\n```",
        "**Answer:**\nMadrid",
    ],
)
def test_answers_are_read_as_chat_models_decorate_them(text):
    assert parsing.answer(text) == "Madrid"


@pytest.mark.parametrize(
    "text",
    ["tool" + " " * 100_000, "answer" + "*" * 100_000, ("\n" + " " * 300) * 300, "- " * 50_000],
)
def test_long_texts_are_refused_at_once(text):
    for parse in (parsing.answer, parsing.verdict, lambda text: parsing.plan(text, NAMES)):
        with pytest.raises(parsing.ParseError):
            parse(text)
