"""What an engine refuses: settings that cannot work, and requests that it cannot serve."""

import dataclasses

from models.engine import programs

IN_FLIGHT = ("finish", "switch")


def check_settings(*, prefill_tokens, page_size, seed, in_flight, weights, mesh, **counts):
    """Raises ValueError if an engine cannot have these settings.

    Args:
      counts: further settings that must be at least 1.
    """
    for name, value in (counts | dict(prefill_tokens=prefill_tokens, page_size=page_size)).items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    check_pages(prefill_tokens=prefill_tokens, page_size=page_size)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} is outside [0, 2**32).")
    if in_flight not in IN_FLIGHT:
        raise ValueError(f"in_flight={in_flight!r} is unknown; valid: {', '.join(IN_FLIGHT)}.")
    if not weights:
        raise ValueError("weights is empty; give at least one named model.")
    if mesh.size != mesh.shape["tensor"]:
        raise ValueError(
            f"The engine's mesh has {dict(mesh.shape)}; only `tensor` may exceed 1. Build one "
            "engine for each group of devices (models/engine/replicas.py)."
        )


def check_pages(*, prefill_tokens, page_size):
    """Raises ValueError unless a row of a prefill call is whole pages."""
    if prefill_tokens % page_size:
        raise ValueError(
            f"prefill_tokens={prefill_tokens} must be a multiple of page_size={page_size}."
        )


def check_cache(shapes, *, max_length, cache_tokens):
    """Raises ValueError if the cache of these `Shapes` is too small for the longest request."""
    wanted = shapes.pages_for(max_length)
    if shapes.pages < wanted:
        raise ValueError(
            f"cache_tokens={cache_tokens} holds no request of max_length={max_length}; use at "
            f"least {wanted * shapes.page_size}, or 0."
        )


@dataclasses.dataclass(frozen=True)
class Limits:
    """The requests that an engine can serve.

    weights: names of its weight sets.    max_length: tokens of prompt and response.
    vocab_size: of the model.    top_logprobs: most alternatives per token.
    stop_strings, constraints: whether requests may have them.
    """

    weights: tuple[str, ...]
    max_length: int
    vocab_size: int
    top_logprobs: int
    stop_strings: bool
    constraints: bool

    def check_name(self, name):
        """Raises ValueError unless there are weights of this name."""
        if name not in self.weights:
            raise ValueError(
                f"No weights named {name!r}; this engine serves {sorted(self.weights)}."
            )

    def check(self, request):
        """Raises ValueError if the engine cannot serve a request."""
        self.check_name(request.weights)
        self._check_lengths(request)
        self._check_ids(request)
        sampling = request.sampling
        if sampling.stop_strings and not self.stop_strings:
            raise ValueError("stop_strings need Engine(decode_text=...), such as tokenizer.decode.")
        if sampling.top_logprobs > self.top_logprobs:
            raise ValueError(
                f"top_logprobs={sampling.top_logprobs}, but the engine was built for at most "
                f"{self.top_logprobs}."
            )
        if request.constraint is not None and not self.constraints:
            raise ValueError("A constraint needs Engine(constraints=True).")
        address = request.address
        if len(address) > programs.ADDRESS_PARTS or not all(0 <= n < 2**32 for n in address):
            raise ValueError(
                f"address={address} must hold at most {programs.ADDRESS_PARTS} integers in "
                "[0, 2**32)."
            )

    def _check_lengths(self, request):
        tokens, max_tokens = len(request.tokens), request.sampling.max_tokens
        if not tokens:
            raise ValueError("Request.tokens is empty; a prompt needs at least one token.")
        if tokens + max_tokens > self.max_length:
            room = self.max_length - tokens
            todo = f"lower max_tokens to at most {room}" if room > 0 else "shorten the prompt"
            raise ValueError(
                f"{tokens} prompt tokens and max_tokens={max_tokens} exceed max_length="
                f"{self.max_length}; raise max_length or {todo}."
            )

    def _check_ids(self, request):
        stop_ids = request.sampling.stop_ids
        ids = (*request.tokens, *stop_ids)
        low, high = min(ids), max(ids)
        if low < 0 or high >= self.vocab_size:
            raise ValueError(
                f"Token id {low if low < 0 else high} is outside the vocabulary of "
                f"{self.vocab_size}; check that the tokenizer belongs to the model."
            )
        if len(stop_ids) > programs.STOP_IDS:
            raise ValueError(
                f"{len(stop_ids)} stop_ids; the engine takes {programs.STOP_IDS}. "
                "Use stop_strings for the rest."
            )
