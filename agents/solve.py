"""The agent loop (paper section 3.1) as a generator of effects: no threads, no sockets, no JAX."""

import dataclasses
import time
from collections.abc import Callable

from agents import forms, parsing, prompts, questions
from agents.effects import Interrupted, ModelRequest, Refusal, ToolCall
from agents.memory import Entry, Memory
from agents.trajectory import Status, Stop, Trajectory, Turn


@dataclasses.dataclass(frozen=True)
class _Task:
    """What stays the same from turn to turn."""

    query: str
    analysis: str
    tools: dict
    prompt_set: prompts.Prompts
    budget: prompts.Budget
    clock: Callable
    on_refusal: Callable


def solve(
    question,
    *,
    tools,
    prompt_set,
    max_turns,
    answer_at=(),
    budget=prompts.Budget(),  # noqa: B008  immutable
    rollout=0,
    analysis=None,
    before=(),
    clock=time.monotonic,
    on_refusal=lambda refusal: None,
):
    """Solves one question.

    Yields `ModelRequest` (send the `Reply`) and `ToolCall` (send the `ToolResult`); returns a
    `Trajectory`. An `Interrupted` thrown in at a yield ends it with the turns finished so far.

    Args:
      question: dict with "id" and "question", see `questions.refuse_images`.
      tools: dict name -> `tools.protocol.Tool`.
      prompt_set: `prompts.Prompts`.
      max_turns: turn budget, at least 1.
      answer_at: smaller turn budgets. What they would have ended with is kept in `earlier`: a
        budget changes no prompt but the generator's, which is asked once more at each of them.
      budget: `prompts.Budget` of every prompt.
      rollout: index among the trajectories of the question.
      analysis: known already, so that it is not asked for; None is not known.
      before: `Turn`s that are taken already. Nothing of them is asked or called again: the solver
        goes on from their memory.
      clock: seconds; only for the record.
      on_refusal: called with a `Refusal` for every module text that its parser refuses.
    """
    if max_turns < 1:
        raise ValueError(f"max_turns={max_turns} is less than 1.")
    questions.refuse_images(question)
    start, query = clock(), question["question"]
    memory, turns, earlier = _remembered(before), [*before], {}
    status, stop = Status.OK, Stop.BUDGET

    def ended(**how):
        return Trajectory(
            question_id=question["id"],
            rollout=rollout,
            analysis=analysis or "",
            turns=tuple(turns),
            seconds=clock() - start,
            **how,
        )

    try:
        if analysis is None:
            messages, _ = prompts.fit(
                lambda _: prompts.analyst(prompt_set, tools, query), memory, budget
            )
            analysis = (yield ModelRequest("analyst", messages)).text.strip()
        task = _Task(query, analysis, tools, prompt_set, budget, clock, on_refusal)
        for index in range(len(before) + 1, max_turns + 1):
            turn, memory = yield from _turn(task, index, memory)
            turns.append(turn)
            if not turn.finished:
                status = Status.TRUNCATED
            if turn.verdict == "STOP":
                stop = Stop.VERIFIED
                break
            if index in answer_at and index < max_turns:
                how = yield from _answer(task, memory, status, stop)
                earlier[index] = ended(**how)
        how = yield from _answer(task, memory, status, stop)
    except prompts.PromptTooLong as too_long:
        how = dict(answer="", status=Status.TRUNCATED, stop=stop, error=str(too_long))
    except Interrupted as interrupted:
        if interrupted.status == Status.TIMEOUT:
            stop = Stop.DEADLINE
        how = dict(answer="", status=interrupted.status, stop=stop, error=str(interrupted))
    final = ended(**how)
    earlier |= {turns: final for turns in answer_at if turns not in earlier and turns < max_turns}
    return dataclasses.replace(final, earlier=earlier)


def _answer(task, memory, status, stop):
    """Asks for the final answer. Returns answer, status, stop and error of the trajectory."""
    answer, error = "", ""
    try:
        messages, _ = prompts.fit(
            lambda m: prompts.generator(task.prompt_set, task.query, task.analysis, m),
            memory,
            task.budget,
        )
        wrote = yield ModelRequest("generator", messages, form=forms.ANSWER)
        answer = parsing.answer(wrote.text)
    except prompts.PromptTooLong as too_long:
        status, error = Status.TRUNCATED, str(too_long)
    except parsing.ParseError as refused:
        task.on_refusal(Refusal("generator", str(refused)))
        stop = Stop.PARSE_ERROR
    return dict(answer=answer, status=status, stop=stop, error=error)


def _remembered(turns):
    """Returns the Memory after turns, as `_turn` left it."""
    entries = (
        Entry(
            sub_goal=turn.sub_goal,
            tool=turn.tool,
            command=turn.command,
            result=turn.result,
            error=turn.tool_error,
            verdict=turn.verdict,
            seconds=turn.seconds,
        )
        for turn in turns
    )
    return Memory(tuple(entries))


def _turn(task, index, memory):
    """Runs one turn: plan, command, tool, verdict, memory. Returns (Turn, Memory)."""
    start, tools, prompt_set, budget = task.clock(), task.tools, task.prompt_set, task.budget
    messages, shortened = prompts.fit(
        lambda m: prompts.planner(prompt_set, tools, task.query, task.analysis, m),
        memory,
        budget,
    )
    planned = yield ModelRequest("planner", messages, index)
    context = sub_goal = tool_name = command = ""
    parse_failures, verdict, speaker, results = 0, "CONTINUE", "planner", []
    try:
        plan = parsing.plan(planned.text, tuple(tools))
        context, sub_goal, tool_name = plan.context, plan.sub_goal, plan.tool
        tool = tools[tool_name]
        messages = prompts.executor(prompt_set, tool, context, sub_goal)
        if not budget.fits(messages):
            raise parsing.ParseError("The context and sub-goal are too long for the tool.")
        speaker = "executor"
        wrote = yield ModelRequest(speaker, messages, index, forms.command(tool))
        command = wrote.text.strip()
        failed = False
        for arguments in parsing.calls(command, tool):
            outcome = yield ToolCall(tool_name, arguments)
            failed = outcome.error
            if outcome.ask is not None:
                messages = prompts.base(prompt_set, outcome.ask)
                if not budget.fits(messages):
                    raise parsing.ParseError("The question to the model is too long.")
                results.append((yield ModelRequest("base", messages, index)).text.strip())
            else:
                results.append(f"Error: {outcome.text}" if failed else outcome.text)
            if failed:  # the calls after it may build on it
                break
        result = "\n".join(results)
    except parsing.ParseError as refused:
        task.on_refusal(Refusal(speaker, str(refused)))
        result, results, failed, parse_failures = f"Error: {refused}", [], True, 1
    entry = Entry(sub_goal, tool_name, command, result, failed)
    if not failed:  # a turn without a result cannot complete the memory: no need to ask
        try:
            messages, _ = prompts.fit(
                lambda m: prompts.verifier(prompt_set, tools, task.query, task.analysis, m),
                memory.add(entry),
                budget,
            )
            wrote = yield ModelRequest("verifier", messages, index, forms.VERDICT)
            stop = parsing.verdict(wrote.text)
            verdict = "STOP" if stop else "CONTINUE"
        except (parsing.ParseError, prompts.PromptTooLong) as refused:
            task.on_refusal(Refusal("verifier", str(refused)))
            parse_failures += 1  # no verdict: go on
    seconds = task.clock() - start
    turn = Turn(
        index=index,
        prompt_tokens=planned.prompt_tokens,
        response_tokens=planned.tokens,
        logprobs=planned.logprobs,
        finished=planned.finished,
        planner_text=planned.text,
        context=context,
        sub_goal=sub_goal,
        tool=tool_name,
        command=command,
        result=result,
        tool_error=failed,
        verdict=verdict,
        parse_failures=parse_failures,
        shortened=shortened,
        seconds=seconds,
        results=tuple(results),
    )
    return turn, memory.add(dataclasses.replace(entry, verdict=verdict, seconds=seconds))
