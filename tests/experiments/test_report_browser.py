"""The report page in a headless Chromium: what is seen, clicked and typed."""

import json
import random
import re
import threading

import pytest

from experiments.reporting import live, report
from tests.experiments import browser
from tests.experiments.fake_runs import HOSTILE, fake_run, fake_trajectory, write_lines

pytestmark = pytest.mark.skipif(not browser.CHROMIUM, reason="no Chromium")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser.start(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "quickstart"
    run = fake_run(folder, steps=20, questions=4, group=4, hostile=HOSTILE)
    return report.write_report(run)


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_nothing_is_wider_than_the_window(tab, page, width):
    tab.open(page, width=width)
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
def test_hovering_names_the_step_of_every_value(tab, page, title, share, legend):
    tab.open(page, width=1280)
    card = f"""[...document.querySelectorAll(".chart")].find(
        (card) => card.querySelector("h3").textContent === {json.dumps(title)})"""
    tab.run(f"{card}.scrollIntoView({{ behavior: 'instant', block: 'center' }})")
    box = tab.run(f"{card}.querySelector('svg').getBoundingClientRect().toJSON()")
    left, right = 46, 10  # LEFT and RIGHT of charts.js
    x = box["x"] + left + share * (box["width"] - left - right)
    tab.hover(x, box["y"] + box["height"] / 2)
    shown = tab.run(f"{card}.querySelector('.legend').innerText.replace(/\\s+/g, ' ').trim()")
    assert re.fullmatch(legend, shown), shown


ASK = """new Promise((done) => setTimeout(done, 0)).then(() => ({
  listed: [...document.querySelectorAll(".question")].map((one) => one.ariaPressed),
  open: document.querySelector(".detail h3, .detail > .quiet").textContent,
  address: location.hash,
}))"""


def choose(tab, label, value):
    name = json.dumps(f'[aria-label="{label}"]')
    event = "input" if label == "Find" else "change"
    tab.run(f"""(() => {{
      const field = document.querySelector({name});
      field.value = {json.dumps(value)};
      field.dispatchEvent(new Event("{event}"));
    }})()""")
    tab.settle()
    return tab.run(ASK)


def press(tab, *keys):
    for key in keys:
        for kind in ("keyDown", "keyUp"):
            tab.call("Input.dispatchKeyEvent", type=kind, key=key, text=key[:1] * (len(key) == 1))
    tab.settle()
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
    found = choose(tab, "Reward", "none solved")
    assert found == {"listed": ["true"], "open": "Question 1?", "address": "#0.h10/1/0"}
    found = choose(tab, "Find", "nowhere")
    assert (found["listed"], found["open"]) == ([], "No question is open.")
    choose(tab, "Find", "")
    assert choose(tab, "Reward", "")["open"] == "Question 2?"
    # Another evaluation shows the same question, and one without it does not make it forgotten.
    assert choose(tab, "Step", "0") == {
        "listed": ["false", "false", "true"],
        "open": "Question 2?",
        "address": "#0.h0/2/0",
    }
    assert choose(tab, "Step", "1")["open"].startswith("How much larger")
    assert choose(tab, "Step", "2")["open"] == "Question 2?"
    # What a filter opened stays open in the next step too, if it is listed there.
    choose(tab, "Reward", "none solved")
    assert choose(tab, "Step", "0")["open"] == "Question 1?"


COLUMNS = """[...document.querySelectorAll(".column")].map((one) => ({
  title: one.querySelector(".column-title").textContent,
  current: one.ariaCurrent,
  chips: [...one.querySelectorAll(".column-head .chip")].map((chip) => chip.textContent),
}))"""


def test_rollouts_stand_side_by_side_and_keys_walk_through_them(tab, page):
    tab.open(page, width=1280)
    first = choose(tab, "Step", "1")  # training step 1
    assert tab.run("document.querySelectorAll('.question .square').length") == 16
    columns = tab.run(COLUMNS)
    assert [one["title"] for one in columns] == [f"Rollout {g}" for g in range(4)]
    assert [one["current"] for one in columns] == ["true", "false", "false", "false"]
    assert {"advantage +0.7", "advantage −0.9"} >= {
        chip for one in columns for chip in one["chips"] if chip.startswith("advantage")
    }
    # Turns of one index are on one height.
    tops = """[...document.querySelectorAll(".column")].map((one) =>
        one.querySelector(".turn").getBoundingClientRect().top)"""
    assert len(set(tab.run(tops))) == 1
    second = press(tab, "j")
    assert second["open"] != first["open"] and second["address"].endswith("/1/0")
    assert press(tab, "k")["open"] == first["open"]
    assert press(tab, "l", "l")["address"].endswith("/0/2")
    press(tab, "s")
    assert [one["title"] for one in tab.run(COLUMNS)] == ["Rollout 2"]
    assert press(tab, "]")["address"].startswith("#0.t2/")
    press(tab, "?")
    assert tab.run("document.querySelector('dialog').open")
    assert press(tab, "j")["address"].startswith("#0.t2/0")  # the help takes the keys
    press(tab, "?", "/")
    assert tab.run("document.activeElement.ariaLabel") == "Find"


def test_tokens_are_shaded_and_add_up_to_the_text(tab, page):
    tab.open(page, width=1280)
    choose(tab, "Step", "1")
    told = tab.run("""store().then(([text, spans]) => ({
      same: document.querySelector(".planner").textContent === text,
      shades: spans,
    }))
    async function store() {
      const [rollouts] = (await data("texts-1"));
      const turn = rollouts[0].turns[0];
      return [turn.planner_text, turn.tokens.filter(([, p]) => Math.exp(p) < 0.9).length];
    }""")
    assert told["same"]
    found = "document.querySelector('.planner').querySelectorAll('.token').length"
    assert tab.run(found) == told["shades"] > 0


def test_filters_and_search_look_into_the_texts(tab, page):
    tab.open(page, width=1280)
    every = choose(tab, "Step", "all")
    assert len(every["listed"]) >= 60  # more are drawn as the list is scrolled
    told = "document.querySelector('[role=status]').textContent"
    everything = tab.run(told)
    choose(tab, "Mistake", "python_coder: unreadable command")
    count, whole = map(int, re.findall(r"\d+", tab.run(told)))
    assert 0 < count < whole
    choose(tab, "Tool", "knowledge_search")
    assert 0 < int(re.findall(r"\d+", tab.run(told))[0]) <= count
    press(tab, "r")
    assert tab.run(told) == everything
    choose(tab, "Find", "pool worker died")  # in a text of some trajectories alone
    wait = f"""new Promise((done) => {{
      const look = () => {told}.includes("looking") ? setTimeout(look, 20) : done({told});
      look();
    }})"""
    found = int(re.findall(r"\d+", tab.run(wait))[0])
    assert 0 < found < 30


def test_hostile_texts_are_seen_and_not_run(tab, page):
    tab.open(page, width=1280)
    choose(tab, "Step", "21")  # training step 20, after the evaluation at 20 and its neighbours
    seen = "document.querySelector('.detail').textContent.includes('<img src=x onerror=alert(2)>')"
    last = tab.run("[...document.querySelector('[aria-label=Step]').options].at(-1).textContent")
    assert "Held-out after step 20" in last
    assert tab.run(seen)
    assert tab.run("document.querySelectorAll('img').length") == 0
    assert not re.search("[\u2028\u202e\x1b]", tab.run("document.body.innerText"))


def test_a_question_of_the_summary_opens_and_stands_beside_its_beginning(tab, tmp_path):
    runs = [fake_run(tmp_path / name, steps=10, questions=2, group=2) for name in ("one", "two")]
    tab.open(report.write_report(runs, tmp_path / "both.html"), width=1280)
    tab.run("document.querySelectorAll('.card')[1].querySelector('[data-question]').click()")
    tab.settle()
    assert tab.run(ASK)["address"].startswith("#1.h10/")
    press(tab, "b")
    titles = [one["title"] for one in tab.run(COLUMNS)]
    assert len(titles) == 2
    assert titles[0].startswith("two · Held-out after step 10")
    assert titles[1].startswith("one · Held-out")


def test_light_and_dark(tab, page):
    tab.open(page, width=1280)
    ground = "getComputedStyle(document.body).backgroundColor"
    shown = {}
    for system in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": system}]
        tab.call("Emulation.setEmulatedMedia", features=features)
        shown[system] = tab.run(ground)
    assert shown["light"] != shown["dark"]
    press(tab, "t")  # auto to light, against the system
    assert tab.run(ground) == shown["light"]
    press(tab, "t")
    assert tab.run(ground) == shown["dark"]
    press(tab, "t")
    tab.call("Emulation.setEmulatedMedia", features=[])


def test_a_live_page_shows_the_next_step(tab, tmp_path):
    run = fake_run(tmp_path / "run", steps=2, questions=2, group=2)
    follower = live.Follower([run], text_budget=10**6, check=lambda: None)
    server = live.Server(follower, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        tab.open(server.url, width=1280)
        pill = "document.querySelector('.live').textContent"
        assert tab.run(pill) == "step 2 of 2"
        with open(run / "metrics.jsonl", "a") as lines:
            lines.write('{"step": 3, "reward/mean": 0.5}\n')
        tab.run("scrollTo({ top: 900, behavior: 'instant' })")  # somebody reads
        look = f"""new Promise((done) => {{
          const look = () => {pill}.includes("3") ? done({pill}) : setTimeout(look, 50);
          look();
        }})"""
        assert tab.run(look) == "step 3 of 2 · show"
    finally:
        server.shutdown()
        server.server_close()
