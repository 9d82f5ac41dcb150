"""Endpoints and chat models with the config's values, and what a test changes."""

import random

from agents.backends import server
from experiments.configs import common


def limits(**changes):
    return server.Limits(**common.backend().limits.to_dict() | changes)


def endpoint(url, *, api_key_variable="", draw=random.random, **changes):
    """A `server.Endpoint`; changes: of its limits."""
    return server.Endpoint(
        url, api_key_variable=api_key_variable, limits=limits(**changes), draw=draw
    )


def chat(there, model="m", *, cache=None, **changes):
    """A `server.ChatModel` of an endpoint."""
    backend = common.backend()
    fields = ("temperature", "seconds", "token_field")
    values = {name: backend[name] for name in fields} | {"extra": {}} | changes
    return server.ChatModel(there, model, cache=cache, **values)
