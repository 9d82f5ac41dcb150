"""The record of a training run: files, log lines, progress.

Dimensions:
  Q questions    G rollouts of a question
"""

import contextlib
import json
import sys

from absl import logging

from agents import trajectory
from flow_grpo_jax import files, metrics, processes

BAR_WIDTH = 24


class Record:
    """Metrics, trajectories and lines of the log; of several processes, 0 writes.

    Args:
      workdir: run folder.
      steps: training steps of the run.
      resumed_after: the last step that is kept; None starts empty files.
      saved: the metrics of that step in its checkpoint, which make its line whole.
      watchers: `trackers.Trackers`, told of each step; None if nobody follows.
      decode: token ids -> text of the planner; with it, trajectories tell tokens apart.

    Attributes:
      writes: whether this process writes.
    """

    def __init__(
        self, workdir, *, steps, resumed_after=None, saved=None, watchers=None, decode=None
    ):
        self.writes = processes.index() == 0
        self._folder, self._steps, self._watchers = workdir, steps, watchers
        self._metrics, self._decode = None, decode
        if self.writes:
            self._metrics = metrics.MetricsFile(
                workdir / "metrics.jsonl", keep_to_step=resumed_after, saved=saved
            )

    def line(self, step):
        """Returns the metrics of a step, {} if it has none; the same in every process."""
        return processes.of_first(self._metrics.lines.get(step, {}) if self.writes else None)

    def write(self, step, values, *, whole=True):
        """Writes the metrics of a step, replacing those it has, and logs a line.

        whole: False where an evaluation was cut off, which the resumed run adds.
        """
        if not self.writes:
            return
        self._metrics.write(step, values)
        if self._watchers and whole:
            self._watchers.tell(step)
        logging.info("%s", step_line(step, self._steps, values))
        if values.get("group/zero_variance") == 1.0 and values.get("optim/steps") != 0:
            logging.warning("step %d: all groups scored alike and taught nothing", step)

    def skip(self, step, cause, *, most):
        """Returns the metrics of the update in a step without a token to train on; logs the cause.

        most: such steps in a row before the run ends.

        Raises:
          RuntimeError: this one is too many.
        """
        first = step
        while self.line(first - 1).get("optim/steps") == 0:
            first -= 1
        if step - first >= most:
            steps = f"Steps {first} to {step}" if step > first else f"Step {step}"
            raise RuntimeError(
                f"{steps} had nothing to train on, more in a row than rollout.empty_steps={most}. "
                f"Causes in step {step}: {cause}."
            )
        logging.warning("step %d: nothing to train on, no optimizer step: %s", step, cause)
        return {"optim/steps": 0.0, "optim/skipped": 0.0, "tokens/trained": 0.0}

    def write_trajectories(
        self, kind, questions, trajectories_QG, scores_QG, *, step, adv_QG=None, turns=None
    ):
        """Writes trajectories/KIND_STEP.jsonl, one trajectory a line.

        Args:
          kind: "step" for training, "heldout" for evaluation.
          scores_QG: `rewards.Reward`.
          adv_QG: advantages; None is 0 for all, unless turns have their own.
          turns: `counterfactual.Credit`, or None.
        """
        if not self.writes:
            return
        path = self._folder / "trajectories" / f"{kind}_{step:06d}.jsonl"
        lines = []
        for q, question in enumerate(questions):
            for g, score in enumerate(scores_QG[q]):
                advantage = 0.0 if adv_QG is None else float(adv_QG[q, g])
                line = trajectory.to_json(
                    trajectories_QG[q][g],
                    question=question,
                    step=step,
                    reward=score.value if score.known else None,
                    reward_source=score.source,
                    advantage=advantage if turns is None else None,
                    of_turns=turns and turns.shown(q, g),
                    decode=self._decode,
                )
                lines.append(json.dumps(line) + "\n")
        with files.writing(path.parent):
            path.parent.mkdir(exist_ok=True)
        files.replace_text(path, "".join(lines))

    def summarise(self):
        """Prints held-out results before and after, where the report is and what to do next."""
        evaluated = [line for line in self._metrics.lines.values() if "eval/success" in line]
        lines = []
        if evaluated:
            lines.append(f"{'held-out':<10} {'success (k/N)':<18} {'tool-error rate':<16} turns")
        for name, line in zip(("before", "after"), (evaluated[:1] + evaluated[-1:]), strict=False):
            errors, turns = line["eval/tool_error_rate"], line["eval/turns"]
            lines.append(f"{name:<10} {_share(line):<18} {errors:<16.3f} {turns:.2f}")
        lines.append(f"{'report':<10} {self._folder / 'report.html'}")
        ask = f'python -m experiments.solve --workdir={self._folder} --query="…"'
        lines.append(f"{'next':<10} {ask}")
        sys.stdout.write("\n".join(["", *lines, ""]))
        sys.stdout.flush()

    def close(self):
        if self._watchers:
            self._watchers.close()


@contextlib.contextmanager
def progress(questions, label, rollouts=1):
    """Shows a progress bar on a terminal, nothing elsewhere; yields the function that advances it.

    questions, rollouts: of all processes; the bar counts this one's share.
    """
    shown = sys.stderr.isatty()
    done, total = 0, len(processes.share(len(questions))) * rollouts

    def advance(_):
        nonlocal done
        done += 1
        if shown:
            filled = BAR_WIDTH * done // max(total, 1)
            bar = "█" * filled + "·" * (BAR_WIDTH - filled)
            sys.stderr.write(f"\r{label} {bar} {done}/{total}")
            sys.stderr.flush()

    yield advance
    if shown:
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()


def step_line(step, steps, values):
    """Returns one line a step for the log."""
    parts = [f"step {step}/{steps}"]
    if "reward/mean" in values:
        parts += [
            f"reward {values['reward/mean']:.3f}",
            f"turns {values['rollout/turns']:.2f}",
            f"tool errors {values['rollout/tool_error_rate']:.3f}",
        ]
        if "loss/kl" in values:
            parts += [
                f"kl {values['loss/kl']:.4f}",
                f"entropy {values['policy/entropy']:.3f}",
                f"gap {values['policy/logprob_gap_max']:.1e}",
            ]
        else:
            parts.append("no optimizer step")
        parts.append(f"{values['time/rollout']:.1f}+{values['time/update']:.1f} s")
    if "eval/success" in values:
        parts.append(f"held-out {_share(values)}")
    return " | ".join(parts)


def _share(values):
    return f"{values['eval/success']:.3f} ({values['eval/correct']:.0f}/{values['eval/total']:.0f})"
