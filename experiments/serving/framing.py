"""Cuts what a client sends into requests, strictly: no two readers may see different ones.

A proxy in front and the server behind it must agree on where a request ends, or a request can be
smuggled inside another. So a request whose length can be read in two ways is refused, and so are
old forms of writing that some readers take and others do not.
"""

import re

from experiments.serving import errors

HEAD_BYTES = 16 * 2**10
MAX_BODY_BYTES = 8 * 2**20
READ_BYTES = 4 * MAX_BODY_BYTES  # of a body too long: many clients read no answer before its end
CHUNKS = 10_000
REQUEST_LINE = re.compile(rb"[A-Z]{1,20} [\x21-\x7e]+ HTTP/1\.[01]")
LENGTH = re.compile(rb"[0-9]{1,15}")
SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[\t\x20-\x7e]{0,64})?\r\n")
LONGEST_SIZE = 8 + 1 + 64 + 2
LONE = re.compile(rb"(?<!\r)\n|\r(?=[^\n])")  # half a line end


class Framing:
    """The bytes of one connection: `add` what has come, `take` what may be passed on.

    Attributes:
      between: whether the next bytes are the head of a request.
      held: bytes that are not passed on yet.
    """

    def __init__(self):
        self.held = b""
        self.between = True
        self._searched = 0  # bytes of `held` without the end of a head
        self._left = 0  # bytes of the body, or of its chunk, to come
        self._chunked, self._chunks, self._received = False, 0, 0

    def add(self, data):
        self.held += data

    def take(self):
        """Returns a whole head or a piece of a body; b"" if more has to come first.

        Raises:
          ApiError: the request is refused; nothing after it can be read.
        """
        if self.between:
            return self._head()
        size = self._chunks_size() if self._chunked else min(self._left, len(self.held))
        if not self._chunked:
            self._left -= size
            self.between = not self._left
        return self._pass(size)

    def _pass(self, size):
        passed, self.held = self.held[:size], self.held[size:]
        return passed

    def _head(self):
        if self.held and not self.held[:1].isalpha():
            raise errors.invalid("This is no HTTP: a request begins with its method.")
        end = self.held.find(b"\r\n\r\n", max(0, self._searched - 3))
        size = len(self.held) if end < 0 else end + 4
        if LONE.search(self.held, max(0, self._searched - 1), size):
            raise errors.invalid("A line of the request's head does not end with CR LF.")
        if size > HEAD_BYTES:
            status, what = (431, "head") if b"\r\n" in self.held[:HEAD_BYTES] else (414, "address")
            raise errors.ApiError(status, f"The request's {what} exceeds {HEAD_BYTES} bytes.")
        if end < 0:
            self._searched = size
            return b""
        self._searched = 0
        self._begin(self.held[:end])
        return self._pass(size)

    def _begin(self, head):
        """Learns the length of the body."""
        first, *lines = head.split(b"\r\n")
        if not REQUEST_LINE.fullmatch(first):
            raise errors.invalid("The request's first line must be: METHOD /path HTTP/1.1.")
        if any(line[:1] in (b" ", b"\t") for line in lines):
            raise errors.invalid("A header goes on in another line; write it in one.")
        fields = [line.partition(b":") for line in lines]
        lengths, codings = (
            [value.strip(b" \t") for name, _, value in fields if name.lower() == wanted]
            for wanted in (b"content-length", b"transfer-encoding")
        )
        if len(lengths) + len(codings) > 1:
            raise errors.invalid("Send one content-length or transfer-encoding header, not two.")
        if lengths and not LENGTH.fullmatch(lengths[0]):
            raise errors.invalid("content-length must be a number of bytes, digits only.")
        if codings and (codings[0].lower() != b"chunked" or first.endswith(b"1.0")):
            raise errors.invalid("The only transfer-encoding is chunked, with HTTP/1.1.")
        self._left = int(lengths[0]) if lengths else 0
        self._check_size(self._left)
        self._chunked, self._chunks, self._received = bool(codings), 0, 0
        self.between = not (self._chunked or self._left)

    def _chunks_size(self):
        """Returns how much of `held` is read: data of chunks, and lines that are whole."""
        at = 0
        while at < len(self.held):
            if self._left:
                step = min(self._left, len(self.held) - at)
                self._left -= step
                at += step
                continue
            line = SIZE.match(self.held, at)
            if line is None:
                if len(self.held) - at >= LONGEST_SIZE or b"\n" in self.held[at:]:
                    raise errors.invalid("A chunk's size is not written as in RFC 9112.")
                break
            size = int(line[1], 16)
            if size == 0:
                end = self.held[line.end() : line.end() + 2]
                if not b"\r\n".startswith(end):
                    raise errors.invalid("Headers after the body (trailers) are not taken.")
                if len(end) == 2:
                    self.between = True
                    at = line.end() + 2
                break
            self._chunks += 1
            self._received += size
            self._check_size(self._received)
            if self._chunks > CHUNKS:
                raise errors.invalid(f"The body has more than {CHUNKS} chunks; send larger ones.")
            self._left = size + len(b"\r\n")
            at = line.end()
        return at

    def _check_size(self, size):
        if size > READ_BYTES:
            raise errors.ApiError(413, f"The body exceeds {MAX_BODY_BYTES} bytes.")
