"""Rows of JSONL, JSON, CSV and Parquet files and of TFDS folders, with their places.

Every reader yields (place, row). A row that cannot be read comes as the `BadField` to report, so
that one error can name all of them; a file that cannot be read raises ValueError.
"""

import csv
import decimal
import io
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping

import numpy as np

from flow_grpo_jax.bounds import files, json_text
from flow_grpo_jax.datasets import features, parquet_file
from flow_grpo_jax.datasets.fields import BadField, shown

MAX_LIST = 2**30  # bytes of a .json file with a list of questions
_BOM = b"\xef\xbb\xbf"  # byte order mark of UTF-8, as Windows writes it


def rows(path: pathlib.Path) -> Iterator[tuple[str, object]]:
    """Yields (place, row) for every row, the place as an error names it: "line 3", "row 0"."""
    if path.is_dir():
        return _tfds_rows(path)
    if not path.exists():
        raise ValueError(f"There is no file or folder {path}.")
    if not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder.")
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise ValueError(
            f"{path} ends in {path.suffix!r}; expected .jsonl, .json, .parquet or a TFDS folder."
        )
    return readers[path.suffix](path)


def csv_rows(path: pathlib.Path) -> Iterator[tuple[str, object]]:
    """Yields (place, row) of a .csv file that begins with the names of its columns.

    All values are texts, and a row has no field where its cell is empty. Of columns of one name the
    first counts.
    """
    try:
        text = _decoded(files.read_bytes(path, most=MAX_LIST).removeprefix(_BOM))
    except BadField as problem:
        raise ValueError(f"{path} {problem}.") from None
    cells_of = csv.reader(io.StringIO(text, newline=""), strict=True)
    header, line = None, 1
    try:
        for cells in cells_of:
            place, line = f"line {line}", cells_of.line_num + 1
            if not cells:
                continue
            if header is None:
                header = [name.strip() for name in cells]
            elif len(cells) != len(header):
                yield place, BadField(f"has {len(cells)} cells; the first line has {len(header)}")
            else:
                pairs = reversed(list(zip(header, cells, strict=True)))
                yield place, {name: cell for name, cell in pairs if cell}
    except csv.Error as problem:
        raise ValueError(f"{path}, line {line}, is not CSV: {problem}.") from None


def json_lines(path: pathlib.Path) -> Iterator[tuple[int, object]]:
    """Yields (line number from 1, value) for every line that is not blank, one at a time."""
    with path.open("rb") as file:
        for number, line in enumerate(files.lines(file), start=1):
            if line is None:
                yield number, BadField(f"has more than {files.MAX_LINE:,} bytes")
                continue
            if not (line := line.removeprefix(_BOM).strip()):
                continue
            try:
                row = _parsed(line, files.MAX_LINE)
            except json.JSONDecodeError as problem:
                row = BadField(f"is not JSON ({problem}): {shown(line.decode())}")
            except BadField as problem:
                row = problem
            yield number, row


def _parsed(data: bytes, most: int):
    """Returns the JSON value of at most `most` bytes.

    Raises JSONDecodeError; BadField for what is JSON, but cannot be read.
    """
    text = _decoded(data)
    try:
        return json_text.parse(text, most=most, parse_int=_whole_number)
    except (json.JSONDecodeError, BadField):
        raise
    except ValueError as problem:
        raise BadField(f"cannot be read: {problem}") from None


def _decoded(data: bytes) -> str:
    """Returns text in UTF-8; raises BadField."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        before = data[: problem.start]
        number = before.count(b"\n") + 1
        line = f" in line {number}" if number > 1 else ""
        raise BadField(
            f"is not UTF-8: byte 0x{data[problem.start]:02x}{line} after "
            f"{shown(before[-20:].decode('utf-8', 'replace'))}; save it as UTF-8"
        ) from None


def _whole_number(digits: str) -> int:
    most = sys.get_int_max_str_digits()
    if most and len(digits) > most:
        raise BadField(
            f"holds a number of {len(digits)} digits, {digits[:12]}…; the most are {most}"
        )
    return int(digits)


def _jsonl_rows(path):
    yield from ((f"line {number}", row) for number, row in json_lines(path))


def _json_rows(path):
    try:
        found = _parsed(files.read_bytes(path, most=MAX_LIST).removeprefix(_BOM), MAX_LIST)
    except json.JSONDecodeError as problem:
        raise ValueError(
            f"{path} is not JSON: {problem}. One object a line? Call it .jsonl."
        ) from None
    except BadField as problem:
        raise ValueError(f"{path} {problem}.") from None
    if not isinstance(found, list):
        raise ValueError(f"{path} holds {shown(found)}; expected a list of questions.")
    yield from ((f"row {number}", row) for number, row in enumerate(found))


def _parquet_rows(path):
    first = 0
    for batch in parquet_file.batches(path):
        columns = [field for field in batch.schema if _differs(field.type)]
        try:
            found = batch.to_pylist()
        except UnicodeDecodeError:
            found = [_parquet_row(batch.slice(index, 1)) for index in range(batch.num_rows)]
        for number, row in enumerate(found, start=first):
            if not isinstance(row, BadField):
                row |= {c.name: _as_json(row[c.name], c.type) for c in columns}
                # Parquet has a column for every row: an absent optional field is a null.
                row = {name: value for name, value in row.items() if value is not None}
            yield f"row {number}", row
        first += batch.num_rows


def _parquet_row(batch):
    for name in batch.schema.names:
        try:
            batch[name].to_pylist()
        except UnicodeDecodeError as problem:
            return BadField(f"field {name!r} is not UTF-8: {problem}")
    [row] = batch.to_pylist()
    return row


def _differs(kind) -> bool:
    """Returns whether values of an Arrow type are not yet what the same row in JSON holds."""
    from pyarrow import types

    if types.is_nested(kind):
        return any(_differs(kind.field(i).type) for i in range(kind.num_fields))
    same = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean)
    return not any(is_one(kind) for is_one in (*same, types.is_float64, types.is_null))


def _as_json(value, kind):
    """Returns a value of an Arrow type as JSON has it: dates, decimals and bytes as text.

    A float32 becomes the shortest decimal that means it: 0.1 is stored as 0.100000001490116…, which
    is what a conversion to float64 would show.
    """
    from pyarrow import types

    if value is None or types.is_map(kind):
        return value
    if types.is_float16(kind) or types.is_float32(kind):
        narrow = np.float16 if types.is_float16(kind) else np.float32
        return float(str(narrow(value)))
    if types.is_struct(kind):
        return {field.name: _as_json(value[field.name], field.type) for field in kind}
    if isinstance(value, list):
        return [_as_json(part, kind.value_type) for part in value]
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str | int | float) else str(value)


def _tfds_rows(path):
    if not (path / "dataset_info.json").exists():
        raise ValueError(
            f"{path} has no dataset_info.json; a TFDS folder is .../<name>/[<config>/]<version>."
        )
    features.check(path)
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path)
    splits = sorted(builder.info.splits)
    if len(splits) != 1:
        raise ValueError(
            f"{path} has the splits {', '.join(splits)}; expected one. Export the one you want as "
            ".jsonl or .parquet."
        )
    [split] = splits
    for shard in builder.info.splits[split].filepaths:  # dataset_info.json says how they are named
        if os.path.dirname(os.path.abspath(shard)) != os.path.abspath(path):
            raise ValueError(
                f"{path}/dataset_info.json names {shard}, which is not in that folder."
            )
    for number, row in enumerate(builder.as_data_source(split)):
        try:
            row = {name: _from_tfds(value) for name, value in row.items()}
            # TFDS has every feature in every row: an absent optional field is an empty list.
            row = {name: value for name, value in row.items() if value != []}
        except UnicodeDecodeError as problem:
            row = BadField(f"is not UTF-8: {problem}")
        yield f"{split} row {number}", row


def _from_tfds(value):
    """Turns bytes into str, numpy arrays into lists and numbers; keeps other values."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype in (np.float16, np.float32):
            value = value.astype(str).astype(np.float64)  # the shortest decimal that means it
        value = value.tolist()
        return _from_tfds(value) if isinstance(value, bytes | list) else value
    if isinstance(value, Mapping):
        return {name: _from_tfds(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_from_tfds(part) for part in value]
    return value
