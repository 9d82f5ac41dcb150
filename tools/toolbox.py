"""All tools by name, and how they are described in prompts."""

import concurrent.futures
from collections.abc import Iterable, Mapping

from tools import (
    base_generator,
    google_search,
    knowledge_base,
    knowledge_search,
    mcp_tools,
    python_coder,
    recording,
    web_search,
    wikipedia_search,
)
from tools.protocol import Tool

NAMES = (
    "base_generator",
    "google_search",
    "knowledge_search",
    "python_coder",
    "web_search",
    "wikipedia_search",
)


def build(
    names: Iterable[str],
    *,
    articles: Iterable[knowledge_base.Article | tuple[str, str]] | None = None,
    top_k: int = 1,
    max_characters: int = 2000,
    search_seconds: float = 5.0,
    python_sandbox: str = "standard",
    python_seconds: float = 5.0,
    python_output_bytes: int = 4096,
    python_memory_bytes: int = 512 * 2**20,
    python_traceback: bool = True,
    generator_seconds: float = 60.0,
    knowledge: Mapping[str, object] | None = None,
    wikipedia: Mapping[str, object] | None = None,
    google: Mapping[str, object] | None = None,
    web: Mapping[str, object] | None = None,
    mcp: Iterable[str] = (),
    record: str = "",
    replay: bool = False,
) -> dict[str, Tool]:
    """Builds the tools that are asked for.

    Args:
      names: tool names out of NAMES, each once.
      articles: what knowledge_search searches; the embedded knowledge base if None.
      top_k, max_characters: of every search tool, see knowledge_search.make.
      search_seconds: see knowledge_search.make.
      python_sandbox: the level that has to hold; see python_coder.make, as for these:
      python_seconds, python_output_bytes, python_memory_bytes, python_traceback.
      generator_seconds: see base_generator.make.
      knowledge, wikipedia, google, web: further arguments of `make` of the tool.
      mcp: MCP servers, whose tools are added after `names`; see mcp_tools.Connection.
      record: folder of recorded answers of remote tools, see `recording.wrap`; "" for none.
      replay: answer from `record` only.

    Returns:
      name -> tool, in the order of `names`.

    Raises:
      ValueError: a name is unknown or given twice, or the sandbox is below the level.
    """
    makers = {
        "base_generator": lambda: base_generator.make(seconds=generator_seconds),
        "knowledge_search": lambda: knowledge_search.make(
            knowledge_base.articles() if articles is None else articles,
            top_k=top_k,
            max_characters=max_characters,
            seconds=search_seconds,
            **(knowledge or {}),
        ),
        "python_coder": lambda: python_coder.make(
            level=python_sandbox,
            seconds=python_seconds,
            max_output_bytes=python_output_bytes,
            memory_bytes=python_memory_bytes,
            traceback=python_traceback,
        ),
        "google_search": lambda: google_search.make(
            top_k=top_k, max_characters=max_characters, **(google or {})
        ),
        "web_search": lambda: web_search.make(max_characters=max_characters, **(web or {})),
        "wikipedia_search": lambda: wikipedia_search.make(
            top_k=top_k, max_characters=max_characters, **(wikipedia or {})
        ),
    }
    names = tuple(names)
    unknown = [name for name in names if name not in makers]
    if unknown:
        raise ValueError(f"Unknown tools {', '.join(unknown)}; valid: {', '.join(NAMES)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"A tool is named twice in {', '.join(names)}; name each once.")
    if replay and not record:
        raise ValueError("Replay needs the folder of the recorded answers; set tools.record.")
    tools = {name: makers[name]() for name in names}
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
    """The text about one tool that a prompt shows.

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
