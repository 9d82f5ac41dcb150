"""Signals that stop a command between two steps of its work."""

import signal


class StopSignal:
    """Signals as a flag to poll: the first sets it, a second one ends the process at once.

    A signal that comes before the flag was ever polled does what it did before: nothing would look
    at the flag yet.

    Args:
      numbers: signals to take.
      on_first: called with the number of the first one, in the signal handler.
    """

    def __init__(self, *numbers, on_first=lambda number: None):
        self._received = self._polled = False
        self._on_first = on_first
        self._before = {number: signal.signal(number, self._receive) for number in numbers}

    def _receive(self, number, frame):
        if self._polled:
            self._received = True
            signal.signal(number, signal.SIG_DFL)
            self._on_first(number)
            return
        try:
            signal.signal(number, self._before[number] or signal.SIG_DFL)
            signal.raise_signal(number)
        finally:
            signal.signal(number, signal.SIG_DFL)

    def __call__(self):
        """Returns whether a signal came; from now on one sets the flag."""
        self._polled = True
        return self._received
