"""A socket whose waits end: by deadline, by the longest wait, by the number of bytes."""

import http.client
import math
import socket
import threading
import time

import pytest

from tools import timed_socket
from tools.timed_socket import TimedSocket, TooLong


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def answer_of(link):
    line = http.client.HTTPConnection("x")
    line.sock = link
    line.request("GET", "/")
    return line.getresponse()


def test_http_client_reads_a_whole_answer_through_it(ends):
    ours, theirs = ends
    theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    link = TimedSocket(ours)
    link.start(time.monotonic() + 5)
    response = answer_of(link)
    assert (response.status, response.read()) == (200, b"hello")
    assert theirs.recv(100).startswith(b"GET / HTTP/1.1\r\n")
    assert link.received == len(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


def test_bytes_that_drip_in_do_not_move_the_deadline(ends):
    ours, theirs = ends
    stop = threading.Event()

    def drip():
        while not stop.wait(0.02):
            theirs.sendall(b"x")

    dripping = threading.Thread(target=drip)
    dripping.start()
    link = TimedSocket(ours)
    started = time.monotonic()
    link.start(started + 0.3)
    try:
        with pytest.raises(TimeoutError):
            while True:
                link.receive_into(bytearray(1))
    finally:
        stop.set()
        dripping.join()
    assert 0.25 < time.monotonic() - started < 2


def test_silence_ends_after_the_longest_wait(ends):
    link = TimedSocket(ends[0], wait_seconds=0.05)
    link.start(time.monotonic() + 60)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        link.receive_into(bytearray(1))
    assert time.monotonic() - started < 5


def test_too_many_bytes_are_refused_and_a_new_request_counts_anew(ends):
    ours, theirs = ends
    link = TimedSocket(ours)
    link.start(math.inf, max_bytes=4)
    theirs.sendall(b"12345678")
    assert link.receive_into(bytearray(4)) == 4
    with pytest.raises(TooLong, match="longer than 4 bytes"):
        link.receive_into(bytearray(1))
    link.start(math.inf, max_bytes=4)
    assert link.receive_into(bytearray(3)) == 3 and link.received == 3


def test_closing_is_left_to_the_owner_and_aborting_wakes_a_reader(ends):
    ours, theirs = ends
    link = TimedSocket(ours)
    link.close()  # as http.client does before the body is read
    theirs.sendall(b"a")
    assert link.receive_into(bytearray(1)) == 1
    got = []
    reading = threading.Thread(target=lambda: got.append(link.receive_into(bytearray(1))))
    reading.start()
    link.abort()
    reading.join(5)
    assert got == [0]  # the end of the stream
    link.end()
    assert ours.fileno() == -1
    link.abort()  # harmless when it is gone


def test_no_time_is_left_after_the_deadline():
    assert 0 < timed_socket.left(time.monotonic() + 1) <= 1
    assert timed_socket.left(math.inf) == math.inf
    with pytest.raises(TimeoutError, match="the deadline is over"):
        timed_socket.left(time.monotonic() - 0.01)


def test_single_bytes_and_lines_are_counted(ends):
    ours, theirs = ends
    theirs.sendall(b"\n" * 30_000)
    link = TimedSocket(ours)
    for read in (lambda: link.receive_into(bytearray(1)), link.makefile("rb").readline):
        link.start(time.monotonic() + 5.0)
        with pytest.raises(TooLong, match="too many pieces"):
            while True:
                read()
        assert link.received < 2 * timed_socket.FREE  # a buffer's worth ahead
