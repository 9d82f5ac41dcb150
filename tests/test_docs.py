"""The documentation names what exists: functions, tests, links, flags, metrics; examples run."""

import ast
import functools
import json
import random
import re
import runpy

import pytest

import flow_grpo_jax
from agents import parsing, prompts
from experiments import reference
from experiments.documenting import fields, messages, metrics
from flow_grpo_jax import data
from flow_grpo_jax.benchmarks import places
from flow_grpo_jax.datasets import formats
from tests import pages
from tests.pages import broken_links, listed, read
from tools import protocol, toolbox

ROOT = pages.ROOT
PAGES = ("AGENTS.md", "CHANGELOG.md", "README.md") + tuple(
    f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")) if path.stem != "log"
)
ORDER = ("start", "concepts", "training", "evaluate", "scaling", "serving", "extend")
ORDER += ("troubleshooting", "reference")

NAMED = re.compile(r"`([\w./]+\.py):([\w.]+)`")
PATH = re.compile(
    r"`((?:agents|bounds|docs|experiments|flow_grpo_jax|models|tests|tools)/[\w./]+)[:`]"
)
COMMAND_ROW = re.compile(r"^\| `python -m (experiments\.\w+)` \| (.*?) \|", re.MULTILINE)
FLAG = re.compile(r"--(\w[\w.]*)")
DEFINED_FLAG = re.compile(r"DEFINE_\w+\(\s*\"(\w+)\"")
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@functools.cache
def defined(name):
    """Dotted names of functions, classes, methods and assignments of a Python file."""
    names = set()
    for node in ast.parse(read(name)).body:
        if isinstance(node, ast.Assign):
            names |= {ast.unparse(target) for target in node.targets}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {
                f"{node.name}.{inner.name}"
                for inner in getattr(node, "body", ())
                if isinstance(node, ast.ClassDef) and isinstance(inner, ast.FunctionDef)
            }
    return names


def unknown_names(text):
    """What a text calls `file.py:name` although the file has no such name."""
    return [
        f"{file}:{name}"
        for file, name in NAMED.findall(text)
        if not (ROOT / file).exists() or name not in defined(file)
    ]


def example(text):
    """The one Python example of a page."""
    (code,) = CODE.findall(text)
    return code


def run_example(text, tmp_path):
    path = tmp_path / "example.py"
    path.write_text(example(text), encoding="utf-8")
    return runpy.run_path(str(path))


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/scaling.md"])
def test_named_functions_and_tests_exist(page):
    assert not unknown_names(read(page))


def test_a_wrong_name_would_be_noticed():
    text = "`agents/memory.py:Memory.add` `agents/memory.py:Memory.no` `x.py:y`"
    assert unknown_names(text) == ["agents/memory.py:Memory.no", "x.py:y"]


def test_every_row_of_the_algorithm_names_code_and_test():
    rows = [line for line in read("docs/algorithm.md").splitlines() if ".py:" in line]
    rows = [line for line in rows if line.startswith("|")]
    assert len(rows) > 40
    for row in rows:
        named = NAMED.findall(row)
        files = [file for file, _ in named]
        assert any(file.startswith("tests/") for file in files), row
        assert any(not file.startswith("tests/") for file in files), row
        above = {f"{file}:{name}" for file, name in named if file.startswith("experiments/")}
        assert above <= {"experiments/train.py:train"}, row  # the loop; the rest is one package


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
    assert not [path for path in PATH.findall(read(page)) if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", (*PAGES, "docs/log.md"))
def test_relative_links_lead_somewhere(page):
    assert not broken_links(page, read(page))


def test_broken_links_are_noticed():
    text = "[a](data.md) [b](data.md#formats) [c](no.md) [d](data.md#no) [e](#no) [f](../../x)"
    assert broken_links("docs/data.md", text) == ["no.md", "data.md#no", "#no", "../../x"]


def test_the_docs_are_one_path():
    """docs/README.md names the pages in order, each leads to the next, and none is forgotten."""
    contents = read("docs/README.md")
    named = re.findall(r"^\| \d+\. \[.*?\]\((\w+)\.md\)", contents, re.MULTILINE)
    assert named == list(ORDER)
    for page, after in zip(ORDER, ORDER[1:], strict=False):
        assert re.search(rf"^Next: \[.*\]\({after}\.md\)$", read(f"docs/{page}.md"), re.MULTILINE)
    linked = {f"docs/{link.split('#')[0]}" for link in pages.LINK.findall(contents)}
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - linked == {
        "docs/README.md"
    }


def test_the_table_of_commands_has_every_command_and_its_flags():
    rows = dict(COMMAND_ROW.findall(read("docs/commands.md")))
    modules = {
        f"experiments.{path.stem}"
        for path in (ROOT / "experiments").glob("*.py")
        if "__main__" in path.read_text(encoding="utf-8") and path.stem != "__main__"
    }
    assert set(rows) == modules
    for module, cells in rows.items():
        source = read(module.replace(".", "/") + ".py")
        flags = set(FLAG.findall(cells)) - {"config.x.y"}
        assert flags == set(DEFINED_FLAG.findall(source)), module


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_examples_and_their_flags_exist(page):
    run = r"(?:-m experiments\.|flow-grpo )([a-z]+)\b((?:[^\n`]|\\\n)*)"
    for name, rest in re.findall(run, read(page)):
        known = DEFINED_FLAG.findall(read(f"experiments/{name}.py"))
        used = FLAG.findall(rest.split("#")[0])
        assert name == "benchmark" or all(flag.split(".")[0] in known for flag in used), name


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"\bmake ([a-z][a-z-]+)`", read("README.md")))
    targets |= set(re.findall(r"^make (\S+)$", read("README.md"), re.MULTILINE))
    assert {"quickstart", "test"} <= targets
    makefile = read("Makefile")
    assert not [t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)]


def test_no_placeholder_is_left_in_the_readme():
    assert "@@" not in read("README.md") + read("docs/log.md")


def test_one_placeholder_stands_for_the_repository(tmp_path, monkeypatch):
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "docs/quickstart.ipynb"]
    address = re.compile(r"https://github\.com/([\w-]+)/flow_grpo_jax")
    named = [name for page in pages for name in address.findall(page.read_text(encoding="utf-8"))]
    assert len(named) > 3 and set(named) == {"YOUR-NAME"}
    assert "YOUR-NAME" in read("docs/recipes/README.md")
    cells = json.loads(read("docs/quickstart.ipynb"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (tmp_path / "cells.py").write_text("\n".join(code[:2]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="Put the address of your copy of this repository"):
        runpy.run_path("cells.py")


def test_the_example_config_is_consistent(tmp_path):
    c = run_example(read("README.md"), tmp_path)["get_config"]()
    prompt, response = c.rollout.max_prompt_tokens, c.rollout.max_response_tokens
    assert c.engine.cache_tokens >= 4 * (prompt + response)
    assert c.batch.row_lengths[-1] >= prompt + response
    assert c.batch.response_lengths[-1] >= response
    assert len(c.batch.rows) == len(c.batch.row_lengths)
    assert c.rollout.prompts in prompts.SETS
    assert set(c.tools.names) <= set(toolbox.MAKERS)


EXAMPLES = {path.name: path for path in (ROOT / "docs" / "examples").glob("*.py")}


def test_extend_shows_the_tested_files():
    """The rest of these files' tests: tests/experiments/test_extend.py."""
    shown = CODE.findall(read("docs/extend.md"))
    assert sorted(shown) == sorted(path.read_text(encoding="utf-8") for path in EXAMPLES.values())
    assert len(shown) == 6 and all(len(code.splitlines()) <= 50 for code in shown)


def test_the_example_tool_works():
    tool = runpy.run_path(str(EXAMPLES["word_counter.py"]))["make"](seconds=1.0)
    (arguments,) = parsing.calls(tool.demo, tool)
    assert protocol.call(tool, arguments) == "3 words"
    assert tool.limits in toolbox.describe(tool, full=True)
    with pytest.raises(protocol.ToolError, match="empty"):
        protocol.call(tool, {"text": " "})


def test_the_example_world_works(tmp_path):
    """It is as short as it says, draws from splits, and its good move is what Python says."""
    text = read("docs/worlds.md")
    world = run_example(text, tmp_path)["WORLD"]
    assert len(example(text).splitlines()) <= 50
    for split, digits in (("train", "3456789"), ("held_out", "012")):
        problem = next(world.questions(split, random.Random(0)))
        number, divisor = map(int, re.findall(r"\d+", problem.question))
        assert str(number)[-1] in digits and problem.answer == str(
            number - number // divisor * divisor
        )
        assert data.as_question(problem.row("x"))
        assert problem.stages[0].moves["remainder"].result == problem.answer


def test_every_tool_is_documented():
    text = read("docs/tools.md")
    assert not [name for name in toolbox.MAKERS if f"`{name}(" not in text]


def test_every_format_of_questions_is_documented():
    text = read("docs/data.md")
    assert not [name for name in formats.FORMATS if f"`{name}`" not in text]
    examples = re.findall(r"^\| `(\w+)`.*? \| `(\{.*?\})` \|", text, re.MULTILINE)
    assert len(examples) >= 10
    for name, row in examples:
        assert formats.recognised(json.loads(row)) == [name] * (name not in formats.BENCHMARKS)
        assert data.as_question(formats.converted(json.loads(row), name, 0))


def test_every_benchmark_is_documented():
    rows = [line.split(" | ") for line in read("docs/benchmarks.md").splitlines()]
    cells = {row[0].strip("| `"): row[1:] for row in rows if len(row) == 5}
    for name in places.FILES:
        assert set(re.findall(r"`(.*?)`", cells[name][0].lower())) == set(places.FILES[name])
        assert re.findall(r"`(.*?)`", cells[name][1]) == list(places.SPLITS[name])


def test_pages_made_from_the_code_are_current():
    for name, text in (
        ("reference", reference.reference()),
        ("troubleshooting", reference.troubleshooting(read("docs/troubleshooting.md"))),
    ):
        assert read(f"docs/{name}.md") == text, "run python -m experiments.reference --out=docs"


def test_every_field_of_a_config_says_what_it_means():
    found = {field.name: field for field in fields.collect()}
    assert not [name for name, field in found.items() if not field.meaning]
    lr, kind = found["optim.lr"], found["backends.NAME.kind"]
    assert (lr.default, lr.meaning) == ("1e-06", "learning rate")
    assert lr.allowed == "number, 0 or more; 0 trains nothing, as a control"
    assert (kind.default, kind.allowed) == ("'frozen'", "one of `frozen`, `policy`, `server`")
    assert len([name for name in found if name.startswith("backends.")]) == 21


def test_choices_are_those_that_the_comments_name():
    """A field that is "a" 'or "b"' takes fixed texts, of which these are some."""
    found = {field.name: field for field in fields.collect()}
    assert set(fields.CHOICES) <= set(found)
    for name, field in found.items():
        choices, default = fields.CHOICES.get(name), ast.literal_eval(field.default)
        if choices is not None:
            assert set(default if isinstance(default, tuple) else [default]) <= set(choices), name
        if isinstance(default, str) and (
            others := re.search(r'\bor "\w+"(, "\w+")*', field.meaning)
        ):
            assert set(re.findall(r'"(\w+)"', others[0])) <= set(choices or ()), name


def test_comments_are_those_of_their_fields():
    source = """
def part(kind):
    c = ConfigDict({"kind": kind})  # or others
    c.g = 5  # five
    return c

def base():
    shared = {"k": 1}  # of both
    c = ConfigDict()
    c.part = part("x")
    for name in MODULES:
        c.backends[name] = other()
    c.a = 1  # one
    # two,
    # and more
    c.b = ConfigDict({"x": 1, "y": 2})  # so
    c.d = ConfigDict({"z": 3} | shared)
    c.e = (
        4  # inside
    )
    c.f = "# text"

def other():
    c = ConfigDict()
    c.u = ""  # of all
"""
    assert fields.comments(source) == {
        "part.kind": "or others",
        "part.g": "five",
        "backends.NAME.u": "of all",
        "a": "one",
        "b.x": "two, and more so",
        "b.y": "two, and more so",
        "d.k": "of both",
        "e": "inside",
    }


def test_every_metric_is_documented():
    """Metric names are dict keys with a slash, or are made of a prefix."""
    names = set()
    for name in ("flow_grpo_jax/metrics.py", "flow_grpo_jax/update.py", "experiments/train.py"):
        names |= set(re.findall(r"\"([a-z]+/[a-z_]+)\":", read(name)))
    names |= {
        f"rollout/{name}"
        for name in re.findall(r"{prefix}/(\w+)\"", read("flow_grpo_jax/metrics.py"))
    }
    assert len(names) > 25
    assert not [name for name in sorted(names) if not metrics.known(name)]


def test_no_metric_is_told_that_is_gone():
    sources = "".join(
        path.read_text(encoding="utf-8")
        for package in ("agents", "experiments", "flow_grpo_jax")
        for path in (ROOT / package).rglob("*.py")
        if path.parent.name != "documenting"
    )
    told = {name.split("/")[-1] for names, _ in metrics.collect() for name in names}
    assert not [name for name in sorted(told - {"<source>", "…"}) if name not in sources]


@pytest.mark.parametrize(
    "name, known",
    [
        ("eval/turns", True),
        ("eval/judge/asked", True),
        ("eval/success/nq", True),
        ("tool/web_search/share", True),
        ("eval/nothing", False),
        ("reward/max", False),
        ("tool/share", False),
    ],
)
def test_metrics_are_known_by_name(name, known):
    assert metrics.known(name) == known


def test_messages_are_read_from_raises():
    source = """
TEXT = "A constant says this."
def fails(path, error):
    if path:
        raise ValueError(f"{path} holds no questions. Give a file.")
    if error:
        raise command.ConfigError(TEXT) from error
    raise made(path)
def made(path):
    return RuntimeError(f"Nothing was written to {path}: " + f"{why}.")
def warns(path, step):
    logging.warning("%s lacks step %-5d and %.1f s: see there", path, step, 1.0)
    logging.error("%s", TEXT)
    logging.info("Nobody has to act on this.")
    seen = "The world %s was seen once."
    logging.log_first_n(logging.WARNING, seen, 1, path)
    logging.log_every_n_seconds(logging.INFO, "Nobody has to act on that.", 60)
    raise ValueError(_sentence(path))
def _sentence(path):
    return f"{path} grows without end."
def others():
    raise ToolError("The model reads this text.")
    raise ValueError(str(error))
    raise AssertionError("never to be seen by anyone")
    return f"no message at all"
"""
    assert sorted(messages.messages(source)) == [
        "A constant says this.",
        "A constant says this.",
        "Nothing was written to …",
        "The world … was seen once.",
        "… grows without end.",
        "… holds no questions.",
        "… lacks step … and … s",
    ]
    assert "no message at all" in messages.messages(source, ast.Return)


@pytest.mark.parametrize(
    "message",
    [
        "There is no file or folder /nowhere.jsonl.",
        "loss.kl_coef=nan must be finite; 0 leaves the term out.",
        "The configuration has no field 'max_turn'. Did you mean 'max_turns'?",
        "runs/a holds a run with another config; it differs in optim.lr. Use a new --workdir, or",
        "models/a holds no model: there is no config.json. A model's folder has",
        "The checkpoint of step 3 cannot be written to runs/a: No space left on device.",
        "wikipedia_search needs your e-mail address or web page, by the rules of its API: --config",
        "runs/a is in use: process 7 on b works in it since 12:00. Wait for its end",
        "Cannot listen on 127.0.0.1 port 80: Permission denied. Use another --port.",
        "The processes disagree in the config. Start all of them with the same command",
        "There is no command trian. Did you mean train?",
        "This needs llguidance: pip install '.[grammar]'.",
        "--config and --workdir are missing; see --help.",
        "optim.lr=0.1,seed=0: exit code 1: error: x (runs/logs/a.log)",
        "tracker wandb failed, and the run goes on without: exit code 1 (a.log)",
        "a.jsonl: 2 of 9 rows are not questions:\n  line 1: there is no answer",
    ],
)
def test_what_a_command_says_is_found_on_the_page(message):
    assert listed(message)


def test_what_no_command_says_is_not_found():
    assert not listed("Nothing of this kind is said anywhere.")


def test_the_version_is_the_same_everywhere():
    version = flow_grpo_jax.__version__
    assert re.search(r"^## \[(.*?)\]", read("CHANGELOG.md"), re.MULTILINE)[1] == version
    assert re.search(r"^version: (.*)$", read("CITATION.cff"), re.MULTILINE)[1] == version
    assert "version=VERSION" in read("setup.py")


def test_the_trajectory_schema_is_documented():
    text = read("docs/design.md")
    fields = re.findall(r"^ +\"(\w+)\": ", read("agents/trajectory.py"), re.MULTILINE)
    assert len(fields) > 25
    assert not [field for field in fields if f"`{field}`" not in text]
