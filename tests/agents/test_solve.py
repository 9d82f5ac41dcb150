"""The agent loop, driven by a list of strings."""

import dataclasses

import pytest

from agents import bare, effects, prompts, solve
from agents.memory import Entry, Memory
from tests.tools import settings

TOOLS = settings.build(("knowledge_search", "base_generator"), knowledge_search={"top_k": 1})
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


def test_every_refusal_of_a_parser_is_told_with_its_module():
    told = []
    play(
        ["capital", "no plan", PLAN, "no call", PLAN, COMMAND, FOUND, "no verdict", "no answer"],
        on_refusal=told.append,
    )
    words = ["has no Sub-goal", "not a Python call", "must be `Verdict: STOP`", "no `Answer:` line"]
    assert [refusal.role for refusal in told] == ["planner", "executor", "verifier", "generator"]
    assert all(word in refusal.text for word, refusal in zip(words, told, strict=True))


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
    assert turn.results == ("Its capital is Madrid.", "Its number is 79.")
    assert seen[4] == effects.ToolCall("knowledge_search", {"query": "Gold number"})


def test_no_call_is_made_after_one_that_failed():
    failed = effects.ToolResult("no such page", error=True)
    calls = "\n".join([COMMAND] * 3)
    trajectory, _ = play(["capital", PLAN, calls, FOUND, failed, "Answer: x"], max_turns=1)
    (turn,) = trajectory.turns
    assert turn.result == "Its capital is Madrid.\nError: no such page" and turn.tool_error
    assert turn.results == ("Its capital is Madrid.", "Error: no such page")


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
    return Entry("goal", "knowledge_search", COMMAND, result, False, "CONTINUE")


def characters(limit):
    return prompts.Budget(limit, lambda messages: len(messages[1]["content"]))


def test_a_solver_goes_on_from_any_turn_like_the_one_that_took_it():
    """Nothing of the turns before is asked or called again; their memory is the same."""
    of_turns = [
        [PLAN, COMMAND, FOUND, "Verdict: CONTINUE"],
        ["no plan"],
        [PLAN, COMMAND, effects.ToolResult("gone", error=True)],
        [PLAN, COMMAND, FOUND, "neither"],
    ]
    how = dict(max_turns=4, rollout=2, clock=lambda: 0.0)
    whole, seen = play(["capital", *sum(of_turns, []), "Answer: Madrid"], **how)
    for taken in range(len(of_turns) + 1):
        script = [*sum(of_turns[taken:], []), "Answer: Madrid"]
        before = whole.turns[:taken]
        rest, asked = play(script, **how, analysis=whole.analysis, before=before)
        assert (rest, asked) == (whole, seen[-len(script) :])


def test_oldest_results_are_shortened_first_and_the_newest_never():
    memory = Memory((step("a" * 500), step("b" * 500), step("c" * 500)))

    def build(m):
        return prompts.verifier(prompts.COMPACT, TOOLS, "q", "a", m)

    def left(limit):
        messages, changed = prompts.fit(build, memory, characters(limit))
        text = messages[1]["content"]
        assert len(text) <= limit
        return changed, *(text.count(letter * 2) * 2 for letter in "abc")

    assert left(5000) == (0, 500, 500, 500)
    changed, a, b, c = left(1500)
    assert (changed, b, c) == (1, 500, 500) and 200 < a < 300  # no more than it takes
    changed, a, b, c = left(1000)
    assert (changed, a, c) == (2, 60, 500) and 100 < b < 400
    with pytest.raises(prompts.PromptTooLong, match="limit is 400"):
        left(400)


def test_commands_and_sub_goals_of_old_steps_give_way_after_all_results():
    old = Entry("g" * 300, "python_coder", "p" * 300, "r" * 300, False, "CONTINUE")
    memory = Memory((old, old, old))

    def build(m):
        return prompts.verifier(prompts.COMPACT, TOOLS, "q", "a", m)

    lengths = []
    for limit in range(2_900, 1_500, -100):
        messages, _ = prompts.fit(build, memory, characters(limit))
        lines = messages[1]["content"].splitlines()[2:]
        lengths.append([[line.count(letter) for line in lines] for letter in "rpg"])
    for r, p, g in lengths:
        assert all(texts[2] >= 300 for texts in (r, p, g))  # the newest is whole
        assert p[:2] == [300, 300] or max(r[:2]) < 80
        assert min(g[:2]) >= 300 or max(p[:2]) < 80
    assert lengths[0][0][0] < 310 and lengths[-1][2][0] < 80


def test_prompt_over_the_limit_ends_the_trajectory_as_truncated():
    budget = prompts.Budget(1, lambda messages: 2 * (messages[0]["content"] == "answer"))
    trajectory, _ = play(["capital", PLAN, COMMAND, FOUND, "Verdict: STOP"], budget=budget)
    assert trajectory.status == "truncated" and len(trajectory.turns) == 1


@pytest.mark.parametrize(
    "question",
    [
        {"question": "What is shown?", "image": "photo.png"},
        {"question": "What is shown?", "images": [b"..."]},
        {"question": [{"type": "image_url", "image_url": {"url": "http://example.org"}}]},
    ],
)
def test_an_image_is_refused(question):
    solver = solve.solve(
        {"id": "q7", **question}, tools=TOOLS, prompt_set=prompts.COMPACT, max_turns=1
    )
    with pytest.raises(ValueError, match="Question 'q7' .*Images are not supported"):
        next(solver)


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


def test_the_compact_prompts_are_the_ones_in_the_weights():
    """The quickstart's model was trained on these very texts."""
    c, memory = prompts.COMPACT, Memory((step("found"),))
    state = "Question: q\nAnalysis: a\n1. goal | " + COMMAND + " | found | CONTINUE"
    said = [
        prompts.analyst(c, TOOLS, "q"),
        prompts.planner(c, TOOLS, "q", "a", memory),
        prompts.executor(c, TOOLS["knowledge_search"], "x", "y"),
        prompts.verifier(c, TOOLS, "q", "a", memory),
        prompts.generator(c, "q", "a", memory),
        prompts.base(c, "z"),
    ]
    assert [[message["content"] for message in messages] for messages in said] == [
        ["analyse", "Question: q"],
        ["plan knowledge_search(query) base_generator(query)", state],
        ["call knowledge_search(query)", "Context: x\nSub-goal: y"],
        ["verify", state],
        ["answer", state],
        ["base", "z"],
    ]


def test_smaller_budgets_of_one_solver_end_as_solvers_of_their_own():
    """What `answer_at` keeps, against one solver for each budget on the same replies."""
    more = [PLAN, COMMAND, FOUND, "Verdict: CONTINUE"]
    done = [PLAN, COMMAND, effects.ToolResult("Found."), "Verdict: STOP"]
    texts = ["Answer: one", "no answer", "Answer: three", "Answer: four"]

    def alone(turns):
        script = ["capital", *sum([more, more, more, done][:turns], []), texts[turns - 1]]
        return play(script, max_turns=turns, clock=lambda: 0)[0]

    script = ["capital", *more, texts[0], *more, texts[1], *more, *done, texts[3]]
    how = dict(max_turns=5, answer_at=(1, 2, 4), clock=lambda: 0)
    found, seen = play(script, **how)
    assert [getattr(effect, "role", "tool") for effect in seen].count("generator") == 3
    assert {turns: found.earlier[turns] for turns in (1, 2)} == {1: alone(1), 2: alone(2)}
    assert found.earlier[2].stop == "parse_error"
    final = dataclasses.replace(found, earlier={})
    assert final == found.earlier[4] == alone(4) and final.stop == "verified"

    broken, _ = play(
        [*script[:6], *more, effects.Interrupted("infra_error", "gone")],
        max_turns=3,
        answer_at=(1, 2),
        clock=lambda: 0,
    )
    assert broken.earlier[1] == alone(1)
    assert broken.status == broken.earlier[2].status == "infra_error"


def test_the_bare_model_is_asked_once():
    solver = bare.solve(
        {"id": "q", "question": "2 + 2?"},
        prompt_set=prompts.COMPACT,
        budget=prompts.Budget(),
        tools={},
        max_turns=3,
    )
    request = next(solver)
    assert (request.role, request.turn) == ("planner", 0)
    assert request.messages[1]["content"] == "Question: 2 + 2?"
    with pytest.raises(StopIteration) as ended:
        solver.send(effects.Reply("Two and two.\nAnswer: 4"))
    found = ended.value.value
    assert (found.answer, found.turns, found.status, found.stop) == ("4", (), "ok", "budget")
