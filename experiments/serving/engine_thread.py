"""The thread that owns the engine: takes requests from the event loop, gives it their tokens.

The engine is driven by one thread, HTTP by an event loop. `submit` and `cancel` leave a command and
wake the thread; the thread hands all news of a step to the event loop at once, so every callback
runs there. With nothing to do the thread sleeps.
"""

import concurrent.futures
import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence

from models.engine import types


@dataclasses.dataclass(frozen=True)
class Update:
    """News of a request.

    tokens, logprobs, top_logprobs: drawn since the last update: ids, nats under temperature 1, and
      as many alternatives as it asked for.
    completion: set with the last update, unless there is an error.
    error: "" or why the engine refuses the request; there is no further update.
    """

    tokens: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    top_logprobs: Sequence = ()
    completion: types.Completion | None = None
    error: str = ""

    @property
    def last(self):
        return self.completion is not None or bool(self.error)


@dataclasses.dataclass(eq=False)
class Ticket:
    """A submitted request. Its fields belong to the thread."""

    request: types.Request
    receive: Callable[[Update], None]
    stream: bool
    id: int | None = None
    sent: int = 0


class EngineThread:
    """Drives an engine until it is stopped or the engine fails.

    Attributes:
      engine: others may only read its `pending` and `statistics`.
    """

    def __init__(self, engine):
        self.engine = engine
        self._condition = threading.Condition()
        self._commands, self._stopping = [], False
        self._tickets, self._news = {}, []

    def start(self, loop, on_failure):
        """Starts the thread.

        Args:
          loop: asyncio event loop in which all callbacks run.
          on_failure: is called with the exception if the engine fails.
        """
        self._post = loop.call_soon_threadsafe
        executor = concurrent.futures.ThreadPoolExecutor(1, "engine")
        self._done = executor.submit(self._run)
        executor.shutdown(wait=False)

        def ended(done):
            if done.exception() is not None and not self._stopping:
                self._post(on_failure, done.exception())

        self._done.add_done_callback(ended)

    def stop(self):
        """Ends the thread after its current step; pending requests get no more updates."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        concurrent.futures.wait([self._done])

    def submit(self, request, receive, *, stream):
        """Queues a request and returns its Ticket.

        Args:
          receive: is called with each Update.
          stream: whether there is one after each step that drew something, not only at the end.
        """
        ticket = Ticket(request, receive, stream)
        self._command(functools.partial(self._submit, ticket))
        return ticket

    def cancel(self, ticket):
        """Ends a request early; harmless if it has ended."""
        self._command(functools.partial(self._cancel, ticket))

    def _command(self, command):
        with self._condition:
            self._commands.append(command)
            self._condition.notify()

    # ---- in the thread -------------------------------------------------------------------------

    def _run(self):
        while True:
            with self._condition:
                self._condition.wait_for(
                    lambda: self._commands or self.engine.pending or self._stopping
                )
                commands, self._commands = self._commands, []
                if self._stopping:
                    return
            for command in commands:
                command()
            if self.engine.pending:
                self._step()
            news, self._news = self._news, []
            if news:
                self._post(_deliver, news)

    def _submit(self, ticket):
        try:
            ticket.id = self.engine.submit(ticket.request)
        except ValueError as error:
            self._news.append((ticket, Update(error=str(error))))
        else:
            self._tickets[ticket.id] = ticket

    def _cancel(self, ticket):
        if ticket.id in self._tickets:
            self.engine.cancel(ticket.id)

    def _step(self):
        for id, completion in self.engine.advance():
            self._tell(self._tickets.pop(id), completion, ended=True)
        for id, ticket in self._tickets.items():
            if ticket.stream:
                self._tell(ticket, self.engine.partial(id, ticket.sent), ended=False)

    def _tell(self, ticket, completion, *, ended):
        """Adds the unsent part of a request's tokens to the news."""
        first = ticket.sent if ended else 0
        tokens = completion.tokens[first:].tolist()
        if not (tokens or ended):
            return
        ticket.sent += len(tokens)
        update = Update(
            tokens,
            completion.raw_logprobs[first:].tolist(),
            completion.top_logprobs[first:],
            completion=completion if ended else None,
        )
        self._news.append((ticket, update))


def _deliver(news):
    for ticket, update in news:
        ticket.receive(update)
