"""One command for all, configs by name, and where relative paths lead."""

import pathlib
import runpy
import subprocess
import sys
import types

import pytest

import flow_grpo_jax
from experiments import __main__ as dispatcher
from experiments.configs import quickstart
from experiments.running import command, places

ROOT = pathlib.Path(__file__).parents[2]


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["flow-grpo", *arguments])
    dispatcher.main()


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_alone_it_lists_every_command_in_one_line_each(monkeypatch, capsys, arguments):
    call(monkeypatch, *arguments)
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    told = {row[0] for row in rows if len(row) == 2 and row[1].endswith((".", "?"))}
    assert told >= {p.stem for p in (ROOT / "experiments").glob("*.py")} - {"__init__", "__main__"}


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    call(monkeypatch, "--version")
    assert capsys.readouterr().out == f"flow-grpo {flow_grpo_jax.__version__}\n"


@pytest.mark.parametrize(
    "name, hint",
    [
        ("trian", "Did you mean train?"),
        ("xyz", "flow-grpo lists them."),
        ("--config=a", "flow-grpo lists them."),
        ("train.py", "Did you mean train?"),
        ("configs", "flow-grpo lists them."),
        ("__main__", "flow-grpo lists them."),
        ("a\x1b[2J", "flow-grpo lists them."),
    ],
)
def test_what_is_no_command_is_refused_with_the_nearest(monkeypatch, capsys, name, hint):
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, name)
    assert stopped.value.code == command.BAD_FLAGS == dispatcher.BAD_FLAGS
    error = capsys.readouterr().err
    assert error.startswith("error: There is no command ") and error.endswith(f"{hint}\n")
    assert error.isprintable() or error[:-1].isprintable()


def test_a_command_gets_the_arguments_after_its_name(monkeypatch):
    def run_module(name, **how):
        seen.append((name, sys.argv[1:], how))

    seen = []
    monkeypatch.setattr(runpy, "run_module", run_module)
    call(monkeypatch, "train", "--config=a:b", "train", "--version")
    expected = {"run_name": "__main__", "alter_sys": True}
    assert seen == [("experiments.train", ["--config=a:b", "train", "--version"], expected)]


@pytest.mark.slow
def test_either_form_says_the_same_from_any_folder(tmp_path):
    def said(*arguments):
        ran = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": ""},
            capture_output=True,
            text=True,
        )
        return ran.returncode, ran.stdout, ran.stderr

    for flags in (["--help"], ["--workdir=none"]):
        told = said("experiments", "view", *flags)
        assert told == said("experiments.view", *flags)
        assert told[0] == (0 if flags == ["--help"] else 2)


def test_help_has_nothing_for_readers_of_the_code(monkeypatch):
    started = types.ModuleType("__main__", "Trains.\n\nDimensions:\n  Q questions\n")
    monkeypatch.setitem(sys.modules, "__main__", started)
    monkeypatch.setattr(command.app, "run", lambda *_, **how: None)
    monkeypatch.setattr(command.logging.get_absl_handler(), "filters", [])
    command.run(lambda: None)
    assert started.__doc__ == "Trains."


def test_configs_are_found_by_name_and_by_their_path_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = ROOT / "experiments/configs"
    for value, file in (
        ("quickstart", folder / "quickstart.py"),
        ("paper_7b:v6e8", f"{folder / 'paper_7b.py'}:v6e8"),
        ("colab_0.5b", folder / "colab_0.5b.py"),
        ("experiments/configs/smoke.py", folder / "smoke.py"),
        ("common", "common"),  # defaults, and no config
        ("ranges", "ranges"),
        ("mine.py", "mine.py"),
        ("", ""),
        ("x" * 5_000, "x" * 5_000),
    ):
        assert places.config_file(value) == str(file)
    (tmp_path / "smoke").mkdir()  # a folder is no config
    assert places.config_file("smoke") == str(folder / "smoke.py")
    (tmp_path / "quickstart").write_text("a file of this name comes first")
    assert places.config_file("quickstart") == "quickstart"


@pytest.mark.parametrize(
    "given, seen",
    [
        (["--config=smoke"], ["--config={}"]),
        (["-config=smoke"], ["-config={}"]),
        (["--config", "smoke"], ["--config", "{}"]),
        (["--workdir=smoke", "smoke"], ["--workdir=smoke", "smoke"]),
        (["--config.model.path=smoke"], ["--config.model.path=smoke"]),
    ],
)
def test_only_the_config_is_looked_up_by_name(given, seen):
    file = str(ROOT / "experiments/configs/smoke.py")
    assert command.with_files(given) == [text.format(file) for text in seen]


def test_relative_paths_lead_to_the_current_folder_and_to_what_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = quickstart.get_config().model.path
    assert places.resolve(shipped) == str(ROOT / shipped)
    assert places.resolve("train.jsonl") == str(tmp_path / "train.jsonl")
    assert places.resolve("experiments/mine.jsonl") == str(tmp_path / "experiments/mine.jsonl")
    for path in ("/data/train.jsonl", "gs://bucket/model"):
        assert places.resolve(path) == path
