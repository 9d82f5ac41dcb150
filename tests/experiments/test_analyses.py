"""The analyses of runs and evaluations: their numbers, and files with their plots."""

import json

import pytest

from experiments import evaluate
from experiments.evaluating import analyses, plots
from experiments.running import command


def row(benchmark, mode, turns, value, **more):
    estimate = {"value": value, "error": 0.01, "low": value - 0.1, "high": value + 0.1}
    usual = dict(protocol="honest", official="em", turns=turns - 0.5, tool_shares={"search": 1.0})
    return usual | dict(
        benchmark=benchmark,
        mode=mode,
        max_turns=turns,
        scores={"em": estimate | {"questions": 9}, "f1": estimate | {"value": 0.99}},
        **more,
    )


ROWS = [
    row("gaia", "trained", 3, 0.4),
    row("gaia", "trained", 10, 0.6, tool_shares={"search": 0.25, "python": 0.75}),
    row("gaia", "untrained", 10, 0.3),
    row("mine", "trained", 10, 0.8, tool_shares={"search": 0.75, "python": 0.25}),
    row("mine", "bare", 0, 0.1),
]


def evaluation(folder, rows=ROWS, parameters=500_000_000):
    folder.mkdir()
    values = {"seed": 0, "trials": 1, "questions": {}, "rows": rows, "parameters": parameters}
    values["config"] = {}
    (folder / "results.json").write_text(json.dumps(values))
    (folder / "scores.jsonl").write_text("")
    return folder


def run(folder, steps=12):
    (folder / "trajectories").mkdir(parents=True)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            line = {"step": step, "rollout/tool_error_rate": 1 / step, "reward/mean": step / 20}
            line |= {"tool/search/share": step / 20, "tool/python/share": 1 - step / 20}
            file.write(json.dumps(line) + "\n")
    turns = [{"response_tokens": 10}, {"response_tokens": 20}, {"response_tokens": None}]
    lines = [{"turns": turns}, {"turns": [{"response_tokens": 60}]}, {"turns": None}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "trajectories" / "step_000004.jsonl").write_text(text + "torn")
    return folder


def test_charts_of_runs_and_evaluations(tmp_path):
    large = [row("gaia", "trained", 10, 0.9)]
    charts = analyses.of_folders(
        [run(tmp_path / "a"), evaluation(tmp_path / "e"), evaluation(tmp_path / "l", large, 7e9)]
    )
    by_title = {chart["title"]: chart for chart in charts}

    errors = by_title["Tool-call errors"]["series"][0]
    assert (errors["label"], errors["x"][3], errors["y"][3]) == ("a", 4, 0.25)
    assert by_title["Response length"]["series"][0]["y"] == [30.0]
    tools = by_title["Tools chosen"]
    shares = {
        line["label"]: dict(zip(tools["bars"], line["y"], strict=True)) for line in tools["series"]
    }
    assert shares["a, first 5 steps"]["search"] == pytest.approx(3 / 20)
    assert shares["a, last 5 steps"]["search"] == pytest.approx(10 / 20)
    assert shares["e, trained"] == pytest.approx({"search": 0.5, "python": 0.5})
    assert shares["e, untrained"] == {"search": 1.0, "python": 0.0}

    [line] = by_title["gaia: score"]["series"]
    assert (line["label"], line["x"], line["y"]) == ("e, trained", [3, 10], [0.4, 0.6])
    assert line["low"] == pytest.approx([0.3, 0.5])
    assert by_title["gaia: turns used"]["series"][0]["y"] == [2.5, 9.5]
    assert "mine: score" not in by_title  # one budget is no curve
    planner = by_title["Planner"]
    scores = {
        line["label"]: dict(zip(planner["bars"], line["y"], strict=True))
        for line in planner["series"]
    }
    assert scores["e, trained"] == {"gaia": 0.6, "mine": 0.8}  # of the largest budget
    assert scores["e, bare"] == {"gaia": None, "mine": 0.1}
    assert scores["paper (theirs, 7B), trained"] == pytest.approx({"gaia": 0.331, "mine": None})
    [size] = by_title["Size"]["series"]
    assert size["x"] == [0.5, 7.0] and size["y"] == pytest.approx([0.7, 0.9])


def test_folders_that_are_neither_are_refused(tmp_path):
    with pytest.raises(command.ConfigError, match="neither a run"):
        analyses.of_folders([tmp_path])
    run(tmp_path / "x" / "a"), run(tmp_path / "y" / "a")
    with pytest.raises(command.ConfigError, match="cannot be told apart"):
        analyses.of_folders([tmp_path / "x" / "a", tmp_path / "y" / "a"])


def test_plots_need_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(command.EXTRAS, "plots", ("no_such_package",))
    with pytest.raises(command.ConfigError, match=r"pip install '.\[plots\]'"):
        evaluate.analyse([run(tmp_path / "a")], tmp_path)


def test_every_chart_is_a_png_and_an_svg(tmp_path):
    pytest.importorskip("matplotlib")
    charts = analyses.of_folders([run(tmp_path / "$a_1$"), evaluation(tmp_path / "e")])
    paths = plots.write(charts, tmp_path / "plots")
    assert len(paths) == 2 * len(charts) == len({*paths})
    for path in paths:
        head = path.read_bytes()[:8]
        assert head.startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in plots.write(charts, tmp_path / "plots")] == before
