"""Statistics against published values, SciPy and enumeration."""

import itertools

import numpy as np
import pytest
import scipy.stats

from flow_grpo_jax import statistics

SCORES_QK = [[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1]]


def test_wilson_interval_matches_published_values():
    low, high = statistics.wilson_interval(81, 263)  # Newcombe 1998, table I, method 3
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert statistics.wilson_interval(0, 20)[0] == pytest.approx(0.0, abs=1e-12)
    expected = scipy.stats.binomtest(7, 30).proportion_ci(method="wilson")
    assert statistics.wilson_interval(7, 30) == pytest.approx(tuple(expected), abs=1e-4)


def test_errors_are_clustered_by_question():
    found = statistics.average(SCORES_QK)
    means = [0.5, 0.0, 1.0, 0.25, 0.25]
    assert found.value == pytest.approx(0.4)
    assert found.error == pytest.approx(scipy.stats.sem(means))
    assert (found.low, found.high) == pytest.approx(
        (0.4 - 1.96 * found.error, 0.4 + 1.96 * found.error)
    )
    # Twice the same trials say nothing new: an error over all trials would shrink.
    assert statistics.average(np.tile(SCORES_QK, 2)).error == pytest.approx(found.error)


@pytest.mark.parametrize(
    "scores_QK, value, low, high",
    [
        ([[1], [0], [0], [1], [0]], 0.4, *statistics.wilson_interval(2, 5)),
        ([[0.0] * 4] * 5, 0.0, *statistics.wilson_interval(0, 5)),  # no spread: as five trials
        ([[0, 1]] * 5, 0.5, *statistics.wilson_interval(2.5, 5)),
        ([[1, 1]], 1.0, *statistics.wilson_interval(1, 1)),
        ([[0.2], [0.6], [0.7]], 0.5, 0.5 - 1.96 * 0.152753, 0.5 + 1.96 * 0.152753),  # F1
    ],
)
def test_intervals_of_the_edges(scores_QK, value, low, high):
    found = statistics.average(scores_QK)
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high), abs=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pass_at_k_is_the_mean_over_all_choices_of_k_trials(k):
    by_hand = [
        np.mean([any(trial == 1 for trial in chosen) for chosen in itertools.combinations(row, k)])
        for row in SCORES_QK
    ]
    found = statistics.pass_at(SCORES_QK, k)
    assert found.value == pytest.approx(np.mean(by_hand))
    assert found.error == pytest.approx(scipy.stats.sem(by_hand))


def test_pass_at_k_wants_k_trials_and_whole_marks():
    with pytest.raises(ValueError, match="pass@5 needs at least 5 trials; there are 4"):
        statistics.pass_at(SCORES_QK, 5)
    assert statistics.pass_at([[0.9, 0.8]], 2).value == 0.0  # nearly right is not solved


def test_a_difference_is_paired():
    first_QK, second_QK = [[0, 1], [1, 1], [0, 0], [1, 0]], [[1, 1], [1, 1], [0, 1], [0, 0]]
    gains = [0.5, 0.0, 0.5, -0.5]
    found = statistics.difference(first_QK, second_QK)
    assert found.mean == pytest.approx(0.125)
    assert found.error == pytest.approx(scipy.stats.sem(gains))
    assert found.low == pytest.approx(0.125 - 1.96 * found.error)
    assert (found.better, found.worse, found.questions) == (2, 1, 4)
    # Hard and easy questions alike gain 0.5: no spread, however far apart they lie.
    alike = statistics.difference([[0, 0], [0.5, 0.5]], [[0, 1], [1, 1]])
    assert (alike.mean, alike.error) == (0.5, 0)
    none = statistics.difference([[1]] * 20 + [[0]] * 10, [[1]] * 20 + [[0]] * 10)
    bound = scipy.stats.binomtest(0, 30).proportion_ci(method="wilson").high
    assert (none.low, none.high) == pytest.approx((-bound, bound), abs=1e-4)
    with pytest.raises(ValueError, match="4 and 3 questions"):
        statistics.difference(first_QK, second_QK[:3])


def test_the_mean_of_sets_gives_each_the_same_weight():
    small, large = statistics.average([[1], [0]]), statistics.average([[0]] * 99 + [[1]])
    found = statistics.mean_of([small, large])
    assert found.value == pytest.approx((0.5 + 0.01) / 2)
    assert found.error == pytest.approx(np.hypot(0.5, 0.01) / 2)
    assert found.questions == 102
    assert statistics.mean_of([small, statistics.average([[1]])]).error is None
    below, above = (0.5 - small.low, 0.01 - large.low), (small.high - 0.5, large.high - 0.01)
    assert found.low == pytest.approx(found.value - np.hypot(*below) / 2)
    assert found.high == pytest.approx(found.value + np.hypot(*above) / 2)


def test_agreement_is_over_known_verdicts():
    assert statistics.agreement([1, 0, 1, 0.5], [1, 1, None, 0]) == pytest.approx(2 / 3)
    assert statistics.agreement([1], [None]) is None


def test_the_interval_over_runs_is_students():
    assert statistics.of_runs([0.5]) == (0.5, None)
    assert statistics.of_runs([3.0, 1.0, 2.0]) == (2.0, pytest.approx(4.302653 / 3**0.5))
