"""Rollouts in an environment: a state for each trajectory, its reward, and what goes wrong."""

import dataclasses
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from agents.environments import protocol
from agents.trajectory import KINDS, Status
from flow_grpo_jax import rollout, scoring, services, wire, workers
from tests.agents.environments import Counter
from tests.flow_grpo_jax.test_rollout import ScriptedEngine, settings, system
from tools.protocol import ToolError

COUNTING = {
    "plan": "Context: 0\nSub-goal: 1\nTool: count",
    "call": "count(by=1)",
    "verify": "Verdict: CONTINUE",
}


def collect(counter, *, questions=None, replies=COUNTING, group=3, **limits):
    """Returns the trajectories of one question each, after all episodes were closed."""
    environment = counter.environment
    questions = environment.questions("train", 2) if questions is None else questions
    how = dict(group=group, step=1, settings=settings(**limits))
    with system(ScriptedEngine(replies), environment=environment) as answering:
        return rollout.collect(questions, system=answering, **how)


def test_each_trajectory_has_a_state_and_a_reward_of_its_own():
    counter = Counter()
    trajectories_QG = collect(counter)
    for trajectory in sum(trajectories_QG, []):
        assert [turn.result for turn in trajectory.turns] == ["It is 1.", "It is 2."]
        assert (trajectory.status, trajectory.reward) == (Status.OK, 1.0)
    assert (counter.started, counter.closed) == (6, 6)
    scorer = scoring.Scorer({}, judge_characters=10)
    questions = counter.environment.questions("train", 2)
    rewards_QG, _ = scorer.score_groups(questions, trajectories_QG)
    assert [[(r.value, r.source) for r in group] for group in rewards_QG] == (
        [[(1.0, "environment")] * 3] * 2
    )
    [sent] = wire.decode(wire.encode(trajectories_QG[:1], KINDS), KINDS)
    assert sent == trajectories_QG[0]


def test_mistakes_of_the_model_are_told_to_it_and_scored():
    [[wrong]] = collect(Counter(), replies=COUNTING | {"call": "count(by=2)"}, group=1)[:1]
    assert [turn.result for turn in wrong.turns] == ["Error: Count by 1."] * 2
    assert (wrong.status, wrong.reward) == (Status.OK, 0.0)
    [[idle]] = collect(Counter(), replies=COUNTING | {"plan": "nothing"}, group=1)[:1]
    assert (idle.status, idle.reward) == (Status.OK, 0.0)


@pytest.mark.parametrize("method", ["call", "score"])
def test_a_failure_is_tried_again_in_a_new_episode(method):
    counter = Counter(broken={method: OSError("no route")}, times=2)
    found = sum(collect(counter, group=1, in_flight=1), [])
    assert [(t.status, t.reward, t.attempts) for t in found] == [
        (Status.INFRA_ERROR, None, 2),
        (Status.OK, 1.0, 1),
    ]
    assert "OSError: no route" in found[0].error
    scorer = scoring.Scorer({}, judge_characters=10)
    questions = counter.environment.questions("train", 1)
    [[failed, right]], _ = scorer.score_groups(questions, [found])
    assert (failed.known, right.known, right.value) == (False, True, 1.0)
    assert (counter.started, counter.closed) == (3, 3)


def test_what_hangs_is_a_failure_and_its_episode_closes_when_it_ends():
    hang = threading.Event()
    counter = Counter(broken={"score": hang.wait}, times=1)
    begun = time.monotonic()
    environment = counter.environment
    with system(ScriptedEngine(COUNTING), environment=environment) as answering:
        [[found]] = rollout.collect(
            environment.questions("train", 1),
            group=1,
            step=1,
            system=answering,
            settings=settings(call_seconds=0.2, infra_retries=0),
        )
        assert counter.closed == 0
        hang.set()
    assert (found.status, found.reward) == (Status.INFRA_ERROR, None)
    assert "a tool call hung" in found.error and time.monotonic() - begun < 5
    assert counter.closed == 1


def test_a_reward_outside_of_0_to_1_is_a_failure_that_says_what_to_set():
    class Rich(Counter):
        def start(self, question):
            episode = super().start(question)
            episode.score = lambda trajectory: np.float32(1.5)
            return episode

    [[found]] = collect(Rich(), questions=Counter().environment.questions("train", 1), group=1)
    assert found.status == Status.INFRA_ERROR
    assert "1.5" in found.error and "reward_high" in found.error


@pytest.mark.parametrize("result", [None, 3, ["It is 1."]])
def test_a_result_that_is_no_text_is_a_failure(result):
    class Wordless(Counter):
        def start(self, question):
            episode = super().start(question)
            episode.call = lambda tool, arguments: result
            return episode

    [[found], _] = collect(Wordless(), group=1)
    kind = type(result).__name__
    assert (found.status, found.reward) == (Status.INFRA_ERROR, None)
    assert f"counting returned {kind} as a result of count" in found.error


def test_an_episode_that_does_not_start_is_no_mistake_of_the_model():
    class Refusing(Counter):
        def start(self, question):
            raise ToolError("The server says no.")

    [[found], _] = collect(Refusing(), group=1)
    assert (found.status, found.reward) == (Status.INFRA_ERROR, None)
    assert "counting did not start: The server says no." in found.error


def test_results_and_errors_are_cut_as_the_environment_says():
    counter = Counter()
    cut = dataclasses.replace(counter.environment, name="cut", cut=lambda text: text[:6])
    play = protocol.Play(cut, cut.questions("train", 1)[0])
    assert play.tools["count"].run(by=1) == "It is "
    with pytest.raises(ToolError, match="^Count $"):
        play.tools["count"].run(by=2)


def test_one_episode_of_two_trajectories_is_warned_of(caplog):
    counter = Counter()
    one = counter.start(None)
    shared = dataclasses.replace(counter.environment, start=lambda question: one)
    [question] = shared.questions("train", 1)
    plays = [protocol.Play(shared, question) for _ in range(2)]
    plays[0].score(None)
    plays[0].close()
    plays[1].score(None)  # after the other: it may have begun anew
    assert "gave one episode to two" not in caplog.text
    plays = [protocol.Play(shared, question) for _ in range(2)]
    plays[0].score(None)
    assert "gave one episode to two trajectories at once" in caplog.text


def test_episodes_are_closed_although_calls_hang_at_the_end():
    counter, hang = Counter(), threading.Event()
    pool = workers.Workers(1, "tool")
    answering = services.System(None, None, {}, pool, environment=counter.environment)
    pool.submit(hang.wait)  # what others have to wait for
    plays = [answering.begin(question) for question in counter.environment.questions("train", 3)]
    for play in plays[:2]:
        play.tools["count"].run(by=1)
        answering.end(play)
    assert counter.closed == 0
    answering.close()
    hang.set()
    assert (counter.started, counter.closed, answering.plays) == (2, 2, set())
    assert answering.begin({"kind": "qa"}) is None


def test_workers_run_calls_and_cancel_those_that_wait():
    pool, hang, begun = workers.Workers(2, "tool"), threading.Event(), threading.Semaphore(0)
    calls = [pool.submit(divmod, 7, n) for n in (2, 0)]
    assert calls[0].result(5) == (3, 1) and isinstance(calls[1].exception(5), ZeroDivisionError)
    hung = [pool.submit(lambda: (begun.release(), hang.wait())) for _ in range(2)]
    assert begun.acquire(timeout=5) and begun.acquire(timeout=5)
    waiting = pool.submit(divmod, 7, 2)
    pool.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled() and not any(call.done() for call in hung)
    with pytest.raises(RuntimeError, match="have ended"):
        pool.submit(divmod, 7, 2)
    hang.set()
    assert [call.result(5) for call in hung] == [(None, True)] * 2
    with workers.Workers(1, "tool") as pool:
        calls = [pool.submit(divmod, n, 1) for n in range(9)]
    assert [call.result()[0] for call in calls] == [*range(9)]


def test_a_call_that_hangs_for_ever_does_not_keep_the_process():
    code = "import threading; from flow_grpo_jax import workers; "
    code += "workers.Workers(1, 'tool').submit(threading.Event().wait)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_other_questions_have_their_tools_and_no_episode():
    counter = Counter()
    other = {"id": "q", "question": "Where?", "kind": "qa", "source": "s", "answer": ("x",)}
    replies = {"plan": lambda request: _plan(request), "call": lambda request: _call(request)}
    replies["verify"] = "Verdict: STOP"
    questions = [other, *counter.environment.questions("train", 1)]
    [[of_file], [of_environment]] = collect(counter, questions=questions, replies=replies, group=1)
    assert (of_file.turns[0].tool, of_file.reward) == ("search", None)
    assert (of_environment.turns[0].tool, of_environment.reward) == ("count", 0.5)
    assert counter.started == 1


def test_two_tools_of_one_name_are_refused():
    counter = Counter()
    with pytest.raises(ValueError, match="environment counting has a tool .*: count, count"):
        services.System(None, None, {"count": None}, None, environment=counter.environment)
    bare = dataclasses.replace(counter.environment, tools=())
    with pytest.raises(ValueError, match="environment counting has no tools, and tools.names and"):
        services.System(None, None, {}, None, environment=bare)


def _text(request):
    return "".join(map(chr, request.tokens))


def _plan(request):
    tool = "count" if "count(by)" in _text(request) else "search"
    return f"Context: 0\nSub-goal: 1\nTool: {tool}"


def _call(request):
    return "count(by=1)" if "count" in _text(request) else 'search(query="x")'


def test_results_that_differ_after_the_same_calls_are_warned_of_once(caplog):
    class Restless(Counter):
        def start(self, question):
            episode = super().start(question)
            episode.call = lambda tool, arguments: f"It is {self.started}."
            return episode

    counter = Restless()
    question = protocol.question("restless", "train", 0, "Count.")
    for _ in range(3):
        play = protocol.Play(counter.environment, question)
        play.tools["count"].run(by=1)
        play.close()
    assert caplog.text.count("is not deterministic") == 1
    with pytest.raises(RuntimeError, match="closed"):
        play.tools["count"].run(by=1)
