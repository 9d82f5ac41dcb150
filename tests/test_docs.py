"""The documentation names what exists: functions, tests, links, flags, metrics; examples run."""

import ast
import functools
import json
import pathlib
import random
import re
import runpy

import pytest

from agents import parsing, prompts
from flow_grpo_jax import data
from flow_grpo_jax.benchmarks import places
from flow_grpo_jax.datasets import formats
from tools import protocol, toolbox

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = ("README.md",) + tuple(
    f"docs/{name}.md"
    for name in (
        "algorithm",
        "backends",
        "benchmarks",
        "commands",
        "data",
        "design",
        "evaluate",
        "security",
        "serving",
        "smollm2",
        "tools",
        "worlds",
    )
)

NAMED = re.compile(r"`([\w./]+\.py):([\w.]+)`")
PATH = re.compile(
    r"`((?:agents|bounds|docs|experiments|flow_grpo_jax|models|tests|tools)/[\w./]+)[:`]"
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND_ROW = re.compile(r"^\| `python -m (experiments\.\w+)` \| (.*?) \|", re.MULTILINE)
FLAG = re.compile(r"--(\w[\w.]*)")
DEFINED_FLAG = re.compile(r"DEFINE_\w+\(\s*\"(\w+)\"")
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


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


@pytest.mark.parametrize("page", PAGES)
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


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page):
    links = [link for link in LINK.findall(read(page)) if not link.startswith(("http", "#"))]
    folder = (ROOT / page).parent
    assert not [link for link in links if not (folder / link.split("#")[0]).exists()]


def test_the_table_of_commands_has_every_command_and_its_flags():
    rows = dict(COMMAND_ROW.findall(read("docs/commands.md")))
    modules = {
        f"experiments.{path.stem}"
        for path in (ROOT / "experiments").glob("*.py")
        if "__main__" in path.read_text(encoding="utf-8")
    }
    assert set(rows) == modules
    for module, cells in rows.items():
        source = read(module.replace(".", "/") + ".py")
        flags = set(FLAG.findall(cells)) - {"config.x.y"}
        assert flags == set(DEFINED_FLAG.findall(source)), module


def test_flags_of_example_commands_exist():
    text = read("README.md") + read("docs/commands.md")
    commands = re.findall(r"-m (experiments\.\w+)((?:[^\n`]|\\\n)*)", text)
    assert len(commands) > 5
    for module, rest in commands:
        known = DEFINED_FLAG.findall(read(module.replace(".", "/") + ".py"))
        used = FLAG.findall(rest)
        assert all(flag.split(".")[0] in known for flag in used), (module, used)


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"\bmake ([a-z][a-z-]+)`", read("README.md")))
    targets |= set(re.findall(r"^make (\S+)$", read("README.md"), re.MULTILINE))
    assert {"quickstart", "test"} <= targets
    makefile = read("Makefile")
    assert not [t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)]


def test_no_placeholder_is_left_in_the_readme():
    assert "@@" not in read("README.md") + read("docs/log.md")


def test_the_example_config_is_consistent(tmp_path):
    c = run_example(read("README.md"), tmp_path)["get_config"]()
    prompt, response = c.rollout.max_prompt_tokens, c.rollout.max_response_tokens
    assert c.engine.cache_tokens >= 4 * (prompt + response)
    assert c.batch.row_lengths[-1] >= prompt + response
    assert c.batch.response_lengths[-1] >= response
    assert len(c.batch.rows) == len(c.batch.row_lengths)
    assert c.rollout.prompts in prompts.SETS
    assert set(c.tools.names) <= set(toolbox.MAKERS)


def test_the_example_tool_works(tmp_path):
    tool = run_example(read("docs/tools.md"), tmp_path)["make"](seconds=1.0)
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


def test_every_metric_is_documented():
    """Metric names are dict keys with a slash, or are made of a prefix."""
    text = read("docs/design.md")
    names = set()
    for name in ("flow_grpo_jax/metrics.py", "flow_grpo_jax/update.py", "experiments/train.py"):
        names |= set(re.findall(r"\"([a-z]+/[a-z_]+)\":", read(name)))
    names |= {
        f"rollout/{name}"
        for name in re.findall(r"{prefix}/(\w+)\"", read("flow_grpo_jax/metrics.py"))
    }
    assert len(names) > 25
    assert not [name for name in sorted(names) if f"`{name}`" not in text]


def test_the_trajectory_schema_is_documented():
    text = read("docs/design.md")
    fields = re.findall(r"^ +\"(\w+)\": ", read("agents/trajectory.py"), re.MULTILINE)
    assert len(fields) > 25
    assert not [field for field in fields if f"`{field}`" not in text]
