"""Tools of MCP servers: one in this process, and one that is started as a command."""

import sys
import textwrap

import pytest

from tools import mcp_tools, protocol, toolbox
from tools.protocol import Parameter, ToolError

server_module = pytest.importorskip("mcp.server.mcpserver")

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


def test_a_command_may_be_the_server(tmp_path):
    path = tmp_path / "server.py"
    path.write_text(textwrap.dedent(SERVER) + "\nserver.run()\n")
    connection = mcp_tools.Connection(f"{sys.executable} {path}")
    assert [tool.name for tool in connection.tools] == ["add_numbers", "fail"]
    assert connection.tools[0].run(a=1, b=1.0) == "2.0"
    connection.close()


def test_a_server_that_does_not_start_is_named():
    with pytest.raises(ValueError, match="MCP server no-such-program: "):
        toolbox.build(("base_generator",), mcp=("no-such-program",))
