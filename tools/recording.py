"""Keeps answers of tools on disk, for exact reruns and for runs and tests without a network.

One JSON file an answer, named by the tool and its arguments. Failures are not kept. MCP servers
have one file each, with the descriptions of their tools.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable

from flow_grpo_jax.bounds import json_text
from tools.protocol import Ask, Parameter, Tool, ToolError

SERVERS = "mcp-servers"  # folder of the descriptions; no tool can have this name
DESCRIPTION = ("name", "description", "limits", "demo", "seconds")


class Missing(Exception):
    """A replay met a call that was never recorded."""


def wrap(tool: Tool, folder: str | os.PathLike, *, replay: bool) -> Tool:
    """Returns the tool with its answers taken from a folder.

    Args:
      tool: any tool.
      folder: what was answered before; further answers are added.
      replay: never run the tool: a call that was not recorded raises `Missing`.
    """
    folder = pathlib.Path(folder) / tool.name
    if replay and not folder.is_dir():
        raise ValueError(f"There is nothing to replay: {folder} does not exist.")
    folder.mkdir(parents=True, exist_ok=True)  # also of a tool that will never be called

    def run(**arguments):
        path = _path(folder, arguments)
        if not path.exists():
            if replay:
                raise Missing(f"{path} is missing: no answer of {tool.name} to {arguments!r:.200}.")
            _keep(path, arguments, _outcome(tool, arguments))
        return _told(json_text.read_object(path))

    return dataclasses.replace(tool, run=run, probe=None if replay else tool.probe)


def wrap_server(
    connect: Callable[[str], list[Tool]], folder: str | os.PathLike, *, replay: bool
) -> Callable[[str], list[Tool]]:
    """Wraps `connect`, from a server to its tools, keeping their descriptions in a folder.

    replay: connect to nothing; the tools are those of the record, and only for `wrap`.
    """

    def connected(server):
        name = hashlib.sha256(server.encode()).hexdigest()[:32]
        path = pathlib.Path(folder) / SERVERS / f"{name}.json"
        if not replay:
            tools = connect(server)
            path.parent.mkdir(parents=True, exist_ok=True)
            record = {"server": server, "tools": [_description(tool) for tool in tools]}
            os.replace(_written(path.parent, record), path)
            return tools
        if not path.exists():
            raise ValueError(f"There is nothing to replay of {server}: {path} does not exist.")
        return [_described(about) for about in json_text.read_object(path)["tools"]]

    return connected


def _description(tool):
    parameters = [dataclasses.asdict(parameter) for parameter in tool.parameters]
    return {name: getattr(tool, name) for name in DESCRIPTION} | {"parameters": parameters}


def _described(about):
    def run(**arguments):
        raise AssertionError("a tool of the record is not run")

    parameters = tuple(Parameter(**parameter) for parameter in about["parameters"])
    return Tool(**about | {"parameters": parameters}, run=run, remote=True)


def _path(folder, arguments):
    text = json.dumps(arguments, sort_keys=True)  # 1, 1.0 and True differ
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return folder / name[:2] / f"{name}.json"


def _outcome(tool, arguments):
    """Returns (kind, text); other exceptions pass."""
    try:
        answer = tool.run(**arguments)
    except ToolError as error:
        return "error", str(error)
    return ("ask", answer.prompt) if isinstance(answer, Ask) else ("text", answer)


def _keep(path, arguments, outcome):
    """Writes an answer, unless another thread or process was first: then its answer counts."""
    kind, text = outcome
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"arguments": arguments, "kind": kind, "text": text}
    unfinished = _written(path.parent, record)
    try:
        if not path.exists():
            os.link(unfinished, path)
    except FileExistsError:
        return  # the answer of the other one is read
    finally:
        os.unlink(unfinished)


def _written(folder, record):
    """Returns the path of a new file with a record."""
    handle, path = tempfile.mkstemp(dir=folder, suffix=".unfinished")
    with open(handle, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
    return path


def _told(record):
    if record["kind"] == "error":
        raise ToolError(record["text"])
    return Ask(record["text"]) if record["kind"] == "ask" else record["text"]
