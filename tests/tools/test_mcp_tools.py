"""Tools of MCP servers: one in this process, and one that is started as a command."""

import json
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import settings
from tools import mcp_tools, protocol, recording, toolbox
from tools.protocol import Parameter, ToolError

server_module = pytest.importorskip("mcp.server.mcpserver")
mcp_wire = pytest.importorskip("tools.mcp_wire")

SERVER = """
from mcp.server.mcpserver import MCPServer

server = MCPServer("test")

@server.tool(name="add-numbers")
def add(a: int, b: float, label: str = "") -> str:
    '''Adds two
    numbers.'''
    return label + str(a + b)

@server.tool()
def fail(text: str) -> str:
    '''Fails.'''
    raise ValueError("no " + text)
"""


@pytest.fixture(scope="module")
def connection():
    names = {}
    exec(SERVER, names)  # noqa: S102  a server of this very test
    made = mcp_tools.Connection(names["server"], max_characters=100)
    yield made
    made.close()


def test_tools_are_described_and_called(connection):
    add, fail = connection.tools
    assert (add.name, add.description, add.remote) == ("add_numbers", "Adds two numbers.", True)
    assert add.parameters == (Parameter("a", "int", "a"), Parameter("b", "float", "b"))
    assert add.demo == "add_numbers(a=1, b=1.0)"
    assert protocol.call(add, {"a": 1, "b": 2.5}) == "3.5"
    with pytest.raises(ToolError, match="argument 'a' must be int"):
        protocol.call(add, {"a": "1", "b": 2.5})
    with pytest.raises(ToolError, match="fail"):
        fail.run(text="x")
    add.probe()


def test_what_a_model_cannot_write_is_refused():
    server = server_module.MCPServer("test")

    @server.tool()
    def total(numbers: list[int]) -> int:
        """Adds."""
        return sum(numbers)

    with pytest.raises(ValueError, match="total requires 'numbers' of type array"):
        mcp_tools.Connection(server)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"description": "x" * 10_001}, "a description of more than 10,000"),
        ({"name": "x" * 101}, "a name of more than 100 characters"),
        ({"title": "x"}, "has more than 500 tools"),
    ],
)
def test_servers_that_would_fill_the_prompts_are_refused(about, message):
    server = server_module.MCPServer("test")
    for index in range(501 if "title" in about else 1):
        name = about.get("name", f"tool{index}")
        server.add_tool(lambda: "x", name=name, description=about.get("description", "y"))
    with pytest.raises(ValueError, match=message):
        mcp_tools.Connection(server)


def test_a_command_may_be_the_server(tmp_path):
    path = tmp_path / "server.py"
    path.write_text(textwrap.dedent(SERVER) + "\nserver.run()\n")
    connection = mcp_tools.Connection(f"{sys.executable} {path}")
    assert [tool.name for tool in connection.tools] == ["add_numbers", "fail"]
    assert connection.tools[0].run(a=1, b=1.0) == "2.0"
    connection.close()


def test_a_server_that_does_not_start_is_named():
    with pytest.raises(ValueError, match="MCP server no-such-program: "):
        settings.build(("base_generator",), mcp=("no-such-program",))


def test_a_replay_needs_no_server_and_no_sdk(tmp_path, monkeypatch):
    path, record = tmp_path / "server.py", tmp_path / "record"
    path.write_text(textwrap.dedent(SERVER) + "\nserver.run()\n")
    how = dict(mcp=(f"{sys.executable} {path}",), record=str(record))
    with pytest.raises(ValueError, match="nothing to replay of .*server.py"):
        settings.build(("base_generator",), **how, replay=True)
    connections = []

    def connect(server):
        connections.append(mcp_tools.Connection(server))
        return connections[-1].tools

    monkeypatch.setattr(mcp_tools, "connect", connect)
    live = settings.build(("base_generator",), **how)
    assert protocol.call(live["add_numbers"], {"a": 1, "b": 2.5}) == "3.5"
    connections.pop().close()
    path.unlink()
    monkeypatch.setitem(sys.modules, "mcp", None)
    again = settings.build(("base_generator",), **how, replay=True)
    toolbox.probe(again)
    assert not connections
    assert protocol.call(again["add_numbers"], {"a": 1, "b": 2.5}) == "3.5"
    assert list(again) == list(live) == ["base_generator", "add_numbers", "fail"]
    for name, tool in live.items():
        assert toolbox.describe(again[name], full=True) == toolbox.describe(tool, full=True)
    with pytest.raises(recording.Missing):  # known, but never called while recording
        protocol.call(again["fail"], {"text": "x"})
    with pytest.raises(ToolError, match="argument 'a' must be int"):
        protocol.call(again["add_numbers"], {"a": "1", "b": 2.5})


# A server of another language, whose JSON may hold half a surrogate pair, and worse.
ANSWER = r"""
def answer(asked):
    half = {"type": "text", "text": "a\ud83d b\0 \\ud83d \U0001f600"}
    tool = {"name": "t", "description": "d \udc00", "inputSchema": {"type": "object"}}
    version = asked.get("params", {}).get("protocolVersion")
    deep = {"id": asked["id"] + 1}
    for _ in range(300):
        deep = {"id": [deep]}
    content = {
        "half": {"content": [half]},
        "deep": {"structuredContent": deep, "content": [half]},
        "wrong": {"content": 5},
    }[asked.get("params", {}).get("arguments", {}).get("kind", "half")]
    about = {"protocolVersion": version, "capabilities": {"tools": {}}}
    result = {
        "initialize": about | {"serverInfo": {"name": "x", "version": "1"}},
        "tools/list": {"tools": [tool]},
        "tools/call": content,
    }.get(asked["method"])
    refused = {"code": -32601, "message": "no"}
    if asked.get("params", {}).get("arguments", {}).get("kind") == "half":
        result, refused = None, {"code": -32602, "message": "no half" + "!" * 3000}
    found = {"result": result} if result else {"error": refused}
    return {"jsonrpc": "2.0", "id": asked["id"]} | found
"""
LOOP = """
import json, sys

for line in sys.stdin:
    if "id" in json.loads(line):
        print(json.dumps(answer(json.loads(line))), flush=True)
"""


@pytest.mark.parametrize("way", ["pipe", "json", "events"])
def test_no_text_of_a_server_is_a_failure_of_the_infrastructure(server, tmp_path, way):
    names = {}
    exec(ANSWER, names)  # noqa: S102  a server of this very test

    def route(handler, seen):
        if not seen.json or "id" not in seen.json:
            handler.send(status=202 if seen.json else 405)
        elif way == "json":
            handler.send(names["answer"](seen.json))
        else:
            text = f"event: message\ndata: {json.dumps(names['answer'](seen.json))}\n\n"
            handler.send(text, type="text/event-stream")

    server.routes["/mcp"] = route
    path = tmp_path / "server.py"
    path.write_text(ANSWER + LOOP)
    where = f"{sys.executable} {path}" if way == "pipe" else server.url + "/mcp"
    connection = mcp_tools.Connection(where, seconds=10.0)
    try:
        (tool,) = connection.tools
        assert tool.description == "d \ufffd"
        for _ in range(2):
            assert protocol.call(tool, {}) == "a\ufffd b \\ud83d 😀"
        with pytest.raises(ToolError, match="JSON"):  # nested more deeply than the SDK reads
            tool.run(kind="deep")
        with pytest.raises(ToolError, match="cannot be read"):
            tool.run(kind="wrong")
        with pytest.raises(ToolError, match="^no half!.* .cut.$"):
            tool.run(kind="half")
    finally:
        connection.close()


@given(
    st.text(st.characters(exclude_categories=()) | st.sampled_from("\\ud8\ud83d\udc00"), max_size=9)
)
def test_json_keeps_its_length_and_everything_but_halves(text):
    written = json.dumps([text, "\ud83d" + text]).encode()
    mended = mcp_wire.whole(written)
    assert len(mended) == len(written)
    decode = lambda body: body.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert json.loads(mended) == [decode(text), decode("\ud83d" + text)]
