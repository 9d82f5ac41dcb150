"""The config of a run folder: as it was written, from an earlier version, and damaged."""

import json

import pytest

from experiments.configs import common, quickstart
from experiments.running import command, stored


def written(folder, change, config=None):
    """Writes a config.json whose config `change` has edited as nested dicts."""
    stored.write_config(config or quickstart.get_config(), folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content["config"])
    path.write_text(json.dumps(content))


def test_a_config_comes_back_as_it_was(tmp_path):
    config = quickstart.get_config()
    config.backends.judge.extra.top_k = 5
    config.backends.judge.extra.stop = None
    config.tools.mcp = ("a", "b")
    stored.write_config(config, tmp_path)
    again, digest = stored.read_config(tmp_path)
    assert again == config and again.is_locked and digest == stored.config_hash(config)
    stored.check_config(config, tmp_path)


def test_a_run_of_an_earlier_version_keeps_its_values(tmp_path, caplog):
    def earlier(values):
        tools = values["tools"]
        tools["search_results"], tools["python_seconds"] = 7, 2.5
        tools["python_traceback"], tools["sandbox"] = False, "minimal"
        tools["knowledge_search"] = {"index": "", "url": ""}
        del tools["python_coder"], values["rollout"]["infra_retries"]
        del values["data"]["too_long"], values["rollout"]["empty_steps"]
        del values["loss"]["mini_batch_turns"]

    written(tmp_path, earlier)
    config, _ = stored.read_config(tmp_path)
    assert config.tools.knowledge_search.top_k == config.tools.google_search.top_k == 7
    assert config.tools.python_coder.to_dict() == common.base().tools.python_coder.to_dict() | dict(
        seconds=2.5, traceback=False, sandbox="minimal"
    )
    assert config.rollout.infra_retries == common.base().rollout.infra_retries
    expected = quickstart.get_config()
    for name in ("knowledge_search", "wikipedia_search", "google_search"):
        assert expected.tools[name].top_k == 1  # as search_results was: those runs go on
        expected.tools[name].top_k = 7
    expected.tools.python_coder.update(seconds=2.5, sandbox="minimal")
    stored.check_config(expected, tmp_path)  # it goes on
    expected.rollout.infra_retries = 3
    with pytest.raises(command.ConfigError, match="it differs in rollout.infra_retries"):
        stored.check_config(expected, tmp_path)


def test_the_warm_start_of_a_config_may_change(tmp_path):
    """No training reads it: runs from before `warmstart.worlds` go on."""

    def earlier(values):
        del values["warmstart"]["worlds"], values["data"]["mixture"]
        values["warmstart"]["steps"] = 7

    written(tmp_path, earlier)
    stored.check_config(quickstart.get_config(), tmp_path)
    config = quickstart.get_config()
    config.data.mixture.quickstart = 2.0
    with pytest.raises(command.ConfigError, match="it differs in data.mixture.quickstart"):
        stored.check_config(config, tmp_path)


def test_fields_that_nobody_knows_are_left_out_and_named(tmp_path, caplog):
    def later(values):
        values["rollout"]["speculation"], values["new"] = 3, {"a": 1}
        values["steps"] = {"not": "a number"}
        values["loss"] = {}

    written(tmp_path, later)
    config, _ = stored.read_config(tmp_path)
    assert "speculation" not in config.rollout and "new" not in config
    assert config.steps == common.base().steps and config.loss == common.base().loss
    assert "left out: " in caplog.text
    for name in ("rollout.speculation", "new.a", "steps.not"):
        assert name in caplog.text


@pytest.mark.parametrize(
    "name, value",
    [
        ("rollout.group", "eight"),
        ("rollout.group", None),
        ("tools.names", None),
        ("optim.lr", 10**400),
        ("loss", "flow"),
        ("backends", None),
        ("backends.judge.extra", None),
        ("backends.judge.extra", "a"),
    ],
    ids=lambda part: str(part)[:20],
)
def test_a_value_of_another_type_is_refused(tmp_path, name, value):
    def damaged(values):
        *sections, field = name.split(".")
        for section in sections:
            values = values[section]
        values[field] = value

    written(tmp_path, damaged)
    with pytest.raises(command.ConfigError, match=f"config.json: {name}="):
        stored.read_config(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(command.ConfigError, match="holds no run"):
        stored.read_config(tmp_path)


@pytest.mark.parametrize("cut", [0, 1, 300, -3])
def test_a_config_that_was_cut_short_is_refused_with_the_way_out(tmp_path, cut):
    stored.write_config(quickstart.get_config(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text()[:cut])
    with pytest.raises(command.ConfigError, match="config.json is (empty|damaged): .* --force"):
        stored.read_config(tmp_path)


@pytest.mark.parametrize(
    "text", ["null", "[]", "{}", '{"config": [], "hash": ""}', "\ufeff", "\0\0"]
)
def test_json_that_is_no_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(command.ConfigError, match="config.json is damaged"):
        stored.read_config(tmp_path)


@pytest.mark.parametrize("place", ["gs://bucket/run", "gs:/bucket/run", "s3://b", "file:///runs/a"])
def test_a_run_folder_is_no_url(place):
    with pytest.raises(command.ConfigError, match="is a URL.* .gcloud storage rsync -r DIR"):
        stored.read_config(place)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "--out is empty"),
        ("s3:/bucket", "is no URL; write s3://bucket"),
        ("~/a", r"write --out=\$HOME/a"),
        ("a\nb", r"--out='a\\nb' holds a control character"),
        ("a\udcff", "not UTF-8"),
    ],
)
def test_paths_that_nobody_meant_are_refused(place, message):
    with pytest.raises(command.ConfigError, match=message):
        command.check_path("--out", place)
    command.check_path("--out", "s3://bucket/run~1")


def test_an_out_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    for place, folder, message in [
        (tmp_path / "file" / "a" / "b", True, "/file is a file, not a folder"),
        (tmp_path / "file", True, "is a file; give a folder"),
        (tmp_path, False, "is a folder; give a file"),
        ("/dev/null", False, "no regular file"),
        (tmp_path / ("a" * 300), True, "File name too long"),
        (tmp_path / "run", True, "holds a run"),
    ]:
        with pytest.raises(command.ConfigError, match=message):
            command.check_out(place, folder=folder)
    command.check_out(tmp_path / "file", folder=False)
    command.check_out(tmp_path / "new" / "out", folder=True)
    command.check_out("gs://bucket/planner", folder=True)
    monkeypatch.setattr(command.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(command.ConfigError, match=f"{tmp_path} cannot be written"):
        command.check_out(tmp_path / "new", folder=False)


def test_a_model_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"]}')
    with pytest.raises(command.ConfigError, match="holds a model, no run"):
        stored.read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(command.ConfigError, match="holds no run: .*config.json is a folder"):
        stored.read_config(tmp_path)


@pytest.mark.parametrize("place", ["runs/a", "/runs/a", "a:b", "runs/2026-01-01T10:30/x", "C"])
def test_paths_with_a_colon_are_paths(place):
    command.check_local("--workdir", place)
