"""Values as sealed bytes and back, for messages between processes: data only, never code.

A value is

    kind (1 byte)    length of the content (8 bytes, big-endian)    content

  N T F    None, True, False: no content
  i        a whole number, two's complement
  f        a float, the 8 bytes of IEEE 754: nan and -0.0 come back as they were
  s b      text as UTF-8, halves of surrogate pairs too; bytes
  ( [ {    tuple, list, dict: their parts one after another, of a dict key, value, key, value, ...
  I J      tuple, list of whole numbers of 64 bits, little-endian
  G H      tuple, list of floats, little-endian
  c        a dataclass or an enum that the caller names: its name, then its fields or its value

A sealed value is its HMAC-SHA256, its length and the value, compressed. The HMAC covers the place
of the message too, so that it is worth nothing elsewhere, and is checked before all else.
"""

import dataclasses
import enum
import hmac
import struct
import zlib

import numpy as np

MOST_BYTES = 2**32  # of an encoded value
MOST_DEPTH = 32  # of values in values
_HEAD, _FLOAT, _LENGTH = struct.Struct(">cQ"), struct.Struct(">d"), struct.Struct(">Q")
_MAC_BYTES = 32
_PLAIN = {b"N": None, b"T": True, b"F": False}
_SEQUENCES = {b"(": tuple, b"[": list}
_ARRAYS = {  # kind: (sequence, type of its items, dtype)
    b"I": (tuple, int, "<i8"),
    b"J": (list, int, "<i8"),
    b"G": (tuple, float, "<f8"),
    b"H": (list, float, "<f8"),
}


class Forged(RuntimeError):
    """A message was not sealed with the secret for its place."""


def encode(value, kinds=()):
    """Returns a value as bytes.

    kinds: the dataclasses and enums that it may hold.

    Raises:
      TypeError: it holds something else.
    """
    kind, content = _content(value, kinds, MOST_DEPTH)
    return _HEAD.pack(kind, len(content)) + content


def decode(data, kinds=()):
    """Returns the value of bytes; raises ValueError for bytes that `encode` does not write."""
    found = _values(memoryview(data), {kind.__name__: kind for kind in kinds}, MOST_DEPTH)
    if len(found) != 1:
        raise ValueError(f"A message holds {len(found)} values, not one.")
    return found[0]


def seal(data, *, secret, place):
    """Returns bytes compressed and sealed for a place, a text."""
    if len(data) > MOST_BYTES:
        raise ValueError(
            f"A message of {len(data) / 2**30:.1f} GiB is over the most, {MOST_BYTES / 2**30:.0f}: "
            "a process has that many tokens in a step. Use more processes or fewer questions."
        )
    packed = _LENGTH.pack(len(data)) + zlib.compress(data, level=1)
    return _mac(packed, secret, place) + packed


def unseal(sealed, *, secret, place):
    """Returns what was sealed; raises Forged, or ValueError for a length that is not as said."""
    packed = sealed[_MAC_BYTES:]
    if not hmac.compare_digest(sealed[:_MAC_BYTES], _mac(packed, secret, place)):
        raise Forged(f"The message {place} is not sealed with the secret of this run.")
    (length,) = _LENGTH.unpack_from(packed)
    if length > MOST_BYTES:
        raise ValueError(f"The message {place} says that it has {length} bytes.")
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(packed[_LENGTH.size :], length + 1)
    if len(data) != length or not unpacking.eof or unpacking.unused_data:
        raise ValueError(f"The message {place} has not the {length} bytes that it says.")
    return data


def _mac(packed, secret, place):
    return hmac.digest(secret, place.encode() + b"\0" + packed, "sha256")


def _content(value, kinds, depth):
    """Returns (kind, content) of a value."""
    if depth == 0:
        raise TypeError(f"A message holds values in values, more than {MOST_DEPTH} deep.")
    pack = lambda parts: b"".join(
        _HEAD.pack(kind, len(content)) + content
        for kind, content in (_content(part, kinds, depth - 1) for part in parts)
    )
    known = type(value)
    for kind, plain in _PLAIN.items():
        if value is plain:
            return kind, b""
    if known is int:
        return b"i", value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)
    if known is float:
        return b"f", _FLOAT.pack(value)
    if known is str:
        return b"s", value.encode("utf-8", "surrogatepass")
    if known is bytes:
        return b"b", value
    for kind, (sequence, item, dtype) in _ARRAYS.items():
        if known is sequence and {*map(type, value)} == {item}:
            try:
                return kind, np.array(value, dtype).tobytes()
            except OverflowError:
                break  # one by one
    for kind, sequence in _SEQUENCES.items():
        if known is sequence:
            return kind, pack(value)
    if known is dict:
        return b"{", pack(part for pair in value.items() for part in pair)
    if known in kinds and issubclass(known, enum.Enum):
        return b"c", pack((known.__name__, value.value))
    if known in kinds:
        fields = (getattr(value, field.name) for field in dataclasses.fields(value))
        return b"c", pack((known.__name__, *fields))
    raise TypeError(f"Processes cannot exchange {value!r:.200}, a {known.__name__}.")


def _values(data, kinds, depth):
    """Returns the values that lie one after another in a memoryview."""
    if depth == 0:
        raise ValueError(f"A message holds values in values, more than {MOST_DEPTH} deep.")
    found = []
    while data:
        if len(data) < _HEAD.size:
            raise ValueError(f"A message ends after {len(data)} bytes of a value.")
        kind, length = _HEAD.unpack_from(data)
        content, data = data[_HEAD.size :][:length], data[_HEAD.size :][length:]
        if len(content) != length:
            raise ValueError(f"A message ends after {len(content)} of {length} bytes.")
        try:
            found.append(_value(kind, content, kinds, depth))
        except (TypeError, KeyError, IndexError, struct.error) as error:
            raise ValueError(f"A message holds a {kind!r} that is none: {error}.") from error
    return found


def _value(kind, content, kinds, depth):
    if kind in _PLAIN and not content:
        return _PLAIN[kind]
    if kind == b"i":
        return int.from_bytes(content, "big", signed=True)
    if kind == b"f":
        return _FLOAT.unpack(content)[0]
    if kind == b"s":
        return str(content, "utf-8", "surrogatepass")
    if kind == b"b":
        return bytes(content)
    if kind in _ARRAYS:
        sequence, _, dtype = _ARRAYS[kind]
        return sequence(np.frombuffer(content, dtype).tolist())
    parts = _values(content, kinds, depth - 1)
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](parts)
    if kind == b"{":
        return dict(zip(parts[::2], parts[1::2], strict=True))
    if kind == b"c":
        return kinds[parts[0]](*parts[1:])
    raise ValueError(f"A message holds a value of kind {kind!r}.")
