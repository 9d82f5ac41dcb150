"""Counts words."""

from tools.protocol import Parameter, Tool, ToolError


def make(*, seconds: float) -> Tool:
    return Tool(
        name="word_counter",
        description="Counts the words of a text.",
        parameters=(Parameter("text", "str", "the text to count"),),
        limits="Blanks separate words.",
        demo='word_counter(text="one two three")',
        run=run,
        seconds=seconds,
    )


def run(*, text: str) -> str:
    if not text.strip():
        raise ToolError("The text is empty; write the text to count.")
    return f"{len(text.split())} words"
