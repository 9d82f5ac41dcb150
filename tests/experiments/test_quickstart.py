"""The quickstart's questions and demonstrations."""

import itertools
import pathlib
import random

import pytest

from agents import parsing
from experiments import warmstart
from experiments.configs import quickstart
from experiments.quickstart import demonstrations, questions
from experiments.running import sessions
from flow_grpo_jax import data, rewards
from models import huggingface, model_card
from models.tokenizer import Tokenizer
from tools import knowledge_base, protocol

DATA = "experiments/data/quickstart"


@pytest.fixture(scope="module")
def tools():
    return sessions.make_tools(quickstart.get_config())


@pytest.fixture(scope="module")
def worlds():
    return questions.split(knowledge_base.articles())


def entities(problem):
    found = {step.entity for step in problem.steps} | {step.value for step in problem.steps}
    return {name for name in found if not name[0].isdigit()}


def test_splits_share_no_entity(worlds):
    train, held_out = worlds
    assert not set(train.by_title) & set(held_out.by_title)
    articles = {article.title for article in knowledge_base.articles()}
    seen = [set(), set()]
    for index, world in enumerate(worlds):
        for problem in questions.distinct(world, 150, seed=1):
            seen[index] |= entities(problem) & articles
    assert not seen[0] & seen[1]


def test_shipped_questions_are_those_of_the_split(worlds):
    for name, world, count in (("train", worlds[0], 600), ("held_out", worlds[1], 120)):
        rows = data.read_questions(f"{DATA}/{name}.jsonl")
        expected = questions.distinct(world, count, seed=0)
        assert [row["question"] for row in rows] == [problem.question for problem in expected]
        assert all(rewards.score(r, p.answer).value for r, p in zip(rows, expected, strict=True))


def test_every_hop_count_is_equally_frequent(worlds):
    hops = [len(problem.steps) for problem in questions.distinct(worlds[1], 120, seed=0)]
    assert [hops.count(n) for n in (1, 2, 3)] == [40, 40, 40]


def test_good_solutions_work_with_the_real_tools(worlds, tools):
    """The demonstrated commands, run for real, give the values that the next step needs."""
    for problem in questions.distinct(worlds[1], 60, seed=2):
        actor = demonstrations.Demonstrator(
            problem, worlds[1], random.Random(0), demonstrations.NO_MISTAKES, ""
        )
        for step in problem.steps:
            plan = parsing.plan(actor.planner(), tuple(tools))
            (arguments,) = parsing.calls(actor.executor(), tools[plan.tool])
            result = protocol.call(tools[plan.tool], arguments)
            assert result == actor.run_tool().text
            assert step.value in result
        assert actor.verifier() == "Verdict: STOP"
        assert actor.generator() == f"Answer: {problem.answer}"


@pytest.mark.slow
def test_warmstart_writes_a_model_and_the_shipped_questions(tmp_path):
    c = quickstart.get_config()
    c.warmstart.model.update(hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    c.warmstart.update(
        tokenizer_samples=4000, steps=2, rows=2, probes=20, copy_samples=4, warmup_steps=1
    )
    shares = warmstart.warmstart(c, tmp_path)
    assert set(shares) >= {"analyst", "planner", "executor", "verifier", "generator"}
    for name in ("train.jsonl", "held_out.jsonl"):
        assert (tmp_path / name).read_bytes() == pathlib.Path(DATA, name).read_bytes()
    made, shipped = Tokenizer.load(tmp_path / "model"), Tokenizer.load(f"{DATA}/model")
    text = "Context: Mount Kenya, 1984\nSub-goal: country"
    assert made.encode(text) == shipped.encode(text) and made.eos_ids == shipped.eos_ids
    model = huggingface.load(tmp_path / "model")
    assert model.config.num_hidden_layers == 1 and model.config.vocab_size == made.vocab_size
    cards = [pathlib.Path(place, "model", "README.md").read_text() for place in (tmp_path, DATA)]
    assert cards[0] == cards[1] and model_card.prompts(f"{DATA}/model") == "compact"
    assert len((tmp_path / "warmstart.jsonl").read_text().splitlines()) == 1


def test_invented_worlds_are_consistent_and_never_real(worlds):
    tokenizer = Tokenizer.load(f"{DATA}/model")
    inventor = demonstrations.Inventor(knowledge_base.articles(), tokenizer)
    rng = random.Random(0)
    for _ in range(20):
        world = inventor.world(rng)
        for _ in range(10):
            problem = questions.draw(world, rng)
            assert all(step.value for step in problem.steps)


@pytest.mark.slow
def test_the_planner_is_demonstrated_badly_and_the_others_well(worlds, tools):
    tokenizer = Tokenizer.load(f"{DATA}/model")
    stream = demonstrations.stream(
        list(worlds[0].by_title.values()),
        tokenizer,
        tools=tools,
        seed=0,
        real_share=1.0,
        max_turns=3,
    )
    samples = list(itertools.islice(stream, 4000))
    solved = [s.response != "Answer: unknown" for s in samples if s.role == "generator"]
    assert 0.25 < sum(solved) / len(solved) < 0.55
    verdicts = {s.response for s in samples if s.role == "verifier"}
    assert verdicts == {"Verdict: STOP", "Verdict: CONTINUE"}
    flawless = demonstrations.stream(
        list(worlds[0].by_title.values()),
        tokenizer,
        tools=tools,
        seed=0,
        real_share=1.0,
        max_turns=3,
        mistakes=demonstrations.NO_MISTAKES,
    )
    answers = [s.response for s in itertools.islice(flawless, 2000) if s.role == "generator"]
    assert "Answer: unknown" not in answers
