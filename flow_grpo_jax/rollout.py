"""The rollout driver: all solvers in flight at once, against one engine and a pool of tools.

Requests go to the engine as they come, tools and remote models run in threads meanwhile; nobody
waits for the slowest member of a round. The driver is one thread: the engine's.

While a remote model is down no trajectory is started, and those that need it go back to the queue;
after its rest one is started, to try it.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import queue
import time
import zlib

from absl import logging

from agents import drive, effects, prompts, solve
from agents.backends import errors
from agents.trajectory import Trajectory
from flow_grpo_jax import processes, timing
from models.engine.types import Request, Sampling

# What answers a role unless `collect` is told otherwise: a weight set of the engine.
WEIGHTS = {role: "policy" if role == "planner" else "frozen" for role in effects.ROLES}
IDLE_SECONDS = 0.02  # how long to wait for tools when the engine has nothing to do
LATE_SECONDS = 0.1  # how often to look for what takes too long
# What the driver's thread spends time on: token ids of prompts and texts of replies; prompts,
# parsers and memory; handing out calls of tools and remote models; the rest of this file.
OVERHEAD = ("tokens", "solvers", "calls", "driver")
SHARES = ("engine", *OVERHEAD, "idle", "others")  # idle: it waits for calls; or for other processes


@dataclasses.dataclass(frozen=True)
class Settings:
    """Limits of the rollouts; seconds are wall-clock.

    temperature: of the planner; 0 is greedy. The frozen modules always decode greedily.
    call_seconds: a tool call that takes longer is an infrastructure failure (tools keep their own,
      shorter deadlines, which the model is told of).
    trajectory_seconds: a trajectory that takes longer ends with status "timeout".
    in_flight: most trajectories at once; the clock of a further one starts when it does.
    infra_retries: how often a trajectory is started again after an infrastructure failure.
    """

    prompt_set: object
    max_turns: int
    temperature: float
    max_prompt_tokens: int
    max_response_tokens: int
    max_module_tokens: int
    call_seconds: float
    trajectory_seconds: float
    in_flight: int = 256
    infra_retries: int = 1


class Stopped(Exception):
    """The caller asked to stop; no trajectory of the batch is returned."""


@dataclasses.dataclass(eq=False)
class _Running:
    """One solver and what it waits for: an engine request, a tool call, or its group's analysis."""

    solver: object
    question: int
    rollout: int
    started: float
    attempt: int = 0
    request: int | None = None
    call: concurrent.futures.Future | None = None
    call_started: float = float("inf")  # until a thread of the pool takes it up


def collect(
    questions,
    *,
    group,
    engine,
    tokenizer,
    tools,
    pool,
    settings,
    step,
    models=None,
    grammars=None,
    should_stop=lambda: False,
    on_finished=lambda trajectory: None,
    on_event=lambda event: None,
    timer=None,
):
    """Solves every question `group` times; of several processes, each solves its share of them.

    Args:
      questions: Q dicts with "id" and "question", the same in every process.
      group: G, trajectories of each question.
      engine: `models.engine.engine.Engine` serving "policy" and "frozen".
      tools: dict name -> Tool.
      pool: ThreadPoolExecutor for the tools.
      step: training step, part of every request's random address.
      models: role -> what answers it, "frozen" or "policy" of the engine, or a remote model
        (`agents.backends.modules.Module`). Roles left out are answered by "frozen"; the planner is
        always "policy".
      grammars: None, or the `models.engine.grammar.Grammars` that hold the engine's replies to the
        forms of their roles; the engine must be built for constraints. The planner is always free.
      should_stop: polled while running; True raises `Stopped`.
      on_finished: called with each trajectory as it ends.
      on_event: called with every effect and every reply to one, as they happen.
      timer: `timing.Timer` to count this thread's time with, under the names of `SHARES`.

    Returns:
      trajectories_QG: list of Q lists of G `Trajectory`, in order whatever finished first; the
      same in every process.
    """
    timer = timer or timing.Timer()
    driver = _Driver(
        questions,
        engine,
        tokenizer,
        tools,
        pool,
        settings,
        step,
        models,
        grammars,
        on_finished,
        on_event,
        timer,
    )
    mine = processes.share(len(questions))

    def solve_mine():
        with timer.on("driver"):
            try:
                driver.waiting.extend((q, g, 0) for q, g in itertools.product(mine, range(group)))
                while driver.waiting or driver.running:
                    if should_stop():
                        raise Stopped
                    while driver.waiting and driver.may_start():
                        driver.start(*driver.waiting.popleft())
                    driver.turn_the_crank()
            finally:
                driver.abandon()
        return [(q, [driver.finished[q, g] for g in range(group)]) for q in mine]

    with timer.on("others"):
        group_of = dict(processes.together(solve_mine, stop=Stopped))
    return [group_of[q] for q in range(len(questions))]


class _Driver:
    def __init__(
        self,
        questions,
        engine,
        tokenizer,
        tools,
        pool,
        settings,
        step,
        models,
        grammars,
        on_finished,
        on_event,
        timer,
    ):
        if models and "planner" in models:
            raise ValueError("The planner is answered by the policy, which is trained.")
        self.questions, self.engine, self.tokenizer = questions, engine, tokenizer
        self.tools, self.pool, self.settings = tools, pool, settings
        for question in questions:
            solve.refuse_images(question)
        self.budget = prompts.Budget(
            settings.max_prompt_tokens, lambda messages: len(self.tokens_of(messages))
        )
        self.timer = timer
        self.step, self.on_finished, self.on_event = step, on_finished, on_event
        self.grammars = grammars
        self.models = WEIGHTS | (models or {})
        self.remote = [model for model in self.models.values() if not isinstance(model, str)]
        self.waiting = collections.deque()  # (question, rollout, attempt)
        self.running = {}  # (question, rollout) -> _Running
        self.finished = {}  # (question, rollout) -> Trajectory
        self.by_request = {}  # engine request -> runs it answers, its prompt tokens
        self.by_call = {}  # call that was not received -> runs it answers
        self.ended = queue.SimpleQueue()  # calls, put by the threads that ended them
        self.late_check = 0.0  # when to look for late ones next
        self.last_prompt = (), ()  # messages, their token ids
        self.analyses = {}  # question -> engine request or call of its analysis, or the Reply
        ids = [zlib.crc32(question["id"].encode()) for question in questions]
        # A batch may hold a question twice; its copies must not be solved alike.
        self.addresses = [(id, ids[:index].count(id)) for index, id in enumerate(ids)]

    def may_start(self):
        states = {model.state for model in self.remote}
        if "down" in states or ("unknown" in states and self.running):
            return False
        return len(self.running) < self.settings.in_flight

    def start(self, question, rollout, attempt=0):
        solver = solve.solve(
            self.questions[question],
            tools=self.tools,
            prompt_set=self.settings.prompt_set,
            max_turns=self.settings.max_turns,
            budget=self.budget,
            rollout=rollout,
        )
        run = _Running(solver, question, rollout, time.monotonic(), attempt)
        self.running[question, rollout] = run
        self.advance(run, None)

    def advance(self, run, sent):
        """Sends a reply into the solver and starts what it asks for next."""
        run.request = run.call = None
        run.call_started = float("inf")
        if sent is not None:
            self.on_event(sent)
        step = run.solver.throw if isinstance(sent, effects.Interrupted) else run.solver.send
        try:
            with self.timer.on("solvers"):
                effect = step(sent)
        except StopIteration as stop:
            self.finish(run, stop.value)
            return
        except Exception as error:  # noqa: BLE001  a defect costs its trajectory, not the run
            self.finish(run, self.broken(run, f"{type(error).__name__}: {error}"))
            return
        self.on_event(effect)
        if isinstance(effect, effects.ToolCall):
            tool = self.tools[effect.tool]
            with self.timer.on("calls"):
                self.wait_for(run, self.pool.submit(_call_tool, run, tool, effect.arguments))
        elif effect.role == "analyst":
            self.ask_analysis(run, effect)
        else:
            self.ask(run, effect)

    def tokens_of(self, messages):
        """Token ids of a prompt; the last one is kept, for what was counted is sent next."""
        if self.last_prompt[0] is not messages:
            with self.timer.on("tokens"):
                self.last_prompt = messages, tuple(self.tokenizer.chat(messages))
        return self.last_prompt[1]

    def broken(self, run, error):
        return Trajectory(
            question_id=self.questions[run.question]["id"],
            rollout=run.rollout,
            analysis="",
            turns=(),
            answer="",
            status="infra_error",
            stop="budget",
            seconds=time.monotonic() - run.started,
            error=error,
        )

    def ask(self, run, request):
        model = self.models[request.role]
        if not isinstance(model, str):
            with self.timer.on("calls"):
                call = model.submit(
                    request.messages,
                    max_tokens=self.settings.max_module_tokens,
                    deadline=run.started + self.settings.trajectory_seconds,
                )
                self.wait_for(run, call)
            return
        tokens = self.tokens_of(request.messages)
        planner = request.role == "planner"
        analyst = request.role == "analyst"
        settings = self.settings
        sampling = Sampling(
            max_tokens=settings.max_response_tokens if planner else settings.max_module_tokens,
            temperature=settings.temperature if planner else 0.0,
            stop_ids=self.tokenizer.eos_ids,
        )
        address = (
            self.step,
            *self.addresses[run.question],
            0 if analyst else run.rollout,
            request.turn,
            effects.ROLES.index(request.role),
        )
        with self.timer.on("engine"):
            constraint = None
            if self.grammars and request.form:
                constraint = self.grammars.expression(request.form)
            run.request = self.engine.submit(
                Request(tokens, sampling, model, address, constraint=constraint)
            )
        self.by_request[run.request] = ([run], tokens)

    def ask_analysis(self, run, request):
        """The analysis is greedy and depends on the question only: one request for the group."""
        known = self.analyses.get(run.question)
        if isinstance(known, concurrent.futures.Future) and known.done():
            known = None if known.cancelled() or known.exception() else known.result()
        if known is None:
            self.ask(run, request)
            self.analyses[run.question] = run.request if run.call is None else run.call
        elif isinstance(known, effects.Reply):
            self.advance(run, known)
        elif isinstance(known, concurrent.futures.Future):
            run.call = known
            self.by_call[known].append(run)
        else:
            run.request = known
            self.by_request[known][0].append(run)

    def wait_for(self, run, call):
        run.call = call
        self.by_call[call] = [run]
        call.add_done_callback(self.ended.put)

    def turn_the_crank(self):
        """One round: engine, ended calls, deadlines."""
        if self.engine.pending:
            with self.timer.on("engine"):
                answered = self.engine.advance()
            for identity, completion in answered:
                self.deliver(identity, completion)
        if not self.engine.pending:
            self.idle()
        while not self.ended.empty():
            self.receive(self.ended.get())
        if time.monotonic() >= self.late_check:
            self.end_late()

    def idle(self):
        """Waits until a call ends, but not for long."""
        with self.timer.on("idle"), contextlib.suppress(queue.Empty):
            self.ended.put(self.ended.get(timeout=IDLE_SECONDS))

    def receive(self, call):
        """Hands the result of a call to those that wait for it."""
        for run in self.by_call.pop(call):
            late = time.monotonic() - run.started >= self.settings.trajectory_seconds
            if isinstance(call.exception(), errors.Down):
                self.postpone(run)
            elif late and call.exception():
                self.time_out(run)
            else:
                self.advance(run, _result_of(call))

    def end_late(self):
        now = time.monotonic()
        self.late_check = now + LATE_SECONDS
        for run in list(self.running.values()):
            if run.call and run.call.done():
                continue
            if now - run.started >= self.settings.trajectory_seconds:
                self.time_out(run)
            elif run.call and now - run.call_started > self.settings.call_seconds:
                self.interrupt(
                    run, "infra_error", f"a tool call hung for {self.settings.call_seconds} s"
                )

    def time_out(self, run):
        self.interrupt(run, "timeout", f"{self.settings.trajectory_seconds} s are over")

    def deliver(self, identity, completion):
        runs, prompt_tokens = self.by_request.pop(identity)
        if completion.stop_reason == "cancelled":
            if self.analyses.get(runs[0].question) == identity:
                del self.analyses[runs[0].question]
            return
        tokens = tuple(completion.tokens.tolist())
        ended = completion.stop_reason == "stop"
        with self.timer.on("tokens"):
            text = self.tokenizer.decode(tokens[:-1] if ended else tokens)
        reply = effects.Reply(
            text=text,
            prompt_tokens=prompt_tokens,
            tokens=tokens,
            logprobs=tuple(completion.logprobs.tolist()),
            finished=ended,
        )
        for run in runs:
            if self.analyses.get(run.question) == identity:
                self.analyses[run.question] = reply
            if run.request == identity:  # else it was interrupted meanwhile
                self.advance(run, reply)

    def interrupt(self, run, status, reason):
        if run.request is not None and len(self.by_request[run.request][0]) == 1:
            self.engine.cancel(run.request)
        if run.call in self.by_call:
            others = self.by_call[run.call]
            others.remove(run)
            if not others:
                run.call.cancel()
        self.advance(run, effects.Interrupted(status, reason))

    def postpone(self, run):
        """Starts the trajectory anew when the server that was not even asked is up again."""
        run.solver.close()
        key = run.question, run.rollout
        del self.running[key]
        self.waiting.appendleft((*key, run.attempt))

    def finish(self, run, trajectory):
        key = run.question, run.rollout
        del self.running[key]
        if trajectory.status == "infra_error":
            logging.warning(
                "question %s rollout %d attempt %d failed: %s",
                trajectory.question_id,
                run.rollout,
                run.attempt,
                trajectory.error,
            )
            if run.attempt < self.settings.infra_retries:
                self.waiting.appendleft((*key, run.attempt + 1))
                return
        trajectory = dataclasses.replace(trajectory, attempts=run.attempt + 1)
        self.finished[key] = trajectory
        self.on_finished(trajectory)

    def abandon(self):
        """Leaves no request in the engine and no call in the queue."""
        for run in self.running.values():
            if run.call:
                run.call.cancel()
        for identity in self.by_request:
            self.engine.cancel(identity)
        while self.by_request and self.engine.pending:
            for identity, _ in self.engine.advance():
                self.by_request.pop(identity, None)


def _call_tool(run, tool, arguments):
    run.call_started = time.monotonic()
    return drive.call_tool(tool, arguments)


def _result_of(call):
    """The tool's result; what broke that was not the model's doing interrupts the trajectory."""
    error = call.exception()
    if error is None:
        return call.result()
    return effects.Interrupted("infra_error", f"{type(error).__name__}: {error}")
