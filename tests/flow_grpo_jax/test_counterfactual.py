"""Counterfactual turns on a world small enough to enumerate: everything that can be drawn, exactly.

Dimensions:
  Q cases, each a question with all its draws    G rollouts    N turns
"""

import collections
import functools
import itertools
import math

import numpy as np
import pytest

from flow_grpo_jax import batching, branches, counterfactual, credit

# ---- a world of at most three turns ------------------------------------------------------------
# A state is what was done so far. The first action is 0, 1 or 2, the others 0 or 1; action 2 ends
# the episode, and so does 1 after the first turn.

STATES = ((), (0,), (1,), (0, 0), (1, 0))
PROBABILITY = {
    (): (0.5, 0.3, 0.2),
    (0,): (0.65, 0.35),
    (1,): (0.45, 0.55),
    (0, 0): (0.3, 0.7),
    (1, 0): (0.8, 0.2),
}
OUTCOME = {
    (2,): 0.3,
    (0, 1): 1.0,
    (1, 1): -0.6,
    (0, 0): 0.4,  # the end where two turns are the most
    (1, 0): 0.1,
    (0, 0, 0): 0.0,
    (0, 0, 1): 0.9,
    (1, 0, 0): 0.7,
    (1, 0, 1): -1.5,
}


def over(actions, most):
    return len(actions) == most or actions[-1:] == (2,) or (len(actions) > 1 and actions[-1] == 1)


def cells(turn):
    """[(probability, number in it)] of the randomness of a turn: in each cell all states agree."""
    states = [PROBABILITY[state] for state in STATES if len(state) == turn - 1]
    edges = sorted({round(x, 9) for p in states for x in (0, *itertools.accumulate(p))})
    return [(b - a, (a + b) / 2) for a, b in itertools.pairwise(edges)]


def act(state, number):
    return sum(number > x for x in itertools.accumulate(PROBABILITY[state][:-1]))


def run(state, numbers, most):
    """All actions of an episode that goes on from `state`; numbers: of each turn, from 1."""
    while not over(state, most):
        state = (*state, act(state, numbers[len(state)]))
    return state


def score_of(state, action):
    """The gradient of log π(action | state) by the logits of all states: {(state, action): …}."""
    return {(state, b): (b == action) - p for b, p in enumerate(PROBABILITY[state])}


def true_gradient(most):
    """That of the mean outcome, over all sequences of actions."""
    total = collections.Counter()

    def visit(state, probability):
        if over(state, most):
            for t, action in enumerate(state):
                for name, x in score_of(state[:t], action).items():
                    total[name] += probability * OUTCOME[state] * x
            return
        for action, p in enumerate(PROBABILITY[state]):
            visit((*state, action), probability * p)

    visit((), 1.0)
    return total


def families(branching, most):
    """[(probability, root and its branches, turn of each)]: all that one root can bring."""
    found = []
    for drawn in itertools.product(*(cells(turn) for turn in range(1, most + 1))):
        numbers = [number for _, number in drawn]
        root = run((), numbers, most)
        for offset in range(len(root)):
            turns = branches.spread(branching.points, len(root), offset)
            turns = [turn for turn in turns for _ in range(branching.siblings)]
            for anew in itertools.product(*(cells(turn) for turn in turns)):
                members = [root]
                for turn, (_, number) in zip(turns, anew, strict=True):
                    own = [*numbers[: turn - 1], number, *numbers[turn:]]
                    members.append(run(root[: turn - 1], own, most))
                chance = math.prod(p for p, _ in (*drawn, *anew)) / len(root)
                found.append((chance, members, [0, *turns]))
    assert sum(chance for chance, *_ in found) == pytest.approx(1, abs=1e-12)
    return found


def mean_estimate(branching, most, *, roots=1, lost=(), change=lambda share, turns: share):
    """The expectation of Σ share * advantage * ∇ log π.

    lost: rollouts that infrastructure breaks. change: of the shares, to see it go wrong.
    """
    cases = list(itertools.product(families(branching, most), repeat=roots))
    probability_Q = np.array([math.prod(chance for chance, *_ in case) for case in cases])
    # Roots first, then their branches, as `branches.Branching` numbers them.
    rollouts_QG = [[f[1][0] for f in case] + sum((f[1][1:] for f in case), []) for case in cases]
    branch_QG = [[0] * roots + sum((f[2][1:] for f in case), []) for case in cases]
    turns_QG = np.array([[len(actions) for actions in case] for case in rollouts_QG])
    valid_QG = np.ones(turns_QG.shape, bool)
    valid_QG[:, list(lost)] = False
    found = counterfactual.of_turns(
        [[OUTCOME[actions] for actions in case] for case in rollouts_QG],
        valid_QG,
        turns_QG,
        branch_QG,
        branching=branching,
    )
    total = collections.Counter()
    for q, g, n in zip(*np.nonzero(found.share_QGN), strict=True):
        share = change(found.share_QGN[q, g, n] * len(cases), turns_QG[q, 0])
        actions = rollouts_QG[q][g]
        for name, x in score_of(actions[:n], actions[n]).items():
            total[name] += probability_Q[q] * share * found.adv_QGN[q, g, n] * x
    return total


def furthest(a, b):
    return max(abs(a[name] - b[name]) for name in a.keys() | b.keys())


def branching(points, siblings, broadcast=0.0):
    return branches.Branching(points, siblings, broadcast, seed=0)


# ---- unbiased ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "points", "siblings", "lost"),
    [
        (3, 1, 1, [()]),
        (3, 1, 2, [()]),
        (3, 2, 1, [()]),
        (2, 3, 1, [()]),  # more points than there are turns
        (3, 1, 2, [(2,)]),  # a branch is broken
        (3, 1, 2, [(0,)]),  # the root's outcome is unknown
        (2, 3, 1, [(1,), (2,), (3,)]),  # a point is lost, whichever
    ],
)
def test_the_mean_estimate_is_the_gradient_of_the_mean_outcome(most, points, siblings, lost):
    """Also where infrastructure fails, which it does whatever the actions are."""
    total = collections.Counter()
    for each in lost:
        for name, x in mean_estimate(branching(points, siblings), most, lost=each).items():
            total[name] += x / len(lost)
    assert furthest(total, true_gradient(most)) < 1e-13


def test_two_roots_and_a_share_of_their_outcomes_change_nothing():
    found = mean_estimate(branching(1, 1, 0.25), 2, roots=2)
    assert furthest(found, true_gradient(2)) < 1e-13


def test_points_that_all_count_alike_would_be_wrong():
    """Long roots have more turns: each is a point less often."""
    found = mean_estimate(branching(1, 1), 3, change=lambda share, turns: 2 * share / turns)
    assert furthest(found, true_gradient(3)) > 0.02


def test_a_siblings_outcome_is_a_baseline_for_the_action_but_not_for_what_follows():
    """What follows draws with the randomness that the sibling drew with too."""
    means = [collections.Counter(), collections.Counter()]
    for chance, (root, sibling), (_, turn) in families(branching(1, 1), 3):
        for later, mean in enumerate(means):
            if turn == 1 and len(root) > later:
                for name, x in score_of(root[:later], root[later]).items():
                    mean[name] += chance * len(root) * OUTCOME[sibling] * x
    action, what_follows = (max(map(abs, mean.values())) for mean in means)
    assert action < 1e-13 and what_follows > 0.01


# ---- by hand -----------------------------------------------------------------------------------

# Two roots of 2 and 3 turns; rollouts 2 and 3 branch off the first at turn 2, 4 and 5 off the
# second at turn 1.
HAND = dict(turns_QG=[[2, 3, 2, 3, 1, 2]], branch_QG=[[0, 0, 2, 2, 1, 1]])
REWARDS_G = [1.0, 0.0, 0.0, 1.0, 1.0, 0.5]


def by_hand(rewards_G=REWARDS_G, lost=(), broadcast=0.0, **changes):
    valid_QG = np.ones((1, 6), bool)
    valid_QG[0, list(lost)] = False
    settings = HAND | changes
    return counterfactual.of_turns(
        [rewards_G], valid_QG, **settings, branching=branching(1, 2, broadcast)
    )


def listed(found):
    """{(rollout, turn): (share, advantage)} of one question."""
    return {
        (int(g), int(n) + 1): (
            pytest.approx(found.share_QGN[0, g, n]),
            pytest.approx(found.adv_QGN[0, g, n]),
        )
        for g, n in zip(*np.nonzero(found.share_QGN[0]), strict=True)
    }


def test_shares_and_advantages_by_hand():
    first = {(g, 2): (2 / 6, adv) for g, adv in ((0, 0.5), (2, -1.0), (3, 0.5))}
    second = {(g, 1): (3 / 6, adv) for g, adv in ((1, -0.75), (4, 0.75), (5, 0.0))}
    found = by_hand()
    assert listed(found) == first | second
    assert found.range_P.tolist() == [1.0, 1.0]
    assert found.shown(0, 3) == [None, 0.5, None]

    # A lost branch is in no mean; a point that has one action left is none, and its root neither.
    two = {(g, 2): (2 / 4, adv) for g, adv in ((0, 1.0), (2, -1.0))}
    assert listed(by_hand(lost=[3])) == two | second
    alone = {place: (2 * share, adv) for place, (share, adv) in second.items()}
    assert listed(by_hand(lost=[2, 3])) == alone
    assert listed(by_hand(lost=[0, 1, 2, 3, 4])) == {}
    assert by_hand(lost=range(6)).range_P.size == 0


def test_a_root_without_a_turn_counts_with_nothing_to_train():
    found = by_hand(turns_QG=[[0, 3, 0, 0, 1, 2]], branch_QG=[[0, 0, 0, 0, 1, 1]])
    second = {(g, 1): (3 / 6, adv) for g, adv in ((1, -0.75), (4, 0.75), (5, 0.0))}
    assert listed(found) == second


def test_a_share_of_the_roots_outcomes_goes_to_all_their_turns():
    found = listed(by_hand(broadcast=0.5))
    assert found[0, 1] == (0.25, 1.0) and found[1, 2] == found[1, 3] == (0.25, -1.0)
    assert found[0, 2] == (1 / 6 + 1 / 4, (0.5 / 6 + 1 / 4) / (1 / 6 + 1 / 4))
    assert found[3, 2] == (1 / 6, 0.5)
    # Without a second root all of the gradient is measured; without any point none of it.
    assert listed(by_hand(broadcast=0.5, lost=[1])) == {
        (0, 2): (1 / 6 * 2, 0.5),
        (2, 2): (1 / 6 * 2, -1.0),
        (3, 2): (1 / 6 * 2, 0.5),
        (4, 1): (3 / 4, 0.5),
        (5, 1): (3 / 4, -0.5),
    }
    only = listed(by_hand(broadcast=0.5, lost=[2, 3, 4, 5]))
    assert only == {(g, n): (0.5, adv) for g, adv in ((0, 1.0), (1, -1.0)) for n in range(1, 3 + g)}


def test_equal_outcomes_give_exactly_zero():
    found = by_hand([0.1] * 6, broadcast=0.5)
    assert not found.adv_QGN.any() and found.share_QGN.any() and not found.range_P.any()


def test_questions_weigh_the_same_whatever_infrastructure_broke():
    valid_QG = np.ones((3, 6), bool)
    valid_QG[1, 2:4], valid_QG[2] = False, False
    columns = {name: values * 3 for name, values in HAND.items()}
    found = counterfactual.of_turns([REWARDS_G] * 3, valid_QG, **columns, branching=branching(1, 2))
    # Each root gives its turns: 2 and 3, or 3 alone.
    assert found.share_QGN.sum((1, 2)) == pytest.approx([2.5 / 2, 3 / 2, 0])


def test_rewards_are_checked():
    with pytest.raises(ValueError, match="reward of question 0, rollout 1 is nan"):
        by_hand([1.0, np.nan] + [0.0] * 4)


# ---- from turns to rows ------------------------------------------------------------------------


def test_a_token_weighs_its_turns_share_by_the_constant_length():
    found = by_hand()
    places = [
        (g, turn) for g, turns in enumerate(HAND["turns_QG"][0]) for turn in range(1, 1 + turns)
    ]
    kept, own = found.of([g for g, _ in places], [turn for _, turn in places])
    assert [places[s] for s in kept] == sorted(listed(found))
    samples = [
        batching.TurnSample((7,), (g, turn), (-1.0, -1.0), g, 0) for g, turn in listed(found)
    ]
    ((batch,),) = batching.build(
        samples,
        adv_QG=None,
        own=own,
        valid_QG=np.ones((1, 6), bool),
        weigh=credit.weigh_constant_length,
        layout="tree",
        row_lengths=(32,),
        rows=(1,),
        response_lengths=(16,),
        split=functools.partial(batching.by_questions, mini_batches=1),
        constant_length=10,
    )
    (row,) = np.nonzero(batch.mask_BA[0])
    tokens = batch.target_BA[0, row].reshape(-1, 2).tolist()
    for entry, (g, turn) in zip(row.reshape(-1, 2), tokens, strict=True):
        share, adv = listed(found)[g, turn]
        assert batch.weight_BA[0, entry].tolist() == [pytest.approx(share.expected / 10)] * 2
        assert batch.adv_BA[0, entry].tolist() == [pytest.approx(adv.expected)] * 2


# ---- which turns -------------------------------------------------------------------------------


@pytest.mark.parametrize(("points", "count"), [*itertools.product(range(1, 6), repeat=2)])
def test_every_turn_is_a_point_equally_often(points, count):
    found = [branches.spread(points, count, offset) for offset in range(count)]
    assert collections.Counter(sum(found, [])) == dict.fromkeys(range(1, count + 1), points)
    for turns in found:  # as even as can be: no turn twice more often than another
        times = [turns.count(turn) for turn in range(1, count + 1)]
        assert len(turns) == points and max(times) - min(times) <= 1


def test_turns_depend_on_the_seed_and_the_roots_address_alone():
    draw = lambda seed, *address: branches.Branching(1, 1, 0.0, seed=seed).turns(1000, address)
    assert draw(3, 1, 2, 0) == draw(3, 1, 2, 0)
    different = {
        *map(tuple, (draw(3, 1, 2, 0), draw(4, 1, 2, 0), draw(3, 2, 2, 0), draw(3, 1, 2, 1)))
    }
    assert len(different) == 4


def test_rollouts_are_roots_and_then_the_branches_of_each_point():
    plan = branching(2, 3)
    assert plan.roots(14) == 2
    assert plan.branches(0, 14) == [[2, 3, 4], [5, 6, 7]]
    assert plan.branches(1, 14) == [[8, 9, 10], [11, 12, 13]]


@pytest.mark.parametrize(
    ("group", "broadcast", "such_as"), [(8, 0.0, 14), (6, 0.0, 7), (7, 0.5, 14), (20, 0.5, 21)]
)
def test_a_group_that_does_not_divide_is_refused(group, broadcast, such_as):
    with pytest.raises(ValueError, match=f"rollout.group={group} .* such as {such_as}"):
        branching(2, 3, broadcast).roots(group)
