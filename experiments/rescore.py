"""Scores the stored trajectories of a run again: with other checkers, or the same after a change.

    python -m experiments.rescore --workdir=runs/quickstart --out=runs/rescored

The run's own config says which questions were asked and who decides; another --config replaces its
`reward` and `backends`. --out gets files of the same names, each line with the new `reward` and
`reward_source` and the old ones as `reward_before` and `reward_source_before`, and summary.json.
The run folder stays as it is, and so does `advantage`, which was trained with.
"""

import collections
import json
import pathlib

from absl import flags, logging
from ml_collections import config_flags

from agents import trajectory
from experiments.reporting import trajectories
from experiments.running import backends, command, dataset, fields, folder, sessions, stored, trust
from flow_grpo_jax import files

NEEDED = {"question_id", "question", "status", "answer", "reward", "reward_source"}
DRAWN = ("step_*.jsonl", "heldout_*.jsonl")


def rescore(workdir, out, *, config=None, question_files=(), trusted=False):
    """Writes the rescored trajectories and summary.json to `out`; returns the summary.

    Args:
      workdir: run folder of `experiments.train`.
      config: its `reward` and `backends` decide; None takes the run's.
      question_files: where the questions are now; the run's data files if empty.
      trusted: whether the user trusts the maker of `workdir`.

    Raises:
      ConfigError: no trajectories, `out` is the run itself, a question is not in the files, or
        `workdir` needs the user's word.
    """
    workdir, out = pathlib.Path(workdir), pathlib.Path(out)
    asked, _ = stored.open_config(
        workdir,
        uses=lambda asked: _used(asked, config, question_files),
        trusted=trusted,
        instead="Or say yourself who decides, --config=FILE, and where the questions are, "
        "--data=FILE,FILE.",
    )
    deciding = _deciding(asked, config)
    paths = [path for name in DRAWN for path in sorted((workdir / "trajectories").glob(name))]
    if not paths:
        raise command.ConfigError(f"{workdir}/trajectories holds no trajectories.")
    if out.resolve() in (workdir.resolve(), (workdir / "trajectories").resolve()):
        raise command.ConfigError(f"--out={out} is the run itself; name another folder.")
    question_of = _questions(asked, question_files)
    with folder.held(out):
        summary = _rescore_files(paths, out, workdir, deciding, question_of)
        files.replace_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _rescore_files(paths, out, workdir, deciding, question_of):
    """Writes the files of `paths`, rescored, to `out`; returns the summary."""
    tally, session = _Tally(), None
    answering = backends.build(deciding.backends)
    try:
        if isinstance(answering.judge, str):
            session = sessions.build(deciding)
            if answering.judge == "policy":
                session.serve(stored.restore_params(workdir, deciding)[1])
            scorer = session.scorer
        else:
            scorer = sessions.make_scorer(deciding, answering)
        try:
            for path in paths:
                read = list(trajectories.read_lines(path))
                lines = [line for line in read if line is not None and line.keys() >= NEEDED]
                tally.damaged += len(read) - len(lines)
                tally.lines += len(lines)
                _rescore_lines(lines, path, question_of, scorer, tally)
                text = "".join(json.dumps(line) + "\n" for line in lines)
                files.replace_text(out / path.name, text)
            if not tally.lines:
                raise command.ConfigError(
                    f"Every line in {workdir}/trajectories is damaged; bring back a copy of it."
                )
        finally:
            scorer.close()
    finally:
        answering.close()
        if session is not None:
            session.close()
    return tally.summary()


def _used(asked, config, question_files):
    """Returns the sections of the run's config that count beside what the user gave."""
    judge = _deciding(asked, config).backends.judge.kind
    built = ("model", "tools", "compile_cache") if judge in backends.ENGINE else ()
    given = {"data": bool(question_files), "backends": config is not None}
    return [*(section for section, there in given.items() if not there), *built]


def _deciding(asked, config):
    """Returns the run's config with the `reward` and `backends` that decide."""
    if config is not None:
        asked = asked.copy_and_resolve_references()
        with asked.unlocked():
            asked.reward, asked.backends = config.reward, config.backends
    return asked


def _questions(asked, question_files):
    if asked.data.environment.id:
        raise command.ConfigError(
            f"The run's questions are of the environment {ascii(asked.data.environment.id)}, "
            "which rewards a trajectory while it lasts: its rewards stay as they are."
        )
    named = question_files or [p for p in (asked.data.train, asked.data.held_out) if p]
    return {
        (question["id"], question["question"]): question
        for path in named
        for question in dataset.read(asked, path)
    }


def _rescore_lines(lines, path, question_of, scorer, tally):
    """Scores the lines of one file, in place."""
    scored = [line for line in lines if line["status"] not in trajectory.BROKEN]
    questions = []
    for line in scored:
        question = question_of.get((line["question_id"], line["question"]))
        if question is None:
            raise command.ConfigError(
                f"{path} has question {line['question_id']!r}, which the question files do not "
                "hold with that text. Say where they are with --data=FILE,FILE."
            )
        questions.append(question)
    scores, values = scorer.score(questions, [line["answer"] for line in scored])
    for line, question, reward in zip(scored, questions, scores, strict=True):
        line["reward_before"] = line["reward"]
        line["reward_source_before"] = line["reward_source"]
        line["reward"] = reward.value if reward.known else None
        line["reward_source"] = reward.source
        tally.add(question["kind"], line)
    tally.add_file(len(lines) - len(scored), values)


class _Tally:
    """Counts over all files."""

    def __init__(self):
        self._kinds = collections.defaultdict(collections.Counter)
        self._unscored = self._asked = self._agreed = 0.0
        self.damaged = 0  # lines that a crash cut short
        self.lines = 0  # the others

    def add(self, kind, line):
        counts, before, after = self._kinds[kind], line["reward_before"], line["reward"]
        counts["trajectories"] += 1
        counts["sum_before"] += before or 0.0
        counts["sum_after"] += after or 0.0
        counts["raised"] += after is not None and before is not None and after > before
        counts["lowered"] += after is not None and before is not None and after < before
        counts["no_verdict"] += after is None

    def add_file(self, unscored, values):
        self._unscored += unscored
        decided = values.get("judge/asked", 0.0) - values.get("judge/no_verdict", 0.0)
        self._asked += decided
        self._agreed += decided * values.get("judge/agreement", 0.0)

    def summary(self):
        kinds = {}
        for kind, counts in sorted(self._kinds.items()):
            total = counts["trajectories"]
            kinds[kind] = {
                "trajectories": total,
                "mean_before": counts["sum_before"] / total,
                "mean_after": counts["sum_after"] / total,
                **{name: counts[name] for name in ("raised", "lowered", "no_verdict")},
            }
        agreement = self._agreed / self._asked if self._asked else None
        counted = {"unscored": int(self._unscored), "damaged": self.damaged}
        return {"kinds": kinds, **counted, "judge_agreement": agreement}


def define_flags():
    config_flags.DEFINE_config_file("config", None, "Decides instead of the run.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Run folder of experiments.train.")
    flags.DEFINE_string("out", None, "Folder to write.")
    flags.DEFINE_list("data", [], "Files of the questions, if they have moved.")
    flags.DEFINE_bool("trust", False, trust.HELP)


def main():
    values = flags.FLAGS
    if values.config is not None:
        fields.check(values.config)
    summary = rescore(
        values.workdir,
        values.out,
        config=values.config,
        question_files=values.data,
        trusted=values.trust,
    )
    for kind, counts in summary["kinds"].items():
        logging.info(
            "%-9s %d trajectories: mean reward %.4f, was %.4f; %d raised, %d lowered, "
            "%d without verdict",
            kind,
            counts["trajectories"],
            counts["mean_after"],
            counts["mean_before"],
            counts["raised"],
            counts["lowered"],
            counts["no_verdict"],
        )
    if summary["damaged"]:
        logging.warning("%d damaged lines were left out", summary["damaged"])
    if summary["judge_agreement"] is not None:
        logging.info("judge and rule agree on %.1f %%", 100 * summary["judge_agreement"])


if __name__ == "__main__":
    define_flags()
    command.run(main, required=("workdir", "out"))
