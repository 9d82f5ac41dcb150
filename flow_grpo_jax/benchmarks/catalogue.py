"""The paper's ten benchmarks: which there are, and their questions from files of a folder."""

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

from flow_grpo_jax import data
from flow_grpo_jax.datasets import formats

NAMES = (*formats.BENCHMARKS, "medqa")


@dataclass(frozen=True)
class Benchmark:
    """The questions of a file.

    questions: as `data.as_question` returns them; some have "level", "type" or "hops" beside.
    unsupported: (id, why) of each question that is more than text.
    """

    name: str
    questions: Sequence[dict]
    unsupported: Sequence[tuple[str, str]]
    path: pathlib.Path


def read(name: str, folder: str | pathlib.Path, *, seed: int) -> Benchmark:
    """Reads a benchmark from the one file in `folder` that holds it.

    seed: of the order of the options of GPQA.

    Raises ValueError: the name is unknown, no file or two hold the benchmark, rows are wrong.
    """
    path = pathlib.Path(folder) / f"{name}.json"
    return Benchmark(name, data.read_questions(path, format=name), (), path)
