"""Measures speed: each benchmark is a module of experiments/speed.

python -m experiments.benchmark update --help
"""

import sys

from absl import flags

from experiments.planning import benchmarks
from experiments.running import command
from experiments.speed import engine, loading, rollout, sandbox, search, update

MEASUREMENTS = {
    "ahead": benchmarks,
    "engine": engine,
    "loading": loading,
    "rollout": rollout,
    "sandbox": sandbox,
    "search": search,
    "update": update,
}
HELP = {"--help", "-help", "-h", "help"}


def _first_line(module):
    return module.__doc__.strip().splitlines()[0]


def main(arguments):
    """Runs the measurement named by the first argument; the others are its flags."""
    name = arguments[1] if len(arguments) > 1 else ""
    if name in HELP:
        lines = [f"  {name:<10}{_first_line(module)}" for name, module in MEASUREMENTS.items()]
        sys.stdout.write("\n".join([__doc__.strip(), "", *lines, ""]))
        sys.exit(0)
    if name not in MEASUREMENTS:
        sys.stderr.write(
            f"error: benchmark {name!r} is unknown; valid: {', '.join(MEASUREMENTS)}. For example: "
            f"python -m experiments.benchmark {'engine'} --help\n"
        )
        sys.exit(command.BAD_FLAGS)
    sys.argv = [f"{arguments[0]} {name}", *arguments[2:]]
    MEASUREMENTS[name].define_flags()
    if HELP & set(arguments[2:]):
        shown = flags.FLAGS.module_help(MEASUREMENTS[name])
        sys.stdout.write(f"{command.manual(MEASUREMENTS[name])}\n\nflags:\n{shown}\n")
        sys.exit(0)
    command.run(MEASUREMENTS[name].main)


if __name__ == "__main__":
    main(sys.argv)
