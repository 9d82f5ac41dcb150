"""Gymnasium environments in words: numbered or written actions, observations as text."""

import dataclasses
import json
from collections.abc import Callable

from agents.environments import protocol, stepping
from tools.protocol import Parameter, Tool, ToolError


@dataclasses.dataclass(frozen=True)
class Game:
    """What is known of an environment.

    rules: (environment, its options) -> text.
    actions: names of its actions, by number.
    told: (observation, environment) -> text.
    """

    rules: Callable
    actions: tuple[str, ...]
    told: Callable


def _cell(observation, env):
    return "You are in row {}, column {}.".format(*divmod(int(observation), env.unwrapped.ncol))


def _slips(options, default):
    slippery = options.get("is_slippery", default)
    return " The ice is slippery: you may slide to a side." if slippery else ""


def _frozen_lake(env, options):
    rows = " ".join(b"".join(row).decode() for row in env.unwrapped.desc)
    slips = _slips(options, True)
    return f"Walk from S to G over ice F; a hole H ends it.{slips} Rows from the top: {rows}."


def _cliff_rules(env, options):
    return (
        "Walk from row 3, column 0 to row 3, column 11. The cells of row 3 between them are a "
        "cliff, from which you begin again." + _slips(options, False)
    )


def _cliff(observation, env):
    return "You are in row {}, column {}.".format(*divmod(int(observation), 12))


def _taxi(observation, env):
    row, column, passenger, goal = env.unwrapped.decode(int(observation))
    stops = ["R", "G", "Y", "B"]
    where = [*(f"waits at {stop}" for stop in stops), "is in the taxi"][passenger]
    return (
        f"The taxi is in row {row}, column {column}. The passenger {where} and wants to "
        f"{stops[goal]}."
    )


def _taxi_rules(env, options):
    rows = "\n".join(b"".join(row).decode() for row in env.unwrapped.desc)
    return f"Take the passenger to the stop that they want. Walls are |, stops are letters.\n{rows}"


def _blackjack(observation, env):
    count, shown, ace = observation
    soft = "with a usable ace" if ace else "without a usable ace"
    return f"You have {count} {soft}; the dealer shows {shown}."


GAMES = {  # class of Gymnasium's own -> Game
    "FrozenLakeEnv": Game(_frozen_lake, ("left", "down", "right", "up"), _cell),
    "CliffWalkingEnv": Game(_cliff_rules, ("up", "right", "down", "left"), _cliff),
    "TaxiEnv": Game(_taxi_rules, ("south", "north", "east", "west", "pick up", "drop off"), _taxi),
    "BlackjackEnv": Game(
        lambda env, options: "Get closer to 21 than the dealer, but not over it.",
        ("stick", "hit"),
        _blackjack,
    ),
}


def make(target: str, settings: protocol.Settings) -> protocol.Environment:
    """Makes an environment of Gymnasium by its id.

    settings: `options` are keyword arguments of `gymnasium.make`.

    Raises:
      ValueError: there is no Gymnasium, no such environment, or it cannot be put into words.
    """
    try:
        import gymnasium
    except ImportError as error:
        raise ValueError('Gymnasium is missing: pip install -e ".[gymnasium]".') from error

    def open_env():
        return gymnasium.make(target, **settings.options)

    try:
        env = open_env()
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"Gymnasium does not make {target}: {error}") from error
    try:
        words = _words(env, target, settings)
    finally:
        env.close()
    tool = Tool(
        name="act",
        description="Takes one action and shows what follows.",
        parameters=(Parameter("action", "str", words.listed),),
        limits="Actions cannot be taken back.",
        demo=f'act(action="{words.actions[0] if words.actions else "text"}")',
        run=None,
        seconds=settings.seconds,
    )
    return stepping.environment(
        target,
        tools=(tool,),
        open_world=lambda: _World(open_env(), words),
        settings=settings,
    )


@dataclasses.dataclass(frozen=True)
class _Words:
    """How an environment is put into words.

    rules: environment -> text; two copies may have maps of their own.
    actions: (), if they are texts themselves.
    """

    rules: Callable
    actions: tuple[str, ...]
    told: Callable

    @property
    def listed(self):
        return ", ".join(self.actions) or "any text"


def _words(env, target, settings):
    from gymnasium import spaces

    kind = type(env.unwrapped)
    known = GAMES.get(kind.__name__) if kind.__module__.startswith("gymnasium.") else None
    options = (env.spec.kwargs if env.spec else {}) | dict(settings.options)
    rules = lambda env: settings.rules or known.rules(env, options)
    if not (settings.rules or known):
        raise ValueError(
            f"The rules of {target} are not known; say in data.environment.rules what the model "
            "has to do and what it will see."
        )
    space, names = env.action_space, settings.actions
    if isinstance(space, spaces.Text):
        return _Words(rules, (), known.told if known else _json)
    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"The actions of {target} are {space}; only texts and numbered ones can be written."
        )
    count = int(space.n)
    names = names or (known.actions if known else tuple(map(str, range(count))))
    different = len(set(map(_plain_name, names)))
    if len(names) != count or different != count:
        raise ValueError(
            f"{target} has {count} actions, and data.environment.actions names "
            f"{different}: {', '.join(names)}."
        )
    return _Words(rules, tuple(names), known.told if known else _json)


def _plain_name(action):
    """Returns the name of an action as it is compared."""
    return " ".join(action.lower().split())


def _json(observation, env):
    if isinstance(observation, str):
        return observation
    return json.dumps(observation, default=_plain)


def _plain(value):
    return value.tolist() if hasattr(value, "tolist") else str(value)


class _World:
    def __init__(self, env, words):
        self._env, self._words = env, words

    def reset(self, seed):
        observation, _ = self._env.reset(seed=seed)
        return f"{self._words.rules(self._env)} {self._words.told(observation, self._env)}"

    def step(self, tool, arguments):
        action, names = arguments["action"], self._words.actions
        if names:
            known = {_plain_name(name): number for number, name in enumerate(names)}
            number = known.get(_plain_name(action))
            if number is None:
                raise ToolError(
                    f"There is no action {action[:60]!r}; choose from {self._words.listed}."
                )
            action = int(self._env.action_space.start) + number
        elif not self._env.action_space.contains(action):
            raise ToolError(f"The text {action[:60]!r} is no action: {self._env.action_space}.")
        observation, reward, terminated, truncated, _ = self._env.step(action)
        text = self._words.told(observation, self._env)
        return stepping.Step(text, float(reward), bool(terminated or truncated))

    def close(self):
        self._env.close()
