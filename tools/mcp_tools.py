"""Tools of MCP servers, through the official SDK (an extra: pip install -e ".[mcp]").

The SDK is asynchronous: one thread runs it, and calls from other threads wait for it.
"""

import asyncio
import contextlib
import keyword
import re
import shlex
import threading
from collections.abc import Callable, Iterable

from tools.protocol import Parameter, Tool, ToolError, clean

TYPES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}
EXAMPLES = {"str": '"text"', "int": "1", "float": "1.0", "bool": "True"}
START_SECONDS = 30.0  # to connect to a server
SAID = (-32602, -32700)  # codes of JSON-RPC: wrong arguments, an answer that is no JSON
# Of a server: tools; of a tool: parameters, and characters of a name and of a description, which
# stand in every prompt of the planner.
MOST_TOOLS, MOST_PARAMETERS, LONGEST_NAME, LONGEST_TEXT = 500, 50, 100, 10_000


class Connection:
    """An MCP server that stays connected until `close`.

    tools: its tools, each a `Tool`.
    """

    def __init__(self, server, *, seconds: float = 30.0, max_characters: int = 2000):
        """Connects.

        Args:
          server: an http(s) URL, or a command to start; or a server of the SDK, in this process.
          seconds: deadline of one call.
          max_characters: length of one answer; a longer one is cut and says so.

        Raises:
          ValueError: there is no SDK, no connection, or a tool that cannot be described.
        """
        try:
            import mcp

            from tools import mcp_wire
        except ImportError as error:
            raise ValueError('MCP servers need the SDK: pip install -e ".[mcp]".') from error
        self.name = str(server)
        self._seconds, self._most = seconds, max_characters
        if isinstance(server, str) and not server.startswith(("http://", "https://")):
            program, *arguments = shlex.split(server)
            server = mcp.StdioServerParameters(command=program, args=arguments)
        if isinstance(server, str | mcp.StdioServerParameters):
            server = mcp_wire.transport(server)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="mcp")
        self._thread.start()
        self._client, started = None, self._loop.create_future()
        self._stop = asyncio.Event()
        self._life = asyncio.run_coroutine_threadsafe(
            self._live(mcp.Client(server), started), self._loop
        )
        try:
            self.tools = self._wait(self._described(started), START_SECONDS)
        except Exception as error:
            self.close()
            raise ValueError(f"MCP server {self.name}: {_cause(error)}") from error

    def close(self):
        """Ends the connection; its tools cannot be called any more."""
        self._loop.call_soon_threadsafe(self._stop.set)
        with contextlib.suppress(Exception):  # it may be broken already
            self._life.result(START_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _live(self, client, started):
        """Enters and leaves the client in one task, as the SDK demands."""
        try:
            async with client:
                started.set_result(client)
                await self._stop.wait()
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _described(self, started):
        self._client = await started
        found, cursor = [], None
        while True:
            page = await self._client.list_tools(cursor=cursor)
            found += [self._tool(described) for described in page.tools[: MOST_TOOLS + 1]]
            if len(found) > MOST_TOOLS:
                raise ValueError(f"it has more than {MOST_TOOLS} tools.")
            cursor = page.next_cursor
            if not cursor:
                return found

    def _tool(self, described):
        name = re.sub(r"\W", "_", described.name)
        about_tool = clean(described.description or described.name)
        schema = described.input_schema
        parameters = []
        texts = [described.description or "", *map(str, schema.get("properties", {}).values())]
        if len(described.name) > LONGEST_NAME or max(map(len, texts)) > LONGEST_TEXT:
            raise ValueError(
                f"the tool {described.name:.100} has a name of more than {LONGEST_NAME} characters "
                f"or a description of more than {LONGEST_TEXT:,}."
            )
        if len(schema.get("required", ())) > MOST_PARAMETERS:
            raise ValueError(
                f"the tool {described.name} requires more than {MOST_PARAMETERS} parameters."
            )
        for field in schema.get("required", ()):
            about = schema.get("properties", {}).get(field, {})
            if about.get("type") not in TYPES or not field.isidentifier():
                raise ValueError(
                    f"the tool {described.name} requires {field!r} of type {about.get('type')}; "
                    f"only {', '.join(TYPES)} can be written by the model."
                )
            text = " ".join(clean(str(about.get("description", field))).split())
            parameters.append(Parameter(field, TYPES[about["type"]], text))
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"the tool {described.name!r} has no name that a call can use.")
        example = ", ".join(f"{p.name}={EXAMPLES[p.type]}" for p in parameters)

        def run(**arguments):
            return self._wait(self._call(described.name, arguments), self._seconds)

        return Tool(
            name=name,
            description=" ".join(about_tool.split()),
            parameters=tuple(parameters),
            limits="It sees only its arguments.",
            demo=f"{name}({example})",
            run=run,
            seconds=self._seconds,
            probe=lambda: self._wait(self._client.list_tools(), self._seconds) and None,
            remote=True,
        )

    async def _call(self, name, arguments):
        from mcp import MCPError

        try:
            answer = await self._client.call_tool(name, arguments)
        except MCPError as error:
            if error.code not in SAID:
                raise
            raise ToolError(self._cut(error.message)) from error
        except (RuntimeError, ValueError) as error:  # not as the protocol or its schema has it
            raise ToolError("The tool's answer cannot be read.") from error
        texts = [part.text for part in answer.content if getattr(part, "text", None)]
        text = self._cut("\n".join(texts).strip() or "The tool returned no text.")
        if answer.is_error:
            raise ToolError(text)
        return text

    def _cut(self, text):
        return text if len(text) <= self._most else text[: self._most] + " [cut]"

    def _wait(self, coroutine, seconds):
        waiting = asyncio.wait_for(coroutine, seconds)
        return asyncio.run_coroutine_threadsafe(waiting, self._loop).result()


def connect(server: str) -> list[Tool]:
    """Returns the tools of a server, connected as long as the process; see `Connection`."""
    return Connection(server).tools


def tools(
    servers: Iterable[str], connect: Callable[[str], list[Tool]] = connect
) -> dict[str, Tool]:
    """Returns name -> tool of all servers.

    Raises:
      ValueError: a server cannot be used, or two tools have one name.
    """
    tool_of = {}
    for server in servers:
        for tool in connect(server):
            if tool.name in tool_of:
                raise ValueError(f"MCP server {server}: a second tool is called {tool.name}.")
            tool_of[tool.name] = tool
    return tool_of


def _cause(error):
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
