"""The frozen model itself as a tool: a question in words, an answer in words."""

from tools.protocol import Ask, Parameter, Tool, ToolError


def make(*, seconds: float) -> Tool:
    """Builds the tool.

    Args:
      seconds: deadline of one call, the model's answer included.
    """
    return Tool(
        name="base_generator",
        description="Asks a language model, which answers from what it remembers.",
        parameters=(Parameter("query", "str", "a complete question or instruction"),),
        limits="It looks nothing up and runs nothing; it may be wrong. It sees only the query.",
        demo='base_generator(query="Name three prime numbers.")',
        run=run,
        seconds=seconds,
    )


def run(*, query: str) -> Ask:
    """Returns the query as a prompt for the frozen model."""
    if not query.strip():
        raise ToolError("The query is empty; write a complete question.")
    return Ask(query)
