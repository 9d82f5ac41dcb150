"""Puts a remote model in the place of a module of the agent."""

import dataclasses

from absl import logging

from agents import effects
from agents.backends import structured
from agents.backends.errors import BadOutput

_TEXT = {"type": "string"}
_SCHEMAS = {
    "executor": structured.record(command=_TEXT),
    "verifier": structured.record(
        explanation=_TEXT, verdict={"type": "string", "enum": ["STOP", "CONTINUE"]}
    ),
    "generator": structured.record(explanation=_TEXT, answer=_TEXT),
}
_WRITTEN = {
    "executor": lambda said: said["command"],
    "verifier": lambda said: f"{_line(said['explanation'])}\nVerdict: {said['verdict']}",
    "generator": lambda said: f"{_line(said['explanation'])}\nAnswer: {said['answer']}",
}


@dataclasses.dataclass(frozen=True)
class Module:
    """Answers a role's requests.

    model: `server.ChatModel`.
    role: of `effects.ROLES`; the planner only where nothing is trained.
    structured: ask for the role's form as a JSON object, where it has one. A reply that misses
      the form even after its repair is passed on for the role's own parser to judge.
    """

    model: object
    role: str
    structured: bool

    @property
    def state(self):
        """Of the server: "up", "down", or "unknown" when the next call will tell."""
        return self.model.endpoint.state

    def submit(self, messages, *, max_tokens, deadline):
        """Returns the Future of an `effects.Reply`; it raises `errors.BackendError`."""
        return self.model.endpoint.submit(self._reply, messages, max_tokens, deadline)

    def _reply(self, messages, max_tokens, deadline):
        schema = _SCHEMAS.get(self.role) if self.structured else None
        ask = dict(max_tokens=max_tokens, deadline=deadline, schema=schema)
        try:
            answer = self.model.ask(messages, **ask)
        except BadOutput as error:
            if schema is None or error.text is None:
                raise
            logging.warning("%s of %s missed its form: %s", self.role, self.model.name, error)
            return effects.Reply(error.text)
        text = answer.text if schema is None else _WRITTEN[self.role](answer.value)
        return effects.Reply(text, finished=answer.finished)


def _line(text):
    """Puts a text on one line: no explanation may look like the line that follows it."""
    return " ".join(text.split())
