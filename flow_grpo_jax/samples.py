"""Which trajectories and turns of a rollout are trained on.

Dimensions:
  Q questions    G rollouts of a question
"""

import numpy as np

from flow_grpo_jax import batching


def usable(trajectories_QG, scores_QG, *, least):
    """Returns bool [Q, G]: neither infrastructure nor a deadline ended it; its reward is known.

    Raises:
      RuntimeError: the share of usable trajectories is below `least`: training must stop, not go
        on from noise.
    """
    finished_QG = [[not t.broken for t in group] for group in trajectories_QG]
    known_QG = [[score.known for score in group] for group in scores_QG]
    valid_QG = np.array(finished_QG) & np.array(known_QG)
    if valid_QG.mean() < least:
        errors = {t.error for group in trajectories_QG for t in group if t.broken}
        errors |= {s.source for group in scores_QG for s in group if not s.known}
        raise RuntimeError(
            f"Only {valid_QG.mean():.0%} of the trajectories are usable, fewer than "
            f"rollout.min_valid_share={least:.0%}. Causes: {'; '.join(sorted(errors)[:3])}."
        )
    return valid_QG


def of_turns(trajectories_QG):
    """Returns the planner turns of all trajectories, with the very tokens that the engine saw."""
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
