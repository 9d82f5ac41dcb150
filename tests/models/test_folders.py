"""Folders: the same operations on both kinds, and sets of files that appear whole."""

import fsspec
import pytest

from models import folders


@pytest.fixture(params=["local", "remote"])
def location(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path / "folder")
        return
    yield f"memory://{request.node.name}/folder"
    fsspec.filesystem("memory").store.clear()


def content(location):
    folder = folders.Folder(location)
    return {name: folder.read(name).decode() for name in folder.names()}


def test_files_come_back(location):
    folder = folders.Folder(location)
    assert folder.names() == [] and not folder.has("a") and folder.read_json("a") == {}
    folder.write("a", "é")
    folder.write_json("b", {"y": [1], "x": "é"})
    assert folder.names() == ["a", "b"]
    assert folder.read("a").decode() == "é"
    assert folder.read_json("b") == {"x": "é", "y": [1]}
    folder.remove("a")
    folder.remove("a")
    assert folder.names() == ["b"]


def replace(location, **files):
    with folders.replacing(location, last="last", stale=lambda name: name[0] == "w") as new:
        for name, text in files.items():
            new.write(name, text)


def test_a_new_set_replaces_the_old_and_leaves_what_is_not_part_of_it(location):
    folders.Folder(location).write("notes", "mine")
    replace(location, w1="1", w2="2", last="first set")
    replace(location, w1="one", last="second set")
    assert content(location) == {"notes": "mine", "w1": "one", "last": "second set"}


def test_a_crash_leaves_the_old_set_or_none_that_looks_complete(location):
    replace(location, w1="1", w2="2", last="first set")
    before = content(location)
    with pytest.raises(KeyboardInterrupt), folders.replacing(location, last="last") as new:
        new.write("w1", "one")
        raise KeyboardInterrupt
    remote = "://" in location
    assert "last" not in content(location) if remote else content(location) == before
    replace(location, w3="3", last="third set")
    assert content(location) == {"w3": "3", "last": "third set"}


@pytest.mark.parametrize("crash_at", range(4))
def test_a_crash_while_files_move_leaves_the_last_one_out(tmp_path, monkeypatch, crash_at):
    replace(tmp_path, w1="1", w2="2", last="first set")
    moved, replace_file = [], folders.os.replace

    def crash(source, target):
        if len(moved) == crash_at:
            raise OSError("disk is gone")
        moved.append(target)
        replace_file(source, target)

    monkeypatch.setattr(folders.os, "replace", crash)
    if crash_at < 3:
        with pytest.raises(OSError, match="disk is gone"):
            replace(tmp_path, last="second set", w1="one", w2="two")
        assert "last" not in content(tmp_path)
    else:
        replace(tmp_path, last="second set", w1="one", w2="two")
        assert content(tmp_path) == {"w1": "one", "w2": "two", "last": "second set"}
    assert folders.UNFINISHED not in [path.name for path in tmp_path.iterdir()]


def test_what_an_earlier_process_left_does_not_come_back(tmp_path):
    unfinished = tmp_path / folders.UNFINISHED
    unfinished.mkdir()
    (unfinished / "w9").write_text("half a file")
    replace(tmp_path, w1="1", last="set")
    assert content(tmp_path) == {"w1": "1", "last": "set"}
    assert not unfinished.exists()


def test_a_local_copy_of_a_remote_folder_has_the_named_files(location):
    folders.Folder(location).write("a", "1")
    folders.Folder(location).write("b", "2")
    with folders.local_copy(folders.Folder(location), ("a", "c")) as copy:
        assert (copy / "a").read_text() == "1"
        assert not (copy / "c").exists()
        assert (copy / "b").exists() == ("://" not in location)


def test_an_unknown_protocol_says_what_to_install(monkeypatch):
    def missing(url):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(folders.fsspec, "url_to_fs", missing)
    with pytest.raises(ImportError, match=r"gs://b/m cannot be reached.*flow-grpo-jax\[gcs\]"):
        folders.Folder("gs://b/m")
