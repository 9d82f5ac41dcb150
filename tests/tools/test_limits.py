"""Rates, breakers and waits, on a clock that the test moves."""

import email.utils
import threading
import time

import pytest

from tools import limits


def test_retry_after_as_a_date_and_nonsense():
    at = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 25 < limits.retry_after(at) <= 30
    assert limits.retry_after("1.5") == 1.5
    for text in ("", None, "soon", "nan", "inf"):
        assert limits.retry_after(text) is None
    assert limits.retry_after("-3") == 0.0


def test_rate():
    now = 100.0
    rate = limits.Rate(2.0, burst=2, clock=lambda: now)
    assert [rate.reserve(1e9) for _ in range(5)] == [0.0, 0.0, 0.5, 1.0, 1.5]
    with pytest.raises(limits.TooLate, match="2.0 s, after its deadline"):
        rate.reserve(101.0)
    now += 2.0
    assert rate.reserve(1e9) == 0.0  # the refused call took no turn
    rate.pause(10.0)
    assert rate.reserve(1e9) == 10.0
    free = limits.Rate(0.0, clock=lambda: now)
    assert [free.reserve(1e9) for _ in range(3)] == [0.0] * 3


def test_the_breaker_opens_probes_once_and_closes():
    now = 0.0
    breaker = limits.Breaker(failures=2, seconds=10.0, clock=lambda: now)

    def call(failed):
        breaker.enter(1e9)
        breaker.leave(failed=failed)

    call(True)
    call(False)  # a success starts the count again
    assert breaker.state == "up"
    call(True)
    call(True)
    assert breaker.state == "down"
    with pytest.raises(limits.Resting, match="2 times in a row; it is left alone for 10.0 s"):
        breaker.enter(1e9)
    now = 10.0
    assert breaker.state == "unknown"
    call(True)  # the probe fails
    assert breaker.state == "down"
    now = 20.0
    breaker.enter(1e9)  # the next probe; another call waits for its outcome
    passed = threading.Event()
    other = threading.Thread(target=lambda: (breaker.enter(1e9), passed.set()))
    other.start()
    assert not passed.wait(0.05)
    breaker.leave(failed=False)
    other.join(5.0)
    assert passed.is_set() and breaker.state == "up"


def test_no_wish_holds_up_all_calls_for_longer_than_the_limit():
    rate = limits.Rate(0.0, clock=lambda: 100.0)
    rate.pause(1e9)
    assert rate.reserve(1e12) == limits.LONGEST_PAUSE


def test_a_breaker_of_no_failures_never_opens():
    breaker = limits.Breaker(failures=0, seconds=10.0)
    for _ in range(20):
        breaker.enter(1e9)
        breaker.leave(failed=True)
    assert breaker.state == "up"


def test_waits_double_up_to_the_longest_and_lose_up_to_a_half():
    waits = [limits.backoff(n, first=1.0, longest=5.0, draw=lambda: 0.0) for n in range(5)]
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert limits.backoff(1, first=1.0, longest=5.0, draw=lambda: 0.5) == 1.5
