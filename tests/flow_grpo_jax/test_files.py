"""Files: whole or as they were, and an error that names them."""

import errno
import os

import pytest

from flow_grpo_jax import files


@pytest.fixture
def full(monkeypatch):
    """Nothing reaches the disk."""

    def fails(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    monkeypatch.setattr(files, "free_bytes", lambda path: 1_234_567)


@pytest.mark.parametrize("write", [files.replace_text, files.append_text])
def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, full, write):
    path = tmp_path / "metrics.jsonl"
    path.write_text("before\n")
    with pytest.raises(files.CannotWrite) as caught:
        write(path, "after\n" * 1000)
    assert str(caught.value) == (
        f"{path} cannot be written: No space left on device (1.2 MB are free)."
    )
    assert path.read_text() == "before\n"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_replaced_and_appended(tmp_path):
    path = tmp_path / "a"
    files.append_text(path, "é")
    files.append_text(path, "b")
    assert path.read_bytes() == "éb".encode()
    files.replace_text(path, "c")
    assert path.read_text() == "c" and list(tmp_path.iterdir()) == [path]


def test_other_errors_are_named_too(tmp_path):
    with pytest.raises(files.CannotWrite, match="a/b cannot be written: No such file"):
        files.replace_text(tmp_path / "a" / "b", "c")
    assert files.free_bytes(tmp_path / "a" / "b") == files.free_bytes(tmp_path) > 0
