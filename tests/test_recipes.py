"""The recipes run, as they stand or with stand-ins; of what cannot run, the flags exist."""

import ast
import functools
import importlib.util
import json
import operator
import os
import pathlib
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl import flags
from ml_collections import config_flags

from experiments.running import command, fields, limits
from flow_grpo_jax import data
from tests import pages

# ml_collections loads a config's file so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "recipes").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:-m|flow-grpo\S*) experiments\.(\w+)((?:[^\\\n]|\\\n)*)")
DEFINED_FLAG = re.compile(r"DEFINE_\w+\(\s*\"(\w+)\"")
SETTING = re.compile(r"^export (\w+) \?= (\S+)$", re.MULTILINE)
STAND_IN = """#!/bin/bash
call="${0##*/} $*"
echo "${call//$'\\n'/ }" >> "$PLAYED/calls"
code=0
if [ -s "$0.replies" ]; then
  read -r code text < "$0.replies"
  sed -i 1d "$0.replies"
  echo "$text"
fi
exit "$code"
"""
WRONG = (AssertionError, ValueError, AttributeError, OSError, flags.Error, command.ConfigError)


def blocks(page, language="sh"):
    """The blocks of a page, and whether each runs: (mark, text), mark "" if it has none."""
    found = [text for kind, text in BLOCK.findall(page.read_text("utf-8")) if kind == language]
    marks = [re.match(r"# (not run|stand-ins: .*)\n", text) for text in found]
    return [(mark[1] if mark else "", text) for mark, text in zip(marks, found, strict=True)]


ALL = [(page.name, *block) for page in PAGES for block in blocks(page)]
JOINED = re.compile(r"\\\n *")  # lines that go on
PLAIN = sorted(
    {ln for _, mark, text in ALL if not mark for ln in JOINED.sub("", text).splitlines()}
)
PLAYED = [(name, mark.split()[1:], text) for name, mark, text in ALL if "stand-ins" in mark]


def the_block(page, part):
    """The one block of a page that holds a text."""
    (found,) = [text for _, text in blocks(ROOT / "docs" / "recipes" / page) if part in text]
    return found


@pytest.fixture
def play(tmp_path):
    """Runs a block beside stand-ins: (exit code, calls); replies: name -> ["code text", …]."""

    def run(block, names, **replies):
        (tmp_path / "calls").write_text("")
        for name in names:
            (tmp_path / name).write_text(STAND_IN)
            (tmp_path / name).chmod(0o755)
            (tmp_path / f"{name}.replies").write_text("".join(f"{r}\n" for r in replies[name]))
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PLAYED": str(tmp_path), "SLURM_JOB_ID": "7"}
        ended = subprocess.run(["bash", "-c", block], cwd=tmp_path, env=environment, timeout=60)
        return ended.returncode, (tmp_path / "calls").read_text().splitlines()

    return run


def commands(text):
    """(module, arguments) of each command of ours in a text."""
    found = []
    for module, rest in COMMAND.findall(text):
        rest = rest.replace("\\\n", " ")
        try:
            words = shlex.split(rest, comments=True)
        except ValueError:  # the quotation that the whole command stands in ends here
            words = shlex.split(rest.rstrip().removesuffix('"'), comments=True)
        found.append((module, words[: words.index("&&")] if "&&" in words else words))
    return found


def parsed_config(words):
    """The config that arguments give; raises if a field or a value is wrong."""
    values = flags.FlagValues()
    given = ["x", *(word for word in words if re.match(r"--config\b", word))]
    how = dict(lock_config=True, flag_values=values, sys_argv=given)
    config_flags.DEFINE_config_file("config", **how)
    values(given)
    fields.check(values.config)
    return values.config


def checked(module, words):
    """Raises unless a command takes these arguments; returns the config, if it has one."""
    known = set(DEFINED_FLAG.findall((ROOT / f"experiments/{module}.py").read_text("utf-8")))
    used = {re.match(r"--(\w+)", word)[1] for word in words}
    assert used <= known, (module, used - known)
    config = parsed_config(words) if "config" in used else None
    if module == "train":
        limits.check(config)
    return config


@pytest.mark.parametrize("name, mark, text", ALL)
def test_commands_flags_configs_and_values_exist(name, mark, text, monkeypatch):
    monkeypatch.chdir(ROOT)
    for module, words in commands(text):
        checked(module, words)


def test_wrong_arguments_would_be_noticed(monkeypatch):
    monkeypatch.chdir(ROOT)
    config, questions = "--config=experiments/configs/paper_7b.py", "--config.data.train=a.jsonl"
    assert checked("train", [config, questions, "--config.optim.lr=1e-5"]).optim.lr == 1e-5
    for words in (
        [config, questions, "--no_such_flag=1"],
        [config, questions, "--config.optim.rate=1"],
        [config, questions, "--config.steps=many"],
        [config, questions, "--config.model.remat=some"],
        [config.replace("7b", "8b"), questions],
        [f"{config}:v7e8", questions],
        [config],
    ):
        with pytest.raises(WRONG):
            checked("train", words)
    quoted = 'a="cd b && .venv/bin/python -m experiments.train --config=c \\\n  --workdir=d"\n'
    assert commands(quoted) == [("train", ["--config=c", "--workdir=d"])]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_fields_and_values_beside_the_blocks_exist(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    codes = re.findall(r"`(.*?)`", BLOCK.sub("", page.read_text("utf-8")))
    flags_given = [re.sub(r"\$\w+", "1", w) for code in codes for w in shlex.split(code)]
    fields_given = [f"--config.{code}" for code in codes if re.match(r"[a-z_]+(\.\w+)+=", code)]
    named = [code for code in codes if re.fullmatch(r"[a-z]+(\.[a-z_]+)+", code)]
    config = parsed_config(
        ["--config=experiments/configs/paper_7b.py"]
        + [word.replace('"', "") for word in flags_given if re.match(r"--config\.", word)]
        + [word.replace('"', "") for word in fields_given]
    )
    for name in named:
        if name.split(".")[0] in config:
            functools.reduce(operator.getitem, name.split("."), config)


@pytest.mark.slow
@pytest.mark.parametrize("line", PLAIN, ids=lambda line: "-".join(re.findall(r"[\w-]+", line)[2:9]))
def test_a_line_without_a_mark_runs(line, tmp_path):
    """In a folder that looks like a clone after the lines before it; pages tell what plans say."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "data/wiki").mkdir(parents=True)
    (tmp_path / "data/benchmarks").mkdir()
    (tmp_path / "data/wiki/wiki-18.jsonl").write_text('{"id": "0", "contents": "\\"A\\"\\nText."}')
    (tmp_path / "data/benchmarks/bamboogle.jsonl").write_text('{"Question": "Who?", "Answer": "A"}')
    (tmp_path / "data/benchmarks/24.csv").write_text("Rank,Puzzles\n901,4 5 6 10\n")
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    how = dict(cwd=tmp_path, env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)})
    ran = subprocess.run(["bash", "-c", line], **how, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    pages = [text for page in PAGES if line in (text := JOINED.sub("", page.read_text("utf-8")))]
    assert pages
    if "experiments.plan" in line:
        ((size, memory),) = re.findall(r"fits: .* takes (\S+) GiB of (\S+) GiB", ran.stdout)
        said = f"{float(size):.1f} of {float(memory):g} GiB"
        assert all(said in text for text in pages), said


def test_every_block_with_stand_ins_is_played():
    assert {name for name, *_ in PLAYED} == {
        "README.md",
        "buckets.md",
        "docker.md",
        "slurm.md",
        "tpu.md",
    }
    programs = {program for _, names, _ in PLAYED for program in names}
    assert programs == {"docker", "gcloud", "python", "scontrol", "sleep", "srun"}


@pytest.mark.parametrize("name, names, block", PLAYED)
def test_blocks_with_stand_ins_run(name, names, block, play):
    answers = {"gcloud": ["0 READY"]} if name == "tpu.md" else {}
    replies = {program: answers.get(program, ["0"] * 20) for program in names}
    code, calls = play(block, names, **replies)
    assert code == 0 and calls


@pytest.mark.parametrize(
    "ends, code, calls", [([75, 75, 0], 0, 3), ([75, 1], 1, 2), ([2], 2, 1), ([0], 0, 1)]
)
def test_a_training_that_was_stopped_is_started_again(ends, code, calls, play):
    block = the_block("README.md", "while true")
    ended, called = play(block, ["python"], python=ends)
    assert (ended, len(called)) == (code, calls)


def test_ctrl_c_ends_the_loop_too(tmp_path, request):
    """The training saves and ends with 75 as after any signal; it is not started again."""
    # A shell cannot trap what was ignored when it began, as in a job in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    (tmp_path / "python").write_text(
        "#!/bin/bash\ntrap 'exit 75' INT\necho began >> began\nwhile :; do sleep 0.02; done\n"
    )
    (tmp_path / "python").chmod(0o755)
    block = the_block("README.md", "while true")
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    how = dict(cwd=tmp_path, env=environment, start_new_session=True)
    with subprocess.Popen(["bash", "-c", block], **how) as loop:
        deadline = time.monotonic() + 30
        while not (tmp_path / "began").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            os.killpg(loop.pid, signal.SIGINT)
            assert loop.wait(30) == 130
        except subprocess.TimeoutExpired:
            os.killpg(loop.pid, signal.SIGKILL)
            raise
    assert (tmp_path / "began").read_text() == "began\n"


@pytest.mark.parametrize("ends, queued", [(75, True), (0, False), (1, False), (143, False)])
def test_a_job_that_was_stopped_goes_back_into_the_queue(ends, queued, play):
    block = the_block("slurm.md", "srun")
    code, calls = play(block, ["srun", "scontrol"], srun=[ends], scontrol=[0])
    assert code == ends
    assert calls[0].startswith("srun .venv/bin/python -m experiments.train --config=")
    assert calls[1:] == ["scontrol requeue 7"] * queued


def test_a_preempted_slice_is_made_anew_and_training_goes_on(play):
    """What Google's program is asked to do, whatever befalls the slice."""
    story = [
        ("describe", 1, ""),  # there is none
        ("delete", 1, ""),
        ("create", 0, ""),
        ("ssh", 0, ""),  # prepares
        ("ssh", 255, ""),  # trains, and is preempted
        ("describe", 0, "PREEMPTED"),
        ("delete", 0, ""),
        ("create", 1, ""),  # no room
        ("describe", 1, ""),
        ("delete", 1, ""),
        ("create", 0, ""),
        ("ssh", 1, ""),  # cannot be prepared
        ("describe", 0, "READY"),  # but it must be
        ("delete", 0, ""),
        ("create", 0, ""),
        ("ssh", 0, ""),
        ("ssh", 75, ""),  # stopped after saving
        ("describe", 0, "READY"),
        ("ssh", 0, ""),  # done
        ("delete", 0, ""),
    ]
    block = the_block("tpu.md", "for attempt")
    replies = [f"{code} {text}" for _, code, text in story]
    code, calls = play(block, ["gcloud", "sleep"], gcloud=replies, sleep=[])
    asked = [call.split()[4] for call in calls if call.startswith("gcloud")]
    assert code == 0 and asked == [verb for verb, *_ in story]
    assert calls.count("sleep 120") == 3
    trained = [call for call in calls if "experiments.train" in call]
    assert len(trained) == 3 and len(set(trained)) == 1
    ((module, words),) = commands(trained[0])
    assert checked(module, words).mesh.tensor == 2


def test_the_mix_of_the_paper_is_made(tmp_path, monkeypatch):
    """Shards with the same numbers of rows, HotpotQA beside NQ, and a row that has no answer."""
    monkeypatch.chdir(tmp_path)
    asked = [(f"{source}-{n}", source) for source in ("nq", "hotpotqa") for n in range(102)]
    rows = [
        {
            "id": f"train_{n}",
            "question": f"{name}?",
            "data_source": source,
            "golden_answers": ["Ann"],
            "reward_model": {"style": "rule", "ground_truth": {"target": ["Ann"]}},
        }
        for n, (name, source) in enumerate(asked)
    ]
    sums = [{"question": f"{n} + 1?", "final_answer": str(n + 1)} for n in range(60)]
    for name, table in {
        "nq/train": rows,
        "deepmath/data/train-0": sums,
        "deepmath/data/train-1": [*sums[:-1], {"question": "None?", "final_answer": ""}],
    }.items():
        path = tmp_path / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(table), path)
    ((_, code),) = blocks(ROOT / "docs" / "recipes" / "paper.md", "python")
    (tmp_path / "mix.py").write_text(code, encoding="utf-8")
    runpy.run_path("mix.py")
    found = {name: data.read_questions(f"data/{name}.jsonl") for name in ("train", "held_out")}
    count = {
        name: {s: sum(q["source"] == s for q in questions) for s in ("nq", "deepmath")}
        for name, questions in found.items()
    }
    assert count == {"train": {"nq": 2, "deepmath": 19}, "held_out": {"nq": 100, "deepmath": 100}}
    assert {q["kind"] for q in found["train"]} == {"qa", "math"}
    assert found["train"][0] == {
        "id": "nq-101",
        "question": "nq-100?",
        "answer": ("Ann",),
        "kind": "qa",
        "source": "nq",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_named_tests_exist(page):
    text = page.read_text("utf-8")
    assert not pages.broken_links(page.relative_to(ROOT), text)
    assert not [
        path for path in re.findall(r"`(tests/\S+\.py)`", text) if not (ROOT / path).exists()
    ]
    if page.stem == "README":
        links = {link.partition("#")[0] for link in pages.LINK.findall(text)}
        assert links == {other.name for other in PAGES} - {"README.md"}


# ---------------------------------------------------------------------------------- Docker


def declared(name):
    """The literal assigned to a name in setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py assigns no {name}")


def test_the_image_holds_every_package_and_the_settings_of_memory():
    kept = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert not {package.split(".")[0] for package in declared("PACKAGES")} - kept
    assert not [name for name in kept if not (ROOT / name).exists()]
    makefile, text = (ROOT / "Makefile").read_text(), (ROOT / "Dockerfile").read_text()
    settings = dict(SETTING.findall(makefile))
    assert len(settings) == 4
    assert dict(re.findall(r"^(?:ENV|   ) (\w+)=(\S+)", text, re.MULTILINE)) == settings


def docker(*arguments, timeout=60):
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout)


@pytest.mark.slow
def test_the_image_builds_and_answers():
    if not shutil.which("docker") or docker("info").returncode:
        pytest.skip("no docker runs here")
    if docker("pull", "python:3.12-slim", timeout=600).returncode:
        pytest.skip("the image that ours starts from cannot be had")
    built = docker("build", "--tag=flow-grpo:test", str(ROOT), timeout=1_800)
    assert built.returncode == 0, built.stderr
    asked = ["experiments.solve", "--query=What is the capital of Spain?"]
    asked += ["--config=experiments/configs/quickstart.py"]
    asked += ["--config.tools.python_coder.sandbox=minimal"]  # whatever the machine's kernel has
    ran = docker("run", "--rm", "--network=none", "flow-grpo:test", *asked, timeout=300)
    assert ran.returncode == 0 and "Madrid" in ran.stdout, ran.stderr


# ---------------------------------------------------------------------------------- notebook


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("nbclient", "ipykernel"))),
    reason="needs nbclient and ipykernel",
)
def test_the_notebook_runs(tmp_path):
    """From a folder of the clone, with one step of the smoke config; an error ends it."""
    import notebook

    small = {"CONFIG": "experiments/configs/smoke.py", "CHANGES": "--config.steps=1"}
    result = notebook.executed(ROOT / "docs", RUN=str(tmp_path / "run"), **small)
    said = "".join(o.get("text", "") for cell in result.cells for o in cell.get("outputs", ()))
    assert re.search(r"step 1/1 \| reward .* \| held-out", said) and "model.safetensors" in said
    assert (tmp_path / "run-planner" / "model.safetensors").exists()


def notebook_cells(kind):
    """The sources of a kind of cell, as one text."""
    cells = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text("utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == kind)


def test_the_links_of_the_notebook_lead_somewhere():
    text = notebook_cells("markdown")
    assert pages.LINK.findall(text)
    assert not pages.broken_links("docs/quickstart.ipynb", text)


def test_the_notebook_sets_the_makefiles_memory_settings():
    text = notebook_cells("code")
    settings = dict(SETTING.findall((ROOT / "Makefile").read_text()))
    del settings["TRANSFORMERS_VERBOSITY"]
    assert dict(re.findall(r'^    "(\w+)": "(\S+)",$', text, re.MULTILINE)) == settings
    assert "env=MEMORY | os.environ" in text


def notebook_problems(text):
    """What a notebook that is committed must not hold: failures, and places of a machine."""
    return re.findall(r"/(?:tmp|root|home|work|Users)/|Traceback|exit code [1-9]", text)


def test_the_notebook_has_its_outputs_and_no_trace_of_a_machine():
    path = ROOT / "docs" / "quickstart.ipynb"
    text = path.read_text("utf-8")
    assert not notebook_problems(text) and path.stat().st_size < 150_000
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", ()) for output in outputs)
    said = "".join("".join(output.get("text", "")) for output in outputs)
    before, after = re.findall(r"Answer: (.*)", said)
    assert before == "unknown" and after == "Moscow"
