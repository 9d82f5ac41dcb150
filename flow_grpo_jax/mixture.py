"""Batches of questions from several sources, in given shares and with an exact position.

After n questions in all, each source has given its share of n, rounded up or down, whatever n is:
the quota method of Balinski and Young (The Quota Method of Apportionment, American Mathematical
Monthly 82, 1975). Nothing is drawn at random but the order within a source.
"""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from flow_grpo_jax.data import QuestionBatches


def batches(
    questions: Sequence[Mapping], *, batch: int, seed: int, weights: Mapping[str, float]
) -> Iterator[list[dict]]:
    """Returns the endless batches of a training: mixed by weights, or of all questions alike.

    weights: of `MixedBatches`; empty: each question counts the same.
    """
    if not weights:
        return QuestionBatches(questions, batch=batch, seed=seed)
    return MixedBatches(questions, batch=batch, seed=seed, weights=weights)


class MixedBatches(Iterator[list[dict]]):
    """Iterator over lists of `batch` questions, of each source as often as its weight says.

    Within a source every epoch is a new permutation of its questions, as in `QuestionBatches`.

    weights: name -> number, 0 or more. A name is the source of questions, or its part before a "/";
      of several names for a source, the longest counts.

    Raises:
      ValueError: a source has no weight, a name no question, or a number is no weight.
    """

    def __init__(
        self, questions: Sequence[Mapping], *, batch: int, seed: int, weights: Mapping[str, float]
    ):
        if batch < 1:
            raise ValueError(f"batch={batch}; expected 1 or more questions in a batch.")
        parts = divided(questions, weights)
        exact = _exact(weights)
        self._run = {"batch": batch, "weights": {name: str(w) for name, w in exact.items()}}
        self._parts = {n: QuestionBatches(part, batch=1, seed=seed) for n, part in parts.items()}
        self._weights = {name: exact[name] for name in parts}
        self._counts = dict.fromkeys(self._parts, 0)

    def __next__(self) -> list[dict]:
        drawn = []
        for _ in range(self._run["batch"]):
            name = due(self._counts, self._weights)
            self._counts[name] += 1
            drawn += next(self._parts[name])
        return drawn

    def get_state(self) -> dict:
        """Returns the position as JSON-able data, for `set_state`."""
        parts = {name: part.get_state() for name, part in self._parts.items()}
        return {**self._run, "parts": parts}

    def set_state(self, state: Mapping) -> None:
        """Continues from `state`; raises ValueError if it is of other questions or settings."""
        for name, value in self._run.items():
            if state.get(name) != value:
                raise ValueError(
                    f"The saved data position has {name}={state.get(name)!r}, this run has "
                    f"{value!r}; resume with the same data.mixture and batch, or start a new run."
                )
        for name, part in self._parts.items():
            part.set_state(state["parts"][name])
            self._counts[name] = int(state["parts"][name]["next_batch"])


def due(counts: Mapping[str, int], weights: Mapping[str, Fraction]) -> str:
    """Returns which source gives the next question, after `counts` of each; weights are above 0.

    Of the sources that stay below their share, rounded up, the one with the fewest for its weight;
    of several, the first by name.
    """
    share = Fraction(sum(counts.values()) + 1) / sum(weights.values())
    able = [name for name, weight in weights.items() if counts[name] < share * weight]
    return max(able, key=lambda name: weights[name] / (counts[name] + 1))


def divided(questions: Sequence[Mapping], weights: Mapping[str, float]) -> dict[str, list]:
    """Returns name -> its questions, without names of weight 0; raises as `MixedBatches`."""
    exact = _exact(weights)
    parts, lacking = {name: [] for name in exact}, {}
    for question in questions:
        source = question["source"]
        name = name_of(source, weights)
        if name is None:
            lacking.setdefault(source, question["id"])
        else:
            parts[name].append(question)
    if lacking:
        source, first = next(iter(lacking.items()))
        raise ValueError(
            f"data.mixture gives no weight to {len(lacking)} sources of training questions, first "
            f"{source!r}, of question {first!r}. Give each a weight; 0 leaves it out."
        )
    if idle := [name for name, part in parts.items() if exact[name] and not part]:
        sources = ", ".join(sorted({question["source"] for question in questions}))
        raise ValueError(
            f"data.mixture gives a weight to {', '.join(idle)}, but no training question has that "
            f"source; there are {sources}."
        )
    return {name: part for name, part in parts.items() if exact[name]}


def name_of(source: str, weights: Mapping[str, float]) -> str | None:
    """Returns the longest name of a weight that is the source or a part of it up to a "/"."""
    parts = source.split("/")
    names = ("/".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((name for name in names if name in weights), None)


def _exact(weights: Mapping[str, float]) -> dict[str, Fraction]:
    """Returns the weights as the decimals that they were written as: 0.1 is a tenth."""
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not (number and 0 <= weight < float("inf")):
            raise ValueError(f"data.mixture.{name}={weight!r} must be a number, 0 or more.")
    exact = {name: Fraction(str(weights[name])) for name in sorted(weights)}
    if not any(exact.values()):
        raise ValueError("data.mixture has no weight above 0.")
    return exact
