"""Asks every question of an evaluation that its ledger does not have yet.

Everything runs through one driver and one engine, hundreds of questions at once. The random
addresses of a trajectory are a function of (benchmark, question id, trial) and the turn: not of
mode, protocol or budget, so that these are compared on the same random numbers, and not of what
else runs or ran before, so that a resumed evaluation has the trajectories of an undisturbed one.
"""

import collections
import dataclasses
import functools
import sys
import time

from absl import logging

from agents import bare
from agents import solve as agent
from experiments.evaluating import results
from experiments.evaluating.ledger import Key
from experiments.running import sessions
from flow_grpo_jax import attempts, rollout
from flow_grpo_jax.rollout import Stopped

BAR_WIDTH = 24
LOG_SECONDS = 60.0  # between two lines where there is no terminal


def keys(benchmarks, arms, trials):
    """Yields (benchmark, question, arm, trial, its Keys: one for each turn budget), in order."""
    for arm in arms:
        for benchmark in benchmarks:
            for question in benchmark.questions:
                for trial in range(trials):
                    first = benchmark.name, question["id"], arm.mode, arm.protocol
                    yield (
                        benchmark,
                        question,
                        arm,
                        trial,
                        [Key(*first, turns, trial) for turns in arm.budgets],
                    )


def missing(benchmarks, arms, trials, ledger):
    """Counts the trajectories that are still to be asked for, and all of them."""
    wanted = [found for *_, found in keys(benchmarks, arms, trials)]
    return sum(not all(map(ledger.finished, found)) for found in wanted), len(wanted)


def run(benchmarks, arms, trials, *, answering, ledger, config, should_stop):
    """Solves what is missing; every trajectory is in the ledger as soon as it ends.

    Infrastructure failures are retried as `rollout.infra_retries` says, then written as such.

    Raises:
      rollout.Stopped: `should_stop` said so.
    """
    left, total = missing(benchmarks, arms, trials, ledger)
    progress = Progress(done=total - left, total=total)
    for benchmark, question, arm, _, found in keys(benchmarks, arms, trials):
        if all(map(ledger.finished, found)):
            line = ledger.read(found[-1])["trajectory"]
            score = results.official_score(benchmark, question, line)
            progress.count(benchmark.name, arm.name, score)
    settings = sessions.rollout_settings(config, temperature=config.eval.temperature)
    driver = rollout.Driver(answering.system, settings)
    planners = {arm.name: answering.planner(arm) for arm in arms}
    for batch in _batches(benchmarks, arms, trials, ledger):
        _add(driver, batch, settings, planners[batch.arm.name], ledger, progress)
    try:
        while driver.busy:
            if should_stop():
                raise Stopped
            driver.round()
            driver.ready()  # told already
    finally:
        driver.abandon()
        progress.close()


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Trials of one question that miss the same turn budgets."""

    benchmark: object
    question: dict
    arm: object
    budgets: tuple
    trials: tuple


def _batches(benchmarks, arms, trials, ledger):
    waiting = collections.defaultdict(list)
    about = {}
    for benchmark, question, arm, trial, found in keys(benchmarks, arms, trials):
        budgets = tuple(key.max_turns for key in found if not ledger.finished(key))
        if budgets:
            place = arm.name, benchmark.name, question["id"], budgets
            about[place] = benchmark, question, arm, budgets
            waiting[place].append(trial)
    return [_Batch(*about[place], tuple(numbers)) for place, numbers in waiting.items()]


def _add(driver, batch, settings, planner, ledger, progress):
    """Queues a `_Batch`."""
    arm, benchmark, question = batch.arm, batch.benchmark, batch.question
    *smaller, largest = batch.budgets

    def record(solved):
        ended = {turns: solved.earlier.get(turns, solved) for turns in smaller} | {largest: solved}
        first = benchmark.name, question["id"], arm.mode, arm.protocol
        lines = {Key(*first, turns, solved.rollout): one for turns, one in ended.items()}
        ledger.add(lines, question)
        line = {"answer": solved.answer, "status": solved.status}
        score = results.official_score(benchmark, question, line)
        progress.advance(benchmark.name, arm.name, score)

    solver = bare.solve
    if arm.mode != "bare":
        solver = functools.partial(agent.solve, answer_at=tuple(smaller))
    how = dataclasses.replace(
        settings,
        max_turns=largest,
        temperature=arm.temperature,
        max_response_tokens=arm.max_response_tokens,
    )
    way = attempts.Way(how, record, planner, arm.top_p, solver)
    named = question | {"id": f"{benchmark.name}/{question['id']}"}
    driver.add([named], group=max(batch.trials) + 1, step=0, rollouts=batch.trials, way=way)


class Progress:
    """A bar on a terminal, a line of the log each minute elsewhere: time left, and a score.

    The score is the mean so far of the benchmark and planner that a trajectory just ended of.
    """

    def __init__(self, *, done, total, clock=time.monotonic, stream=None):
        self._first = self._done = done
        self._total, self._clock = total, clock
        self._stream = stream or sys.stderr
        self._start = self._told = clock()
        self._scores = collections.defaultdict(list)

    def count(self, benchmark, planner, score):
        """Takes in the score of a trajectory that was there already."""
        self._scores[benchmark, planner].append(score)

    def advance(self, benchmark, planner, score):
        self._done += 1
        self.count(benchmark, planner, score)
        now = self._clock()
        if self._stream.isatty():
            filled = BAR_WIDTH * self._done // self._total
            bar = "█" * filled + "·" * (BAR_WIDTH - filled)
            self._stream.write(f"\r\033[K{bar} {self.text(benchmark, planner)}")
            self._stream.flush()
        elif now - self._told >= LOG_SECONDS:
            self._told = now
            logging.info("%s", self.text(benchmark, planner))

    def text(self, benchmark, planner):
        asked = self._done - self._first
        left = (self._clock() - self._start) / asked * (self._total - self._done)
        scores = self._scores[benchmark, planner]
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return (
            f"{self._done}/{self._total} {benchmark} {planner} "
            f"score {sum(scores) / len(scores):.3f} left {hours}:{minutes:02}:{seconds:02}"
        )

    def close(self):
        if self._stream.isatty():
            self._stream.write("\r\033[K")
            self._stream.flush()
