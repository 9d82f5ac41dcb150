"""The house keeps its shape: which package may import which, what ships, and what nobody imports.

tools --> agents --> flow_grpo_jax --> experiments        (arrow = "is imported by")
                           ^
models --------------------+
"""

import ast
import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "tools": {"tools"},
    "agents": {"agents", "tools"},
    "models": {"models"},
    "flow_grpo_jax": {"flow_grpo_jax", "agents", "tools", "models"},
    "experiments": {"experiments", "flow_grpo_jax", "agents", "tools", "models"},
}
NEVER = {"torch", "tensorflow", "ray", "vllm", "litellm", "hydra", "tests"}
ACCELERATOR = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "tensorstore"}
# Benchmarks start these as programs of another environment, in which the peer is installed.
PEERS = "experiments.speed.peers."
PURE = ("credit", "loss", "update", "optimizer", "batching", "logprobs")
LIBRARIES = ("tools", "agents", "models", "flow_grpo_jax")


def source_files(package):
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(source, module):
    """Dotted names that `source`, the text of `module`, imports, at any depth of the file."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join(parents + ([base] if base else []))
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rsplit(".", 1)[-1]
            if called in ("import_module", "__import__"):
                names.add(str(node.args[0].value))
    return names


def violations(source, module):
    """What `module` with the text `source` imports and must not."""
    package = module.split(".")[0]
    roots = {name.split(".")[0] for name in imported_names(source, module)}
    never = NEVER - {"torch"} if module.startswith(PEERS) else NEVER
    forbidden = never | (set(MAY_IMPORT) - MAY_IMPORT[package])
    if package in ("tools", "agents"):
        forbidden = forbidden | ACCELERATOR
    return sorted(roots & forbidden)


def calls_of_print(source):
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]


def declared(name):
    """The literal assigned to `name` in setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py assigns no {name}")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    files = source_files(package)
    assert files, f"{package}/ holds no Python file"
    found = {}
    for path in files:
        bad = violations(path.read_text(encoding="utf-8"), module_name(path))
        if bad:
            found[str(path.relative_to(ROOT))] = bad
    assert not found


@pytest.mark.parametrize(
    "module, source, bad",
    [
        ("tools.x", "import agents.memory", ["agents"]),
        ("tools.x", "def f():\n    import jax.numpy as jnp", ["jax"]),
        ("agents.x", "from flax import nnx", ["flax"]),
        ("agents.x", "from flow_grpo_jax import rewards", ["flow_grpo_jax"]),
        ("models.engine.x", "from .. import sharding\nimport tools", ["tools"]),
        ("models.x", "import importlib\nimportlib.import_module('torch')", ["torch"]),
        ("flow_grpo_jax.x", "from experiments import report", ["experiments"]),
        ("experiments.x", "try:\n    import tensorflow\nexcept ImportError: ...", ["tensorflow"]),
        ("experiments.x", "import tensorflow_datasets, agents, models", []),
        ("agents.x", "from tools import protocol\nfrom . import memory", []),
    ],
)
def test_a_wrong_import_would_be_noticed(module, source, bad):
    assert violations(source, module) == bad


def house_imports():
    """{module: modules of this repository that it imports}."""
    files = {module_name(p): p for package in MAY_IMPORT for p in source_files(package)}
    return {
        name: imported_names(path.read_text(encoding="utf-8"), name) & set(files)
        for name, path in files.items()
    }


def reachable(start, graph):
    seen, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph.get(name, ())
    return seen


@pytest.mark.parametrize("name", PURE)
def test_the_algorithm_knows_no_agent_and_no_tool(name):
    graph = house_imports()
    assert f"flow_grpo_jax.{name}" in graph
    roots = {module.split(".")[0] for module in reachable(f"flow_grpo_jax.{name}", graph)}
    assert not roots & {"agents", "tools", "experiments"}


def test_reachable_follows_imports():
    graph = {"a": {"b"}, "b": {"c", "a"}, "c": set(), "d": {"a"}}
    assert reachable("a", graph) == {"a", "b", "c"}


def test_tools_and_agents_load_without_an_accelerator_stack():
    """Also through what they import from others: the agent loop runs where jax is not installed."""
    modules = [module_name(p) for package in ("tools", "agents") for p in source_files(package)]
    modules = [name for name in modules if not name.endswith("__main__")]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"sys.exit(', '.join(sorted(set(sys.modules) & {ACCELERATOR!r})) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_resolve_to_this_repository(package):
    spec = importlib.util.find_spec(package)
    assert pathlib.Path(spec.origin).parent == ROOT / package, (
        f"`import {package}` finds {spec.origin}. Run from the repository root with python -m, "
        "and uninstall the other distribution that owns this name."
    )


def test_setup_lists_exactly_the_packages():
    found = {
        module_name(path)
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert sorted(declared("PACKAGES")) == sorted(found)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_python_files_lie_in_packages(package):
    loose = [p for p in source_files(package) if not (p.parent / "__init__.py").exists()]
    assert not loose, "add an __init__.py, and the package to setup.py"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_setup_ships_the_data_files(package):
    folder = ROOT / package
    shipped = {
        p for pattern in declared("PACKAGE_DATA").get(package, ()) for p in folder.glob(pattern)
    }
    data = {
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    }
    assert not data - shipped, "list them under PACKAGE_DATA in setup.py"


def test_the_run_time_needs_none_of_the_others():
    names = {line.split(">")[0].split("=")[0].split("[")[0] for line in declared("REQUIRES")}
    assert not names & (NEVER | {"accelerate", "openai", "datasets", "pandas"})


@pytest.mark.parametrize("package", LIBRARIES)
def test_library_code_does_not_print(package):
    found = {
        str(path.relative_to(ROOT)): lines
        for path in source_files(package)
        if (lines := calls_of_print(path.read_text(encoding="utf-8")))
    }
    assert not found, "use absl.logging"


def test_calls_of_print_finds_calls_only():
    assert calls_of_print("x = 'print(1)'\nlog.print(2)\nif x:\n    print(3)") == [4]
