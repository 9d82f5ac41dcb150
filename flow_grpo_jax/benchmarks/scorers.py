"""What each benchmark counts as right, by the rule of its makers where there is one.

  em, f1   exact match and token F1 of SQuAD, best over the aliases: HotpotQA, 2Wiki, MuSiQue,
           Bamboogle. Normalised as `answers.qa` does, which keeps 10.8 apart from 108
  gaia     GAIA's own: numbers by value, lists by parts, texts without case and punctuation
  integer  AIME: the number, written as an integer from 0 to 999
  number   AMC: the number, by value
  game24   every number once, worth 24
  letter   GPQA, MedQA: the option, by letter or by text

The answer is found in a text as `rewards.score` does; GAIA's may follow "FINAL ANSWER:" instead.
"""

import re
from collections.abc import Mapping

from flow_grpo_jax import rewards
from flow_grpo_jax.answers import qa, text
from flow_grpo_jax.benchmarks import gaia

_INTEGER = r"(?<![\d.,/])(?<!frac\{{)0*{}(?:\.0*)?(?![\d,/]|\s*(?:\\?%|percent))"


def score(name: str, question: Mapping, answer: str) -> dict[str, float]:
    """Returns {scorer: value in [0, 1]} of an answer to a question, the official one first.

    name: of the benchmark. answer: the text of a finished trajectory.
    """
    return {scorer: float(rule(question, answer)) for scorer, rule in SCORERS[name].items()}


def _own(question: Mapping, answer: str) -> float:
    return rewards.score(question, answer).value


def _f1(question: Mapping, answer: str) -> float:
    return rewards.score(question, answer, metric="f1").value


def _gaia(question: Mapping, answer: str) -> bool:
    if len(answer) > rewards.MAX_ANSWER:
        return False
    said = qa.unboxed(gaia.final_answer(text.tagged_answer(answer)))
    return bool(said) and any(gaia.is_right(said, gold) for gold in text.golds_of(question))


def _integer(question: Mapping, answer: str) -> bool:
    """33, 033, 33.0 and "m + n = 33" are right by the rule of mathematics; so are 66/2 and 33%,
    which are no integers."""
    if not _own(question, answer):
        return False
    said = text.final_answer(text.tagged_answer(answer))
    return any(re.search(_INTEGER.format(gold), said) for gold in text.golds_of(question))


_MULTIHOP = {"em": _own, "f1": _f1}
SCORERS = {  # of each benchmark, the official one first
    "bamboogle": _MULTIHOP,
    "2wiki": _MULTIHOP,
    "hotpotqa": _MULTIHOP,
    "musique": _MULTIHOP,
    "gaia": {"gaia": _gaia},
    "aime24": {"integer": _integer},
    "amc23": {"number": _own},
    "gameof24": {"game24": _own},
    "gpqa": {"letter": _own},
    "medqa": {"letter": _own},
}
