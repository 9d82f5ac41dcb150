"""All kinds of environments by name, each an adapter; "module" is a module of the user's own."""

import dataclasses
import importlib

from agents.environments import gymnasium_text, openenv_server, protocol, verifiers_tasks


def _of_module(target: str, settings: protocol.Settings) -> protocol.Environment:
    """Calls `make(settings)` of an importable module."""
    try:
        module = importlib.import_module(target)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"data.environment.id names the module {target}, and there is no module "
            f"{error.name}. Say where it lies: PYTHONPATH=FOLDER."
        ) from error
    if not callable(make := getattr(module, "make", None)):
        raise ValueError(f"The module {target} has no function make(settings).")
    made = make(settings)
    if not isinstance(made, protocol.Environment):
        raise ValueError(
            f"make(settings) of the module {target} returned {type(made).__name__}, no "
            "agents.environments.protocol.Environment."
        )
    return dataclasses.replace(made, cut=settings.cut)


MAKERS = {
    "gymnasium": gymnasium_text.make,
    "module": _of_module,
    "openenv": openenv_server.make,
    "verifiers": verifiers_tasks.make,
}
EXAMPLES = "gymnasium:FrozenLake-v1, openenv:http://127.0.0.1:8000, verifiers:TASKSET, module:NAME"


def make(name: str, settings: protocol.Settings) -> protocol.Environment:
    """Makes an environment; this imports code that the name says.

    Raises:
      ValueError: there is none of that name, its package is missing, or the settings do not fit.
    """
    kind, _, target = name.partition(":")
    if kind not in MAKERS or not target:
        raise ValueError(
            f"data.environment.id={name!r} names no environment; examples: {EXAMPLES}."
        )
    found = MAKERS[kind](target, settings)
    names = [tool.name for tool in found.tools]
    if len(set(names)) < len(names):
        raise ValueError(f"The environment {name} has two tools of one name: {', '.join(names)}.")
    return found
