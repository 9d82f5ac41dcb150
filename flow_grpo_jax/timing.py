"""Measures where time goes: sums of a thread, and spans on lanes."""

import collections
import contextlib
import time


class Timer:
    """Wall-clock seconds per label; a nested label pauses the outer one.

    seconds: label -> float, in a Counter. The sum is the time spent under any label.
    trace: `Trace` that also gets them, on the lane "driver", or None.
    """

    def __init__(self, clock=time.perf_counter, trace=None):
        self.seconds, self.trace = collections.Counter(), trace
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
        if self.trace:
            self.trace.mark("driver", name)
        until_now, self._name, self._since = self._name, name, now
        return until_now


class Trace:
    """Spans of time on lanes. Those of a lane follow each other and never overlap.

    spans: (lane, name, start, end) of each span that has ended; seconds of the clock.
    """

    def __init__(self, clock=time.perf_counter):
        self.spans, self._clock, self._open = [], clock, {}

    def mark(self, lane, name):
        """Ends the present span of a lane, if there is one, and begins one; None begins none."""
        now = self._clock()
        if lane in self._open:
            self.spans.append((lane, *self._open.pop(lane), now))
        if name is not None:
            self._open[lane] = name, now
