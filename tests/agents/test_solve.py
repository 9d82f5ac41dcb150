"""The agent loop, driven by a list of strings."""

import pytest

from agents import effects, prompts, solve
from agents.memory import Memory, Step
from tools import toolbox

TOOLS = toolbox.build(("knowledge_search", "base_generator"))
PLAN = "Context: Spain\nSub-goal: capital\nTool: knowledge_search"
COMMAND = 'knowledge_search(query="Spain capital")'


def play(script, *, question="What is the capital of Spain?", max_turns=3, **how):
    """Runs solve with scripted answers; returns (trajectory, effects in order)."""
    solver = solve.solve(
        {"id": "q", "question": question},
        tools=TOOLS,
        prompt_set=prompts.COMPACT,
        max_turns=max_turns,
        **how,
    )
    seen, effect = [], next(solver)
    for answer in [*script, None]:
        seen.append(effect)
        if isinstance(answer, str):
            answer = effects.Reply(answer, (1, 2), (3,), (-0.5,))
        try:
            send = solver.throw if isinstance(answer, Exception) else solver.send
            effect = send(answer)
        except StopIteration as stop:
            return stop.value, seen
    raise AssertionError("the script is too short")


FOUND = effects.ToolResult("Its capital is Madrid.")


def test_one_turn_to_a_verified_answer():
    trajectory, seen = play(["capital", PLAN, COMMAND, FOUND, "Verdict: STOP", "Answer: Madrid"])
    asked = [getattr(effect, "role", "tool") for effect in seen]
    assert asked == ["analyst", "planner", "executor", "tool", "verifier", "generator"]
    assert (trajectory.answer, trajectory.status, trajectory.stop) == ("Madrid", "ok", "verified")
    (turn,) = trajectory.turns
    assert (turn.context, turn.sub_goal, turn.tool) == ("Spain", "capital", "knowledge_search")
    assert (turn.command, turn.result) == (COMMAND, "Its capital is Madrid.")
    assert (turn.prompt_tokens, turn.response_tokens, turn.logprobs) == ((1, 2), (3,), (-0.5,))
    assert seen[3] == effects.ToolCall("knowledge_search", {"query": "Spain capital"})


def test_memory_reaches_the_next_planner_with_the_verdict():
    _, seen = play(
        ["capital", PLAN, COMMAND, FOUND, "Verdict: CONTINUE", PLAN, COMMAND, FOUND]
        + ["Verdict: STOP", "Answer: Madrid"]
    )
    second_planner = [e for e in seen if getattr(e, "role", "") == "planner"][1]
    remembered = second_planner.messages[1]["content"].splitlines()
    assert remembered == [
        "Question: What is the capital of Spain?",
        "Analysis: capital",
        f"1. capital | {COMMAND} | Its capital is Madrid. | CONTINUE",
    ]


def test_budget_ends_the_loop():
    turn = [PLAN, COMMAND, FOUND, "Verdict: CONTINUE"]
    trajectory, _ = play(["capital", *turn, *turn, "Answer: Madrid"], max_turns=2)
    assert (len(trajectory.turns), trajectory.stop) == (2, "budget")


def test_do_not_stop_is_not_a_stop():
    turn = [PLAN, COMMAND, FOUND, "We must not STOP yet."]
    trajectory, _ = play(["capital", *turn, "Answer: Madrid"], max_turns=1)
    assert (trajectory.stop, trajectory.turns[0].verdict) == ("budget", "CONTINUE")
    assert trajectory.turns[0].parse_failures == 1


@pytest.mark.parametrize(
    ("plan", "error"),
    [
        ("I would search.", "no Sub-goal and no Tool"),
        ("Sub-goal: capital\nTool: web", "There is no tool 'web'"),
        ("Sub-goal: a\nSub-goal: b\nTool: knowledge_search", "repeats Sub-goal"),
    ],
)
def test_unreadable_plan_is_shown_to_the_model_and_counted(plan, error):
    trajectory, seen = play(["capital", plan, "Answer: unknown"], max_turns=1)
    (turn,) = trajectory.turns
    assert turn.tool_error and turn.parse_failures == 1 and turn.verdict == "CONTINUE"
    assert error in turn.result and error in seen[-1].messages[1]["content"]
    assert trajectory.status == "ok"  # the model's own mistake


def test_unreadable_command_is_shown_and_nothing_is_called():
    trajectory, seen = play(["capital", PLAN, "knowledge_search(1 + 1)", "Answer: x"], max_turns=1)
    assert not any(isinstance(effect, effects.ToolCall) for effect in seen)
    assert "query is an expression" in trajectory.turns[0].result


def test_several_calls_are_one_turn():
    calls = f"{COMMAND}\nknowledge_search(query='Gold number')"
    other = effects.ToolResult("Its number is 79.")
    trajectory, seen = play(
        ["capital", PLAN, calls, FOUND, other, "Verdict: STOP", "Answer: Madrid"]
    )
    (turn,) = trajectory.turns
    assert turn.result == "Its capital is Madrid.\nIts number is 79." and not turn.tool_error
    assert seen[4] == effects.ToolCall("knowledge_search", {"query": "Gold number"})


def test_no_call_is_made_after_one_that_failed():
    failed = effects.ToolResult("no such page", error=True)
    calls = "\n".join([COMMAND] * 3)
    trajectory, _ = play(["capital", PLAN, calls, FOUND, failed, "Answer: x"], max_turns=1)
    (turn,) = trajectory.turns
    assert turn.result == "Its capital is Madrid.\nError: no such page" and turn.tool_error


def test_tool_error_is_remembered_as_an_error():
    failed = effects.ToolResult("no such page", error=True)
    trajectory, seen = play(["capital", PLAN, COMMAND, failed, "Answer: x"], max_turns=1)
    assert trajectory.turns[0].tool_error and trajectory.turns[0].parse_failures == 0
    assert "| Error: no such page | CONTINUE" in seen[-1].messages[1]["content"]


def test_a_tool_may_ask_the_frozen_model():
    plan = "Context: Spain\nSub-goal: capital\nTool: base_generator"
    asked = effects.ToolResult("", ask="Spain capital")
    trajectory, seen = play(
        ["capital", plan, 'base_generator(query="Spain capital")', asked, "Madrid"]
        + ["Verdict: STOP", "Answer: Madrid"]
    )
    assert seen[4].role == "base" and seen[4].messages[1]["content"] == "Spain capital"
    assert trajectory.turns[0].result == "Madrid"


def test_no_answer_line_is_a_parse_error():
    trajectory, _ = play(["capital", PLAN, COMMAND, FOUND, "Verdict: STOP", "It is Madrid"])
    assert (trajectory.answer, trajectory.stop) == ("", "parse_error")


@pytest.mark.parametrize(("status", "stop"), [("timeout", "deadline"), ("infra_error", "budget")])
def test_interruption_keeps_finished_turns(status, stop):
    trajectory, _ = play(
        ["capital", PLAN, COMMAND, FOUND, "Verdict: CONTINUE"]
        + [effects.Interrupted(status, "the machine burns")]
    )
    assert (trajectory.status, trajectory.stop, len(trajectory.turns)) == (status, stop, 1)
    assert trajectory.error == "the machine burns"


def test_a_cut_off_planner_marks_the_trajectory_truncated():
    cut = effects.Reply("Context: Spa", (1,), (2, 3), (-1.0, -1.0), finished=False)
    trajectory, _ = play(["capital", cut, "Answer: x"], max_turns=1)
    assert trajectory.status == "truncated" and not trajectory.turns[0].finished


def test_memory_does_not_outlive_its_question():
    first, _ = play(["capital", PLAN, COMMAND, FOUND, "Verdict: STOP", "Answer: Madrid"])
    _, seen = play(["other", PLAN, COMMAND, FOUND, "Verdict: STOP", "Answer: x"], question="Other?")
    assert first.turns and "Madrid" not in seen[1].messages[1]["content"]


def step(result):
    return Step("goal", "knowledge_search", COMMAND, result, False, "CONTINUE")


def test_oldest_results_are_shortened_first_and_the_newest_never():
    memory = Memory((step("a" * 500), step("b" * 500), step("c" * 500)))

    def fits(limit):
        return lambda messages: len(messages[1]["content"]) <= limit

    def build(m):
        return prompts.verifier(prompts.COMPACT, "q", "a", m)

    whole, none = prompts.fit(build, memory, fits(5000))
    once, one = prompts.fit(build, memory, fits(1500))
    twice, two = prompts.fit(build, memory, fits(1000))
    assert (none, one, two) == (0, 1, 2)
    assert "a" * 500 in whole[1]["content"]
    assert "a" * 500 not in once[1]["content"] and "b" * 500 in once[1]["content"]
    assert "b" * 500 not in twice[1]["content"] and "c" * 500 in twice[1]["content"]
    with pytest.raises(prompts.PromptTooLong):
        prompts.fit(build, memory, fits(400))


def test_prompt_over_the_limit_ends_the_trajectory_as_truncated():
    def fits(role, messages):
        return role != "generator"

    trajectory, _ = play(["capital", PLAN, COMMAND, FOUND, "Verdict: STOP"], fits=fits)
    assert trajectory.status == "truncated" and len(trajectory.turns) == 1


@pytest.mark.parametrize("name", prompts.SETS)
def test_every_prompt_set_covers_every_role_and_starts_with_what_never_changes(name):
    chosen = prompts.SETS[name]
    assert set(chosen.system) == set(effects.ROLES)
    memory = Memory((step("found"),))
    first = prompts.planner(chosen, TOOLS, "q1", "a1", Memory())
    second = prompts.planner(chosen, TOOLS, "q2", "a2", memory)
    assert first[0] == second[0]  # role, tools and form
    assert all(tool in first[0]["content"] for tool in TOOLS)
    assert "found" in second[1]["content"] and "CONTINUE" in second[1]["content"]
    assert (
        "knowledge_search"
        in prompts.executor(chosen, TOOLS["knowledge_search"], "c", "s")[0]["content"]
    )
