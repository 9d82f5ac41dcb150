"""The files of docs/examples do what docs/extend.md says; so do the config fields they use."""

import json
import pathlib
import random
import re
import runpy
import types
import zlib

import loopback
import numpy as np
import pytest

from agents import parsing, prompts
from agents.environments import protocol
from agents.memory import Memory
from agents.trajectory import Status
from experiments import rescore, train
from experiments.configs import common, lake, quickstart
from experiments.running import backends, command, dataset, fields, limits
from flow_grpo_jax import metrics, rollout
from tests.flow_grpo_jax.test_rollout import ScriptedEngine, settings, system

EXAMPLES = pathlib.Path(__file__).parents[2] / "docs" / "examples"
GUESS = "module:docs.examples.guess"


def example(name):
    return runpy.run_path(str(EXAMPLES / name))


def config_of(name, **changes):
    c = common.base()
    c.data.train, c.data.environment.id = "", name
    c.data.environment.update(changes)
    return c


def opened(config):
    """Returns (environment, training questions, held-out ones) of a config."""
    with dataset.environment(config.data.environment) as environment:
        return environment, *dataset.of_environment(environment, config.data.environment)


def test_a_world_of_ones_own_is_played_by_halving():
    environment, train, held_out = opened(config_of(GUESS, train=3, held_out=2))
    seeds = [question["seed"] for question in train + held_out]
    assert seeds == [0, 1, 2, 1_000_000, 1_000_001]
    answers = {"Too low.": 1, "Too high.": -1}

    def halve(play):
        low, high = 1, 20
        while low <= high:
            middle = (low + high) // 2
            sign = answers.get(play.tools["guess"].run(number=middle))
            if sign is None:
                return play.score(None)
            low, high = (middle + 1, high) if sign > 0 else (low, middle - 1)
        raise AssertionError("no number fits the answers")

    assert [halve(protocol.Play(environment, question)) for question in train] == [1.0] * 3
    assert protocol.Play(environment, train[0]).score(None) == 0


def test_it_earns_its_reward_in_rollouts():
    environment, [question], _ = opened(config_of(GUESS, train=1, held_out=0))
    number = next(
        n
        for n in range(1, 21)
        if environment.start(question).call("guess", {"number": n}) == "That is the number."
    )
    replies = {
        "plan": "Context: 1 to 20\nSub-goal: find it\nTool: guess",
        "call": f"guess(number={number})",
    }
    with system(ScriptedEngine(replies), environment=environment) as answering:
        how = dict(group=2, step=1, system=answering, settings=settings())
        [group] = rollout.collect([question], **how)
    assert [(t.status, t.reward, t.turns[0].result) for t in group] == [
        (Status.OK, 1.0, "That is the number.")
    ] * 2


def test_a_walker_shows_the_lake_through_the_agent():
    pytest.importorskip("gymnasium")
    walk, rng = example("lake_walker.py")["walk"], random.Random(0)
    rewards, shown = [], []
    with dataset.environment(lake.get_config().data.environment) as world:
        [question] = world.questions("train", 1)
        for _ in range(20):
            play = protocol.Play(world, question)
            shown += walk(play.tools["act"], question, rng, max_turns=8)
            rewards.append(play.score(None))
            play.close()
    assert set(rewards) == {0.0, 1.0} and sum(rewards) > 5
    said = {row["module"]: row["messages"][-1]["content"] for row in shown[-4:]}
    assert said["generator"] == "Answer: -" and said["executor"].startswith('act(action="')
    asked = [row["messages"][-2]["content"] for row in shown if row["module"] == "planner"]
    assert max(text.count("You are in row") for text in asked) == 8  # the question's and 7 results


def test_a_reward_of_ones_own_pays_for_right_answers_in_few_turns():
    config = example("brief_answers.py")["get_config"]()
    limits.check(config)
    environment, train, held_out = opened(config)
    assert (len(train), len(held_out)) == (600, 120)
    question, right = train[0], train[0]["row"]["answer"][0]

    def score(answer, turns):
        trajectory = types.SimpleNamespace(answer=answer, turns=(None,) * turns)
        return protocol.Play(environment, question).score(trajectory)

    found = [score(right, 1), score(right, 3), score(right, 20), score("xyz", 1), score("", 0)]
    assert found == [1, pytest.approx(0.8), 0, 0, 0]


def test_a_prompt_set_has_all_roles_and_asks_for_a_verdict():
    careful = example("careful_prompts.py")["CAREFUL"]
    assert careful.system.keys() == prompts.INSTRUCT.system.keys()
    system_message, _ = prompts.verifier(careful, {}, "Why?", "", Memory())
    text = system_message["content"]
    assert text.endswith("Verdict: STOP\nif nothing is missing, or\nVerdict: CONTINUE")
    assert "{tools}" not in text and text != prompts.INSTRUCT.system["verifier"]


def test_a_module_on_a_server_is_asked_there():
    config = example("served_verifier.py")["get_config"]()
    config.data.train = "somewhere"
    limits.check(config)
    assert config.rollout.prompts == "instruct"  # the server's model knows no other
    verdicts = iter(("CONTINUE", "STOP"))

    def verify(body):
        return json.dumps({"explanation": "It is so.", "verdict": next(verdicts)})

    engine, question = ScriptedEngine(), {"id": "q", "question": "Capital of Spain?"}
    with loopback.Loopback(loopback.replies(verify)) as there:
        config.backends.verifier.url = there.url
        made = backends.build(config.backends)
        try:
            assert made.models["executor"] == "frozen"
            with system(engine, models=made.models) as answering:
                how = dict(group=1, step=1, system=answering, settings=settings(max_turns=3))
                [[found]] = rollout.collect([question], **how)
        finally:
            made.close()
    assert [turn.verdict for turn in found.turns] == ["CONTINUE", "STOP"]
    assert {body["model"] for body in there.bodies()} == {"Qwen/Qwen2.5-7B-Instruct"}
    assert "Capital of Spain?" in there.bodies()[0]["messages"][-1]["content"]
    assert there.bodies()[0]["response_format"]["type"] == "json_schema"
    asked = ["".join(map(chr, request.tokens)) for request in engine.log]
    assert len(asked) == 6 and not any(text.startswith("verify") for text in asked)


# ---- data.environment --------------------------------------------------------------------------


def test_no_environment_has_no_questions():
    assert opened(quickstart.get_config()) == (None, [], [])


def test_what_a_config_cannot_ask_for(tmp_path):
    check = lambda config: limits.check(config)
    config = config_of("")
    with pytest.raises(command.ConfigError, match="data.train is empty; .*data.environment.id"):
        check(config)
    config = config_of(GUESS)
    config.tools.names = ()  # the environment has one
    check(config)
    config.data.train = "somewhere"  # its questions have none
    with pytest.raises(command.ConfigError, match="tools.names and tools.mcp are empty"):
        check(config)
    config.data.train, config.data.held_out = "", "somewhere"
    with pytest.raises(command.ConfigError, match="tools.names and tools.mcp are empty"):
        check(config)
    config = config_of(GUESS)
    config.loss.variant = "turns"
    with pytest.raises(command.ConfigError, match="turns goes on from the middle of .*guess"):
        check(config)
    config = config_of(GUESS, held_out=-1)
    with pytest.raises(command.ConfigError, match="held_out=-1 must be 0 or more"):
        check(config)
    with pytest.raises(command.ConfigError, match="names no environment"):
        opened(config_of("guess"))
    config = config_of(GUESS)
    config.data.environment.options.anything = {"at": ("all", 1)}
    fields.check(config)


@pytest.mark.parametrize(
    "changes, told",
    [
        (
            {"seed": np.int64(3)},
            "Question 1 of the environment odd cannot be written as JSON",
        ),
        (
            {"id": "odd/train/0"},
            "Question 1 of the environment odd has the id 'odd/train/0'",
        ),
        ({"question": None}, "Question 1 of the environment odd has no text in 'question'"),
        ({"kind": "qa"}, "Question 1 of the environment odd was not made by protocol.question"),
    ],
)
def test_questions_of_an_environment_are_checked(changes, told):
    def questions(split, count):
        found = [protocol.question("odd", split, number, "?") for number in range(count)]
        return [*found[:1], found[1] | changes, *found[2:]]

    odd = protocol.Environment("odd", (), questions, start=None)
    with pytest.raises(command.ConfigError, match=told):
        dataset.of_environment(odd, config_of(GUESS).data.environment)


def test_an_environment_that_fails_is_named_and_closed(monkeypatch, caplog):
    closed = []

    def fail(*_):
        closed.append(True)
        raise KeyError("token")

    made = protocol.Environment("odd", (), fail, None, close=fail)
    monkeypatch.setattr(dataset.catalogue, "make", lambda *_: made)
    settings = config_of("module:odd").data.environment
    with (
        pytest.raises(RuntimeError, match="The environment odd failed: KeyError: 'token'"),
        dataset.environment(settings) as environment,
    ):
        dataset.of_environment(environment, settings)
    assert len(closed) == 2 and "module:odd could not be closed: KeyError" in caplog.text
    monkeypatch.setattr(dataset.catalogue, "make", fail)
    with pytest.raises(RuntimeError, match="environment module:odd failed: KeyError: 'token'"):
        opened(config_of("module:odd"))


def test_held_out_questions_that_are_training_questions_are_warned_of(caplog):
    opened(config_of(GUESS))  # all questions have one text
    assert "All held-out questions of guess begin as training questions do" in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_steps_of_training_in_gymnasium(tmp_path, monkeypatch):
    """The shipped model plays cards as if half of its texts said to stick, the others nothing."""
    pytest.importorskip("gymnasium")
    monkeypatch.setattr(parsing, "plan", _plan)
    monkeypatch.setattr(parsing, "calls", lambda text, tool: [{"action": "stick"}])
    config = lake.get_config()
    config.steps, config.compile_cache = 2, ""
    config.data.environment.update(id="gymnasium:Blackjack-v1", reward_low=-1.0, held_out=0)
    config.data.environment.options = {}
    config.rollout.max_turns, config.rollout.questions, config.rollout.temperature = 1, 2, 3.0
    config.rollout.max_prompt_tokens, config.batch.row_lengths = 480, (512,)
    config.batch.rows, config.engine.slots = (1,), 16  # rows of each device
    train.train(config, tmp_path)
    lines = metrics.read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    seen = [
        json.loads(line)
        for path in sorted((tmp_path / "trajectories").glob("step_*"))
        for line in path.read_text().splitlines()
    ]
    for trajectory in seen:
        [turn] = trajectory["turns"]
        won = re.search(r"(?: Reward: (-?1)\.)? It is over\.$", turn["result"])
        assert trajectory["reward_source"] == "environment"
        assert trajectory["reward"] == (int(won[1] or 0) + 1 if won else 1) / 2
        assert won or turn["result"] == "Error: No move."
    assert len(seen) == 16 and len({trajectory["reward"] for trajectory in seen}) > 1
    assert max(line["optim/grad_norm"] for line in lines) > 0


def _plan(text, names):
    if zlib.crc32(text.encode()) % 2:
        raise parsing.ParseError("No move.")
    return parsing.Plan("", text, *names)


def test_a_run_of_an_environment_is_not_scored_again():
    with pytest.raises(command.ConfigError, match="of the environment 'module:docs.examples.gue"):
        rescore._questions(config_of(GUESS), ())
