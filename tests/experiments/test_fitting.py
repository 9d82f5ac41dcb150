"""Questions that cannot fit are refused or dropped at the start, and left alone later."""

import types

import pytest

from experiments.configs import quickstart
from experiments.running import command, fitting, limits
from tests.flow_grpo_jax.test_lengths import TOOLS


class Words:
    def chat(self, messages):
        return " ".join(message["content"] for message in messages).split()


SYSTEM = types.SimpleNamespace(tokenizer=Words(), tools_of=lambda question: TOOLS)


def asked(*words):
    return [
        {"id": f"q{i}", "question": "why " * count, "kind": "qa"} for i, count in enumerate(words)
    ]


def choose(questions, held_out=(), *, too_long="refuse", started=False):
    c = quickstart.get_config()
    c.data.too_long, c.rollout.max_prompt_tokens = too_long, 50
    return fitting.choose(questions, list(held_out), c, SYSTEM, started=started)


def test_all_stay_where_all_fit():
    questions = asked(3, 40)
    assert choose(questions, asked(5)) is questions


@pytest.mark.parametrize(
    ("questions", "held_out", "message"),
    [
        (asked(3, 60, 70), (), "2 of 3 questions of data.train .* of 'q1' has 64 tokens .*=50"),
        (asked(3), asked(80), "1 of 1 questions of data.held_out .* of 'q0' has 84 tokens"),
    ],
)
def test_what_cannot_fit_is_refused_with_a_count_and_the_first(questions, held_out, message):
    with pytest.raises(command.ConfigError, match=f"{message}.* --config.data.too_long=drop"):
        choose(questions, held_out)


def test_training_questions_are_dropped_and_held_out_ones_stay(caplog):
    questions = asked(60, 3, 70)
    assert choose(questions, asked(80), too_long="drop") == [questions[1]]
    assert "2 of 3 questions of data.train" in caplog.text
    assert "1 of 1 questions of data.held_out" in caplog.text
    assert "2 training questions are left out, 1 stay" in caplog.text
    with pytest.raises(command.ConfigError, match="leaves no training question"):
        choose(asked(60), too_long="drop")


def test_a_run_that_began_keeps_its_questions(caplog):
    questions = asked(3, 60)
    assert choose(questions, started=True) is questions
    assert "1 of 2 questions of data.train can never be solved" in caplog.text
    assert choose(questions, started=True, too_long="drop") == questions[:1]  # as at its start


def test_an_unknown_choice_is_named():
    c = quickstart.get_config()
    c.data.too_long = "keep"
    with pytest.raises(command.ConfigError, match="data.too_long='keep' is unknown; valid: refuse"):
        limits.check(c)
