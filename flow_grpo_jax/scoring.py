"""Who decides on an answer, by the kind of its question.

  rule         the exact checker of the kind (`rewards`)
  f1           kind qa: token F1 instead of exact match
  math_verify  kind math: the rule; formulas it finds unequal are compared by math-verify, which is
               believed where `symbolic` has proof
  judge        an LLM (`judge`); the rule is asked too, and their agreement is counted
  (an environment gives its own rewards: kind environment, see agents/environments)

Where no decider comes to a verdict the reward is not `known`: the trajectory is left out of
training.

Dimensions:
  Q questions    G rollouts of a question
"""

import collections
import re

from agents.environments.protocol import KIND
from flow_grpo_jax import judge, rewards
from flow_grpo_jax.answers.expressions import KNOWN_WORDS
from flow_grpo_jax.answers.formulas import is_copied
from flow_grpo_jax.answers.numbers import parse_number
from flow_grpo_jax.answers.text import final_answer, golds_of, tagged_answer

_FURTHER = {"qa": ("f1",), "math": ("math_verify",)}
DECIDERS = {kind: ("rule", *_FURTHER.get(kind, ()), "judge") for kind in rewards.CHECKERS}
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}")
_DELIMITERS = ("$", "\\boxed", "\\(", "\\[", "\n", "<", ";", " or ", " and ")


class Scorer:
    """Scores answers.

    Args:
      deciders: kind -> one of its DECIDERS; kinds left out are decided by the rule.
      judged_by: `judge.Judge`, if any kind needs it.
      symbolic: `symbolic.Symbolic`, if kind math needs it.
      judge_characters: an answer that is longer is wrong without asking the judge.

    Raises:
      ValueError: a decider is unknown or what it needs is missing.
    """

    def __init__(self, deciders, *, judge_characters, judged_by=None, symbolic=None):
        self._deciders = {kind: "rule" for kind in DECIDERS} | dict(deciders)
        for kind, decider in self._deciders.items():
            if decider not in DECIDERS.get(kind, ()):
                valid = ", ".join(DECIDERS.get(kind, ()))
                raise ValueError(f"reward.{kind}={decider!r} is unknown; valid: {valid}.")
            if decider == "judge" and judged_by is None:
                raise ValueError(
                    f"reward.{kind}='judge' needs a judge; set backends.judge.kind, e.g. to "
                    "'frozen' or 'server'."
                )
            if decider == "math_verify" and symbolic is None:
                raise ValueError(f"reward.{kind}='math_verify' needs math-verify.")
        self._judge, self._symbolic = judged_by, symbolic
        self._judge_characters = judge_characters

    def close(self):
        if self._symbolic is not None:
            self._symbolic.close()

    def score(self, questions, answers):
        """Scores each answer to the question at the same place.

        Returns:
          (list of `rewards.Reward`, metrics): `judge/*` floats if a judge decides anything.
        """
        pairs = list(zip(questions, answers, strict=True))
        rules = [rewards.score(question, answer) for question, answer in pairs]
        scores = [self._decide(*pair, rule) for pair, rule in zip(pairs, rules, strict=True)]
        cases = {i: case for i, case in enumerate(scores) if isinstance(case, judge.Case)}
        counts = collections.Counter()
        verdicts = self._judge.verdicts(list(cases.values())) if cases else []
        for i, verdict in zip(cases, verdicts, strict=True):
            if verdict is None:
                scores[i] = rewards.Reward(0.0, "judge/no_verdict", known=False)
                counts["none"] += 1
            else:
                scores[i] = rewards.Reward(float(verdict), "judge/verdict")
                counts["agree"] += verdict == (rules[i].value == 1)
        return scores, self._metrics(scores, len(cases), counts)

    def score_groups(self, questions, trajectories_QG):
        """Scores Q groups of trajectories as `score` does; returns rewards_QG and its metrics.

        One in an environment has its reward already, or is broken and has none.
        """
        pairs = [
            (question, trajectory)
            for question, group in zip(questions, trajectories_QG, strict=True)
            for trajectory in group
        ]
        asked = [(q, trajectory.answer) for q, trajectory in pairs if q["kind"] != KIND]
        scores, values = self.score(*zip(*asked, strict=True)) if asked else ([], {})
        left = iter(scores)
        flat = iter(
            rewards.Reward(t.reward or 0.0, KIND, known=t.reward is not None)
            if q["kind"] == KIND
            else next(left)
            for q, t in pairs
        )
        return [[next(flat) for _ in group] for group in trajectories_QG], values

    def _decide(self, question, answer, rule):
        """Returns the `Reward`, or the `judge.Case` to put to the judge."""
        decider = self._deciders[question["kind"]]
        if decider == "f1":
            return rewards.score(question, answer, metric="f1")
        if decider == "math_verify" and rule.value == 0:
            return self._compare(question, answer, rule)
        if decider != "judge":
            return rule
        text = tagged_answer(answer)
        if not text:
            return rewards.Reward(0.0, "judge/empty")
        if len(text) > self._judge_characters:
            return rewards.Reward(0.0, "judge/too_long")
        return judge.Case(question["question"], golds_of(question), text)

    def _compare(self, question, answer, rule):
        """Asks math-verify where the rule found no equality.

        A gold that is a number or words stays with the rule, which is exact about them, and wants a
        number that is written out: 17*23 is not 391 here either.
        """
        text = final_answer(tagged_answer(answer)).strip("$ ")
        if not text or _holds_words(text) or any(part in text for part in _DELIMITERS):
            return rule  # nothing is picked out of running text
        if is_copied(question, text):
            return rule
        golds = [final_answer(gold).strip("$ ") for gold in golds_of(question)]
        golds = [gold for gold in golds if parse_number(gold) is None and not _holds_words(gold)]
        verdicts = [self._symbolic.equal(gold, text) for gold in golds]
        if True in verdicts:
            return rewards.Reward(1.0, "math/math_verify")
        if None in verdicts:
            return rewards.Reward(0.0, "math/no_verdict", known=False)
        return rule if not verdicts else rewards.Reward(0.0, "math/math_verify")

    def _metrics(self, scores, asked, counts):
        values = {}
        if set(self._deciders.values()) & {"judge", "math_verify"}:
            values["reward/no_verdict"] = float(sum(not reward.known for reward in scores))
        if "judge" in self._deciders.values():
            values["judge/asked"] = float(asked)
            values["judge/no_verdict"] = float(counts["none"])
            if asked > counts["none"]:
                values["judge/agreement"] = counts["agree"] / (asked - counts["none"])
        return values


def math_verdict(question, answer, symbolic):
    """Returns whether math-verify finds an answer equal to a gold, whatever the rule says of it.

    symbolic: `symbolic.Symbolic`.

    Returns:
      1.0, 0.0, or None for no verdict.
    """
    text = final_answer(tagged_answer(answer)).strip("$ ")
    if not text:
        return 0.0
    golds = [final_answer(gold).strip("$ ") for gold in golds_of(question)]
    verdicts = [symbolic.equal(gold, text) for gold in golds]
    if True in verdicts:
        return 1.0
    return None if None in verdicts else 0.0


def _holds_words(text):
    return not KNOWN_WORDS.issuperset(_WORD.findall(text))
