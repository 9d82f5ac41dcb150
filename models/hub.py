"""Finds a model that is already on this disk, also by its name on the Hugging Face hub.

Source: "Understand caching" in the documentation of `huggingface_hub`.
"""

import os
import pathlib
import re

from flow_grpo_jax.bounds import files

# Organisation/Name or Name, as `huggingface_hub` takes it.
NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
REPOSITORY = "models--"
GGUF = ".gguf"  # a file of this kind is a model by itself
MAX_REFERENCE = 1_000  # bytes of a file of refs/, which holds a hash
# Where the cache keeps Qwen/Qwen2.5-7B-Instruct: .../models--Qwen--Qwen2.5-7B-Instruct/...
CACHED = re.compile(r"(?:^|/)models--([\w.-]+?)(?:--([\w.-]+))?(?:/|$)")


def cache():
    """Returns the folder of the hub's cache: HF_HUB_CACHE, else `hub` in HF_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", os.path.join(base, "huggingface"))
    found = os.environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    found = os.environ.get("HF_HUB_CACHE", found)
    return pathlib.Path(os.path.expandvars(os.path.expanduser(found)))


def name_of(location):
    """Returns the hub's name of the model whose cache a path or URL leads into, or None."""
    found = CACHED.search(str(location))
    return "/".join(filter(None, found.groups())) if found else None


def locate(path, *, root):
    """Returns the folder of a model as a text. Nothing is downloaded.

    Args:
      path: URL or absolute path; or a path from `root`, of a folder or a GGUF file; or, where there
        is none, a name on the hub whose files are in its cache. Of these the snapshot of refs/main
        is taken, else the newest. A cache's folder of a model, models--…, stands for its snapshot
        too. A path that can be no name is returned as it is, also if there is nothing.
      root: folder.

    Raises:
      FileNotFoundError: a name, of which neither exists; says how to download it.
    """
    path = str(path)
    if "://" in path:
        return path
    here = pathlib.Path(root, path)
    if here.is_file() and here.suffix == GGUF:
        return str(here)
    if here.is_dir():
        cached = here.name.startswith(REPOSITORY) and (here / "snapshots").is_dir()
        return str(_snapshot(here, name_of(here)) if cached else here)
    if pathlib.Path(path).is_absolute() or not NAME.fullmatch(path):
        return str(here)
    repository = cache() / (REPOSITORY + path.replace("/", "--"))
    if not repository.is_dir():
        raise FileNotFoundError(
            f"There is neither a folder {here} nor a model {path} in the hub's cache {cache()}. "
            f"Give the folder of a model, or download that one: hf download {path}"
        )
    return str(_snapshot(repository, path))


def _snapshot(repository, name):
    """Returns the snapshot of refs/main, or else the newest one, of a model's folder in a cache."""
    snapshots, reference = repository / "snapshots", repository / "refs" / "main"
    found = {}
    if snapshots.is_dir():
        found = {folder.name: folder for folder in snapshots.iterdir() if folder.is_dir()}
    main = ""
    if reference.is_file():
        main = files.read_bytes(reference, most=MAX_REFERENCE).decode("ascii", "replace").strip()
    if main in found:
        return found[main]
    if not found:
        raise FileNotFoundError(
            f"{repository} holds no snapshot; its download did not end. "
            f"Finish it: hf download {name}"
        )
    return max(found.values(), key=lambda folder: (folder.stat().st_mtime, folder.name))
