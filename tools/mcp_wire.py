"""Connections to MCP servers whose answers the SDK cannot read.

The SDK refuses an answer with half a surrogate pair as no JSON. Here each half becomes U+FFFD
before the SDK reads it. In JSON a half is an escape, `\\ud83d`, of as many bytes as `\\ufffd`, so
that nothing moves. What it still cannot read, such as JSON that is nested too deeply, becomes an
error of the call that waits for it, which would else wait until its deadline. Needs the extra
`mcp`.
"""

import contextlib
import re

import httpx2
import mcp
import mcp.types
import pydantic
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

MAX_LINE = 2**24  # bytes of an answer over HTTP
CONNECT_SECONDS, READ_SECONDS = 30.0, 300.0  # as the SDK has them
# An escaped backslash, a whole pair, or a half.
_ESCAPE = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
# Of JSON: a text, a bracket, or what lies between.
_PART = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]|[^\[\]{}"]++', re.DOTALL)
_ID = re.compile(r"\s*:\s*([0-9]{1,18})\b")


def whole(body: bytes) -> bytes:
    """Returns JSON with each half of a surrogate pair replaced."""
    return _ESCAPE.sub(lambda match: match[0] if len(match[0]) != 6 else rb"\ufffd", body)


def transport(server: str | mcp.StdioServerParameters):
    """Returns the SDK's connection to a URL or a command, as it takes one."""
    if isinstance(server, mcp.StdioServerParameters):
        return _by_pipe(server)
    return _by_http(server)


@contextlib.asynccontextmanager
async def _by_http(url):
    async def mend(response):
        response.stream = _Body(response.stream)

    async with (
        httpx2.AsyncClient(
            timeout=httpx2.Timeout(CONNECT_SECONDS, read=READ_SECONDS),
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [mend]},
        ) as client,
        streamable_http_client(url, http_client=client) as streams,
    ):
        yield streams


class _Body(httpx2.AsyncByteStream):
    """A body, line by line, so that no escape is torn."""

    def __init__(self, inner):
        self._inner = inner

    async def __aiter__(self):
        parts, size = [], 0
        async for block in self._inner:
            lines, end, rest = block.rpartition(b"\n")
            if end:
                yield whole(b"".join([*parts, lines, end]))
                parts, size = [], 0
            parts.append(rest)
            size += len(rest)
            if size > MAX_LINE:
                raise httpx2.ReadError(f"An answer has more than {MAX_LINE:,} bytes.")
        yield whole(b"".join(parts))

    async def aclose(self):
        await self._inner.aclose()


@contextlib.asynccontextmanager
async def _by_pipe(server):
    async with stdio_client(server) as (answers, requests):
        yield _Answers(answers), requests


class _Answers:
    """The SDK's stream of answers; a line that it could not read is tried again, or an error."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def __aenter__(self):
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error):
        return await self._inner.__aexit__(*error)

    def __aiter__(self):
        return self

    async def __anext__(self):
        return _read_again(await self._inner.__anext__())

    async def receive(self):
        return _read_again(await self._inner.receive())


def _read_again(item):
    if not isinstance(item, pydantic.ValidationError):
        return item
    line = item.errors()[0]["input"]
    if not isinstance(line, str):
        return item
    try:
        text = whole(line.encode())
        return SessionMessage(mcp.types.jsonrpc_message_adapter.validate_json(text, by_name=False))
    except pydantic.ValidationError:
        number = _number(line)
        if number is None:
            return item
        about = mcp.types.ErrorData(code=mcp.types.PARSE_ERROR, message="The answer is no JSON.")
        return SessionMessage(mcp.types.JSONRPCError(jsonrpc="2.0", id=number, error=about))


def _number(line):
    """Returns the id of the call that a line answers; None if it names none."""
    depth, name, found = 0, "", None
    for part in _PART.findall(line):
        if depth == 1 and name == '"id"' and (match := _ID.match(part)):
            found = int(match[1])
        depth += (part in ("{", "[")) - (part in ("}", "]"))
        name = part
    return found
