"""Where relative paths of configs and of --config lead: to the current folder, or to what ships.

What ships with the package is named as in the repository, `experiments/data/…` and
`experiments/configs/…`, and is found from any folder.
"""

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[2]  # the checkout, or the site-packages of an installation
SHIPPED = ROOT / "experiments" / "data"
CONFIGS = ROOT / "experiments" / "configs"
NO_CONFIGS = ("__init__", "common", "ranges")


def base(path):
    """Returns the folder from which a relative path of a config counts."""
    return ROOT if (ROOT / path).is_relative_to(SHIPPED) else pathlib.Path.cwd()


def resolve(path):
    """Returns a config's path: absolute and remote ones as they are, others made absolute."""
    return path if "://" in path or pathlib.Path(path).is_absolute() else str(base(path) / path)


def configs():
    """Returns {name: file} of the configs that ship."""
    files = {path.stem: path for path in sorted(CONFIGS.glob("*.py"))}
    return {name: path for name, path in files.items() if name not in NO_CONFIGS}


def config_file(value):
    """Returns the value of --config with the file of a config that ships in place of its name.

    value: a file, or the name of such a config or its file as in the repository, where there is no
    file of that path; then perhaps ":ARGUMENT".
    """
    path, colon, argument = value.partition(":")
    if os.path.isfile(path):
        return value
    named = configs()
    named |= {str(file.relative_to(ROOT)): file for file in named.values()}
    return f"{named[path]}{colon}{argument}" if path in named else value
