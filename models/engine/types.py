"""What goes into the engine and what comes out of it, and the interface of what answers."""

import dataclasses
import math
from typing import Any, Protocol

import numpy as np

LOWEST_TEMPERATURE = 1e-4  # logits divided by less may overflow float32


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the tokens of one request are drawn. Truncations apply in the order top_k, top_p, min_p.

    max_tokens: most tokens to generate, at least 1.
    temperature: divides the logits, at least 1e-4; or 0 for greedy decoding, which ignores the
      truncations.
    top_p: keeps the smallest set of the most probable tokens that holds this mass, in (0, 1].
    top_k: keeps the k most probable tokens; 0 is off.
    min_p: keeps tokens at least min_p times as probable as the most probable one, in [0, 1].
    stop_ids: token ids that end the response; the id itself is the response's last token.
    stop_strings: texts that end the response; they need the engine's `decode_text`.
    top_logprobs: alternatives to report for each token.

    Tokens exactly as probable as the last one kept are kept too.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    top_logprobs: int = 0

    def __post_init__(self):
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens} generates nothing; use 1 or more.")
        usable = self.temperature == 0 or self.temperature >= LOWEST_TEMPERATURE
        if not (usable and math.isfinite(self.temperature)):
            raise ValueError(
                f"temperature={self.temperature} is neither 0 (greedy decoding) nor a finite "
                f"number from {LOWEST_TEMPERATURE} up."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is outside (0, 1]; use 1 to keep all tokens.")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} is negative; use 0 to keep all tokens.")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} is outside [0, 1]; use 0 to keep all tokens.")
        if "" in self.stop_strings:
            raise ValueError("stop_strings holds an empty string; it would stop before any token.")


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt to continue.

    tokens: prompt token ids.
    sampling: how to draw.
    weights: name of the weight set that answers.
    address: where this request stands in the run, e.g. (step, question, rollout, turn, role). Token
      j is drawn with fold_in over (seed, *address, j) and nothing else: two requests with the same
      prompt and the same address get the same response, so every rollout needs its own.
    deadline: None, or the `time.monotonic()` at which the engine gives up on it.
    constraint: None, or what restricts the tokens, such as a grammar: `allowed()` gives uint32
      words, bit v % 32 of word v // 32 set if token v may come next; `accept(token)` tells it what
      was drawn. The engine must be built for constraints, and draws one token a call for these.
    """

    tokens: tuple[int, ...]
    sampling: Sampling
    weights: str = "policy"
    address: tuple[int, ...] = ()
    deadline: float | None = None
    constraint: Any = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """The response to one request.

    tokens: int32 [n], with the stop id as last token if one ended it.
    logprobs: float32 [n], nats, of each token under the distribution it was drawn from (after
      temperature and truncation; of greedy tokens, under temperature 1).
    raw_logprobs: float32 [n], nats, of each token under temperature 1 without truncation.
    top_logprobs: for each token, ((id, log-prob under temperature 1), ...), most probable first; as
      many as the request asked for.
    stop_reason: "stop" (a stop id or stop string), "length", "cancelled" or "deadline"; None of a
      response that goes on.
    weights_version: version of the weights when the request got its slot.
    token_versions: int32 [n], version that drew each token; all equal unless weights were replaced
      in flight and the engine switches.
    shared_tokens: prompt tokens that were found in the cache.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    raw_logprobs: np.ndarray
    top_logprobs: tuple
    stop_reason: str | None
    weights_version: int
    token_versions: np.ndarray
    shared_tokens: int


@dataclasses.dataclass
class Statistics:
    """Totals since the engine was made.

    prompt_tokens, shared_tokens: of admitted requests, and how many were found in the cache.
    prefill_calls, prefill_tokens: and the real tokens in them.
    decode_calls, slot_steps, drawn_tokens: calls, slots * steps of these, tokens they drew.
    wasted_steps: slot steps of an occupied slot that drew nothing because its request had ended.
    waited_steps: slot steps of an occupied slot that drew nothing for want of pages.
    requests, cancelled: completions, and those of them that were cancelled or ran out of time.
    """

    prompt_tokens: int = 0
    shared_tokens: int = 0
    prefill_calls: int = 0
    prefill_tokens: int = 0
    decode_calls: int = 0
    slot_steps: int = 0
    drawn_tokens: int = 0
    wasted_steps: int = 0
    waited_steps: int = 0
    requests: int = 0
    cancelled: int = 0


class Sampler(Protocol):
    """What answers requests: one `engine.Engine`, or several as `replicas.Replicas`.

    One thread calls it. The driver, the judge and the server know nothing else of it.
    """

    @property
    def slots(self):
        """Requests that run at once, for each weight set."""

    @property
    def pending(self):
        """Requests submitted whose Completion was not returned yet."""

    @property
    def compile_count(self):
        """Traces of its programs so far."""

    @property
    def layout(self):
        """Name of the cache's layout, in `cache`: with it goes the attention over its pages."""

    @property
    def cache_bytes(self):
        """Bytes of the KV cache on each device."""

    @property
    def statistics(self):
        """`Statistics` so far."""

    def prefix(self, tokens):
        """Returns digests of a prompt's full pages, for `cached_tokens` and `submit`."""

    def cached_tokens(self, weights, prefix):
        """Counts the tokens of a prefix in the cache of the newest version of a weight set."""

    def submit(self, request, prefix=None):
        """Queues a request; returns its id.

        Args:
          prefix: of its tokens, where the caller has it already.

        Raises:
          ValueError: it cannot be served; the message says why.
        """

    def partial(self, id, first=0):
        """Returns a Completion, without stop_reason, of what a request drew from `first` on."""

    def cancel(self, id):
        """Ends a request; the next `advance` returns what it has, with stop_reason "cancelled".

        Returns whether there was anything to end: False if its Completion is made already.
        """

    def set_weights(self, name, model):
        """Replaces a weight set from the next `advance` on and raises its version by one.

        Pages that the old weights filled are shared no more. Running requests do as the setting
        `in_flight` says; waiting ones get the new weights. Arrays are copied only where dtype or
        placement differ: donate none of them to a program while this may still use them.
        """

    def release(self):
        """Frees the device memory of cache and weights; `set_weights` brings each set back.

        Raises:
          ValueError: requests are pending.
        """

    def warmup(self):
        """Compiles every program, so that serving compiles nothing. Before the first request."""

    def advance(self):
        """Admits, prefills and decodes once; returns [(id, Completion)] of what ended."""

    def dispatch(self):
        """Does the first half of `advance`: gives the devices work."""

    def collect(self):
        """Does the second half: reads what the devices drew; returns [(id, Completion)]."""
