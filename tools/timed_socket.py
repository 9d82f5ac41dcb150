"""A socket for http.client with an end in sight: of time and of bytes.

Every wait ends at a deadline, however slowly the bytes drip in.
"""

import io
import math
import socket
import time


class TooLong(Exception):
    """The reply has more bytes than it may."""


class TimedSocket:
    """A connected socket as http.client uses it.

    wait_seconds: longest single wait.
    received: bytes since `start`.
    """

    def __init__(self, inner, *, wait_seconds=math.inf):
        self._inner, self._wait_seconds = inner, wait_seconds
        self.start(math.inf)

    def start(self, deadline, *, max_bytes=math.inf):
        """Begins a request; deadline: on the clock of `time.monotonic`."""
        self._deadline, self._max_bytes, self.received = deadline, max_bytes, 0

    def sendall(self, data):
        self._arm()
        self._inner.sendall(data)

    def receive_into(self, buffer):
        self._arm()
        count = self._inner.recv_into(buffer)
        self.received += count
        if self.received > self._max_bytes:
            raise TooLong(f"The reply is longer than {self._max_bytes} bytes.")
        return count

    def makefile(self, mode):
        return io.BufferedReader(_Reader(self))

    def close(self):
        """Does nothing: http.client calls it before the body is read; `end` closes."""

    def abort(self):
        """Wakes a thread that waits on the socket."""
        try:
            self._inner.shutdown(socket.SHUT_RDWR)
        except OSError:  # not connected any more
            return

    def end(self):
        self._inner.close()

    def _arm(self):
        seconds = min(left(self._deadline), self._wait_seconds)
        self._inner.settimeout(seconds if seconds < math.inf else None)


class _Reader(io.RawIOBase):
    def __init__(self, link):
        self._link = link

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._link.receive_into(buffer)


def left(deadline):
    """Returns the seconds until a `time.monotonic`; TimeoutError if it is over."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the deadline is over")
    return seconds
