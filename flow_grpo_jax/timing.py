"""Measures where a thread's time goes."""

import collections
import contextlib
import time


class Timer:
    """Wall-clock seconds per label; a nested label pauses the outer one.

    seconds: label -> float, in a Counter. The sum is the time spent under any label.
    """

    def __init__(self, clock=time.perf_counter):
        self.seconds = collections.Counter()
        self._clock, self._name, self._since = clock, None, 0.0

    @contextlib.contextmanager
    def on(self, name):
        """Counts the time inside the context under a label."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, name):
        """Counts from now on under a label, None for none; returns the label until now."""
        now = self._clock()
        if self._name is not None:
            self.seconds[self._name] += now - self._since
        until_now, self._name, self._since = self._name, name, now
        return until_now
