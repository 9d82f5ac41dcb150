"""What each benchmark counts as right."""

from collections.abc import Mapping

from flow_grpo_jax import rewards


def score(name: str, question: Mapping, answer: str) -> dict[str, float]:
    """Returns {scorer: value in [0, 1]} of an answer to a benchmark's question, the official first.

    answer: the text of a finished trajectory.
    """
    if question["kind"] == "qa" and name != "gaia":
        return {
            "em": rewards.score(question, answer).value,
            "f1": rewards.score(question, answer, metric="f1").value,
        }
    names = {"gaia": "gaia", "aime24": "integer", "amc23": "number", "gameof24": "game24"}
    return {names.get(name, "letter"): rewards.score(question, answer).value}
