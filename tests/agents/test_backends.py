"""Remote models against a real server on a loopback port, which misbehaves in every known way."""

import concurrent.futures
import json
import socket
import time

import loopback
import pytest
from loopback import Loopback, answers, fails, says

from agents import parsing
from agents.backends import cache, modules, server, structured
from agents.backends.errors import BackendError, BadOutput, Down, Fatal, Retryable
from tests.agents import servers

ASK = ({"role": "user", "content": "What?"},)
FAST = dict(backoff_seconds=0.01, backoff_limit=0.02, retries=2)
VERDICT = structured.record(
    why={"type": "string", "maxLength": 20}, right={"type": "boolean"}, score={"type": "integer"}
)
GOOD = '{"why": "so", "right": true, "score": 3}'


@pytest.fixture
def model():
    """Makes a ChatModel; closes all of them afterwards."""
    made = []

    def make(url, *, key="", cache=None, **fields):
        named = {name: fields.pop(name) for name in list(fields) if name in MODEL_FIELDS}
        draw = lambda: 0.0
        endpoint = servers.endpoint(url, api_key_variable=key, draw=draw, **FAST | fields)
        made.append(endpoint)
        return servers.chat(endpoint, cache=cache, **named)

    yield make
    for endpoint in made:
        endpoint.close()


MODEL_FIELDS = ("temperature", "seconds", "extra", "token_field")


def ask(model, **how):
    return model.submit(ASK, max_tokens=7, **how).result(loopback.SECONDS)


# ------------------------------------------------------------------------------------- requests


def test_a_call_sends_what_the_api_expects(model, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sesame")
    with Loopback(says("Yes.")) as there:
        asked = model(there.url, key="SOME_KEY", temperature=0.5, extra={"seed": 1})
        assert ask(asked) == server.Answer("Yes.", finished=True)
    ((headers, body),) = there.requests
    assert headers["authorization"] == "Bearer sesame"
    assert body == {
        "model": "m",
        "messages": list(ASK),
        "temperature": 0.5,
        "max_tokens": 7,
        "seed": 1,
    }


def test_any_text_can_be_sent(model):
    with Loopback(says("Yes.")) as there:
        odd = ({"role": "user", "content": "é \ud800 \x00 \u2028"},)
        model(there.url).submit(odd, max_tokens=1).result(loopback.SECONDS)
    assert there.bodies()[0]["messages"][0]["content"] == "é ? \x00 \u2028"


def test_any_answer_can_be_encoded(model, tmp_path):
    """Half a surrogate pair comes in a server's JSON, in the JSON that its model wrote, or in what
    an older version kept."""
    dirty, clean = "a\ud83d \0b", "a\ufffd b"
    written = json.dumps({"why": dirty, "right": True, "score": 1})
    with Loopback(says(dirty), says(written), fails(400, dirty), says(dirty)) as there:
        assert ask(model(there.url)).text == clean
        assert ask(model(there.url), schema=VERDICT).value["why"] == clean
        with pytest.raises(Fatal, match=clean):
            ask(model(there.url))
        kept = cache.Cache(tmp_path / "cache.sqlite")
        kept.get = lambda key: {"text": dirty}
        assert ask(model(there.url, cache=kept)).text == clean
        kept.close()


def test_connections_are_kept_and_a_lost_one_is_replaced_without_an_attempt(model):
    with Loopback(says("a"), says("b"), loopback.closes, says("c")) as there:
        asked = model(there.url, retries=0)
        assert [ask(asked).text for _ in range(3)] == ["a", "b", "c"]
        assert there.connections == 2 and asked.endpoint.counts()["retries"] == 0


def test_an_answer_cut_off_says_so(model):
    with Loopback(says("half", reason="length")) as there:
        assert ask(model(there.url)) == server.Answer("half", finished=False)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://x/v1", "is no http"),
        ("127.0.0.1:8000", "is no http"),
        ("http://user:secret@x/v1", "api_key_variable"),
        ("http://x/v1?key=secret", "api_key_variable"),
    ],
)
def test_addresses_that_cannot_be_used(url, message):
    with pytest.raises(ValueError, match=message) as refused:
        servers.endpoint(url)
    assert "secret" not in str(refused.value)


def test_a_key_comes_from_the_environment_and_stays_out_of_messages(model, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(ValueError, match="NO_KEY is not set"):
        servers.endpoint("http://x/v1", api_key_variable="NO_KEY")
    monkeypatch.setenv("SOME_KEY", "sesame")
    with Loopback(fails(401, "sesame is wrong")) as there, pytest.raises(Fatal) as refused:
        ask(model(there.url, key="SOME_KEY"))
    assert "401: *** is wrong" in str(refused.value)


KEY = "sk-proj/AbC+12"


@pytest.mark.parametrize(
    "behave",
    [
        fails(401, "x" * 295 + KEY),  # across the end of what is shown
        answers(401, b"x" * 295 + KEY.encode()),
        answers(401, json.dumps({"error": {"message": KEY.replace("/", "\\/")}}).encode()),
        answers(200, b"x" * 50 + KEY.encode()),
        answers(200, json.dumps([KEY] * 9).encode()),
        answers(200, {"said": "y" * 80 + KEY}),
        lambda connection, request, there: connection.sendall(f"{KEY}\r\n\r\n".encode()),
    ],
)
def test_no_failure_shows_the_key_or_half_of_it(model, monkeypatch, behave):
    monkeypatch.setenv("SOME_KEY", KEY)
    with Loopback(behave) as there, pytest.raises(BackendError) as failed:
        ask(model(there.url, key="SOME_KEY"))
    assert "sk-p" not in str(failed.value)


def test_an_answer_does_not_show_the_key(model, monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    with Loopback(says(f"It is {KEY}.")) as there:
        assert ask(model(there.url, key="SOME_KEY")).text == "It is ***."
    monkeypatch.setenv("SOME_KEY", "EMPTY")  # a placeholder is a word like any other
    with Loopback(says("EMPTY")) as there:
        assert ask(model(there.url, key="SOME_KEY")).text == "EMPTY"


# ------------------------------------------------------------------------------------- failures

PASSING = {
    "500": fails(500),
    "503": fails(503, retry_after="0.05"),
    "429": fails(429),
    "408": fails(408),
    "reset": loopback.resets,
    "closed": loopback.closes,
    "truncated": answers(200, b'{"choices"', length=500, stays=False),
    "no_http": lambda connection, request, there: connection.sendall(b"SSH-2.0-x\r\n"),
}


@pytest.mark.parametrize("behaviour", PASSING.values(), ids=PASSING)
def test_a_failure_that_passes_is_made_good(model, behaviour):
    with Loopback(behaviour, behaviour, says("Yes.")) as there:
        asked = model(there.url)
        assert ask(asked).text == "Yes."
        assert asked.endpoint.counts()["retries"] == 2


@pytest.mark.parametrize("behaviour", PASSING.values(), ids=PASSING)
def test_a_failure_that_stays_is_raised(model, behaviour):
    with Loopback(behaviour) as there:
        asked = model(there.url)
        with pytest.raises(Retryable):
            ask(asked)
        assert len(there.requests) == 3 and asked.endpoint.counts()["failures"] == 1


def test_a_refused_connection_is_retryable(model):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    asked = model(f"http://127.0.0.1:{port}/v1")
    with pytest.raises(Retryable, match="cannot be reached"):
        ask(asked)
    assert asked.endpoint.counts()["retries"] == 2


@pytest.mark.parametrize(
    "behaviour",
    [
        fails(400),
        fails(401),
        fails(404),
        fails(422),
        fails(429, code="insufficient_quota"),
        answers(302, b"", ("Location: http://elsewhere.invalid/",)),
    ],
)
def test_what_will_never_succeed_is_asked_once(model, behaviour):
    with Loopback(behaviour) as there:
        with pytest.raises(Fatal):
            ask(model(there.url))
        assert len(there.requests) == 1


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
SLOW = {
    "hangs": loopback.hangs,
    "drips_headers": loopback.drips(HEAD),
    "drips_body": loopback.drips(HEAD + b"x" * 1000),
    "drips_chunks": loopback.drips(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" * 9),
    "continues": loopback.drips(b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0.001),
}


@pytest.mark.parametrize("behaviour", SLOW.values(), ids=SLOW)
def test_the_deadline_holds_however_slowly_the_bytes_come(model, behaviour):
    with Loopback(behaviour) as there:
        start = time.monotonic()
        with pytest.raises(Retryable, match="before the deadline"):
            ask(model(there.url, seconds=0.3))
        assert 0.25 < time.monotonic() - start < 2.0


def test_a_server_that_hangs_once_is_asked_again(model):
    with Loopback(loopback.hangs, says("Yes.")) as there:
        assert ask(model(there.url, read_seconds=0.1)).text == "Yes."


FLOODS = {
    "body": loopback.floods(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"),
    "endless": loopback.floods(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"),
    "chunks": loopback.floods(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1000\r\n" + b"x" * 4096 + b"\r\n",
    ),
    "continues": loopback.floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
}


@pytest.mark.parametrize("behaviour", FLOODS.values(), ids=FLOODS)
def test_a_flood_is_cut_off(model, behaviour):
    with Loopback(behaviour) as there:
        with pytest.raises(BadOutput, match="longer than 100000 bytes"):
            ask(model(there.url, max_bytes=100_000))
        assert len(there.requests) == 2


def test_endless_headers_are_cut_off(model):
    line = b"X-Header: " + b"x" * 1000 + b"\r\n"
    endless = loopback.floods(b"HTTP/1.1 200 OK\r\n", line)
    with Loopback(endless) as there, pytest.raises(Retryable):
        ask(model(there.url, retries=0))


LIES = {
    "html": answers(200, b"<html>Welcome</html>"),
    "nothing": answers(200, b""),
    "list": answers(200, []),
    "error": answers(200, {"error": {"message": "oops"}}),
    "no_choice": answers(200, {"choices": []}),
    "null": answers(200, {"choices": [{"message": {"content": None}}]}),
    "number": answers(200, {"choices": [{"message": {"content": 3}}]}),
    "strings": answers(200, {"choices": "none"}),
    "deep": answers(200, b"[" * 100_000),
    "binary": answers(200, b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("behaviour", LIES.values(), ids=LIES)
def test_what_is_no_completion_is_bad_output(model, behaviour):
    with Loopback(behaviour) as there:
        asked = model(there.url)
        with pytest.raises(BadOutput):
            ask(asked)
        assert len(there.requests) == 2 and asked.endpoint.counts()["bad_output"] == 1
    with Loopback(behaviour, says("Yes.")) as there:
        assert ask(model(there.url)).text == "Yes."


# ----------------------------------------------------------------------------------- encryption


def test_a_certificate_that_nobody_signed_is_fatal(model, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with Loopback(says("Yes."), encrypted=True) as there:
        with pytest.raises(Fatal, match="localhost is refused: self-signed.*SSL_CERT_FILE"):
            ask(model(there.url))
        assert there.connections == 1 and not there.requests


def test_a_certificate_of_ones_own_is_trusted_for_its_name_alone(model, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(loopback.CERTIFICATE))
    with Loopback(says("Yes."), encrypted=True) as there:
        asked = model(there.url)
        assert [ask(asked).text for _ in range(2)] == ["Yes."] * 2
        assert there.connections == 1  # kept alive
        with pytest.raises(Fatal, match="not valid for '127.0.0.1'"):
            ask(model(there.url.replace("localhost", "127.0.0.1")))
        assert len(there.requests) == 2


def test_encryption_with_a_server_that_has_none_ends(model):
    with Loopback(says("Yes.")) as there, pytest.raises(Retryable, match="cannot be reached"):
        ask(model(there.url.replace("http", "https"), connect_seconds=0.2, retries=0))


# ---------------------------------------------------------------------------------------- waits


def test_retry_after_is_honoured_for_all_calls_of_the_server(model):
    with Loopback(fails(429, retry_after="0.3"), says("Yes.")) as there:
        asked = model(there.url)
        start = time.monotonic()
        first = asked.submit(ASK, max_tokens=1)
        while not there.requests:
            time.sleep(0.001)
        time.sleep(0.05)
        second = asked.submit(ASK, max_tokens=1)
        assert second.result(loopback.SECONDS) and first.result(loopback.SECONDS)
        assert time.monotonic() - start >= 0.3 and len(there.requests) == 3


def test_no_attempt_is_waited_for_that_would_come_after_the_deadline(model):
    with Loopback(fails(503, retry_after="60")) as there:
        start = time.monotonic()
        with pytest.raises(Retryable, match="No time is left"):
            ask(model(there.url, seconds=5.0))
        assert time.monotonic() - start < 2.0 and len(there.requests) == 1


def test_waits_double_up_to_the_limit_and_are_jittered(monkeypatch):
    waits, draws = [], iter([0.0, 0.5, 0.0, 1.0])
    with Loopback(fails(500)) as there:
        waiting = dict(backoff_seconds=1.0, backoff_limit=3.0, retries=4)
        endpoint = servers.endpoint(there.url, draw=lambda: next(draws), **waiting)
        monkeypatch.setattr(endpoint, "_sleep", lambda seconds: seconds and waits.append(seconds))
        with pytest.raises(Retryable):
            servers.chat(endpoint).ask(ASK, max_tokens=1)
        endpoint.close()
    assert waits == [1.0, 2.0 * 0.75, 3.0, 3.0 * 0.5]


def test_no_more_calls_than_allowed_are_in_flight(model):
    def slow(connection, request, there):
        time.sleep(0.03)
        return says("Yes.")(connection, request, there)

    with Loopback(slow) as there:
        asked = model(there.url, concurrency=3)
        calls = [asked.submit(ASK, max_tokens=1) for _ in range(12)]
        assert {call.result(loopback.SECONDS).text for call in calls} == {"Yes."}
        assert there.most_at_once == 3


def test_time_in_the_queue_counts_for_the_deadline(model):
    with Loopback(loopback.hangs) as there:
        asked = model(there.url, concurrency=1, retries=0)
        latest = time.monotonic() + 0.2
        calls = [asked.submit(ASK, max_tokens=1, deadline=latest) for _ in range(5)]
        concurrent.futures.wait(calls, 2.0)
        assert all(isinstance(call.exception(0), Retryable) for call in calls)
        assert len(there.requests) == 1


def test_a_server_that_keeps_failing_is_left_alone_and_recovers(model):
    with Loopback(*[fails(500)] * 3, says("Yes.")) as there:
        asked = model(there.url, failures_to_open=3, open_seconds=0.2)
        with pytest.raises(Retryable):
            ask(asked)
        assert asked.endpoint.state == "down"
        with pytest.raises(Down):
            ask(asked)
        assert len(there.requests) == 3
        time.sleep(0.25)
        assert ask(asked).text == "Yes." and asked.endpoint.state == "up"


def test_closing_ends_calls_in_progress(model):
    with Loopback(loopback.hangs) as there:
        asked = model(there.url)
        call = asked.submit(ASK, max_tokens=1)
        while not there.requests:
            time.sleep(0.001)
        start = time.monotonic()
        asked.endpoint.close()
        assert isinstance(call.exception(loopback.SECONDS), Retryable)
        assert time.monotonic() - start < 2.0


# ---------------------------------------------------------------------------------------- cache


def test_greedy_answers_are_paid_for_once_and_survive_the_process(model, tmp_path):
    path = tmp_path / "folder" / "cache.sqlite"
    with Loopback(says("Yes."), fails(500)) as there:
        for _ in range(2):
            kept = cache.Cache(path)
            assert ask(model(there.url, cache=kept)) == server.Answer("Yes.")
            kept.close()
        assert len(there.requests) == 1


def test_everything_that_matters_is_part_of_the_key(model):
    kept = cache.Cache(":memory:")
    other = ({"role": "user", "content": "What else?"},)
    with Loopback(says(GOOD)) as there, Loopback(says(GOOD)) as elsewhere:
        asked = model(there.url, cache=kept)
        calls = [
            lambda: asked.ask(ASK, max_tokens=7),
            lambda: asked.ask(other, max_tokens=7),
            lambda: asked.ask(ASK, max_tokens=8),
            lambda: asked.ask(ASK, max_tokens=7, sample=1),
            lambda: asked.ask(ASK, max_tokens=7, schema=VERDICT),
            lambda: model(there.url, cache=kept, extra={"seed": 1}).ask(ASK, max_tokens=7),
            lambda: servers.chat(asked.endpoint, "n", cache=kept).ask(ASK, max_tokens=7),
        ]
        for _ in range(2):
            for call in calls:
                call()
            assert len(there.requests) == len(calls)
        model(elsewhere.url, cache=kept).ask(ASK, max_tokens=7)
        assert len(elsewhere.requests) == 1
    kept.close()


def test_sampled_answers_and_failures_are_not_cached(model):
    kept = cache.Cache(":memory:")
    with Loopback(says("a"), says("b"), fails(400), says("c")) as there:
        warm = model(there.url, cache=kept, temperature=1.0)
        assert [ask(warm).text, ask(warm).text] == ["a", "b"]
        cold = model(there.url, cache=kept)
        with pytest.raises(Fatal):
            ask(cold)
        assert ask(cold).text == "c"
    kept.close()


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    path = tmp_path / "cache"
    path.write_text("not a database" * 100)
    with pytest.raises(ValueError, match="cannot be used as a cache"):
        cache.Cache(path)


def test_a_cache_that_fails_is_no_answer(model):
    kept = cache.Cache(":memory:")
    kept.close()
    with Loopback(says("Yes.")) as there, pytest.raises(Fatal, match="The cache"):
        ask(model(there.url, cache=kept))


# ------------------------------------------------------------------------------- structured output


def test_a_form_is_asked_for_and_checked(model):
    with Loopback(says(f"```json\n{GOOD}\n```")) as there:
        answer = ask(model(there.url), schema=VERDICT)
    assert answer.value == {"why": "so", "right": True, "score": 3}
    (body,) = there.bodies()
    assert body["response_format"]["json_schema"]["schema"] == VERDICT
    assert json.dumps(VERDICT) in body["messages"][0]["content"]


def test_one_repair_names_the_fault(model):
    bad = '{"why": "so", "right": "yes", "score": 3}'
    with Loopback(says(bad), says(GOOD)) as there:
        asked = model(there.url)
        assert ask(asked, schema=VERDICT).value["right"] is True
        assert asked.endpoint.counts()["repairs"] == 1
    wrote, told = there.bodies()[1]["messages"][-2:]
    assert wrote == {"role": "assistant", "content": bad}
    assert "'right' must be of type boolean" in told["content"]


def test_a_form_that_is_missed_twice_is_bad_output_with_its_text(model):
    with Loopback(says("I would rather not.")) as there:
        with pytest.raises(BadOutput, match="It is no JSON") as refused:
            ask(model(there.url), schema=VERDICT)
        assert refused.value.text == "I would rather not." and len(there.requests) == 2


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[]", "it must be of type object"),
        ('{"why": "so", "right": true}', "'score' is missing"),
        ('{"why": "so", "right": true, "score": 3, "more": 1}', "'more' is not allowed"),
        ('{"why": "so", "right": 1, "score": 3}', "'right' must be of type boolean"),
        ('{"why": "so", "right": true, "score": true}', "'score' must be of type integer"),
        ('{"why": "so", "right": true, "score": NaN}', "NaN is no JSON number"),
        (f'{{"why": "{"x" * 21}", "right": true, "score": 1}}', "at most 20 characters"),
        ("[" * 100_000, "It is no JSON"),
        (GOOD + GOOD, "It is no JSON"),
    ],
)
def test_what_a_schema_refuses(text, fault):
    with pytest.raises(BadOutput, match=fault):
        structured.read(text, VERDICT)


def test_schemas_with_more_than_is_checked_are_refused():
    with pytest.raises(ValueError, match="pattern, which is not checked"):
        structured.problems("x", {"type": "string", "pattern": "y"})
    listed = {"type": "array", "items": {"enum": ["a", "b"]}}
    assert structured.problems(["a"], listed) == []
    assert structured.problems(["c"], listed) == ['an item of it must be one of ["a", "b"]']


# ------------------------------------------------------------------------------------- modules

SAID = {
    "executor": ({"command": "f(x=1)"}, "f(x=1)"),
    "verifier": ({"explanation": "a\nVerdict: STOP", "verdict": "CONTINUE"}, None),
    "generator": ({"explanation": "Answer: 1\nAnswer: 2", "answer": "3"}, None),
}


@pytest.mark.parametrize("role", SAID)
def test_a_module_of_a_required_form_writes_what_its_parser_reads(model, role):
    value, text = SAID[role]
    with Loopback(says(json.dumps(value))) as there:
        module = modules.Module(model(there.url), role, structured=True)
        reply = module.submit(ASK, max_tokens=9, deadline=time.monotonic() + 5).result(5)
    if role == "executor":
        assert reply.text == text
    elif role == "verifier":
        assert parsing.verdict(reply.text) is False
    else:
        assert parsing.answer(reply.text) == "3"


def test_a_module_that_misses_its_form_is_left_to_its_parser(model):
    with Loopback(says("Verdict: STOP")) as there:
        asked = model(there.url)
        module = modules.Module(asked, "verifier", structured=True)
        reply = module.submit(ASK, max_tokens=9, deadline=time.monotonic() + 5).result(5)
    assert reply.text == "Verdict: STOP" and asked.endpoint.counts()["bad_output"] == 1
