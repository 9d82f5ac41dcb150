"""All commands by one name: `flow-grpo train …` is `python -m experiments.train …`.

    flow-grpo                 lists the commands
    flow-grpo train --help    help of one
    flow-grpo --version

Exit codes are those of the command; 2 for a command that there is not.
"""

import ast
import difflib
import pathlib
import runpy
import sys

from flow_grpo_jax import __version__

HELP = {"", "--help", "-help", "-h", "help"}
BAD_FLAGS = 2


def commands():
    """Returns {name: first line of its docstring}; imports none of them, so it is quick."""
    found = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("[!_]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        found[path.stem] = text.splitlines()[0]
    return found


def listing():
    """Returns what `flow-grpo` alone prints."""
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {what}" for name, what in known.items()]
    ends = "flow-grpo COMMAND --help tells its flags."
    return "\n".join([f"flow-grpo {__version__}", "", *lines, "", ends, ""])


def main():
    """Runs the command that the first argument names with the arguments after it."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in HELP:
        sys.stdout.write(listing())
    elif name == "--version":
        sys.stdout.write(f"flow-grpo {__version__}\n")
    elif name not in commands():
        near = difflib.get_close_matches(name, commands(), n=1)
        hint = f"Did you mean {near[0]}?" if near else "flow-grpo lists them."
        sys.stderr.write(f"error: There is no command {ascii(name)[1:-1]}. {hint}\n")
        sys.exit(BAD_FLAGS)
    else:
        del sys.argv[1]
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
