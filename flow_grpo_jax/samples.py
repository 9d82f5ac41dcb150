"""Which trajectories and turns of a rollout are trained on.

Dimensions:
  Q questions    G rollouts of a question
"""

import collections

import numpy as np

from flow_grpo_jax import batching


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


def of_turns(trajectories_QG):
    """Returns the planner turns of all trajectories, with the exact tokens that the engine saw."""
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
        for turn in trajectory.turns
    ]
