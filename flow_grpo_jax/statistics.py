"""Statistics of an evaluation: means over trials, pass@k, paired differences, their intervals.

Trials of one question are not independent, so errors are those of means of questions ("clustered by
question"): with sample standard deviation s of Q such means, the error is s / sqrt(Q). Intervals
are for 95 %.

Dimensions:
  Q questions    K trials of a question
"""

import dataclasses
import math

import numpy as np
from scipy import special

Z = 1.96  # half width of a 95 % interval in errors


@dataclasses.dataclass(frozen=True)
class Estimate:
    """value: a mean over questions.    error: its standard error; None of a single question.
    low, high: 95 % interval.    questions: Q.
    """

    value: float
    error: float | None
    low: float
    high: float
    questions: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """mean: second less first, over the same questions.    error: its standard error, or None.
    low, high: 95 % interval.    better, worse: questions whose mean rose, fell.    questions: Q.
    """

    mean: float
    error: float | None
    low: float
    high: float
    better: int
    worse: int
    questions: int


def wilson_interval(correct, total, *, z=Z):
    """Returns the 95 % confidence interval of a share (Wilson 1927)."""
    if not total:
        return 0.0, 1.0
    share = correct / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def average(scores_QK):
    """Returns the `Estimate` of avg@k: the mean over questions of the mean over trials.

    One trial scored 0 or 1 has Wilson's interval. So have questions that all score alike, as if
    each were one trial: their spread says nothing. Others have value ± 1.96 errors, within [0, 1].

    scores_QK: numbers in [0, 1].
    """
    scores_QK = _checked(scores_QK)
    mean_Q, (questions, trials) = scores_QK.mean(1), scores_QK.shape
    value, error = float(mean_Q.mean()), _error(mean_Q)
    if not error or (trials == 1 and np.isin(scores_QK, (0, 1)).all()):
        low, high = wilson_interval(float(mean_Q.sum()), questions)
    else:
        low, high = max(0.0, value - Z * error), min(1.0, value + Z * error)
    return Estimate(value, error, low, high, questions)


def pass_at(scores_QK, k):
    """Returns the `Estimate` of pass@k: the share of questions that one of k trials solves.

    Unbiased (Chen et al. 2021): a question with c of K trials solved counts
    1 - C(K - c, k) / C(K, k). A trial is solved where its score is 1.

    Raises:
      ValueError: there are fewer than k trials.
    """
    scores_QK = _checked(scores_QK)
    trials = scores_QK.shape[1]
    if not 1 <= k <= trials:
        raise ValueError(f"pass@{k} needs at least {k} trials; there are {trials}.")
    solved_Q = (scores_QK == 1).sum(1)
    missed = [math.comb(trials - int(solved), k) / math.comb(trials, k) for solved in solved_Q]
    return average(1 - np.array(missed)[:, None])


def difference(first_QK, second_QK):
    """Returns the `Difference` of two sets of scores on the same questions, in the same order.

    Each question is compared with itself, so what makes it hard for both does not count as spread.
    Where all gain alike there is no spread, and the interval is as wide as Wilson's of 0 of Q. The
    numbers of trials may differ.
    """
    first_QK, second_QK = _checked(first_QK), _checked(second_QK)
    if len(first_QK) != len(second_QK):
        raise ValueError(f"{len(first_QK)} and {len(second_QK)} questions cannot be paired.")
    gain_Q = second_QK.mean(1) - first_QK.mean(1)
    mean, error = float(gain_Q.mean()), _error(gain_Q)
    half = Z * error if error else wilson_interval(0, len(gain_Q))[1]
    changed = np.abs(gain_Q) > 1e-12
    return Difference(
        mean=mean,
        error=error,
        low=max(-1.0, mean - half),
        high=min(1.0, mean + half),
        better=int((changed & (gain_Q > 0)).sum()),
        worse=int((changed & (gain_Q < 0)).sum()),
        questions=len(gain_Q),
    )


def mean_of(estimates):
    """Returns the `Estimate` of the mean of several sets of questions, each of equal weight.

    The distances to the bounds are added as squares (Zou and Donner 2008), so that Wilson's
    intervals keep their sides.
    """
    count = len(estimates)
    value = sum(estimate.value for estimate in estimates) / count
    root = lambda distances: math.sqrt(sum(d * d for d in distances)) / count
    errors = [estimate.error for estimate in estimates]
    return Estimate(
        value=value,
        error=None if None in errors else root(errors),
        low=value - root(estimate.value - estimate.low for estimate in estimates),
        high=value + root(estimate.high - estimate.value for estimate in estimates),
        questions=sum(estimate.questions for estimate in estimates),
    )


def of_runs(values):
    """Returns (mean, half of its 95 % interval by Student's t) of numbers of independent runs.

    A single one has no interval: None.
    """
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return mean, None
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    return mean, float(special.stdtrit(count - 1, 0.975)) * error


def agreement(first, second):
    """Returns the share of pairs in which both say right (1) or both say not right; None of none.

    A verdict of None is unknown and leaves its pair out.
    """
    pairs = [(a == 1) == (b == 1) for a, b in zip(first, second, strict=True) if None not in (a, b)]
    return sum(pairs) / len(pairs) if pairs else None


def _error(mean_Q):
    return float(mean_Q.std(ddof=1) / math.sqrt(len(mean_Q))) if len(mean_Q) > 1 else None


def _checked(scores_QK):
    scores_QK = np.asarray(scores_QK, float)
    if scores_QK.ndim != 2 or not scores_QK.size:
        raise ValueError(f"Scores of shape {scores_QK.shape} are not [questions, trials].")
    return scores_QK
