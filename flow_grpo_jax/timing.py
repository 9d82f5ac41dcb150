"""Where a thread's time goes."""

import collections
import contextlib
import time


class Timer:
    """Wall-clock seconds of one thread per name; a nested name pauses the outer one.

    seconds: name -> float, in a Counter. Their sum is the time spent under any name.
    """

    def __init__(self, clock=time.perf_counter):
        self.seconds = collections.Counter()
        self._clock, self._name, self._since = clock, None, 0.0

    @contextlib.contextmanager
    def on(self, name):
        """Counts the time inside for a name."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, name):
        """Counts for a name from now on, None for none; returns the previous name."""
        now = self._clock()
        if self._name is not None:
            self.seconds[self._name] += now - self._since
        until_now, self._name, self._since = self._name, name, now
        return until_now
