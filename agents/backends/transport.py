"""HTTP/1.1 over kept-alive connections, with an end in sight: of time and of bytes.

Every wait on the socket ends at the call's deadline, however slowly the bytes drip in, and a reply
is read up to a limit. Redirects are not followed: the key goes to the host of the config only.
Proxy variables of the environment are not read.
"""

import http.client
import ssl
import threading
import time
import urllib.parse

from agents.backends.errors import BadOutput, Fatal, Retryable
from tools.timed_socket import TimedSocket, TooLong

CHUNK = 65_536
LOST = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


class Transport:
    """Connections to one server, for use in many threads.

    Args:
      url: http or https, up to and including the path that calls share, such as `/v1`.
      connect_seconds, read_seconds: longest wait for a connection, and for the next bytes.
      max_bytes: of a reply, its headers included.
    """

    def __init__(self, url, *, connect_seconds, read_seconds, max_bytes):
        try:
            parts = urllib.parse.urlsplit(url)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # of a port or an IPv6 address
            usable = False
        if not usable:
            raise ValueError(f"url={url!r} is no http(s) address; e.g. http://127.0.0.1:8000/v1.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                f"The url of {parts.hostname} holds a user name, a query or a fragment. Name the "
                "environment variable of the key in api_key_variable instead."
            )
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._path = parts.path.rstrip("/")
        self._context = ssl.create_default_context() if self._secure else None
        self._connect_seconds, self._read_seconds = connect_seconds, read_seconds
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._idle, self._busy = [], set()
        self._closed = False

    def post(self, path, body, headers, *, deadline):
        """Sends bytes; returns (status, headers, bytes of the reply); see `request`."""
        return self.request("POST", path, body, headers, deadline=deadline)

    def request(self, method, path, body, headers, *, deadline):
        """Sends bytes or None; returns (status, headers, bytes of the reply).

        deadline: on the clock of `time.monotonic`.

        Raises:
          Retryable: no whole reply came. Fatal: the server's certificate is not valid.
          BadOutput: the reply is longer than `max_bytes`.
        """
        connection, kept = self._take(deadline)
        try:
            try:
                return self._exchange(connection, method, path, body, headers, deadline)
            except LOST:
                if not kept or connection.link.received:
                    raise
            # The server had closed the kept connection before it saw the request.
            connection, _ = self._take(deadline, fresh=True)
            return self._exchange(connection, method, path, body, headers, deadline)
        except TooLong as error:
            raise BadOutput(str(error)) from error
        except TimeoutError as error:
            late = time.monotonic() >= deadline
            waited = "before the deadline" if late else f"for {self._read_seconds:g} s"
            raise Retryable(f"{self._host} did not answer {waited}.") from error
        except (OSError, http.client.HTTPException) as error:
            raise Retryable(f"{self._host}: {_described(error)}.") from error

    def close(self):
        """Ends what is in progress; later calls fail."""
        with self._lock:
            self._closed = True
            for connection in self._busy:
                connection.link.abort()
            for connection in self._idle:
                connection.link.end()
            self._idle.clear()

    def _take(self, deadline, fresh=False):
        """Returns (connection, whether it was used before)."""
        with self._lock:
            if self._idle and not fresh:
                connection = self._idle.pop()
                self._busy.add(connection)
                return connection, True
        left = min(self._connect_seconds, deadline - time.monotonic())
        if left <= 0:
            raise Retryable(f"No time was left to connect to {self._host}.")
        if self._secure:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=left, context=self._context
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=left)
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            raise Fatal(
                f"The certificate of {self._host} is refused: {error.verify_message}. One of your "
                "own can be trusted by SSL_CERT_FILE=FILE in the environment."
            ) from error
        except OSError as error:
            raise Retryable(f"{self._host} cannot be reached: {_described(error)}.") from error
        # http.client drops its reference when it thinks it is done; `link` stays.
        connection.link = TimedSocket(connection.sock, wait_seconds=self._read_seconds)
        connection.sock = connection.link
        with self._lock:
            self._busy.add(connection)
            if self._closed:
                connection.link.abort()
        return connection, False

    def _exchange(self, connection, method, path, body, headers, deadline):
        link, whole = connection.link, False
        link.start(deadline, max_bytes=self._max_bytes)
        try:
            connection.request(method, self._path + path, body, headers)
            response = connection.getresponse()
            parts = []
            while part := response.read1(CHUNK):
                parts.append(part)
            if response.length:
                raise http.client.IncompleteRead(b"".join(parts), response.length)
            whole = not response.will_close
            response.close()
            return response.status, response.headers, b"".join(parts)
        finally:
            with self._lock:
                self._busy.discard(connection)
                if whole and not self._closed:
                    self._idle.append(connection)
                else:
                    link.end()


def _described(error):
    """Returns what went wrong; what the server wrote, which may hold the key, is left out."""
    said = "" if isinstance(error, http.client.HTTPException) else str(error)
    return said or type(error).__name__
