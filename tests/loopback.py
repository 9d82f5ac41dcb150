"""A real HTTP server on a loopback port that behaves as badly as it is told to."""

import contextlib
import json
import pathlib
import socket
import ssl
import struct
import threading

SECONDS = 10.0  # no test waits longer
# Made for these tests: for the name localhost, from 2020 to 2120, signed by itself, with its key.
# Nobody trusts it but who is told to.
CERTIFICATE = pathlib.Path(__file__).parent / "data" / "localhost.pem"


def tls():
    """What makes a server's sockets encrypted, by CERTIFICATE."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


class Loopback:
    """Answers each request by the next behaviour; the last one stays.

    A behaviour is a function (connection, request) that writes what it likes and returns whether
    the connection stays open.

    A GET is none of these requests: it lists `models`, dicts, or has status 404 without.

    requests: (headers in lower case, parsed body) of each, as they came.
    encrypted: whether it speaks https, by CERTIFICATE.
    """

    def __init__(self, *script, encrypted=False, models=None):
        self.models = models
        self._tls = tls() if encrypted else None
        self.script, self.requests = list(script), []
        self.connections = self.most_at_once = self._at_once = 0
        self._lock, self.ending = threading.Lock(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        if encrypted:
            self.url = f"https://localhost:{self.port}/v1"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ending.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def bodies(self):
        return [body for _, body in self.requests]

    def _accept(self):
        while not self.ending.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection):
        with contextlib.suppress(OSError):
            if self._tls:
                connection.settimeout(SECONDS)
                connection = self._tls.wrap_socket(connection, server_side=True)
            self._talk(connection)

    def _talk(self, connection):
        connection.settimeout(0.05)
        with connection:
            while (request := self._read(connection)) is not None:
                if request[1] is None:
                    listed = answers(200, {"data": self.models}) if self.models else fails(404)
                    listed(connection, request, self)
                    continue
                with self._lock:
                    self.requests.append(request)
                    self._at_once += 1
                    self.most_at_once = max(self.most_at_once, self._at_once)
                    behave = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                try:
                    stays = behave(connection, request, self)
                finally:
                    with self._lock:
                        self._at_once -= 1
                if not stays:
                    return

    def _read(self, connection):
        data = b""
        while b"\r\n\r\n" not in data or len(data) < self._length(data):
            if self.ending.is_set():
                return None
            try:
                part = connection.recv(65536)
            except TimeoutError:
                continue
            if not part:
                return None
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        return self._headers(head), json.loads(body) if body else None

    def _headers(self, head):
        pairs = (line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        return {name.lower(): value for name, value in pairs}

    def _length(self, data):
        head, _, _ = data.partition(b"\r\n\r\n")
        return len(head) + 4 + int(self._headers(head).get("content-length", 0))


def http(status, body, headers=(), *, length=None):
    lines = [f"HTTP/1.1 {status} Because", f"Content-Length: {len(body)}", *headers]
    if length is not None:
        lines[1] = f"Content-Length: {length}"
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def answers(status, body, headers=(), *, length=None, stays=True):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def behave(connection, request, server):
        connection.sendall(http(status, data, headers, length=length))
        return stays

    return behave


def says(text, reason="stop"):
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return answers(200, {"choices": [choice]})


def replies(respond):
    """Says what a function makes of the request's body."""
    return lambda connection, request, server: says(respond(request[1]))(
        connection, request, server
    )


def fails(status, message="no", *, code=None, retry_after=None):
    headers = () if retry_after is None else (f"Retry-After: {retry_after}",)
    return answers(status, {"error": {"message": message, "code": code}}, headers)


def hangs(connection, request, server):
    server.ending.wait(SECONDS)


def resets(connection, request, server):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def closes(connection, request, server):
    return False


def drips(data, seconds=0.02):
    def behave(connection, request, server):
        for byte in data:
            connection.sendall(bytes([byte]))
            if server.ending.wait(seconds):
                break

    return behave


def floods(start, part=b"x" * 65536):
    def behave(connection, request, server):
        connection.settimeout(1.0)
        connection.sendall(start)
        while not server.ending.is_set():
            connection.sendall(part)

    return behave
