"""Answers of tools on disk: for exact reruns, and for runs and tests without a network.

One JSON file an answer, named by the tool and its arguments. What broke is not kept.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile

from tools.protocol import Ask, Tool, ToolError


class Missing(Exception):
    """A replay was asked for what was never recorded."""


def wrap(tool: Tool, folder: str | os.PathLike, *, replay: bool) -> Tool:
    """The tool with its answers taken from a folder.

    Args:
      tool: any tool.
      folder: what was answered before; further answers are added.
      replay: never run the tool: a call that was not recorded raises `Missing`.
    """
    folder = pathlib.Path(folder) / tool.name
    if replay and not folder.is_dir():
        raise ValueError(f"There is nothing to replay: {folder} does not exist.")

    def run(**arguments):
        path = _path(folder, arguments)
        if not path.exists():
            if replay:
                raise Missing(f"{path} is missing: no answer of {tool.name} to {arguments!r:.200}.")
            _keep(path, arguments, _outcome(tool, arguments))
        return _told(json.loads(path.read_text(encoding="utf-8")))

    return dataclasses.replace(tool, run=run, probe=None if replay else tool.probe)


def _path(folder, arguments):
    text = json.dumps(arguments, sort_keys=True)  # 1, 1.0 and True differ
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return folder / name[:2] / f"{name}.json"


def _outcome(tool, arguments):
    """(kind, text); what is not an answer stays an exception."""
    try:
        answer = tool.run(**arguments)
    except ToolError as error:
        return "error", str(error)
    return ("ask", answer.prompt) if isinstance(answer, Ask) else ("text", answer)


def _keep(path, arguments, outcome):
    """Writes an answer, unless another thread or process was first: then that one counts."""
    kind, text = outcome
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"arguments": arguments, "kind": kind, "text": text}
    handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".unfinished")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
        if not path.exists():
            os.link(unfinished, path)
    except FileExistsError:
        return  # the answer of the other one is read
    finally:
        os.unlink(unfinished)


def _told(record):
    if record["kind"] == "error":
        raise ToolError(record["text"])
    return Ask(record["text"]) if record["kind"] == "ask" else record["text"]
