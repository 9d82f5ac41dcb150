"""Held-out evaluation: every question once, all of them in the denominator.

Dimensions:
  Q questions    G rollouts of a question, one here
"""

from flow_grpo_jax import metrics, processes, rewards, rollout


def score_groups(scorer, questions, trajectories_QG):
    """Returns what `Scorer.score_groups` of process 0 does: one verdict for all processes."""
    first = processes.index() == 0
    found = scorer.score_groups(questions, trajectories_QG) if first else None
    return processes.of_first(found, kinds=(rewards.Reward,))


def evaluate(
    questions,
    *,
    step,
    system,
    settings,
    scorer,
    should_stop=lambda: False,
    on_finished=lambda trajectory: None,
):
    """Solves each question once and scores it.

    Args:
      questions: list of question dicts.
      step: the training step before this evaluation; part of the random address.
      system, settings, should_stop, on_finished: of `rollout.collect`.
      scorer: `scoring.Scorer`.

    Returns:
      (metrics, trajectories, scores): `eval/*` floats. A trajectory without an answer counts as
      wrong, whatever the cause; infrastructure failures are also counted on their own.
    """
    groups = rollout.collect(
        questions,
        group=1,
        step=step,
        system=system,
        settings=settings,
        should_stop=should_stop,
        on_finished=on_finished,
    )
    trajectories = [group[0] for group in groups]
    scores_QG, judged = score_groups(scorer, questions, groups)
    scores = [group[0] for group in scores_QG]
    correct, total = sum(score.value == 1 for score in scores), len(scores)
    values = {
        "eval/success": correct / total,
        "eval/correct": float(correct),
        "eval/total": float(total),
    }
    values |= {f"eval/{name}": value for name, value in judged.items()}
    by_source = {}
    for question, score in zip(questions, scores, strict=True):
        by_source.setdefault(question["source"], []).append(score.value == 1)
    if len(by_source) > 1:
        for source, right in sorted(by_source.items()):
            values[f"eval/success/{source}"] = sum(right) / len(right)
    values |= metrics.of_trajectories(trajectories, system.tool_names, prefix="eval")
    return values, trajectories, scores
