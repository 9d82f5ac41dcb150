"""Which trajectories and turns are trained on."""

import dataclasses

import numpy as np
import pytest

from agents.trajectory import Branch, Status, Stop, Trajectory, Turn
from flow_grpo_jax import batching, branches, loss, samples
from flow_grpo_jax.rewards import Reward

KNOWN = Reward(1.0, "qa/exact_match")
UNKNOWN = Reward(0.0, "judge/no_verdict", known=False)


def turn(index, prompt, response, **changes):
    values = dict(
        index=index,
        prompt_tokens=prompt,
        response_tokens=response,
        logprobs=tuple(-float(token) for token in response),
        finished=True,
        planner_text="",
        context="",
        sub_goal="",
        tool="",
        command="",
        result="",
        tool_error=False,
        verdict="CONTINUE",
        parse_failures=0,
        shortened=0,
        seconds=0.0,
    )
    return Turn(**values | changes)


def trajectory(*turns, status=Status.OK, error=""):
    return Trajectory("q", 0, "", turns, "", status, Stop.BUDGET, 0.0, error)


FINE = trajectory()
BROKEN = trajectory(status=Status.INFRA_ERROR, error="the search server is gone")


@pytest.mark.parametrize(
    ("status", "counts"),
    [
        (Status.OK, True),
        (Status.TRUNCATED, True),  # the model's own doing
        (Status.TIMEOUT, False),
        (Status.INFRA_ERROR, False),
    ],
)
def test_only_what_the_model_did_counts(status, counts):
    found = samples.usable([[trajectory(status=status), FINE]], [[KNOWN] * 2], least=0.5)
    assert found.tolist() == [[counts, True]]
    assert trajectory(status=status).broken is not counts


def test_a_reward_that_nobody_knows_does_not_count():
    found = samples.usable([[FINE, FINE], [FINE, BROKEN]], [[KNOWN, UNKNOWN], [KNOWN] * 2], least=0)
    assert found.tolist() == [[True, False], [True, False]] and found.dtype == bool


def test_a_run_with_too_few_usable_trajectories_stops_with_the_causes():
    with pytest.raises(RuntimeError, match="Only 25% .*: the search server is gone .3 of 4."):
        samples.usable([[FINE, BROKEN], [BROKEN, BROKEN]], [[KNOWN] * 2] * 2, least=0.5)
    with pytest.raises(RuntimeError, match="judge/no_verdict"):
        samples.usable([[FINE, FINE]], [[UNKNOWN] * 2], least=0.5)
    samples.usable([[FINE, BROKEN]], [[KNOWN] * 2], least=0.5)  # exactly the least


TOO_LONG = trajectory(status=Status.TRUNCATED, error="The prompt has 300 tokens")
SOLVED = trajectory(turn(1, (5,), (9,)))
LATE = trajectory(turn(1, (5,), (9,)), status=Status.TIMEOUT, error="600 s are over")


@pytest.mark.parametrize(
    ("trajectories_G", "scores_G", "cause"),
    [
        ([SOLVED, BROKEN, LATE], [KNOWN] * 3, ""),
        ([TOO_LONG, TOO_LONG], [KNOWN] * 2, "a prompt over rollout.max_prompt_tokens (2 of 2)"),
        (
            [LATE, TOO_LONG, LATE],
            [KNOWN] * 3,
            "600 s are over (2 of 3); a prompt over rollout.max_prompt_tokens (1 of 3)",
        ),
        ([BROKEN], [UNKNOWN], "the search server is gone (1 of 1)"),
        ([SOLVED], [UNKNOWN], "judge/no_verdict (1 of 1)"),
        ([FINE], [KNOWN], "no planner turn (1 of 1)"),
    ],
)
def test_a_batch_without_a_turn_to_train_on_says_why(trajectories_G, scores_G, cause):
    assert samples.why_none([trajectories_G], [scores_G]) == cause
    halves = [trajectories_G[:1], trajectories_G[1:]], [scores_G[:1], scores_G[1:]]
    assert samples.why_none(*halves) == cause


def test_samples_are_the_turns_in_order_with_the_tokens_that_the_engine_saw():
    trajectories_QG = [
        [trajectory(turn(1, (5, 6), (1, 9)), turn(2, (5, 6, 7), (9,))), trajectory()],
        [trajectory(), trajectory(turn(1, (8,), (2, 3, 9), finished=False))],
    ]
    found = samples.of_turns(trajectories_QG)
    expected = [
        # prompt, response, log-probs, trajectory = question * G + rollout, question
        ((5, 6), (1, 9), (-1.0, -9.0), 0, 0),
        ((5, 6, 7), (9,), (-9.0,), 0, 0),
        ((8,), (2, 3, 9), (-2.0, -3.0, -9.0), 3, 1),
    ]
    assert found == [batching.TurnSample(*values) for values in expected]
    counts_QG = batching.turn_counts(found, questions=2, rollouts=2)
    assert counts_QG.tolist() == [[2, 0], [0, 1]]
    assert np.array_equal(counts_QG, [[len(t.turns) for t in group] for group in trajectories_QG])


def branched(*, broken=False):
    """One root of two turns, and a branch that draws the second one anew."""
    first, second = turn(1, (5,), (1, 9)), turn(2, (5, 6), (2, 9))
    anew = turn(2, (5, 6), (3, 9))
    root = trajectory(first, second)
    status = Status.INFRA_ERROR if broken else Status.OK
    branch = dataclasses.replace(trajectory(first, anew, status=status), branch=Branch(0, 2))
    return [[root, branch]]


def test_what_a_variant_trains_on_and_what_it_earns():
    rewards_QG, valid_QG = np.array([[1.0, 0.0]]), np.ones((1, 2), bool)
    pair = [[trajectory(turn(1, (5,), (9,))), trajectory(turn(1, (5,), (8,)))]]
    how = dict(variant=loss.VARIANTS["flow"], branching=None)
    found = samples.earned(pair, rewards_QG, valid_QG, **how)
    assert found.trained == found.drawn == samples.of_turns(pair)
    assert found.adv_QG == pytest.approx(np.array([[0.5, -0.5]]) * 2**0.5, abs=1e-5)
    assert found.own is found.turns is None and found.missing == ""

    how = dict(
        variant=loss.VARIANTS["turns"],
        branching=branches.Branching(points=1, siblings=1, broadcast=0.0, seed=0),
    )
    found = samples.earned(branched(), rewards_QG, valid_QG, **how)
    assert [s.response_tokens for s in found.drawn] == [(1, 9), (2, 9), (3, 9)]
    assert [(s.response_tokens, s.trajectory) for s in found.trained] == [((2, 9), 0), ((3, 9), 1)]
    assert found.own.adv_S.tolist() == [1.0, -1.0] and found.own.among_S.tolist() == [1.0, 1.0]
    assert found.turns.shown(0, 1) == [None, -1.0]

    found = samples.earned(branched(broken=True), rewards_QG, np.array([[True, False]]), **how)
    assert found.trained == [] and found.missing == "no turn has two actions with a valid outcome"
