"""Record and replay: the same answers, also errors; what broke is not kept."""

import concurrent.futures
import dataclasses

import pytest

from tools import recording
from tools.protocol import Ask, Parameter, Tool, ToolError


@pytest.fixture
def calls():
    return []


@pytest.fixture
def tool(calls):
    def run(*, x):
        calls.append(x)
        if x == "wrong":
            raise ToolError("wrong é")
        if x == "broken":
            raise OSError("the machine burns")
        return Ask("question") if x == "ask" else f"{x!r} {len(calls)}"

    parameters = (Parameter("x", "str", ""),)
    return Tool("t", "", parameters, "", "t(x='a')", run, 1.0, probe=lambda: 1 / 0, remote=True)


def test_answers_come_from_the_record(tool, calls, tmp_path):
    recorded = recording.wrap(tool, tmp_path, replay=False)
    first = [recorded.run(x=x) for x in ("a", 1, 1.0, True, "ask")]
    assert first == ["'a' 1", "1 2", "1.0 3", "True 4", Ask("question")]
    with pytest.raises(ToolError, match="wrong é"):
        recorded.run(x="wrong")
    replayed = recording.wrap(tool, tmp_path, replay=True)
    for again in (recorded, replayed):
        assert [again.run(x=x) for x in ("a", 1, 1.0, True, "ask")] == first
        with pytest.raises(ToolError, match="wrong é"):
            again.run(x="wrong")
    assert len(calls) == 6 and replayed.probe is None and recorded.probe is tool.probe


def test_what_broke_is_not_kept_and_what_is_missing_is_no_answer(tool, tmp_path):
    with pytest.raises(ValueError, match="nothing to replay"):
        recording.wrap(tool, tmp_path, replay=True)
    recorded = recording.wrap(tool, tmp_path, replay=False)
    recording.wrap(tool, tmp_path, replay=True)  # not called while recording is no fault
    for _ in range(2):
        with pytest.raises(OSError, match="burns"):
            recorded.run(x="broken")
    assert not list(tmp_path.rglob("*.json"))
    recorded.run(x="a")
    with pytest.raises(recording.Missing, match="no answer of t to {'x': 'b'}"):
        recording.wrap(tool, tmp_path, replay=True).run(x="b")
    assert not list(tmp_path.rglob("*.unfinished"))


def test_threads_agree_on_one_answer(tool, tmp_path):
    counter = iter(range(1000))
    changing = dataclasses.replace(tool, run=lambda *, x: str(next(counter)))
    recorded = recording.wrap(changing, tmp_path, replay=False)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: recorded.run(x="a"), range(64)))
    assert len(set(answers)) == 1
