"""Chat models behind OpenAI's API: vLLM, SGLang, Ollama, this project's own server, or a vendor.

An `Endpoint` is a server with its limits, shared by the models it serves; a `ChatModel` is one of
them with the parameters of a module. Calls run in the endpoint's threads, one for each call that
may be in flight, and end by their deadline, which includes waits in the queue, for the rate and
between attempts.

Failures raise one of three errors (`errors`); none is turned into an answer:

  Retryable   tried again with growing, jittered waits, never past the deadline, and not before the
              time that the server named in Retry-After
  Fatal       raised at once
  BadOutput   asked again once: for a reply of a required form with the fault named, else as it was
"""

import collections
import concurrent.futures
import dataclasses
import json
import math
import random
import threading
import time

from absl import logging

from agents.backends import structured
from agents.backends.errors import BadOutput, Down, Fatal, Retryable
from agents.backends.transport import Transport
from tools import keys
from tools.http_client import loads
from tools.limits import Breaker, Rate, Resting, TooLate, backoff, retry_after
from tools.protocol import clean

RETRYABLE_STATUS = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}
QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached"}  # a permanent 429
MESSAGE_CHARACTERS = 300
DESCRIBE_BYTES = 4_000_000  # vendors list hundreds of models
COUNTS = ("calls", "requests", "retries", "cached", "repairs", "bad_output", "failures")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on the use of a server; times in seconds.

    concurrency: calls in flight.
    requests_per_second: attempts, evenly spread, with at most `burst` at once; 0: no limit.
    connect_seconds, read_seconds: longest wait for a connection, and for the next bytes.
    retries: further attempts of a call after a retryable failure.
    backoff_seconds, backoff_limit: the first wait between attempts, doubled each time, and the
      longest; each is shortened at random by up to a half.
    failures_to_open: attempts that fail in a row before the server counts as down; a 429 is none.
    open_seconds: how long it is then left alone.
    max_bytes: of one reply.
    """

    concurrency: int
    requests_per_second: float
    burst: int
    connect_seconds: float
    read_seconds: float
    retries: int
    backoff_seconds: float
    backoff_limit: float
    failures_to_open: int
    open_seconds: float
    max_bytes: int

    def __post_init__(self):
        for name, least in (("concurrency", 1), ("burst", 1), ("failures_to_open", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"{field.name}={getattr(self, field.name)} is negative.")


@dataclasses.dataclass(frozen=True)
class Answer:
    """A model's answer. finished: False when a limit cut it off.

    value: the parsed text, for a reply of a required form.
    """

    text: str
    finished: bool = True
    value: object = None


class Endpoint:
    """One server.

    Args:
      url: up to and including `/v1`.
      api_key_variable: name of the environment variable that holds the key; "" sends none.
      limits: `Limits`.
      draw: returns the share of jitter, in [0, 1).

    Raises:
      ValueError: the url is no address, or the variable is not set.
    """

    def __init__(self, url, *, api_key_variable, limits, draw=random.random):
        self.url, self.limits = url.rstrip("/"), limits
        self._key = keys.api_key(api_key_variable)
        self._draw = draw
        settings = self.limits
        self._transport = Transport(
            self.url,
            connect_seconds=settings.connect_seconds,
            read_seconds=settings.read_seconds,
            max_bytes=settings.max_bytes,
        )
        self._rate = Rate(settings.requests_per_second, burst=settings.burst)
        self._breaker = Breaker(failures=settings.failures_to_open, seconds=settings.open_seconds)
        self._closing = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(settings.concurrency, "model")
        self._lock = threading.Lock()
        self._counts = collections.Counter()

    @property
    def state(self):
        """One of "up", "down" (calls fail at once), "unknown" (the next call will tell)."""
        return self._breaker.state

    def submit(self, work, *arguments, **named):
        return self._pool.submit(work, *arguments, **named)

    def count(self, name):
        with self._lock:
            self._counts[name] += 1

    def counts(self):
        """Returns what happened so far: name of COUNTS -> int."""
        with self._lock:
            return {name: self._counts[name] for name in COUNTS}

    def close(self):
        """Ends calls in progress; they raise `Retryable`."""
        self._closing.set()
        self._transport.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def post(self, path, body, *, deadline):
        """Returns the server's JSON object for `body`, after as many attempts as allowed."""
        # A model may have written half a surrogate pair, which servers refuse.
        data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        for attempt in range(self.limits.retries + 1):
            try:
                return self._attempt(path, data, deadline)
            except Down:
                raise
            except Retryable as error:
                if attempt == self.limits.retries or self._closing.is_set():
                    raise
                wait = backoff(
                    attempt,
                    first=self.limits.backoff_seconds,
                    longest=self.limits.backoff_limit,
                    draw=self._draw,
                )
                wait = max(wait, error.retry_after or 0.0)
                if time.monotonic() + wait >= deadline:
                    raise Retryable(
                        f"{error} No time is left for another attempt in {wait:.1f} s.",
                        error.retry_after,
                    ) from error
                logging.info("%s; attempt %d in %.1f s", error, attempt + 2, wait)
                self.count("retries")
                self._sleep(wait)
        raise AssertionError("a loop that returns or raises")

    def _attempt(self, path, data, deadline):
        self._wait_for_turn(deadline)
        failed = None
        try:
            self.count("requests")
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            status, headers, reply = self._transport.post(path, data, headers, deadline=deadline)
            failed = status in RETRYABLE_STATUS and status != 429
            if status != 200:
                raise self._refusal(status, headers, reply)
            return _json_object(reply, self._key)
        except Retryable:
            failed = True if failed is None else failed
            raise
        finally:
            self._breaker.leave(failed=None if self._closing.is_set() else failed)

    def _wait_for_turn(self, deadline):
        """Waits until the breaker lets the call through."""
        try:
            self._sleep(self._rate.reserve(deadline))
            self._breaker.enter(deadline)
        except Resting as error:
            raise Down(str(error), error.seconds) from error
        except TooLate as error:
            raise Retryable(str(error), error.seconds) from error

    def _refusal(self, status, headers, reply):
        """Returns the exception for a status other than 200."""
        code, message = None, reply.decode("utf-8", "replace").strip()
        try:
            error = _json_object(reply, self._key).get("error")
        except BadOutput:
            error = None
        if isinstance(error, dict):
            code, message = error.get("code"), str(error.get("message"))
        message = keys.cut(message, self._key, most=MESSAGE_CHARACTERS)
        message = f"{self.url} answered {status}: {message}"
        if status in RETRYABLE_STATUS and str(code) not in QUOTA_CODES:
            wait = retry_after(headers.get("retry-after"))
            if wait is not None:
                self._rate.pause(wait)
            return Retryable(message, wait)
        return Fatal(message)

    def _sleep(self, seconds):
        if seconds > 0 and self._closing.wait(seconds):
            raise Retryable(f"{self.url}: the run is ending.")


def describe(url, model, *, api_key_variable, seconds):
    """Returns what a server says of a model in its list, {} if the model is not there.

    Raises:
      Retryable, Fatal, BadOutput: there is no such list.
      ValueError: the url is no address, or the variable is not set.
    """
    key = keys.api_key(api_key_variable)
    transport = Transport(
        url.rstrip("/"), connect_seconds=seconds, read_seconds=seconds, max_bytes=DESCRIBE_BYTES
    )
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        deadline = time.monotonic() + seconds
        status, _, reply = transport.request("GET", "/models", None, headers, deadline=deadline)
    finally:
        transport.close()
    if status != 200:
        raise Fatal(f"{url} has no list of models: status {status}.")
    listed = _json_object(reply, key).get("data")
    listed = listed if isinstance(listed, list) else []
    return next((one for one in listed if isinstance(one, dict) and one.get("id") == model), {})


class ChatModel:
    """A model of an endpoint, asked in one way.

    Args:
      endpoint: `Endpoint`.
      model: its name there.
      temperature: 0 is greedy; only such replies are cached.
      seconds: longest a call may take once its turn comes, all attempts included.
      cache: `cache.Cache` or None.
      extra: further fields of the request's body, such as {"seed": 0}.
      token_field: name of the field with the token limit.
    """

    def __init__(
        self,
        endpoint,
        model,
        *,
        temperature,
        seconds,
        cache,
        extra,
        token_field,
    ):
        if not model:
            raise ValueError(f"The server {endpoint.url} needs the name of a model.")
        self.endpoint, self.model, self._temperature = endpoint, model, temperature
        self.seconds, self._cache = seconds, cache if temperature == 0 else None
        self._extra, self._token_field = dict(extra), token_field

    @property
    def name(self):
        return f"{self.model} at {self.endpoint.url}"

    def submit(self, messages, **how):
        """Returns the Future of `ask`; the queue counts for its deadline, not for `seconds`."""
        return self.endpoint.submit(self.ask, messages, **how)

    def ask(self, messages, *, max_tokens, deadline=math.inf, schema=None, sample=0):
        """Asks for a reply to chat messages; returns `Answer`.

        Args:
          max_tokens: of the reply.
          deadline: on the clock of `time.monotonic`; it may be earlier than `seconds` from now.
          schema: required form of the reply, see `structured`.
          sample: tells draws of the same request apart, for the cache.

        Raises:
          Retryable, Fatal, BadOutput.
        """
        deadline = min(deadline, time.monotonic() + self.seconds)
        body = {"model": self.model, "messages": list(messages), "temperature": self._temperature}
        body |= {self._token_field: max_tokens} | self._extra
        if schema is not None:
            body["messages"] = list(structured.instructed(messages, schema))
            body["response_format"] = structured.response_format(schema)
        key = {"url": self.endpoint.url, "body": body, "sample": sample}
        count = self.endpoint.count
        count("calls")
        if self._cache and (known := self._cache.get(key)) is not None:
            count("cached")
            return Answer(**clean(known))
        try:
            answer = self._ask_twice(body, schema, deadline)
        except BadOutput:
            count("bad_output")
            raise
        except (Retryable, Fatal):
            count("failures")
            raise
        if self._cache:
            self._cache.put(key, dataclasses.asdict(answer))
        return answer

    def _ask_twice(self, body, schema, deadline):
        try:
            return self._ask_once(body, schema, deadline)
        except BadOutput as error:
            self.endpoint.count("repairs")
            if schema is not None and error.text is not None:
                body = body | {"messages": list(structured.repair(body["messages"], error))}
            return self._ask_once(body, schema, deadline)

    def _ask_once(self, body, schema, deadline):
        answer = _answer(self.endpoint.post("/chat/completions", body, deadline=deadline))
        if schema is None:
            return answer
        return dataclasses.replace(answer, value=structured.read(answer.text, schema))


def _answer(reply):
    """Returns the `Answer` in a chat completion."""
    try:
        choice = reply["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise BadOutput(f"The reply is no chat completion: {str(reply)[:100]}.") from error
    if not isinstance(text, str):
        raise BadOutput(f"The reply has no text; it ended by {reason!r}.")
    return Answer(text, finished=reason != "length")


def _json_object(reply, key):
    """Returns the object of a reply, without the key."""
    try:
        value = keys.masked(loads(reply), key)
    except (ValueError, RecursionError) as error:
        raise BadOutput(f"The reply is no JSON: {_beginning(reply, key)}.") from error
    if not isinstance(value, dict):
        raise BadOutput(f"The reply is no JSON object: {_beginning(reply, key)}.")
    return value


def _beginning(reply, key):
    return repr(keys.cut(reply.decode("utf-8", "replace"), key, most=60))
