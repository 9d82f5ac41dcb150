"""Answers of kind "math": a number by value, a formula by exact algebra, anything else as text."""

import operator
from collections.abc import Mapping

from flow_grpo_jax.answers.algebra import Algebra, TooLarge
from flow_grpo_jax.answers.statements import plain, read, same
from flow_grpo_jax.answers.text import MAX_EXPRESSION, final_answer, golds_of
from flow_grpo_jax.answers.trees import (
    MINUS_ONE,
    Tree,
    count_terms,
    is_worked_out,
    symbols_of,
    uses,
)

_RELATIONS = ("equation", "inequality")
_SHORT = 4  # characters that stand in many questions by chance


def check(question: Mapping, answer: str) -> bool:
    answer = final_answer(answer)
    copied = is_copied(question, answer)
    return any(_is_right(final_answer(gold), answer, copied) for gold in golds_of(question))


def is_copied(question: Mapping, answer: str) -> bool:
    """Returns whether a final answer stands in the question's text as it is.

    Then its expressions are right only if they are built as the gold's: "expand (x+1)^2" is not
    answered by (x+1)^2, equal as that is to the gold.
    """
    written = plain(answer)
    return len(written) > _SHORT and written in plain(question.get("question", ""))


def _is_right(gold: str, answer: str, copied: bool) -> bool:
    if plain(gold) == plain(answer) != "":
        return True
    if len(answer) > MAX_EXPRESSION:
        return False
    compare = operator.eq if copied else equal
    return same(read(gold, gold=True), read(answer, gold=False), compare)


def equal(gold: Tree, answer: Tree) -> bool:
    """Compares two expressions, or the two sides of two equations or inequalities, by algebra."""
    if leaves_work(gold, answer):
        return False
    algebra = Algebra(log="log" if uses(gold, "log") else "ln")
    try:
        if gold[0] not in _RELATIONS:
            return algebra.equal(algebra.value(gold), algebra.value(answer))
        one, other = (
            algebra.value(("add", tree[1], ("multiply", MINUS_ONE, tree[2])))
            for tree in (gold, answer)
        )
        factor = algebra.proportional(one, other)
    except TooLarge:
        return False
    return factor is not None and (gold[0] == "equation" or factor > 0)


def leaves_work(gold: Tree, answer: Tree) -> bool:
    """Returns whether an answer to a gold without symbols is still to be worked out: its sums,
    products and powers of numbers, as in (1 + sqrt(2))^2, and sums of like terms, as in
    sqrt(8) + sqrt(2). Never, where the gold itself is left so."""
    if gold[0] in _RELATIONS or symbols_of(gold) or symbols_of(answer):
        return False
    if not is_worked_out(gold) or not is_worked_out(answer):
        return is_worked_out(gold)
    try:
        return count_terms(answer) > len(Algebra().value(answer).top)
    except TooLarge:
        return False
