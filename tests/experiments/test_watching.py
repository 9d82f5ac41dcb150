"""Traces of steps: what Chrome's viewer and Perfetto read, and lanes that never overlap."""

import collections
import json

import jax
import jax.numpy as jnp
import pytest

from experiments.configs import common
from experiments.running import watching
from flow_grpo_jax import timing

PROFILE = "profiles/step_000002"


def config_of(*, trace=(), profile=()):
    c = common.base()
    c.trace.steps, c.profile.steps = trace, profile
    return c


def clock_of(*times):
    left = iter(times)
    return lambda: next(left)


def test_spans_of_a_lane_follow_each_other():
    trace = timing.Trace(clock_of(0.0, 1.0, 1.5, 2.0, 3.0, 4.0))
    for lane, name in [("a", "x"), ("b", "y"), ("a", "z"), ("a", None), ("c", None), ("b", None)]:
        trace.mark(lane, name)
    assert trace.spans == [("a", "x", 0.0, 1.5), ("a", "z", 1.5, 2.0), ("b", "y", 1.0, 4.0)]


def test_a_timer_draws_its_labels_and_counts_as_without():
    trace = timing.Trace(clock_of(0.0, 1.0, 3.0, 4.0))
    timer = timing.Timer(clock_of(0.0, 1.0, 3.0, 4.0), trace)
    with timer.on("driver"), timer.on("engine"):
        pass
    assert timer.seconds == {"driver": 2.0, "engine": 2.0}
    assert trace.spans == [
        ("driver", "driver", 0.0, 1.0),
        ("driver", "engine", 1.0, 3.0),
        ("driver", "driver", 3.0, 4.0),
    ]


def test_events_are_those_of_the_format():
    spans = [
        ((1, "q7", 0), "planner", 10.5, 11.0),
        ("driver", "engine", 10.25, 11.0),
        ((1, "q7", 0), "python_coder", 11.0, 11.25),
        ("phases", "rollout", 10.0, 11.5),
    ]
    found = json.loads(json.dumps(watching.as_events(spans, 3)))
    names = {
        (e["pid"], e["tid"]): e["args"]["name"]
        for e in found["traceEvents"]
        if e["name"] == "thread_name"
    }
    assert names == {(1, 1): "phases", (1, 2): "driver", (2, 3): "question 1 (q7), rollout 0"}
    shown = [e for e in found["traceEvents"] if e["ph"] == "X"]
    assert [(e["name"], e["cat"], e["tid"], e["ts"], e["dur"]) for e in shown] == [
        ("planner", "model", 3, 500_000.0, 500_000.0),
        ("engine", "training", 2, 250_000.0, 750_000.0),
        ("python_coder", "tool", 3, 1_000_000.0, 250_000.0),
        ("rollout", "training", 1, 0.0, 1_500_000.0),
    ]


def refuse(path, text):
    raise watching.files.CannotWrite("disk full")


def test_steps_that_are_named_are_traced_and_no_others(tmp_path, monkeypatch, caplog):
    watch = watching.Watch(config_of(trace=(2,)), tmp_path)
    seen = {}
    for step in watch.steps(range(1, 4)):
        seen[step] = watch.trace is not None
        watch.phase("update")
    assert seen == {1: False, 2: True, 3: False}
    assert [path.name for path in tmp_path.rglob("*.json")] == ["step_000002.json"]
    check_trace(tmp_path / "traces" / "step_000002.json", phases=["rollout", "update"])
    monkeypatch.setattr(watching.files, "replace_text", refuse)
    assert [*watching.Watch(config_of(trace=(3,)), tmp_path).steps([3, 4])] == [3, 4]
    assert "the trace of step 3 is lost: disk full" in caplog.text
    monkeypatch.setattr(watching.processes, "index", lambda: 1)
    other = watching.Watch(config_of(trace=(4,), profile=(4,)), tmp_path)
    assert [other.trace for _ in other.steps([4])] == [None]
    assert len([*tmp_path.iterdir()]) == 1


def check_trace(path, *, phases):
    """Checks the format, and that no two spans of a lane overlap; returns names by lane."""
    found = json.loads(path.read_text())
    assert found["displayTimeUnit"] == "ms"
    lanes, titles = collections.defaultdict(list), {}
    for event in found["traceEvents"]:
        assert {"ph", "name", "pid", "tid"} <= event.keys() and event["ph"] in "XM"
        if event["ph"] == "X":
            assert event["ts"] >= 0 and event["dur"] >= 0
            lanes[event["pid"], event["tid"]].append(event)
        elif event["name"] == "thread_name":
            titles[event["pid"], event["tid"]] = event["args"]["name"]
    assert set(titles) == set(lanes)
    for events in lanes.values():
        for before, after in zip(events, events[1:], strict=False):
            assert before["ts"] + before["dur"] <= after["ts"] + 0.002  # they are rounded
    shown = {titles[lane]: [e["name"] for e in events] for lane, events in lanes.items()}
    assert shown["phases"] == phases
    return shown


@pytest.mark.slow
def test_a_profile_is_written_and_one_that_fails_is_a_warning(tmp_path):
    watch = watching.Watch(config_of(profile=(2, 3)), tmp_path)
    for step in watch.steps(range(1, 4)):
        if step == 3:
            break  # as an error leaves the loop
        watch.phase("update")
        jax.block_until_ready(jnp.ones(8) + step)
    (path,) = (tmp_path / PROFILE).rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    names = {e.name for plane in planes for line in plane.lines for e in line.events}
    assert {"train", "rollout", "update"} <= names
    del watch
    jax.profiler.start_trace(str(tmp_path / "other"))  # the one of step 3 was ended
    again = watching.Watch(config_of(profile=(2,)), tmp_path / "again")
    assert [*again.steps([2])] == [2]  # another is being made: a warning
    jax.profiler.stop_trace()
    assert not (tmp_path / "again").exists()
