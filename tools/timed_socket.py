"""A socket for http.client with an end in sight: of time, of bytes, and of work.

Every wait ends at a deadline, however slowly the bytes drip in. Single bytes, chunks of one byte,
endless trailers and interim answers (100 Continue) would keep this process busy until then: each is
a read or a line, and there may be FREE of either, and one more for PER bytes.
"""

import io
import math
import socket
import time

FREE, PER = 10_000, 256


class TooLong(Exception):
    """The reply has more bytes, reads or lines than it may."""


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
        self._reads = self._lines = 0

    def sendall(self, data):
        self._arm()
        self._inner.sendall(data)

    def receive_into(self, buffer):
        self._arm()
        count = self._inner.recv_into(buffer)
        self.received += count
        if self.received > self._max_bytes:
            raise TooLong(f"The reply is longer than {self._max_bytes} bytes.")
        self._reads += 1
        self._check(self._reads)
        return count

    def count_line(self):
        self._lines += 1
        self._check(self._lines)

    def _check(self, count):
        if count > FREE + self.received // PER:
            raise TooLong(f"The reply comes in too many pieces: {count} in {self.received} bytes.")

    def makefile(self, mode):
        return _Lines(self)

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


class _Lines(io.BufferedReader):
    """Counts the lines of status, headers, sizes of chunks and trailers: all that is read so."""

    def __init__(self, link):
        super().__init__(_Reader(link))
        self._link = link

    def readline(self, size=-1):
        self._link.count_line()
        return super().readline(size)


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
