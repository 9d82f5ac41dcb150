"""Where a thread's time goes."""

import collections
import contextlib
import time


class Timer:
    """Seconds that one thread spends on things with names; every moment counts for one name.

    seconds: name -> float, in a Counter. What is done within something else counts for the inner
      name only, so the sum is the time spent under any name.
    """

    def __init__(self, clock=time.perf_counter):
        self.seconds = collections.Counter()
        self._clock, self._name, self._since = clock, None, 0.0

    @contextlib.contextmanager
    def on(self, name):
        """Counts what happens inside for a name."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, name):
        """Counts from now on for a name, None for none; returns the name until now."""
        now = self._clock()
        if self._name is not None:
            self.seconds[self._name] += now - self._since
        until_now, self._name, self._since = self._name, name, now
        return until_now
