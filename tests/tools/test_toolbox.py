"""Every tool by name: it is built, its demo runs, and its description is complete."""

import ast

import pytest

from tests.tools import settings
from tools import protocol, toolbox
from tools.protocol import Ask, Parameter, Tool, ToolError

ARTICLES = [("Spain", "Spain is a country in Europe."), ("Gold", "Gold is an element.")]


LOCAL = ("base_generator", "knowledge_search", "python_coder")
HERE = {"knowledge_search": dict(articles=ARTICLES, top_k=1)}
REMOTE = {
    "wikipedia_search": dict(contact="me@example.org"),
    "google_search": dict(engine="searxng", url="http://localhost:1"),
}


@pytest.fixture(scope="module")
def tools():
    return settings.build(tuple(toolbox.MAKERS), **HERE, **REMOTE)


def test_the_order_is_the_callers():
    names = ("python_coder", "base_generator")
    assert tuple(settings.build(names)) == names


@pytest.mark.parametrize("name", tuple(toolbox.MAKERS))
def test_demo_is_a_call_that_works(tools, name):
    call = ast.parse(tools[name].demo, mode="eval").body
    names = [keyword.arg for keyword in call.keywords]
    assert names == [parameter.name for parameter in tools[name].parameters]
    assert call.func.id == name == tools[name].name
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    if tools[name].remote:
        return  # a loopback server answers these in their own tests
    result = protocol.call(tools[name], arguments)
    expected = {
        "base_generator": Ask("Name three prime numbers."),
        "knowledge_search": "Spain is a country in Europe.",
        "python_coder": "45",
    }
    assert result == expected[name]


def test_unknown_and_repeated_names():
    with pytest.raises(ValueError, match="Unknown tools google, bing; valid: base_generator"):
        settings.build(["google", "python_coder", "bing"])
    with pytest.raises(ValueError, match="named twice"):
        settings.build(["base_generator", "base_generator"])


def test_options_reach_the_tools():
    tools = settings.build(
        LOCAL,
        knowledge_search=dict(articles=ARTICLES, top_k=2),
        python_coder=dict(seconds=3),
        base_generator=dict(seconds=9),
    )
    assert len(tools["knowledge_search"].run(query="is").splitlines()) == 2
    assert "Stops after 3 s" in tools["python_coder"].limits
    assert tools["base_generator"].seconds == 9


def test_descriptions():
    tool = Tool(
        name="add",
        description="Adds.",
        parameters=(Parameter("a", "int", "first"), Parameter("b", "float", "second")),
        limits="Two numbers.",
        demo="add(a=1, b=2.0)",
        run=lambda *, a, b: str(a + b),
        seconds=1.0,
    )
    assert toolbox.describe(tool, full=False) == "add(a, b)"
    assert toolbox.describe(tool, full=True).splitlines() == [
        "add(a, b): Adds.",
        "  a (int): first",
        "  b (float): second",
        "  Limits: Two numbers.",
        "  Example: add(a=1, b=2.0)",
    ]
    assert protocol.call(tool, {"a": 1, "b": 2}) == "3"
    for arguments, problem in [
        ({"a": 1}, "missing argument 'b'"),
        ({"a": 1, "b": 2.0, "c": 3}, "unknown argument 'c'"),
        ({"a": "1", "b": 2.0}, "argument 'a' must be int, not str"),
        ({"a": True, "b": 2.0}, "argument 'a' must be int, not bool"),
    ]:
        with pytest.raises(ToolError, match=problem):
            protocol.call(tool, arguments)


def test_parameter_types_are_checked():
    with pytest.raises(ValueError, match="type 'list'; use one of str, int, float, bool"):
        Parameter("x", "list", "")


def test_base_generator_refuses_an_empty_query():
    with pytest.raises(ToolError, match="empty"):
        settings.make("base_generator").run(query=" \n")


def test_probe_lists_everything_that_cannot_be_used(server, monkeypatch):
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    toolbox.probe(settings.build(LOCAL, **HERE))
    server.answer("/search", status=500)
    tools = settings.build(
        ("knowledge_search", "google_search", "base_generator"),
        knowledge_search=dict(url=server.url + "/search"),
        google_search=dict(engine="serper"),
    )
    with pytest.raises(ValueError, match="cannot be used") as error:
        toolbox.probe(tools)
    assert "SERPER_API_KEY is not set" in str(error.value)
    assert f"knowledge_search: {server.url} answered 500." in str(error.value)


def test_remote_answers_are_recorded_and_replayed(server, tmp_path):
    server.answer("/search", [{"title": "A", "text": "of A"}])

    def build(**how):
        return settings.build(
            ("knowledge_search", "base_generator"),
            knowledge_search=dict(url=server.url + "/search"),
            **how,
        )

    with pytest.raises(ValueError, match="set tools.record"):
        build(replay=True)
    assert build(record=tmp_path)["knowledge_search"].run(query="x") == "of A"
    again = build(record=tmp_path, replay=True)
    toolbox.probe(again)
    assert again["knowledge_search"].run(query="x") == "of A" and len(server.seen) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["knowledge_search"]
