"""Drives one solver in the thread of its caller: for one question, where nothing is batched."""

from agents import effects
from agents.trajectory import Status
from tools import protocol


class Failed(Exception):
    """A model or a tool gave no answer through no fault of the agent; the cause says why."""


def call_tool(tool, arguments):
    """Returns the `effects.ToolResult` of a call; a mistake of the model is a result too."""
    try:
        output = protocol.call(tool, arguments)
    except protocol.ToolError as error:
        return effects.ToolResult(str(error), error=True)
    if isinstance(output, protocol.Ask):
        return effects.ToolResult("", ask=output.prompt)
    return effects.ToolResult(output)


def to_the_end(solver, *, ask, tools, on_event=lambda event: None):
    """Runs a solver; returns its `Trajectory`.

    Args:
      solver: of `solve.solve`.
      ask: `ModelRequest` -> `Reply`.
      tools: dict name -> Tool.
      on_event: called with every effect and every reply to one.

    Raises:
      Failed: `ask` or a tool raised anything but a `ToolError`.
    """
    sent = None
    while True:
        try:
            effect = solver.send(sent)
        except StopIteration as stop:
            return stop.value
        on_event(effect)
        called = isinstance(effect, effects.ToolCall)
        try:
            sent = call_tool(tools[effect.tool], effect.arguments) if called else ask(effect)
        except Exception as error:
            who = f"the tool {effect.tool}" if called else f"the {effect.role}"
            failed = Failed(f"{who} gave no answer. {error or type(error).__name__}")
            on_event(effects.Interrupted(Status.INFRA_ERROR, str(failed)))
            solver.close()
            raise failed from error
        on_event(sent)
