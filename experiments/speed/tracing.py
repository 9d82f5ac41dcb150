"""Times of kernels by name, from JAX's profiler."""

import collections
import pathlib
import tempfile
import time

import jax

from experiments.speed import measure

SHOWN, NAME = 20, 60  # kernels of a table, characters of a name
# Where kernels stand in a profile: part of a plane's name -> beginning of a line's.
LINES = {"/device:GPU": "Stream", "/device:TPU": "XLA Ops", "/host:CPU": "tf_XLA"}
NO_KERNEL = ("ThreadpoolListener", "ThunkExecutor", "end: ")  # on a CPU's lines


def kernels(run):
    """Runs a function under the profiler.

    Returns:
      {"wall": seconds, "kernels": seconds of all, "by_name": [[name, seconds, calls]]}, the longest
      first. Kernels that run at the same time count each; those of CPUs hold what they wait for.
    """
    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder)
        started = time.perf_counter()
        try:
            run()
        finally:
            wall = time.perf_counter() - started
            jax.profiler.stop_trace()
        [path] = pathlib.Path(folder).rglob("*.xplane.pb")
        return {"wall": wall} | summed(jax.profiler.ProfileData.from_file(str(path)).planes)


def summed(planes):
    """Returns the kernels of a profile's planes as `kernels` does."""
    seconds, calls = collections.Counter(), collections.Counter()
    for plane in planes:
        begins = next((line for part, line in LINES.items() if part in plane.name), None)
        for line in plane.lines if begins else ():
            if line.name.startswith(begins):
                for event in line.events:
                    if not event.name.startswith(NO_KERNEL):
                        seconds[event.name] += event.duration_ns / 1e9
                        calls[event.name] += 1
    by_name = [[name, spent, calls[name]] for name, spent in seconds.most_common()]
    return {"kernels": seconds.total(), "by_name": by_name}


def table(title, found):
    """Returns the lines of a table of what `kernels` returned."""
    rows = [["kernel", "ms", "share", "calls"]]
    for name, spent, calls in found["by_name"][:SHOWN]:
        share = spent / found["kernels"]
        rows.append([name[:NAME], f"{1e3 * spent:.3f}", f"{share:.1%}", str(calls)])
    summary = f"{title}: {1e3 * found['wall']:.1f} ms, kernels {1e3 * found['kernels']:.1f} ms"
    return ["", summary, *measure.aligned(rows)]
