"""Messages come back bit for bit, and nothing else is read as one."""

import dataclasses
import enum
import math
import pickle
import struct
import zlib

import numpy as np
import pytest

from flow_grpo_jax import wire

SECRET, PLACE = b"s" * 32, "flow_grpo_jax/exchange/1/0/value"


class Colour(enum.StrEnum):
    RED = "red"


@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    rest: tuple = ()


class Other(Point):
    pass


KINDS = (Point, Colour)
NAN = struct.unpack(">d", bytes.fromhex("7ff8000000000abc"))[0]  # with a payload
VALUES = [
    None,
    True,
    False,
    0,
    -1,
    255,
    -(2**63) - 1,
    10**5000,
    0.1,
    -0.0,
    math.inf,
    -math.inf,
    NAN,
    5e-324,
    "",
    "\ud83d\ude00 \ud83d \0 東京",  # two halves stay two
    b"",
    b"\0\xff",
    (),
    [],
    {},
    (1, True, 1.0),
    (1, 2**63),
    [1, 2],
    (-0.0, NAN, math.inf),
    [0.1],
    (None, ("a", ["b", {"c": (1,), 2: None}])),
    Point(NAN, (Colour.RED, "red", Point(1.0))),
]


def exact(value):
    """A text that differs wherever two values do."""
    if isinstance(value, float):
        return struct.pack(">d", value).hex()
    if isinstance(value, tuple | list):
        return f"{type(value)}{[exact(part) for part in value]}"
    if isinstance(value, dict):
        return f"dict{[(exact(key), exact(part)) for key, part in value.items()]}"
    if isinstance(value, Point):
        return f"Point{exact(value.x)}{exact(value.rest)}"
    return f"{type(value)}{value.bit_length()}" if value == 10**5000 else f"{type(value)}{value!r}"


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}")
def test_a_value_comes_back_bit_for_bit(value):
    assert exact(wire.decode(wire.encode(value, KINDS), KINDS)) == exact(value)


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, Other(1.0), np.float64(1), np.zeros(2), len, KINDS, bytearray(b"x")]
)
def test_what_is_no_plain_data_is_not_sent(value):
    with pytest.raises(TypeError, match="Processes cannot exchange"):
        wire.encode([value], KINDS)


def test_only_the_kinds_that_the_reader_names_are_made():
    sent = wire.encode((Point(1.0), Colour.RED), KINDS)
    for known in ((), (Point,), (Colour,)):
        with pytest.raises(ValueError, match="is none"):
            wire.decode(sent, known)


def head(kind, length):
    return struct.pack(">cQ", kind, length)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pickle.dumps([1]),
        zlib.compress(b"x"),
        b"N",
        wire.encode(1) + wire.encode(2),
        wire.encode("text")[:-1],
        head(b"s", 2**63) + b"x",
        head(b"N", 1) + b"x",
        head(b"f", 1) + b"x",
        head(b"I", 3) + b"xyz",
        head(b"s", 1) + b"\xff",
        head(b"?", 0),
        head(b"c", 0),
        head(b"{", 9) + head(b"N", 0),
        head(b"{", 18) + head(b"[", 0) + head(b"N", 0),
        head(b"c", 19) + head(b"s", 1) + b"P" + head(b"N", 0),
        head(b"c", 23) + head(b"s", 5) + b"Point" + head(b"N", 0),
        head(b"c", 23) + head(b"s", 5) + b"Colour"[:5] + head(b"N", 0),
    ],
)
def test_other_bytes_are_refused(data):
    if data == head(b"c", 23) + head(b"s", 5) + b"Point" + head(b"N", 0):
        assert wire.decode(data, KINDS) == Point(None)  # a field may hold anything
        return
    with pytest.raises(ValueError):
        wire.decode(data, KINDS)


def test_values_in_values_end_somewhere():
    deep = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(TypeError, match="32 deep"):
        wire.encode(deep)
    data = b""
    for _ in range(100_000):
        data = head(b"[", len(data)) + data if len(data) < 9_000 else data
    with pytest.raises(ValueError, match="32 deep"):
        wire.decode(data)


def test_a_sealed_message_is_worth_nothing_elsewhere_or_changed():
    data = wire.encode(["text"] * 100)
    sealed = wire.seal(data, secret=SECRET, place=PLACE)
    assert len(sealed) < len(data) and wire.unseal(sealed, secret=SECRET, place=PLACE) == data
    changed = [sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :] for i in range(len(sealed))]
    for wrong in (*changed, b"", sealed[:-1], sealed[:31], sealed + b"\0", pickle.dumps(data)):
        with pytest.raises(wire.Forged, match="is not sealed"):
            wire.unseal(wrong, secret=SECRET, place=PLACE)
    for secret, place in ((b"t" * 32, PLACE), (b"", PLACE), (SECRET, PLACE.replace("1/0", "1/1"))):
        with pytest.raises(wire.Forged, match="is not sealed"):
            wire.unseal(sealed, secret=secret, place=place)


@pytest.mark.parametrize("said", [0, 1, 99, 101, 2**40, 2**64 - 1])
def test_a_message_is_unpacked_no_further_than_it_says(said, monkeypatch):
    """Also one of who knows the secret: 100 MB in 100 KB, or another length."""
    many = 100_000_000 if said == 1 else 100
    packed = struct.pack(">Q", said) + zlib.compress(b"x" * many)
    monkeypatch.setattr(wire, "MOST_BYTES", 200)
    sealed = wire._mac(packed, SECRET, PLACE) + packed
    with pytest.raises(ValueError, match="bytes"):
        wire.unseal(sealed, secret=SECRET, place=PLACE)
    with pytest.raises(ValueError, match="over the most"):
        wire.seal(b"x" * 201, secret=SECRET, place=PLACE)
