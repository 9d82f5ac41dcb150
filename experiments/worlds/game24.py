"""The game of 24 with the Python tool: which form of brackets to search for?

Numbers from 1 to 13; every set of four is in one split. A program tries all orders and operations
of one form. Where the first has no solution, another has to be tried.
"""

import functools
import itertools
import operator
import random

from experiments.worlds.world import Problem, Stage, World, ask, program

NAME = "game24"
HELD_OUT_SHARE = 0.3
OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
# form -> (operations, expression of four numbers and three of them, its value). The divisor of a
# chain is one of the numbers, that of pairs could be 0.
FORMS = {
    "chain": (
        "+-*/",
        "(({a} {x} {b}) {y} {c}) {z} {d}",
        lambda a, b, c, d, x, y, z: z(y(x(a, b), c), d),
    ),
    "pairs": (
        "+-*",
        "({a} {x} {b}) {y} ({c} {z} {d})",
        lambda a, b, c, d, x, y, z: y(x(a, b), z(c, d)),
    ),
}
NONE = "none"  # a form has no solution
# The form that is tried most finds half of the solutions; after that it is tried again. Memory is
# asked for it too: a sub-goal of its own could begin with the same token as the other form.
ODDS = {"pairs": 0.65, "chain": 0.15, "ask": 0.2}


def code(numbers, form):
    """Returns the program that prints a solution of a form, or NONE."""
    signs, expression, _ = FORMS[form]
    return (
        f"from itertools import *; print(next((e for a, b, c, d in permutations(({numbers})) "
        f"for x, y, z in product('{signs}', repeat=3) if eval(e := f'{expression}') == 24), "
        f"'{NONE}'))"
    )


@functools.cache
def found(numbers, form):
    """Returns what the program of a form prints for a tuple of numbers."""
    signs, expression, value = FORMS[form]
    operations = [OPERATIONS[sign] for sign in signs]
    for a, b, c, d in itertools.permutations(numbers):
        for x, y, z in itertools.product(operations, repeat=3):
            if value(a, b, c, d, x, y, z) == 24:
                x, y, z = (signs[operations.index(each)] for each in (x, y, z))
                return expression.format(a=a, b=b, c=c, d=d, x=x, y=y, z=z)
    return NONE


@functools.cache
def splits():
    """Returns split -> source -> sets of numbers; those of "pairs" may have a chain too."""
    solved = {"pairs": [], "chain": []}
    for numbers in itertools.combinations_with_replacement(range(1, 14), 4):
        form = next((form for form in solved if found(numbers, form) != NONE), None)
        if form:
            solved[form].append(numbers)
    parts = {"train": {}, "held_out": {}, "all": solved}
    for form, sets in solved.items():
        mixed = random.Random(0).sample(sets, len(sets))
        size = round(HELD_OUT_SHARE * len(sets))
        parts["held_out"][form], parts["train"][form] = mixed[:size], mixed[size:]
    return parts


def draw(split, rng):
    form = rng.choice(list(FORMS))
    numbers = rng.choice(splits()[split][form])
    listed = ", ".join(map(str, numbers))
    moves = {"ask": ask(listed, "pairs")}
    for name in FORMS:
        result = found(numbers, name)
        moves[name] = program(
            listed, name, code(listed, name), result, leads=result != NONE, answer=result
        )
    return Problem(
        question=f"Make 24 of {listed}.",
        answer=found(numbers, form),
        kind="gameof24",
        source=f"{NAME}/{form}",
        analysis="24",
        stages=(Stage(moves, ODDS),),
        numbers=numbers,
    )


WORLD = World(
    name=NAME,
    tools=("python_coder",),
    sources=tuple(f"{NAME}/{form}" for form in FORMS),
    draw=draw,
)
