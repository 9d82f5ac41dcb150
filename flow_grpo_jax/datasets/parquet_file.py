"""Parquet files in batches, refused where they would grow to more than their size explains.

Compression and repetition let a few bytes stand for gigabytes, and the sizes in a file's footer
need not be true. So the footer and the headers of pages are read here first, which say what the
reader will make room for (what pyarrow tells of a damaged footer can abort the process). Texts that
repeat, which a page holds as numbers of a dictionary, count as they are spelt out: exactly where a
column is flat, by the longest text of the dictionary where it is nested.

Source: parquet.thrift of the Apache Parquet format; the Thrift compact protocol.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence

BATCH = 1024  # rows
# What a file may grow to: so much, and so much more for each of its bytes. A column of equal texts
# in rows of chats is packed 50 to 1; a row has a value in every column.
BYTES, BYTES_OF_BYTE = 256 * 2**20, 100
VALUES, VALUES_OF_BYTE = 2**20, 8
PAGES, BYTES_OF_PAGE = 2**15, 64  # pages, and one more for so many bytes of the file
HEADERS = (2**10, 2**13, 2**16, 2**20, 2**24)  # bytes of a page's header that are tried
FOOTER = 2**24  # bytes; a thousand groups of rows with a hundred columns have as many
_DAMAGED = (AttributeError, IndexError, KeyError, RecursionError, TypeError)
SPELT = 4  # times so many bytes may the upper bound for nested texts be
DICTIONARY = 2  # kind of a page
# Encodings: numbers of a dictionary; all lengths, then all texts; a text begins as the one before.
BY_DICTIONARY, BY_LENGTH, BY_PREFIX = (2, 8), 6, 7
CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
MAGIC = b"PAR1"  # first and last bytes of a file


def batches(path: pathlib.Path, *, columns: Sequence[str] | None = None) -> Iterator:
    """Yields each pyarrow.RecordBatch of all columns, or of those of `columns` that there are.

    Raises:
      ValueError: it is no Parquet file, or grows to more than it may.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(path.open("rb"))
            size = raw.seek(0, os.SEEK_END)
            opened = lambda **how: stack.enter_context(
                parquet.ParquetFile(path, thrift_string_size_limit=FOOTER, **how)
            )
            about = opened()
            schema, tops = about.schema, about.schema_arrow.names
            leaves = [schema.column(i) for i in range(len(schema.names))]
            texts = [leaf.physical_type == "BYTE_ARRAY" for leaf in leaves]
            nested = ["." in leaf.path and text for leaf, text in zip(leaves, texts, strict=True)]
            groups, by_length = _check_pages(raw, path, size, nested)
            if by_length:  # pyarrow reads no dictionaries of these
                nested = [inner or i in by_length for i, inner in enumerate(nested)]
                _check_pages(raw, path, size, nested)
            flat = [
                leaf.path
                for leaf, text, inner in zip(leaves, texts, nested, strict=True)
                if text and not inner
            ]
            present = columns and [name for name in columns if name in tops]
            file = opened(read_dictionary=flat)
            left = BYTES + BYTES_OF_BYTE * size
            read = (file.iter_batches(BATCH, row_groups=[g], columns=present) for g in groups)
            for batch in itertools.chain.from_iterable(read):
                left -= sum(map(_expanded, batch.columns))
                if left < 0:
                    raise ValueError(_grown(path, size, "bytes", BYTES + BYTES_OF_BYTE * size))
                arrays = [column.cast(_plain(column.type)) for column in batch.columns]
                yield pyarrow.RecordBatch.from_arrays(arrays, names=batch.schema.names)
    except (pyarrow.ArrowException, OSError) as problem:
        raise ValueError(f"{path} cannot be read as Parquet: {problem}") from None


def _grown(path, size, what, most):
    return (
        f"{path} ({size:,} bytes) grows to more than {most:,} {what}, which no file of questions "
        "or documents does. If it is right, write it as .jsonl."
    )


def _plain(kind):
    """Returns an Arrow type without dictionaries."""
    from pyarrow import types

    return kind.value_type if types.is_dictionary(kind) else kind


def _expanded(array):
    """Returns the bytes of an Arrow array; a dictionary is spelt out."""
    import pyarrow as pa
    from pyarrow import compute

    if not pa.types.is_dictionary(array.type):
        return array.nbytes
    if not pa.types.is_primitive(array.type.value_type):
        lengths = compute.binary_length(array.dictionary.cast(pa.large_binary()))
        return compute.sum(lengths.take(array.indices)).as_py() or 0
    return len(array) * 8


# ---- pages -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Page:
    """What the header of a page says: values of a data page, bytes as it lies and unpacked.

    start, stop: bytes of the file. encoding: of a data page; None is a dictionary.
    """

    values: int
    unpacked: int
    start: int
    stop: int
    encoding: int | None


def _check_pages(raw, path, size, nested):
    """Returns ([group that has rows], {column with a page BY_LENGTH}), both by their numbers.

    nested: for each column, whether its texts are spelt out: as those inside of lists or groups.

    Raises:
      ValueError: the file's pages would grow too large.
    """
    most_values, most_bytes = VALUES + VALUES_OF_BYTE * size, BYTES + BYTES_OF_BYTE * size
    try:
        rows, groups, chunks = _footer(raw, size, len(nested))
        by_length = set()
        values, grown, spelt, pages = max(rows, 0), 0, 0, PAGES + size // BYTES_OF_PAGE
        for column, start, end, codec in chunks:
            at, longest = start, 0
            while at < end:
                page = _page(raw, at)
                at, pages = page.stop, pages - 1
                values, grown = values + page.values, grown + page.unpacked
                if page.encoding is None and nested[column] and grown <= most_bytes:
                    longest = max(longest, _longest(raw, page, codec))
                elif page.encoding in BY_DICTIONARY:
                    spelt += page.values * longest
                if values > most_values:
                    raise ValueError(_grown(path, size, "values", most_values))
                if grown > most_bytes or spelt > SPELT * most_bytes:
                    raise ValueError(_grown(path, size, "bytes", most_bytes))
                if page.encoding == BY_PREFIX:
                    raise ValueError(
                        f"{path} has a column in the encoding DELTA_BYTE_ARRAY, which is not read. "
                        "Write it with another one, or as .jsonl."
                    )
                if page.encoding == BY_LENGTH:
                    by_length.add(column)
                if pages < 0:
                    raise ValueError(f"{path} is damaged: its pages are too small.")
        return groups, by_length
    except _DAMAGED:
        raise ValueError(f"{path} is damaged, or no Parquet file.") from None


def _footer(raw, size, columns):
    """Returns (rows, groups, chunks) of a file.

    groups: numbers of the groups of rows that have any.
    chunks: [(column, first byte of its pages, end, codec)] of all columns of these groups.

    Raises:
      one of _DAMAGED: it is no footer of so many columns.
    """
    raw.seek(max(0, size - 8))
    length, magic = raw.read(4), raw.read(4)
    start = size - 8 - int.from_bytes(length, "little")
    if magic != MAGIC or start < len(MAGIC) or size - start > FOOTER:
        raise IndexError
    raw.seek(start)
    footer, _ = _struct(raw.read(size - 8 - start), 0, 0)
    groups, chunks = [], []
    for number, group in enumerate(footer[4]):
        if len(group[1]) != columns:
            raise IndexError
        if group[3] < 1:  # what it says of its columns need not be true
            continue
        groups.append(number)
        for column, chunk in enumerate(group[1]):
            about = chunk[3]
            first = min(about.get(11) or about[9], about[9])  # of its dictionary, or its data
            end = first + about[7]
            if not 0 < first <= end <= start:
                raise IndexError
            chunks.append((column, first, end, about[4]))
    return footer[3] + 0, groups, chunks


def _page(raw, at):
    """Returns the Page that begins at a byte.

    Raises:
      one of _DAMAGED: there is none.
    """
    for length in HEADERS:
        raw.seek(at)
        data = raw.read(length)
        try:
            header, used = _struct(data, 0, 0)
            break
        except IndexError:
            if len(data) < length or length == HEADERS[-1]:
                raise
    unpacked, packed, start = header[2], header[3], at + used
    if min(unpacked, packed) < 0 or len(data) < used:
        raise IndexError
    if header[1] == DICTIONARY:
        return Page(0, unpacked, start, start + packed, None)
    version_1, version_2 = header.get(5), header.get(8)
    values, encoding = (version_1[1], version_1[2]) if version_1 else (version_2[1], version_2[4])
    return Page(max(0, values), unpacked, start, start + packed, encoding)


def _longest(raw, page, codec):
    """Returns the bytes of the longest text of a dictionary, or more."""
    import pyarrow

    if codec and codec not in CODECS:
        return page.unpacked
    raw.seek(page.start)
    data = raw.read(page.stop - page.start)
    if codec:
        data = pyarrow.decompress(data, page.unpacked, CODECS[codec], asbytes=True)
    at = longest = 0
    while at + 4 <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        longest, at = max(longest, length), at + 4 + length
    return longest


def _struct(data, at, depth):
    """Returns ({field: integer, struct, list of them, None for other kinds}, end) of a struct."""
    if depth > 16:
        raise RecursionError
    fields, field = {}, 0
    while byte := data[at]:
        at, kind = at + 1, byte & 15
        if byte >> 4:
            field += byte >> 4
        else:
            field, at = _integer(data, at)
        fields[field], at = _value(data, at, kind, depth)
    return fields, at + 1


def _value(data, at, kind, depth):
    if kind in (1, 2):  # true, false
        return None, at
    if kind == 3:  # a byte
        return None, at + 1
    if kind in (4, 5, 6):
        return _integer(data, at)
    if kind == 7:  # a float
        return None, at + 8
    if kind == 8:  # bytes
        length, at = _varint(data, at)
        return None, at + length
    if kind in (9, 10):  # a list, a set
        byte, at = data[at], at + 1
        length = byte >> 4
        if length == 15:
            length, at = _varint(data, at)
        if length > len(data):
            raise IndexError
        found = []
        for _ in range(length):
            value, at = _value(data, at + ((byte & 15) in (1, 2)), byte & 15, depth + 1)
            found.append(value)
        return found, at
    if kind == 12:
        return _struct(data, at, depth + 1)
    raise TypeError


def _integer(data, at):
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data, at):
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise TypeError
