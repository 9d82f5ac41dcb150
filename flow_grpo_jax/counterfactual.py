"""Counterfactual turns, the credit: what a turn earns by itself (`branches` draws them).

The advantage of an action at a point is its outcome less the mean outcome of its siblings, the
other actions there. In expectation Σ share * advantage * ∇ log π is the gradient of the mean
outcome; docs/algorithm.md has the derivation. It needs three things. Siblings, and the randomness
that they have in common with an action, are independent of it, so their mean is a baseline. A turn
of a root of T turns is a point K/T times on average, so a point counts T/K. And what is drawn after
a point is not trained: its siblings draw with the same randomness, so they are no baseline for it.

Dimensions:
  Q questions    G rollouts of a question    N turns of a trajectory    S samples (turns)
  P points of a rollout batch    K points of a root
"""

import dataclasses

import numpy as np

from flow_grpo_jax import credit


@dataclasses.dataclass(frozen=True)
class Credit:
    """What turns earn by themselves, and what they count.

    adv_QGN:   float64, advantage of each turn; 0 where share_QGN is.
    share_QGN: float64, 1 / n of `credit.Own`; 0 on turns that are not trained on.
    range_P:   float64, highest less lowest outcome of each point; one that lost all but one of its
      actions to infrastructure is not among them.
    """

    adv_QGN: np.ndarray
    share_QGN: np.ndarray
    range_P: np.ndarray

    def shown(self, q, g):
        """Returns the advantages of a trajectory's turns, None for those not trained on."""
        pairs = zip(self.adv_QGN[q, g].tolist(), self.share_QGN[q, g], strict=True)
        return [adv if share else None for adv, share in pairs]

    def of(self, trajectory_S, turn_S):
        """Returns (indices of the samples that are trained on, `credit.Own` of these).

        Args:
          trajectory_S: question * G + rollout of each sample.
          turn_S: its turn, from 1.
        """
        q_S, g_S = np.divmod(trajectory_S, self.share_QGN.shape[1])
        at = q_S, g_S, np.asarray(turn_S) - 1
        (kept,) = np.nonzero(self.share_QGN[at])
        return kept, credit.Own(self.adv_QGN[at][kept], 1.0 / self.share_QGN[at][kept])


def of_turns(rewards_QG, valid_QG, turns_QG, branch_QG, *, branching):
    """Returns the Credit of all turns of a rollout batch.

    A point is left out if fewer than two of its actions have a valid outcome, and the root's other
    points count more instead. So it goes on: the rest makes up for a root without any point left,
    for a part of the gradient without any root, for a question without either.

    Args:
      rewards_QG: outcomes, any finite unit; ignored where invalid.
      valid_QG: bool, False where infrastructure failed and the trajectory must not count.
      turns_QG: int, turns of each trajectory, those before a branch included.
      branch_QG: int, the turn from 1 that a branch draws anew; 0 for roots, and where a root had no
        turn to draw anew.
    """
    rewards_QG, valid_QG = credit.checked(rewards_QG, valid_QG)
    turns_QG, branch_QG = np.asarray(turns_QG), np.asarray(branch_QG)
    shape = (*rewards_QG.shape, max(turns_QG.max(), 1))
    gain_QGN, share_QGN, counted, ranges = np.zeros(shape), np.zeros(shape), 0, []
    for q, columns in enumerate(zip(rewards_QG, valid_QG, turns_QG, strict=True)):
        points_of = _points(*columns[1:], branch_QG[q], branching)
        ranges += [np.ptp(rewards_QG[q, at]) for points in points_of.values() for _, at in points]
        parts = [
            (1.0 - branching.broadcast, _measured(*columns, points_of)),
            (branching.broadcast, _broadcast(*columns, branching)),
        ]
        parts = [(weight, terms) for weight, terms in parts if weight and terms is not None]
        whole = sum(weight for weight, _ in parts)
        counted += bool(parts)
        for weight, terms in parts:
            for share, rollouts, turn, adv in terms:
                share_QGN[q, rollouts, turn - 1] += share * weight / whole
                gain_QGN[q, rollouts, turn - 1] += share * weight / whole * adv
    share_QGN /= max(counted, 1)
    gain_QGN /= max(counted, 1)
    adv_QGN = np.divide(gain_QGN, share_QGN, out=np.zeros(shape), where=share_QGN > 0)
    return Credit(adv_QGN, share_QGN, np.array(ranges))


def _points(valid_G, turns_G, branch_G, branching):
    """Returns {root: [(turn, rollouts with a valid outcome)]}: roots that count, and their points.

    A valid root without a turn counts too: no action of the policy led to its outcome.
    """
    points_of = {}
    for root in range(branching.roots(len(valid_G))):
        points = []
        for branches in branching.branches(root, len(valid_G)):
            members = [g for g in (root, *branches) if valid_G[g]]
            if branch_G[branches[0]] and len(members) > 1:
                points.append((branch_G[branches[0]], members))
        if points or (valid_G[root] and not turns_G[root]):
            points_of[root] = points
    return points_of


def _measured(rewards_G, valid_G, turns_G, points_of):
    """Returns [(share, rollouts, turn, their advantages)], None without a root that counts."""
    if not points_of:
        return None
    return [
        (
            turns_G[root] / (len(points_of) * len(points) * len(members)),
            members,
            turn,
            less_the_others(rewards_G[members]),
        )
        for root, points in points_of.items()
        for turn, members in points
    ]


def _broadcast(rewards_G, valid_G, turns_G, branching):
    """Returns what `_measured` does, for all turns of all roots; None without two valid roots."""
    roots = np.flatnonzero(valid_G[: branching.roots(len(valid_G))])
    if len(roots) < 2:
        return None
    adv_G = less_the_others(rewards_G[roots])
    return [
        (1.0 / len(roots), root, turn, adv)
        for root, adv in zip(roots, adv_G, strict=True)
        for turn in range(1, turns_G[root] + 1)
    ]


def less_the_others(rewards):
    """Returns each reward less the mean of the others; exactly 0 if all are equal."""
    if np.ptp(rewards) == 0:
        return np.zeros(len(rewards))
    return (len(rewards) * rewards - rewards.sum()) / (len(rewards) - 1)
