"""The safetensors format by byte ranges.

Any rows of a tensor are read alone, and tensors are written one after another: a whole file is
never in memory.

A file is the length of the header (8 bytes, little-endian), the header (JSON: for each tensor
dtype, shape and byte range after the header), then the values in row-major order.

Source: the description of the format in the repository of the `safetensors` library.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable

import ml_dtypes
import numpy as np

from flow_grpo_jax.bounds import json_text

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
LENGTH = 8  # bytes of the header's length
MAX_HEADER = 100 * 2**20  # bytes, as the library accepts
MAX_RANK = 16  # dimensions of a tensor
BLOCK = 16 * 2**20  # bytes of one request
ALIGNMENT = 64  # bytes; XLA:CPU uses an array with this alignment where it lies


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor of a file: dtype as the file spells it, shape, bytes start..stop of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor to write: `fetch()` returns its numpy array when its turn comes."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    fetch: Callable[[], np.ndarray]

    @property
    def nbytes(self):
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Pending:
    """An array that threads are filling."""

    def __init__(self, array, jobs):
        self._array, self._jobs = array, jobs

    def result(self):
        """Returns the filled array.

        Raises:
          OSError: a part could not be read.
        """
        for job in self._jobs:
            job.result()
        return self._array


class File:
    """A safetensors file that is read in parts; closed by `close` or a with statement.

    Attributes:
      name: of the file in its folder.
      entries: {tensor name: Entry}.
    """

    def __init__(self, folder, name):
        """Reads the header.

        Args:
          folder: folders.Folder.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is no safetensors file, not as long as its header says, or a link that
            `Folder.source` refuses.
        """
        self.name, self._files, self._path = name, folder.files, folder.source(name)
        self._descriptor = None if folder.remote else os.open(self._path, os.O_RDONLY)
        try:
            self.entries = self._entries(f"{folder}/{name}")
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read_rows(self, name, start, stop, *, pool, padded_to=0):
        """Starts to read rows start..stop of a tensor, along its first dimension.

        Args:
          pool: the executor whose threads read.
          padded_to: rows of the array if it is to have more; they are 0.

        Returns:
          Pending.
        """
        entry = self.entries[name]
        dtype = np.dtype(DTYPES[entry.dtype])
        row = (entry.stop - entry.start) // entry.shape[0]
        size, rows = (stop - start) * row, max(stop - start, padded_to)
        raw = aligned(rows * row)
        raw[size:] = 0
        jobs = [
            pool.submit(self._fill, raw[at : min(at + BLOCK, size)], entry.start + start * row + at)
            for at in range(0, size, BLOCK)
        ]
        return Pending(raw.view(dtype).reshape(rows, *entry.shape[1:]), jobs)

    def _fill(self, raw, offset):
        """Reads the bytes of the file from `offset` on into all of `raw`."""
        if self._descriptor is None:
            raw[:] = np.frombuffer(
                self._files.cat_file(self._path, offset, offset + len(raw)), np.uint8
            )
            return
        fill(raw, self._descriptor, offset, path=self._path)

    def _entries(self, place):
        size = self._files.size(self._path)
        length = np.zeros(LENGTH, np.uint8)
        if size >= LENGTH:
            self._fill(length, 0)
        header_bytes = int(length.view("<u8")[0])
        if not 0 < header_bytes <= min(size - LENGTH, MAX_HEADER):
            raise ValueError(f"{place} ({size} bytes) is no safetensors file. Download it again.")
        raw = np.empty(header_bytes, np.uint8)
        self._fill(raw, LENGTH)
        header = json_text.as_object(raw.tobytes(), f"{place}: the header")
        header.pop("__metadata__", None)
        base = LENGTH + header_bytes
        entries = {name: _entry(value, base, place, name) for name, value in header.items()}
        needed = base
        for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.stop)):
            if entry.start != needed:
                raise ValueError(f"{place}: its tensors overlap or leave gaps. Download it again.")
            needed = entry.stop
        if needed != size:
            raise ValueError(
                f"{place} has {size} bytes, its header says {needed}. Download it again."
            )
        return entries


def _entry(value, base, place, name):
    """Returns the Entry of a tensor that the header describes; `base`: bytes before the data."""
    try:
        dtype, shape, (start, stop) = value["dtype"], value["shape"], value["data_offsets"]
        whole = isinstance(dtype, str) and len(shape) <= MAX_RANK
        whole = whole and all(type(n) is int and 0 <= n < 2**63 for n in (*shape, start, stop))
    except (KeyError, TypeError, ValueError):
        whole = False
    if whole and dtype in DTYPES:
        whole = stop - start == math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if not whole or stop < start:
        raise ValueError(f"{place}: {name:.80} {value!r:.200} contradicts itself.")
    return Entry(dtype, tuple(shape), base + start, base + stop)


def fill(raw, descriptor, offset, *, path):
    """Reads the bytes of an open file from `offset` on into all of `raw`, uint8 [size].

    Raises:
      OSError: it ends before, since somebody cuts it.
    """
    view, done = memoryview(raw), 0
    while done < len(raw):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if not count:
            raise OSError(f"{path} ended at byte {offset + done} while it was read.")
        done += count


def aligned(size):
    """Returns uninitialised uint8 [size] at an aligned address."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def write(folder, name, tensors, *, metadata=None):
    """Writes a file, one tensor in memory at a time.

    Args:
      folder: folders.Folder; None fetches every tensor in the order of the file and writes nothing,
        as other processes must where fetching is a collective.
      tensors: iterable of Tensor. Wider dtypes come first in the file, so that all are aligned.
      metadata: {str: str}, e.g. {"format": "pt"} for transformers.
    """
    tensors = sorted(tensors, key=lambda tensor: -np.dtype(tensor.dtype).itemsize)
    if folder is None:
        for tensor in tensors:
            tensor.fetch()
        return
    header, offset = {"__metadata__": metadata} if metadata else {}, 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": NAMES[np.dtype(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with folder.writing(name) as file:
        file.write(len(text).to_bytes(LENGTH, "little") + text)
        for tensor in tensors:
            array = np.ascontiguousarray(tensor.fetch())
            assert array.dtype == tensor.dtype and array.shape == tuple(tensor.shape), tensor.name
            file.write(array.reshape(-1).view(np.uint8).data)
            del array
