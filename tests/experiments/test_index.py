"""The index command: JSONL and Parquet, streaming, and what it says of bad rows."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import index
from experiments.running import command
from experiments.speed import search
from tests.tools import settings
from tools import text_index

ROWS = [
    {"title": "Lake Baikal", "text": "A deep lake.", "url": "https://w/Baikal"},
    {"title": "Omul", "text": "A fish.", "url": None},
]


def test_jsonl_and_parquet_become_one_index(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "b.parquet")
    out = tmp_path / "index.sqlite"
    arguments = [sys.executable, "-m", "experiments.index", f"--source={tmp_path}/[ab].*"]
    run = subprocess.run([*arguments, f"--out={out}"], capture_output=True, text=True)
    assert run.returncode == 0 and "4 documents" in run.stderr
    opened = text_index.Index.open(out)
    assert opened.documents == 4 and opened.search("omul", top_k=1) == [("Omul", "A fish.", "")]
    opened.close()
    tool = settings.make("wikipedia_search", index=str(out), top_k=1)
    assert tool.run(query="baikal") == "Lake Baikal https://w/Baikal\nA deep lake."


def test_what_is_no_source_or_out_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "torn.parquet").write_text("PAR1")
    (tmp_path / "good.jsonl").write_text(json.dumps(ROWS[0]))
    for source, out, message in [
        ("none", "x", "--source=none matches no file"),
        (tmp_path, "x", f"{tmp_path} is a folder; give its files"),
        (tmp_path / "empty.jsonl", "x", "--source holds no documents"),
        (tmp_path / "torn.parquet", "x", "torn.parquet cannot be read as Parquet"),
        (tmp_path / "good.jsonl", "good.jsonl", "good.jsonl is a file of --source"),
        (tmp_path / "good.jsonl", ".", "is a folder; give a file"),
    ]:
        with pytest.raises(command.ConfigError, match=message):
            index.build(str(source), tmp_path / out)
    index.build(str(tmp_path / "good.jsonl"), tmp_path / "new" / "folder" / "x")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["empty.jsonl", "good.jsonl", "new", "torn.parquet"]


def test_documents_are_read_one_at_a_time(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\nno json\n", encoding="utf-8")
    rows = index.read(str(path))
    assert next(rows)[0] == "Lake Baikal"
    with pytest.raises(ValueError, match="a.jsonl:2 is not JSON"):
        next(rows)


def test_blank_lines_and_marks_are_skipped_and_bad_lines_named(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode(),
        b"",
        b"  ",
        json.dumps(ROWS[1]).encode(),
    ]
    path.write_bytes(b"\r\n".join(lines) + b"\n\n")
    assert [title for title, _, _ in index.read(str(path))] == ["Lake Baikal", "Omul"]
    for line, said in [
        (b'{"title": "Moli\xe8re", "text": ""}', "a.jsonl:6 is not UTF-8: byte 0xe8"),
        (b'{"title": "A", "text": "\\ud83d"}', "a.jsonl:6 holds half of a surrogate pair"),
        (b"3", "a.jsonl:6 is no object"),
    ]:
        path.write_bytes(b"\n".join([*lines, b"", line]))
        with pytest.raises(ValueError, match=said):
            list(index.read(str(path)))


def test_rows_of_other_forms():
    contents = {"id": "1", "contents": '"Lake Baikal"\nA deep lake.'}
    assert index.document(contents, "x") == ("Lake Baikal", "A deep lake.", "")
    for row, said in [
        ([1], "x is no object"),
        ({"title": "A", "body": ""}, "fields title, body; title and text must be strings"),
        ({"title": "A", "text": 1}, "must be strings"),
    ]:
        with pytest.raises(ValueError, match=said):
            index.document(row, "x")


def test_the_benchmark_measures_what_it_says(tmp_path):
    found = search.measure(tmp_path / "index.sqlite", total=200, count=20)
    assert found["documents"] == 200 and all(value > 0 for value in found.values())
    assert {"words/p50_ms", "words/p95_ms", "title/queries_per_s"} <= set(found)
    assert list(search.documents(200)) == list(search.documents(200))
