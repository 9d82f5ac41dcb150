"""All tools by name, and their descriptions in prompts."""

import concurrent.futures
from collections.abc import Iterable, Mapping

from tools import (
    base_generator,
    google_search,
    knowledge_search,
    mcp_tools,
    python_coder,
    recording,
    web_search,
    wikipedia_search,
)
from tools.protocol import Tool

MAKERS = {
    "base_generator": base_generator.make,
    "google_search": google_search.make,
    "knowledge_search": knowledge_search.make,
    "python_coder": python_coder.make,
    "web_search": web_search.make,
    "wikipedia_search": wikipedia_search.make,
}


def build(
    names: Iterable[str],
    settings: Mapping[str, Mapping[str, object]],
    *,
    mcp: Iterable[str],
    record: str,
    replay: bool,
) -> dict[str, Tool]:
    """Builds tools by name.

    Args:
      names: keys of MAKERS, each once.
      settings: name -> keyword arguments of its maker.
      mcp: MCP servers, whose tools are added after `names`; see mcp_tools.Connection.
      record: folder of recorded answers of remote tools, see `recording.wrap`; "" for none.
      replay: answer from `record` only.

    Returns:
      name -> tool, in the order of `names`.

    Raises:
      ValueError: a name is unknown or given twice, or the sandbox is below its level.
    """
    names = tuple(names)
    unknown = [name for name in names if name not in MAKERS]
    if unknown:
        raise ValueError(f"Unknown tools {', '.join(unknown)}; valid: {', '.join(MAKERS)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"A tool is named twice in {', '.join(names)}; name each once.")
    if replay and not record:
        raise ValueError("Replay needs the folder of the recorded answers; set tools.record.")
    tools = {name: MAKERS[name](**settings[name]) for name in names}
    connect = mcp_tools.connect
    if record:
        connect = recording.wrap_server(connect, record, replay=replay)
    for name, tool in mcp_tools.tools(mcp, connect).items():
        if name in tools:
            raise ValueError(f"An MCP server has a tool that is called {name}, too.")
        tools[name] = tool
    if record:
        tools = {
            name: recording.wrap(tool, record, replay=replay) if tool.remote else tool
            for name, tool in tools.items()
        }
    return tools


def probe(tools: Mapping[str, Tool]):
    """Asks each tool whether it can be used, all at once.

    Raises:
      ValueError: lists the tools that cannot, and why.
    """
    asked = [tool for tool in tools.values() if tool.probe]
    if not asked:
        return
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        answers = [(tool, pool.submit(tool.probe)) for tool in asked]
    problems = [
        f"{tool.name}: {error}" for tool, answer in answers if (error := answer.exception())
    ]
    if problems:
        raise ValueError("Tools of this config cannot be used. " + " ".join(problems))


def describe(tool: Tool, *, full: bool) -> str:
    """Returns the text about one tool that a prompt shows.

    Args:
      tool: the tool.
      full: False for one line, `name(parameter, ...)`; True for everything the model may know.
    """
    signature = f"{tool.name}({', '.join(parameter.name for parameter in tool.parameters)})"
    if not full:
        return signature
    lines = [f"{signature}: {tool.description}"]
    lines += [f"  {p.name} ({p.type}): {p.description}" for p in tool.parameters]
    lines += [f"  Limits: {tool.limits}", f"  Example: {tool.demo}"]
    return "\n".join(lines)
