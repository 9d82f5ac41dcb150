"""Drives one solver in the thread of its caller: for one question, where nothing is batched."""

import time

from agents import effects
from agents.backends.errors import BackendError
from tools import protocol


def call_tool(tool, arguments):
    """The `effects.ToolResult` of a call; what the model did wrong is a result too."""
    try:
        output = protocol.call(tool, arguments)
    except protocol.ToolError as error:
        return effects.ToolResult(str(error), error=True)
    if isinstance(output, protocol.Ask):
        return effects.ToolResult("", ask=output.prompt)
    return effects.ToolResult(output)


def to_the_end(solver, *, ask, tools, deadline, on_event=lambda event: None):
    """Runs a solver; returns its `Trajectory`.

    Args:
      solver: of `solve.solve`.
      ask: `ModelRequest` -> `Reply`; an `errors.BackendError` that it raises ends the trajectory.
      tools: dict name -> Tool.
      deadline: on the clock of `time.monotonic`; what fails after it is a time-out.
      on_event: called with every effect and every reply to one.
    """
    sent = None
    while True:
        step = solver.throw if isinstance(sent, effects.Interrupted) else solver.send
        try:
            effect = step(sent)
        except StopIteration as stop:
            return stop.value
        on_event(effect)
        try:
            if isinstance(effect, effects.ToolCall):
                sent = call_tool(tools[effect.tool], effect.arguments)
            else:
                sent = ask(effect)
        except BackendError as error:
            late = time.monotonic() >= deadline
            sent = effects.Interrupted("timeout" if late else "infra_error", str(error))
        on_event(sent)
