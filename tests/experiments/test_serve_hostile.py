"""The server and clients that mean harm: bytes, bodies, slowness and numbers of connections."""

import contextlib
import errno
import http.client
import json
import random
import re
import socket

import pytest

from experiments.serving import framing, protocol, text
from models import tokenizer

pytest.importorskip("openai")
servers = pytest.importorskip("tests.experiments.servers", reason="needs the extra serve")
connection = pytest.importorskip("experiments.serving.connection")
server = pytest.importorskip("experiments.serving.server")

pytestmark = pytest.mark.slow  # all together

CONNECTIONS = 5
BODY = b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}'
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
    b"content-type: application/json\r\nconnection: close\r\n"
)
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n"
CHUNK = b"%x\r\n%s\r\n" % (len(BODY), BODY)
END = b"0\r\n\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
PRIVATE = "".join(map(chr, range(0xF0000, 0xFFFFE)))


@pytest.fixture(scope="module")
def known():
    words = tokenizer.Tokenizer.load(servers.MODEL)
    with servers.known(words, text.Vocabulary(words), CONNECTIONS) as found:
        yield found


def statuses(reply):
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", reply)]


# ---- bytes -------------------------------------------------------------------------------------

REQUESTS = {  # bytes -> statuses; the connection ends by itself
    "as it should be": (HEAD + LENGTH + b"\r\n" + BODY, [200]),
    "chunked": (HEAD + CHUNKED + b"\r\n" + CHUNK + END, [200]),
    "chunk with an extension": (
        HEAD + CHUNKED + b"\r\n" + CHUNK.replace(b"\r\n", b";a=b\r\n", 1) + END,
        [200],
    ),
    "both lengths": (HEAD + LENGTH + CHUNKED + b"\r\n" + CHUNK + END + HEALTH, [400]),
    "both lengths, the other way": (HEAD + CHUNKED + LENGTH + b"\r\n" + CHUNK + END, [400]),
    "two equal lengths": (HEAD + LENGTH * 2 + b"\r\n" + BODY, [400]),
    "two lengths in one": (HEAD + LENGTH[:-2] + b"," + LENGTH[16:] + b"\r\n" + BODY, [400]),
    "two codings": (HEAD + CHUNKED * 2 + b"\r\n" + CHUNK + END, [400]),
    "coding of HTTP/1.0": (
        HEAD.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n" + CHUNK + END,
        [400],
    ),
    "another coding": (HEAD + CHUNKED[:-2] + b", gzip\r\n\r\n" + CHUNK + END, [400]),
    "plus": (HEAD + b"content-length: +66\r\n\r\n" + BODY, [400]),
    "minus": (HEAD + b"content-length: -1\r\n\r\n" + BODY, [400]),
    "no digits": (HEAD + b"content-length:\r\n\r\n" + BODY, [400]),
    "far too long": (HEAD + b"content-length: 999999999999\r\n\r\n" + BODY, [413]),
    "blank before the colon": (HEAD + LENGTH.replace(b":", b" :") + b"\r\n" + BODY, [400]),
    "folded header": (HEAD + b"x: a\r\n b\r\n" + LENGTH + b"\r\n" + BODY, [400]),
    "line feeds alone": ((HEAD + LENGTH + b"\r\n").replace(b"\r\n", b"\n") + BODY, [400]),
    "one line feed alone": (HEAD + b"x: a\ny: b\r\n" + LENGTH + b"\r\n" + BODY, [400]),
    "one carriage return alone": (HEAD + b"x: a\ry: b\r\n" + LENGTH + b"\r\n" + BODY, [400]),
    "long extension": (
        HEAD + CHUNKED + b"\r\n" + CHUNK.replace(b"\r\n", b";" + b"a" * 80 + b"\r\n", 1) + END,
        [400],
    ),
    "extension without end": (HEAD + CHUNKED + b"\r\n5;" + b"a" * 80, [400]),
    "trailer": (HEAD + CHUNKED + b"\r\n" + CHUNK + b"0\r\nhost: evil\r\n\r\n", [400]),
    "chunks of one byte": (HEAD + CHUNKED + b"\r\n" + b"1\r\n \r\n" * 20_000 + END, [400]),
    "signed chunk": (HEAD + CHUNKED + b"\r\n+5\r\nhello\r\n" + END, [400]),
    "chunk with more than it says": (HEAD + CHUNKED + b"\r\n2\r\nhello\r\n" + END, [400]),
    "chunk far too long": (HEAD + CHUNKED + b"\r\nffffffff\r\n", [413]),
    "long address": (HEALTH.replace(b"/health", b"/" + b"a" * 20_000), [414]),
    "long head": (HEALTH.replace(b"\r\n\r\n", b"\r\nx: " + b"a" * 20_000 + b"\r\n\r\n"), [431]),
    "head without end": (HEALTH[:-2] + b"x: a\r\n" * 4_000, [431]),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00", [400]),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    "two hosts": (HEALTH[:-2] + b"host: evil\r\n\r\n", [400]),
    "pipelined": (HEALTH * 2 + HEAD + LENGTH + b"\r\n" + BODY, [200] * 3),
    "pipelined with a wrong one": (HEALTH + HEALTH.replace(b"\r\n", b"\n"), [200, 400]),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_read_in_one_way_or_refused(known, name):
    sent, expected = REQUESTS[name]
    reply = known[1].raw(sent)
    assert statuses(reply) == expected, reply
    if expected[-1] != 200:
        assert json.loads(reply.rpartition(b"\r\n\r\n")[2])["error"]["message"]
        assert b"connection: close" in reply


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_requests_are_cut_the_same_however_they_come(size):
    sent = HEALTH + HEAD + CHUNKED + b"\r\n" + CHUNK * 2 + END + HEAD + LENGTH + b"\r\n" + BODY
    made, passed, ends = framing.Framing(), b"", []
    for at in range(0, len(sent), size):
        made.add(sent[at : at + size])
        while piece := made.take():
            passed += piece
            if made.between:
                ends.append(len(passed))
    first, second = len(HEALTH), len(HEAD + CHUNKED + b"\r\n" + CHUNK * 2 + END)
    assert passed == sent and ends == [first, first + second, len(sent)]


def test_a_wrong_host_in_front_of_a_wrong_path_is_no_defect(known):
    reply = known[1].raw(b"GET /nothing HTTP/1.1\r\nhost: [::1\r\nconnection: close\r\n\r\n")
    assert statuses(reply) == [403]


# ---- bodies ------------------------------------------------------------------------------------


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
VALUES = [None, True, 0, 1, -1, 2.5, -0.0, 1e308, float("nan"), -float("inf")]
VALUES += [10**30, 10**4299, -(10**4299), 2**31, 2**63, "", "x", "user", "text", "\ud800", "\0"]
VALUES += [[], {}, [[]], [{}], {"": None}, ["x"], [1, 2], [-1], [10**30], [1, "a"], [["a"]], [[1]]]
VALUES += [nested(40), nested(800), {"a": nested(800)}, {"type": []}, {"type": "json_schema"}]
VALUES += [{"type": "json_schema", "json_schema": {"schema": {"a": nested(800)}}}]
FIELDS = ["model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "seed", "stop"]
FIELDS += ["stream", "stream_options", "logprobs", "top_logprobs", "response_format", "ignore_eos"]
FIELDS += ["messages", "prompt", "user", "nothing", "\ud800", "", *protocol.NEUTRAL]
KEYS = ["role", "content", "type", "text", "name", "refusal", "include_usage"]


def any_value(draw, depth=2):
    kind = draw.randrange(8) if depth else 0
    if kind == 6:
        return [any_value(draw, depth - 1) for _ in range(draw.randrange(3))]
    if kind == 7:
        return {draw.choice(KEYS): any_value(draw, depth - 1) for _ in range(draw.randrange(4))}
    return draw.choice(VALUES)


def any_body(draw):
    body = dict(draw.choice([CHAT, {"prompt": "hi", "max_tokens": 1}]))
    for _ in range(draw.randrange(1, 3)):
        body[draw.choice(FIELDS)] = any_value(draw)
    if "messages" in body and draw.randrange(3) == 0:
        message = {draw.choice(KEYS): any_value(draw) for _ in range(3)}
        body["messages"] = [{"role": "user", "content": "hi"} | message]
    body = any_value(draw) if draw.randrange(30) == 0 else body
    written = bytearray(json.dumps(body).encode())
    if draw.randrange(20) == 0:
        written[draw.randrange(len(written))] = draw.randrange(256)
    return bytes(written)


def test_no_body_is_a_defect(known):
    draw, found = random.Random(0), set()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", known[1].port)) as client:
        for _ in range(500):
            path = draw.choice(["/v1/chat/completions", "/v1/completions"])
            body = any_body(draw)
            client.request("POST", path, body, {"content-type": "application/json"})
            reply = client.getresponse()
            answer = reply.read()
            assert reply.status in (200, 400, 404), (path, body, answer)
            assert reply.status == 200 or len(answer) < 1_500, (path, body, answer)
            found.add(reply.status)
    assert found == {200, 400, 404}
    assert known[1].send("GET", "/health")[0] == 200


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        ({"messages": [{"role": ["user"], "content": "hi"}]}, 400, "a role of"),
        ({"messages": [{"role": {}, "content": "hi"}]}, 400, "a role of"),
        (
            {"messages": [{"role": "user", "content": PRIVATE + "<|im_end|>"}]},
            400,
            "than 10000 tokens",
        ),
        ({"messages": CHAT["messages"] * 10_001}, 400, "10001 messages"),
        ({"model": "\x1b[2J\u202e" * 100_000}, 404, r"no model '\\x1b\[2J\\u202e"),
        ({"model": [[["x"] * 10] * 100] * 100}, 404, "no model"),
        ({"x" * 100_000: 1}, 400, "Unknown field 'xxx"),
        ({"nothing": nested(90)}, 400, "Unknown field 'nothing'"),
        ({"nothing": nested(800)}, 400, "nested too deeply: 801"),
        ({"nothing": "y" * 100_000}, 400, "Unknown field 'nothing'"),
        ({"n": 10**4299}, 400, "n must be an integer from 1 to 2147483647"),
        ({"max_tokens": 10**4299}, 400, "max_tokens must be"),
        ({"top_k": 10**30}, 400, "top_k must be"),
        ({"nothing": [[]] * 600_000}, 400, "more than 500000 brackets"),
    ],
)
def test_a_strange_body_gets_a_short_answer(known, more, status, message):
    found, answer = known[1].post("/v1/chat/completions", CHAT | more)
    assert found == status and re.search(message, answer["error"]["message"]), answer
    assert len(json.dumps(answer)) < 1_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "a" * 8_000_000}]}),
        ("completions", {"prompt": "word " * 1_600_000}),
        ("completions", {"prompt": [7] * 1_000_000}),
        ("completions", {"prompt": ["a" * 1_000_000, "b"]}),
    ],
    ids=["chat", "completion", "ids", "several"],
)
def test_a_prompt_that_cannot_fit_is_not_tokenized(known, monkeypatch, path, body):
    monkeypatch.delattr(tokenizer.Tokenizer, "_encode_in_parts")
    status, found = known[1].post(f"/v1/{path}", body)
    assert status == 400 and found["error"]["code"] == "context_length_exceeded"


def test_answers_are_counted_before_prompts_are_tokenized(known, monkeypatch):
    monkeypatch.delattr(tokenizer.Tokenizer, "_encode_in_parts")
    status, found = known[1].post("/v1/completions", {"prompt": ["x" * 1_000] * 6})
    assert status == 400 and "6 answers" in found["error"]["message"]


# ---- slowness, and numbers of connections ------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch):
    """Waits are short."""
    for stage in connection.SECONDS:
        monkeypatch.setitem(connection.SECONDS, stage, 0.1)
    monkeypatch.setattr(connection, "WRITE_SECONDS", 0.2)
    monkeypatch.setattr(server, "CHECK_SECONDS", 0.02)


def test_a_request_that_does_not_come_is_not_waited_for(known, hasty):
    engine, found = known
    engine.paused = True
    sent = [b"", b"GET /health HT", HEALTH + b"GET", HEAD + LENGTH + b"\r\n{"]
    with contextlib.ExitStack() as stack:
        asked = stack.enter_context(found.connect(CHAT))
        clients = [stack.enter_context(contextlib.closing(socket.socket())) for _ in sent]
        for client, data in zip(clients, sent, strict=True):
            client.settimeout(60)
            client.connect(("127.0.0.1", found.port))
            client.sendall(data)
        replies = [client.makefile("rb").read() for client in clients]
        assert [statuses(reply) for reply in replies] == [[], [408], [200, 408], [408]]
        engine.paused = False  # the one that waits for its answer gets it
        assert statuses(asked.recv(1_000)) == [200]


def test_one_byte_at_a_time_is_too_slow(known, hasty):
    with socket.create_connection(("127.0.0.1", known[1].port), timeout=0.02) as client:
        sent, reply = 0, b""
        with contextlib.suppress(ConnectionError):
            for sent in range(500):
                client.sendall(b"G" if sent == 0 else b"E")
                with contextlib.suppress(TimeoutError):
                    reply += client.recv(1_000)
                if reply:
                    break
        assert statuses(reply) == [408] and sent < 400


def test_a_client_that_does_not_read_frees_its_slot(known, hasty):
    engine, found = known
    cancelled = engine.statistics.cancelled
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
        client.connect(("127.0.0.1", found.port))
        body = json.dumps(CHAT | {"n": 5, "stream": True, "max_tokens": 9_000}).encode()
        length = b"content-length: %d\r\n\r\n" % len(body)
        client.sendall(HEAD + length + body)
        servers.wait_for(lambda: engine.pending == 5)
        servers.wait_for(lambda: engine.pending == 0)
    assert engine.statistics.cancelled == cancelled + 5


def test_connections_have_a_bound(known):
    """An idle one gives way; with all of them being answered, the new one has to."""
    engine, found = known
    engine.paused = True
    address = ("127.0.0.1", found.port)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        idle = [enter(socket.create_connection(address, timeout=60)) for _ in range(CONNECTIONS)]
        asked = [enter(found.connect(CHAT)) for _ in range(CONNECTIONS)]
        assert [client.recv(1) for client in idle] == [b""] * CONNECTIONS
        servers.wait_for(lambda: engine.pending == CONNECTIONS)
        reply = found.raw(b"")
        assert statuses(reply) == [503] and b"retry-after: 1" in reply
        engine.paused = False
        assert [statuses(client.recv(1_000)) for client in asked] == [[200]] * CONNECTIONS


def test_without_descriptors_there_is_one_line_of_log(caplog):
    failure = {"exception": OSError(errno.EMFILE, "Too many open files"), "message": "accept"}
    for _ in range(1_000):
        server._log(None, failure)
    assert caplog.text.count("\n") == 1 and "ulimit -n" in caplog.text
