"""The rollout driver: all solvers in flight at once, against one engine and a pool of tools.

Requests go to the engine as they come, tools and remote models run in threads meanwhile; no solver
waits for the slowest member of a round. The driver is one thread: the engine's.

While a remote model is down no trajectory is started, and trajectories that need it go back to the
queue; after its rest one is started, to try it.

Dimensions:
  Q questions    G rollouts of a question
"""

import collections
import contextlib
import dataclasses
import queue
import time
import zlib
from collections.abc import Callable

from absl import logging

from agents import drive, effects, prompts, questions
from agents.backends import errors
from agents.environments import protocol
from agents.trajectory import KINDS, Status
from flow_grpo_jax import attempts, processes, services, timing
from models.engine.types import Request, Sampling

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

    prompt_set: prompts.Prompts
    max_turns: int
    temperature: float
    max_prompt_tokens: int
    max_response_tokens: int
    max_module_tokens: int
    call_seconds: float
    trajectory_seconds: float
    in_flight: int
    infra_retries: int


class Stopped(Exception):
    """The caller asked to stop; no trajectory of the batch is returned."""


def collect(
    questions,
    *,
    group,
    step,
    system,
    settings,
    should_stop=lambda: False,
    on_finished=lambda trajectory: None,
    on_event=lambda event: None,
    timer=None,
    branching=None,
):
    """Solves every question `group` times; of several processes, each solves its share of them.

    Args:
      questions: Q dicts with "id" and "question", the same in every process.
      group: G, trajectories of each question.
      step: training step, part of every request's random address.
      system, settings, on_finished, on_event, timer: of `Driver`.
      branching: None, or the `branches.Branching` of the G trajectories.
      should_stop: polled while running; True raises `Stopped`.

    Returns:
      trajectories_QG: list of Q lists of G `Trajectory`, in order whatever finished first; the
      same in every process.
    """
    timer = timer or timing.Timer()
    driver = Driver(system, settings, on_finished=on_finished, on_event=on_event, timer=timer)
    way = attempts.Way(settings, on_finished, branching=branching)
    share = processes.share(len(questions))
    driver.add(questions, group=group, step=step, share=share, way=way)

    def solve_share():
        with timer.on("driver"):
            try:
                while driver.busy:
                    if should_stop():
                        raise Stopped
                    driver.round()
            finally:
                driver.abandon()
        return [(index, group) for _, index, group in driver.ready()]

    with timer.on("others"):
        group_of = dict(processes.together(solve_share, stop=Stopped, kinds=KINDS))
    return [group_of[q] for q in range(len(questions))]


@dataclasses.dataclass(eq=False)
class Driver:
    """Solves questions that are added at any time. One thread, the engine's, calls its methods.

        driver.add(questions, group=8, step=1)
        while driver.busy:
            driver.round()
            for step, index, trajectories_G in driver.ready(): ...

    on_finished: called with each trajectory as it ends.
    on_event: called with every effect, reply and `effects.Refusal`, as they happen.
    timer: counts this thread's time under the names of `SHARES`; its trace, if it has one, gets a
      lane for each rollout: what that waits for, a role's model or a tool.
    """

    system: services.System
    settings: Settings
    _: dataclasses.KW_ONLY
    on_finished: Callable = lambda trajectory: None
    on_event: Callable = lambda event: None
    timer: timing.Timer = dataclasses.field(default_factory=timing.Timer)

    def __post_init__(self):
        self._way = attempts.Way(self.settings, self.on_finished)
        models = map(self.system.model_of, effects.ROLES)
        self._remote = [model for model in models if not isinstance(model, str)]
        self._queue = collections.deque()  # (Question, rollout, number of the attempt)
        self._running = {}  # Attempt -> None, in the order of their start
        self._tickets = {}  # key -> Ticket
        self._ended = queue.SimpleQueue()  # calls, put by the threads that ended them
        self._ready = []  # Questions whose rollouts are all finished
        self._late_check = 0.0  # when to look for late ones next
        self._last_prompt = (), ()  # messages, their token ids

    def add(self, batch, *, group, step, share=None, rollouts=None, way=None):
        """Queues `group` rollouts of each question of a batch.

        Args:
          batch: dicts with "id" and "question".
          step: training step, part of every request's random address.
          share: indices of the questions to solve; None is all of them. The others only count as
            copies: a batch may hold a question twice, which must not be solved alike.
          rollouts: numbers below `group` of those that are wanted; None is all.
          way: `attempts.Way`; None is the driver's: the policy plans.

        Raises:
          ValueError: a question holds more than text.
        """
        for question in batch:
            questions.refuse_images(question)
        way, wanted = way or self._way, tuple(range(group) if rollouts is None else rollouts)
        if not isinstance(way.planner, str) and way.planner not in self._remote:
            self._remote.append(way.planner)
        ids = [zlib.crc32(question["id"].encode()) for question in batch]
        for index in range(len(batch)) if share is None else share:
            address = step, ids[index], ids[:index].count(ids[index])
            question = attempts.Question(batch[index], step, index, wanted, address, way)
            self._queue.extend((question, rollout, 0) for rollout in question.roots)

    @property
    def busy(self):
        """Whether a rollout that was added has not ended."""
        return bool(self._queue or self._running)

    def ready(self):
        """Hands out the groups that ended since the last call: [(step, index, trajectories_G)]."""
        ended, self._ready = self._ready, []
        return [(q.step, q.index, [q.finished[g] for g in q.rollouts]) for q in ended]

    def round(self):
        """Starts what may start, advances the engine, hands out results, ends what is late."""
        while self._queue and self._may_start():
            self._start(*self._queue.popleft())
        engine = self.system.engine
        if engine.pending:
            with self.timer.on("engine"):
                answered = engine.advance()
            for key, completion in answered:
                self._deliver(key, completion)
        if not engine.pending:
            self._idle()
        while not self._ended.empty():
            self._receive(self._ended.get())
        if time.monotonic() >= self._late_check:
            self._end_late()

    def abandon(self):
        """Drops what is not finished; leaves no request in the engine and no call in the pool."""
        for ticket in self._tickets.values():
            self._cancel(ticket)
        left = {key for key, ticket in self._tickets.items() if ticket.call is None}
        while left and self.system.engine.pending:
            left -= {key for key, _ in self.system.engine.advance()}
        self._queue.clear()
        for attempt in list(self._running):
            self._leave(attempt)
        self._tickets.clear()

    # ---- attempts --------------------------------------------------------------------------------

    def _may_start(self):
        states = {model.state for model in self._remote}
        if "down" in states or ("unknown" in states and self._running):
            return False
        return len(self._running) < self.settings.in_flight

    def _start(self, question, rollout, number):
        settings = question.way.settings
        play, tools = self.system.begin(question.fields), self.system.tools
        if play:
            tools = tools | play.tools
        solver = question.way.solver(
            question.fields,
            tools=tools,
            prompt_set=settings.prompt_set,
            max_turns=settings.max_turns,
            budget=prompts.Budget(settings.max_prompt_tokens, self._length),
            on_refusal=self.on_event,
            **question.start_of(rollout),
        )
        if play:
            solver = protocol.scored(solver, play)
        attempt = attempts.Attempt(
            solver, question, rollout, number, time.monotonic(), tools=tools, play=play
        )
        self._running[attempt] = None
        self._advance(attempt, None)

    def _advance(self, attempt, sent):
        """Sends a reply into the solver and starts what it asks for next."""
        attempt.ticket = None
        if sent is not None:
            self.on_event(sent)
        solver = attempt.solver
        resume = solver.throw if isinstance(sent, effects.Interrupted) else solver.send
        try:
            with self.timer.on("solvers"):
                effect = resume(sent)
        except StopIteration as stop:
            self._finish(attempt, stop.value)
            return
        except Exception as error:  # noqa: BLE001  a defect costs its trajectory, not the run
            self._finish(attempt, attempts.as_broken(attempt, f"{type(error).__name__}: {error}"))
            return
        self.on_event(effect)
        self._mark(attempt, getattr(effect, "tool", None) or effect.role)
        if isinstance(effect, effects.ToolCall):
            self._call(attempt, effect)
        elif isinstance(effect, effects.Score):
            self._submit(attempt, effect.by, effect.trajectory)
        elif effect.role == "analyst":
            self._ask_analysis(attempt, effect)
        else:
            self._ask(attempt, effect)

    def _finish(self, attempt, trajectory):
        question, rollout = attempt.question, attempt.rollout
        self._leave(attempt)
        if trajectory.status == Status.INFRA_ERROR:
            logging.warning(
                "question %s rollout %d attempt %d failed: %s",
                trajectory.question_id,
                rollout,
                attempt.number,
                trajectory.error,
            )
            if attempt.number < self.settings.infra_retries:
                self._queue.appendleft((question, rollout, attempt.number + 1))
                return
        branch = question.branches.get(rollout)
        trajectory = dataclasses.replace(trajectory, attempts=attempt.number + 1, branch=branch)
        question.finished[rollout] = trajectory
        ended = [trajectory]
        if question.way.branching and rollout in question.roots:
            started, copies = question.branch(trajectory)
            # Next, while the pages of the prompts that they share are in the cache.
            self._queue.extendleft((question, g, 0) for g in reversed(started))
            ended += copies
        if len(question.finished) == len(question.rollouts):
            self._ready.append(question)
        for each in ended:
            question.way.on_finished(each)

    def _leave(self, attempt):
        """Forgets an attempt; its episode closes in the pool, since that may wait."""
        self._mark(attempt, None)
        del self._running[attempt]
        if attempt.play:
            self.system.end(attempt.play)

    def _requeue(self, attempt):
        """Requeues a trajectory whose server was down before it was asked."""
        attempt.solver.close()
        self._leave(attempt)
        self._queue.appendleft((attempt.question, attempt.rollout, attempt.number))

    def _mark(self, attempt, name):
        """Says in the trace, if one is made, what an attempt waits for from now on."""
        if self.timer.trace:
            self.timer.trace.mark(attempt.lane, name)

    # ---- requests and calls ----------------------------------------------------------------------

    def _call(self, attempt, effect):
        """Runs a tool in the pool."""
        self._submit(attempt, drive.call_tool, attempt.tools[effect.tool], effect.arguments)

    def _submit(self, attempt, function, *arguments):
        """Runs a function in the pool, which the attempt waits for."""
        ticket = attempts.Ticket([attempt])

        def run():
            ticket.started = time.monotonic()
            return function(*arguments)

        with self.timer.on("calls"):
            self._wait_for(ticket, self.system.pool.submit(run))

    def _ask(self, attempt, request):
        """Puts a request to what answers its role; returns the ticket."""
        planner = request.role == "planner"
        way, settings = attempt.question.way, attempt.question.way.settings
        model = way.planner if planner else self.system.model_of(request.role)
        most = settings.max_response_tokens if planner else settings.max_module_tokens
        if not isinstance(model, str):
            with self.timer.on("calls"):
                call = model.submit(
                    request.messages,
                    max_tokens=most,
                    deadline=attempt.started + self.settings.trajectory_seconds,
                )
                return self._wait_for(attempts.Ticket([attempt]), call)
        tokens = self._tokens_of(request.messages)
        sampling = Sampling(
            max_tokens=most,
            temperature=settings.temperature if planner else 0.0,
            top_p=way.top_p if planner else 1.0,
            stop_ids=self.system.tokenizer.eos_ids,
        )
        address = (
            *attempt.question.address,
            attempt.question.draws_as(attempt.rollout, request),
            request.turn,
            effects.ROLES.index(request.role),
        )
        with self.timer.on("engine"):
            constraint = None
            if self.system.grammars and request.form:
                constraint = self.system.grammars.expression(request.form)
            key = self.system.engine.submit(
                Request(tokens, sampling, model, address, constraint=constraint)
            )
        return self._wait_for(attempts.Ticket([attempt], tokens), key)

    def _ask_analysis(self, attempt, request):
        """Asks for the analysis once a question: it is greedy and depends on nothing else."""
        question = attempt.question
        known = question.analysis
        if known is None or (isinstance(known, attempts.Ticket) and known.failed):
            question.analysis = self._ask(attempt, request)
        elif isinstance(known, effects.Reply):
            self._advance(attempt, known)
        else:
            attempt.ticket = known
            known.attempts.append(attempt)

    def _wait_for(self, ticket, key):
        """Lists a ticket under a request's id or a call's Future; returns it."""
        ticket.key = key
        self._tickets[key] = ticket
        for attempt in ticket.attempts:
            attempt.ticket = ticket
        if ticket.call:
            ticket.call.add_done_callback(self._ended.put)
        return ticket

    def _length(self, messages):
        return len(self._tokens_of(messages))

    def _tokens_of(self, messages):
        """Returns the token ids of a prompt; keeps the last one: what was counted is sent next."""
        if self._last_prompt[0] is not messages:
            with self.timer.on("tokens"):
                self._last_prompt = messages, tuple(self.system.tokenizer.chat(messages))
        return self._last_prompt[1]

    # ---- results ---------------------------------------------------------------------------------

    def _idle(self):
        """Waits until a call ends, but not for long."""
        with self.timer.on("idle"), contextlib.suppress(queue.Empty):
            self._ended.put(self._ended.get(timeout=IDLE_SECONDS))

    def _deliver(self, key, completion):
        """Hands what the engine drew to the attempts that wait for it."""
        ticket = self._tickets.pop(key)
        if completion.stop_reason == "cancelled":  # its last attempt left
            return
        tokens = tuple(completion.tokens.tolist())
        ended = completion.stop_reason == "stop"
        with self.timer.on("tokens"):
            text = self.system.tokenizer.decode(tokens[:-1] if ended else tokens)
        reply = effects.Reply(
            text=text,
            prompt_tokens=ticket.prompt_tokens,
            tokens=tokens,
            logprobs=tuple(completion.logprobs.tolist()),
            finished=ended,
        )
        self._settle(ticket, reply)

    def _receive(self, call):
        """Hands the result of a call to the attempts that wait for it."""
        ticket = self._tickets.pop(call, None)  # None: of an abandoned attempt
        if ticket and ticket.attempts:  # else it was cancelled
            error = call.exception()
            self._settle(ticket, call.result() if error is None else error)

    def _settle(self, ticket, outcome):
        """Sends the outcome of a ticket to its attempts.

        outcome: a `Reply` or a `ToolResult`; or the exception that a call ended with, which is not
          the model's fault and interrupts the trajectory.
        """
        failed = isinstance(outcome, BaseException)
        for attempt in list(ticket.attempts):
            if attempt.question.analysis is ticket:
                attempt.question.analysis = None if failed else outcome
            late = time.monotonic() - attempt.started >= self.settings.trajectory_seconds
            if isinstance(outcome, errors.Down):
                self._requeue(attempt)
            elif failed and late:
                self._time_out(attempt)
            elif failed:
                reason = f"{type(outcome).__name__}: {outcome}"
                self._advance(attempt, effects.Interrupted(Status.INFRA_ERROR, reason))
            else:
                self._advance(attempt, outcome)

    def _end_late(self):
        """Interrupts trajectories past their deadline and tool calls that hang."""
        now = time.monotonic()
        self._late_check = now + LATE_SECONDS
        for attempt in list(self._running):
            ticket, seconds = attempt.ticket, self.settings.call_seconds
            if ticket.call and ticket.call.done():
                continue
            if now - attempt.started >= self.settings.trajectory_seconds:
                self._time_out(attempt)
            elif now - ticket.started > seconds:
                self._interrupt(attempt, Status.INFRA_ERROR, f"a tool call hung for {seconds} s")

    def _time_out(self, attempt):
        seconds = self.settings.trajectory_seconds
        self._interrupt(attempt, Status.TIMEOUT, f"{seconds} s are over")

    def _interrupt(self, attempt, status, reason):
        """Ends an attempt where it is; cancels what only it waited for."""
        ticket = attempt.ticket
        ticket.attempts.remove(attempt)
        if not ticket.attempts:
            self._cancel(ticket)
            if attempt.question.analysis is ticket:
                attempt.question.analysis = None
        self._advance(attempt, effects.Interrupted(status, reason))

    def _cancel(self, ticket):
        if ticket.call:
            ticket.call.cancel()
        else:
            self.system.engine.cancel(ticket.key)
