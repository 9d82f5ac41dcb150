"""The lock of a run folder: one holder, left locks taken over, a lost one noticed."""

import dataclasses
import errno
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from experiments.running import command, folder

ROOT = pathlib.Path(__file__).parents[2]
HOLD = """
import os, signal, sys
from experiments.running import folder
with folder.held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def other(path, **fields):
    """Writes the lock of a process on another machine."""
    here = folder._this_process(path)
    there = dataclasses.replace(here, host="far", boot="another", word="theirs", **fields)
    (path / folder.LOCK).write_text(folder._text(there))
    return there


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(folder, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(folder, "LOOK_SECONDS", 0.02)


def test_a_second_holder_is_told_who_is_the_first(tmp_path):
    path = tmp_path / "new" / "run"
    with folder.held(path) as check:
        check()
        with pytest.raises(command.ConfigError) as caught, folder.held(path):
            pytest.fail("both hold it")
        assert f"{path} is in use: process {os.getpid()} on " in str(caught.value)
        assert f"stop it (kill {os.getpid()} on " in str(caught.value)
    assert list(path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), folder.held(path):
        raise ZeroDivisionError
    assert list(path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    with (
        pytest.raises(command.ConfigError, match=f"process {process.pid} on"),
        folder.held(tmp_path),
    ):
        pytest.fail("both hold it")
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but nobody looked
    with folder.held(tmp_path):
        assert folder._read(tmp_path / folder.LOCK).pid == os.getpid()
    process.communicate()


def test_a_number_that_another_process_has_now_is_no_holder(tmp_path):
    mine = folder._this_process(tmp_path)
    before = dataclasses.replace(mine, started=mine.started - 1, word="before")
    (tmp_path / folder.LOCK).write_text(folder._text(before))
    with folder.held(tmp_path):
        pass


def test_a_lock_of_another_machine_holds_while_it_is_renewed(tmp_path, quick):
    other(tmp_path)
    ended = threading.Event()

    def renew():
        while not ended.wait(0.05):
            os.utime(tmp_path / folder.LOCK)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(command.ConfigError, match="on far works in it"), folder.held(tmp_path):
            pytest.fail("both hold it")
    finally:
        ended.set()
        thread.join()
    with folder.held(tmp_path):
        assert folder._read(tmp_path / folder.LOCK).host != "far"


@pytest.mark.parametrize(
    "damage", ["", "\0\0\0", '{"host": "x"}', "[]", {"pid": "1"}, {"pid": -1}, {"since": None}]
)
def test_a_damaged_lock_is_taken_over_after_a_while(tmp_path, quick, damage):
    if isinstance(damage, dict):
        holder = dataclasses.asdict(folder._this_process(tmp_path))
        damage = json.dumps(holder | damage)
    (tmp_path / folder.LOCK).write_text(damage)
    with folder.held(tmp_path):
        pass


def test_the_lock_in_a_copied_folder_is_none(tmp_path, quick):
    there, here = tmp_path / "there", tmp_path / "here"
    with folder.held(there):
        here.mkdir()
        (here / folder.LOCK).write_bytes((there / folder.LOCK).read_bytes())
        with folder.held(here):
            pass


def test_it_works_without_hard_links(tmp_path, monkeypatch):
    def refuses(*paths):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuses)
    refused = pytest.raises(command.ConfigError, match="in use")
    with folder.held(tmp_path), refused, folder.held(tmp_path):
        pytest.fail("both hold it")
    assert list(tmp_path.iterdir()) == []


def test_a_holder_learns_that_its_lock_was_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "BEAT_SECONDS", 0.01)
    with folder.held(tmp_path) as check:
        lock = tmp_path / folder.LOCK
        lock.unlink()
        deadline = time.monotonic() + 60
        while not lock.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        check()  # deleted: it is back
        there = other(tmp_path)
        with pytest.raises(RuntimeError, match="taken over by another process"):
            while time.monotonic() < deadline:
                check()
                time.sleep(0.01)
    assert folder._read(lock) == there  # not removed: it is theirs


def test_a_training_ends_when_it_loses_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "BEAT_SECONDS", 0.01)

    @folder.one_at_a_time
    def train(config, workdir, *, should_stop, force):
        assert (config, force, should_stop()) == ("config", True, False)
        other(workdir)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            should_stop()

    with pytest.raises(RuntimeError, match="taken over"):
        train("config", str(tmp_path), force=True)


def test_what_cannot_be_a_run_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path, said in (
        (tmp_path / "file", "cannot be written: File exists"),
        (tmp_path / "file" / "run", "cannot be written: Not a directory"),
        ("gs://bucket/run", "is a URL"),
        ("", "is empty"),
    ):
        with pytest.raises(command.ConfigError, match=said), folder.held(path):
            pytest.fail("held")


@pytest.mark.slow
def test_one_of_many_takes_a_left_lock_over(tmp_path):
    mine = folder._this_process(tmp_path)
    before = dataclasses.replace(mine, started=mine.started - 1, word="before")
    (tmp_path / folder.LOCK).write_text(folder._text(before))
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    heard = [racer.stdout.readline() for racer in racers]  # "" from those that were refused
    assert sorted(heard) == ["", "", "", "held\n"]
    errors = [racer.communicate()[1] for racer in racers]
    assert sum("is in use" in error for error in errors) == 3
    assert list(tmp_path.iterdir()) == []
