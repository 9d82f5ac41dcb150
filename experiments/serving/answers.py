"""Shapes answers as OpenAI's API has them."""

import dataclasses
import json
import time
import uuid

NO_LOGPROB = -9999.0  # JSON has no infinity


@dataclasses.dataclass(frozen=True)
class Entry:
    """Log-probs of a token. start: characters of the answer before it; top: ((id, nats), ...)."""

    token: int
    logprob: float
    top: tuple
    start: int


class Answer:
    """The common part of the answers to one Ask. `vocabulary` gives the bytes of tokens."""

    def __init__(self, model, vocabulary):
        self._vocabulary = vocabulary
        self._head = {
            "id": f"{self.PREFIX}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, choices, usage):
        """Returns the answer in one piece; choices: [(text, entries or None, finish reason)]."""
        listed = [self.choice(index, *choice) for index, choice in enumerate(choices)]
        return self._head | {"object": self.OBJECT, "choices": listed, "usage": usage}

    def chunk(self, choices, **more):
        """Returns a piece of a streamed answer."""
        return self._head | {"object": self.CHUNK, "choices": choices, **more}

    def _readable(self, token):
        return self._vocabulary.bytes(token).decode("utf-8", errors="replace")


class Chat(Answer):
    """/v1/chat/completions."""

    PREFIX, OBJECT, CHUNK = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, index, text, entries, finish):
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(entries),
            "finish_reason": finish,
        }

    def opening(self, index):
        """Returns the choice of the first chunk, or None if text comes at once."""
        return self._delta(index, {"role": "assistant", "content": ""}, None, None)

    def piece(self, index, text, entries, finish):
        """Returns the choice of a later chunk."""
        return self._delta(index, {"content": text} if text else {}, entries, finish)

    def _delta(self, index, delta, entries, finish):
        return {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(entries),
            "finish_reason": finish,
        }

    def _logprobs(self, entries):
        if entries is None:
            return None
        content = [
            self._token(entry.token, entry.logprob)
            | {"top_logprobs": [self._token(*pair) for pair in entry.top]}
            for entry in entries
        ]
        return {"content": content, "refusal": None}

    def _token(self, token, logprob):
        return {
            "token": self._readable(token),
            "logprob": max(logprob, NO_LOGPROB),
            "bytes": list(self._vocabulary.bytes(token)),
        }


class Text(Answer):
    """/v1/completions."""

    PREFIX, OBJECT, CHUNK = "cmpl", "text_completion", "text_completion"

    def choice(self, index, text, entries, finish):
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(entries),
            "finish_reason": finish,
        }

    piece = choice

    def opening(self, index):
        return None

    def _logprobs(self, entries):
        if entries is None:
            return None
        return {
            "tokens": [self._name(entry.token) for entry in entries],
            "token_logprobs": [max(entry.logprob, NO_LOGPROB) for entry in entries],
            "top_logprobs": [
                {self._name(token): max(logprob, NO_LOGPROB) for token, logprob in entry.top}
                for entry in entries
            ],
            "text_offset": [entry.start for entry in entries],
        }

    def _name(self, token):
        """Names a token; half characters are spelled in bytes, so that no two names are equal."""
        try:
            return self._vocabulary.bytes(token).decode()
        except UnicodeDecodeError as error:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in error.object)


def usage(ask, choices):
    """Counts the tokens of the `service.Choice`s of a `protocol.Ask`, end tokens included.

    Tokens that the answers to one prompt share beyond the first of them do not count as cached.
    """
    drawn = sum(choice.tokens for choice in choices)
    given = sum(len(tokens) for tokens, _ in ask.prompts)
    firsts = range(0, len(choices), ask.choices)
    cached = [min(choice.shared for choice in choices[n : n + ask.choices]) for n in firsts]
    return {
        "prompt_tokens": given,
        "completion_tokens": drawn,
        "total_tokens": given + drawn,
        "prompt_tokens_details": {"cached_tokens": sum(cached)},
    }


def to_json(value):
    """Encodes a JSON value as ASCII bytes, so that no text of a client can break it."""
    return json.dumps(value, allow_nan=False).encode()
