"""HTTP against a real server on loopback: where requests may go, and that each one ends."""

import email.utils
import gzip
import socket
import threading
import time

import loopback
import pytest

from tools import http_client
from tools.http_client import Client, HttpError
from tools.protocol import ToolError


@pytest.fixture
def client(server):
    return Client(seconds=5.0, private_hosts=(server.host,))


def fails(call, *arguments, **how):
    with pytest.raises(HttpError) as caught:
        call(*arguments, **how)
    return caught.value


# ---- where a request may go --------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"]
    + ["0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"]
    + ["::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1"]
    + ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1"]
    + ["2002:7f00:1::", "2001:0:1:2::3"],
)
def test_private_addresses(address):
    assert not http_client.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address):
    assert http_client.is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:7f00:1]"]
)
def test_loopback_is_refused_however_it_is_written(server, host):
    server.answer("/", "secret")
    error = fails(Client(seconds=5.0).request, f"http://{host}:{server.server_port}/")
    assert error.reason in ("address", "name") and not server.seen


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://a.org/", "gopher://a.org", "//a.org", "a.org", "", "http://"]
    + ["http://u:p@a.org/", "http://a.org:99999/", "http://a.org:0/", "http://[::1/"]
    + ["http://a.org/\r\nX: y", "http://a b.org/", "http://a..ö.org/"],
)
def test_other_urls_are_refused(url):
    assert fails(Client(seconds=5.0).request, url).reason == "url"


def test_a_redirect_to_a_private_address_is_refused(server, client):
    inside = f"http://localhost:{server.server_port}/secret"  # only the numeric host is allowed
    server.answer("/", status=302, Location=inside)
    server.answer("/secret", "secret")
    assert fails(client.request, server.url + "/").reason == "address"
    assert [seen.path for seen in server.seen] == ["/"]


def test_a_redirect_to_a_file_is_refused(server, client):
    server.answer("/", status=302, Location="file:///etc/passwd")
    assert fails(client.request, server.url + "/").reason == "url"


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch):
    """A name that is public when asked first and private when asked again."""
    answers = ["8.8.8.8", "127.0.0.1"]
    connected = []

    def resolve(host, port, type):
        return [(socket.AF_INET, type, 6, "", (answers.pop(0), port))]

    class Socket(socket.socket):
        def connect(self, address):
            connected.append(address)
            raise ConnectionRefusedError

    monkeypatch.setattr(http_client.socket, "socket", Socket)
    client = Client(seconds=5.0, attempts=1, resolve=resolve)
    assert fails(client.request, "http://rebinding.test/").reason == "unreachable"
    assert connected == [("8.8.8.8", 80)] and answers == ["127.0.0.1"]
    assert fails(client.request, "http://rebinding.test/").reason == "address"  # checked anew
    assert len(connected) == 1


def test_one_private_address_among_public_ones_refuses_the_host():
    def resolve(host, port, type):
        return [(socket.AF_INET, type, 6, "", (ip, port)) for ip in ("8.8.8.8", "10.0.0.1")]

    assert fails(Client(seconds=5.0, resolve=resolve).request, "http://a.test/").reason == "address"


def test_headers_stay_with_their_host(server, client):
    server.answer("/", status=307, Location="/next")
    server.answer("/next", status=307, Location=f"http://localhost:{server.server_port}/other")
    server.answer("/other", "done")
    both = Client(seconds=5.0, private_hosts=(server.host, f"localhost:{server.server_port}"))
    assert both.request(server.url + "/", headers={"X-Key": "k"}).body == b"done"
    assert [seen.headers["x-key"] for seen in server.seen] == ["k", "k", None]


def test_endless_redirects_end(server, client):
    server.answer("/", status=302, Location="/")
    assert fails(client.request, server.url + "/").reason == "redirects"
    assert len(server.seen) == 6


# ---- what comes back ---------------------------------------------------------------------------


def test_text_is_decoded_by_its_header(server, client):
    server.answer("/a", "é".encode("latin-1"), type="text/plain; charset=ISO-8859-1")
    server.answer("/b", "é", type="text/plain; charset=nonsense")
    server.answer("/é", gzip.compress(b"packed"), Content_Encoding="gzip")
    assert client.request(server.url + "/a").text() == "é"
    assert client.request(server.url + "/b").text() == "é"
    server.routes["/%C3%A9"] = server.routes["/é"]
    found = client.request(server.url + "/é?q=ö")
    assert (found.text(), found.type) == ("packed", "text/html")
    assert server.seen[-1].query == "q=%C3%B6"


@pytest.mark.parametrize(
    "tag",
    [
        '<meta charset="windows-1251">',
        "<META http-equiv=Content-Type content='text/html; charset=Windows-1251'>",
        "<meta\nname=x charset = windows-1251 />",
    ],
)
def test_a_page_may_name_its_character_set_itself(server, client, tag):
    page = f"<html><head>{tag}<title>Байкал</title>".encode("windows-1251")
    server.answer("/bare", page, type="text/html")
    assert "Байкал" in client.request(server.url + "/bare").text()
    server.answer("/header", page.decode("windows-1251"))  # in UTF-8, as its header says
    assert "Байкал" in client.request(server.url + "/header").text()
    server.answer("/late", " " * 2000 + tag + "é", type="text/html")
    assert "é" in client.request(server.url + "/late").text()
    server.answer("/plain", f"{tag} é", type="text/plain")
    assert "é" in client.request(server.url + "/plain").text()


@pytest.mark.parametrize("name", ["punycode", "IDNA", "rot13", "hex", "undefined", "utf-99", "."])
def test_what_is_no_character_set_of_pages_does_not_count(server, client, name):
    server.answer("/", "é" + "a" * 400_000, type=f"text/html; charset={name}")
    start = time.monotonic()
    assert client.request(server.url + "/").text().startswith("éaaa")
    assert time.monotonic() - start < 1.0  # as punycode 2.4 s


def test_wrong_types_are_refused_before_the_body_is_read(server, client):
    def route(handler, seen):
        handler.send_response(200)
        handler.send_header("Content-Type", "video/mp4")
        handler.end_headers()
        time.sleep(0.3)

    server.routes["/"] = route
    start = time.monotonic()
    assert fails(client.request, server.url + "/", types=("text/html",)).reason == "type"
    assert time.monotonic() - start < 0.25


def endless(handler, seen):
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 10_000)


def test_an_endless_body_is_cut_or_refused(server):
    server.routes["/"] = endless
    client = Client(seconds=5.0, max_bytes=50_000, private_hosts=(server.host,))
    assert fails(client.request, server.url + "/").reason == "size"
    found = client.request(server.url + "/", cut=True)
    assert found.cut and found.body == b"x" * 50_000


def pieces(first, again):
    def route(handler, seen):
        handler.wfile.write(first)
        while True:
            handler.wfile.write(again * 2_000)

    return route


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (CHUNKED, b"1\r\nx\r\n"),
        (CHUNKED, b"1;%s\r\nx\r\n" % (b"e" * 1_000)),
        (CHUNKED + b"0\r\n", b"a: b\r\n"),
        (CHUNKED + b"0\r\n", b"a: %s\r\n" % (b"b" * 1_000)),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\na: b\r\n\r\n"),
    ],
)
def test_an_answer_in_endless_pieces_is_refused_before_the_deadline(server, client, first, again):
    server.routes["/"] = pieces(first, again)
    assert fails(client.request, server.url + "/", cut=True).reason == "size"
    assert len(server.seen) == 1


def says(text):
    return lambda handler, seen: handler.wfile.write(text)


@pytest.mark.parametrize(
    "text",
    [
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 %s OK\r\n\r\n" % (b"9" * 5_000),
        b"HTTP/1.1 200 OK\r\n%s\r\n" % (b"a: b\r\n" * 200),
        b"HTTP/1.1 200 OK\r\na: %s\r\n\r\n" % (b"b" * 70_000),
        CHUNKED + b"9\r\nhalf",
        CHUNKED + b"%s\r\n" % (b"f" * 5_000),
        CHUNKED + b"no number\r\n",
    ],
)
def test_what_is_no_answer_is_told_apart_from_silence(server, text):
    client = Client(seconds=5.0, attempts=1, private_hosts=(server.host,))
    server.routes["/"] = says(text)
    assert fails(client.request, server.url + "/").reason == "broken"
    server.routes["/"] = says(b"")
    assert fails(client.request, server.url + "/").reason == "unreachable"


def test_an_address_of_version_6_may_be_written_out(server):
    host = f"[2001:db8::abcd]:{server.server_port}"
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", server.server_port))]
    client = Client(
        seconds=5.0,
        private_hosts=(f"2001:db8::abcd:{server.server_port}",),
        resolve=lambda *_, **__: found,
    )
    server.answer("/", "there")
    assert client.request(f"http://{host}/").body == b"there"
    assert server.seen[0].headers["host"] == host


def test_an_archive_that_unpacks_to_more_is_cut(server):
    server.answer("/", gzip.compress(b"\0" * 1_000_000), Content_Encoding="gzip")
    client = Client(seconds=5.0, max_bytes=50_000, private_hosts=(server.host,))
    found = client.request(server.url + "/", cut=True)
    assert found.cut and len(found.body) == 50_000
    server.answer("/", b"\x1f\x8bnonsense", Content_Encoding="gzip")
    assert fails(client.request, server.url + "/").reason == "format"


def test_an_archive_that_ends_too_early_is_read_and_others_are_named(server, client):
    packed = gzip.compress(b"the page " * 1000)
    server.answer("/", packed[:-9], Content_Encoding="gzip")
    assert client.request(server.url + "/").body.startswith(b"the page the page")
    server.answer("/", packed + packed, Content_Encoding="gzip")
    assert len(client.request(server.url + "/").body) == 18_000
    server.answer("/", packed, Content_Encoding="br")
    error = fails(client.request, server.url + "/")
    assert error.reason == "encoding" and "not asked for: br" in str(error)
    assert server.seen[-1].headers["accept-encoding"] == "gzip"


@pytest.mark.parametrize(
    ("location", "path", "query"),
    [
        ("/städte 1?q=ü b".encode(), "/st%C3%A4dte%201", "q=%C3%BC%20b"),
        ("\t /a\tb \u3000".encode(), "/ab%20%E3%80%80", ""),
        ("/ÅÀ".encode(), "/%C3%85%C3%80", ""),  # with bytes that are line breaks in Latin-1
        ("/é".encode("latin-1"), "/%E9", ""),
        (b"b c%20d#e f", "/b%20c%20d", ""),
        (b"?q=%41|x", "/", "q=%41%7Cx"),
        (b"/a\x01\x7f", "/a%01%7F", ""),
    ],
)
def test_addresses_of_redirects_are_escaped_as_browsers_do(server, client, location, path, query):
    hops = [location.decode("latin-1")]

    def route(handler, seen):
        if hops:
            handler.send(status=302, Location=hops.pop())
        else:
            handler.send("there")

    server.routes["/"] = server.routes[path] = route
    assert client.request(server.url + "/").body == b"there"
    assert (server.seen[-1].path, server.seen[-1].query) == (path, query)


def test_a_redirect_may_name_a_host_in_its_own_script(server):
    host = "bücher.test"
    server.answer("/", status=302, Location=f"http://{host}/".encode().decode("latin-1"))
    asked = []

    def resolve(name, port, type):
        asked.append(name)
        if name != "127.0.0.1":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return socket.getaddrinfo(name, port, type=type)

    client = Client(seconds=5.0, private_hosts=(server.host,), resolve=resolve)
    assert fails(client.request, server.url + "/").reason == "name"
    assert asked == ["127.0.0.1", "xn--bcher-kva.test"]


def dripping(part):
    def route(handler, seen):
        if part == "body":
            handler.send_response(200)
            handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"H")
            handler.wfile.flush()
            time.sleep(0.02)

    return route


@pytest.mark.parametrize(("part", "reason"), [("head", "slow"), ("body", "slow")])
def test_a_slow_drip_ends_at_the_deadline(server, part, reason):
    server.routes["/"] = dripping(part)
    client = Client(seconds=0.3, private_hosts=(server.host,))
    start = time.monotonic()
    assert fails(client.request, server.url + "/").reason == reason
    assert time.monotonic() - start < 0.6


def test_a_name_that_does_not_resolve_in_time_or_at_all():
    def never(*_, **__):
        time.sleep(0.5)

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    def later(*_, **__):
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    assert fails(Client(seconds=0.1, resolve=never).request, "http://a.org").reason == "deadline"
    assert fails(Client(seconds=1.0, resolve=unknown).request, "http://a.org").reason == "name"
    once = Client(seconds=1.0, attempts=1, resolve=later)
    assert fails(once.request, "http://a.org").reason == "unreachable"


def test_untrusted_encryption_is_refused(server, client):
    assert fails(client.request, server.url.replace("http", "https") + "/").reason == "tls"


@pytest.fixture
def encrypted(server, monkeypatch):
    """The server speaks https under the name localhost; returns (its url, a client for it)."""
    server.socket = loopback.tls().wrap_socket(server.socket, server_side=True)
    server.answer("/", "secret")
    http_client._tls.cache_clear()
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    hosts = (server.host, f"localhost:{server.server_port}")
    yield f"https://localhost:{server.server_port}/", Client(seconds=5.0, private_hosts=hosts)
    http_client._tls.cache_clear()


def test_a_certificate_that_nobody_signed_is_refused_at_once(server, encrypted):
    url, client = encrypted
    start = time.monotonic()
    error = fails(client.request, url)
    assert error.reason == "tls" and "self-signed" in str(error) and "SSL_CERT_FILE" in str(error)
    assert time.monotonic() - start < http_client.FIRST_PAUSE / 2 and not server.seen


def test_a_certificate_of_ones_own_is_trusted_for_its_name_alone(server, encrypted, monkeypatch):
    url, client = encrypted
    monkeypatch.setenv("SSL_CERT_FILE", str(loopback.CERTIFICATE))
    assert client.request(url).body == b"secret"
    error = fails(client.request, url.replace("localhost", "127.0.0.1"))
    assert error.reason == "tls" and "not valid for '127.0.0.1'" in str(error)
    assert len(server.seen) == 1


def test_json_of_any_depth_and_length_is_no_failure_of_the_service(server, client):
    server.answer("/", b"[" * 100_000 + b"]" * 100_000)
    with pytest.raises(ToolError, match="nested too deeply"):
        client.json(server.url + "/")
    server.answer("/", b"[%s, 1e999]" % (b"9" * 15_000))
    assert client.json(server.url + "/") == ["9" * 15_000, float("inf")]


def test_json(server, client):
    server.answer("/", {"a": 1}, "no json")
    assert client.json(server.url + "/", body={"q": "é"}) == {"a": 1}
    assert server.seen[0].method == "POST" and server.seen[0].json == {"q": "é"}
    assert fails(client.json, server.url + "/").reason == "format"


# ---- again, later, not at all ------------------------------------------------------------------


def failing(server, path, *statuses, **headers):
    """Answers the statuses, then 200."""
    waiting = list(statuses)

    def route(handler, seen):
        status = waiting.pop(0) if waiting else 200
        handler.send("well", status=status, **(headers if status != 200 else {}))

    server.routes[path] = route


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(http_client, "FIRST_PAUSE", 0.01)


def test_busy_is_tried_again_and_refused_is_not(server, client, quick):
    failing(server, "/", 503, 429)
    assert client.request(server.url + "/").body == b"well"
    failing(server, "/", 503, 503, 503)
    assert fails(client.request, server.url + "/").status == 503
    failing(server, "/", 404)
    assert fails(client.request, server.url + "/").status == 404
    assert len(server.seen) == 3 + 3 + 1


def test_retry_after_is_waited_for_or_is_too_late(server, client):
    failing(server, "/", 429, Retry_After="1")
    start = time.monotonic()
    assert client.request(server.url + "/").body == b"well"
    assert 1.0 <= time.monotonic() - start < 1.5
    failing(server, "/", 429, Retry_After="3600")
    assert fails(client.request, server.url + "/").status == 429
    assert len(server.seen) == 3


def test_only_idempotent_requests_are_repeated(server, client, quick):
    failing(server, "/", 503)
    assert fails(client.request, server.url + "/", body={}, idempotent=False).status == 503
    failing(server, "/", 429)  # was not acted on
    assert client.request(server.url + "/", body={}, idempotent=False).body == b"well"
    server.routes["/"] = lambda handler, seen: handler.connection.close()
    seen = len(server.seen)
    error = fails(client.request, server.url + "/", body={}, idempotent=False)
    assert error.reason == "unreachable" and len(server.seen) == seen + 1
    assert fails(client.request, server.url + "/").reason == "unreachable"
    assert len(server.seen) == seen + 4


def test_later_may_be_said_with_status_200(server, client, quick):
    server.answer("/", "later", X="later")
    error = fails(client.request, server.url + "/", busy=lambda r: r.headers.get("x") == "later")
    assert error.reason == "status" and len(server.seen) == 3


def test_rate_limit_spreads_threads(server):
    server.answer("/", "well")
    client = Client(seconds=5.0, per_second=50, private_hosts=(server.host,))
    start = time.monotonic()
    threads = [threading.Thread(target=client.request, args=(server.url + "/",)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start >= 0.1 and len(server.seen) == 6
    slow = Client(seconds=0.5, per_second=0.1, private_hosts=(server.host,))
    slow.request(server.url + "/")
    assert fails(slow.request, server.url + "/").reason == "busy" and len(server.seen) == 7


def test_what_one_site_asks_for_does_not_hold_up_the_others(server):
    """A page of the web could stop the tool for everyone by a Retry-After of a year."""
    failing(server, "/", 429, Retry_After="31536000")
    server.answer("/well", "well")
    client = Client(seconds=1.0)
    client.addresses = lambda url, until: [(socket.AF_INET, ("127.0.0.1", server.server_port))]
    assert fails(client.request, "http://a.test/").status == 429
    assert client.request("http://b.test/well").body == b"well"
    service = Client(seconds=1.0, private_hosts=(server.host,))
    failing(server, "/", 429, Retry_After="31536000")
    assert fails(service.request, server.url + "/").status == 429
    assert fails(service.request, server.url + "/well").reason == "busy"


def test_retry_after_may_be_a_date(server, client):
    at = email.utils.formatdate(time.time() + 3600, usegmt=True)
    failing(server, "/", 503, Retry_After=at)
    assert fails(client.request, server.url + "/").status == 503 and len(server.seen) == 1


def test_breaker_leaves_a_broken_service_alone_and_comes_back(server):
    client = Client(
        seconds=5.0,
        attempts=1,
        breaker_failures=2,
        breaker_seconds=0.2,
        private_hosts=(server.host,),
    )
    failing(server, "/", 500, 500, 500)
    for _ in range(2):
        assert fails(client.request, server.url + "/").status == 500
    assert fails(client.request, server.url + "/").reason == "busy"
    assert len(server.seen) == 2
    time.sleep(0.25)
    assert fails(client.request, server.url + "/").status == 500  # one is let through
    assert fails(client.request, server.url + "/").reason == "busy"
    time.sleep(0.25)
    for _ in range(2):
        assert client.request(server.url + "/").body == b"well"


def test_a_refused_request_does_not_open_the_breaker(server):
    client = Client(seconds=5.0, breaker_failures=1, private_hosts=(server.host,))
    failing(server, "/", 404, 404)
    for _ in range(2):
        assert fails(client.request, server.url + "/").status == 404


def test_limits_are_checked():
    with pytest.raises(ValueError, match="seconds=0"):
        Client(seconds=0)
    with pytest.raises(ValueError, match="not a URL of a service"):
        http_client.service_host("localhost:80")
    assert http_client.service_host("https://A.org/x") == "a.org:443"
