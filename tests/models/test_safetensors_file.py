"""The safetensors format, against the library that defines it."""

import concurrent.futures
import json
import weakref

import fsspec
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from models import folders, safetensors_file


@pytest.fixture
def pool():
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path):
    """An empty folder of each kind."""
    if request.param == "local":
        yield folders.Folder(tmp_path)
        return
    yield folders.Folder(f"memory://{request.node.name}")
    fsspec.filesystem("memory").store.clear()


def arrays():
    random = np.random.default_rng(0)
    return {
        "b16": random.standard_normal((7, 3)).astype(ml_dtypes.bfloat16),
        "f32": random.standard_normal((5, 2, 3)).astype(np.float32),
        "f64": random.standard_normal(3),
        "f16": random.standard_normal((4, 4)).astype(np.float16),
        "i8": np.arange(-3, 2, dtype=np.int8),
        "flag": np.array([[True], [False]]),
    }


def tensors(values):
    return [
        safetensors_file.Tensor(name, value.dtype, value.shape, lambda value=value: value)
        for name, value in values.items()
    ]


def equal(a, b):
    """Same dtype, shape and bits."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_the_library_reads_what_is_written(folder, tmp_path):
    safetensors_file.write(folder, "x.safetensors", tensors(arrays()), metadata={"format": "pt"})
    written = folder.read("x.safetensors")
    (tmp_path / "copy").write_bytes(written)
    found = safetensors.numpy.load_file(tmp_path / "copy")
    assert found.keys() == arrays().keys()
    assert all(equal(found[name], value) for name, value in arrays().items())
    with safetensors.safe_open(tmp_path / "copy", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    header_bytes = int.from_bytes(written[:8], "little")
    assert header_bytes % 8 == 0
    header = json.loads(written[8 : 8 + header_bytes])
    for name, value in arrays().items():
        assert header[name]["data_offsets"][0] % value.dtype.itemsize == 0


@pytest.mark.parametrize("block", [5, 64, 2**20])
def test_any_rows_of_what_the_library_writes_are_read(folder, pool, monkeypatch, block):
    monkeypatch.setattr(safetensors_file, "BLOCK", block)
    folder.write("x", safetensors.numpy.save(arrays(), metadata={"format": "pt"}))
    with safetensors_file.File(folder, "x") as file:
        assert file.entries.keys() == arrays().keys()
        for name, value in arrays().items():
            assert file.entries[name].shape == value.shape
            rows = len(value)
            for start, stop in ((0, rows), (1, rows), (0, rows - 1), (1, 2), (rows, rows)):
                found = file.read_rows(name, start, stop, pool=pool).result()
                assert equal(found, value[start:stop])
                assert start == stop or found.ctypes.data % safetensors_file.ALIGNMENT == 0
        padded = file.read_rows("f32", 3, 5, pool=pool, padded_to=4).result()
        assert equal(padded, np.concatenate([arrays()["f32"][3:], np.zeros((2, 2, 3), np.float32)]))


def test_only_the_bytes_asked_for_are_read(folder, pool, monkeypatch):
    folder.write("x", safetensors.numpy.save({"a": np.zeros((100, 10), np.float32)}))
    fill, sizes = safetensors_file.File._fill, []

    def count(self, raw, offset):
        sizes.append(len(raw))
        fill(self, raw, offset)

    monkeypatch.setattr(safetensors_file.File, "_fill", count)
    with safetensors_file.File(folder, "x") as file:
        header = sum(sizes)
        assert header < 200
        file.read_rows("a", 20, 30, pool=pool).result()
        assert sum(sizes) - header == 10 * 10 * 4


def test_one_tensor_is_in_memory_at_a_time(folder):
    before = []

    def fetch():
        assert not before or before[-1]() is None
        value = np.ones((3, 4), np.float32)
        before.append(weakref.ref(value))
        return value

    many = [safetensors_file.Tensor(str(i), np.float32, (3, 4), fetch) for i in range(4)]
    safetensors_file.write(folder, "x", many)
    assert len(before) == 4


def test_without_a_folder_all_are_fetched_in_the_order_of_the_file(tmp_path):
    def order(folder):
        fetched = []

        def fetch(name, value):
            fetched.append(name)
            return value

        values = arrays()
        many = [
            safetensors_file.Tensor(n, v.dtype, v.shape, lambda n=n, v=v: fetch(n, v))
            for n, v in values.items()
        ]
        safetensors_file.write(folder, "x", many)
        return fetched

    assert order(None) == order(folders.Folder(tmp_path)) != list(arrays())


def with_header(**changes):
    header = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x \(0 bytes\) is no safetensors file"),
        (b"PK\3\4" + bytes(100), "is no safetensors file"),
        ((4).to_bytes(8, "little") + b"nope", "the header is damaged"),
        (with_header()[:-1], r"has \d+ bytes, its header says \d+. Download it again"),
        (with_header() + b"x", "has .* bytes, its header says"),
        (with_header(shape=[2, 3]), "a .* contradicts itself"),
    ],
)
def test_damaged_files_are_refused(folder, content, message):
    folder.write("x", content)
    with pytest.raises(ValueError, match=message):
        safetensors_file.File(folder, "x")


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path, pool):
    path = tmp_path / "x"
    path.write_bytes(with_header())
    with safetensors_file.File(folders.Folder(tmp_path), "x") as file:
        path.write_bytes(with_header()[:-4])
        with pytest.raises(OSError, match="ended at byte"):
            file.read_rows("a", 0, 2, pool=pool).result()
