"""Models in the hub's cache: found by name, read through its links, and no other link followed."""

import json
import os
import pathlib
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder, folders, hub, huggingface, tokenizer
from tests.models import configs

NAME = "Org/Tiny-1.5"
OLD, NEW = "0" * 40, "f" * 40


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer.train_byte_bpe(["some text"] * 3, vocab_size=400, folder=folder)
    config, draw = configs.small(vocab_size=400), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: decoder.Decoder(key, config), jax.random.key(0))
    model = jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape), x.dtype), shapes)
    huggingface.save(folder, model, base_folder=folder)
    return folder


def cached(cache, files, revision=NEW, *, main=None, name=NAME):
    """Lays a folder's files into a cache as `huggingface_hub` does; returns the snapshot."""
    repository = pathlib.Path(cache) / f"models--{name.replace('/', '--')}"
    snapshot, blobs = repository / "snapshots" / revision, repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir(exist_ok=True)
    for path in files.iterdir():
        blob = blobs / f"digest-of-{path.name}"
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    if main:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(main)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for variable in ("HF_HOME", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_snapshot_of_links_loads_and_exports_like_the_folder(cache, files, tmp_path):
    snapshot = cached(cache, files, main=NEW)
    assert hub.locate(NAME, root=tmp_path) == str(snapshot)
    assert folders.Folder(snapshot).names() == folders.Folder(files).names()
    expected = jax.tree.leaves(huggingface.load(files))
    for found, wanted in zip(jax.tree.leaves(huggingface.load(snapshot)), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    words = tokenizer.Tokenizer.load(snapshot)
    assert words.encode("some text") == tokenizer.Tokenizer.load(files).encode("some text")
    huggingface.save(tmp_path / "out", huggingface.load(snapshot), base_folder=snapshot)
    written = [path for path in (tmp_path / "out").iterdir() if path.is_symlink()]
    assert not written and (tmp_path / "out" / "tokenizer.json").is_file()


def test_the_snapshot_is_the_one_that_the_library_takes(cache, files, tmp_path):
    old = cached(cache, files, OLD, main=OLD)
    new = cached(cache, files, NEW)
    os.utime(old, (1, 1))
    theirs = huggingface_hub.try_to_load_from_cache(NAME, "config.json", cache_dir=cache)
    assert hub.locate(NAME, root=tmp_path) == str(pathlib.Path(theirs).parent) == str(old)
    main = cache / "models--Org--Tiny-1.5" / "refs" / "main"
    for reference in ("1" * 40, "../../..", ""):  # of what is not here
        main.write_text(reference)
        assert hub.locate(NAME, root=tmp_path) == str(new)
    main.unlink()
    assert hub.locate(NAME, root=tmp_path) == str(new)
    assert hub.locate(new.parents[1], root=tmp_path) == str(new)  # the folder of all snapshots


def test_a_folder_of_that_name_comes_first(cache, files, tmp_path):
    cached(cache, files, main=NEW)
    (tmp_path / NAME).mkdir(parents=True)
    assert hub.locate(NAME, root=tmp_path) == str(tmp_path / NAME)
    assert hub.locate("memory://bucket/m", root=tmp_path) == "memory://bucket/m"


@pytest.mark.parametrize(
    ("set_", "found"),
    [
        ({"HF_HUB_CACHE": "/a"}, "/a"),
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/c", "HF_HOME": "/b"}, "/c"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
        ({}, "/home/me/.cache/huggingface/hub"),
        ({"HF_HOME": "~/x/$USER_OF_TEST"}, "/home/me/x/y/hub"),
    ],
)
def test_the_place_of_the_cache(cache, monkeypatch, set_, found):
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USER_OF_TEST", "y")
    for name, value in set_.items():
        monkeypatch.setenv(name, value)
    assert str(hub.cache()) == found


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (NAME, "neither a folder .*Org/Tiny-1.5 nor a model .* hf download Org/Tiny-1.5"),
        ("gpt", "neither a folder .* hf download gpt"),
    ],
)
def test_what_is_not_here_is_not_downloaded(cache, tmp_path, path, message):
    with pytest.raises(FileNotFoundError, match=message):
        hub.locate(path, root=tmp_path)


@pytest.mark.parametrize("path", ["a/b/c", "../a", "Org/a--b", "/absent/model", "gs://bucket/m"])
def test_a_path_that_is_no_name_is_left_to_what_reads_it(cache, tmp_path, path):
    expected = path if "://" in path else str(tmp_path / path)
    assert hub.locate(path, root=tmp_path) == expected


def test_a_download_that_did_not_end_says_so(cache, tmp_path):
    (cache / "models--Org--Tiny-1.5" / "blobs").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no snapshot.* hf download Org/Tiny-1.5"):
        hub.locate(NAME, root=tmp_path)


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("/c/models--Qwen--Qwen2.5-7B/snapshots/f", "Qwen/Qwen2.5-7B"),
        ("models--gpt2/snapshots/f", "gpt2"),
        ("/models/Qwen2.5-7B", None),
    ],
)
def test_a_path_tells_the_name(location, name):
    assert hub.name_of(location) == name


# ---- links -------------------------------------------------------------------------------------


def replace_by_link(path, target):
    path.unlink()
    path.symlink_to(target)


def test_blobs_may_be_absolute_links_and_lie_in_the_store_of_all_models(cache, files):
    snapshot = cached(cache, files)
    weights = snapshot / "model.safetensors"
    replace_by_link(weights, weights.resolve())
    digest = "ab" + 31 * "cd"
    store = cache / "blobs" / "ab"
    store.mkdir(parents=True)
    blob = cache / "models--Org--Tiny-1.5" / "blobs" / "digest-of-tokenizer.json"
    blob.rename(store / digest)
    blob.symlink_to(store / digest)
    assert huggingface.load(snapshot).config.vocab_size == 400
    assert tokenizer.Tokenizer.load(snapshot).encode("some")
    moved = cache.rename(cache.with_name("disk"))
    cache.symlink_to(moved)  # the cache itself lies elsewhere
    assert folders.Folder(snapshot).read_json("config.json")["vocab_size"] == 400


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["outside", "other model", "cache", "through a blob"])
def test_a_link_out_of_the_models_part_is_refused_by_name(cache, files, tmp_path, name, kind):
    snapshot = cached(cache, files)
    place = {
        "outside": tmp_path / "secret",
        "other model": cached(cache, files, name="Org/Other") / name,
        "cache": cache / "blobs" / "ab" / "short",
        "through a blob": tmp_path / "secret",
    }[kind]
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        shutil.copyfile(files / name, place)
    link = snapshot / name
    replace_by_link(link.resolve() if kind == "through a blob" else link, place)
    with pytest.raises(ValueError, match=rf"{name} is a link to .*outside .*models--Org--Tiny"):
        huggingface.load(snapshot)
        tokenizer.Tokenizer.load(snapshot)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_link_that_leads_nowhere_is_named(cache, files, name, loop):
    snapshot = cached(cache, files)
    if loop:
        replace_by_link(snapshot / name, snapshot / "second")
        (snapshot / "second").symlink_to(snapshot / name)
    else:
        (snapshot / name).resolve().unlink()
    reason = "in a circle" if loop else "to a file that does not exist"
    with pytest.raises(FileNotFoundError, match=f"{name} is a link that leads {reason}"):
        huggingface.load(snapshot)
        tokenizer.Tokenizer.load(snapshot)


def test_a_plain_folder_follows_links_inside_and_no_others(files, tmp_path):
    folder = shutil.copytree(files, tmp_path / "folder")
    (folder / "weights").mkdir()
    (folder / "model.safetensors").rename(folder / "weights" / "w")
    (folder / "model.safetensors").symlink_to("weights/w")
    (tmp_path / "name").symlink_to(folder)  # the folder itself may be one
    assert huggingface.load(tmp_path / "name").config.vocab_size == 400
    assert "weights" not in folders.Folder(folder).names()
    replace_by_link(folder / "tokenizer_config.json", files / "tokenizer_config.json")
    with pytest.raises(ValueError, match="tokenizer_config.json is a link to .*replace the link"):
        tokenizer.Tokenizer.load(folder)


def test_writing_over_links_leaves_their_blobs(cache, files):
    snapshot = cached(cache, files)
    before = (snapshot / "config.json").resolve()
    text = before.read_text()
    model = huggingface.load(snapshot)
    huggingface.save(snapshot, model, dtype="bfloat16")
    assert before.read_text() == text and not (snapshot / "config.json").is_symlink()
    assert json.loads((snapshot / "config.json").read_text())["dtype"] == "bfloat16"
