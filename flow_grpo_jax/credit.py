"""Credit: what a trajectory earns, and what a turn counts in the loss.

Advantages are group-relative, one number a trajectory. Each function has the signature
(rewards_QG, valid_QG, turns_QG) -> float64 [Q, G] and gives 0 to invalid trajectories and to groups
without signal (equal rewards), so that averages may go over all valid trajectories, those of groups
without signal included.

Weights make loss = Σ_turns weight * (mean over the turn's sampled tokens). Each `weigh_*` has the
signature (tokens_S, trajectory_S, micro_S, among_S=, steps=, constant_length=) -> float64 [S], over
all turns of a rollout batch: sampled tokens, trajectory and micro-batch of each turn; n of its
question, see `equal_questions`; the optimizer steps that share the turns; the length that
`weigh_constant_length` divides by. A turn weighs `steps` times what it would in a single step,
whichever turns share its step: their mean is the loss of the whole batch.

`counterfactual.py` gives turns an advantage and a share of their own: `Own`.

Source: arXiv 2510.05592, Eq. 5 and 7 (`weigh_turns`, `flow`); arXiv 2503.20783 (`dr_grpo`).

Dimensions:
  Q questions    G rollouts of a question    S samples (turns) of a rollout batch
"""

import dataclasses

import numpy as np

# Added to the standard deviation, as in the code the paper was trained with. It is far below the
# deviations of binary rewards: the smallest non-zero deviation of eight of them is 0.35.
EPS = 1e-6

# ---- what a trajectory earns -------------------------------------------------------------------


def checked(rewards_QG, valid_QG):
    """Returns (float64 rewards, 0 where invalid; bool); ValueError if they are not [Q, G]."""
    rewards_QG = np.asarray(rewards_QG, np.float64)
    valid_QG = np.asarray(valid_QG, bool)
    if rewards_QG.ndim != 2 or rewards_QG.shape != valid_QG.shape:
        raise ValueError(
            f"rewards_QG {rewards_QG.shape} and valid_QG {valid_QG.shape} must both be [questions, "
            "rollouts]. Give one reward and one validity flag a trajectory."
        )
    wrong = valid_QG & ~np.isfinite(rewards_QG)
    if wrong.any():
        q, g = np.argwhere(wrong)[0]
        raise ValueError(
            f"The reward of question {q}, rollout {g} is {rewards_QG[q, g]}. Mark the trajectory "
            "invalid if its reward is unknown."
        )
    return np.where(valid_QG, rewards_QG, 0.0), valid_QG


def _normalised(rewards_QG, count_QG, *, by_std):
    """Returns (R - mean) / (std + EPS) of each group; its member (q, g) counts count_QG times.

    The standard deviation is the sample one (divisor n - 1). Fewer than two counted members, or
    equal rewards, give 0.
    """
    n_Q1 = count_QG.sum(1, keepdims=True)
    mean_Q1 = (count_QG * rewards_QG).sum(1, keepdims=True) / np.maximum(n_Q1, 1)
    centred_QG = rewards_QG - mean_Q1
    highest_Q1 = np.max(rewards_QG, 1, keepdims=True, where=count_QG > 0, initial=-np.inf)
    lowest_Q1 = np.min(rewards_QG, 1, keepdims=True, where=count_QG > 0, initial=np.inf)
    if by_std:
        squares_Q1 = (count_QG * centred_QG**2).sum(1, keepdims=True)
        centred_QG = centred_QG / (np.sqrt(squares_Q1 / np.maximum(n_Q1 - 1, 1)) + EPS)
    return np.where((count_QG > 0) & (highest_Q1 > lowest_Q1), centred_QG, 0.0)


def flow(rewards_QG, valid_QG, turns_QG=None):
    """Returns A_i = (R_i - mean) / std over a question's valid trajectories, each counted once.

    Args:
      rewards_QG: outcome rewards, any finite unit; ignored where invalid.
      valid_QG: bool, False where infrastructure failed and the trajectory must not count.
      turns_QG: unused; the other functions of this module need it.

    Raises:
      ValueError: shapes differ, or a valid reward is not finite.
    """
    rewards_QG, valid_QG = checked(rewards_QG, valid_QG)
    return _normalised(rewards_QG, valid_QG.astype(np.int64), by_std=True)


def dr_grpo(rewards_QG, valid_QG, turns_QG=None):
    """Returns A_i = R_i - mean: `flow` without the division (arXiv 2503.20783, section 3.1)."""
    rewards_QG, valid_QG = checked(rewards_QG, valid_QG)
    return _normalised(rewards_QG, valid_QG.astype(np.int64), by_std=False)


def original(rewards_QG, valid_QG, turns_QG):
    """Normalises by mean and standard deviation over turn rows, as the authors' code does.

    A trajectory of three turns counts three times in both, so long trajectories pull the mean
    towards their reward.

    Args:
      rewards_QG, valid_QG: as in `flow`.
      turns_QG: int, number of planner turns of each trajectory.
    """
    rewards_QG, valid_QG = checked(rewards_QG, valid_QG)
    return _normalised(rewards_QG, np.where(valid_QG, np.asarray(turns_QG), 0), by_std=True)


# ---- what a turn counts ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Own:
    """Credit that turns have of their own, instead of their trajectory's.

    adv_S:   float64, advantages.
    among_S: float64, n of `weigh_constant_length`, which is 1 / what the turn's tokens count.
    """

    adv_S: np.ndarray
    among_S: np.ndarray


def equal_questions(valid_QG):
    """Returns int [Q]: n so that 1 / n for each valid trajectory weighs all questions alike.

    n = questions with a valid trajectory * valid ones of this question. The means of Eq. 5 go over
    a question's trajectories, then over questions, so one that lost members to infrastructure
    counts as much as the others.
    """
    valid_Q = np.asarray(valid_QG, bool).sum(axis=1)
    return np.count_nonzero(valid_Q) * valid_Q


def weigh_turns(tokens_S, trajectory_S, micro_S, *, among_S, steps, constant_length):
    """Returns 1 / (n * turns of this trajectory): Eq. 5, with its 1/|a| in the loss."""
    turns_S = np.bincount(trajectory_S)[trajectory_S]
    return 1.0 / (among_S / steps * turns_S)


def weigh_last_turn(tokens_S, trajectory_S, micro_S, *, among_S, steps, constant_length):
    """Gives the mean over trajectories of their last turn, which is the last one in the order."""
    _, from_end = np.unique(trajectory_S[::-1], return_index=True)
    last_S = np.isin(np.arange(len(trajectory_S)), len(trajectory_S) - 1 - from_end)
    return last_S / (among_S / steps)


def weigh_rollout_tokens(tokens_S, trajectory_S, micro_S, *, among_S, steps, constant_length):
    """Gives the mean over trajectories of the mean over all tokens of the trajectory."""
    total_S = np.bincount(trajectory_S, weights=tokens_S)[trajectory_S]
    return tokens_S / (among_S / steps * total_S)


def weigh_tokens(tokens_S, trajectory_S, micro_S, *, among_S, steps, constant_length):
    """Gives the mean over all tokens of the batch, whatever their trajectory and question."""
    return tokens_S / (tokens_S.sum() / steps)


def weigh_micro_batch_tokens(tokens_S, trajectory_S, micro_S, *, among_S, steps, constant_length):
    """Gives the token mean of a micro-batch, then the mean over these: depends on their size."""
    total_S = np.bincount(micro_S, weights=tokens_S)[micro_S]
    return tokens_S / (total_S * (len(np.unique(micro_S)) / steps))


def weigh_constant_length(tokens_S, trajectory_S, micro_S, *, among_S, steps, constant_length):
    """Gives the sum over a trajectory's tokens / constant_length, then the trajectories' mean."""
    if constant_length < 1:
        raise ValueError(
            f"constant_length={constant_length} must be positive. Use the tokens a trajectory may "
            "sample at most: turns times response tokens."
        )
    return tokens_S / (among_S / steps * constant_length)
