"""HTTP for tools: checked addresses, one deadline, capped answers, retries, rate limit, breaker.

A model chooses where a request goes, so nothing is trusted: the host is resolved once, every
address must be public, and the connection is made to the address that was checked; the same at each
redirect. Proxies of the environment are not used, because a proxy would resolve again.
"""

import dataclasses
import functools
import http.client
import ipaddress
import json
import queue
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping

from flow_grpo_jax.bounds import json_text
from tools import charsets, limits, protocol, unpacking
from tools.timed_socket import TimedSocket, TooLong, left

REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 5
BUSY = (429, 502, 503, 504)
BLAMED = ("unreachable", "tls", "slow", "broken", "deadline")  # on the service
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds between attempts, before the jitter
AGENT = "flow-grpo-jax"
HTML = ("text/html", "application/xhtml+xml")
HEAD_BYTES = 2**18  # of an answer beside its body, and as many again as the body may have
MAX_DIGITS = 300  # of an integer in JSON; a float has as many
BLANKS = "".join(map(chr, range(33)))  # around an address; they do not count
NAT64 = ipaddress.ip_network("64:ff9b::/96")
NAT64_LOCAL = ipaddress.ip_network("64:ff9b:1::/48")
IPV4_COMPATIBLE = ipaddress.ip_network("::/96")


class HttpError(Exception):
    """A request that gave no usable answer.

    reason: "url" (not http or https, or malformed), "address" (not public), "name" (no such host),
      "unreachable" (no connection, or one that ends in silence), "tls" (no trusted encryption),
      "slow" (an answer began but did not end in time), "deadline" (no answer in time), "broken" (an
      answer that is no HTTP, or breaks off), "status", "redirects", "type", "size" (too many bytes,
      or pieces), "format", "encoding" (compressed in a way that is not read), "busy" (over the rate
      limit, or the breaker is open).
    status: of the answer; 0 if none came.
    """

    def __init__(self, reason: str, message: str, *, status: int = 0, pause: float | None = None):
        super().__init__(message)
        self.reason, self.status, self.pause = reason, status, pause
        self.sent = True  # whether the server may have acted on the request


@dataclasses.dataclass(frozen=True)
class Response:
    """An answer: lower-case header names, the body without its compression, the last address.

    cut: whether the body was longer than allowed, so that its rest was not read.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    cut: bool = False

    @property
    def type(self) -> str:
        """The media type, such as "text/html"."""
        return self.headers.get("content-type", "").split(";")[0].strip().lower()

    def text(self) -> str:
        """Decodes the body, see `charsets.decode`."""
        content_type = self.headers.get("content-type", "")
        return charsets.decode(self.body, content_type=content_type, markup=self.type in HTML)


class Client:
    """Requests of one tool. Safe in many threads; every request has a connection of its own."""

    def __init__(
        self,
        *,
        seconds: float,
        max_bytes: int = 2_000_000,
        attempts: int = 3,
        per_second: float = 0.0,
        breaker_failures: int = 0,
        breaker_seconds: float = 30.0,
        private_hosts: tuple[str, ...] = (),
        agent: str = AGENT,
        resolve: Callable = socket.getaddrinfo,
    ):
        """Sets the limits.

        Args:
          seconds: deadline of a request, with its name look-up, redirects, retries and pauses.
          max_bytes: most bytes of a body, as sent and unpacked.
          attempts: how often a request is tried in all.
          per_second: most requests a second, of all threads together; 0 for no limit.
          breaker_failures, breaker_seconds: of `limits.Breaker`.
          private_hosts: "host:port" that may have a private address. A Retry-After of one of them
            holds up all requests; that of another host only the request to it.
          agent: User-Agent.
          resolve: getaddrinfo.
        """
        if seconds <= 0 or max_bytes < 1 or attempts < 1 or per_second < 0:
            raise ValueError(
                f"seconds={seconds}, max_bytes={max_bytes} and attempts={attempts} must be "
                f"positive, per_second={per_second} must not be negative."
            )
        self._seconds = seconds
        self._max_bytes, self._attempts = max_bytes, attempts
        self._rate = limits.Rate(per_second)
        self._breaker = limits.Breaker(failures=breaker_failures, seconds=breaker_seconds)
        self._private = frozenset(private_hosts)
        self._agent, self._resolve = agent, resolve

    def request(
        self,
        url: str,
        *,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        types: tuple[str, ...] = (),
        cut: bool = False,
        idempotent: bool = True,
        busy: Callable[[Response], bool] = lambda response: False,
    ) -> Response:
        """Gets a page, or posts JSON.

        Args:
          url: http or https.
          body: sent as JSON by POST; None for GET. Only GET follows redirects.
          headers: further ones; never sent to another host than that of `url`.
          types: media types to accept; all if empty.
          cut: cut a body that is too long instead of refusing it.
          idempotent: whether the request may be repeated although the server may have acted on it.
          busy: answers that mean "later" although their status is 200.

        Raises:
          HttpError: there is no usable answer.
        """
        until = time.monotonic() + self._seconds
        try:
            self._breaker.enter(until)
        except (limits.Resting, limits.TooLate) as error:
            raise HttpError("busy", str(error)) from error
        failed = None
        try:
            response = self._tried(until, url, body, headers or {}, types, cut, idempotent, busy)
            failed = False
            return response
        except HttpError as error:
            failed = _blames_service(error)
            raise
        finally:
            self._breaker.leave(failed=failed)

    def json(self, url: str, **how) -> object:
        """Requests and parses JSON, see `loads`; ToolError if it goes over a bound."""
        response = self.request(url, **how)
        try:
            return loads(response.body)
        except json.JSONDecodeError as error:
            raise HttpError("format", f"{_origin(url)} did not answer with JSON.") from error
        except ValueError as error:
            raise protocol.ToolError(f"The answer cannot be read: {error}.") from error

    def _tried(self, until, url, body, headers, types, cut, idempotent, busy):
        for attempt in range(1, self._attempts + 1):
            try:
                self._wait_for_turn(until)
                return self._followed(until, url, body, headers, types, cut, busy)
            except HttpError as error:
                again = error.reason in ("unreachable", "broken") or error.status in BUSY
                again = again or error.pause is not None
                harmless = idempotent or not error.sent or error.status == 429
                pause = error.pause
                if pause is None:
                    pause = limits.backoff(attempt - 1, first=FIRST_PAUSE, longest=LONGEST_PAUSE)
                elif service_host(url) in self._private:
                    self._rate.pause(pause)
                late = time.monotonic() + pause >= until
                if not again or not harmless or late or attempt == self._attempts:
                    raise
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _wait_for_turn(self, until):
        try:
            time.sleep(self._rate.reserve(until))
        except limits.TooLate as error:
            refused = HttpError("busy", "The rate limit leaves no turn before the deadline.")
            refused.sent = False
            raise refused from error

    def _followed(self, until, url, body, headers, types, cut, busy):
        first = _origin(url)
        for _ in range(MAX_REDIRECTS + 1):
            mine = headers if _origin(url) == first else {}
            with _Exchange(self, until, url, body, mine) as exchange:
                status, fields = exchange.status, exchange.headers
                if status in REDIRECTS and body is None and "location" in fields:
                    url = _joined(url, fields["location"])
                    continue
                response = Response(status, fields, b"", url)
                _check(response, types, busy)
                content, is_cut = exchange.read(self._max_bytes)
            if is_cut and not cut:
                raise HttpError("size", f"{first} sent more than {self._max_bytes} bytes.")
            return dataclasses.replace(response, body=content, cut=is_cut)
        raise HttpError("redirects", f"{first} redirects more than {MAX_REDIRECTS} times.")

    def addresses(self, url: str, until: float) -> list[tuple]:
        """Returns the (family, socket address) pairs of a URL's host, all of them allowed.

        Raises:
          HttpError: there is none, or one of them is not public.
        """
        parts = _split(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = _ascii_host(parts.hostname)
        pairs = self._look_up(host, port, until)
        if f"{parts.hostname}:{port}" not in self._private:
            for _, address in pairs:
                if not is_public(address[0]):
                    raise HttpError("address", f"{parts.hostname} has no public address.")
        return pairs

    def _look_up(self, host, port, until):
        answers = queue.SimpleQueue()

        def ask():
            try:
                answers.put(self._resolve(host, port, type=socket.SOCK_STREAM))
            except (OSError, UnicodeError) as error:
                answers.put(error)

        threading.Thread(target=ask, daemon=True).start()  # getaddrinfo knows no deadline
        try:
            answer = answers.get(timeout=left(until))
        except queue.Empty:
            raise HttpError("deadline", f"The name {host} was not resolved in time.") from None
        if isinstance(answer, Exception):
            unknown = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
            invented = isinstance(answer, UnicodeError) or answer.errno in unknown
            error = HttpError("name" if invented else "unreachable", f"The name {host}: {answer}.")
            error.sent = False
            raise error
        return list(dict.fromkeys((family, address) for family, *_, address in answer))


class _Exchange:
    """One request and its answer over one connection, which is closed at the end."""

    def __init__(self, client, until, url, body, headers):
        parts = _split(url)
        self._until, self._host = until, parts.hostname
        self._socket = _connected(client.addresses(url, until), parts, until)
        try:
            self._answer = self._asked(client, parts, body, headers)
        except BaseException:
            self._socket.close()
            raise
        self.status = self._answer.status
        self.headers = {name.lower(): value for name, value in self._answer.headers.items()}

    def _asked(self, client, parts, body, headers):
        line = http.client.HTTPConnection(_host_header(parts))
        line.sock = link = TimedSocket(self._socket)
        link.start(self._until, max_bytes=2 * client._max_bytes + HEAD_BYTES)
        headers = {
            "Host": _host_header(parts),
            "User-Agent": client._agent,
            "Accept-Encoding": "gzip",
            "Connection": "close",
            **headers,
        }
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        if parts.query:
            target += "?" + urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~?")
        try:
            line.request("GET" if body is None else "POST", target, data, headers)
            return line.getresponse()
        except TimeoutError as error:
            reason = "slow" if link.received else "deadline"
            raise HttpError(reason, f"{self._host} did not answer in time.") from error
        except TooLong as error:
            raise HttpError("size", f"{self._host}: {error}") from error
        except OSError as error:  # also http.client.RemoteDisconnected
            kind = type(error).__name__
            raise HttpError(
                "unreachable", f"{self._host} broke the connection ({kind})."
            ) from error
        except (http.client.HTTPException, ValueError) as error:
            kind = type(error).__name__
            raise HttpError("broken", f"{self._host} did not answer with HTTP ({kind}).") from error

    def read(self, most):
        """Returns (body, whether it was cut)."""
        blocks, length = [], 0
        try:
            while length <= most and (block := self._answer.read1(1 << 16)):
                blocks.append(block)
                length += len(block)
        except TimeoutError as error:
            raise HttpError("slow", f"{self._host} did not finish its answer in time.") from error
        except TooLong as error:
            raise HttpError("size", f"{self._host}: {error}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise HttpError("broken", f"{self._host} broke off its answer.") from error
        sent, coding = b"".join(blocks)[:most], self.headers.get("content-encoding", "")
        try:
            content, longer = unpacking.unpacked(sent, coding, most=most)
        except unpacking.Unsupported as error:
            message = f"{self._host} sent a compression that was not asked for: {error}."
            raise HttpError("encoding", message) from error
        except unpacking.Broken as error:
            raise HttpError("format", f"{self._host} sent a broken archive.") from error
        return content, longer or length > most

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._answer.close()
        self._socket.close()


def loads(body):
    """Returns the value of JSON bytes with its texts clean; bytes that do not fit become U+FFFD.

    An integer of more than MAX_DIGITS digits becomes the text of its digits.

    Raises:
      ValueError: it is no JSON (JSONDecodeError), or goes over a bound of `json_text`.
    """
    text = body.decode(json.detect_encoding(body), "replace")
    return protocol.clean(json_text.parse(text, parse_int=_integer))


def _integer(digits):
    return int(digits) if len(digits) <= MAX_DIGITS else digits


def is_public(address: str) -> bool:
    """Whether an IP address, wrapped in IPv6 or not, belongs to the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip.teredo:
            return False
        if ip in NAT64 or ip in IPV4_COMPATIBLE:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local or ip in NAT64_LOCAL:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def service_host(url: str) -> str:
    """Returns the "host:port" of a URL that the operator chose, for `private_hosts`.

    Raises:
      ValueError: it is no http or https URL.
    """
    try:
        parts = _split(url)
    except HttpError as error:
        raise ValueError(f"{url!r} is not a URL of a service: {error}") from error
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


@functools.cache
def _tls():
    return ssl.create_default_context()


def _host_header(parts):
    host = _ascii_host(parts.hostname)
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{parts.port}" if parts.port else host


def _connected(addresses, parts, until):
    problem = None
    for family, address in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(left(until))
            sock.connect(address)
            if parts.scheme == "https":
                sock = _tls().wrap_socket(sock, server_hostname=_ascii_host(parts.hostname))
            return sock
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            sock.close()
            problem = error
    reason = "deadline" if isinstance(problem, TimeoutError) else "unreachable"
    message = f"No connection to {parts.hostname} ({type(problem).__name__})."
    if isinstance(problem, ssl.SSLError):
        reason = "tls"
    if isinstance(problem, ssl.SSLCertVerificationError):
        message = (
            f"The certificate of {parts.hostname} is refused: {problem.verify_message}. One of "
            "your own can be trusted by SSL_CERT_FILE=FILE in the environment."
        )
    error = HttpError(reason, message)
    error.sent = False
    raise error from problem


def _blames_service(error):
    """Whether the service failed, or None if the error says nothing about it."""
    if error.reason in BLAMED or error.pause is not None:
        return True
    if error.reason in ("status", "type", "size", "redirects"):
        return error.status >= 500 or error.status == 429
    return None


def _check(response, types, busy):
    """Refuses an answer by its head."""
    host, later = _origin(response.url), busy(response)
    if later or not 200 <= response.status < 300:
        pause = None
        if later or response.status in BUSY:
            pause = limits.retry_after(response.headers.get("retry-after"))
        if later and pause is None:
            pause = FIRST_PAUSE
        raise HttpError(
            "status", f"{host} answered {response.status}.", status=response.status, pause=pause
        )
    if types and response.type not in types:
        raise HttpError("type", f"{host} sent {response.type or 'no media type'}.")


def _joined(url, location):
    """Returns the address of a redirect, with raw bytes and blanks escaped as browsers do.

    location: as http.client gives it, each byte a character.
    """
    raw = re.sub(r"[\t\r\n]", "", location).strip(BLANKS).encode("latin-1", "replace")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = "".join(chr(byte) if byte < 128 else f"%{byte:02X}" for byte in raw)
    text = re.sub(r"[\x00-\x20\x7f]", lambda match: f"%{ord(match[0]):02X}", text)
    try:
        return urllib.parse.urljoin(url, text)
    except ValueError as error:
        raise HttpError("url", "The URL of a redirect is malformed.") from error


def _split(url):
    """Returns the parts of an http or https URL without credentials."""
    if any(ord(character) <= 32 or ord(character) == 127 for character in url):
        raise HttpError("url", "The URL holds blanks or control characters.")
    try:
        parts = urllib.parse.urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:
        raise HttpError("url", "The URL is malformed.") from error
    if not fits or parts.username is not None:
        raise HttpError("url", "Only http and https URLs without credentials are read.")
    _ascii_host(parts.hostname)
    return parts


def _ascii_host(host):
    try:
        return host.encode("idna").decode("ascii") if not host.isascii() else host
    except UnicodeError as error:
        raise HttpError("url", "The URL's host is malformed.") from error


def _origin(url):
    parts = _split(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
