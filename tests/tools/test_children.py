"""Child processes: what ends them, that the next piece of work has another, and what they may."""

import concurrent.futures
import os
import signal
import socket
import sys

import pytest

from tools import children
from tools.sandbox import layers


@pytest.fixture(scope="module")
def made():
    found = children.Children("tests.tools.child_work", most=1, memory_bytes=2**30)
    yield found
    found.close()


def job(made, name, about=None, *, seconds=5.0):
    return made.ask({"job": name, "about": about}, seconds=seconds)


def test_one_process_lives_on(made):
    text = "line\nline\u2028\ud83d" * 100_000  # longer than a socket's buffer
    assert job(made, "echo", text) == text
    before = made.processes()
    assert job(made, "print", "to nobody") is None and job(made, "echo", 1) == 1
    assert made.processes() == before and len(before) == 1


@pytest.mark.parametrize("name", ["loop", "memory", "raise", "end", "nonsense", "flood"])
def test_what_ends_it_is_no_answer_and_the_next_work_is_done(made, name):
    job(made, "echo")
    (before,) = made.processes()
    assert job(made, name, seconds=0.2 if name == "loop" else 5.0) is None
    assert job(made, "echo", "again") == "again" and made.processes() != [before]
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)


def test_one_that_was_ended_between_two_pieces_of_work_costs_no_answer(made):
    job(made, "echo")
    (before,) = made.processes()
    os.kill(before, signal.SIGKILL)
    os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
    assert job(made, "echo", 1) == 1 and made.processes() != [before]


def test_it_knows_nothing_of_our_environment(made, monkeypatch):
    made.close()
    monkeypatch.setenv("MODELS_KEY", "secret")
    found = job(made, "environment")
    assert set(found) <= {*children._environment(), "LC_CTYPE"}


@pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")
def test_it_has_no_network_no_programs_and_no_files(made, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert job(made, "connect", listener.getsockname()[1]) == "PermissionError"
    for name in ("udp", "program"):
        assert job(made, name) == "PermissionError"
    assert job(made, "kill", os.getpid()) == "PermissionError"
    if layers.landlock_version():
        secret = tmp_path / "secret"
        secret.write_text("secret")
        for path in (secret, "/etc/hostname", "/proc/self/environ"):
            assert job(made, "read", str(path)) == "PermissionError"
        assert job(made, "write", str(tmp_path / "new")) == "PermissionError"
    assert "import abc" in job(made, "read", os.__file__)  # the libraries


def test_work_waits_for_a_place(made):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: job(made, "echo", i), range(40))) == list(range(40))
    assert len(made.processes()) == 1


def test_work_that_does_not_start_is_an_error():
    with pytest.raises(RuntimeError, match="no_such_work does not start.*No module named"):
        children.Children("no_such_work", most=1, memory_bytes=2**30).ask({}, seconds=1.0)
