"""An evaluation that is killed, stopped and started again ends as one that nothing disturbed."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import loopback
import pytest
import servers

from experiments import evaluate
from experiments.configs import common
from experiments.evaluating import models
from experiments.reporting import trajectories
from experiments.running import signals

ROOT = pathlib.Path(__file__).parents[2]
CAPITALS = {"Zembla": "Onhava", "Genovia": "Pyrus", "Borduria": "Szohod", "Ruritania": "Strelsau"}
CAPITALS |= {"Syldavia": "Klow", "Laputa": "Lagado"}  # in no prompt of the agent
CONFIG = """
from experiments.configs import common


def get_config():
    c = common.base()
    c.tools.names = ("knowledge_search",)
    return c
"""


class Atlas:
    """Knows some of the capitals, and answers about the countries in `open`; others wait."""

    def __init__(self):
        self.open = set()

    def __call__(self, connection, request, server):
        said = " ".join(message["content"] for message in request[1]["messages"])
        country = country_of(said)
        while country not in self.open:
            if server.ending.wait(0.02):
                return False
        text = next(text for start, text in self.texts(country).items() if said.startswith(start))
        return loopback.says(text)(connection, request, server)

    def texts(self, country):
        city = CAPITALS[country] if len(country) % 2 else "Atlantis"
        return {
            "You analyse": f"The capital of {country} is asked.",
            "You are the planner": f"Context: {country}\nSub-goal: capital\nTool: knowledge_search",
            "You write the command": f'knowledge_search(query="{country}")',
            "You check": f"{country} is there.\nVerdict: CONTINUE",
            "You write the final": f"Of {country}.\nAnswer: {city}",
            "Answer the question": f"Of {country}.\nAnswer: {CAPITALS[country]}",
        }


def country_of(said):
    return next(country for country in CAPITALS if country in said)


@pytest.mark.slow
def test_after_sigkill_and_sigterm_the_same_command_ends_as_if_undisturbed(tmp_path):
    data, atlas = tmp_path / "data", Atlas()
    cut, undisturbed = tmp_path / "cut" / "out", tmp_path / "undisturbed" / "out"
    data.mkdir()
    rows = [
        {"id": c, "question": f"Capital of {c}?", "answer": city, "kind": "qa", "source": "x"}
        for c, city in CAPITALS.items()
    ]
    (data / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.py").write_text(CONFIG)
    lines_each = 3  # one of the bare model, one at each of two turn budgets

    with loopback.Loopback(atlas) as server:
        command = [sys.executable, "-m", "experiments.evaluate", f"--config={tmp_path}/config.py"]
        command += ["--benchmarks=mine", f"--data={data}", f"--out={cut}", "--model=m"]
        command += [f"--url={server.url}", "--modes=trained,bare", "--max_turns=1,2"]

        env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(jax.device_count())}

        def interrupted(countries, number):
            """Opens the next countries; sends a signal when all about them is in the ledger."""
            atlas.open |= set(countries)
            finished = lines_each * len(atlas.open)
            with (tmp_path / "log").open("w") as log:
                how = dict(cwd=ROOT, env=env, stdout=log, stderr=log)
                process = subprocess.Popen(command, **how)
            try:
                ended = lambda: process.poll() is not None
                servers.wait_for(lambda: ended() or ledger().count("\n") == finished, 120)
                assert not ended() and not (cut / "results.json").exists()
                process.send_signal(number)
                return process.wait(30)
            finally:
                process.kill()
                process.wait()

        def ledger():
            path = cut / "ledger.jsonl"
            return path.read_text() if path.exists() else ""

        def asked_since(count):
            return {country_of(str(body["messages"])) for body in server.bodies()[count:]}

        assert interrupted(["Zembla", "Genovia"], signal.SIGKILL) == -signal.SIGKILL
        kept, count = ledger(), len(server.bodies())
        assert interrupted(["Borduria"], signal.SIGTERM) == signals.STOPPED
        assert asked_since(count) == set(CAPITALS) - {"Zembla", "Genovia"}
        assert ledger().startswith(kept)
        kept, count = ledger(), len(server.bodies())
        atlas.open |= set(CAPITALS)
        subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
        assert asked_since(count) == set(CAPITALS) - {"Zembla", "Genovia", "Borduria"}
        assert ledger().startswith(kept) and ledger().count("\n") == lines_each * len(CAPITALS)

        config = common.base()
        config.tools.names = ("knowledge_search",)
        source = models.Source(url=server.url, model="m")
        how = dict(modes=("trained", "bare"), max_turns=(1, 2))
        wanted = evaluate.Wanted(("mine",), str(data), **how)
        whole = evaluate.evaluate(config, undisturbed, wanted, source)

    assert [row["solved"] for row in whole["rows"]] == [2, 2, 6]
    for name in ("scores.jsonl", "messages.jsonl", "results.csv", "results.md"):
        assert (cut / name).read_bytes() == (undisturbed / name).read_bytes()
    for timeless in (results, atif, page):
        assert timeless(cut) == timeless(undisturbed)


# Without the times of day and the seconds that everything took, which no two evaluations share.


def results(folder):
    return json.loads((folder / "results.json").read_text()) | {"times": None}


def atif(folder):
    found = [json.loads(line) for line in (folder / "atif.jsonl").read_text().splitlines()]
    assert found[0]["steps"][0].keys() == {"step_id", "timestamp", "source", "message"}
    for form in found:
        for step in form["steps"]:
            step["timestamp"] = None
    return found


def page(folder):
    text = (folder / "report.html").read_text()
    blocks = re.findall(r'id="data-([\w-]+)">([^<]*)<', text)
    blocks = {name: trajectories.unpack(packed) for name, packed in blocks}
    for name, block in blocks.items():
        if name.startswith("texts-"):
            blocks[name] = _without(block, "seconds")
    return re.sub(r'(id="data-[\w-]+">)[^<]*<', r"\1<", text), blocks


def _without(value, field):
    if isinstance(value, dict):
        return {name: _without(one, field) for name, one in value.items() if name != field}
    return [_without(one, field) for one in value] if isinstance(value, list) else value
