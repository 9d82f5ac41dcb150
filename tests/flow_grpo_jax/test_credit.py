"""Advantages against the numbers of the algorithm's description and against plain loops."""

import numpy as np
import pytest

from flow_grpo_jax import credit


def call(name, rewards_QG, valid_QG=None, turns_QG=None):
    rewards_QG = np.array(rewards_QG, float)
    valid_QG = np.ones(rewards_QG.shape, bool) if valid_QG is None else np.array(valid_QG, bool)
    turns_QG = np.ones(rewards_QG.shape, int) if turns_QG is None else np.array(turns_QG)
    return getattr(credit, name)(rewards_QG, valid_QG, turns_QG)


@pytest.mark.parametrize(
    "name, rewards_G, turns_G, expected_G",
    [
        ("flow", [1, 0], [1, 3], [0.7071, -0.7071]),
        ("original", [1, 0], [1, 3], [1.5, -0.5]),
        ("flow", [1] * 4 + [0] * 4, [1] * 4 + [3] * 4, [0.9354] * 4 + [-0.9354] * 4),
        ("original", [1] * 4 + [0] * 4, [1] * 4 + [3] * 4, [1.6771] * 4 + [-0.5590] * 4),
        ("dr_grpo", [1, 0, 0, 0], [1, 2, 3, 1], [0.75, -0.25, -0.25, -0.25]),
    ],
)
def test_literal_numbers(name, rewards_G, turns_G, expected_G):
    adv_QG = call(name, [rewards_G], turns_QG=[turns_G])
    np.testing.assert_allclose(adv_QG[0], expected_G, atol=1e-4)


@pytest.mark.parametrize("name", ["flow", "dr_grpo", "original"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3])
def test_equal_rewards_give_exactly_zero(name, reward):
    assert not call(name, [[reward] * 7], turns_QG=[[1, 2, 3, 1, 2, 3, 1]]).any()


@pytest.mark.parametrize("name", ["flow", "dr_grpo", "original"])
def test_invalid_members_count_nowhere(name):
    full = call(name, [[1, 0, 0]], turns_QG=[[1, 3, 2]])
    rewards = [[1, np.nan, 0, 5, 0]]  # what stands at an invalid member does not matter
    valid = [[1, 0, 1, 0, 1]]
    masked = call(name, rewards, valid, [[1, 4, 3, 9, 2]])
    np.testing.assert_allclose(masked[0, [0, 2, 4]], full[0])
    assert not masked[0, [1, 3]].any()


@pytest.mark.parametrize("name", ["flow", "dr_grpo", "original"])
def test_fewer_than_two_valid_members_give_zero(name):
    assert not call(name, [[1, 0], [1, 0]], [[1, 0], [0, 0]], [[3, 1], [1, 1]]).any()


def test_groups_do_not_see_each_other():
    both = call("flow", [[1, 0, 0], [0, 9, 3]])
    np.testing.assert_array_equal(both[:1], call("flow", [[1, 0, 0]]))
    np.testing.assert_array_equal(both[1:], call("flow", [[0, 9, 3]]))


def test_flow_counts_a_trajectory_once_whatever_its_turns():
    short = call("flow", [[1, 0, 0.5]], turns_QG=[[1, 1, 1]])
    np.testing.assert_array_equal(short, call("flow", [[1, 0, 0.5]], turns_QG=[[1, 9, 4]]))


def test_original_equals_a_loop_over_turn_rows():
    rewards_G, turns_G = [1.0, 0.0, 0.25], [2, 3, 1]
    rows = [r for r, n in zip(rewards_G, turns_G, strict=True) for _ in range(n)]
    mean = sum(rows) / len(rows)
    std = (sum((r - mean) ** 2 for r in rows) / (len(rows) - 1)) ** 0.5
    expected = [(r - mean) / (std + 1e-6) for r in rewards_G]
    np.testing.assert_allclose(call("original", [rewards_G], turns_QG=[turns_G])[0], expected)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"rewards_QG \(2,\)"):
        credit.flow(np.zeros(2), np.ones(2, bool))
    with pytest.raises(ValueError, match="question 0, rollout 1 is nan"):
        call("flow", [[1, np.nan]])
