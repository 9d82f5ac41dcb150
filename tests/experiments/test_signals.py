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
    names = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
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
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL and not stop()


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
