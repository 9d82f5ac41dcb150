"""What answers for each module and for the judge, as `config.backends` chooses it.

Every module but the planner is answered by a weight set of the engine ("frozen" or "policy") or by
a server of OpenAI's API ("server"). Modules that name the same url share its limits.
"""

import dataclasses

from agents.backends import cache, modules, server
from experiments.running import command

ROLES = {
    "analyst": "analyst",
    "executor": "executor",
    "verifier": "verifier",
    "generator": "generator",
    "base_generator": "base",
}
ENGINE = ("frozen", "policy")
BYTES_PER_TOKEN = 3  # of a model whose tokenizer is not here; fewer than text usually has


@dataclasses.dataclass
class Backends:
    """models: role -> "frozen", "policy" or `modules.Module`.
    judge: None, "frozen", "policy" or `server.ChatModel`.
    """

    models: dict
    judge: object
    endpoints: dict
    caches: dict

    def counts(self):
        """Returns what the servers were asked so far: `backend/<name>` -> float; {} without one."""
        parts = [endpoint.counts() for endpoint in self.endpoints.values()]
        names = server.COUNTS if parts else ()
        return {f"backend/{name}": float(sum(part[name] for part in parts)) for name in names}

    def close(self):
        for endpoint in self.endpoints.values():
            endpoint.close()
        for file in self.caches.values():
            file.close()


def serve_all(config, *, url, model, api_key_variable):
    """Sets one server of OpenAI's API as what answers for every module."""
    served = {"kind": "server", "url": url, "model": model}
    for name in ROLES:
        config.backends[name].update(served | {"api_key_variable": api_key_variable or ""})


def planner(made, chosen, *, temperature=None, further=()):
    """Returns the server of the base generator as a planner, for where nothing is trained.

    chosen: `backends.base_generator` of the config.
    temperature: instead of its own.    further: fields of the request's body beside `extra`.
    """
    model = _model(made, "base_generator", chosen, (), temperature=temperature, further=further)
    return modules.Module(model, "planner", structured=False)


def estimated_tokens(messages):
    """Returns the tokens of a prompt whose tokenizer is not here, rather too many."""
    size = sum(len(message["content"].encode("utf-8", "replace")) for message in messages)
    return size // BYTES_PER_TOKEN + 8 * len(messages) + 8


def build(config):
    """Builds the `Backends` of a config; ConfigError names what cannot be used."""
    made = Backends({}, None, {}, {})
    try:
        for name, role in ROLES.items():
            chosen = config[name]
            model = _model(made, name, chosen, ENGINE)
            if not isinstance(model, str):
                model = modules.Module(model, role, chosen.structured)
            made.models[role] = model
        chosen = _model(made, "judge", config.judge, ("none", *ENGINE))
        made.judge = None if chosen == "none" else chosen
    except ValueError:
        made.close()
        raise
    return made


def _model(made, name, chosen, kinds, *, temperature=None, further=()):
    place = f"backends.{name}"
    if chosen.kind in kinds:
        return chosen.kind
    if chosen.kind != "server":
        valid = ", ".join((*kinds, "server"))
        raise command.ConfigError(f"{place}.kind={chosen.kind!r} is unknown; valid: {valid}.")
    try:
        return server.ChatModel(
            _endpoint(made, place, chosen),
            chosen.model,
            temperature=chosen.temperature if temperature is None else temperature,
            seconds=chosen.seconds,
            cache=_cache(made, chosen.cache),
            extra=chosen.extra.to_dict() | dict(further),
            token_field=chosen.token_field,
        )
    except ValueError as error:
        raise command.ConfigError(f"{place}: {error}") from error


def _endpoint(made, place, chosen):
    address = chosen.url.rstrip("/"), chosen.api_key_variable
    limits = server.Limits(**chosen.limits)
    known = made.endpoints.get(address)
    if known is None:
        known = made.endpoints[address] = server.Endpoint(
            chosen.url, api_key_variable=chosen.api_key_variable, limits=limits
        )
    elif known.limits != limits:
        raise ValueError(f"another module gives {chosen.url} other limits; they are one server's.")
    return known


def _cache(made, path):
    if path and path not in made.caches:
        made.caches[path] = cache.Cache(path)
    return made.caches.get(path)
