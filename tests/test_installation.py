"""The wheel holds all that ships and runs from any folder, with the packages installed here."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("agents", "experiments", "flow_grpo_jax", "models", "tools")
SMALL = ("steps=1", "rollout.questions=2", "rollout.group=2", "rollout.max_turns=1")
SMALL += ("engine.slots=4", "batch.rows=(4,)", "data.held_out=")


@pytest.mark.slow
def test_the_wheel_is_installed_and_trains_from_another_folder(tmp_path):
    if not all(map(importlib.util.find_spec, ("pip", "setuptools"))):
        pytest.skip("pip and setuptools make the wheel")
    source, made = tmp_path / "source", tmp_path / "made"
    for name in PACKAGES:  # elsewhere: a build leaves files behind
        no_caches = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=no_caches)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    alone |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

    def run(*command):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        how = dict(cwd=elsewhere, env=alone, capture_output=True, text=True, timeout=300)
        done = subprocess.run([*map(str, command)], **how)
        assert done.returncode == 0, done.stderr[-2_000:]
        return done.stdout

    pip = ("-m", "pip", "--disable-pip-version-check")
    isolated = ("--no-deps", "--no-index")
    run(sys.executable, *pip, "wheel", *isolated, "--no-build-isolation", "-w", made, source)
    (wheel,) = made.glob("*.whl")
    ships = {
        path.relative_to(source).as_posix()
        for name in PACKAGES
        for path in (source / name).rglob("*")
        if path.is_file()
    }
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert ships == {name for name in inside if ".dist-info/" not in name}

    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "others.pth").write_text("".join(f"{path}\n" for path in others))
    python = tmp_path / "venv" / "bin" / "python"
    run(python, *pip, "install", *isolated, "--ignore-installed", wheel)
    found = run(python, "-c", "import experiments; print(experiments.__file__)")
    assert pathlib.Path(found.strip()).is_relative_to(site)
    program = python.with_name("flow-grpo")
    assert run(program, "--version").startswith("flow-grpo ")
    fields = [f"--config.{field}" for field in SMALL]
    run(program, "train", "--config=smoke", "--workdir=run", *fields)
    assert (tmp_path / "elsewhere" / "run" / "checkpoints" / "step_1").is_dir()
