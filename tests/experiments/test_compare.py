"""The comparison of ways to train: what is run, and the table by hand."""

import json
import pathlib
import signal
import sys

import pytest

from experiments import compare
from experiments.running import command, signals

# ml_collections loads the config's file in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_success_is_interpolated_in_tokens():
    curve = compare.Curve([0.0, 100.0, 300.0], [0.1, 0.5, 0.7], 4)
    found = [curve.at(tokens) for tokens in (0, 50, 100, 150, 300)]
    assert found == pytest.approx([0.1, 0.3, 0.5, 0.55, 0.7])
    assert compare.Curve([0.0], [0.2], 0).at(0) == 0.2


def test_arms_are_names_and_fields():
    assert compare.parse("flow") == ("flow", {})
    text = "turns_1: steps=80 loss.variant=turns data.train='a b.jsonl'"
    expected = {"steps": "80", "loss.variant": "turns", "data.train": "a b.jsonl"}
    assert compare.parse(text) == ("turns_1", expected)
    for wrong in ("", "a/b", "../x: steps=1", "x: steps", "x: =1", "x:steps 80"):
        with pytest.raises(command.ConfigError, match="must be a name of letters"):
            compare.parse(wrong)


RUNS = {  # workdir -> [(tokens of the step, held-out success)]
    "a-seed0": [(0, 0.1), (100, 0.5), (100, 0.7)],
    "a-seed5": [(0, 0.1), (100, 0.3), (100, 0.5)],
    "b-seed0": [(0, 0.1), (60, 0.6), (90, 0.9)],
    "b-seed5": [(0, 0.1), (75, 0.4), (75, 0.8)],
    "empty-seed0": [(0, 0.1)] * 3,
}
TABLE = """Held-out success after 150 generated tokens.

| arm | before | seed 0 | seed 5 | mean ± 95 % | less a ± 95 % | tokens a step |
| --- | --- | --- | --- | --- | --- | --- |
| a | 0.100 | 0.600 | 0.400 | 0.500 ± 1.271 |  | 100 |
| b | 0.100 | 0.900 | 0.800 | 0.850 ± 0.635 | +0.350 ± 0.635 | 75 |
"""


SMOKE = "experiments/configs/smoke.py"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Compares trainings that only write RUNS; returns (table, what they were asked for)."""
    asked = []

    def fake(arguments):
        workdir = tmp_path / arguments[4].rpartition("/")[2]
        asked.append((workdir.name, arguments[5:]))
        if workdir.name not in RUNS:
            return 75
        workdir.mkdir(exist_ok=True)
        (last,) = (int(a.partition("=")[2]) for a in arguments if a.startswith("--config.steps="))
        lines = (
            {"step": step, "tokens/generated": tokens, "eval/success": success}
            for step, (tokens, success) in enumerate(RUNS[workdir.name][: last + 1])
        )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (workdir / "metrics.jsonl").write_text(text)
        return 0

    def start(*arms, seeds=("0",), source="", tokens=0):
        monkeypatch.setattr(compare, "launch", fake)
        how = dict(arms=[*map(compare.parse, arms)], seeds=seeds, source=source, tokens=tokens)
        asked.clear()
        return compare.run(SMOKE, {"optim.lr": "0.5", "steps": "2"}, **how, out=tmp_path), asked

    return start


def test_every_arm_is_trained_with_every_seed_and_compared_at_equal_tokens(run, tmp_path):
    pytest.importorskip("matplotlib")
    text, asked = run("a", "b: loss.kl_coef=0", seeds=("0", "5"))
    assert text == TABLE == (tmp_path / "comparison.md").read_text()
    assert [name for name, _ in asked] == ["a-seed0", "b-seed0", "a-seed5", "b-seed5"]
    changes = ("optim.lr=0.5", "steps=2", "loss.kl_coef=0", "seed=0")
    assert asked[1][1] == [f"--config.{change}" for change in changes]
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["tokens"] == 150 and found["arms"]["b"]["success"] == pytest.approx([0.9, 0.8])
    assert len([*(tmp_path / "plots").glob("*.png")]) == 2


def test_a_run_goes_on_until_it_has_generated_the_tokens(run, tmp_path):
    pytest.importorskip("matplotlib")
    text, asked = run("a: steps=1", tokens=130)
    assert [changes[1] for _, changes in asked] == ["--config.steps=1", "--config.steps=2"]
    assert "| a | 0.100 | 0.560 | 0.560 |  | 100 |" in text
    again, asked = run("a: steps=1", tokens=130)
    assert again == text and not asked  # what is done is not started again
    with pytest.raises(command.ConfigError, match="empty-seed0 has no evaluation after"):
        run("empty")


def test_what_no_training_could_start_with_is_refused_before_the_first(run):
    for arms, told in [
        (["a", "a: steps=3"], "Two of --arm have the same name"),
        (["a", "b: loss.variant=turns rollout.group=7"], "--arm=b: rollout.group=7 must be"),
        (["a", "b: loss.sort=turns"], "--arm=b: The configuration has no field 'sort'"),
        (["a", "b: steps=x"], "--arm=b: flag --config.steps=x: it must be a whole number"),
        (["a", "b: seed=4"], "The field seed is set; give --seeds"),
        (["a", "b: data.held_out="], "set data.held_out, and steps above 0, in every arm"),
        (["a", "b: steps='4"], "steps='4\": No closing quotation"),
    ]:
        with pytest.raises(command.ConfigError, match=told):
            run(*arms)
    for seeds in (("0", "0"), ("0", "x")):
        with pytest.raises(command.ConfigError, match="must be different whole numbers"):
            run("a", seeds=seeds)


def test_charts_have_the_first_arm_and_seven_others_at_most():
    curves = {f"arm{i}": [compare.Curve([0, 80], [0.0, 0.1 * i], 2)] * 2 for i in range(10)}
    found = compare.compare(curves, tokens=0)
    *lines, bars = compare.charts(curves, found)
    labels = [[line["label"] for line in chart["series"]] for chart in lines]
    assert labels == [[f"arm{i}" for i in range(8)], ["arm0", "arm8", "arm9"]]
    line = lines[1]["series"][2]
    assert line["x"][::20] == [0, 40, 80] and line["y"][::20] == pytest.approx([0, 0.45, 0.9])
    assert line["low"] == line["y"] == line["high"]  # seeds that agree
    assert bars["bars"] == [*curves] and bars["series"][0]["y"][9] == pytest.approx(0.9)


def test_a_training_that_stops_ends_the_command_with_its_code(run):
    with pytest.raises(SystemExit) as stopped:
        run("c")
    assert stopped.value.code == 75


STOPS_ITS_PARENT = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75) if {running} else None)
time.sleep(0.3)
os.kill(os.getppid(), signal.SIGTERM)
while {running}:
    time.sleep(1)
"""


@pytest.mark.parametrize("running", [True, False])
def test_a_signal_ends_the_training_and_no_other_starts(running):
    kept = {number: signal.getsignal(number) for number in signals.STOPPING}
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        assert (
            compare.launch([sys.executable, "-c", STOPS_ITS_PARENT.format(running=running)]) == 75
        )
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def test_questions_of_one_source_alone(run):
    pytest.importorskip("matplotlib")
    _, [(_, asked)] = run("a", source="quickstart/3-hop")
    paths = [part.partition("=")[2] for part in asked if part.endswith(".jsonl")]
    rows = [[*map(json.loads, pathlib.Path(p).read_text().splitlines())] for p in paths]
    assert [len(part) for part in rows] == [200, 40]
    assert {row["source"] for part in rows for row in part} == {"quickstart/3-hop"}
    for arm, source, told in (
        ("b", "none", "data.train has no question of --source=none"),
        (
            "b: data.train=x.jsonl",
            "quickstart/3-hop",
            "--arm=b sets data.train, and --source=quick",
        ),
        ("b: data.environment.id=module:x", "quickstart/3-hop", "environment.id=module:x adds"),
    ):
        with pytest.raises(command.ConfigError, match=told):
            run("a", arm, source=source)
