"""Parquet files that would grow to gigabytes are refused; all others read as pyarrow reads them."""

import datetime
import decimal
import os
import pathlib
import resource
import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from flow_grpo_jax.datasets import parquet_file


def rows(path, **how):
    return [row for batch in parquet_file.batches(path, **how) for row in batch.to_pylist()]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_rows_are_those_of_pyarrow(tmp_path, version, compression):
    count = 3_000
    table = pa.table(
        {
            "text": [None if i % 7 == 0 else f"text {i % 50} é" for i in range(count)],
            "large": pa.array([f"{i}" for i in range(count)], pa.large_string()),
            "categories": pa.array(["a", None, "b"] * (count // 3)).dictionary_encode(),
            "bytes": [b"\xff", None] * (count // 2),
            "list": [["x"] * (i % 3) for i in range(count)],
            "chat": [
                [{"role": "user", "content": f"{i}"}, {"role": "a", "content": None}]
                for i in range(count)
            ],
            "map": pa.array([[("k", "v")]] * count, pa.map_(pa.string(), pa.string())),
            "number": list(range(count)),
            "day": [datetime.date(2020, 1, 1)] * count,
            "price": [decimal.Decimal("1.50")] * count,
            "pair": pa.array([[1.0, 2.0]] * count, pa.list_(pa.float32(), 2)),
            "empty": pa.nulls(count),
            "with.dot": [f"{i % 3}" for i in range(count)],
            "inner": pa.array([["a"]] * count, pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        }
    )
    path = tmp_path / "x.parquet"
    parquet.write_table(
        table,
        path,
        compression=compression,
        data_page_version=version,
        row_group_size=1_700,
        dictionary_pagesize_limit=2_000,  # so that columns begin with a dictionary and go on plain
        data_page_size=1_000,
    )
    assert rows(path) == table.to_pylist()
    picked = rows(path, columns=("number", "with.dot", "absent"))
    assert picked == table.select(["number", "with.dot"]).to_pylist()
    parquet.write_table(table[:0], path)  # a group of no rows, whose pages begin nowhere
    assert rows(path) == []


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_LENGTH_BYTE_ARRAY"])
def test_texts_without_a_dictionary_are_read(tmp_path, encoding):
    path, table = tmp_path / "x.parquet", pa.table({"a": ["x", None, "yy"], "b": [["z"]] * 3})
    how = {"a": encoding, "b.list.element": encoding}  # as DuckDB writes version 2 of the format
    parquet.write_table(table, path, use_dictionary=False, column_encoding=how)
    assert rows(path) == table.to_pylist()


def repeated(path):
    table = pa.table({"question": pa.array([0] * 3_000_000, pa.int8())})
    parquet.write_table(table, path)


def one_long_list(path):
    parquet.write_table(pa.table({"question": [[0] * 3_000_000]}), path)


def nothing(path):
    parquet.write_table(pa.table({"question": pa.nulls(3_000_000)}), path)


def dictionary(path):
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), ["x" * 10**6])
    parquet.write_table(pa.table({"question": words}), path, compression="zstd")


def chats(path):
    chat = [{"role": "x" * 10**6, "content": "y"}]
    words = pa.array([chat[0]["role"]] * 4)
    inner = pa.StructArray.from_arrays([pa.concat_arrays([words] * 100)], names=["role"])
    lists = pa.ListArray.from_arrays(pa.array(range(401), pa.int32()), inner)
    parquet.write_table(pa.table({"question": lists}), path, compression="zstd")


def packed(path):
    table = pa.table({"question": ["x" * 40_000_000]})
    parquet.write_table(table, path, compression="zstd", use_dictionary=False)


def untrue(path):
    """A page says that it grows to 1 MB; the footer says nothing of it."""
    table = pa.table({"question": ["x" * 70_000]})
    parquet.write_table(table, path, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    # Field 2 of the header, an i32: a zigzag varint of 70010; the most that its three bytes hold.
    at = content.index(b"\x15\x00\x15") + 3
    assert content[at : at + 3] == b"\xf4\xc5\x08"
    content[at : at + 3] = b"\xfe\xff\x7f"
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (repeated, "values"),
        (one_long_list, "values"),
        (nothing, "values"),
        (dictionary, "bytes"),
        (chats, "bytes"),
        (packed, "bytes"),
    ],
)
def test_a_small_file_that_grows_is_refused(tmp_path, monkeypatch, write, what):
    monkeypatch.setattr(parquet_file, "BYTES", 2**25)  # an eighth, for speed
    path = tmp_path / "x.parquet"
    write(path)
    assert path.stat().st_size < 60_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=rf"x\.parquet .* grows to more than [\d,]+ {what}"):
        rows(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10  # KiB


def test_an_encoding_by_prefixes_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    encoding = {"a": "DELTA_BYTE_ARRAY"}
    table = pa.table({"a": ["xy", "xyz"]})
    parquet.write_table(table, path, use_dictionary=False, column_encoding=encoding)
    with pytest.raises(ValueError, match=r"x\.parquet has a column in the encoding DELTA_BYTE"):
        rows(path)


def test_sizes_are_those_of_the_pages_and_not_of_the_footer(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    untrue(path)
    monkeypatch.setattr(parquet_file, "BYTES", 1)
    monkeypatch.setattr(parquet_file, "BYTES_OF_BYTE", 2)  # 140 kB of the file's 70
    with pytest.raises(ValueError, match="grows to more than 14.* bytes"):
        rows(path)


@pytest.mark.parametrize("cut", [-1, -9, -300, 4])
def test_what_is_damaged_is_named(tmp_path, cut):
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"a": ["x"] * 10}), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"x\.parquet"):
        rows(path)


def changed_bytes(path):
    parquet.write_table(pa.table({"a": ["x", "yy"] * 5, "b": [[1], []] * 5}), path)
    content = path.read_bytes()
    for at in range(4, len(content), 2):
        for value in (0xFF, content[at] ^ 1):
            path.write_bytes(content[:at] + bytes([value]) + content[at + 1 :])
            try:
                rows(path)
            except UnicodeDecodeError:
                pass
            except ValueError as error:
                assert path.name in str(error), (at, value, error)


def test_any_changed_byte_gives_rows_or_one_error(tmp_path):
    """In another process, which Arrow may abort."""
    code = "import pathlib, sys, test_parquet_file as t; t.changed_bytes(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "x.parquet")]
    paths = {"PYTHONPATH": f"{pathlib.Path(__file__).parent}:{pathlib.Path.cwd()}"}
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **paths})
    assert run.returncode == 0, run.stderr[-2000:]
