"""What the measurements share: limits of the machine, ratios with their spread, tables and flags.

Dimensions:
  N rows and columns of a square matrix
"""

import datetime
import os
import platform
import resource
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np

from experiments.running import command


def peak_bytes():
    """Returns the largest device memory so far; on CPU the resident size of the process."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return statistics.get("peak_bytes_in_use", host)


def memory():
    """Returns the bytes that JAX may use on a device; None where they are not told, as on CPUs."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def matmul_rate(dtype):
    """Returns the FLOP/s of one large square product, best of several runs."""
    on_cpu = jax.default_backend() == "cpu"
    n, times = (2_048, 1) if on_cpu else (8_192, 8)
    a_NN, b_NN = (jnp.full((n, n), 1.0 / n, dtype) for _ in range(2))
    chain = jax.jit(lambda a, b: jax.lax.fori_loop(0, times, lambda _, x: x @ b, a))
    jax.block_until_ready(chain(a_NN, b_NN))
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        jax.block_until_ready(chain(a_NN, b_NN))
        best = min(best, time.perf_counter() - started)
    return times * 2.0 * n**3 / best


def copy_bandwidth():
    """Returns the bytes / s of one large copy, read plus written, best of several runs."""
    floats = 2**26 if jax.default_backend() == "cpu" else 2**29
    copy = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    x, best = jax.block_until_ready(copy(jnp.zeros(floats, jnp.float32))), float("inf")
    for _ in range(4):
        started = time.perf_counter()
        x = jax.block_until_ready(copy(x))
        best = min(best, time.perf_counter() - started)
    return 2 * 4 * floats / best


def spread(ratios):
    """Returns median and range of ratios, one a round."""
    return {"median": float(np.median(ratios)), "range": [float(ratios.min()), float(ratios.max())]}


def as_text(ratio):
    """Returns a `spread` as text."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(ratio["median"], *ratio["range"])


def aligned(rows):
    """Returns lines of text with the cells in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(pairs))
        for pairs in [list(zip(row, widths, strict=True)) for row in rows]
    ]


def write_lines(lines):
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def known(flag, names, valid):
    """Returns the names that a flag lists; ConfigError for one that is not valid, and for none."""
    unknown = sorted(set(names) - set(valid))
    if unknown or not names:
        raise command.ConfigError(
            f"--{flag} holds {', '.join(unknown) or 'nothing'}; valid: {', '.join(valid)}."
        )
    return list(names)


def settled(values, usual, quick):
    """Returns flags as a namespace: those not given as --quick or its absence wants them.

    usual, quick: {name: value}, of flags whose default is None.
    """
    defaults = usual | quick if values.quick else usual
    found = {name: values[name].value for name in values}
    return types.SimpleNamespace(
        **found | {name: value for name, value in defaults.items() if found[name] is None}
    )


def about(values, names):
    """Returns what a result depends on: time, machine, versions, and flags by name."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "settings": {name: getattr(values, name) for name in names},
    }
