r"""Rule-based checkers: is the final answer right? Exact, local and fast; no model judges anything.

`score(question, answer)` looks at `question["kind"]`:

  qa        SQuAD exact match (or token F1), best over the accepted answers
  math      numbers as exact fractions, formulas and equations by exact algebra, the rest as text
  gameof24  an arithmetic expression over the given numbers that is worth 24
  choice    the letter, number or text of one option

Answers are written by the model that is rewarded, so every checker treats them as hostile: data
only, never evaluated, capped in length, and 0 wherever the text can be read in two ways. A fault in
the *question* (unknown kind, gold that is no option) raises ValueError instead of scoring 0.

What counts as the answer: the content of the last `<answer>...</answer>` if there is one, otherwise
the whole text. From that, math, gameof24 and choice take the last `\boxed{...}`, otherwise what
follows a last "####", otherwise the sentence after the last "answer is" / "answer:", otherwise all
of it; qa opens a box that is the whole text. Nothing is ever picked from running text: "it is 5, or
perhaps 7" is worth 0 whichever is right. docs/backends.md has the rules of mathematics.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flow_grpo_jax.answers import choice, formulas, game24, qa
from flow_grpo_jax.answers.text import golds_of, tagged_answer

MAX_ANSWER = 20_000  # characters; a longer answer scores 0 as "<kind>/too_long"


@dataclass(frozen=True)
class Reward:
    """value: in [0, 1] (0 or 1 unless metric is "f1"). source: the checker that gave it.
    known: False if no checker came to a verdict; the value is then 0 and means nothing.
    """

    value: float
    source: str
    known: bool = True


def score(question: Mapping, answer: str, *, metric: str = "exact_match") -> Reward:
    """Returns the reward of `answer`, the text of a finished trajectory, to `question`.

    metric: for kind "qa": "exact_match" (0 or 1) or "f1" (token F1, in [0, 1]).

    Raises ValueError on an unknown kind or metric, and on a question without a usable gold.
    """
    kind = question["kind"]
    if kind not in CHECKERS:
        raise ValueError(
            f"Question {question.get('id')!r} has kind {kind!r}; valid: {', '.join(CHECKERS)}."
        )
    if metric not in ("exact_match", "f1"):
        raise ValueError(f"Unknown metric {metric!r}; valid: exact_match, f1.")
    if len(answer) > MAX_ANSWER:
        return Reward(0.0, f"{kind}/too_long")
    answer = tagged_answer(answer)
    if kind == "qa":
        answer = qa.unboxed(answer)
    if kind == "qa" and metric == "f1":
        return Reward(max(qa.f1(answer, gold) for gold in golds_of(question)), "qa/f1")
    check, source = CHECKERS[kind]
    return Reward(float(bool(answer) and check(question, answer)), source)


CHECKERS = {
    "qa": (qa.check, "qa/exact_match"),
    "math": (formulas.check, "math/exact"),
    "gameof24": (game24.check, "gameof24/expression"),
    "choice": (choice.check, "choice/option"),
}
