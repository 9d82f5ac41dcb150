"""Counterfactual turns, the rollouts: which turns of which are drawn anew.

A root is a rollout that starts at the question. At some of its turns, its points, the action is
drawn anew: each such branch takes the turns before from its root, and the random addresses of all
that follows, so that it differs by one action and what that brought about.

Dimensions:
  K points of a root
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Branching:
    """How the rollouts of a question branch; its G are roots * (1 + points * siblings).

    Roots are the rollouts 0 .. roots - 1. Those that branch off root r at its point k are
    roots + (r * points + k) * siblings and the next ones.

    points: turns of each root that are drawn anew.
    siblings: how often each of them.
    broadcast: share of the gradient, below 1, that comes from the roots' outcomes as in other
      variants: all turns of a root earn its outcome less the mean of the other roots'.
    seed: decides with the address of a root which turns.
    """

    points: int
    siblings: int
    broadcast: float
    seed: int

    def roots(self, group):
        """Returns how many of `group` rollouts are roots.

        Raises:
          ValueError: the rollouts do not divide, or there is no other root to compare with.
        """
        family, least = 1 + self.points * self.siblings, 2 if self.broadcast else 1
        roots, rest = divmod(group, family)
        if rest:
            raise ValueError(
                f"rollout.group={group} must be a multiple of {family}, such as "
                f"{family * max(roots + 1, least)}: a root and its branches are 1 + "
                f"loss.turns.points * loss.turns.siblings = {family} rollouts."
            )
        if roots < least:
            raise ValueError(
                f"rollout.group={group} holds one root, and loss.turns.broadcast={self.broadcast} "
                f"compares roots: use two or more, such as {family * least} rollouts."
            )
        return roots

    def branches(self, root, group):
        """Returns the rollouts that branch off at each point of a root: K lists."""
        first = self.roots(group) + root * self.points * self.siblings
        numbers = np.arange(first, first + self.points * self.siblings)
        return numbers.reshape(self.points, self.siblings).tolist()

    def turns(self, count, address):
        """Returns the turns, from 1, that are the points of a root of `count` turns.

        address: ints, the root's own. The same ones give the same turns, which depend on nothing
          else: on no action in particular.
        """
        offset = np.random.default_rng((self.seed, *address)).integers(count)
        return spread(self.points, count, offset)


def spread(points, count, offset):
    """Returns `points` turns of 1 .. count, as even as can be.

    Over all offsets 0 .. count - 1 each turn appears `points` times, so on average points / count
    times in one of them.

        points 2, count 3: 1 2, 1 3, 2 3    points 3, count 2: 1 1 2, 1 2 2
    """
    return [int((offset + k * count) // points + 1) for k in range(points)]
