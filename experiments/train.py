"""Trains the planner by Flow-GRPO inside the live agent; resumes if the folder holds a run.

    python -m experiments.train --config=experiments/configs/quickstart.py --workdir=runs/quickstart

Exit codes: 0 done, 1 error, 2 bad flags or config, 75 stopped by a signal after saving.

On several hosts the same command runs once on each, with the same files and one shared workdir;
SLURM, Open MPI, Kubernetes jobs and TPU slices are recognised, elsewhere every process is told:

    ... --coordinator=HOST0:PORT --processes=2 --process_id=0        # and 1 on the other host

Every process solves its share of the questions, all of them train on all of it, and process 0
writes the run folder. The results are those of one process with as many devices.

Dimensions:
  Q questions    G rollouts of a question
"""

import json
import pathlib
import time

import jax
import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from agents import trajectory
from experiments.reporting import report
from experiments.running import command, limits, session
from flow_grpo_jax import (
    batching,
    checkpoint,
    data,
    metrics,
    processes,
    rollout,
    samples,
    timing,
    update,
)
from flow_grpo_jax.evaluate import evaluate


def train(config, workdir, *, force=False):
    """Runs or resumes the training that `config` describes in `workdir`."""
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    settings = config.rollout
    variant = limits.choose_variant(config)
    limits.check_limits(config)
    writes = processes.index() == 0
    if not force:
        command.check_config(config, workdir)

    # ---- data, model, engine, tools ----------------------------------------------------------
    questions = data.read_questions(session.resolve(config.data.train))
    held_out = []
    if config.data.held_out:
        held_out = data.read_questions(session.resolve(config.data.held_out))
        held_out = held_out[: config.eval.questions or len(held_out)]
    batches = data.question_batches(questions, batch=settings.questions, seed=config.seed)
    processes.same(
        {
            "the config": command.config_hash(config),
            "the questions": command.hash_of([questions, held_out]),
            "the model": command.hash_of(session.model_files(config)),
            "the version of jax": jax.__version__,
        }
    )
    run = session.build(config)
    shapes = session.batch_shapes(config, run.mesh)
    if writes:
        command.write_config(config, workdir, sandbox=session.sandbox_facts(run.tools))
    command.check_shared(workdir)
    optimizer, step_program = session.make_update(
        config,
        variant,
        mesh=run.mesh,
        shardings=run.shardings,
        donate_params=session.donates_params(config),
        assemble=run.assemble,
    )
    state = update.init(run.params, optimizer, shardings=run.shardings)
    reference = checkpoint.fingerprint(run.frozen)

    # ---- resume --------------------------------------------------------------------------------
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    restored = checkpoints.restore(state)
    first_step, keep_to_step = 1, None
    if restored:
        done, state, meta = restored
        if meta["reference"] != reference:
            raise ValueError(
                f"The weights in {config.model.path} are not those this run started from; KL and "
                "the frozen modules would change. Restore the folder or use a new --workdir."
            )
        batches.set_state(meta["data"])
        run.serve(state.params)
        first_step, keep_to_step = done + 1, done
        logging.info("resumed after step %d", done)
    results = board = None
    if writes:
        results = metrics.MetricsFile(workdir / "metrics.jsonl", keep_to_step=keep_to_step)
        board = metrics.tensorboard(workdir / "tensorboard", first_step=first_step)
    stop = command.StopSignal()

    def record(step, values):
        if not writes:
            return
        results.write(step, values)
        if board:
            for name, value in values.items():
                board.add_scalar(name, value, step)
        logging.info("%s", command.step_line(step, config.steps, values))

    def setting(temperature, on_finished):
        """What training rollouts and evaluation share."""
        return dict(
            engine=run.engine,
            tokenizer=run.tokenizer,
            tools=run.tools,
            pool=run.pool,
            models=run.backends.models,
            grammars=run.grammars,
            settings=session.rollout_settings(config, temperature=temperature),
            should_stop=stop,
            on_finished=on_finished,
        )

    def due(step):
        regular = config.eval.every and step % config.eval.every == 0
        return bool(held_out) and (step in (0, config.steps) or regular)

    def evaluated(step):
        mine = len(processes.share(len(held_out)))
        with command.progress(mine, f"held-out {step}") as advance:
            values, trajectories, scores = evaluate(
                held_out,
                step=step,
                tool_names=tuple(run.tools),
                scorer=run.scorer,
                **setting(config.eval.temperature, advance),
            )
        if writes:
            write_trajectories(
                workdir / "trajectories" / f"heldout_{step:06d}.jsonl",
                held_out,
                [[t] for t in trajectories],
                [[s] for s in scores],
                step=step,
            )
        return values

    def save(step, state, cursor):
        facts = {"reference": reference, "sandbox": session.sandbox_facts(run.tools)}
        checkpoints.save(step, state, {"data": cursor, **facts})

    last = (first_step - 1, state, batches.get_state())
    try:
        # Also makes good what a stop during an evaluation left out.
        before = processes.of_first(results.lines.get(first_step - 1, {}) if writes else None)
        if due(first_step - 1) and "eval/success" not in before:
            record(first_step - 1, before | evaluated(first_step - 1))

        for step in range(first_step, config.steps + 1):
            started = time.monotonic()

            # ---- rollouts ----------------------------------------------------------------------
            batch = next(batches)
            mine = len(processes.share(len(batch))) * settings.group
            timer = timing.Timer()
            with command.progress(mine, f"step {step}") as advance:
                trajectories_QG = rollout.collect(
                    batch,
                    group=settings.group,
                    step=step,
                    timer=timer,
                    **setting(settings.temperature, advance),
                )
            rolled_out = time.monotonic()

            # ---- rewards and advantages --------------------------------------------------------
            scores_QG, judged = processes.of_first(  # one verdict for all
                run.scorer.score_groups(batch, trajectories_QG) if writes else None
            )
            rewards_QG = np.array([[score.value for score in group] for group in scores_QG])
            valid_QG = samples.usable(trajectories_QG, scores_QG, least=settings.min_valid_share)
            turns = samples.of_turns(trajectories_QG)
            turns_QG = batching.turn_counts(turns, questions=len(batch), rollouts=settings.group)
            adv_QG = variant.advantages(rewards_QG, valid_QG, turns_QG)

            # ---- update ------------------------------------------------------------------------
            mini_batches = batching.build(
                turns,
                adv_QG=adv_QG,
                valid_QG=valid_QG,
                weigh=variant.weigh,
                **shapes,
                mini_batches=config.loss.mini_batches,
                constant_length=settings.max_turns * settings.max_response_tokens,
            )
            if config.engine.release:
                run.release()
            state, updated = step_program(state, run.frozen, mini_batches)
            run.serve(state.params)
            finished = time.monotonic()

            # ---- record ------------------------------------------------------------------------
            sampled = sum(len(turn.response_tokens) for turn in turns)
            trajectories = [t for group in trajectories_QG for t in group]
            values = {
                **metrics.of_rewards(rewards_QG, valid_QG),
                **metrics.of_trajectories(trajectories, tuple(run.tools), prefix="rollout"),
                **judged,
                **run.backends.counts(),
                **updated,
                "tokens/generated": float(sampled),
                "compile/count": updated["compile/count"] + run.engine.compile_count,
                "time/rollout": rolled_out - started,
                **{f"time/rollout/{name}": timer.seconds[name] for name in rollout.SHARES},
                "time/update": finished - rolled_out,
                "throughput/generated_tokens_per_s": sampled / (rolled_out - started),
            }
            last = (step, state, batches.get_state())
            stopped = None
            if due(step):
                try:
                    values |= evaluated(step)
                except rollout.Stopped as signal:  # the step itself is done: keep it
                    stopped = signal
            values["time/step"] = time.monotonic() - started
            if writes:
                write_trajectories(
                    workdir / "trajectories" / f"step_{step:06d}.jsonl",
                    batch,
                    trajectories_QG,
                    scores_QG,
                    step=step,
                    adv_QG=adv_QG,
                )
            record(step, values)
            if values["group/zero_variance"] == 1.0:
                logging.warning("step %d: all groups scored alike and taught nothing", step)
            if stopped:
                raise stopped
            if step % config.checkpoint.every == 0 or step == config.steps:
                save(*last)
    except rollout.Stopped:
        save(*last)
        raise
    finally:
        checkpoints.close()
        if board:
            board.close()
        run.close()
    if writes:
        report.write_report(workdir)
        command.summary(metrics.read(workdir / "metrics.jsonl"))
    processes.gather([])  # the others end after process 0, which serves them all


def write_trajectories(path, questions, trajectories_QG, scores_QG, *, step, adv_QG=None):
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        for q, question in enumerate(questions):
            for g, found in enumerate(trajectories_QG[q]):
                line = trajectory.to_json(
                    found,
                    question=question,
                    step=step,
                    reward=scores_QG[q][g].value if scores_QG[q][g].known else None,
                    reward_source=scores_QG[q][g].source,
                    advantage=0.0 if adv_QG is None else float(adv_QG[q, g]),
                )
                file.write(json.dumps(line) + "\n")


def define_flags():
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("workdir", None, "Run folder; an existing run in it is resumed.")
    flags.DEFINE_bool("force", False, "Resume although the config differs from the run's.")
    flags.DEFINE_string("coordinator", None, "host:port of process 0, if there are several.")
    flags.DEFINE_integer("processes", None, "How many processes train together.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def main():
    values = flags.FLAGS
    with command.checking_config():
        processes.initialize(
            coordinator=values.coordinator,
            processes=values.processes,
            process_id=values.process_id,
        )
    train(values.config, values.workdir, force=values.force)


if __name__ == "__main__":
    define_flags()
    command.run(main, required=("config", "workdir"))
