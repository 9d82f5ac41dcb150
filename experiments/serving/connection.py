"""One client's connection: what it may send, how long it may take, and how many there may be."""

import http
import math
import resource

from uvicorn.protocols.http import h11_impl

from experiments.serving import answers, errors, framing

# Seconds in which a client must send a head from its first byte, and a body; and in which it must
# take WRITTEN_BYTES of its answer, or all that waits.
SECONDS = {"head": 10, "body": 60, "closing": 2}
WRITE_SECONDS = 30
WRITTEN_BYTES = 16 * 2**10
PIPELINED_BYTES = 2**16
MOST_CONNECTIONS = 1000


def most_connections():
    """Returns how many connections the server may hold: half of what may be open, at most 1000."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if soft < 0 else min(MOST_CONNECTIONS, soft // 2)


class Connection(h11_impl.H11Protocol):
    """uvicorn's protocol behind `framing`: one request at a time, within the times above.

    Args:
      most: connections that the server may hold. With one more, the one whose request has not
        come for the longest time ends; if all are being answered, the new one gets status 503.
      refused: is called with the status of each answer that does not reach the application.
    """

    def __init__(self, *args, most, refused, **named):
        super().__init__(*args, **named)
        self._most, self._refused = most, refused
        self._framing, self._answered = framing.Framing(), 0
        self._closing, self._last = False, None
        self._stage, self._since = None, -math.inf
        self._unread, self._unread_since = 0, 0.0

    # ---- asyncio's side ------------------------------------------------------------------------

    def connection_made(self, transport):
        super().connection_made(transport)
        self._since = self.loop.time()
        there = [each for each in self.connections if not each.transport.is_closing()]
        if len(there) <= self._most:
            return
        waiting = [each for each in there if each.waits_for_client and each is not self]
        if waiting:
            min(waiting, key=lambda each: each._since).transport.close()
        else:
            self._refuse(
                errors.ApiError(
                    503,
                    f"The server holds {self._most} connections, which is the most.",
                    code="too_many_connections",
                    headers={"retry-after": "1"},
                )
            )

    def data_received(self, data):
        if not self._closing:
            self._framing.add(data)
            self._pump()

    # ---- uvicorn's side ------------------------------------------------------------------------

    def on_response_complete(self):
        super().on_response_complete()
        self._answered += 1
        self._pump()

    def send_400_response(self, message):
        self._refuse(errors.invalid("This is no valid HTTP request."))

    # ---- in between ----------------------------------------------------------------------------

    @property
    def waits_for_client(self):
        """Whether no whole request is there to be answered."""
        return self._closing or not (self._framing.between and self._answers)

    @property
    def _answers(self):
        return self.cycle is not None and not self.cycle.response_complete

    def _pump(self):
        """Passes on what has come, up to the end of a request that is not answered yet."""
        while not (self._closing or self.transport.is_closing()):
            if self._framing.between and self._answers:
                if len(self._framing.held) > PIPELINED_BYTES:
                    self.transport.abort()
                return
            if self._framing.between:
                self._last = self.cycle
            try:
                piece = self._framing.take()
            except errors.ApiError as error:
                self._refuse(error)
                return
            if not piece:
                return
            super().data_received(piece)

    def _refuse(self, error):
        """Answers with an error, if the request has no other answer, and reads nothing more."""
        self._closing = True
        if self.cycle is self._last or not self.cycle.response_started:
            body = answers.to_json(error.body)
            fields = {
                "content-type": "application/json",
                "content-length": len(body),
                "connection": "close",
                **error.headers,
            }
            lines = [f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}"]
            lines += [f"{name}: {value}" for name, value in fields.items()]
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
            self._refused(error.status)
        if self._answers:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        # What it still sends is read: the answer could be lost with a connection closed before.
        self.flow.resume_reading()
        self.transport.write_eof()

    def check(self, now):
        """Ends the connection if its client takes too long; is called every fraction of a second.

        now: seconds of the event loop's clock.
        """
        self._check_reader(now)
        if self.transport.is_closing():
            return
        if self._closing:
            stage = "closing"
        elif not self._framing.between:
            stage = "body"
        elif not self._answers and (self._framing.held or not self._answered):
            stage = "head"
        else:
            stage = None  # uvicorn ends connections that are kept alive too long
        if self._stage != (stage, self._answered):
            self._stage, self._since = (stage, self._answered), now
        elif now - self._since > SECONDS.get(stage, math.inf):
            if stage == "closing" or not (self._framing.held or stage == "body"):
                self.transport.close()
            else:
                message = f"The request's {stage} took more than {SECONDS[stage]} s to come."
                self._refuse(errors.ApiError(408, message))

    def _check_reader(self, now):
        unread = self.transport.get_write_buffer_size()
        if not unread or unread <= self._unread - WRITTEN_BYTES or not self._unread:
            self._unread, self._unread_since = unread, now
        elif now - self._unread_since > WRITE_SECONDS:
            self.transport.abort()
        self._unread = max(self._unread, unread)
