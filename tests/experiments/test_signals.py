"""Signals as a flag: polled, once, and not before anything polls it."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from experiments.running import signals


@pytest.fixture(autouse=True)
def handlers():
    """Puts back what handled the signals."""
    names = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP
    before = {name: signal.getsignal(name) for name in names}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


def test_the_first_signal_sets_the_flag_and_the_second_would_end_the_process():
    told = []
    stop = signals.StopSignal(signal.SIGTERM, signal.SIGUSR1, on_first=told.append)
    assert not stop()
    signal.raise_signal(signal.SIGTERM)
    assert stop() and told == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_ctrl_c_before_the_first_poll_is_a_keyboard_interrupt(before):
    signal.signal(signal.SIGINT, before)  # ignored in a job that a shell put into the background
    stop = signals.StopSignal(signal.SIGINT, on_first=lambda number: pytest.fail("polled"))
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert stop()  # should the exception be lost in a library


def test_signals_that_are_not_taken_stay_as_they_are():
    before = signal.getsignal(signal.SIGTERM)
    signals.StopSignal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("polls", "count", "expected"),
    [("stop()", 1, 0), ("stop()", 2, -signal.SIGTERM), ("", 1, -signal.SIGTERM)],
    ids=["once", "twice", "unpolled"],
)
def test_a_process_ends_when_it_should(polls, count, expected):
    code = textwrap.dedent(
        f"""
        import os, signal
        from experiments.running import signals
        stop = signals.StopSignal(signal.SIGTERM)
        {polls}
        for _ in range({count}):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        """
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == expected


def test_an_early_signal_may_end_the_process_or_wait_for_the_first_poll():
    told = []
    stop = signals.StopSignal(signal.SIGTERM, on_first=told.append, early=signals.leave)
    with pytest.raises(SystemExit) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == signals.STOPPED == 75 and told == []
    stop = signals.StopSignal(signal.SIGTERM, on_first=told.append, early=lambda number: None)
    signal.raise_signal(signal.SIGTERM)
    assert told == [signal.SIGTERM] and stop()


@pytest.mark.parametrize("take", [signals.leave_on, signals.StopSignal])
def test_nohup_is_respected(take):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    take(signal.SIGHUP, signal.SIGTERM)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert callable(signal.getsignal(signal.SIGTERM))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    take(signal.SIGHUP)
    assert callable(signal.getsignal(signal.SIGHUP))


def test_a_terminal_that_hangs_up_does_not_break_the_process():
    """The process writes to it after the signal, and its exit code is its own."""
    code = textwrap.dedent(
        """
        import signal, sys, time
        from experiments.running import signals
        stop = signals.StopSignal(signal.SIGHUP)
        stop()
        sys.stderr.write("ready")
        sys.stderr.flush()
        deadline = time.monotonic() + 30
        while not stop() and time.monotonic() < deadline:
            time.sleep(0.01)
        sys.stderr.write("more")
        sys.stderr.flush()
        sys.exit(75)
        """
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    start = f"import os, pty, signal, sys; os.chdir({root!r})\n" + textwrap.dedent(
        f"""
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # of a suite that nohup started
        child, terminal = pty.fork()
        if child == 0:
            os.execv(sys.executable, [sys.executable, "-c", {code!r}])
        heard = b""
        while b"ready" not in heard:
            heard += os.read(terminal, 100)
        os.close(terminal)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert subprocess.run([sys.executable, "-c", start], timeout=60).returncode == 75


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_training_takes_signals_before_its_long_imports(name):
    code = textwrap.dedent(
        f"""
        import runpy, signal, sys
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # of a suite that nohup started
        class Finder:
            def find_spec(self, module, *rest):
                if module == "jax":
                    signal.raise_signal(signal.{name})
        sys.meta_path.insert(0, Finder())
        runpy.run_module("experiments.train", run_name="__main__")
        """
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert found.returncode == 75
    assert found.stderr.endswith("there was nothing to save\n")
