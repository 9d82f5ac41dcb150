"""Trains the planner by Flow-GRPO inside the live agent; resumes if the folder holds a run.

    python -m experiments.train --config=experiments/configs/quickstart.py --workdir=runs/quickstart

Exit codes: 0 done, 1 error, 2 bad flags or config, 75 stopped by a signal after saving.

On several hosts, run the same command once on each, with the same files and one shared workdir.
SLURM, Open MPI, Kubernetes jobs and TPU slices are recognised; elsewhere tell every process:

    ... --coordinator=HOST0:PORT --processes=2 --process_id=0        # and 1 on the other host

Every process solves its share of the questions and trains on all of them; process 0 writes the run
folder. The results are those of one process with as many devices.

Dimensions:
  Q questions    G rollouts of a question
"""

# ruff: noqa: E402  signals are taken before the long imports
from experiments.running import signals

if __name__ == "__main__":
    signals.leave_on(*signals.STOPPING)

import dataclasses
import re
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from experiments.reporting import report
from experiments.running import (
    command,
    dataset,
    determinism,
    fields,
    fitting,
    folder,
    limits,
    resume,
    sessions,
    stored,
    tokens,
    trackers,
    trust,
    watching,
)
from experiments.running.record import Record, progress
from flow_grpo_jax import (
    batching,
    checkpoint,
    files,
    metrics,
    processes,
    rollout,
    samples,
    timing,
)
from flow_grpo_jax.evaluate import evaluate, score_groups
from flow_grpo_jax.rollout import SHARES


@folder.one_at_a_time
def train(config, workdir, *, force=False, trusted=False, should_stop=lambda: False):
    """Runs or resumes the training that `config` describes in `workdir`.

    Args:
      force: resume although the config differs from the run's.
      trusted: whether links may lead out of `workdir`.
      should_stop: polled during rollouts; True saves the last finished step and ends the training.

    Raises:
      rollout.Stopped: `should_stop` said so.
    """
    variant = limits.check(config)
    trackers.need(config.trackers)
    trust.check_links(workdir, trusted=trusted)
    if not force:
        stored.check_config(config, workdir)
    with dataset.environment(config.data.environment) as environment:
        _train(config, workdir, variant, environment, force=force, should_stop=should_stop)


def _train(config, workdir, variant, environment, *, force, should_stop):
    """Trains as `train` says, which opened the environment of the questions, if they have one."""
    # ---- data, model, engine, tools ----------------------------------------------------------
    questions, held_out = read_questions(config, environment)
    goes_on = processes.of_first((workdir / "config.json").exists())
    session = sessions.build(config, environment=environment)
    questions = fitting.choose(questions, held_out, config, session.system, started=goes_on)
    batches = sessions.question_batches(config, questions)
    shapes = sessions.batch_shapes(config, session.mesh)
    sandbox = sessions.sandbox_facts(session.system.tools)
    step_program, state = sessions.start_update(config, variant, session)
    facts = resume.facts(
        questions, held_out, session.frozen, sessions.model_folder(config), sandbox
    )

    # ---- resume --------------------------------------------------------------------------------
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    given = dict(facts=facts, questions=questions, held_out=held_out, force=force)
    done, state, meta = resume.restore(checkpoints, state, batches, **given)
    stored.write_config(config, workdir, sandbox=sandbox, kernels=session.kernels)  # it fits
    if meta:
        session.serve(state.params)
        logging.info("resumed after step %d", done)
    record = open_record(config, workdir, done, meta, session)
    watch = watching.Watch(config, workdir)
    evaluation = Evaluation(held_out, config, session, record, watch, should_stop)
    settings = sessions.rollout_settings(config, temperature=config.rollout.temperature)
    rollouts, branching = config.rollout.group, limits.branching(config, variant)
    roots = branching.roots(rollouts) if branching else rollouts
    last = done, state, {"data": batches.get_state(), **facts, "metrics": record.line(done)}
    try:
        # Also runs an evaluation that a stop signal cut off.
        if evaluation.due(done) and "eval/success" not in record.line(done):
            record.write(done, record.line(done) | evaluation.run(done))
            last[-1]["metrics"] = record.line(done)

        for step in watch.steps(range(done + 1, config.steps + 1)):
            started = time.monotonic()

            # ---- rollouts ----------------------------------------------------------------------
            batch, timer = next(batches), timing.Timer(trace=watch.trace)
            with progress(batch, f"step {step}", rollouts) as advance:
                trajectories_QG = rollout.collect(
                    batch,
                    group=rollouts,
                    step=step,
                    system=session.system,
                    settings=settings,
                    should_stop=should_stop,
                    on_finished=advance,
                    timer=timer,
                    branching=branching,
                )
            rolled_out = time.monotonic()
            tokens.warn_if_nothing_ended(trajectories_QG, session.system.tokenizer, config)

            # ---- rewards and advantages --------------------------------------------------------
            watch.phase("reward")
            scores_QG, judged = score_groups(session.scorer, batch, trajectories_QG)
            rewards_QG = np.array([[score.value for score in group] for group in scores_QG])
            valid_QG = samples.usable(
                trajectories_QG, scores_QG, least=config.rollout.min_valid_share
            )
            how = dict(variant=variant, branching=branching)
            earned = samples.earned(trajectories_QG, rewards_QG, valid_QG, **how)

            # ---- update ------------------------------------------------------------------------
            if cause := samples.why_none(trajectories_QG, scores_QG) or earned.missing:
                updated = record.skip(step, cause, most=config.rollout.empty_steps)
            else:
                watch.phase("rows")
                how = shapes | sessions.weighting(config, variant, step)
                how |= dict(adv_QG=earned.adv_QG, own=earned.own, valid_QG=valid_QG)
                parts = batching.build(earned.trained, **how)
                watch.phase("update")
                state, updated = session.take_steps(
                    step_program, state, parts, release=config.engine.release
                )
            finished, system = time.monotonic(), session.system

            # ---- record ------------------------------------------------------------------------
            values = {
                **metrics.of_rewards(rewards_QG[:, :roots], valid_QG[:, :roots]),
                **metrics.of_rollouts(trajectories_QG, earned.turns, system.tool_names, roots),
                **judged,
                **session.backends.counts(),
                **updated,
                "compile/count": float(step_program.compile_count + system.engine.compile_count),
                **measured(earned.drawn, timer, rolled_out - started, finished - rolled_out),
            }
            last = step, state, {"data": batches.get_state(), **facts, "metrics": values}
            found, stopped = evaluation.after(step)
            values |= found
            watch.phase("save")
            values["time/step"] = time.monotonic() - started
            how = dict(step=step, adv_QG=earned.adv_QG, turns=earned.turns)
            record.write_trajectories("step", batch, trajectories_QG, scores_QG, **how)
            record.write(step, values, whole=stopped is None)
            if stopped:
                raise stopped
            if step % config.checkpoint.every == 0 or step == config.steps:
                checkpoints.save(*last)
    except rollout.Stopped:
        checkpoints.save(*last)
        raise
    except files.CannotWrite as error:
        raise RuntimeError(f"{error} {checkpoints.safe()}") from error
    finally:
        checkpoints.close()
        record.close()
        session.close()
    if record.writes:
        report.write_report(workdir)
        record.summarise()
    processes.gather([])  # the others end after process 0, which serves them all


def open_record(config, workdir, done, meta, session):
    """Returns the `Record` of a run after step `done`; meta: of its checkpoint, or None."""
    how = dict(resumed_after=done, saved=meta.get("metrics")) if meta else {}
    how["watchers"] = trackers.start(config, workdir, first_step=done + 1)
    return Record(workdir, steps=config.steps, decode=session.system.tokenizer.decode, **how)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluates held-out questions when the config asks for it."""

    questions: list
    config: ConfigDict
    session: sessions.Session
    record: Record
    watch: watching.Watch
    should_stop: Callable

    def due(self, step):
        """Whether the config asks for an evaluation after a step."""
        every = self.config.eval.every
        at_an_end = step in (0, self.config.steps)
        return bool(self.questions) and (at_an_end or bool(every and step % every == 0))

    def after(self, step):
        """Returns (metrics, None) of an evaluation that is due after a training step, else ({},
        None); ({}, the exception) where it was stopped: the step itself is done and kept.
        """
        try:
            return (self.run(step) if self.due(step) else {}), None
        except rollout.Stopped as stopped:
            return {}, stopped

    def run(self, step):
        """Evaluates, writes the trajectories and returns the metrics."""
        self.watch.phase("evaluation")
        with progress(self.questions, f"held-out {step}") as advance:
            values, trajectories, scores = evaluate(
                self.questions,
                step=step,
                system=self.session.system,
                settings=sessions.rollout_settings(
                    self.config, temperature=self.config.eval.temperature
                ),
                scorer=self.session.scorer,
                should_stop=self.should_stop,
                on_finished=advance,
            )
        self.record.write_trajectories(
            "heldout",
            self.questions,
            [[trajectory] for trajectory in trajectories],
            [[score] for score in scores],
            step=step,
        )
        return values


def measured(turns, timer, rollout, update):
    """Returns tokens and seconds of a step as metrics.

    timer: of the rollouts.    rollout, update: seconds.
    """
    sampled = sum(len(turn.response_tokens) for turn in turns)
    return {
        "tokens/generated": float(sampled),
        "time/rollout": rollout,
        **{f"time/rollout/{name}": timer.seconds[name] for name in SHARES},
        "time/update": update,
        "throughput/generated_tokens_per_s": sampled / rollout,
    }


def read_questions(config, environment):
    """Returns (training questions, held-out ones); raises where processes have different ones."""
    paths = config.data.train, config.data.held_out
    of_files = [dataset.read(config, path) if path else [] for path in paths]
    of_environment = dataset.of_environment(environment, config.data.environment)
    questions, held_out = map(list.__add__, of_files, of_environment)
    held_out = held_out[: config.eval.questions or len(held_out)]
    processes.same(
        {
            "the config": stored.config_hash(config),
            "the questions": stored.hash_of([questions, held_out]),
            "the model": stored.hash_of(sessions.model_files(config)),
            "the version of jax": jax.__version__,
        }
    )
    return questions, held_out


def stop_signal():
    """Returns a `should_stop` for `signals.STOPPING`; the signal of one process stops all."""

    def early(number):
        if processes.count() == 1:
            signals.leave(number)

    def tell(number):
        processes.tell_stop()
        logging.info("signal %d: stopping after a save; send it again to stop at once", number)

    received = signals.StopSignal(*signals.STOPPING, on_first=tell, early=early)
    return lambda: received() or processes.told_to_stop()


def define_flags():
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("workdir", None, "Run folder; an existing run in it is resumed.")
    flags.DEFINE_bool("force", False, "Resume although the config differs from the run's.")
    flags.DEFINE_bool("trust", False, trust.HELP)
    flags.DEFINE_string("coordinator", None, "host:port of process 0, if there are several.")
    flags.DEFINE_integer("processes", None, "How many processes train together.", 1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", 0)


def main():
    values = flags.FLAGS
    if values.coordinator and not re.fullmatch(r".+:\d+", values.coordinator):
        raise command.ConfigError(f"--coordinator={values.coordinator} has no port; host:port.")
    fields.check(values.config)
    determinism.ask(values.config.deterministic)
    with command.checking_config():
        processes.initialize(
            coordinator=values.coordinator,
            processes=values.processes,
            process_id=values.process_id,
        )
    try:
        how = dict(force=values.force, trusted=values.trust, should_stop=stop_signal())
        train(values.config, values.workdir, **how)
    except rollout.Stopped:
        logging.info("stopped by a signal; run the same command again to go on")
        sys.exit(signals.STOPPED)
    except Exception as error:
        processes.tell_failure(error, exit_code=command.exit_code(error))
        raise


if __name__ == "__main__":
    define_flags()
    command.run(main, required=("config", "workdir"))
