"""Parquet files in batches, refused where they would grow to more than their size explains.

Compression and repetition let a few bytes stand for gigabytes, and the sizes in a file's footer
need not be true. So the headers of its pages are read first, which say what the reader will make
room for; and texts are read as dictionaries, whose size is known before they are spelt out.

Source: parquet.thrift of the Apache Parquet format; the Thrift compact protocol.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence

BATCH = 1024  # rows
# What a file may grow to: so much, and so much more for each of its bytes. A column of equal texts
# in rows of chats is packed 50 to 1; a row has a value in every column.
BYTES, BYTES_OF_BYTE = 256 * 2**20, 100
VALUES, VALUES_OF_BYTE = 2**20, 8
PAGES, BYTES_OF_PAGE = 2**15, 64  # pages, and one more for so many bytes of the file
HEADERS = (2**10, 2**13, 2**16, 2**20, 2**24)  # bytes of a page's header that are tried
FOOTER = 64 * 2**20  # bytes of one text of the footer


def batches(path: pathlib.Path, *, columns: Sequence[str] | None = None) -> Iterator:
    """Yields each pyarrow.RecordBatch of all columns, or of those of `columns` that there are.

    Raises:
      ValueError: it is no Parquet file, or grows to more than it may.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        size = path.stat().st_size
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(open(path, "rb"))
            limits = {"thrift_string_size_limit": FOOTER}
            footer = stack.enter_context(parquet.ParquetFile(path, **limits)).metadata
            paths = [footer.schema.column(i) for i in range(footer.num_columns)]
            top = lambda column: column.path.split(".")[0]
            read = [i for i, p in enumerate(paths) if columns is None or top(p) in columns]
            present = columns and [name for name in columns if name in map(top, paths)]
            _check_pages(raw, footer, read, size, path)
            texts = [paths[i].path for i in read if paths[i].physical_type == "BYTE_ARRAY"]
            file = stack.enter_context(parquet.ParquetFile(path, read_dictionary=texts, **limits))
            left = BYTES + BYTES_OF_BYTE * size
            for batch in file.iter_batches(BATCH, columns=present):
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
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return kind.value_type
    if types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type))
    if types.is_large_list(kind):
        return pa.large_list(_plain(kind.value_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type), kind.list_size)
    return pa.list_(_plain(kind.value_type)) if types.is_list(kind) else kind


def _expanded(array):
    """Returns the bytes of an Arrow array whose dictionaries are spelt out."""
    import pyarrow as pa
    from pyarrow import compute

    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = compute.binary_length(array.dictionary.cast(pa.large_binary()))
        return compute.sum(lengths.take(array.indices)).as_py() or 0
    if pa.types.is_map(kind):
        return _expanded(array.keys) + _expanded(array.items)
    if pa.types.is_struct(kind):
        return sum(map(_expanded, array.flatten()))
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return _expanded(array.flatten()) if any(is_one(kind) for is_one in is_list) else array.nbytes


# ---- pages -------------------------------------------------------------------------------------


def _check_pages(raw, footer, columns, size, path):
    """Raises ValueError if the pages of some columns would grow too large."""
    most_values, most_bytes = VALUES + VALUES_OF_BYTE * size, BYTES + BYTES_OF_BYTE * size
    values, grown, pages = max(footer.num_rows, 0), 0, PAGES + size // BYTES_OF_PAGE
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        for chunk in map(group.column, columns):
            at = min(
                filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)), default=0
            )
            end = at + chunk.total_compressed_size
            if not 0 < at <= end <= size:
                raise ValueError(f"{path} is damaged: a column lies outside of the file.")
            while at < end:
                try:
                    at, page_values, page_bytes = _page(raw, at)
                except (IndexError, KeyError, TypeError, RecursionError):
                    raise ValueError(f"{path} is damaged: byte {at:,} begins no page.") from None
                values, grown, pages = values + page_values, grown + page_bytes, pages - 1
                if values > most_values:
                    raise ValueError(_grown(path, size, "values", most_values))
                if pages < 0:
                    raise ValueError(f"{path} is damaged: its pages are too small.")
                if grown > most_bytes:
                    raise ValueError(_grown(path, size, "bytes", most_bytes))


def _page(raw, at):
    """Returns (where the next page begins, values, bytes once unpacked) of the page at a byte.

    Raises:
      IndexError, KeyError, TypeError, RecursionError: there is none.
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
    unpacked, packed = header[2], header[3]
    if min(unpacked, packed) < 0:
        raise IndexError
    data_page = header.get(5) or header.get(8)  # version 1 or 2
    return at + used + packed, max(0, data_page[1]) if data_page else 0, unpacked


def _struct(data, at, depth):
    """Returns ({field: integer, struct or None for other kinds}, end) of a Thrift struct."""
    if depth > 8:
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
        for _ in range(length):
            _, at = _value(data, at + (byte & 15 in (1, 2)), byte & 15, depth + 1)
        return None, at
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
