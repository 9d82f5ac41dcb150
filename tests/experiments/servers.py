"""Servers that tests run: in a thread, on a free port, with an engine of which all is known."""

import contextlib
import http.client
import json
import pathlib
import re
import socket
import threading
import time

import numpy as np
import openai

from experiments import serve
from experiments.serving import app, engine_thread, protocol, server, service
from models.engine import types

MODEL = pathlib.Path(__file__).parents[2] / "experiments/data/quickstart/model"
QUESTION = "What is the capital of the country of Lake Baikal?"
MESSAGES = [{"role": "user", "content": QUESTION}]
MOST_CONNECTIONS = 12
SEND_BUFFER = 2**12  # bytes that the kernel keeps for a client that reads nothing; it doubles them


class Running:
    """A server in a thread, on a free port."""

    def __init__(self, made):
        self.server, self.failure = made, None
        listener = serve.bind("127.0.0.1", 0, api_key=None)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.port = listener.getsockname()[1]
        self.thread = threading.Thread(target=self._run, args=([listener],))
        self.thread.start()
        wait_for(lambda: made.started)
        url = f"http://127.0.0.1:{self.port}/v1"
        self.client = openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=120)

    def _run(self, listeners):
        try:
            self.server.run(listeners)
        except RuntimeError as error:
            self.failure = error

    def stop(self):
        self.server.should_exit = True
        self.thread.join(30)
        self.client.close()
        assert not self.thread.is_alive()

    def send(self, method, path, body=b"", headers=()):
        """(status, headers, bytes) of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers))
            found = connection.getresponse()
            return found.status, found.headers, found.read()

    def post(self, path, body):
        """(status, value) of a JSON body."""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, _, found = self.send("POST", path, body, {"content-type": "application/json"})
        return status, json.loads(found)

    def raw(self, data):
        """What comes back, to the end of the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(data)
            return connection.makefile("rb").read()

    def connect(self, body):
        """A socket that has asked for a chat and reads nothing yet."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        body = json.dumps(body).encode()
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        return connection

    def metric(self, name):
        page = self.send("GET", "/metrics")[2].decode()
        return float(re.search(rf"^flow_grpo_serve_{re.escape(name)} (\S+)$", page, re.M)[1])


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@contextlib.contextmanager
def running(made):
    found = Running(made)
    try:
        yield found
    finally:
        found.stop()


class KnownEngine:
    """Draws the letters of a text, one a step, for as many requests as one likes.

    failure: an exception that the next step raises.    paused: steps draw nothing.
    """

    def __init__(self, letters):
        self.letters, self.statistics = letters, types.Statistics()
        self.failure, self.paused = None, False
        self.running, self.ended, self.count = {}, [], 0

    @property
    def pending(self):
        return len(self.running) + len(self.ended)

    def submit(self, request):
        self.count += 1
        self.running[self.count] = (request, [])
        return self.count

    def partial(self, id, start):
        return self._completion(self.running[id][1][start:], "")

    def cancel(self, id):
        self.statistics.cancelled += 1
        self.ended.append((id, self._completion(self.running.pop(id)[1], "cancelled")))

    def advance(self):
        time.sleep(0.001)
        if self.failure:
            raise self.failure
        for id, (request, tokens) in list(self.running.items() if not self.paused else ()):
            tokens.append(self.letters[len(tokens) % len(self.letters)])
            if len(tokens) == request.sampling.max_tokens:
                del self.running[id]
                self.ended.append((id, self._completion(tokens, "length")))
        ended, self.ended = self.ended, []
        return ended

    def _completion(self, tokens, reason):
        logprobs = np.zeros(len(tokens), np.float32)
        tokens = np.asarray(tokens, np.int32)
        return types.Completion(tokens, logprobs, logprobs, (), reason, 0, tokens * 0, 0)


@contextlib.contextmanager
def known(words, vocabulary, most_connections=MOST_CONNECTIONS):
    """(KnownEngine, its running server): 2 slots, 3 places in the queue."""
    engine = KnownEngine([index for letter in "abc" for index in words.encode(letter)])
    thread = engine_thread.EngineThread(engine)
    parser = protocol.Parser(
        words,
        max_length=10_000,
        vocab_size=2048,
        top_logprobs=0,
        most_answers=5,
    )
    served = service.Service(thread, parser, vocabulary, None, model="known", slots=2, queue=3)
    made = server.Server(
        app.make(served, api_key=None, created=0, facts={}),
        served,
        thread,
        stop_seconds=1,
        most_connections=most_connections,
    )
    with running(made) as found:
        yield engine, found
