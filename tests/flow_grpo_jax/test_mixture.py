"""Batches mixed by weights: exact shares at every length, exact positions, clear refusals."""

import collections
import itertools
import json
import random
from fractions import Fraction

import pytest

from flow_grpo_jax import data, mixture

SIZES = {"chains/2-hop": 5, "chains/3-hop": 4, "tables": 7, "game24/pairs": 3, "tablesX": 2}
QUESTIONS = [
    {"id": f"{source}-{i}", "source": source} for source, n in SIZES.items() for i in range(n)
]
WEIGHTS = {"tables": 0.1, "chains": 2, "game24": 0.25, "tablesX": 0, "chains/3-hop": 0.3}


def mixed(weights=WEIGHTS, *, questions=QUESTIONS, batch=7, seed=3):
    return mixture.batches(questions, batch=batch, seed=seed, weights=weights)


def ids(batches, count):
    return [[question["id"] for question in batch] for batch in itertools.islice(batches, count)]


def test_every_source_has_its_share_at_every_length():
    names = {"tables": "tables", "chains/2-hop": "chains", "chains/3-hop": "chains/3-hop"}
    names["game24/pairs"] = "game24"
    counts, total = collections.Counter(), Fraction("2.65")
    flat = itertools.chain(*ids(mixed(), 120))
    for n, name in enumerate(flat, 1):
        counts[names[name.rsplit("-", 1)[0]]] += 1
        for source, weight in WEIGHTS.items():
            assert abs(counts[source] - n * Fraction(str(weight)) / total) < 1
    assert n == 840 and counts["chains"] in (633, 634) and not counts["tablesX"]


@pytest.mark.parametrize("seed", range(20))
def test_random_shares_are_never_a_whole_question_off(seed):
    """To serve the source that is furthest behind is off by more with weights such as these."""
    rng = random.Random(seed)
    weights = {str(i): Fraction(rng.choice((1, 2, 7, 50, 999))) for i in range(rng.randint(2, 12))}
    counts, total = dict.fromkeys(weights, 0), sum(weights.values())
    for n in range(1, 200):
        counts[mixture.due(counts, weights)] += 1
        assert all(abs(counts[name] - n * weights[name] / total) < 1 for name in weights)


def test_every_source_goes_through_all_its_questions():
    flat = list(
        itertools.chain(*ids(mixed({"chains": 1, "tables": 1, "game24": 1, "tablesX": 1}), 40))
    )
    for name in ("chains", "tables", "game24", "tablesX"):
        own = [each for each in flat if each.startswith((f"{name}/", f"{name}-"))]
        size = len(set(own))
        assert len(own) == 70 and size == sum(
            n for s, n in SIZES.items() if s.split("/")[0] == name
        )
        for start in range(0, len(own) - size + 1, size):
            assert len(set(own[start : start + size])) == size


def test_a_position_restores_the_identical_continuation():
    whole = ids(mixed(), 9)
    for done in range(6):
        stopped = mixed()
        assert ids(stopped, done) == whole[:done]
        state = json.loads(json.dumps(stopped.get_state()))
        resumed = mixed(dict(reversed(WEIGHTS.items())))  # their order says nothing
        ids(resumed, 2)
        resumed.set_state(state)
        assert resumed.get_state() == state and ids(resumed, 9 - done) == whole[done:]
    assert ids(mixed(seed=4), 9) != whole


def test_a_position_of_another_run_is_refused():
    own, alike = mixed().get_state(), mixed({}).get_state()
    for state, other, message in (
        (own, mixed(batch=8), "batch=7"),
        (own, mixed(WEIGHTS | {"tables": 0.2}), "weights="),
        (own, mixed(seed=4), "seed=3"),
        (own, mixed(questions=QUESTIONS[1:]), "questions="),
        (own, mixed({}), "seed=None|questions=None"),
        (alike, mixed(), "weights=None"),
    ):
        with pytest.raises(ValueError, match=f"saved data position has ({message})"):
            other.set_state(state)


def test_without_weights_all_questions_count_the_same():
    assert ids(mixed({}), 5) == ids(data.QuestionBatches(QUESTIONS, batch=7, seed=3), 5)


@pytest.mark.parametrize(
    "weights, message",
    [
        (
            {"chains": 1},
            "no weight to 3 sources of training questions, first 'tables', of question",
        ),
        (WEIGHTS | {"math": 1}, "gives a weight to math, but no training question has that source"),
        (WEIGHTS | {"chains/2-hop": 1}, "gives a weight to chains, but"),
        (dict.fromkeys(WEIGHTS, 0), "no weight above 0"),
        (WEIGHTS | {"tables": -1}, "data.mixture.tables=-1 must be a number, 0 or more"),
        (WEIGHTS | {"tables": float("nan")}, "tables=nan must be"),
        (WEIGHTS | {"tables": True}, "tables=True must be"),
        (WEIGHTS | {"tables": "2"}, "tables='2' must be"),
    ],
)
def test_weights_that_say_nothing_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        mixed(weights)
    with pytest.raises(ValueError, match="batch=0"):
        mixed(batch=0)
