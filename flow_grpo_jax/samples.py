"""Which trajectories and turns of a rollout are trained on.

Dimensions:
  Q questions    G rollouts of a question    S samples (turns)
"""

import collections
import dataclasses

import numpy as np

from flow_grpo_jax import batching, counterfactual, credit


@dataclasses.dataclass(frozen=True)
class Earned:
    """What the turns of a rollout batch earn.

    drawn: TurnSample of each turn that was drawn.
    trained: those to train on; all of them, unless turns have their own credit.
    adv_QG: advantages, one a trajectory; None where turns have their own.
    own: of `batching.build`, for `trained`.
    turns: `counterfactual.Credit`; None where trajectories have the advantages.
    """

    drawn: list
    trained: list
    adv_QG: np.ndarray | None
    own: credit.Own | None = None
    turns: counterfactual.Credit | None = None

    @property
    def missing(self):
        """Why usable trajectories leave nothing to train on; "" if there is something."""
        return "" if self.trained else "no turn has two actions with a valid outcome"


def usable(trajectories_QG, scores_QG, *, least):
    """Returns bool [Q, G]: neither infrastructure nor a deadline ended it; its reward is known.

    Raises:
      RuntimeError: the share of usable trajectories is below `least`; training on noise must stop.
    """
    finished_QG = [[not t.broken for t in group] for group in trajectories_QG]
    known_QG = [[score.known for score in group] for group in scores_QG]
    valid_QG = np.array(finished_QG) & np.array(known_QG)
    if valid_QG.mean() < least:
        causes = [_unusable(*pair) for pair in _pairs(trajectories_QG, scores_QG)]
        raise RuntimeError(
            f"Only {valid_QG.mean():.0%} of the trajectories are usable, fewer than "
            f"rollout.min_valid_share={least:.0%}. Causes: {_most_frequent(causes)}."
        )
    return valid_QG


def why_none(trajectories_QG, scores_QG):
    """Returns why no usable trajectory has a planner turn, "" if one has."""
    causes = []
    for trajectory, score in _pairs(trajectories_QG, scores_QG):
        cause = _unusable(trajectory, score)
        if trajectory.turns and not cause:
            return ""
        too_long = "a prompt over rollout.max_prompt_tokens" if trajectory.too_long else ""
        causes.append(cause or too_long or "no planner turn")
    return _most_frequent(causes)


def _pairs(trajectories_QG, scores_QG):
    return zip(sum(trajectories_QG, []), sum(scores_QG, []), strict=True)


def _unusable(trajectory, score):
    """Returns why a trajectory is not usable, "" if it is."""
    if trajectory.broken:
        return trajectory.error or str(trajectory.status)
    return "" if score.known else score.source


def _most_frequent(causes):
    counted = collections.Counter(filter(None, causes)).most_common(3)
    return "; ".join(f"{cause} ({count} of {len(causes)})" for cause, count in counted)


def earned(trajectories_QG, rewards_QG, valid_QG, *, variant, branching):
    """Returns the Earned of a rollout batch.

    Args:
      rewards_QG, valid_QG: of `credit.flow`.
      variant: of `loss.VARIANTS`.
      branching: of `rollout.collect`; None if `variant` has advantages of trajectories.
    """
    drawn = of_turns(trajectories_QG)
    if branching is None:
        shape = dict(zip(("questions", "rollouts"), valid_QG.shape, strict=True))
        turns_QG = batching.turn_counts(drawn, **shape)
        return Earned(drawn, drawn, variant.advantages(rewards_QG, valid_QG, turns_QG))
    turns = counterfactual.of_turns(
        rewards_QG,
        valid_QG,
        [[len(t.turns) for t in group] for group in trajectories_QG],
        [[t.branch.turn if t.branch else 0 for t in group] for group in trajectories_QG],
        branching=branching,
    )
    trajectory_S = [sample.trajectory for sample in drawn]
    turn_S = [turn.index for t in sum(trajectories_QG, []) for turn in t.own_turns]
    kept, own = turns.of(trajectory_S, turn_S)
    return Earned(drawn, [drawn[s] for s in kept], None, own, turns)


def of_turns(trajectories_QG):
    """Returns the planner turns of all trajectories, with the exact tokens that the engine saw.

    Those that a branch took from its parent are its parent's alone.
    """
    return [
        batching.TurnSample(
            prompt_tokens=turn.prompt_tokens,
            response_tokens=turn.response_tokens,
            logprobs=turn.logprobs,
            trajectory=q * len(group) + g,
            group=q,
        )
        for q, group in enumerate(trajectories_QG)
        for g, trajectory in enumerate(group)
        for turn in trajectory.own_turns
    ]
