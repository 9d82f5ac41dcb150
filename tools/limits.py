"""Protects services from too many calls: a rate, a rest after failures, growing waits."""

import email.utils
import math
import random
import threading
import time

LONGEST_PAUSE = 300.0  # seconds for which one Retry-After may hold up all calls


class TooLate(Exception):
    """A call was not made: its turn would come after its deadline.

    seconds: until its turn, or None.
    """

    def __init__(self, message, seconds=None):
        super().__init__(message)
        self.seconds = seconds


class Resting(Exception):
    """A call was not made: the service has been failing.

    seconds: until it is tried again.
    """

    def __init__(self, message, seconds):
        super().__init__(message)
        self.seconds = seconds


class Rate:
    """At most `per_second` calls in a second, evenly, with `burst` of them at once; 0: no limit."""

    def __init__(self, per_second, *, burst=1, clock=time.monotonic):
        self._interval = 1 / per_second if per_second else 0.0
        self._slack, self._clock = self._interval * (burst - 1), clock
        self._next = self._not_before = -math.inf
        self._lock = threading.Lock()

    def reserve(self, deadline):
        """Returns the seconds to wait before the call; `TooLate` if that is past the deadline."""
        with self._lock:
            now = self._clock()
            at = max(now, self._next - self._slack, self._not_before)
            if at > deadline:
                raise TooLate(
                    f"The call's turn comes in {at - now:.1f} s, after its deadline.", at - now
                )
            self._next = max(self._next, at) + self._interval
            return at - now

    def pause(self, seconds):
        """Allows no call for `seconds`, at most LONGEST_PAUSE: the service asked for it."""
        until = self._clock() + min(seconds, LONGEST_PAUSE)
        with self._lock:
            self._not_before = max(self._not_before, until)


class Breaker:
    """Declares a service down after `failures` in a row, for `seconds`; then one call tries it.

    While it is down calls fail at once. While one call tries it, the others wait for the outcome.
    failures: 0 for never.
    """

    def __init__(self, *, failures, seconds, clock=time.monotonic):
        self._failures, self._seconds, self._clock = failures, seconds, clock
        self._changed = threading.Condition()
        self._in_row, self._until, self._probing = 0, None, False

    @property
    def state(self):
        """One of "up", "down" (calls fail at once), "unknown" (the next call will tell)."""
        with self._changed:
            if self._until is None:
                return "up"
            return "down" if self._clock() < self._until else "unknown"

    def enter(self, deadline):
        """Lets a call through, or raises `Resting`. Each call let in must `leave`."""
        with self._changed:
            while self._until is not None:
                if not self._probing:
                    left = self._until - self._clock()
                    if left > 0:
                        raise Resting(
                            f"The service failed {self._in_row} times in a row; it is left alone "
                            f"for {left:.1f} s.",
                            left,
                        )
                    self._probing = True
                    return
                left = deadline - self._clock()
                if left <= 0:
                    raise TooLate("The deadline passed while another call tried the service.")
                self._changed.wait(left)

    def leave(self, *, failed):
        """Notes the outcome of a call that was let in; None says nothing about the service."""
        with self._changed:
            if failed:
                self._in_row += 1
                if self._failures and (self._probing or self._in_row >= self._failures):
                    self._until = self._clock() + self._seconds
            elif failed is not None:
                self._in_row, self._until = 0, None
            self._probing = False
            self._changed.notify_all()


def backoff(attempt, *, first, longest, draw=random.random):
    """Returns the seconds to wait after a failed attempt, 0 for the first one.

    They double up to `longest`, shortened at random by up to a half (`draw` is in [0, 1)), so that
    callers that failed together do not return together.
    """
    return min(longest, first * 2.0**attempt) * (1 - draw() / 2)


def retry_after(text):
    """Returns the seconds that Retry-After asks for, number or date; None if unreadable."""
    text = (text or "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(seconds, 0.0) if seconds < math.inf else None
