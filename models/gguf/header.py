"""The header of a GGUF file, llama.cpp's format: what it says, and where its tensors lie.

A file is: "GGUF", version, number of tensors, number of values; the values, each with its name and
type; for each tensor name, sizes (fastest first), type and offset; then the tensors.

Source: "GGUF" in the documentation of ggml.
"""

import dataclasses
import functools
import math
import os
from typing import Any

import numpy as np

MAGIC, VERSIONS = b"GGUF", (2, 3)
ALIGNMENT = 32  # bytes, where `general.alignment` says nothing
# Most of what a header may hold; the largest vocabularies need 16 MiB and 1.5 million items.
MOST_BYTES, MOST_ITEMS = 2**26, 2**22  # items of all lists together
MOST_VALUES, MOST_TENSORS, MOST_DIMENSIONS = 2**14, 2**17, 4
TEXT, ARRAY = 8, 9
NUMBERS = {  # number of a type -> how struct and NumPy call it
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file: shape with rows first, number of its type, first byte in the file."""

    shape: tuple[int, ...]
    type: int
    start: int


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says.

    values: {name: number, bool, text, or list of one of them}.
    tensors: {name: Tensor}.
    size: bytes of the file.
    """

    values: dict[str, Any]
    tensors: dict[str, Tensor]
    size: int


def read(path):
    """Returns the Header of a file.

    Raises:
      ValueError: it is no GGUF file, damaged, or over a bound.
    """
    status = os.stat(path)
    return _read(str(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(8)
def _read(path, size, _):
    advice = "Download it again."
    with open(path, "rb") as file:
        if size < len(MAGIC) or file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{path} ({size:,} bytes) is no GGUF file. {advice}")
        try:
            return _parsed(_Cursor(file, len(MAGIC)), size)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}. {advice}") from error


class _Cursor:
    """Reads one thing after another from a file, which stands at byte `at`."""

    def __init__(self, file, at):
        self._file, self.at, self._items = file, at, 0

    def number(self, kind):
        return self.numbers(kind, 1)[0].item()

    def numbers(self, kind, count):
        dtype = np.dtype(kind)
        raw = self._bytes(count * dtype.itemsize)
        return np.frombuffer(raw, dtype)

    def count(self, what, most):
        count = self.number("<u8")
        if count > most:
            raise ValueError(f"it has {count:,} {what}; the most are {most:,}")
        return count

    def text(self):
        size = int.from_bytes(self._bytes(8), "little")
        return self._bytes(size).decode("utf-8", "replace")

    def value(self):
        kind = self.number("<u4")
        if kind != ARRAY:
            return self._scalar(kind)
        kind, count = self.number("<u4"), self.count("items in a list", MOST_ITEMS)
        self._items += count
        if self._items > MOST_ITEMS:
            raise ValueError(f"its lists have over {MOST_ITEMS:,} items")
        if kind == TEXT:
            return [self.text() for _ in range(count)]
        return self.numbers(_number(kind), count).tolist()

    def _scalar(self, kind):
        return self.text() if kind == TEXT else self.number(_number(kind))

    def _bytes(self, count):
        if self.at + count > MOST_BYTES:
            raise ValueError(f"its header has over {MOST_BYTES:,} bytes")
        raw = self._file.read(count)
        if len(raw) < count:
            raise ValueError(f"it ends at byte {self.at + len(raw):,}, in its header")
        self.at += count
        return raw


def _number(kind):
    if kind not in NUMBERS:
        raise ValueError(f"it holds a value of the unknown type {kind}")
    return NUMBERS[kind]


def _parsed(cursor, size):
    version = cursor.number("<u4")
    if version not in VERSIONS:
        raise ValueError(f"its version is {version}; {' and '.join(map(str, VERSIONS))} are read")
    tensors, values = cursor.count("tensors", MOST_TENSORS), cursor.count("values", MOST_VALUES)
    named, found = {}, {}
    for _ in range(values):
        name = cursor.text()
        if name in named:
            raise ValueError(f"its value {name:.80} is there twice")
        named[name] = cursor.value()
    for _ in range(tensors):
        name = cursor.text()
        dimensions = cursor.number("<u4")
        if not 0 < dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"its tensor {name:.80} has {dimensions} dimensions")
        if name in found:
            raise ValueError(f"its tensor {name:.80} is there twice")
        shape = tuple(cursor.numbers("<u8", dimensions).tolist()[::-1])
        if not 0 < math.prod(shape) < 2**63:
            raise ValueError(f"its tensor {name:.80} has the shape {shape}")
        found[name] = Tensor(shape, cursor.number("<u4"), cursor.number("<u8"))
    alignment = named.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 2**16:
        raise ValueError(f"its alignment is {alignment!r:.40}")
    start = -(-cursor.at // alignment) * alignment
    found = {
        name: dataclasses.replace(tensor, start=start + tensor.start)
        for name, tensor in found.items()
    }
    return Header(named, found, size)
