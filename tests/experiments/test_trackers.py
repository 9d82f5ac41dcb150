"""Trackers follow a run from processes of their own: what they are sent; that they never harm."""

import json
import logging
import os
import struct
import time

import pytest

from experiments.configs import common
from experiments.running import command, record, stored, trackers
from experiments.tracking import private, tables
from flow_grpo_jax import files

FAKE = """
import json, os, pathlib, time

how = os.environ.get("FAKE_WANDB", "")
out = pathlib.Path(os.environ["FAKE_WANDB_FILE"])


def note(*what):
    with out.open("a") as file:
        file.write(json.dumps(what) + "\\n")


class Settings:
    def __init__(self, **settings):
        self.settings = settings


class Table:
    def __init__(self, columns, data):
        self.columns, self.data = columns, data


class Run:
    def log(self, values, step):
        if how == "raises" and step == 1:
            raise ConnectionError("the network is gone")
        plain = {k: v.data if isinstance(v, Table) else v for k, v in values.items()}
        note("log", step, plain)

    def finish(self):
        if how == "hangs":
            time.sleep(60)
        note("finish")


def init(*, settings, **how):
    note("init", how, settings.settings)
    return Run()
"""
VALUES = {"loss/total": 0.5, "time/update": 1.0}


@pytest.fixture
def said(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("absl"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="absl")
    return lambda: [entry.getMessage() for entry in caplog.records]


@pytest.fixture
def noted(monkeypatch, tmp_path):
    """Puts a library `wandb` in the way that notes what it is asked; returns a reader of notes."""
    folder, out = tmp_path / "library", tmp_path / "noted.jsonl"
    folder.mkdir()
    (folder / "wandb.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("FAKE_WANDB_FILE", str(out))
    return lambda: [json.loads(line) for line in out.read_text().splitlines()]


def config_of(*names, **tracking):
    c = common.base()
    c.trackers = names
    c.tracking.update(tracking)
    return c


def line_of(step, rollout, result="Madrid"):
    turn = {"planner_text": "plan", "tool": "search", "command": "f()", "result": result}
    line = {"question_id": "q", "rollout": rollout, "question": "Capital?", "gold": ["a", "b"]}
    line |= {"answer": "Madrid", "reward": 1.0, "advantage": 0.5, "status": "ok", "step": step}
    return json.dumps(line | {"turns": [turn]})


def run(workdir, config, steps, *, resumed_after=None, ends=True):
    """Writes the given steps as a training does; those that are negative are not whole."""
    workdir.mkdir(exist_ok=True)
    stored.write_config(config, workdir)
    (workdir / "trajectories").mkdir(exist_ok=True)
    watchers = trackers.start(config, workdir, first_step=(resumed_after or 0) + 1)
    kept = record.Record(workdir, steps=9, resumed_after=resumed_after, watchers=watchers)
    for step in steps:
        text = "".join(f"{line_of(abs(step), g)}\n" for g in range(20))
        files.replace_text(workdir / "trajectories" / f"step_{abs(step):06d}.jsonl", text)
        kept.write(abs(step), VALUES, whole=step >= 0)
    if ends:
        kept.close()
    return kept


def test_names_are_checked_and_a_missing_library_is_named_with_its_extra(monkeypatch):
    trackers.check(("tensorboard", "trackio", "wandb"))
    for wrong in (("mlflow",), ("wandb", "wandb")):
        with pytest.raises(command.ConfigError, match="must name each of tensorboard, wandb"):
            trackers.check(wrong)
    monkeypatch.setitem(command.EXTRAS, "trackio", ("no_such_library",))
    with pytest.raises(command.ConfigError, match=r"trackers=trackio needs no_s.*'\.\[trackio\]'"):
        trackers.need(("trackio",))


def test_a_tracker_is_sent_each_step_once_also_over_resumptions(noted, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "s3cret-value")
    config, workdir = config_of("wandb", run_name="first", trajectories=3), tmp_path / "run"
    config.tools.mcp = (
        "server --api-key=abcdef --user x",
        "https://me:pw123@host/mcp?token=t0&a=1",
    )
    config.backends.judge.extra.auth_token = "abc"
    config.backends.judge.model = "s3cret-value"
    run(workdir, config, [1, 2, -3])  # the evaluation after step 3 was cut off
    run(workdir, config, [3, 4, 5], resumed_after=2, ends=True)
    run(workdir, config, [5, 6], resumed_after=4)  # killed after step 5, saved after step 4
    found = noted()
    starts = [entry for entry in found if entry[0] == "init"]
    assert [step for kind, step, *_ in filter(lambda e: e[0] == "log", found)] == [*range(1, 7)]
    assert len(starts) == 3 and found[-1] == ["finish"]
    (_, how, settings), *_ = starts
    assert len({start[1]["id"] for start in starts}) == 1 and how["resume"] == "allow"
    assert (how["name"], how["project"]) == ("first", "flow-grpo-jax")
    assert settings["x_stats_pid"] == os.getpid()
    sent = how["config"]
    assert sent["optim.lr"] == 1e-6 and sent["tools.names"][0] == "knowledge_search"
    url = "https://***@host/mcp?token=***&a=1"
    assert sent["tools.mcp"] == ["server --api-key=*** --user x", url]
    assert sent["backends.judge.extra.auth_token"] == "***" == sent["backends.judge.model"]
    values = next(entry[2] for entry in found if entry[0] == "log")
    assert values["loss/total"] == 0.5 and values["machine/peak_memory_gib"] > 0
    rows = values["trajectories"]
    assert [row[1] for row in rows] == [0, 6, 13]
    row = dict(zip(tables.COLUMNS, rows[0], strict=True))
    assert row["gold"] == "a | b" and row["transcript"] == "plan\n[search] f()\nMadrid"


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            "raises",
            "tracker wandb failed, and the run goes on without: ConnectionError: the",
        ),
        ("hangs", "tracker wandb was not done 0 s after the run and was stopped; see /"),
    ],
)
def test_one_that_fails_or_hangs_is_one_warning(how, told, noted, tmp_path, said, monkeypatch):
    monkeypatch.setenv("FAKE_WANDB", how)
    workdir = tmp_path / "run"
    kept = run(workdir, config_of("wandb", seconds=0.2), [1], ends=False)
    process = kept._watchers._running["wandb"]
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(noted_or_none(noted)) < 2 and process.poll() is None:
        time.sleep(0.05)
    for step in range(2, 5):
        kept.write(step, VALUES)
    kept.close()
    warnings = [text for text in said() if text.startswith("tracker")]
    assert len(warnings) == 1 and warnings[0].startswith(told)
    assert process.returncode is not None


def noted_or_none(noted):
    try:
        return noted()
    except FileNotFoundError:
        return []


def test_a_full_pipe_is_not_waited_for_and_the_steps_arrive_later(noted, tmp_path):
    workdir, config = tmp_path / "run", config_of("wandb", trajectories=0)
    kept = run(workdir, config, [1], ends=False)
    process = kept._watchers._running["wandb"]
    os.kill(process.pid, 19)  # SIGSTOP
    kept._metrics.write(2, VALUES)
    for _ in range(2_000):
        kept._watchers.tell(2)
    os.kill(process.pid, 18)
    kept.close()
    assert [entry[1] for entry in noted() if entry[0] == "log"] == [1, 2]


def test_no_tracker_costs_nothing_and_other_processes_have_none(tmp_path, monkeypatch):
    assert trackers.start(config_of(), tmp_path, first_step=1) is None
    monkeypatch.setattr(trackers.processes, "index", lambda: 1)
    assert trackers.start(config_of("wandb"), tmp_path, first_step=1) is None
    assert not list(tmp_path.iterdir())


def test_what_only_watches_may_change_when_a_run_goes_on(tmp_path):
    stored.write_config(config_of(), tmp_path)
    changed = config_of("wandb", project="other")
    changed.trace.steps = changed.profile.steps = (1, 2)
    stored.check_config(changed, tmp_path)
    changed.optim.lr = 1.0
    with pytest.raises(command.ConfigError, match=r"differs in optim\.lr\."):
        stored.check_config(changed, tmp_path)


def test_values_of_keys_are_hidden_wherever_they_stand():
    hide = private.hider({"HF_TOKEN": "hf_abcdef", "API_KEY": "short", "HOME": "/home/someone"})
    assert hide("x hf_abcdef short /home/someone") == "x *** short /home/someone"
    assert private.hider({})("anything") == "anything"
    extra = {"calls": [{"headers": {"api_key": "b", "max": 1}}], "at": "hf_abcdef"}
    found = private.of_config({"backends": {"judge": {"extra": extra}}}, hide)
    assert found == {
        "backends.judge.extra.calls": [{"headers": {"api_key": "***", "max": 1}}],
        "backends.judge.extra.at": "***",
    }


# ---- the libraries themselves, without a network -------------------------------------------------


def events(folder):
    """Yields the events of TensorBoard's files: records of (length, checksum, bytes, checksum)."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


@pytest.mark.slow  # where torch is installed, tensorboardX imports it
def test_tensorboard_has_each_step_once(tmp_path):
    pytest.importorskip("tensorboardX")
    workdir, config = tmp_path / "run", config_of("tensorboard")
    run(workdir, config, [0, 1, 2, 3])
    run(workdir, config, [2, 3, 4], resumed_after=1)
    steps, purged, tags = [], [], set()
    for event in events(workdir / "tensorboard"):
        if event.session_log.status == event.session_log.START:
            purged.append(event.step)  # TensorBoard drops what was before and has this step or more
            steps = [step for step in steps if step < event.step]
        tags |= {value.tag for value in event.summary.value}
        steps += [event.step for value in event.summary.value if value.tag == "loss/total"]
    assert steps == [0, 1, 2, 3, 4] and purged[-1] == 2
    assert {"machine/load", "config/text_summary", "trajectories/text_summary"} <= tags


def blocks(data):
    """Yields the records of a .wandb file: a head of 7 bytes, then a log as LevelDB writes it."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32_768 - place % 32_768 < 7:  # what is left of a block holds no head
            place += 32_768 - place % 32_768
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, or the last of several
            yield whole
            whole = b""


@pytest.mark.slow
def test_wandb_offline_keeps_the_id_and_each_step_once(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    for name, value in {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    workdir, config = tmp_path / "run", config_of("wandb", run_name="nice")
    run(workdir, config, [0, 1, 2])
    run(workdir, config, [2, 3], resumed_after=1)
    steps, ids, names, counted = [], set(), set(), 0
    for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        for entry in map(Record.FromString, blocks(path.read_bytes())):
            if entry.HasField("run"):
                ids.add(entry.run.run_id)
                names.add(entry.run.display_name)
            items = {"/".join(i.nested_key) or i.key: i.value_json for i in entry.history.item}
            if "loss/total" in items:
                steps.append(int(items["_step"]))
                counted += "trajectories/_type" in items or "trajectories" in items
    assert steps == [0, 1, 2, 3] and names == {"nice"} and counted == 4
    assert ids == {json.loads((workdir / "tracking" / "wandb.json").read_text())["id"]}


@pytest.mark.slow
def test_trackio_keeps_the_run_and_each_step_once(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    import sqlite3

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    workdir, config = tmp_path / "run", config_of("trackio", project="p", run_name="nice")
    run(workdir, config, [0, 1, 2])
    run(workdir, config, [2, 3], resumed_after=1)
    found = []
    for path in (tmp_path / "trackio").rglob("*.db"):
        with sqlite3.connect(path) as database:
            query = "SELECT run_name, step, metrics FROM metrics ORDER BY step"
            found += [(n, s, json.loads(m)) for n, s, m in database.execute(query)]
    assert [step for _, step, _ in found] == [0, 1, 2, 3]
    assert {name[:5] for name, *_ in found} == {"nice-"} and len({n for n, *_ in found}) == 1
    assert found[0][2]["loss/total"] == 0.5
    assert len(found[0][2]["trajectories"]["_value"]) == 8
