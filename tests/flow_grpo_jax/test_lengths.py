"""Which questions can never fit, against counting every prompt."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import prompts
from experiments.configs import quickstart
from experiments.running import places, tokens
from flow_grpo_jax import lengths
from tools.protocol import Parameter, Tool

TOOLS = {"search": Tool("search", "Finds.", (Parameter("query", "str", ""),), "", "demo", str, 1.0)}


@pytest.fixture(scope="module")
def tokenizer():
    folder = places.resolve(quickstart.get_config().model.path)
    return tokens.load(folder)


def characters(messages):
    return sum(len(message["content"]) for message in messages)


def find(texts, limit, *, count=characters, prompt_set=prompts.COMPACT):
    asked = [{"id": str(i), "question": text} for i, text in enumerate(texts)]
    return lengths.too_long(asked, limit=limit, count=count, prompt_set=prompt_set, tools=TOOLS)


def test_the_limit_itself_fits():
    longest = "plan search(query)Question: " + "x" * 50 + "\nAnalysis: "
    assert find(["x" * 50], len(longest)) == {}
    assert find(["y", "x" * 50], len(longest) - 1) == {1: len(longest)}


def test_every_prompt_of_a_question_counts():
    """With the long prompts that of the planner or the analyst is longest, with others another."""
    for role in ("analyst", "planner", "generator"):
        system = prompts.COMPACT.system | {role: "w" * 500}
        prompt_set = dataclasses.replace(prompts.COMPACT, system=system)
        ((index, tokens),) = find(["why?"], 200, prompt_set=prompt_set).items()
        assert index == 0 and 500 < tokens < 550


def test_questions_that_surely_fit_are_not_tokenised():
    counted = []

    def count(messages):
        counted.append(messages)
        return characters(messages)

    assert find(["short"] * 1000 + ["é" * 60], 150, count=count) == {}
    assert len(counted) == 4  # three prompts without a question; 120 bytes might not fit


PIECES = st.sampled_from(
    ["the ", "capital", " 1984", "\n", "\n\n", "<|im_end|>", "<|im_start|>", "é", "東", "🦙", " "]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, max_size=40).map("".join), st.integers(20, 150), st.sampled_from(["", "s"]))
def test_none_is_missed(tokenizer, text, limit, more):
    text += more * 30
    count = lambda messages: len(tokenizer.chat(messages))
    shortest = lengths.shortest_prompts(text, prompt_set=prompts.COMPACT, tools=TOOLS)
    expected = max(map(count, shortest))
    found = find([text], limit, count=count)
    assert found == ({0: expected} if expected > limit else {})
