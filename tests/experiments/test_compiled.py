"""Where compiled programs are kept."""

import os
import types

import pytest

from experiments.running import command, compiled


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Settings of JAX, of which nothing is told; a home of its own."""
    told = {}
    config = types.SimpleNamespace(jax_compilation_cache_dir=None, update=told.__setitem__)
    monkeypatch.setattr(compiled, "jax", types.SimpleNamespace(config=config))
    monkeypatch.setenv("HOME", str(tmp_path))
    return told


def test_programs_are_kept_at_home_and_those_of_a_cpu_apart(settings, tmp_path):
    folder = tmp_path / ".cache" / "flow_grpo_jax"
    for device, place in (("tpu", folder), ("cpu", folder / f"cpu-{compiled.cpu()}")):
        compiled.keep("auto", device=device)
        assert settings["jax_compilation_cache_dir"] == str(place) and place.is_dir()


def test_a_folder_that_was_named_is_taken_as_it_is(settings, tmp_path):
    compiled.keep(str(tmp_path / "mine"), device="cpu")
    assert settings["jax_compilation_cache_dir"] == str(tmp_path / "mine")
    (tmp_path / "file").touch()
    with pytest.raises(command.ConfigError, match="compile_cache=.*/file cannot be made: File"):
        compiled.keep(str(tmp_path / "file"), device="cpu")


def test_nothing_is_kept_where_that_is_not_wanted_or_cannot_be(settings, tmp_path):
    compiled.keep("", device="cpu")
    (tmp_path / ".cache").write_text("not a folder")
    compiled.keep("auto", device="cpu")
    compiled.jax.config.jax_compilation_cache_dir = "/elsewhere"  # as JAX was told already
    compiled.keep(str(tmp_path / "mine"), device="cpu")
    assert settings == {}


def test_another_cpu_or_number_of_cores_has_another_name(monkeypatch, tmp_path):
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(compiled, "CPU_INFO", info)
    monkeypatch.setattr(compiled, "_cores", lambda: 2)

    def name(text):
        info.write_text(text)
        return compiled.cpu()

    one = name("flags\t: avx2 fma\ncpu MHz\t: 2100.0\n")
    assert name("flags\t: avx2 fma\ncpu MHz\t: 3400.0\n") == one
    assert name("flags\t: avx2 fma avx512f\ncpu MHz\t: 2100.0\n") != one
    monkeypatch.setattr(compiled, "_cores", lambda: 4)
    assert name("flags\t: avx2 fma\ncpu MHz\t: 2100.0\n") != one


def test_the_oldest_programs_are_forgotten_beyond_a_size(tmp_path):
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1_000 - age, 1_000 - age))
    compiled.forget(tmp_path.iterdir(), most_bytes=25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
