"""Compares formulas by math-verify and sympy; started by `symbolic` as a script, never imported.

Argument: bytes of memory. A line of JSON in, {"gold", "answer", "seconds"}; a line out: true, false
or null for no verdict. Past its seconds the process ends by SIGALRM, whatever sympy is doing.

math-verify alone is not believed: it rounds to six places, and its parser drops what it does not
know without a word. Both texts are read by the rule's own grammar (`answers.expressions`), which
reads a text whole or not at all, into sympy's expressions, decimals as fractions. "Equal" needs a
difference that sympy brings to exactly 0 and math-verify's word; "unequal" two different values at
one point, to fifty digits. Anything else is no verdict.
"""

import fractions
import json
import pathlib
import resource
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # as a script it is in no package

from flow_grpo_jax.answers import expressions  # noqa: E402

POINTS = ((3, 7), (11, 5), (2, 13))  # of which the symbols' values are made
DIGITS = 50
SMALLEST = 1e-30  # least difference of two values that are known to DIGITS digits


class Sympy:
    """The functions that `expressions.value_of` builds values with."""

    CONSTANTS = {"π": "pi", "e": "E", "i": "I", "∞": "oo"}
    FUNCTIONS = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "ln": "log", "abs": "Abs"}
    FUNCTIONS |= {"max": "Max", "min": "Min", "ceil": "ceiling", "lg": None, "log": None}

    def __init__(self, sympy):
        self.sympy = sympy
        self.key = sympy.default_sort_key

    def constant(self, number):
        return self.sympy.Rational(number.numerator, number.denominator)

    def symbol(self, name):
        if name in self.CONSTANTS:
            return getattr(self.sympy, self.CONSTANTS[name])
        return self.sympy.Symbol(name, real=True)

    def application(self, name, *arguments):
        if name == "log_":  # of a base
            return self.sympy.log(*arguments)
        known = self.FUNCTIONS.get(name, name)  # a bare \\log may be of base 10: not known
        function = getattr(self.sympy, known, None) if known and len(name) > 1 else None
        return (function or self.sympy.Function(f"own_{name}"))(*arguments)

    def power(self, base, exponent):
        return base**exponent

    def inverse(self, value):
        return 1 / value

    def number(self, value):
        return fractions.Fraction(int(value.p), int(value.q)) if value.is_Rational else None


def verdict(math_verify, sympy, gold, answer):
    """Returns True, False or None for no verdict."""
    read = lambda text: expressions.value_of(text, algebra=Sympy(sympy))
    one, other = read(gold), read(answer)
    if one is None or other is None:
        return None
    if sympy.simplify(one - other) == 0:
        # Its own time limits are off: they would replace the alarm.
        parsed = [math_verify.parse(f"${text}$", parsing_timeout=None) for text in (gold, answer)]
        agreed = all(parsed) and math_verify.verify(*parsed, timeout_seconds=None)
        return True if agreed else None
    names = sorted(one.free_symbols | other.free_symbols, key=str)
    for point in POINTS:
        values = {s: sympy.Rational(point[0] + 4 * i, point[1]) for i, s in enumerate(names)}
        found = [x.subs(values).evalf(DIGITS, maxn=4 * DIGITS) for x in (one, other)]
        known = all(x.is_number and x.is_finite and x.is_real for x in found)
        if known and abs(found[0] - found[1]) > SMALLEST * max(1, abs(found[0])):
            return False
    return None


def main():
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    import math_verify
    import sympy

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        ask = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, ask["seconds"])
        found = verdict(math_verify, sympy, ask["gold"], ask["answer"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
