"""Compares formulas with math-verify and sympy: the work of a `tools.children` process.

answer(texts=[gold, answer])    whether math-verify calls the texts equal
answer(trees=[gold, answer])    whether the trees of `answers.expressions` are equal, exactly;
                                None: neither proven nor refuted
"""

from fractions import Fraction

POINTS = ((3, 7), (11, 5), (2, 13), (17, 19))  # of which the symbols' values are made
DIGITS = 50
SMALLEST = 1e-30  # difference of two values that are known to DIGITS digits


def build(sympy, tree):
    """Returns the expression of a tree; numbers are rationals, so that nothing is rounded."""
    kind, *parts = tree
    if kind == "number":
        number = Fraction(parts[0])
        return sympy.Rational(number.numerator, number.denominator)
    if kind == "symbol":
        constants = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "oo": sympy.oo}
        return constants.get(parts[0]) or sympy.Symbol(parts[0], real=True)
    if kind == "root":
        return build(sympy, parts[1]) ** sympy.Rational(1, parts[0])
    if kind == "call":
        name, *arguments = parts
        known = {"ln": "log", "abs": "Abs", "arcsin": "asin", "arccos": "acos", "arctan": "atan"}
        # A bare log may be of base 10: it stays a function that nothing is known of.
        function = None if name == "log" else getattr(sympy, known.get(name, name), None)
        if not isinstance(function, type) or name in ("gcd", "lcm"):
            function = sympy.Function(f"own_{name}")
        return function(*(build(sympy, argument) for argument in arguments))
    values = [build(sympy, part) for part in parts]
    if kind == "add":
        return sympy.Add(*values)
    if kind == "multiply":
        return sympy.Mul(*values)
    first, second = values
    return first / second if kind == "divide" else first**second


def exact(sympy, gold, answer):
    """Returns True if the two are proven equal, False if they differ at a point, else None."""
    if gold[0] in ("equation", "inequality"):
        sides = [[build(sympy, part) for part in tree[1:]] for tree in (gold, answer)]
        (a, b), (c, d) = sides
        ratio = sympy.simplify((a - b) / (c - d))
        if ratio.is_Rational and ratio != 0:
            return bool(gold[0] == "equation" or ratio > 0)
        found = [value for point in POINTS if (value := at(sympy, ratio, point)) is not None]
        return False if any(abs(value - found[0]) > SMALLEST for value in found) else None
    one, other = build(sympy, gold), build(sympy, answer)
    if sympy.simplify(one - other) == 0:
        return True
    for point in POINTS:
        values = [at(sympy, value, point) for value in (one, other)]
        if None not in values and abs(values[0] - values[1]) > SMALLEST * max(1, abs(values[0])):
            return False
    return None


def at(sympy, expression, point):
    """Returns the value where the symbols are fractions made of a point, or None if it has none.

    A value that is not real is none unless i is written: programs and books take different roots of
    negative numbers.
    """
    symbols = sorted(expression.free_symbols, key=str)
    values = {s: sympy.Rational(point[0] + 4 * i, point[1]) for i, s in enumerate(symbols)}
    value = expression.subs(values).evalf(DIGITS, maxn=4 * DIGITS)
    if not value.is_number or not value.is_finite or value.atoms(sympy.Function):
        return None
    return value if value.is_real or expression.has(sympy.I) else None


def prepare():
    import math_verify
    import sympy

    sympy.simplify(sympy.Symbol("x") + 1)
    math_verify.parse("$1$", parsing_timeout=None)


def answer(*, texts=None, trees=None):
    import math_verify
    import sympy

    if trees is not None:
        return exact(sympy, *trees)
    # Its own time limits are off: they would replace the alarm.
    gold, stated = (math_verify.parse(f"${text}$", parsing_timeout=None) for text in texts)
    return bool(gold and math_verify.verify(gold, stated, timeout_seconds=None))
