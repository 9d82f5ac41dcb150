"""The questions of an evaluation: the paper's benchmarks, or files in the project's own format."""

import dataclasses
import pathlib
import re
from collections.abc import Callable

from agents import questions as agent_questions
from experiments.running import command, stored
from flow_grpo_jax import data, rewards
from flow_grpo_jax.benchmarks import catalogue, scorers

NAME = re.compile(r"\w[\w.-]*")
ENDINGS = (".jsonl", ".json", ".parquet")  # of files of one's own
SHOWN = 3  # questions that `prepared` shows
SHOWN_CHARACTERS = 400


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """questions: as `data.as_question` returns them.
    unsupported: `catalogue.Unsupported`, those that are more than text.
    score: (question, answer) -> {scorer: value in [0, 1]}, the official one first.
    held: of `catalogue.Benchmark`: "60 of 125 published", or "".
    """

    name: str
    questions: list
    unsupported: list
    path: pathlib.Path
    score: Callable
    held: str = ""

    @property
    def hash(self):
        """Hex digits that other texts, golds or another order of options change."""
        return stored.hash_of([self.questions, [[one.id, one.why] for one in self.unsupported]])

    def counted(self, *, unsupported):
        """Returns the questions of the denominator: what is asked and, if wanted, unsupported."""
        return [*self.questions, *(self.unsupported if unsupported else ())]

    @property
    def official(self):
        """The name of the official scorer."""
        return next(iter(self.score(self.questions[0], "")))


def read(names, folder, config, *, most=0):
    """Returns a `Benchmark` for each name: one of the paper's ten, or of a file in the folder.

    most: rows of each, the first in the file; 0 is all.

    Raises:
      ConfigError: a name is given twice, no file or several hold it, rows are wrong.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise command.ConfigError(f"--benchmarks names {', '.join(twice)} twice; name each once.")
    if not pathlib.Path(folder).is_dir():
        raise command.ConfigError(f"--data={folder} is no folder; give the one with the files.")
    return [_read(name, pathlib.Path(folder), config, most) for name in names]


def prepared(benchmark):
    """Returns text: counts, where from, and the first converted questions."""
    count, left = len(benchmark.questions), len(benchmark.unsupported)
    lines = [f"{benchmark.name}: {count} questions from {benchmark.path}, {left} unsupported"]
    if benchmark.held:
        lines.append(f"  the file holds {benchmark.held}")
    lines += [f"  unsupported {one.id}: {one.why}" for one in benchmark.unsupported[:SHOWN]]
    for question in benchmark.questions[:SHOWN]:
        lines.append(f"  {question['id']} ({question['kind']}, scored by {benchmark.official})")
        shown = question["question"]
        if len(shown) > SHOWN_CHARACTERS:
            shown = f"{shown[:SHOWN_CHARACTERS]}…"
        lines += [f"    {line}" for line in shown.splitlines()]
        lines.append(f"    = {' | '.join(question['answer'])}")
    return "\n".join(ascii_controls(line) for line in lines) + "\n"


def ascii_controls(text):
    """Writes out what could steer a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _read(name, folder, config, most):
    held = ""
    with command.checking_config():
        if name in catalogue.NAMES:
            found = catalogue.read(name, folder, seed=config.seed, most=most)
            score = lambda question, answer: scorers.score(name, question, answer)
            rows, path, apart, held = found.questions, found.path, [*found.unsupported], found.held
        else:
            path = _own_file(name, folder)
            rows, apart, score = _own(path, config)[: most or None], [], _by_rule
    texts, named = [], set()
    for question in rows:
        try:
            agent_questions.refuse_images(question)
        except ValueError as more_than_text:
            level = str(question.get("level") or "")
            about = str(more_than_text), question["kind"], level
            apart.append(catalogue.Unsupported(question["id"], *about))
            continue
        if question["id"] in named:
            raise command.ConfigError(f"{path}: the id {question['id']!r} is used twice.")
        named.add(question["id"])
        texts.append(question)
    if not texts:
        among = f" among its first {most}" if most else ""
        raise command.ConfigError(f"{path} holds no question of text alone{among}.")
    return Benchmark(name, texts, apart, path, score, held)


def _own(path, config):
    return data.read_questions(
        path,
        format=config.data.format,
        index_base=config.data.index_base,
        bad_rows=config.data.bad_rows,
        judged=[kind for kind, decider in config.reward.items() if decider == "judge"],
    )


def _own_file(name, folder):
    valid = f"one of {', '.join(catalogue.NAMES)}, or the name of a file in {folder}"
    if not NAME.fullmatch(name):
        raise command.ConfigError(f"--benchmarks={name!r} is no name; give {valid}.")
    found = [folder / f"{name}{end}" for end in ENDINGS if (folder / f"{name}{end}").is_file()]
    if len(found) > 1:
        both = " and ".join(path.name for path in found)
        raise command.ConfigError(f"{folder} has {both}; which of them is {name}? Keep one.")
    if not found:
        raise command.ConfigError(
            f"There is no benchmark {name!r} and no {name}{{{','.join(ENDINGS)}}}; give {valid}."
        )
    return found[0]


def _by_rule(question, answer):
    return {"rule": rewards.score(question, answer).value}
