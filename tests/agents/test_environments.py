"""Adapters of environments: real ones of their packages, where these are installed."""

import pathlib
import socket
import subprocess
import sys
import time
import types
from unittest import mock

import pytest

from agents.environments import catalogue, openenv_server, protocol, stepping
from tests.agents.environments import settings
from tools import protocol as tools

HERE = pathlib.Path(__file__).parent
SESSIONS = 4  # that the server of OpenEnv allows


def play(environment, question, *calls):
    """Returns (results of calls, reward): texts, or ToolErrors as "Error: …"."""
    one = protocol.Play(environment, question)
    told = []
    for arguments in calls:
        try:
            told.append(tools.call(one.tools["act"], arguments))
        except tools.ToolError as error:
            told.append(f"Error: {error}")
    reward = one.score(types.SimpleNamespace(answer=""))
    one.close()
    return told, reward


def acts(text):
    return [{"action": action} for action in text.split(", ")]


# ---- gymnasium ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gymnasium():
    return pytest.importorskip("gymnasium")


def test_a_lake_is_crossed(gymnasium):
    lake = catalogue.make("gymnasium:FrozenLake-v1", settings(options={"is_slippery": False}))
    [question] = lake.questions("train", 1)
    assert question["question"] == (
        "Walk from S to G over ice F; a hole H ends it. Rows from the top: SFFF FHFH FFFH HFFG. "
        "You are in row 0, column 0."
    )
    told, reward = play(lake, question, *acts("down, Down , north, right, left"))
    assert told == [
        "You are in row 1, column 0.",
        "You are in row 2, column 0.",
        "Error: There is no action 'north'; choose from left, down, right, up.",
        "You are in row 2, column 1.",
        "You are in row 2, column 0.",
    ]
    assert reward == 0
    told, reward = play(lake, question, *acts("down, down, right, down, right, right, up"))
    assert told[-2:] == [
        "You are in row 3, column 3. Reward: 1. It is over.",
        "Error: It is over: no further action counts.",
    ]
    assert reward == 1
    drowned, reward = play(lake, question, *acts("down, right"))
    assert drowned[-1] == "You are in row 1, column 1. It is over." and reward == 0


def test_seeds_decide_and_splits_share_none(gymnasium):
    lake = catalogue.make("gymnasium:FrozenLake-v1", settings(options={"map_name": "8x8"}))
    first, second = lake.questions("train", 2)
    walk = acts(", ".join(["right", "down"] * 6))
    assert "slippery" in first["question"]
    assert play(lake, first, *walk) == play(lake, first, *walk)
    assert play(lake, first, *walk) != play(lake, second, *walk)
    taxi = catalogue.make("gymnasium:Taxi-v4", settings(reward_low=-9.0, reward_high=20.0))
    questions = taxi.questions("train", 20) + taxi.questions("held_out", 20)
    assert len({question["seed"] for question in questions}) == 40
    assert len({question["id"] for question in questions}) == 40
    assert len({question["question"] for question in questions}) > 20


def test_totals_are_scaled_by_the_bounds(gymnasium):
    taxi = catalogue.make("gymnasium:Taxi-v4", settings(reward_low=-11.0, reward_high=20.0))
    [question] = taxi.questions("train", 1)
    told, reward = play(taxi, question, *acts("south, drop off"))
    assert told[0].endswith("Reward: -1.") and told[1].endswith("Reward: -10.")
    assert reward == 0
    assert play(taxi, question)[1] == 11 / 31
    with pytest.raises(ValueError, match="-1/31|reward -0.03.*reward_low"):
        play(taxi, question, *acts("south, south, drop off"))


def test_a_sum_that_is_a_bound_but_for_rounding_is_that_bound():
    scaled = settings(reward_high=0.3).scaled
    assert 0.1 + 0.1 + 0.1 > 0.3 and scaled(0.1 + 0.1 + 0.1) == 1.0
    assert scaled(0.1 + 0.2 - 0.3) == 0.0 and scaled(0.15) == 0.5
    assert settings().scaled(sum([0.1] * 10)) == 1.0 > sum([0.1] * 10)
    assert settings().scaled(1.001) > 1 and settings().scaled(-0.001) < 0


def test_copies_with_maps_of_their_own_do_not_begin_alike(gymnasium):
    lake = catalogue.make("gymnasium:FrozenLake-v1", settings(options={"map_name": None}))
    [question] = lake.questions("train", 1)
    with pytest.raises(RuntimeError, match="does not begin as it did with seed 0"):
        lake.start(question)


def test_cards_are_told_in_words(gymnasium):
    cards = catalogue.make("gymnasium:Blackjack-v1", settings(reward_low=-1.0))
    [question] = cards.questions("train", 1)
    assert question["question"].endswith("You have 11 without a usable ace; the dealer shows 10.")
    [told], reward = play(cards, question, {"action": "stick"})
    assert told.endswith("It is over.") and reward in (0, 0.5, 1)


def test_unknown_environments_need_rules_and_get_numbers(gymnasium):
    pole = catalogue.make(
        "gymnasium:CartPole-v1",
        settings(rules="Keep it up.", actions=("push left", "push right"), reward_high=500.0),
    )
    [question] = pole.questions("train", 1)
    assert question["question"].startswith("Keep it up. [0.0")
    [told], reward = play(pole, question, {"action": "push left"})
    assert told.endswith(" Reward: 1.") and reward == 1 / 500


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("FrozenLake", {}, "names no environment; examples: gymnasium:"),
        ("gymnasium:", {}, "names no environment"),
        ("gymnasium:Nowhere-v1", {}, "Nowhere-v1: .*doesn't exist"),
        ("gymnasium:FrozenLake-v1", {"options": {"ice": 1}}, "unexpected keyword argument 'ice'"),
        ("gymnasium:FrozenLake-v1", {"actions": ("go",)}, "has 4 actions, and .* names 1: go"),
        ("gymnasium:FrozenLake-v1", {"actions": ("go", "Go ", "a", "b")}, "names 3: go, Go , a, b"),
        ("gymnasium:CartPole-v1", {}, "rules of CartPole-v1 are not known; .*environment.rules"),
        ("gymnasium:Pendulum-v1", {"rules": "x"}, "actions of Pendulum-v1 are Box"),
        ("module:no_such_module", {}, "no module no_such_module"),
        ("module:json", {}, "json has no function make"),
        ("module:tests.agents.shapeless", {}, "shapeless returned dict, no agents.environments"),
    ],
)
def test_what_cannot_be_made_says_why(gymnasium, name, changes, message):
    with pytest.raises(ValueError, match=message):
        catalogue.make(name, settings(**changes))


def test_bounds_that_hold_nothing_are_refused():
    with pytest.raises(ValueError, match="reward_low=1.0 must be less than reward_high=1.0"):
        settings(reward_low=1.0)


class Liar:
    """A world that begins differently each time and rewards with nan."""

    begun = closed = 0

    def reset(self, seed):
        self.begun += 1
        return f"Day {self.begun}."

    def step(self, tool, arguments):
        return stepping.Step("x" * 30, float("nan"), False)

    def close(self):
        self.closed += 1


def test_a_world_that_breaks_its_word_is_a_failure():
    world = Liar()
    how = dict(tools=(), open_world=lambda: world, settings=settings())
    liar = stepping.environment("liar", **how)
    first, second, third = liar.questions("train", 3)
    with pytest.raises(RuntimeError, match="'Day 4.' instead of 'Day 1.'"):
        liar.start(first)
    world.begun = 0
    with pytest.raises(RuntimeError, match="reward nan"):
        liar.start(first).call("act", {})
    world.reset, closed = lambda seed: {}["no session"], world.closed
    with pytest.raises(KeyError):
        liar.start(first)
    assert world.closed == closed + 1


# ---- verifiers ---------------------------------------------------------------------------------


def test_tasks_of_verifiers_reward_the_answer(monkeypatch):
    pytest.importorskip("verifiers")
    monkeypatch.syspath_prepend(str(HERE))
    capitals = catalogue.make("verifiers:capitals_taskset", settings())
    train, [kenya] = capitals.questions("train", 5), capitals.questions("held_out", 1)
    assert [q["question"].split()[-1] for q in train] == [
        *("Spain?", "France?", "Italy?", "Peru?", "Japan?")
    ]
    assert kenya["question"].endswith("Kenya?")

    def score(question, answer):
        one = protocol.Play(capitals, question)
        return one.score(types.SimpleNamespace(answer=answer))

    assert [score(train[0], answer) for answer in ("Madrid", "Rome", "Rome " * 5)] == [1, 0.25, 0]
    with pytest.raises(Exception, match="no service"):
        score(train[3], "Lima")
    with pytest.raises(ValueError, match="1 tasks to hold out; data.environment.held_out=2"):
        capitals.questions("held_out", 2)
    with pytest.raises(ValueError, match="no taskset no_such_taskset.*not found"):
        catalogue.make("verifiers:no_such_taskset", settings())


# ---- openenv -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """The URL of a server of OpenEnv's template."""
    pytest.importorskip("openenv")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("echo")
    command = [sys.executable, HERE / "openenv_echo.py", folder, str(port), str(SESSIONS)]
    server = subprocess.Popen(command)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            assert server.poll() is None
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def test_a_server_of_openenv_keeps_a_session_for_each_trajectory(echo):
    environment = catalogue.make(f"openenv:{echo}/", settings(reward_high=3.0, rules="Echo it."))
    [tool] = environment.tools
    assert [(p.name, p.type) for p in tool.parameters] == [("message", "str")]
    [question] = environment.questions("train", 1)
    assert question["question"] == (
        'Echo it. {"echoed_message": "Echo environment ready!", "message_length": 0}'
    )
    told, reward = play(environment, question, {"message": "hello"}, {"message": "again"})
    assert told[0] == '{"echoed_message": "hello", "message_length": 5} Reward: 0.5.'
    assert reward == pytest.approx(1 / 3)
    both = [protocol.Play(environment, question) for _ in range(2)]
    for one in both:
        one.tools["act"].run(message="x" * 6)
    assert [one.score(None) for one in both] == [pytest.approx(0.6 / 3)] * 2
    for one in both:
        one.close()


def test_a_session_too_many_says_how_many_are_needed(echo):
    environment = catalogue.make(f"openenv:{echo}", settings(reward_high=3.0))
    [question] = environment.questions("train", 1)
    episodes = []
    with pytest.raises(RuntimeError, match="no further session. .* as many as rollout.in_flight"):
        while len(episodes) <= SESSIONS:
            episodes.append(environment.start(question))
    for episode in episodes:
        episode.close()


@pytest.mark.parametrize("ends", ["refuses", "closes", "breaks", "fails"])
def test_only_a_server_that_may_be_full_is_called_full(ends):
    exceptions = pytest.importorskip("websockets.exceptions")
    failure, known, message = {
        "refuses": (RuntimeError("No (code: CAPACITY_REACHED)"), RuntimeError, "^The server took "),
        "closes": (exceptions.ConnectionClosedOK(None, None), RuntimeError, "closed .*; if it is"),
        "breaks": (exceptions.ConnectionClosedError(None, None), Exception, "^no close frame"),
        "fails": (RuntimeError("No (code: EXECUTION_ERROR)"), RuntimeError, "^No "),
    }[ends]
    world = openenv_server._World(mock.Mock(**{"reset.side_effect": failure}), settings())
    with pytest.raises(known, match=message) as raised:
        world.reset(1)
    told = "no further session. Let it allow" in str(raised.value)
    assert told == (ends in ("refuses", "closes"))


def test_a_server_that_is_not_there_is_named(echo):
    with pytest.raises(ValueError, match="http://127.0.0.1:9 does not answer as a server of Open"):
        catalogue.make("openenv:http://127.0.0.1:9", settings())
