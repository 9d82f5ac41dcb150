"""Answers of the game of 24: an expression that uses every number once."""

import ast
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

from flow_grpo_jax.answers.latex import without_latex
from flow_grpo_jax.answers.text import MAX_EXPRESSION, final_answer

_GOAL = ("24", "24.0")
_OPERATIONS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


def game_numbers(question: Mapping) -> tuple[int, ...]:
    """Returns `question["numbers"]`, or the first list like [1, 1, 4, 6] of its text."""
    if (numbers := question.get("numbers")) is None:
        listed = re.search(r"\[([\d\s,]+)\]", question["question"], re.ASCII)
        text = listed[1] if listed else question["question"]
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        if not numbers or not re.fullmatch(r"[\d\s,]+", text, re.ASCII):
            raise ValueError(
                f"Question {question.get('id')!r} names no numbers: {question['question'][:80]!r}. "
                'Add a field "numbers", e.g. [1, 1, 4, 6].'
            )
    return tuple(numbers)


def expression_value(text: str, numbers: Sequence[int]) -> Fraction | None:
    r"""Returns the exact value of an expression that uses each number exactly once, else None.

    Allowed: integers, + - * / and brackets; × ÷ − · \times \div \cdot \frac{}{} as other spellings,
    "x" between operands, and "= 24" (also "== 24", "= 24.0") at the end or "24 =" before. Refused:
    a sign before an operand, powers, floor division, decimals, joined digits (12 from 1 and 2),
    multiplication without a sign, a division by zero.
    """
    if len(text) > MAX_EXPRESSION:
        return None
    text = without_latex(text.rstrip(" .\n"))
    sides = [side.strip() for side in re.split("==?", text)]
    if len(sides) > 1:
        others = [side for side in sides if side not in _GOAL]
        if len(sides) > 2 or len(others) != 1:
            return None
        text = others[0]
    replaced = 1
    while replaced:  # innermost first, so that nested fractions need no brace matching
        text, replaced = re.subn(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", text)
    text = re.sub(r"(?<=[\d)\]])\s*[xX]\s*(?=[\d(\[])", "*", text)
    text = " ".join(text.translate(str.maketrans("[]{}（）", "()()()")).split())
    if not re.fullmatch(r"[\d+\-*/() ]+", text, re.ASCII):
        return None
    if Counter(re.findall(r"\d+", text)) != Counter(str(number) for number in numbers):
        return None
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ZeroDivisionError, MemoryError, RecursionError):
        return None


def solution(numbers: Sequence[int]) -> str | None:
    """Returns an expression that uses each number once and is worth 24, or None if there is none.

    numbers: two to four; the time grows a hundredfold with each.
    """
    found = _solved([(float(number), str(number)) for number in numbers], numbers)
    return found and found[1:-1]


def _solved(terms: Sequence[tuple[float, str]], numbers: Sequence[int]) -> str | None:
    """Returns the solution that joins all terms (value, text): floats find it, fractions decide."""
    if len(terms) == 1:
        value, text = terms[0]
        near = abs(value - 24) < 1e-6
        return text if near and expression_value(text, numbers) == 24 else None
    for i, j in itertools.permutations(range(len(terms)), 2):
        (a, left), (b, right) = terms[i], terms[j]
        rest = [term for k, term in enumerate(terms) if k not in (i, j)]
        joined = [(a - b, "-")] + ([(a / b, "/")] if b else [])
        joined += [(a + b, "+"), (a * b, "*")] if i < j else []
        for value, sign in joined:
            found = _solved([*rest, (value, f"({left}{sign}{right})")], numbers)
            if found:
                return found
    return None


def _value(node: ast.expr) -> Fraction | None:
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.BinOp(left, operator, right) if type(operator) in _OPERATIONS:
            a, b = _value(left), _value(right)
            return None if a is None or b is None else _OPERATIONS[type(operator)](a, b)
    return None


def check(question: Mapping, answer: str) -> bool:
    return expression_value(final_answer(answer), game_numbers(question)) == 24
