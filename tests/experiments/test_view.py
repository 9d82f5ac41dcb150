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

from experiments.reporting import report, trajectories
from tests.experiments import browser

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028\u202e&amp;\x1b[31m"
TOOLS = ("knowledge_search", "python_coder", "base_generator")
PLACES = ("Lake Constance", "Mount Etna", "the Danube", "Tartu", "Ljubljana", "Lake Ohrid")


def fake_turn(draw, index, *, skill, last):
    tool = draw.choices(TOOLS, weights=(1 + 6 * skill, 2, 3 - 2 * skill))[0]
    place = draw.choice(PLACES)
    error = draw.random() < 0.45 * (1 - skill)
    command = {
        "knowledge_search": f'tool.execute(query="{place} area")',
        "python_coder": 'tool.execute(code="a = 1184\\nb = 376.9\\nprint(a - b)")',
        "base_generator": f'tool.execute(prompt="What is known about {place}?")',
    }[tool]
    result = f"{place}: a well documented place. Area {draw.randint(20, 900)} km2, 3 rivers.\n" * 3
    return {
        "index": index,
        "prompt_tokens": 180 + 70 * index,
        "response_tokens": draw.randint(24, 60),
        "planner_text": f"Justification: the area of {place} is missing.\nContext: {place}\n"
        f"Sub-goal: find the area of {place}\nTool: {tool}",
        "context": f"The question compares two places; {place} is one of them.",
        "sub_goal": f"Find the area of {place}.",
        "tool": tool,
        "command": command,
        "result": "ToolError: the command names no parameter 'code'." if error else result,
        "tool_error": error,
        "verdict": "STOP" if last else "CONTINUE",
        "logprob_sum": -draw.random() * 9 * (1.2 - skill),
        "seconds": draw.random(),
    }


def fake_trajectory(draw, step, question, rollout, *, skill):
    right = draw.random() < 0.2 + 0.75 * skill
    count = draw.choice((1, 2, 2, 3))
    failed = draw.random() < 0.01
    return {
        "version": 1,
        "step": step,
        "question_id": f"q{question}",
        "rollout": rollout,
        "question": f"How much larger is {PLACES[question % 6]} than {PLACES[(question + 2) % 6]}, "
        f"in square kilometres, rounded to {question % 3} digits?",
        "gold": ["160", "160 km2"] if question % 2 else "807.1",
        "analysis": "Two look-ups, then a subtraction.",
        "turns": [
            fake_turn(draw, i, skill=skill, last=i == count - 1 and right) for i in range(count)
        ],
        "answer": "160" if right else "about 12",
        "reward": None if failed else float(right),
        "reward_source": "number",
        "advantage": 0.0 if failed else (0.7 if right else -0.9),
        "status": "infra_error" if failed else "ok",
        "stop": "verified" if right else "budget",
        "seconds": 2.5 + draw.random(),
        "error": "pool worker died" if failed else "",
    }


def fake_metrics(draw, step, steps):
    skill = step / steps
    row = {
        "reward/mean": 0.2 + 0.7 * skill + draw.gauss(0, 0.06),
        "reward/std": 0.4,
        "group/zero_variance": 0.1 + 0.5 * skill,
        "rollout/turns": 2.1 - 0.3 * skill + draw.gauss(0, 0.1),
        "rollout/tool_error_rate": 0.42 * (1 - skill) + 0.03 + 0.02 * draw.random(),
        "rollout/truncated": 0.02 * draw.random(),
        "rollout/infra_errors": 0.0,
        "tokens/generated": 21_400 + draw.randint(-900, 900),
        "loss/kl": 0.02 * skill,
        "policy/entropy": 0.9 - 0.5 * skill + draw.gauss(0, 0.03),
        "policy/logprob_gap_mean": 1.1e-6 * (1 + draw.random()),
        "policy/logprob_gap_max": 1.4e-5 * (1 + draw.random()),
        "policy/logprob_gap_k3": 1e-12 * (1 + draw.random()),
        "policy/clip_fraction": 0.01 + 0.02 * draw.random(),
        "optim/grad_norm": 0.3 + 0.2 * draw.random(),
        "time/rollout": 5.2 + draw.random(),
        "time/update": 2.9 + draw.random() / 3,
        "time/step": 8.4 + draw.random(),
        "throughput/generated_tokens_per_s": 3900 + draw.gauss(0, 150),
        "compile/count": 9.0,
        "loss/total": draw.gauss(0, 0.02),
    }
    search = 0.3 + 0.4 * skill
    shares = (search, 0.25, 0.75 - search)
    row |= {f"tool/{tool}/share": share for tool, share in zip(TOOLS, shares, strict=True)}
    if step == 0:
        row = {}
    if step % 10 == 0:
        correct = round(100 * (0.36 + 0.57 * skill))
        row |= {
            "eval/success": correct / 100,
            "eval/correct": correct,
            "eval/total": 100,
            "eval/success/geo/1-hop": 0.5 + 0.45 * skill,
            "eval/success/geo/2-hop": 0.1 + 0.6 * skill,
            "eval/turns": 2.2 - 0.2 * skill,
            "eval/tool_error_rate": 0.31 * (1 - skill) + 0.02,
        }
    return {"step": step} | row


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def fake_run(folder, *, steps, questions, group, hostile=""):
    """A run folder as experiments.train leaves it, with `hostile` in a trajectory's every text."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    config = {
        "hash": "6f1c9a",
        "config": {
            "seed": 0,
            "steps": steps,
            "model": {"path": "experiments/data/quickstart/model"},
            "rollout": {"questions": questions, "group": group, "max_turns": 3, "temperature": 1.0},
            "loss": {"variant": "flow", "kl_coef": 0.001},
            "optim": {"lr": 3e-4},
            "note": hostile,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_lines(folder / "metrics.jsonl", [fake_metrics(draw, s, steps) for s in range(steps + 1)])
    for step in range(1, steps + 1):
        rows = [
            fake_trajectory(draw, step, (step * questions + q) % 97, g, skill=step / steps)
            for q in range(questions)
            for g in range(group)
        ]
        if hostile and step == steps:
            rows[0] = {k: hostile if isinstance(v, str) else v for k, v in rows[0].items()}
            turn = {k: hostile if isinstance(v, str) else v for k, v in rows[0]["turns"][0].items()}
            rows[0]["turns"][0] = turn
        write_lines(folder / "trajectories" / f"step_{step:06d}.jsonl", rows)
    for step in range(0, steps + 1, 10):
        rows = [fake_trajectory(draw, step, 200 + q, 0, skill=step / steps) for q in range(40)]
        write_lines(folder / "trajectories" / f"heldout_{step:06d}.jsonl", rows)
    return folder


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
            json.loads(text) for attrs, text in self.scripts if attrs.get("id") == f"data-{name}"
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
    rewards = [row[0] for group in steps[index]["groups"] for row in group[2]]
    assert rewards == [t["reward"] for t in written]


def test_hostile_texts_stay_texts(page):
    reader = Reader(page)
    assert [t for t, _ in reader.tags if t in ("img", "iframe", "link", "object")] == []
    code = [text for attrs, text in reader.scripts if attrs.get("type") != "application/json"]
    assert len(code) == 1 and "alert(" not in code[0]
    assert not re.search("[\u2028\u202e\x1b]", page)
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
    for path in report.ASSETS.glob("*.js"):
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
    budget = 60_000
    page = report.write_report(run, tmp_path / "small.html", text_budget=budget).read_text()
    reader = Reader(page)
    texts = {a["id"]: t for a, t in reader.scripts if a.get("id", "").startswith("data-texts-")}
    steps = reader.data("steps")
    kept = {steps[int(name[11:])]["step"] for name in texts}
    assert sum(map(len, texts.values())) < 1.5 * budget
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


def test_damaged_trajectories_are_counted_and_said(tmp_path):
    folder = fake_run(tmp_path / "run", steps=2, questions=1, group=2)
    with open(folder / "trajectories" / "step_000002.jsonl", "a") as lines:
        lines.write(
            '{"turns": 7, "reward": "high", "rollout": null, "gold": {"a": 1}}\n{"version": 1, "st'
        )
    reader = Reader(report.write_report(folder).read_text())
    assert "1 damaged or unfinished lines" in reader.text
    assert next(s for s in reader.data("steps") if s["step"] == 2)["rollouts"] == 3


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
    [[first, second]] = json.loads(listing.texts[0])
    lengths = [turn["response_tokens"] for turn in first["turns"]]
    assert listing.steps[0]["response_tokens"] == pytest.approx(sum(lengths) / len(lengths))
    assert "branch" not in first and "advantage" not in first["turns"][0]
    assert second["branch"] == {"parent": 0, "turn": 2} and second["advantage"] is None
    assert [turn["advantage"] for turn in second["turns"]] == [None, -0.5]


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no run.*--workdir"):
        report.write_report(tmp_path)


def test_long_texts_say_what_was_cut():
    cut = trajectories.text("x" * 7000)
    assert cut.startswith("x" * 6000 + "\n[1000 more characters")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if not browser.CHROMIUM:
        pytest.skip("no Chromium")
    with browser.start(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_window(tab, run, page, width):
    tab.open(run / "report.html", width=width)
    tab.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    tab.settle()
    assert tab.run("document.documentElement.scrollWidth") == width


# share: of the way from the first to the last of 20 steps.
@pytest.mark.parametrize(
    "title, share, legend",
    [
        # Measured at 0, 10 and 20: no value is shown as that of another step.
        ("Held-out success", 0.30, "success 64.0 % at step 10"),
        ("Held-out success", 0.20, "success 36.0 % at step 0"),
        ("Held-out success", 0.80, "success 93.0 % at step 20"),
        # One series has every step, the other the step that is named with its value.
        ("Turns", 0.35, r"training \S+ held-out 2.1 \(step 10\) at step 7"),
        ("Turns", 0.50, r"training \S+ held-out 2.1 at step 10"),
    ],
)
def test_hovering_names_the_step_of_every_value(tab, run, page, title, share, legend):
    tab.open(run / "report.html", width=1280)
    card = f"""[...document.querySelectorAll(".chart")].find(
        (card) => card.querySelector("h3").textContent === {json.dumps(title)})"""
    tab.run(f"{card}.scrollIntoView({{ behavior: 'instant', block: 'center' }})")
    box = tab.run(f"{card}.querySelector('svg').getBoundingClientRect().toJSON()")
    left, right = 46, 10  # LEFT and RIGHT of charts.js
    x = box["x"] + left + share * (box["width"] - left - right)
    tab.hover(x, box["y"] + box["height"] / 2)
    shown = tab.run(f"{card}.querySelector('.legend').innerText.replace(/\\s+/g, ' ').trim()")
    assert re.fullmatch(legend, shown), shown


ASK = """({
  listed: [...document.querySelectorAll(".question")].map((one) => one.ariaPressed),
  open: document.querySelector(".detail h3, .detail > .quiet").textContent,
  address: location.hash,
})"""


def choose(tab, label, value):
    name = json.dumps(f'[aria-label="{label}"]')
    event = "input" if label.startswith("Find") else "change"
    tab.run(f"""(() => {{
      const field = document.querySelector({name});
      field.value = {json.dumps(value)};
      field.dispatchEvent(new Event("{event}"));
    }})()""")
    return tab.run(ASK)


def test_the_open_question_is_one_that_is_listed(tab, tmp_path):
    def held_out(step, rewards):
        rows = [
            fake_trajectory(random.Random(0), step, number, 0, skill=0)
            | {"question": f"Question {number}?", "reward": reward}
            for number, reward in enumerate(rewards)
        ]
        write_lines(tmp_path / "trajectories" / f"heldout_{step:06d}.jsonl", rows)

    held_out(0, [0.0, 0.0, 1.0])
    held_out(10, [1.0, 0.0, 1.0])
    training = [fake_trajectory(random.Random(0), 5, 7, g, skill=0) for g in range(2)]
    write_lines(tmp_path / "trajectories" / "step_000005.jsonl", training)
    tab.open(report.write_report(tmp_path), width=1280)
    assert tab.run(ASK)["open"] == "Question 0?"

    tab.run("document.querySelectorAll('.question')[2].click()")
    # A filter closes a question that it hides, and clearing it opens that one again.
    found = choose(tab, "Filter", "none solved")
    assert found == {"listed": ["true"], "open": "Question 1?", "address": "#2.1.0"}
    assert choose(tab, "Find in questions", "nowhere") == {
        "listed": [],
        "open": "No question is open.",
        "address": "#2",
    }
    choose(tab, "Find in questions", "")
    assert choose(tab, "Filter", "all questions")["open"] == "Question 2?"
    # Another evaluation shows the same question, and one without it does not make it forgotten.
    assert choose(tab, "Step", "0") == {
        "listed": ["false", "false", "true"],
        "open": "Question 2?",
        "address": "#0.2.0",
    }
    assert choose(tab, "Step", "1")["open"].startswith("How much larger")
    assert choose(tab, "Step", "2")["open"] == "Question 2?"
    # What a filter opened stays open in the next step too, if it is listed there.
    choose(tab, "Filter", "none solved")
    assert choose(tab, "Step", "0")["open"] == "Question 1?"


def view(*flags):
    command = [sys.executable, "-m", "experiments.view", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_writes_the_page(run, tmp_path):
    out = tmp_path / "new" / "page.html"
    done = view(f"--workdir={run}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert out.read_text().startswith("<!doctype html>") and str(out) in done.stderr


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
        (["-h"], 0, ""),
    ],
)
def test_exit_codes(flags, code, message):
    done = view(*flags)
    assert done.returncode == code
    assert message in done.stderr and "Traceback" not in done.stderr
