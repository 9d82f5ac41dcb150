"""The report page: what it says, what it survives, and that hostile texts stay texts."""

import base64
import hashlib
import html.parser
import json
import random
import re
import subprocess
import sys

import pytest

from experiments.reporting import page as pages
from experiments.reporting import report, terminal, trajectories
from tests.experiments.fake_runs import (
    HOSTILE,
    TOOLS,
    fake_run,
    fake_trajectory,
    fake_turn,
    write_lines,
)


class Reader(html.parser.HTMLParser):
    """Collects the tags of a page and the contents of its scripts, as a browser would cut them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts, self.styles, self.text = [], [], [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            attrs, before = self.scripts[-1]
            self.scripts[-1] = (attrs, before + data)
        elif self.inside == "style":
            self.styles.append(data)
        else:
            self.text += data

    inside = None

    def data(self, name):
        return next(
            trajectories.unpack(text)
            for attrs, text in self.scripts
            if attrs.get("id") == f"data-{name}"
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "quickstart"
    return fake_run(folder, steps=20, questions=4, group=4, hostile=HOSTILE)


@pytest.fixture(scope="module")
def page(run):
    return report.write_report(run).read_text(encoding="utf-8")


def test_the_page_tells_before_and_after(page):
    text = Reader(page).text
    assert "Before training" in text and "After step 20" in text
    assert "36.0 %" in text and "36/100 (27–46 %)" in text
    assert "93.0 %" in text and "93/100" in text
    assert "+57.0 points" in text and "-29.0 points" not in text and "-31.0 points" in text
    for question in ("Did it learn?", "What did it learn?", "Can I trust it?"):
        assert question in text
    assert "the same 40 held-out questions" in text and "python_coder: unreadable command" in text
    assert "Failures excluded" in text and "1 x cpu" in text


def test_the_page_holds_curves_and_every_turn(page, run):
    reader = Reader(page)
    titles = {chart["title"]: chart for chart in reader.data("charts")["main"]}
    assert {"Held-out success", "Reward", "Tools chosen", "Log-prob gap"} <= set(titles)
    assert "KL of sampler and trainer" in titles
    assert titles["Held-out success"]["series"][0]["x"] == [0, 10, 20]
    assert {s["label"] for s in titles["Tools chosen"]["series"]} == set(TOOLS)
    by_source = titles["Held-out success by source"]["series"]
    assert [(s["label"], s["x"]) for s in by_source] == [
        ("geo/1-hop", [0, 10, 20]),
        ("geo/2-hop", [0, 10, 20]),
    ]
    other = [chart["title"] for chart in reader.data("charts")["other"]]
    assert "compile/count" in other and "eval/total" not in other

    steps = reader.data("steps")
    assert [s["step"] for s in steps if not s["heldout"]] == list(range(1, 21))
    assert [s["step"] for s in steps if s["heldout"]] == [0, 10, 20]
    index = next(i for i, s in enumerate(steps) if s["step"] == 7)
    with open(run / "trajectories" / "step_000007.jsonl") as lines:
        written = [json.loads(line) for line in lines]
    shown = [t for group in reader.data(f"texts-{index}") for t in group]
    assert [t["answer"] for t in shown] == [t["answer"] for t in written]
    assert shown[5]["turns"][0]["command"] == written[5]["turns"][0]["command"]
    assert shown[0]["gold"] in ("160 | 160 km2", "807.1")
    rows = [row for group in steps[index]["groups"] for row in group[3]]
    assert [row[0] for row in rows] == [t["reward"] for t in written]
    assert [row[5] for row in rows] == [
        list(dict.fromkeys(turn["tool"] for turn in t["turns"])) for t in written
    ]
    assert steps[index]["groups"][0][2] == written[0]["source"]
    turn, kept = written[5]["turns"][0], shown[5]["turns"][0]
    assert [logprob for _, logprob in kept["tokens"]] == turn["token_logprobs"]


def test_hostile_texts_stay_texts(page):
    reader = Reader(page)
    assert [t for t, _ in reader.tags if t in ("img", "iframe", "link", "object")] == []
    code = [text for attrs, text in reader.scripts if attrs.get("type") != "text/plain"]
    assert len(code) == 1 and "alert(" not in code[0]
    assert not re.search("[\u2028\u202e\x1b]", page)
    # The summary names the question and its tool.
    assert reader.text.count("<img src=x onerror=alert(2)>⟨U+2028⟩⟨U+202E⟩&amp;⟨U+001B⟩[31m") >= 3
    steps = reader.data("steps")
    last = max(i for i, s in enumerate(steps) if not s["heldout"])
    one = next(t for group in reader.data(f"texts-{last}") for t in group if t["stop"] == HOSTILE)
    assert one["analysis"] == HOSTILE and one["turns"][0]["result"] == HOSTILE


@pytest.mark.parametrize("value", [HOSTILE, "]]>", "<!--<script>", "\ud800", {"<": "&"}])
def test_dumped_json_is_inert_and_whole(value):
    dumped = trajectories.dump(value)
    assert json.loads(dumped) == value
    assert not re.search(r"[<>&]|[^\x20-\x7e]", dumped)


def test_scripts_never_write_markup():
    for path in pages.ASSETS.glob("*.js"):
        text = path.read_text()
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(", text
        )
        assert not found, path.name


def test_the_page_needs_nothing_else_and_admits_only_its_own_code(page):
    reader = Reader(page)
    names = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(names) == len(set(names))
    assert not [a for _, a in reader.tags if {"src", "href", "style", "onclick"} & set(a)]
    outside = set(re.findall(r"https?://[^\s\"'`]+", page))
    assert outside == {"http://www.w3.org/2000/svg"}
    policy = next(a["content"] for t, a in reader.tags if "http-equiv" in a)
    code = next(text for attrs, text in reader.scripts if not attrs)
    for name, content in (("script-src", code), ("style-src", reader.styles[0])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_a_large_run_stays_within_the_budget(run, tmp_path):
    budget = 12_000
    page = report.write_report(run, tmp_path / "small.html", text_budget=budget).read_text()
    reader = Reader(page)
    texts = {a["id"]: t for a, t in reader.scripts if a.get("id", "").startswith("data-texts-")}
    steps = reader.data("steps")
    kept = {steps[int(name[11:])]["step"] for name in texts}
    assert 0.3 * budget < sum(map(len, texts.values())) < 1.5 * budget
    assert {0, 1, 20} <= kept and len(texts) < len(steps)
    assert all(step["groups"] for step in steps)
    assert (
        "To stay small" in reader.text
        and "To stay small"
        not in Reader(report.write_report(run, tmp_path / "whole.html").read_text()).text
    )


def test_rewards_are_bounded_too(run):
    listing = trajectories.collect(run / "trajectories", text_budget=10**9, listed_rollouts=100)
    listed = [step for step in listing.steps if step["groups"]]
    assert 0 < sum(step["rollouts"] for step in listed) <= 100
    assert all(step["mean"] is not None for step in listing.steps)


@pytest.mark.parametrize(
    "count, order", [(0, []), (1, [0]), (2, [0, 1]), (5, [0, 4, 2, 1, 3]), (3, [0, 2, 1])]
)
def test_spread_begins_with_the_ends(count, order):
    assert trajectories.spread(count) == order


def test_spread_visits_all():
    assert sorted(trajectories.spread(100)) == list(range(100))


def test_metrics_of_a_killed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 2, "reward/mean": 0.5}\n{"step": 1, "reward/mean": NaN, "x": "text"}\n'
        '[1]\n{"step": 2, "eval/success": 0.25}\n{"step": 3, "reward/me'
    )
    assert report.read_metrics(path) == (
        [{"step": 1}, {"step": 2, "reward/mean": 0.5, "eval/success": 0.25}],
        2,
    )


@pytest.mark.parametrize("missing", ["config.json", "metrics.jsonl", "trajectories", "eval"])
def test_missing_pieces_are_survived(tmp_path, missing):
    folder = fake_run(tmp_path / "run", steps=3, questions=2, group=2)
    if missing == "eval":
        rows = [{"step": 1, "reward/mean": 0.5}]
        write_lines(folder / "metrics.jsonl", rows)
    elif missing == "trajectories":
        (folder / missing).rename(folder / "elsewhere")
    else:
        (folder / missing).unlink()
    reader = Reader(report.write_report(folder).read_text())
    assert ("not evaluated" in reader.text) == (missing in ("eval", "metrics.jsonl"))
    assert bool(reader.data("steps")) == (missing != "trajectories")


def test_evaluations_that_cannot_be_are_left_out_and_counted(tmp_path):
    evaluated = {"eval/success": 0.5, "eval/correct": 5, "eval/total": 10, "eval/turns": 2.0}
    wrong = [
        {"eval/correct": 11},
        {"eval/correct": -1},
        {"eval/total": 9.5},
        {"eval/total": -3, "eval/correct": None},
        {"eval/success": 1.5, "eval/correct": None},
    ]
    rows = [{"step": step} | evaluated | changed for step, changed in enumerate([{}, *wrong, {}])]
    write_lines(tmp_path / "metrics.jsonl", rows)
    found, damaged = report.read_metrics(tmp_path / "metrics.jsonl")
    assert damaged == len(wrong)
    assert [step["step"] for step in found if "eval/success" in step] == [0, 6]
    assert [step["eval/turns"] for step in found] == [2.0] * 7
    assert "5/10" in report.write_report(tmp_path).read_text()


def test_what_infrastructure_broke_has_no_reward(tmp_path):
    lines = [
        {"question_id": "q", "rollout": i, "reward": reward, "status": status}
        for i, (reward, status) in enumerate(
            [(1.0, "ok"), (0.0, "infra_error"), (0.0, "timeout"), (0.0, "ok")]
        )
    ]
    for name in ("step_000001", "heldout_000001"):
        write_lines(tmp_path / "trajectories" / f"{name}.jsonl", lines)
    found = trajectories.collect(tmp_path / "trajectories", text_budget=10_000)
    for step in found.steps:  # of an evaluation they are wrong
        assert step["mean"] == (0.25 if step["heldout"] else 0.5)
        assert [row[0] for row in step["groups"][0][3]] == [1, None, None, 0]
    texts = trajectories.unpack(found.texts[0])
    assert [one["reward"] for one in texts[0]] == [1, None, None, 0]


def test_damaged_trajectories_are_counted_and_said(tmp_path):
    folder = fake_run(tmp_path / "run", steps=2, questions=1, group=2)
    with open(folder / "trajectories" / "step_000002.jsonl", "a") as lines:
        lines.write(
            '{"turns": 7, "reward": "high", "rollout": null, "gold": {"a": 1}}\n{"version": 1, "st'
        )
    reader = Reader(report.write_report(folder).read_text())
    assert "1 damaged or unfinished lines" in reader.text
    assert next(s for s in reader.data("steps") if s["step"] == 2)["rollouts"] == 3


@pytest.mark.parametrize(
    "counts, logprobs",
    [
        ([1, 2], [-0.5]),
        ([1, "2"], [-0.5, -0.5]),
        ([4, -1], [-0.5, -0.5]),
        ([1, 1], [-0.5, -0.5]),
        ([1, 2], [-0.5, float("nan")]),
        (3, [-0.5]),
    ],
)
def test_log_probs_that_do_not_fit_their_text_are_left_out(counts, logprobs):
    turn = {"planner_text": "abc", "token_characters": counts, "token_logprobs": logprobs}
    groups, _ = trajectories.groups_of([{"turns": [turn]}])
    assert "tokens" not in groups[""][0]["turns"][0]
    whole = turn | {"token_characters": [1, 0, 2], "token_logprobs": [-0.5, 0, -2]}
    groups, _ = trajectories.groups_of([{"turns": [whole]}])
    assert groups[""][0]["turns"][0]["tokens"] == [[1, -0.5], [2, -2]]


def test_texts_that_pack_too_well_count_by_what_they_unpack_to():
    lines = [{"question_id": str(q), "analysis": "a" * 6000} for q in range(400)]
    part = {"step": 1, "run": 0, "heldout": False}, lambda: lines
    listing = trajectories.listing([part], [0], text_budget=100_000)
    assert 30 < listing.steps[0]["texts"] < 100
    assert len(listing.texts[0]) < 10_000


def test_two_runs_stand_beside_each_other(tmp_path):
    a = fake_run(tmp_path / "a" / "run", steps=10, questions=2, group=2)
    b = fake_run(tmp_path / "b" / "run", steps=20, questions=2, group=2)
    reader = Reader(report.write_report([a, b], tmp_path / "both.html").read_text())
    assert reader.data("runs") == ["a/run", "b/run"]
    steps = reader.data("steps")
    assert [s["step"] for s in steps if s["heldout"] and s["run"] == 0] == [0, 10]
    assert [s["step"] for s in steps if s["heldout"] and s["run"] == 1] == [0, 10, 20]
    charts = {chart["title"]: chart for chart in reader.data("charts")["main"]}
    labels = [(s["label"], s["run"]) for s in charts["Reward"]["series"]]
    assert labels == [("a/run: mean", 0), ("b/run: mean", 1)]
    assert "steps: 10 / 20 differs" in reader.text
    assert "b/run less a/run, at their last evaluations on the same 40 questions" in reader.text
    with pytest.raises(ValueError, match="given twice"):
        report.write_report([a, a], tmp_path / "both.html")


def test_the_terminal_gets_the_same_answers(run):
    shown = terminal.text([run])
    for part in ("✓ Yes: +", "held-out", "36.0 %   36/100", "knowledge_search", "1 x cpu"):
        assert part in shown
    assert "newly solved" in shown and "One question, before and after" in shown
    assert not re.search("[\u2028\u202e\x1b]", shown)
    assert max(map(len, shown.splitlines())) <= 110


@pytest.mark.parametrize(
    "values, shown",
    [([0, 0.5, 1], "▁▅█"), ([2, 2], "▁▁"), ([0] * 120 + [1] * 120, "▁" * 30 + "█" * 30)],
)
def test_curves_of_blocks(values, shown):
    assert terminal.curve(values) == shown


def test_a_branch_keeps_its_place_and_turns_their_own_advantages(tmp_path):
    draw = random.Random(0)
    plain, branch = (fake_trajectory(draw, 1, 0, rollout, skill=1.0) for rollout in range(2))
    branch |= {"branch": {"parent": 0, "turn": 2, "x": HOSTILE}, "advantage": None}
    branch["turns"] = [fake_turn(draw, i, skill=1.0, last=False) for i in range(2)]
    for turn, advantage in zip(branch["turns"], (None, -0.5), strict=True):
        turn["advantage"] = advantage
    lines = (json.dumps(each) + "\n" for each in (plain, branch))
    (tmp_path / "step_000001.jsonl").write_text("".join(lines))
    listing = trajectories.collect(tmp_path, text_budget=50_000)
    [[first, second]] = trajectories.unpack(listing.texts[0])
    lengths = [turn["response_tokens"] for turn in first["turns"]]
    mean = sum(lengths) / len(lengths)
    assert listing.steps[0]["response_tokens"] == pytest.approx(mean, rel=1e-5)
    assert "branch" not in first and "advantage" not in first["turns"][0]
    assert second["branch"] == {"parent": 0, "turn": 2} and second["advantage"] is None
    assert [turn["advantage"] for turn in second["turns"]] == [None, -0.5]


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no run.*--workdir"):
        report.write_report(tmp_path)


def test_long_texts_say_what_was_cut():
    cut = trajectories.text("x" * 7000)
    assert cut.startswith("x" * 6000 + "\n[1000 more characters")


def view(*flags):
    command = [sys.executable, "-m", "experiments.view", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_writes_the_page(run, tmp_path):
    out = tmp_path / "new" / "page.html"
    done = view(f"--workdir={run}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert out.read_text().startswith("<!doctype html>") and str(out) in done.stderr
    done = view(f"--workdir={run}", "--text")
    assert done.returncode == 0 and done.stdout == terminal.text([run])


@pytest.mark.parametrize(
    "flags, code, message",
    [
        (["--workdir=/nowhere"], 2, "error: /nowhere holds no run"),
        (["--workdri=x"], 2, "workdri"),
        ([], 2, "workdir"),
        (["--workdir=x", "stray"], 2, "stray"),
        (["--workdir=."], 2, "error: . holds no run"),
        (["--workdir=.", "--out="], 2, "--out is empty; give a value or leave it out"),
        (["--workdir=.", "--out=/dev/null"], 2, "--out=/dev/null is no regular file"),
        (["--workdir=.", "--text_megabytes=nan"], 2, "--text_megabytes=nan must be finite"),
        (["--workdir=x", "--workdir=y", "--workdir=z"], 2, "at most 2 runs"),
        (["--workdir=.", "--text", "--serve"], 2, "--text and --serve exclude each other"),
        (["--workdir=/nowhere", "--serve"], 2, "/nowhere is no folder"),
        (["-h"], 0, ""),
    ],
)
def test_exit_codes(flags, code, message):
    done = view(*flags)
    assert done.returncode == code
    assert message in done.stderr and "Traceback" not in done.stderr
