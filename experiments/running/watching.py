"""Traces and profiles of the steps that `trace.steps` and `profile.steps` name.

traces/step_NNNNNN.json    phases of the step, the driver's thread, and each solver on a lane of its
                           own, as Chrome's trace events: open it in ui.perfetto.dev
profiles/step_NNNNNN/      what jax.profiler records: open it with TensorBoard or xprof

Of several processes, 0 makes them, of itself. Steps that are not named cost nothing.
"""

import contextlib
import json

import jax
from absl import logging

from agents import effects
from flow_grpo_jax import files, processes, timing

PHASES = "phases"  # the lane of a step's phases
TRAINING, SOLVERS = 1, 2  # process numbers in a trace, which group its lanes
MICROSECONDS = 1e6


class Watch:
    """What watches the steps of a training.

    trace: `timing.Trace` of the present step; None if it is not traced.
    """

    def __init__(self, config, workdir):
        first = processes.index() == 0
        self._traced = set(config.trace.steps) if first else ()
        self._profiled = set(config.profile.steps) if first else ()
        self._folder, self.trace, self._profiling = workdir, None, False
        self._annotated = contextlib.ExitStack()  # the present phase in a profile

    def steps(self, numbers):
        """Yields each number; what runs until the next one is asked for is that step."""
        for step in numbers:
            self.trace = timing.Trace() if step in self._traced else None
            with self._profile(step) if step in self._profiled else contextlib.nullcontext():
                self.phase("rollout")
                yield step
                self.phase(None)
            if self.trace:
                self._write(step)

    def phase(self, name):
        """Says what the step does from now on."""
        if self.trace:
            self.trace.mark(PHASES, name)
        if self._profiling:
            self._annotated.close()
            if name:
                self._annotated.enter_context(jax.profiler.TraceAnnotation(name))

    @contextlib.contextmanager
    def _profile(self, step):
        folder = self._folder / "profiles" / f"step_{step:06d}"
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # calls of Python would be millions
        try:
            jax.profiler.start_trace(str(folder), profiler_options=options)
        except (RuntimeError, OSError) as error:  # another profile is being made, or a full disk
            logging.warning("step %d is not profiled: %s", step, error)
            yield
            return
        self._profiling = True
        try:
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                yield
        finally:
            self._profiling = False
            self._annotated.close()
            try:
                jax.profiler.stop_trace()
            except (RuntimeError, OSError) as error:
                logging.warning("the profile of step %d is lost: %s", step, error)

    def _write(self, step):
        path = self._folder / "traces" / f"step_{step:06d}.json"
        try:
            with files.writing(path.parent):
                path.parent.mkdir(exist_ok=True)
            files.replace_text(path, json.dumps(as_events(self.trace.spans, step)) + "\n")
        except files.CannotWrite as error:
            logging.warning("the trace of step %d is lost: %s", step, error)


def as_events(spans, step):
    """Returns spans of a `timing.Trace` as a trace of Chrome's "JSON Object Format".

    Times are microseconds from the first span on.
    """
    began = min((start for _, _, start, _ in spans), default=0.0)
    lanes = sorted({lane for lane, *_ in spans}, key=_order)
    events = [
        _named("process_name", TRAINING, 0, f"training, step {step}"),
        _named("process_name", SOLVERS, 0, "solvers"),
    ]
    places = {}
    for number, lane in enumerate(lanes, start=1):
        solver = isinstance(lane, tuple)
        places[lane] = place = (SOLVERS if solver else TRAINING, number)
        label = "question {} ({}), rollout {}".format(*lane) if solver else lane
        events += [_named("thread_name", *place, label)]
        events += [{**_event("thread_sort_index", *place), "args": {"sort_index": number}}]
    for lane, name, start, end in spans:
        kind = "training"
        if isinstance(lane, tuple):
            kind = "model" if name in effects.ROLES else "tool"
        events.append(
            {
                **_event(name, *places[lane], phase="X"),
                "cat": kind,
                "ts": round((start - began) * MICROSECONDS, 3),
                "dur": round((end - start) * MICROSECONDS, 3),
            }
        )
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _order(lane):
    """Phases, the driver, then solvers by question and rollout."""
    return (1, lane[0], lane[2]) if isinstance(lane, tuple) else (0, 0 if lane == PHASES else 1, 0)


def _event(name, process, thread, phase="M"):
    return {"ph": phase, "name": name, "pid": process, "tid": thread}


def _named(kind, process, thread, name):
    return {**_event(kind, process, thread), "args": {"name": name}}
