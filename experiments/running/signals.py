"""Signals that stop a command between two steps of its work."""

import signal


class StopSignal:
    """Signals as a flag to poll: the first sets it, a second one ends the process at once.

    A signal that comes before the flag was ever polled ends the process at once too, SIGINT by
    KeyboardInterrupt: nothing would look at the flag yet.

    Args:
      numbers: signals to take.
      on_first: called with the number of the first one, in the signal handler.
    """

    def __init__(self, *numbers, on_first=lambda number: None):
        self._received = self._polled = False
        self._on_first = on_first
        for number in numbers:
            signal.signal(number, self._receive)

    def _receive(self, number, frame):
        signal.signal(number, signal.SIG_DFL)
        if self._polled:
            self._received = True
            self._on_first(number)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            signal.raise_signal(number)

    def __call__(self):
        """Returns whether a signal came; from now on one sets the flag."""
        self._polled = True
        return self._received
