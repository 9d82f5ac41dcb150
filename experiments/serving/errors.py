"""Errors that clients get, and as much of their own values as these may show."""

import itertools
import json

MOST_SHOWN = 80  # characters of a client's value in an error


class ApiError(Exception):
    """An answer that is an error.

    Args:
      status: HTTP status.
      message: the mistake, and what to do.
      param: field of the request.
      code: OpenAI's word for it.
      headers: more headers of the answer.
    """

    TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}

    def __init__(self, status, message, *, param=None, code=None, headers=None):
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.body = {
            "error": {
                "message": message,
                "type": self.TYPES.get(status, "invalid_request_error"),
                "param": param,
                "code": code,
            }
        }


def invalid(message, *, param=None, code=None):
    """Returns the ApiError of a request that must be changed."""
    return ApiError(400, message, param=param, code=code)


def shown(value):
    """Returns the beginning of a JSON value as a message may show it, escaped."""
    return _short(ascii(_beginning(value)))


def as_json(value):
    """Returns the beginning of a JSON value as JSON."""
    return _short(json.dumps(_beginning(value)))


def _beginning(value, depth=4, width=8):
    """Returns a JSON value without what is too long or too deep to be shown."""
    if isinstance(value, str):
        return value[:MOST_SHOWN]
    if not isinstance(value, (list, dict)):
        return value
    if not depth:
        return "..."
    if isinstance(value, list):
        first = [_beginning(each, depth - 1) for each in value[:width]]
        return first if len(value) <= width else [*first, "..."]
    fields = itertools.islice(value.items(), width)
    return {name[:MOST_SHOWN]: _beginning(each, depth - 1) for name, each in fields}


def _short(text):
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."
