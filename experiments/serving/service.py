"""Handles requests between HTTP and the engine's thread; runs in the event loop.

A request takes places in a bounded queue, one for each answer; a place is free again when the
engine has ended the answer, not when the client has gone.
"""

import asyncio
import bisect
import functools
import itertools
import secrets
import time

from experiments.serving import answers, errors, monitoring, text
from models.engine import types

SEEDED, UNSEEDED = 0, 1  # the first part of an address
WEIGHTS = "policy"


class Service:
    """Serves one model.

    Args:
      thread: the engine's EngineThread.
      parser: `protocol.Parser`.
      vocabulary: `text.Vocabulary`.
      grammars: `models.engine.grammar.Grammars`, or None.
      model: name that clients use.
      slots: answers that the engine draws at once.
      queue: answers that may wait.

    Attributes:
      monitor: `monitoring.Monitor`.
      failure: None, or the exception that ended the engine.
    """

    def __init__(self, thread, parser, vocabulary, grammars, *, model, slots, queue):
        self.model, self.parser, self.monitor = model, parser, monitoring.Monitor()
        self.failure = None
        self._thread, self._vocabulary, self._grammars = thread, vocabulary, grammars
        self._slots, self._places = slots, slots + queue
        self._taken, self._under_way = 0, set()
        self._closed = False
        self._process, self._count = secrets.randbits(32), itertools.count()

    @property
    def ready(self):
        """Whether new requests are taken."""
        return not self._closed

    def metrics(self):
        """Returns the page for Prometheus."""
        return self.monitor.text(
            statistics=self._thread.engine.statistics,
            slots=self._slots,
            answers_taken=self._taken,
            answers_in_engine=self._thread.engine.pending,
        )

    async def open(self, ask):
        """Starts the Work of an Ask.

        Raises:
          ApiError: the server is closing, the queue is full, or the schema cannot be followed.
        """
        constraint = await self._constraint(ask.schema)
        if self._closed:
            raise self._unavailable()
        wanted = len(ask.prompts) * ask.choices
        if self._taken + wanted > self._places:
            raise errors.ApiError(
                429,
                f"{self._taken} answers are under way and {self._places} is the most. Try again "
                "later, or start the server with more --slots or a longer --queue.",
                code="rate_limit_exceeded",
                headers={"retry-after": "1"},
            )
        self._taken += wanted
        work = Work(self, self._thread, list(self._requests(ask, constraint)), stream=ask.stream)
        self._under_way.add(work)
        return work

    def close(self):
        """Takes no new requests."""
        self._closed = True

    def abort(self):
        """Ends all requests with an error."""
        self.close()
        for work in tuple(self._under_way):
            work.fail(self._unavailable())

    def fail(self, failure):
        """Ends all requests because the engine has failed."""
        self.failure = failure
        self.abort()

    def forget(self, work):
        self._under_way.discard(work)

    def release(self):
        """Frees a place."""
        self._taken -= 1

    def answer(self, ask):
        """Returns the `answers.Answer` that shapes the answer to an Ask."""
        return ask.shape(self.model, self._vocabulary)

    def choices(self, ask):
        """Returns a Choice for each answer to an Ask."""
        return [
            Choice(self._vocabulary.decode, sampling, logprobs=ask.logprobs)
            for _, sampling in ask.prompts
            for _ in range(ask.choices)
        ]

    def _unavailable(self):
        if self.failure is not None:
            return errors.ApiError(500, f"The engine has failed: {self.failure}")
        return errors.ApiError(503, "The server is shutting down.", code="shutting_down")

    async def _constraint(self, schema):
        if schema is None:
            return None
        if self._grammars is None:
            raise errors.invalid(
                "This server cannot follow a response_format: it needs the extra `grammar` (pip "
                "install '.[grammar]') and must not be started with --nogrammar.",
                param="response_format",
            )
        try:
            return await asyncio.to_thread(self._grammars.json_schema, schema)
        except RecursionError as error:
            message = "The JSON schema is nested too deeply."
            raise errors.invalid(message, param="response_format") from error
        except ValueError as error:
            raise errors.invalid(str(error), param="response_format") from error

    def _requests(self, ask, constraint):
        """Yields the engine's requests, choice by choice of each prompt.

        With a seed, an answer follows from the prompt, the seed and the number of the choice;
        without, it is new each time.
        """
        for tokens, sampling in ask.prompts:
            if ask.seed is None:
                start = (UNSEEDED, self._process, next(self._count) % 2**32)
            else:
                high, low = divmod(ask.seed % 2**64, 2**32)
                start = (SEEDED, high, low)
            for choice in range(ask.choices):
                yield types.Request(
                    tokens,
                    sampling,
                    weights=WEIGHTS,
                    address=(*start, choice),
                    constraint=constraint and constraint.copy(),
                )


class Work:
    """The engine's work for one HTTP request: `async for index, update in work`, then `close`."""

    def __init__(self, service, thread, requests, *, stream):
        self._service, self._thread, self._stream = service, thread, stream
        self._constraints = [request.constraint for request in requests]
        self._updates = asyncio.Queue()
        self._began, self._first = time.monotonic(), False
        self._tickets = {  # of the unfinished
            index: thread.submit(request, functools.partial(self._receive, index), stream=stream)
            for index, request in enumerate(requests)
        }

    def _receive(self, index, update):
        if update.last:
            del self._tickets[index]
            self._service.release()
        self._updates.put_nowait((index, update))

    def fail(self, error):
        """Makes the iteration raise."""
        self._updates.put_nowait((0, error))

    def close(self):
        """Cancels unfinished answers."""
        self._service.forget(self)
        for ticket in self._tickets.values():
            self._thread.cancel(ticket)

    async def __aiter__(self):
        monitor = self._service.monitor
        left = len(self._constraints)
        while left:
            index, update = await self._updates.get()
            if isinstance(update, errors.ApiError):
                raise update
            if update.error:
                raise errors.invalid(update.error)
            if update.tokens and self._stream and not self._first:
                self._first = True
                monitor.first_token.observe(time.monotonic() - self._began)
            if update.last:
                left -= 1
                monitor.whole.observe(time.monotonic() - self._began)
                constraint = self._constraints[index]
                if constraint is not None and constraint.error:
                    raise errors.invalid(
                        f"The JSON schema could not be followed: {constraint.error}",
                        param="response_format",
                    )
            yield index, update


class Choice:
    """One answer as it grows.

    Attributes:
      tokens: drawn so far.
      shared: prompt tokens that were found in the cache; known at the end.
    """

    def __init__(self, decode, sampling, *, logprobs):
        self._text = text.TextStream(decode, sampling.stop_strings)
        self._stop_ids, self._logprobs = sampling.stop_ids, logprobs
        self._entries = []
        self.tokens, self.shared = 0, 0

    def take(self, update):
        """Returns (text, entries or None, finish reason or None): what is new and certain."""
        ended, tokens = update.completion, list(update.tokens)
        self.tokens += len(tokens)
        finish = None
        if ended is not None:
            self.shared, finish = ended.shared_tokens, ended.stop_reason
            if tokens and finish == "stop" and tokens[-1] in self._stop_ids:
                tokens.pop()
        if self._logprobs:
            for token, logprob, top in self._columns(tokens, update):
                start = self._text.length
                self._text.push([token])
                self._entries.append(answers.Entry(token, logprob, top, start))
            tokens = []
        last = ended is not None
        self._text.push(tokens, last=last)
        new = self._text.take(last=last)
        return new, self._certain_entries(last) if self._logprobs else None, finish

    def _columns(self, tokens, update):
        tops = update.top_logprobs or ((),) * len(update.tokens)
        return zip(tokens, update.logprobs, tops, strict=False)

    def _certain_entries(self, last):
        """Returns entries of the tokens that begin before the end of the text given out."""
        certain = len(self._entries)
        if self._text.stopped or not last:
            starts = [entry.start for entry in self._entries]
            certain = bisect.bisect_left(starts, self._text.given)
        entries, self._entries = self._entries[:certain], self._entries[certain:]
        return entries
