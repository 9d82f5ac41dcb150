"""A real HTTP server on loopback, in threads; each test says what a path answers."""

import contextlib
import http.server
import json
import threading
import types

import pytest


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        size = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(size)
        path, _, query = self.path.partition("?")
        seen = types.SimpleNamespace(
            method=self.command,
            path=path,
            query=query,
            headers=self.headers,
            json=json.loads(body) if body else None,
        )
        self.server.seen.append(seen)
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it had enough
            self.server.routes[path](self, seen)

    do_POST = do_GET

    def send(self, body=b"", *, status=200, type="text/html; charset=utf-8", **headers):
        """Answers; header names have underscores for dashes."""
        if not isinstance(body, str | bytes):
            body, type = json.dumps(body), "application/json"
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Type", type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")  # or a client asks again just as it is closed
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    """routes: path -> function of (handler, what was seen). seen: the requests in order."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server_port}"
        self.url = f"http://{self.host}"
        self.routes, self.seen = {}, []

    def answer(self, path, *bodies, **how):
        """The bodies one after another, the last one again and again."""
        waiting = list(bodies) or [b""]

        def route(handler, seen):
            handler.send(waiting.pop(0) if len(waiting) > 1 else waiting[0], **how)

        self.routes[path] = route


@pytest.fixture
def server():
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()
