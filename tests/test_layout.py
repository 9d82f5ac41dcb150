"""The house keeps its shape: imports between and inside packages, defaults, sizes, what ships.

tools --> agents --> flow_grpo_jax --> experiments        (arrow = "is imported by")
                           ^
models --------------------+        flow_grpo_jax.bounds, which reads files, is below all of them
"""

import ast
import functools
import graphlib
import importlib.util
import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from experiments.configs import common

ROOT = pathlib.Path(__file__).resolve().parents[1]

BOUNDS = "flow_grpo_jax.bounds"  # a package of its own in what follows
MAY_IMPORT = {
    BOUNDS: {BOUNDS},
    "tools": {"tools", BOUNDS},
    "agents": {"agents", "tools", BOUNDS},
    "models": {"models", BOUNDS},
    "flow_grpo_jax": {"flow_grpo_jax", "agents", "tools", "models", BOUNDS},
    "experiments": {"experiments", "flow_grpo_jax", "agents", "tools", "models", BOUNDS},
}
NEVER = {"torch", "tensorflow", "ray", "vllm", "litellm", "hydra", "tests"}
ACCELERATOR = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "tensorstore"}
# experiments/speed starts these as programs of another environment that has the peer installed.
PEERS = "experiments.speed.peers."
PURE = ("credit", "loss", "update", "optimizer", "batching", "logprobs")
LIBRARIES = ("tools", "agents", "models", "flow_grpo_jax")
# Most floors of each package. Members (modules and folders) that import no other stand on the
# first, every other member one above the highest that it imports.
FLOORS = {
    "tools": 4,
    "tools.sandbox": 3,
    "agents": 3,
    "agents.backends": 3,
    "agents.environments": 4,
    "models": 4,
    "models.attention": 4,
    "models.engine": 6,
    "models.engine.layouts": 3,
    "models.gguf": 2,
    "flow_grpo_jax": 4,
    "flow_grpo_jax.answers": 5,
    "flow_grpo_jax.benchmarks": 2,
    "flow_grpo_jax.bounds": 2,
    "flow_grpo_jax.datasets": 2,
    "experiments": 5,
    "experiments.configs": 3,
    "experiments.diagnosis": 3,
    "experiments.documenting": 1,
    "experiments.evaluating": 4,
    "experiments.planning": 2,
    "experiments.reporting": 5,
    "experiments.running": 5,
    "experiments.serving": 4,
    "experiments.solving": 1,
    "experiments.speed": 3,
    "experiments.speed.peers": 2,
    "experiments.sweeping": 2,
    "experiments.tracking": 3,
    "experiments.warmstarting": 4,
    "experiments.worlds": 4,
}
FILE_LINES, FUNCTION_LINES = 500, 120


def folder_of(package):
    return ROOT.joinpath(*package.split("."))


def source_files(package):
    return sorted(folder_of(package).rglob("*.py"))


def package_of(module):
    """Returns which of MAY_IMPORT holds a module, else the first part of its name."""
    return BOUNDS if f"{module}.".startswith(f"{BOUNDS}.") else module.split(".")[0]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(source, module):
    """Returns the dotted names that `source`, the text of `module`, imports at any depth."""
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
    """Returns the packages that `module` with the text `source` imports and must not."""
    package = package_of(module)
    roots = {package_of(name) for name in imported_names(source, module)}
    never = NEVER - {"torch"} if module.startswith(PEERS) else NEVER
    forbidden = never | (set(MAY_IMPORT) - MAY_IMPORT[package])
    if package in (BOUNDS, "tools", "agents"):
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
    """Returns the literal assigned to `name` in setup.py."""
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
        ("flow_grpo_jax.bounds.x", "import tools.protocol", ["tools"]),
        ("tools.x", "from flow_grpo_jax.bounds import files", []),
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


@functools.cache
def house_imports():
    """Returns {module: modules of this repository that it imports}."""
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


def floors(package, graph):
    """Returns {member of a package: its floor, from 1}; CycleError if imports run in a circle.

    Members are the modules and folders right below it. A member stands above all that it imports,
    so no import runs up.
    """
    below = {}
    for module, imported in graph.items():
        member = member_of(package, module)
        if member:
            names = {member_of(package, name) for name in imported} - {member, ""}
            below[member] = below.get(member, set()) | names
    floor_of = {}
    for member in graphlib.TopologicalSorter(below).static_order():
        floor_of[member] = 1 + max((floor_of[name] for name in below[member]), default=0)
    return floor_of


def member_of(package, module):
    """Returns the part of a module's name after the package's; "" outside it."""
    return (
        module.removeprefix(f"{package}.").split(".")[0] if module.startswith(f"{package}.") else ""
    )


def too_high(package, graph, most):
    """Returns the floors of a package that has more than `most`, else {}."""
    floor_of = floors(package, graph)
    return floor_of if max(floor_of.values()) > most else {}


def test_floors_are_declared_for_every_package():
    assert sorted(FLOORS) == sorted(declared("PACKAGES"))


@pytest.mark.parametrize("package", FLOORS)
def test_no_import_inside_a_package_runs_up_or_in_a_circle(package):
    assert not too_high(package, house_imports(), FLOORS[package])


def test_circles_and_floors_are_noticed():
    graph = {
        "p.a": {"p.b.x"},
        "p.b.x": {"p.c", "q.z"},
        "p.b.y": {"p.b.x"},
        "p.c": set(),
        "q.z": {"p.a"},
    }
    assert floors("p", graph) == {"c": 1, "b": 2, "a": 3}
    assert floors("p.b", graph) == {"x": 1, "y": 2}
    assert not too_high("p", graph, 3)
    up = graph | {"p.c": {"p.d"}, "p.d": set()}  # from the ground to a member that was beside it
    assert too_high("p", up, 3) == {"d": 1, "c": 2, "b": 3, "a": 4}
    with pytest.raises(graphlib.CycleError):
        floors("p", graph | {"p.c": {"p.b.y"}})  # up into a folder that imports it


def config_names(config):
    for name, value in config.items():
        yield from config_names(value) if isinstance(value, ConfigDict) else [name]


# Defaults that share a field's name but not its meaning: (owner, names) -> what they are.
OTHER_DEFAULTS = {
    ("tools.http_client.Client.__init__", "max_bytes per_second private_hosts"): "of any service",
    ("tools.limits.Rate.__init__", "burst"): "no burst",
    ("tools.limits.TooLate.__init__", "seconds"): "none is known",
    ("tools.mcp_tools.Connection.__init__", "max_characters seconds"): "MCP has no section",
    ("tools.text_index.Document", "url"): "a document without an address",
    ("tools.timed_socket.TimedSocket.start", "max_bytes"): "no limit",
    ("agents.memory.Entry", "seconds"): "a measured time",
    ("models.engine.ahead.lowered", "layout"): "of the cache, not of a batch",
    ("models.engine.cache.candidates", "layout"): "of the cache, not of a batch",
    ("models.engine.engine.Engine.__init__", "layout"): "of the cache, not of a batch",
    ("models.engine.types.Sampling", "stop_ids temperature top_k"): "neutral values of one request",
    ("models.engine.types.Statistics", "prefill_calls prefill_tokens"): "counts that start at 0",
    ("models.huggingface.config_to_dict", "dtype"): "of a file, not of the computation",
    ("models.huggingface.load", "dtype"): "of a file, not of the computation",
    ("models.huggingface.save", "dtype"): "of a file, not of the computation",
    ("models.lora.init", "dtype"): "of masters, which are float32",
    ("models.lora.add", "dtype"): "of masters, which are float32",
    ("models.lora.load", "dtype"): "of masters, which are float32",
    ("models.decoder.Config", "rope_theta max_position_embeddings"): "of published models",
    ("models.decoder.Decoder.__init__", "dtype"): "of masters, which are float32",
    ("models.decoder.Decoder.embedded", "dtype"): "of a reference computation",
    ("models.sharding.make_mesh", "data fsdp tensor"): "an axis that is not split",
    ("models.weights.read", "dtype"): "of a file, not of the computation",
    ("models.weights.write", "dtype"): "of a file, not of the computation",
    ("flow_grpo_jax.data.as_question", "index_base"): "nothing is assumed of a row",
    ("flow_grpo_jax.data.read_questions", "format index_base bad_rows"): "nor of a file",
    ("flow_grpo_jax.judge.Judge.__init__", "cache"): "no cache of verdicts",
    ("flow_grpo_jax.symbolic.Symbolic.__init__", "memory_bytes seconds"): "of a checker's process",
}


def defaults(source, module):
    """Yields (dotted function or class, name) of each parameter and field with a default."""

    def visit(node, prefix):
        for inner in ast.iter_child_nodes(node):
            name = f"{prefix}.{getattr(inner, 'name', '')}".removesuffix(".")
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                positional = inner.args.posonlyargs + inner.args.args
                optional = positional[len(positional) - len(inner.args.defaults) :]
                pairs = zip(inner.args.kwonlyargs, inner.args.kw_defaults, strict=True)
                optional += [argument for argument, value in pairs if value is not None]
                yield from ((name, argument.arg) for argument in optional)
            if isinstance(inner, ast.ClassDef):
                fields = [n for n in inner.body if isinstance(n, ast.AnnAssign) and n.value]
                yield from ((name, field.target.id) for field in fields)
            yield from visit(inner, name)

    yield from visit(ast.parse(source), module)


def doubled_defaults(sources):
    """Returns the defaults of {module: source} that the config holds too: {(owner, name)}."""
    names = set(config_names(common.base()))
    return {
        (owner, name)
        for module, source in sources.items()
        for owner, name in defaults(source, module)
        if name in names
    }


def test_the_config_is_the_only_home_of_its_defaults():
    sources = {
        module_name(path): path.read_text(encoding="utf-8")
        for package in LIBRARIES
        for path in source_files(package)
    }
    allowed = {(owner, name) for owner, names in OTHER_DEFAULTS for name in names.split()}
    found = doubled_defaults(sources)
    assert not found - allowed, "make it a required keyword"
    assert not allowed - found, "leave out rows of what is gone"


def test_defaults_of_functions_and_fields_are_found():
    source = "def f(a, b=1, *, c, d=2): ...\nclass A:\n  e: int = 3\n  g: int\n"
    source += "  async def h(self, i=None): ..."
    assert set(defaults(source, "m")) == {("m.f", "b"), ("m.f", "d"), ("m.A", "e"), ("m.A.h", "i")}
    doubled = "def f(*, group=8, room=9, kl_coef): ...\nclass A:\n  lr: float = 1e-6"
    assert doubled_defaults({"m": doubled}) == {("m.f", "group"), ("m.A", "lr")}


def not_commands(modules, graph):
    """Returns the modules of {name: source} that cannot be run, and those that others import."""
    guard = '\nif __name__ == "__main__":\n'
    imported = set().union(*graph.values())
    return sorted(name for name in modules if guard not in modules[name] or name in imported)


def test_the_modules_of_experiments_are_the_commands():
    modules = {
        module_name(path): path.read_text(encoding="utf-8")
        for path in (ROOT / "experiments").glob("*.py")
        if path.stem != "__init__"
    }
    assert modules and not not_commands(modules, house_imports())


def test_a_module_that_is_no_command_is_noticed():
    modules = dict.fromkeys(("e.run", "e.part"), 'x = 1\nif __name__ == "__main__":\n    main()\n')
    assert not_commands(modules, {"e.run": {"f"}, "e.part": set()}) == []
    assert not_commands(modules, {"e.run": {"e.part"}, "e.part": set()}) == ["e.part"]
    assert not_commands(modules | {"e.run": "x = 1\n"}, {"e.run": set()}) == ["e.run"]


def long_parts(source, module):
    """Returns {name: lines} of a file and its functions where they are too long."""
    lines = {module: len(source.splitlines())}
    parts = {module: FILE_LINES}

    def visit(node, prefix):
        for inner in ast.iter_child_nodes(node):
            name = f"{prefix}.{getattr(inner, 'name', '')}".removesuffix(".")
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                lines[name] = inner.end_lineno - inner.lineno + 1
                parts[name] = FUNCTION_LINES
            visit(inner, name)

    visit(ast.parse(source), module)
    return {name: count for name, count in lines.items() if count > parts[name]}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_files_and_functions_stay_short(package):
    found = {}
    for path in source_files(package):
        found |= long_parts(path.read_text(encoding="utf-8"), module_name(path))
    assert not found, "split them by noun"


def test_long_parts_are_noticed():
    body = "    x = 1\n" * FUNCTION_LINES
    assert long_parts(f"class A:\n  def f(self):\n{body}", "m") == {"m.A.f": FUNCTION_LINES + 1}
    assert long_parts("x = 1\n" * (FILE_LINES + 1), "m") == {"m": FILE_LINES + 1}


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
    """Indirect imports count too: the agent loop runs where jax is not installed."""
    packages = (BOUNDS, "tools", "agents")
    modules = [module_name(p) for package in packages for p in source_files(package)]
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
    assert pathlib.Path(spec.origin).parent == folder_of(package), (
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
