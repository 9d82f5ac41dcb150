"""Files and JSON of others: what goes over a bound is refused before anything is built."""

import json
import os

import pytest

from flow_grpo_jax.bounds import files, json_text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 101, "nested too deeply: 101 brackets, 100 at most"),
        ('{"a":' * 2_000_000 + "1", "nested too deeply: 2,000,000"),
        ("[[]," * 101 + "1", "nested too deeply: 102"),
        ("[" * 101 + '"' + '\\"' * 500_000, "nested too deeply: 101"),  # a text without an end
        ("[" * 101 + '"\\', "nested too deeply: 101"),
        ("[" + "0," * 20_000_001, "holds 20,000,002 values; the most are 20,000,000"),
        ("9" * 5_000, "Exceeds the limit"),
        ("nope", "Expecting value: line 1"),
    ],
)
def test_json_over_a_bound_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        json_text.parse(text)


@pytest.mark.parametrize(
    "value",
    [
        json.loads("[" * 100 + "]" * 100),
        ["[" * 500, '\\"[{' * 100, {"]": "["}],
        [[], {}] * 300,
        [["[" * 200, 1], "\\"] * 30_000,  # over two blocks
        ["\\" * 3 + '"' + "\\" * 4, "[" * 200] * 60,
    ],
)
def test_json_within_the_bounds_is_what_json_says(value):
    text = json.dumps(value)
    assert json_text.parse(text) == value
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert json_text.parse(text.encode(encoding)) == value


def test_commas_of_texts_are_no_values(monkeypatch):
    monkeypatch.setattr(json_text, "MAX_VALUES", 10)
    assert json_text.parse('["a,b,c,d,e,f,g,h,i,j,k,l", 1]')[1] == 1
    with pytest.raises(ValueError, match="holds 11 values"):
        json_text.parse("[1,1,1,1,1,1,1,1,1,1,1]")


def test_errors_of_a_file_name_it(tmp_path):
    path = tmp_path / "x.json"
    for content, message in {
        b"[" * 200: "is damaged: it is nested too deeply",
        b"\xff\xfe{": "is damaged: .*utf-16",
        b"[1]": "is damaged: it holds a list, not an object",
    }.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"x\.json {message}"):
            json_text.read_object(path)
    path.write_bytes(b'{"a": 1}')
    assert json_text.read_object(path) == {"a": 1}
    with pytest.raises(ValueError, match=r"x\.json has 8 bytes; the most are 7"):
        files.read_bytes(path, most=7)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "config.json"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"config\.json is no regular file"):
        files.read_bytes(path)


def test_a_long_line_is_passed_over(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc\n" + b"y" * 25 + b"\nabcd\nz")
    with path.open("rb") as file:
        assert list(files.lines(file, most=5)) == [b"abc\n", None, b"abcd\n", b"z"]
