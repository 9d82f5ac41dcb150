"""What keeps a server from being asked too much: a rate, and a rest when it fails."""

import math
import threading
import time

from agents.backends.errors import Down, Retryable


class Rate:
    """At most `per_second` calls in a second, evenly, with `burst` of them at once; 0: no limit."""

    def __init__(self, per_second, *, burst=1, clock=time.monotonic):
        self._interval = 1 / per_second if per_second else 0.0
        self._slack, self._clock = self._interval * (burst - 1), clock
        self._next = self._not_before = -math.inf
        self._lock = threading.Lock()

    def reserve(self, deadline):
        """Seconds to wait before the call. Retryable if its turn comes after the deadline."""
        with self._lock:
            now = self._clock()
            at = max(now, self._next - self._slack, self._not_before)
            if at > deadline:
                raise Retryable(
                    f"The call's turn comes in {at - now:.1f} s, after its deadline.", at - now
                )
            self._next = max(self._next, at) + self._interval
            return at - now

    def pause(self, seconds):
        """No call before `seconds` from now: the server asked for it."""
        with self._lock:
            self._not_before = max(self._not_before, self._clock() + seconds)


class Breaker:
    """Declares a server down after `failures` in a row, for `seconds`; then one call tries it.

    While it is down calls fail at once. While one call tries it, the others wait for the outcome.
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
        """Lets a call through, or raises `Down`. Each call let in must `leave`."""
        with self._changed:
            while self._until is not None:
                if not self._probing:
                    left = self._until - self._clock()
                    if left > 0:
                        raise Down(
                            f"The server failed {self._in_row} times in a row; it is left alone "
                            f"for {left:.1f} s.",
                            left,
                        )
                    self._probing = True
                    return
                left = deadline - self._clock()
                if left <= 0:
                    raise Retryable("The deadline passed while another call tried the server.")
                self._changed.wait(left)

    def leave(self, *, failed):
        """The outcome of a call that was let in; None: it says nothing about the server."""
        with self._changed:
            if failed:
                self._in_row += 1
                if self._probing or self._in_row >= self._failures:
                    self._until = self._clock() + self._seconds
            elif failed is not None:
                self._in_row, self._until = 0, None
            self._probing = False
            self._changed.notify_all()
