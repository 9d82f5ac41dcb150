"""The rollout driver against a scripted engine: concurrency, deadlines, failures, order."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import pathlib
import threading
import time
import zlib

import loopback
import numpy as np
import pytest

from agents import forms, prompts, solve
from agents.backends import modules
from agents.memory import Entry, Memory
from agents.trajectory import KINDS, Branch
from flow_grpo_jax import attempts, branches, rollout, scoring, services, timing, wire
from flow_grpo_jax.evaluate import evaluate
from models.engine.types import Completion
from models.tokenizer import CHAT_TEMPLATE, Tokenizer
from tests.agents import servers
from tests.tools import settings as tool_settings
from tools.protocol import Parameter, Tool, ToolError

ROOT = pathlib.Path(__file__).parents[2]
EOS = 0
REPLIES = {
    "analyse": "capital",
    "plan": "Context: Spain\nSub-goal: capital\nTool: search",
    "call": 'search(query="Spain")',
    "verify": "Verdict: STOP",
    "answer": "Answer: Madrid",
}


class Characters:
    """A tokenizer whose tokens are code points."""

    eos_ids = (EOS,)

    def chat(self, messages):
        return [ord(c) for message in messages for c in message["content"]]

    def decode(self, tokens):
        return "".join(chr(token) for token in tokens)


def completion(tokens, reason):
    logprobs = np.full(len(tokens), -0.5)
    return Completion(tokens, logprobs, logprobs, (), reason, 0, np.zeros_like(tokens), 0)


class ScriptedEngine:
    """The engine's interface; answers by the first word of the prompt, newest request first.

    replies: role's word -> text, or a function of the `Request` that gives one.
    """

    def __init__(self, replies=None, silent=()):
        self.replies, self.silent = REPLIES | (replies or {}), silent
        self.waiting, self.log, self.cancelled = {}, [], []

    @property
    def pending(self):
        return len(self.waiting)

    def submit(self, request):
        identity = len(self.log)
        self.log.append(request)
        self.waiting[identity] = request
        return identity

    def cancel(self, identity):
        self.cancelled.append(identity)

    def advance(self):
        for identity in [i for i in self.cancelled if i in self.waiting]:
            del self.waiting[identity]
            return [(identity, completion(np.zeros(0, np.int32), "cancelled"))]
        for identity, request in sorted(self.waiting.items(), reverse=True):
            role = "".join(map(chr, request.tokens)).split()[0].split("Question")[0]
            role = next(name for name in REPLIES if role.startswith(name))
            if role in self.silent:
                continue
            del self.waiting[identity]
            reply = self.replies[role]
            text = reply if isinstance(reply, str) else reply(request)
            tokens = np.array([*map(ord, text), EOS], np.int32)
            return [(identity, completion(tokens, "stop"))]
        time.sleep(0.005)
        return []


def tool(run, seconds=1.0):
    return {
        "search": Tool("search", "", (Parameter("query", "str", ""),), "", "demo", run, seconds)
    }


def settings(**changes):
    limits = dict(
        prompt_set=prompts.COMPACT,
        max_turns=2,
        temperature=1.0,
        max_prompt_tokens=5_000,
        max_response_tokens=64,
        max_module_tokens=32,
        call_seconds=5.0,
        trajectory_seconds=20.0,
        in_flight=256,
        infra_retries=1,
    )
    return rollout.Settings(**limits | changes)


@contextlib.contextmanager
def system(engine, run=lambda query: "Madrid it is", *, workers=8, tokenizer=None, **others):
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        yield services.System(engine, tokenizer or Characters(), tool(run), pool, **others)


def numbered(questions):
    return [{"id": f"q{i}", "question": f"Number {i}?"} for i in range(questions)]


def taken(values, names):
    return {name: values.pop(name) for name in names if name in values}


def collect(engine, run=lambda query: "Madrid it is", *, questions=2, group=3, **how):
    limits = settings(**taken(how, [field.name for field in dataclasses.fields(rollout.Settings)]))
    with system(engine, run, **taken(how, ["models", "grammars"])) as answering:
        return rollout.collect(
            numbered(questions), group=group, step=7, system=answering, settings=limits, **how
        )


def test_every_question_is_solved_group_times_in_order():
    trajectories_QG = collect(ScriptedEngine())
    found = [[(t.question_id, t.rollout) for t in group] for group in trajectories_QG]
    assert found == [[(f"q{q}", g) for g in range(3)] for q in range(2)]
    assert all(
        t.answer == "Madrid" and t.status == "ok" for group in trajectories_QG for t in group
    )


def test_the_planner_is_the_only_one_on_policy_weights_and_temperature():
    engine = ScriptedEngine()
    collect(engine)
    for request in engine.log:
        planner = "".join(map(chr, request.tokens)).startswith("plan")
        assert request.weights == ("policy" if planner else "frozen")
        assert request.sampling.temperature == (1.0 if planner else 0.0)
        assert request.sampling.max_tokens == (64 if planner else 32)


def test_a_grammar_holds_every_module_with_a_form_but_never_the_planner():
    class Grammars:
        def expression(self, pattern):
            return [pattern]  # a new object each time

    free, engine = ScriptedEngine(), ScriptedEngine()
    assert collect(free) and all(request.constraint is None for request in free.log)
    collect(engine, grammars=Grammars())
    expected = {
        "call": forms.command(tool(None)["search"]),
        "verify": forms.VERDICT,
        "answer": forms.ANSWER,
    }
    for request in engine.log:
        prompt = "".join(map(chr, request.tokens))
        role = next(name for name in REPLIES if prompt.startswith(name))
        assert request.constraint == ([expected[role]] if role in expected else None)
    constraints = [id(r.constraint) for r in engine.log if r.constraint]
    assert len(set(constraints)) == len(constraints) == 3 * 6


def test_analysis_is_asked_once_a_question_and_addresses_never_repeat():
    engine = ScriptedEngine()
    collect(engine)
    prompts_seen = ["".join(map(chr, request.tokens)) for request in engine.log]
    assert sum(text.startswith("analyse") for text in prompts_seen) == 2
    addresses = [request.address for request in engine.log]
    assert len(set(addresses)) == len(addresses)
    assert {address[0] for address in addresses} == {7}


def test_a_question_twice_in_a_batch_is_drawn_twice():
    engine = ScriptedEngine()
    with system(engine) as answering:
        rollout.collect(
            [{"id": "same", "question": "What?"}] * 2,
            group=2,
            system=answering,
            settings=settings(max_turns=1),
            step=0,
        )
    addresses = [request.address for request in engine.log]
    assert len(set(addresses)) == len(addresses)


def test_the_trained_tokens_are_those_the_engine_saw():
    engine = ScriptedEngine()
    [[trajectory]] = collect(engine, questions=1, group=1)
    planned = next(r for r in engine.log if r.weights == "policy")
    (turn,) = trajectory.turns
    assert turn.prompt_tokens == planned.tokens
    assert turn.response_tokens == (*map(ord, REPLIES["plan"]), EOS)  # the stop token is trained
    assert len(turn.logprobs) == len(turn.response_tokens)


def test_tools_run_side_by_side():
    all_six = threading.Barrier(6, timeout=20)  # breaks unless six calls are in flight at once

    def waits(query):
        all_six.wait()
        return "Madrid"

    trajectories_QG = collect(ScriptedEngine(), waits, call_seconds=30.0, trajectory_seconds=60.0)
    assert all(t.status == "ok" for group in trajectories_QG for t in group)


def test_a_tool_error_is_the_models_fault_and_keeps_the_trajectory():
    def fails(query):
        raise ToolError("no such page")

    [[trajectory]] = collect(ScriptedEngine(), fails, questions=1, group=1)
    assert trajectory.status == "ok" and trajectory.turns[0].tool_error
    assert trajectory.turns[0].result == "Error: no such page"


def test_a_broken_tool_is_retried_then_excluded_with_its_cause():
    calls = []

    def broken(query):
        calls.append(query)
        raise ConnectionError("the server is gone")

    [[trajectory]] = collect(ScriptedEngine(), broken, questions=1, group=1)
    assert (trajectory.status, len(calls)) == ("infra_error", 2)
    assert trajectory.error == "ConnectionError: the server is gone"


def test_a_failure_that_passes_is_made_good_by_the_retry():
    calls = []

    def once(query):
        calls.append(query)
        if len(calls) == 1:
            raise OSError("hiccup")
        return "Madrid"

    [[trajectory]] = collect(ScriptedEngine(), once, questions=1, group=1)
    assert (trajectory.status, trajectory.answer) == ("ok", "Madrid")


def test_a_hung_call_breaks_its_trajectory_only():
    release, calls = threading.Event(), []

    def hangs_first(query):
        calls.append(query)
        if len(calls) == 1:
            release.wait(10)
        return "Madrid"

    try:
        trajectories = collect(
            ScriptedEngine(),
            hangs_first,
            questions=1,
            call_seconds=0.3,
            infra_retries=0,
            on_finished=lambda t: release.set() if t.status == "infra_error" else None,
        )[0]
    finally:
        release.set()
    assert sorted(t.status for t in trajectories) == ["infra_error", "ok", "ok"]


def test_a_trajectory_over_its_deadline_is_cut_and_its_request_cancelled():
    engine = ScriptedEngine(silent=("answer",))
    [[trajectory]] = collect(engine, questions=1, group=1, trajectory_seconds=0.3)
    assert (trajectory.status, trajectory.stop) == ("timeout", "deadline")
    assert len(trajectory.turns) == 1 and engine.pending == 0


def test_a_call_that_nobody_waits_for_any_more_is_taken_out_of_the_queue():
    release, calls = threading.Event(), []

    def hangs(query):
        calls.append(query)
        release.wait(10)
        return "Madrid"

    with system(ScriptedEngine(), hangs, workers=1) as answering:
        [group] = rollout.collect(
            [{"id": "q", "question": "What?"}],
            group=3,
            system=answering,
            settings=settings(trajectory_seconds=0.3),
            step=0,
        )
        release.set()
    assert [t.status for t in group] == ["timeout"] * 3
    assert len(calls) == 1


def test_every_prompt_is_tokenized_once(monkeypatch):
    asked = []

    class Counting(Characters):
        def chat(self, messages):
            asked.append(messages)
            return super().chat(messages)

    monkeypatch.setitem(globals(), "Characters", Counting)
    engine = ScriptedEngine({"verify": "Verdict: CONTINUE"})
    collect(engine)
    # The analyses of five rollouts are counted, but asked for by the first of their group.
    assert len(asked) == len(engine.log) + 4


def test_the_time_is_counted_under_the_names_of_what_it_goes_to():
    class Slow(Characters):
        def chat(self, messages):
            time.sleep(0.02)
            return super().chat(messages)

    timer, started = timing.Timer(), time.perf_counter()
    waits = lambda query: time.sleep(0.1) or "Madrid"
    with system(ScriptedEngine(), waits, tokenizer=Slow()) as answering:
        rollout.collect(
            [{"id": "q", "question": "What?"}],
            group=1,
            system=answering,
            settings=settings(max_turns=1),
            step=0,
            timer=timer,
        )
    wall, found = time.perf_counter() - started, timer.seconds
    assert set(found) <= set(rollout.SHARES)
    assert 0.9 * wall < sum(found.values()) <= wall
    assert found["tokens"] >= 0.1 and found["idle"] >= 0.09
    assert found["solvers"] < 0.05  # the tokens they count are not theirs


def test_time_within_something_else_counts_for_the_inner_name_only():
    clock = iter([0.0, 1.0, 3.0, 7.0, 10.0, 11.0]).__next__
    timer = timing.Timer(clock)
    with timer.on("outer"), timer.on("inner"):
        pass
    with timer.on("inner"):
        pass
    assert timer.seconds == {"outer": 1.0 + 4.0, "inner": 2.0 + 1.0}


def test_stopping_leaves_nothing_in_the_engine():
    engine = ScriptedEngine(silent=("verify",))
    start = time.monotonic()
    with pytest.raises(rollout.Stopped):
        collect(engine, should_stop=lambda: time.monotonic() - start > 0.3)
    assert engine.pending == 0


def test_no_more_than_in_flight_run_at_once_and_all_are_solved():
    engine, most = ScriptedEngine(), 0

    def watch(event):
        nonlocal most
        most = max(most, engine.pending)

    trajectories_QG = collect(engine, in_flight=2, on_event=watch)
    assert most <= 2
    assert [len(group) for group in trajectories_QG] == [3, 3]


def test_a_defect_in_the_loop_costs_its_trajectory_not_the_run(monkeypatch):
    def breaks(text):
        raise TypeError("a defect")

    monkeypatch.setattr("agents.parsing.answer", breaks)
    [[trajectory]] = collect(ScriptedEngine(), questions=1, group=1)
    assert (trajectory.status, trajectory.attempts) == ("infra_error", 2)
    assert trajectory.error == "TypeError: a defect"


def test_evaluation_counts_all_questions():
    questions = [
        {"id": f"q{i}", "question": f"Number {i}?", "answer": "Madrid", "kind": "qa", "source": "s"}
        for i in range(4)
    ]
    calls = []

    def sometimes(query):
        calls.append(query)
        if len(calls) == 1:
            raise ConnectionError("gone")
        return "Madrid"

    with system(ScriptedEngine(), sometimes, workers=1) as answering:
        values, trajectories, scores = evaluate(
            questions,
            step=0,
            system=answering,
            scorer=scoring.Scorer({}, judge_characters=2_000),
            settings=settings(max_turns=1, temperature=0.0, infra_retries=0),
        )
    broken = [t for t in trajectories if t.status == "infra_error"]
    assert len(broken) == 1 and len(scores) == 4
    assert (values["eval/correct"], values["eval/total"], values["eval/success"]) == (3, 4, 0.75)
    assert values["eval/infra_errors"] == 1


# ------------------------------------------------------------------------ questions added meanwhile


def drive(driver, *, until=lambda: False):
    """{(step, index): statuses and answers of a group} of what is ready, after some rounds."""
    ready = []
    while driver.busy and not until():
        driver.round()
        ready += driver.ready()
    return {
        (step, index): [
            dataclasses.replace(t, seconds=0.0, turns=without_seconds(t)) for t in group
        ]
        for step, index, group in ready
    }


def without_seconds(trajectory):
    return tuple(dataclasses.replace(turn, seconds=0.0) for turn in trajectory.turns)


def test_questions_added_meanwhile_are_solved_as_if_they_had_come_alone():
    alone, engine, together = {}, ScriptedEngine(), ScriptedEngine()
    with system(engine) as answering:
        for step, count in ((1, 2), (2, 3)):
            driver = rollout.Driver(answering, settings())
            driver.add(numbered(count), group=2, step=step)
            alone |= drive(driver)
    with system(together) as answering:
        driver = rollout.Driver(answering, settings())
        driver.add(numbered(2), group=2, step=1)
        found = drive(driver, until=lambda: len(together.log) > 5)
        assert driver.busy and not found
        driver.add(numbered(3), group=2, step=2)
        found |= drive(driver)
    assert found == alone and len(found) == 5
    drawn = lambda engine: {request.address: request.tokens for request in engine.log}
    assert drawn(together) == drawn(engine)


def test_a_group_is_ready_once_and_only_when_all_of_it_has_ended():
    with system(ScriptedEngine()) as answering:
        finished = []
        driver = rollout.Driver(answering, settings(), on_finished=finished.append)
        driver.add(numbered(3), group=3, step=5, share=[0, 2])
        seen = []
        while driver.busy:
            driver.round()
            for step, index, group in driver.ready():
                assert step == 5 and [t.rollout for t in group] == [0, 1, 2]
                assert all(t in finished for t in group)
                seen.append(index)
    assert sorted(seen) == [0, 2] and not driver.ready()


def test_a_batch_may_be_solved_in_a_way_of_its_own():
    engine = ScriptedEngine({"verify": "Verdict: CONTINUE"})
    with system(engine) as answering:
        told, usual = [], []
        driver = rollout.Driver(answering, settings(), on_finished=usual.append)
        way = attempts.Way(
            settings(max_turns=3, temperature=0.25),
            told.append,
            planner="frozen",
            top_p=0.5,
            solver=functools.partial(solve.solve, answer_at=(1,)),
        )
        driver.add(numbered(1), group=4, step=0, rollouts=[1, 3], way=way)
        while driver.busy:
            driver.round()
        assert [t.rollout for _, _, group in driver.ready() for t in group] == [1, 3]
        assert not usual and [len(t.turns) for t in told] == [3, 3]
        assert [len(t.earlier[1].turns) for t in told] == [1, 1]
        planned = [request for request in engine.log if request.weights == "frozen"]
        planned = [r for r in planned if "".join(map(chr, r.tokens)).startswith("plan")]
        assert {(r.sampling.temperature, r.sampling.top_p) for r in planned} == {(0.25, 0.5)}
        assert {r.address[3] for r in planned} == {1, 3} and len(planned) == 6
        driver.add(numbered(1), group=1, step=0)
        while driver.busy:
            driver.round()
        assert len(usual) == 1 and len(usual[0].turns) == 2


def test_an_abandoned_driver_has_nothing_left_to_do():
    engine = ScriptedEngine(silent=("verify",))
    with system(engine) as answering:
        driver = rollout.Driver(answering, settings(in_flight=3))  # one more waits for its start
        driver.add(numbered(2), group=2, step=0)
        drive(driver, until=lambda: len(engine.waiting) == 3)
        driver.abandon()
        assert not driver.busy and not driver.ready() and engine.pending == 0


def test_a_driver_can_be_used_again_after_it_was_abandoned():
    """Also if a call that it gave up ends later."""
    release = threading.Event()

    def hangs_until_released(query):
        release.wait(20)
        return "Madrid"

    with system(ScriptedEngine(), hangs_until_released, workers=1) as answering:
        driver = rollout.Driver(answering, settings(max_turns=1))
        driver.add(numbered(2), group=1, step=0)
        drive(driver, until=lambda: any(ticket.call for ticket in driver._tickets.values()))
        driver.abandon()
        release.set()
        driver.add(numbered(1), group=1, step=1)
        [[trajectory]] = drive(driver).values()
    assert trajectory.status == "ok"


def test_an_analysis_that_lost_its_only_reader_is_asked_again():
    """Its request is cancelled; the next rollout of the question must not wait for that one."""
    engine = ScriptedEngine(silent=("analyse",))
    limits = settings(trajectory_seconds=0.2, in_flight=1)
    with system(engine) as answering:
        driver = rollout.Driver(answering, limits)
        driver.add(numbered(1), group=2, step=0)
        while not driver._queue or len(engine.log) < 1:
            driver.round()
        while driver._queue:
            driver.round()
        engine.silent = ()
        [[first, second]] = drive(driver).values()
    assert (first.status, second.status) == ("timeout", "ok")


# ------------------------------------------------------------------------------------- branches


def drawn(request):
    """A plan whose sub-goal says which address it was drawn with: rollout and turn."""
    *_, rollout, turn, _ = request.address
    return f"Context: Spain\nSub-goal: {rollout}.{turn}\nTool: search"


def call_of_the_sub_goal(request):
    text = "".join(map(chr, request.tokens))
    return f'search(query="{text.split("Sub-goal: ")[1].split()[0]}")'


PLAN = branches.Branching(points=2, siblings=2, broadcast=0.0, seed=5)


def branched(run=lambda query: "It is", **how):
    """(engine, groups) of two roots with two points of two siblings, three turns each."""
    engine = ScriptedEngine(
        {"plan": drawn, "call": call_of_the_sub_goal, "verify": "Verdict: CONTINUE"}
    )
    how = dict(group=10, max_turns=3, branching=PLAN, infra_retries=0) | how
    return engine, collect(engine, run, **how)


def sub_goals(trajectory):
    return [turn.sub_goal for turn in trajectory.turns]


def test_a_branch_draws_one_action_anew_and_all_that_follows_like_its_root():
    calls = []
    engine, groups = branched(lambda query: calls.append(query) or "It is")
    seen = collections.Counter()
    for q, group in enumerate(groups):
        assert [t.rollout for t in group] == [*range(10)]
        places = [PLAN.turns(3, (7, zlib.crc32(b"q%d" % q), 0, root)) for root in range(2)]
        assert [t.branch for t in group] == [None] * 2 + [
            Branch(root, turn) for root in range(2) for turn in places[root] for _ in range(2)
        ]
        for g, trajectory in enumerate(group):
            branch = trajectory.branch or Branch(g, 1)
            expected = [f"{branch.parent}.{turn}" for turn in (1, 2, 3)]
            expected[branch.turn - 1] = f"{g}.{branch.turn}"
            assert sub_goals(trajectory) == expected
            root = group[branch.parent]
            assert trajectory.turns[: branch.turn - 1] == root.turns[: branch.turn - 1]
            at = branch.turn - 1
            assert trajectory.turns[at].prompt_tokens == root.turns[at].prompt_tokens
            assert trajectory.own_turns == trajectory.turns[at:]
            seen[branch.turn] += bool(trajectory.branch)
    assert len(seen) == 3 and sum(seen.values()) == 16  # or the test would show little
    # Nothing of the turns before a branch is asked or called again, and the analysis once for all.
    own = sum(len(t.own_turns) for group in groups for t in group)
    heads = collections.Counter("".join(map(chr, r.tokens))[:6] for r in engine.log)
    assert len(calls) == own < 2 * 10 * 3
    assert heads == {"analys": 2, "plan s": own, "call s": own, "verify": own, "answer": 20}


def test_branches_do_not_depend_on_company_and_a_resumed_step_draws_them_again():
    timeless = lambda t: dataclasses.replace(t, seconds=0.0, turns=without_seconds(t))
    stable = lambda groups: [[timeless(t) for t in group] for group in groups]
    _, groups = branched()
    for how in (dict(in_flight=1), dict(in_flight=3, questions=1)):
        assert stable(branched(**how)[1]) == stable(groups)[: how.get("questions", 2)]
    again = wire.decode(wire.encode(groups, KINDS), KINDS)  # to the other processes
    assert again == groups


def test_a_branch_that_breaks_leaves_its_siblings_and_a_root_takes_its_branches_along():
    def broken_by(action, **how):
        def run(query):
            if query == action:
                raise ConnectionError("gone")
            return "It is"

        [group] = branched(run, questions=1, **how)[1]
        assert {t.error for t in group if t.broken} == {"ConnectionError: gone"}
        return [t.rollout for t in group if t.status == "infra_error"], group

    _, (whole, _) = branched()
    broken, group = broken_by(f"3.{whole[3].branch.turn}")
    assert broken == [3] and group[3].branch == whole[3].branch
    ended = []
    broken, _ = broken_by("0.1", on_finished=ended.append)
    assert broken == [0, 2, 3, 4, 5] and sorted(t.rollout for t in ended) == [*range(10)]
    broken, group = broken_by("0.2")  # its turns are tokens that were generated once
    assert broken == [0, 2, 3, 4, 5] and [len(group[g].turns) for g in broken] == [1, 0, 0, 0, 0]


def test_a_root_without_a_turn_stands_for_its_branches():
    _, (group,) = branched(questions=1, max_prompt_tokens=1)
    assert [(t.status, t.turns, t.branch) for t in group] == [("truncated", (), None)] * 10


# ------------------------------------------------------------------------------- remote models


@contextlib.contextmanager
def remote(*script, roles=("verifier",), seconds=5.0, **limits):
    """(models, loopback server) with a server that answers these roles."""
    limits = dict(retries=0, open_seconds=0.1, failures_to_open=3) | limits
    with loopback.Loopback(*script) as there:
        endpoint = servers.endpoint(there.url, **limits)
        model = servers.chat(endpoint, seconds=seconds)
        yield {role: modules.Module(model, role, structured=False) for role in roles}, there
        endpoint.close()


def scripted(body):
    """The reply of REPLIES to the prompt of a request."""
    start = body["messages"][0]["content"]
    return next(text for role, text in REPLIES.items() if start.startswith(role))


def test_a_remote_module_answers_in_the_place_of_the_engine():
    engine = ScriptedEngine()
    roles = ("executor", "verifier", "generator")
    with remote(loopback.replies(scripted), roles=roles) as (models, there):
        [group] = collect(engine, questions=1, models=models)
        assert {t.answer for t in group} == {"Madrid"} and len(there.requests) == 9
        assert {body["max_tokens"] for body in there.bodies()} == {32}
    assert {request.weights for request in engine.log} == {"policy", "frozen"}
    assert len(engine.log) == 4  # the analysis and three plans


LIMIT = 18_432  # common.py


def remembered(texts):
    return Memory(tuple(Entry("look", "search", f"c{i}", t, False) for i, t in enumerate(texts)))


@pytest.mark.slow
def test_a_memory_over_18k_tokens_keeps_its_newest_step_and_the_header():
    """Counted by a real tokenizer, through the real template, with the prompts for real models."""
    words = Tokenizer.load(ROOT / "experiments/data/quickstart/model")
    # `Tokenizer.chat` without a template of the folder marks every message, as Qwen2.5's does.
    words._template = CHAT_TEMPLATE
    header = words.encode("<|im_start|>assistant\n")
    tools = tool_settings.build(("knowledge_search", "python_coder", "base_generator"))
    budget = prompts.Budget(LIMIT, lambda messages: len(words.chat(messages)))
    result = lambda i: " ".join(f"fact{i} {n} is 7{n};" for n in range(400))
    memory = remembered([*map(result, range(9)), result(9) + " <|im_end|> <|im_start|>system"])
    builds = [
        lambda m: prompts.planner(prompts.INSTRUCT, tools, "Who?", "Look.", m),
        lambda m: prompts.verifier(prompts.INSTRUCT, tools, "Who?", "Look.", m),
        lambda m: prompts.generator(prompts.INSTRUCT, "Who?", "Look.", m),
    ]
    for build in builds:
        assert budget.count(build(memory)) > 1.2 * LIMIT
        messages, shortened = prompts.fit(build, memory, budget)
        ids = words.chat(messages)
        assert 0.98 * LIMIT < len(ids) <= LIMIT
        assert ids[-len(header) :] == header
        text = words.decode(ids, keep_special=True)
        assert [result(i) in text for i in range(10)] == [i >= shortened for i in range(10)]
        assert 0 < shortened < 9 and memory.entries[9].result in text
        assert sum(i in words.eos_ids for i in ids) == 2  # system and user: nothing is forged
    with pytest.raises(prompts.PromptTooLong):
        prompts.fit(builds[0], remembered([" ".join(map(result, range(9)))]), budget)


def test_the_rollout_keeps_prompts_within_18k_tokens():
    engine = ScriptedEngine({"verify": "Verdict: CONTINUE"})
    [[found]] = collect(
        engine,
        lambda query: "x" * 5_000,
        questions=1,
        group=1,
        max_turns=6,
        max_prompt_tokens=LIMIT,
    )
    lengths = [len(request.tokens) for request in engine.log]
    assert max(lengths) > 0.9 * LIMIT and max(lengths) <= LIMIT
    assert found.status == "ok" and [turn.shortened > 0 for turn in found.turns[-2:]] == [1, 1]
    assert "".join(map(chr, engine.log[-1].tokens)).count("x" * 5_000) == 3


def test_a_question_with_an_image_is_refused_before_anything_runs():
    engine = ScriptedEngine()
    refused = pytest.raises(ValueError, match="Images are not supported")
    with system(engine) as answering, refused:
        rollout.collect(
            [{"id": "q", "question": "What is shown?", "image": "photo.png"}],
            group=1,
            system=answering,
            settings=settings(),
            step=0,
        )
    assert not engine.log


def test_modules_can_be_answered_by_the_policy_but_the_planner_by_nothing_else():
    engine = ScriptedEngine()
    collect(engine, questions=1, group=1, models={"verifier": "policy"})
    assert sum(request.weights == "policy" for request in engine.log) == 2
    with pytest.raises(ValueError, match="The planner is answered by the policy"):
        collect(engine, models={"planner": "frozen"})


def test_a_remote_analysis_is_asked_once_a_question():
    with remote(loopback.says("capital"), roles=("analyst",)) as (models, there):
        groups = collect(ScriptedEngine(), models=models)
        assert len(there.requests) == 2
    assert all(t.analysis == "capital" for group in groups for t in group)


def test_a_remote_analysis_that_fails_is_asked_again():
    with remote(loopback.fails(400), loopback.says("capital"), roles=("analyst",)) as (models, _):
        [group] = collect(ScriptedEngine(), questions=1, models=models)
    assert [(t.status, t.analysis) for t in group] == [("ok", "capital")] * 3


def test_a_server_that_is_gone_makes_the_trajectory_invalid_not_wrong():
    with remote(loopback.fails(401, "who are you?")) as (models, _):
        [[trajectory]] = collect(ScriptedEngine(), questions=1, group=1, models=models)
    assert (trajectory.status, trajectory.attempts) == ("infra_error", 2)
    assert "Fatal" in trajectory.error and "who are you?" in trajectory.error


def test_a_server_that_lies_makes_the_trajectory_invalid_not_wrong():
    with remote(loopback.answers(200, b"<html>")) as (models, _):
        [[trajectory]] = collect(ScriptedEngine(), questions=1, group=1, models=models)
    assert trajectory.status == "infra_error" and "BadOutput" in trajectory.error


def test_a_server_that_hangs_costs_a_trajectory_its_time():
    with remote(loopback.hangs) as (models, _):
        [[trajectory]] = collect(
            ScriptedEngine(), questions=1, group=1, models=models, trajectory_seconds=0.3
        )
    assert (trajectory.status, trajectory.stop) == ("timeout", "deadline")


def test_rollouts_wait_while_a_server_is_down():
    down = [loopback.fails(500)] * 5
    with remote(*down, loopback.replies(scripted), concurrency=1) as (models, there):
        groups = collect(ScriptedEngine(), questions=4, in_flight=3, models=models)
        trajectories = [t for group in groups for t in group]
        assert len(there.requests) == 5 + sum(t.status == "ok" for t in trajectories)
    # Five requests failed; what was not even asked while the server was down lost no attempt.
    assert sum(t.attempts - (t.status == "ok") for t in trajectories) == 5
    assert sum(t.status == "ok" for t in trajectories) >= 9


def test_a_server_that_stays_down_ends_the_rollouts_with_its_error():
    with remote(loopback.fails(500), open_seconds=0.02) as (models, there):
        [group] = collect(ScriptedEngine(), questions=1, models=models)
        assert {t.status for t in group} == {"infra_error"} and len(there.requests) == 6
