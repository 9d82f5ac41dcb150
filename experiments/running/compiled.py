"""Keeps compiled programs between runs, in a folder of this user.

Bits do not depend on it: what is kept is the code that the compiler made. JAX's own key of a
program knows versions, options and devices, but neither the instructions nor the number of cores of
a CPU, for which code is made; so each kind of CPU has a folder of its own.
"""

import hashlib
import os
import pathlib
import platform

import jax
from absl import logging

from experiments.running import command

FOLDER = pathlib.Path("~/.cache/flow_grpo_jax")
LEAST_SECONDS = 0.5  # of compilation, to be kept
CPU_BYTES = 2**30  # of all folders for CPUs together
CPU_INFO = pathlib.Path("/proc/cpuinfo")
CPU_FACTS = ("vendor_id", "model name", "flags", "Features")  # of CPU_INFO, on x86 and on ARM


def keep(folder, *, device):
    """Lets JAX keep programs in a folder, unless it was told where to keep them already.

    Args:
      folder: "auto" is one in ~/.cache, "" is none.
      device: platform of the devices, such as "cpu".

    Raises:
      ConfigError: the folder is named and cannot be made.
    """
    if not folder or jax.config.jax_compilation_cache_dir:
        return
    if folder == "auto":
        try:
            folder = FOLDER.expanduser()
            if device == "cpu":
                folder = folder / f"cpu-{cpu()}"
            folder.mkdir(parents=True, exist_ok=True)
            forget(folder.parent.glob("cpu-*/*"), most_bytes=CPU_BYTES)
        except (OSError, RuntimeError) as error:  # no home, or one that cannot be written
            logging.info("compiled programs are not kept: %s", error)
            return
    elif "://" not in folder:
        try:
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise command.ConfigError(
                f"compile_cache={folder} cannot be made: {error.strerror}."
            ) from error
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


def cpu():
    """Returns a name for the CPUs for which code compiled here is right."""
    facts = {platform.machine(), platform.processor(), str(_cores())}
    if CPU_INFO.exists():
        lines = CPU_INFO.read_text(errors="replace").splitlines()
        facts |= {line for line in lines if line.startswith(CPU_FACTS)}
    return hashlib.sha256("\n".join(sorted(facts)).encode()).hexdigest()[:16]


def _cores():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def forget(paths, *, most_bytes):
    """Removes the oldest files until the rest take no more than that."""
    files = [(path, path.stat()) for path in paths]
    for path, facts in sorted(files, key=lambda file: file[1].st_mtime, reverse=True):
        most_bytes -= facts.st_size
        if most_bytes < 0:
            path.unlink(missing_ok=True)
