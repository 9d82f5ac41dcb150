"""No data becomes code: every call in the source that could run or unpack some is listed here.

The syntax trees are searched, not the texts, for calls and imports under any name.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("tools", "agents", "models", "flow_grpo_jax", "experiments")
SOURCES = [*ROOT.glob("*.py"), *(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))]

# Modules whose readers run what they read, and such that start programs.
MODULES = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"),
    *("yaml", "jsonpickle", "code", "codeop", "runpy", "imp", "cffi", "pty", "pdb"),
    *("subprocess", "multiprocessing", "importlib", "pkgutil", "zipimport", "jinja2"),
    *("tarfile", "zipfile", "xml", "xmlrpc", "tensorflow_datasets"),
}
# Functions, by the name that is called; "x.y" is y called on anything that is written x.
BUILT_IN = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
CALLS = {
    *("os.system", "os.popen", "torch.load", "np.load", "numpy.load", "jnp.load", "np.fromfile"),
    *("pd.read_pickle", "pandas.read_pickle", "import_module", "run_path", "run_module"),
    *("extractall", "unpack_archive", "load_extension", "enable_load_extension"),
    *("execv", "execve", "execvp", "execvpe", "execl", "execlp", "spawnv", "spawnl", "posix_spawn"),
    *("exec_module", "load_module", "create_subprocess_shell", "create_subprocess_exec"),
    "from_string",  # a template of jinja
}
KEYWORDS = {"shell", "allow_pickle", "trust_remote_code", "weights_only"}
DOTTED = {*CALLS, *(f"builtins.{name}" for name in BUILT_IN)}
LAST = {name.rpartition(".")[2] for name in DOTTED}

FIND = "asks whether a package that is named here is installed"
CHILD = "starts this interpreter on a module of this repository, no shell"
PEER = "measures a peer in an environment of its own; never part of a run"
ALLOWED = {
    ("experiments/__main__.py", "runpy"): "runs a command of this package, of a list of its files",
    ("experiments/__main__.py", "run_module"): "the same",
    ("experiments/sweeping/jobs.py", "subprocess"): "starts experiments.train, as this user asks",
    ("experiments/running/trackers.py", "subprocess"): "starts experiments.tracking, no other",
    ("experiments/running/versions.py", "importlib"): FIND,
    ("experiments/planning/programs.py", "importlib"): FIND,
    ("experiments/running/command.py", "importlib"): FIND,
    ("flow_grpo_jax/symbolic.py", "importlib"): FIND,
    ("tools/children.py", "importlib"): "imports a module that the code that starts it names",
    ("tools/children.py", "import_module"): "imports a module that the code that starts it names",
    ("tools/children.py", "subprocess"): CHILD,
    ("tools/web_search.py", "importlib"): FIND,
    ("experiments/diagnosis/machine.py", "importlib"): FIND,
    ("experiments/diagnosis/machine.py", "subprocess"): "asks nvidia-smi, by a fixed command",
    ("experiments/diagnosis/rows.py", "importlib"): "imports the modules of a list in the code",
    ("experiments/diagnosis/rows.py", "import_module"): "imports the modules of a list in the code",
    ("experiments/planning/benchmarks.py", "compile"): "a function of that name: of XLA",
    ("models/template_limits.py", "jinja2"): "its immutable sandbox, with bounds",
    ("models/template_limits.py", "from_string"): "in the immutable sandbox, with bounds",
    ("experiments/speed/sandbox.py", "subprocess"): PEER,
    ("experiments/speed/peers/link.py", "subprocess"): PEER,
    ("tools/sandbox/client.py", "subprocess"): CHILD,
    ("tools/sandbox/helper.py", "importlib"): "imports the modules of a list in this file",
    ("tools/sandbox/helper.py", "import_module"): "imports the modules of a list in this file",
    ("tools/sandbox/program.py", "compile"): "the model's program, inside the sandbox",
    ("tools/sandbox/program.py", "exec"): "the model's program, inside the sandbox",
    ("models/gguf/tensors.py", "importlib"): "imports a package that is named here",
    ("models/gguf/tensors.py", "import_module"): "the package gguf, by its name",
    ("models/chat_template.py", "jinja2"): "its errors; transformers renders, in jinja's sandbox",
    (
        "models/tokenizer_folder.py",
        "trust_remote_code",
    ): "False: code in a model's folder is not run",
    ("flow_grpo_jax/datasets/files.py", "tensorflow_datasets"): "after datasets/features.py",
}


def found_in(source):
    """Returns the names of MODULES, BUILT_IN, CALLS and KEYWORDS that a source uses."""
    found, aliases, tree = set(), {}, ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {(node.module or "").split(".")[0]} & MODULES
            aliases |= {alias.asname or alias.name: alias.name for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):  # called, or handed on to be called
            found |= {aliases.get(node.id, node.id)} & (BUILT_IN | CALLS)
        elif isinstance(node, ast.Attribute) and node.attr in LAST:
            found |= {ast.unparse(node), node.attr} & DOTTED
        elif isinstance(node, ast.keyword):
            found |= {node.arg} & KEYWORDS
    return found


def test_no_data_becomes_code():
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in SOURCES
        for name in found_in(path.read_text(encoding="utf-8"))
    }
    assert not found - set(ALLOWED), "use JSON, flow_grpo_jax/wire.py, or an allow-list of names"
    assert not set(ALLOWED) - found, "leave out rows of what is gone"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import pickle", "pickle"),
        ("import pickle as p", "pickle"),
        ("def f():\n    from marshal import loads", "marshal"),
        ("from yaml import load", "yaml"),
        ("import xml.etree.ElementTree", "xml"),
        ("eval(x)", "eval"),
        ("run = exec", "exec"),
        ("builtins.eval(x)", "builtins.eval"),
        ("from importlib import import_module as i\ni(x)", "import_module"),
        ("os.system(x)", "os.system"),
        ("from numpy import load\nnp.load(x)", "np.load"),
        ("torch.load(x)", "torch.load"),
        ("a.b.extractall()", "extractall"),
        ("run(x, shell=True)", "shell"),
        ("np.load(x, allow_pickle=True)", "allow_pickle"),
        ("compile(x, y, 'exec')", "compile"),
    ],
)
def test_what_could_run_data_is_noticed(source, name):
    assert name in found_in(source)


@pytest.mark.parametrize(
    "source", ["re.compile(x)", "model.eval()", "lowered.compile()", "'pickle'", "# eval(x)"]
)
def test_what_only_looks_like_it_is_not(source):
    assert not found_in(source)
