"""All tools by name, and how they are described in prompts."""

from collections.abc import Iterable

from tools import base_generator, knowledge_base, knowledge_search, python_coder
from tools.protocol import Tool

NAMES = ("base_generator", "knowledge_search", "python_coder")


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
    generator_seconds: float = 60.0,
) -> dict[str, Tool]:
    """Builds the tools that are asked for.

    Args:
      names: tool names out of NAMES, each once.
      articles: what knowledge_search searches; the embedded knowledge base if None.
      top_k, max_characters, search_seconds: see knowledge_search.make.
      python_sandbox: the level that has to hold; see python_coder.make, as for these:
      python_seconds, python_output_bytes, python_memory_bytes.
      generator_seconds: see base_generator.make.

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
        ),
        "python_coder": lambda: python_coder.make(
            level=python_sandbox,
            seconds=python_seconds,
            max_output_bytes=python_output_bytes,
            memory_bytes=python_memory_bytes,
        ),
    }
    names = tuple(names)
    unknown = [name for name in names if name not in makers]
    if unknown:
        raise ValueError(f"Unknown tools {', '.join(unknown)}; valid: {', '.join(NAMES)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"A tool is named twice in {', '.join(names)}; name each once.")
    return {name: makers[name]() for name in names}


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
