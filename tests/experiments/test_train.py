"""The commands, end to end, with the shipped nano model."""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from agents import effects
from experiments import export, solve, train
from experiments.configs import common, quickstart, smoke
from experiments.documenting import metrics as documented
from experiments.running import command, limits, stored
from experiments.solving import panel
from flow_grpo_jax import data, metrics
from tests import pages

ROOT = pathlib.Path(__file__).parents[2]
VOLATILE = ("time/", "throughput/", "compile/")


def small_config():
    c = smoke.get_config()
    c.rollout.questions, c.rollout.group = 2, 4
    c.batch.rows = (1,)  # of each device
    c.engine.slots = 8
    c.eval.questions = 4
    c.checkpoint.every = 1
    return c


def run(*arguments, module=True):
    """Runs a command on one CPU device; returns the finished process."""
    return subprocess.run(
        [sys.executable, *(["-m"] if module else []), *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def flags(workdir, *, steps=3):
    return [
        "experiments.train",
        f"--config={ROOT / 'experiments/configs/smoke.py'}",
        f"--workdir={workdir}",
        f"--config.steps={steps}",
        "--config.rollout.questions=2",
        "--config.batch.rows=(4,)",
        "--config.engine.slots=8",
        "--config.data.held_out=",
    ]


def lines(workdir):
    """Metrics without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if not name.startswith(VOLATILE)}
        for line in metrics.read(workdir / "metrics.jsonl")
    ]


def stable(path):
    """Trajectories without what depends on the clock."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for trajectory in found:
        del trajectory["seconds"]
        for turn in trajectory["turns"]:
            del turn["seconds"]
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps on a mesh of eight devices."""
    workdir = tmp_path_factory.mktemp("run")
    c = small_config()
    c.steps = 2
    c.mesh.update(data=2, fsdp=4)
    c.trace.steps = (2,)
    with concurrent.futures.ThreadPoolExecutor(1) as notebook:  # no signal handlers, so any thread
        notebook.submit(train.train, c, workdir).result()
    return workdir


@pytest.mark.slow
def test_a_run_leaves_everything_the_design_names(finished):
    found = metrics.read(finished / "metrics.jsonl")
    assert [line["step"] for line in found] == [0, 1, 2]
    required = [
        "reward/mean",
        "reward/std",
        "group/zero_variance",
        "rollout/turns",
        "rollout/tool_error_rate",
        "rollout/truncated",
        "rollout/infra_errors",
        "tool/knowledge_search/share",
        "tokens/generated",
        "tokens/trained",
        "tokens/padding_share",
        "loss/total",
        "loss/policy",
        "loss/kl",
        "policy/clip_fraction",
        "policy/entropy",
        "policy/logprob_gap_mean",
        "policy/logprob_gap_k3",
        "policy/logprob_gap_max",
        "optim/grad_norm",
        "time/rollout",
        "time/update",
        "time/step",
        "throughput/generated_tokens_per_s",
        "compile/count",
    ]
    assert not [name for name in required if name not in found[1]]
    written = set().union(*found) - {"step"}
    assert not [name for name in sorted(written) if not documented.known(name)]
    assert max(line["policy/logprob_gap_max"] for line in found[1:]) <= 1e-4
    assert max(abs(line["policy/logprob_gap_k3"]) for line in found[1:]) <= 1e-8
    assert {"eval/success", "eval/correct", "eval/total"} <= set(found[0]) & set(found[2])
    assert (finished / "report.html").stat().st_size > 10_000
    written = json.loads((finished / "config.json").read_text())
    assert written["config"]["steps"] == 2 and written["sandbox"]["layers"]
    trajectories = stable(finished / "trajectories" / "step_000001.jsonl")
    assert len(trajectories) == 8
    assert {"question_id", "rollout", "gold", "turns", "answer", "reward", "advantage"} <= set(
        trajectories[0]
    )
    assert (finished / "trajectories" / "heldout_000002.jsonl").exists()


@pytest.mark.slow
def test_a_trace_has_the_phases_and_each_solver_on_a_lane(finished):
    (path,) = (finished / "traces").iterdir()
    events = json.loads(path.read_text())["traceEvents"]
    titles = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    spans = [e for e in events if e["ph"] == "X"]
    phases = [e["name"] for e in spans if titles[e["tid"]] == "phases"]
    assert phases == ["rollout", "reward", "rows", "update", "evaluation", "save"]
    solvers = {tid for tid, title in titles.items() if title.startswith("question ")}
    assert len(solvers) == 8
    for tid in solvers:
        lane = [e for e in spans if e["tid"] == tid]
        names = [e["name"] for e in lane]
        assert names[:3] == ["analyst", "planner", "executor"] and names[-1] == "generator"
        assert "tool" in {e["cat"] for e in lane}
        ends = [(e["ts"], e["ts"] + e["dur"]) for e in lane]
        assert all(a[1] <= b[0] + 0.002 for a, b in zip(ends, ends[1:], strict=False))


@pytest.mark.slow
def test_a_resumed_run_makes_good_a_torn_line(finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir)
    complete = metrics.read(workdir / "metrics.jsonl")
    text = (workdir / "metrics.jsonl").read_text()
    (workdir / "metrics.jsonl").write_text(text[:-40])
    c = small_config()
    c.steps = 2
    c.mesh.update(data=2, fsdp=4)
    train.train(c, workdir)
    assert metrics.read(workdir / "metrics.jsonl") == complete


@pytest.mark.slow
def test_force_writes_nothing_before_it_is_known_to_fit(finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir)
    c = small_config()
    c.mesh.update(data=2, fsdp=4)
    c.steps, c.model.lora.rank = 3, 4
    with pytest.raises(command.ConfigError, match="lacks params/.*lora.* --force goes on with"):
        train.train(c, workdir, force=True)
    files = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert files == {
        finished / path.relative_to(workdir): path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_a_run_goes_on_with_its_config_only(finished):
    c = small_config()
    c.steps = 3  # may differ: a run may be continued for longer
    c.mesh.update(data=2, fsdp=4)
    stored.check_config(c, finished)
    c.optim.lr = 1.0
    with pytest.raises(command.ConfigError, match="it differs in optim.lr"):
        stored.check_config(c, finished)


@pytest.mark.slow
def test_rollouts_of_a_question_differ(finished):
    texts = {}
    for trajectory in stable(finished / "trajectories" / "step_000001.jsonl"):
        planned = tuple(turn["planner_text"] for turn in trajectory["turns"])
        texts.setdefault(trajectory["question_id"], set()).add(planned)
    assert max(len(different) for different in texts.values()) > 1


@pytest.mark.slow
def test_export_has_the_logits_of_the_trained_policy(finished, tmp_path):
    import jax
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export.export(finished, tmp_path / "out")
    config, _ = stored.read_config(finished)
    _, params, _ = stored.restore_policy(finished, config)
    token_BT = np.arange(40, dtype=np.int32).reshape(2, 20) * 7 % 2048
    with jax.default_matmul_precision("highest"):
        ours = params.logits(params.hidden(token_BT, np.full_like(token_BT, token_BT.shape[1])))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor(token_BT, dtype=torch.long)).logits.numpy()
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
    text = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert text.decode(text.encode("Answer: Paris 1984")) == "Answer: Paris 1984"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Flow-GRPO" in card and "training step | 2" in card


@pytest.mark.slow
def test_solve_answers_with_a_trace(finished):
    class Collected:
        text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    file = Collected()
    found = solve.solve(
        small_config(),
        "What is the capital of Spain?",
        workdir=finished,
        on_event=panel.Trace(file),
    )
    assert found.turns and found.status == "ok"
    assert "planner │ Context:" in file.text and "── turn 1" in file.text


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_metrics(tmp_path):
    """Its rollouts branch, which must be at the same turns with the same siblings again."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    turns = ["--config.loss.variant=turns", "--config.loss.turns.siblings=1"]
    assert run(*flags(undisturbed), *turns).returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", *flags(killed), *turns],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (killed / "checkpoints" / "step_1").exists():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = run(*flags(killed), *turns)
    assert resumed.returncode == 0 and "resumed after step" in resumed.stderr
    assert lines(killed) == lines(undisturbed)
    for step in (2, 3):
        name = f"trajectories/step_{step:06d}.jsonl"
        found = stable(killed / name)
        assert found == stable(undisturbed / name)
        branches = [trajectory.get("branch") for trajectory in found]
        assert [branch and branch["parent"] for branch in branches] == [None, None, 0, 1] * 2
        assert all(any("advantage" in turn for turn in each["turns"]) for each in found)


@pytest.mark.slow
def test_sigterm_saves_and_exits_75(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", *flags(tmp_path, steps=500), "--config.checkpoint.every=1000"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )
    path, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 200
    while time.monotonic() < deadline and not (path.exists() and metrics.read(path)):
        time.sleep(0.02)
    process.terminate()
    _, log = process.communicate(timeout=100)
    assert process.returncode == 75, log
    saved = [int(p.name.removeprefix("step_")) for p in (tmp_path / "checkpoints").iterdir()]
    assert max(saved) >= 1


def with_an_empty_first_step(folder):
    """A config of two steps; no prompt of the first one's questions fits."""
    c = small_config()
    c.steps, c.data.held_out = 2, ""
    rows = data.read_questions(ROOT / c.data.train)[:4]
    first = next(data.QuestionBatches(rows, batch=2, seed=c.seed))
    for row in rows:
        if row["id"] in [question["id"] for question in first]:
            row["question"] += " and so on" * 100
    c.data.train = str(folder / "train.jsonl")
    pathlib.Path(c.data.train).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return c


@pytest.mark.slow
def test_a_step_without_a_prompt_that_fits_is_skipped_and_resumed(tmp_path):
    c = with_an_empty_first_step(tmp_path)
    with pytest.raises(command.ConfigError, match="2 of 4 questions of data.train can never"):
        train.train(c, tmp_path / "new")
    assert not (tmp_path / "new" / "config.json").exists()
    whole, parts, strict = (tmp_path / name for name in ("whole", "parts", "strict"))
    for folder in (whole, parts, strict):  # as runs that began before questions were measured
        folder.mkdir()
        stored.write_config(c, folder)
    train.train(c, whole)
    c.steps = 1
    train.train(c, parts)
    c.steps = 2
    train.train(c, parts)
    empty, trained = lines(whole)
    assert lines(parts) == [empty, trained]
    assert (empty["optim/steps"], empty["rollout/too_long"], empty["tokens/trained"]) == (0, 1, 0)
    assert "loss/total" not in empty
    assert (trained["optim/steps"], trained["rollout/too_long"]) == (1, 0)
    c.rollout.empty_steps = 0
    with pytest.raises(RuntimeError, match="Step 1 had nothing .* rollout.max_prompt_tokens .8 of"):
        train.train(c, strict, force=True)


BAD_INPUT = [
    (["--config.rollout.temperature=0.0"], 2, "temperature"),
    (["--config.checkpoint.keep=0"], 2, "checkpoint.keep=0 must be 1 or more; 1 keeps only the"),
    (["--config.loss.kl_coef=nan"], 2, "loss.kl_coef=nan must be finite"),
    (["--config.data.too_long=keep"], 2, "valid: refuse, drop"),
    (["--config.loss.variant=ppo"], 2, "valid: flow, original"),
    (["--config.no_such=1"], 2, "The configuration has no field 'no_such'.\n"),
    (["--config.rollout.max_turn=3"], 2, "no field 'max_turn'. Did you mean 'max_turns'?\n"),
    (["--config.rollout.max_response_tokens=64"], 2, "Make it 288 or more"),
    (["--config.mesh.fsdp=3"], 2, "device"),
    (["--nope"], 2, "nope"),
    (
        ["--config=no/such_file.py"],
        2,
        "no file no/such_file.py; --config is a file, or a config by name: ",
    ),
    (["--workdir=gs://bucket/run"], 2, "--workdir=gs://bucket/run is a URL"),
    (["--workdir="], 2, "--workdir is empty"),
    (["--workdir=~/a"], 2, "--workdir=~/a begins with ~; write --workdir=$HOME/a\n"),
    (["--workdir=a\udcff"], 2, "holds a control character or a byte that is not UTF-8"),
    (["--coordinator=host"], 2, "--coordinator=host has no port"),
    (["--processes=0"], 2, "0 is not a positive integer"),
    (
        ["--config.tools.names=('python_coder',)", "--config.tools.python_coder.sandbox=high"],
        2,
        "valid: minimal, standard, strict",
    ),
    (["--config.model.path=/nowhere"], 2, "/nowhere holds no model: there is no config.json"),
    (
        ["--config.model.path={folder}"],
        2,
        "/config.json is damaged: it holds a list",
    ),
    (["--config.data.train=/nowhere.jsonl"], 2, "There is no file or folder /nowhere.jsonl."),
    (["--config.data.train=gs://bucket/q.jsonl"], 2, "data.train=gs://bucket/q.jsonl is a URL"),
    (["--config.tools.names=()"], 2, "every turn of the agent calls a tool"),
    (["--config.rollout.group=4.5"], 2, "config.rollout.group=4.5"),
    (["--config.rollout.group=four"], 2, "config.rollout.group=four: it must be a whole number"),
    (["--config.optim.lr=fast"], 2, "config.optim.lr=fast: it must be a number"),
    (["--config.tools.mcp=(1,)"], 2, "tools.mcp=(1,) must be a tuple, each item a text"),
    (["--config={folder}/misspelt.py"], 2, "no field 'max_turn'. Did you mean 'max_turns'?"),
    (["--config={folder}/replaced.py"], 2, "The section 'rollout' lacks call_seconds"),
    (["--config={folder}/text.py"], 2, "cannot be casted to type <class 'int'>"),
    (["--config={folder}/fails.py"], 2, "fails.py, line 6: ZeroDivisionError: division by zero\n"),
    (["--config={folder}/syntax.py"], 2, "syntax.py, line 6: SyntaxError: invalid syntax\n"),
    (["--config={folder}/imports.py"], 2, "line 6: ModuleNotFoundError: No module named 'nowhere'"),
    (["--config={folder}/number.py"], 2, "number.py returns int, no config: begin with"),
    (["--config={folder}/text.py:x"], 2, "text.py takes no argument; leave out :x.\n"),
    (["--config={folder}/exits.py"], 2, "exits.py, line 6: SystemExit: 3\n"),
    (["--config={folder}/lines.py"], 2, "lines.py, line 6: RuntimeError: one two\n"),
    (["--config={folder}/binary.py"], 2, "null bytes.\n"),
    (["--config="], 2, "--config is empty; give a file.\n"),
    (["--config.=5"], 2, "The configuration has no field ''.\n"),
    (["--config={folder}"], 2, ": Is a directory"),
    (["--config.mesh=5"], 2, "config.mesh=5: it is a section; set one of its fields"),
    (["--config.rollout.group.x=5"], 2, "rollout.group is one value; it has no field 'x'"),
    (["--config.rollout.grammar=maybe"], 2, "rollout.grammar=maybe: it must be true or false"),
    # Of others, whose flags have ranges and choices.
    (["experiments.view", "--nosuch=1"], 2, "Unknown command line flag 'nosuch'"),
    (["experiments.view", "--workdir"], 2, "Missing value for flag --workdir"),
    (["experiments.view", "--notext=1"], 2, "--notext=1 does not take an argument"),
    (["experiments.view", "--port=999999"], 2, "999999 is not an integer in the range [0, 65535]"),
    (["experiments.view", "--text=maybe"], 2, "flag --text=maybe: it must be true or false"),
    (["experiments.plan", "--turns=0.5"], 2, "flag --turns=0.5: 0.5 is not number >= 1.0"),
    (["experiments.sweep", "--print=foo"], 2, "flag --print=foo: value should be one of <"),
    (["experiments.sweep", "--parallel=0"], 2, "flag --parallel=0: 0 is not a positive integer"),
]
BAD_CONFIGS = {
    "misspelt": "c.rollout.max_turn = 9",
    "replaced": "c.rollout = dict(group=4)",
    "text": "c.rollout.group = '4'",
    "fails": "1 / 0",
    "syntax": "c = = 1",
    "imports": "import nowhere",
    "number": "return 5",
    "exits": "raise SystemExit(3)",
    "lines": "raise RuntimeError('one\\ntwo')",
    "binary": "\0",
}
OWN = re.compile(r"\S+, line \d+: |\S+: (.*: Is a directory|.* null bytes)")  # of one's config
# One process imports for all: each command is a copy of it, which has touched no device yet.
COPIES = """
import json, os, sys
from experiments import plan, sweep, train, view
from experiments.running import command
for arguments, log in json.loads(sys.argv[1]):
    if (child := os.fork()) == 0:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
        sys.argv = arguments
        module = sys.modules[arguments[0]]
        module.define_flags()
        command.run(module.main, required=("config", "workdir") if module is train else ())
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status))
"""


def arguments(folder, number):
    """Arguments of a command with bad input: flags of its own, a config file, or all of them."""
    extra = [part.format(folder=folder) for part in BAD_INPUT[number][0]]
    if extra[0].startswith("experiments."):
        return extra
    if extra[0].startswith(f"--config={folder}"):
        return ["experiments.train", *extra, f"--workdir={folder}/{number}"]
    return flags(folder / str(number)) + extra


@pytest.fixture(scope="module")
def after_bad_input(tmp_path_factory):
    """[(exit code, what was written to stderr)] for BAD_INPUT."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "config.json").write_text("[]")
    for name, line in BAD_CONFIGS.items():
        (folder / f"{name}.py").write_text(
            "from experiments.configs import smoke\n\n\ndef get_config():\n"
            f"    c = smoke.get_config()\n    {line}\n    return c\n"
        )
    logs = [str(folder / f"{number}.log") for number in range(len(BAD_INPUT))]
    commands = [(arguments(folder, number), log) for number, log in enumerate(logs)]
    process = run("-c", COPIES, json.dumps(commands), module=False)
    assert process.returncode == 0, process.stderr
    codes = map(int, process.stdout.split())
    return [(code, pathlib.Path(log).read_text()) for code, log in zip(codes, logs, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BAD_INPUT)))
def test_bad_input_gets_one_message_and_its_exit_code(after_bad_input, number):
    (_, code, message), (found, log) = BAD_INPUT[number], after_bad_input[number]
    assert found == code, log
    assert message in log and "Traceback" not in log
    said = log[log.rindex("error: ") :].removeprefix("error: ")
    assert pages.listed(said) or OWN.match(said), said


def test_training_refuses_a_sampler_whose_logprobs_are_not_the_trainers():
    for field, value in (("top_p", 0.9), ("top_k", 50), ("min_p", 0.1)):
        c = quickstart.get_config()
        with c.unlocked():
            c.rollout[field] = value
        with pytest.raises(command.ConfigError, match=f"no field rollout.{field}"):
            limits.check(c)


def test_configs_agree_with_the_paper_where_nothing_is_said():
    c = common.base()
    assert (c.rollout.group, c.rollout.questions, c.rollout.max_turns) == (8, 32, 3)
    assert (c.optim.lr, c.optim.weight_decay, c.optim.clip_norm) == (1e-6, 0.01, 1.0)
    assert (c.loss.clip_low, c.loss.clip_high, c.loss.kl_coef) == (0.2, 0.3, 1e-3)
    assert (c.rollout.temperature, c.rollout.max_response_tokens) == (0.5, 2048)
    assert len(quickstart.get_config().batch.rows) == len(quickstart.get_config().batch.row_lengths)


def test_the_trace_shows_interruptions(capsys):
    trace = panel.Trace(sys.stderr)
    trace(effects.ToolCall("knowledge_search", {}))
    trace(effects.Interrupted("infra_error", "the server is gone"))
    assert "tool │ Interrupted: the server is gone" in capsys.readouterr().err
