"""Training refuses a machine below the level that the config asks for, and records what holds."""

import json

import pytest

from experiments.configs import common, smoke
from experiments.reporting import report
from experiments.running import command, sessions, stored
from tests.tools import sandboxes
from tools import python_coder


def config_of(level, names=("python_coder",)):
    c = common.base()
    c.tools.python_coder.sandbox, c.tools.names = level, names
    return c


@pytest.fixture
def without_landlock(monkeypatch):
    box = sandboxes.without("landlock")
    monkeypatch.setattr(python_coder.client, "Sandbox", lambda: box)


def test_a_missing_layer_ends_the_command_and_is_named(without_landlock):
    with pytest.raises(command.ConfigError) as error:
        sessions.make_tools(config_of("standard"))
    assert "landlock (missing: left out on request)" in str(error.value)
    assert "--config.tools.python_coder.sandbox=minimal" in str(error.value)


def test_the_model_is_not_loaded_before_the_check(without_landlock, monkeypatch):
    monkeypatch.setattr(sessions, "load_weights", lambda *_: pytest.fail("loaded"))
    c = config_of("standard")
    c.model.path = smoke.get_config().model.path
    with pytest.raises(command.ConfigError, match="landlock"):
        sessions.build(c)


def test_the_flag_of_the_message_accepts_it(without_landlock):
    facts = sessions.sandbox_facts(sessions.make_tools(config_of("minimal")))
    assert facts["level"] == "minimal"


def test_what_holds_stands_in_the_records_of_a_run(without_landlock, tmp_path):
    c = config_of("minimal")
    facts = sessions.sandbox_facts(sessions.make_tools(c))
    stored.write_config(c, tmp_path, sandbox=facts)
    assert json.loads((tmp_path / "config.json").read_text())["sandbox"] == facts
    stored.check_config(c, tmp_path)  # the machine is no part of the config
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    page = report.write_report(tmp_path).read_text()
    assert "<li><b>minimal</b> sandbox</li>" in page
    assert "sandbox.layers.landlock" in page and "missing: left out on request" in page


def test_a_run_without_programs_needs_no_sandbox(monkeypatch):
    monkeypatch.setattr(python_coder.client, "Sandbox", lambda: pytest.fail("started"))
    tools = sessions.make_tools(config_of("strict", ("base_generator",)))
    assert sessions.sandbox_facts(tools) == {}
