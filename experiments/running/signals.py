"""Signals that stop a command between two steps of its work. Nothing here takes long to import."""

import contextlib
import os
import signal
import sys

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # of a training
STOPPED = 75  # its exit code then; EX_TEMPFAIL of sysexits.h: the same command goes on


def leave_on(*numbers):
    """Lets signals end a process that has nothing to save so far, with exit code STOPPED.

    At once: an exception in the midst of an import may be caught there. An ignored SIGHUP stays
    ignored, as nohup asks.
    """

    def end(number, frame):
        with contextlib.suppress(SystemExit):
            leave(number)
        os._exit(STOPPED)

    for number in _taken(numbers):
        signal.signal(number, end)


def leave(number):
    """Exits with STOPPED for a signal that came while there was nothing to save."""
    detach(number)
    with contextlib.suppress(OSError):
        sys.stderr.write(f"stopped by signal {number}; there was nothing to save\n")
        sys.stderr.flush()
    raise SystemExit(STOPPED)


def detach(number):
    """After the SIGHUP of a terminal that is gone, what is written there is lost, no error."""
    if number != signal.SIGHUP:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            os.dup2(nowhere, stream)
    os.close(nowhere)


def _taken(numbers):
    ignored = lambda number: signal.getsignal(number) is signal.SIG_IGN
    return [number for number in numbers if number != signal.SIGHUP or not ignored(number)]


class StopSignal:
    """Signals as a flag to poll: the first sets it, a second one ends the process at once.

    Args:
      numbers: signals to take; an ignored SIGHUP stays ignored, as nohup asks.
      on_first: called with the number of the first one, in the signal handler.
      early: called first if the flag was never polled, since nothing looks at it yet; it may end
        the process. None: the signal's own effect, SIGINT's by KeyboardInterrupt.
    """

    def __init__(self, *numbers, on_first=lambda number: None, early=None):
        self._received = self._polled = False
        self._on_first, self._early = on_first, early or _usual
        for number in _taken(numbers):
            signal.signal(number, self._receive)

    def _receive(self, number, frame):
        signal.signal(number, signal.SIG_DFL)
        detach(number)
        polled, self._received = self._polled, True
        if not polled:
            self._early(number)
        self._on_first(number)

    def __call__(self):
        """Returns whether a signal came; from now on one sets the flag."""
        self._polled = True
        return self._received


def _usual(number):
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.raise_signal(number)
