"""Exact arithmetic of formulas: two values are the same if their canonical forms are.

A value is a quotient of two sums of products of atoms, with fractions as coefficients and as
exponents. Atoms are symbols, primes under a root, and whatever is not taken apart: functions, and
powers with a symbol in the exponent. Equal forms mean equal values; unequal ones may be equal in
ways that are not looked for (identities of trigonometry, logarithms). All work is bounded; what
would exceed the bounds raises TooMuch.
"""

import functools
import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction

MAX_TERMS = 150  # of a sum
MAX_BITS = 1_000  # of a coefficient
MAX_EXPANDED = 12  # exponent up to which a power of a sum is multiplied out
MAX_FACTORED = 10**10  # largest number that is taken apart into primes


class TooMuch(Exception):
    """The value is too large to be worked out, or is none."""


def _times(a, b):
    """Multiplies sums: dicts of {product: coefficient}, a product a tuple of (atom, exponent)."""
    if len(a) * len(b) > 5 * MAX_TERMS:
        raise TooMuch
    total = {}
    for product_a, factor_a in a.items():
        for product_b, factor_b in b.items():
            product, factor = _merged(product_a, product_b)
            total[product] = total.get(product, 0) + factor_a * factor_b * factor
    return _bounded(total)


def _plus(a, b, sign=1):
    total = dict(a)
    for product, factor in b.items():
        total[product] = total.get(product, 0) + sign * factor
    return _bounded(total)


def _bounded(total):
    total = {product: factor for product, factor in total.items() if factor}
    if len(total) > MAX_TERMS:
        raise TooMuch
    for factor in total.values():
        if max(factor.numerator.bit_length(), factor.denominator.bit_length()) > MAX_BITS:
            raise TooMuch
    return total


def _merged(a, b):
    """Returns (product, Fraction): whole powers of primes go into the number."""
    exponents = dict(a)
    for atom, exponent in b:
        exponents[atom] = exponents.get(atom, 0) + exponent
    factor = Fraction(1)
    for atom, exponent in exponents.items():
        if atom[0] == "prime" and not 0 <= exponent < 1:
            whole = math.floor(exponent)
            factor *= _number_power(Fraction(atom[1]), whole)
            exponents[atom] = exponent - whole
    kept = ((atom, exponent) for atom, exponent in exponents.items() if exponent)
    return tuple(sorted(kept)), factor


def _number_power(base, exponent):
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent) > MAX_BITS or (base == 0 and exponent < 0):
        raise TooMuch
    return base**exponent


ONE = {(): Fraction(1)}


@dataclass(frozen=True)
class Value:
    """top / bottom, each a sum."""

    top: dict
    bottom: dict

    def __add__(self, other):
        if self.bottom == other.bottom:
            return Value(_plus(self.top, other.top), self.bottom)
        return Value(
            _plus(_times(self.top, other.bottom), _times(other.top, self.bottom)),
            _times(self.bottom, other.bottom),
        )

    def __neg__(self):
        return Value({product: -factor for product, factor in self.top.items()}, self.bottom)

    def __sub__(self, other):
        return self + -other

    def __mul__(self, other):
        return Value(_times(self.top, other.top), _times(self.bottom, other.bottom))

    def __truediv__(self, other):
        return self * other.inverse()

    def inverse(self):
        if not self.top:
            raise TooMuch
        if len(self.top) == 1:
            ((product, factor),) = self.top.items()
            turned, extra = _merged((), tuple((atom, -e) for atom, e in product))
            return Value(_times(self.bottom, {turned: extra / factor}), ONE)
        return Value(self.bottom, self.top)

    @property
    def number(self):
        """The Fraction that it is, or None."""
        if self.bottom != ONE or any(self.top.keys()):
            return None
        return self.top.get((), Fraction(0))

    def equals(self, other):
        return _times(self.top, other.bottom) == _times(other.top, self.bottom)

    def vanishes_with(self, other):
        """Returns whether `self = 0` and `other = 0` are one equation, up to a number."""
        if self.top.keys() != other.top.keys() or not self.top:
            return False
        ratios = {self.top[product] / other.top[product] for product in self.top}
        return len(ratios) == 1

    @functools.cached_property
    def key(self):
        """A text: the same for equal sums, and for quotients written alike. Its size is fixed."""
        parts = [sorted(part.items()) for part in (self.top, self.bottom)]
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def number(value):
    return value.number


def inverse(value):
    return value.inverse()


def key(value):
    return value.key


def constant(number):
    return Value(_bounded({(): Fraction(number)}), ONE)


def symbol(name):
    return Value({((("symbol", name), Fraction(1)),): Fraction(1)}, ONE)


def application(name, *arguments):
    """A function of values, not worked out but for small whole numbers."""
    numbers = [argument.number for argument in arguments]
    whole = all(n is not None and n.denominator == 1 and 0 <= n <= 100 for n in numbers)
    if whole and name == "factorial" and numbers[0] <= 20:
        return constant(math.factorial(int(numbers[0])))
    if whole and name == "binomial":
        return constant(math.comb(*map(int, numbers)))
    atom = ("function", name, *(argument.key for argument in arguments))
    return Value({((atom, Fraction(1)),): Fraction(1)}, ONE)


def power(base, exponent):
    number = exponent.number
    if number is None or max(number.numerator.bit_length(), number.denominator) > 64:
        return _opaque_power(base, exponent)
    if number.denominator == 1:
        return _whole_power(base, int(number))
    if base.number is not None:
        return _root_of_number(base.number, number)
    if base.bottom == ONE and len(base.top) == 1:
        ((product, factor),) = base.top.items()
        # (n^-1)^(1/2) is n^(-1/2) wherever it is real; (x^2)^(1/2) is not x, and xy may be positive
        # where x and y are not.
        if factor > 0 and len(product) == 1 and abs(product[0][1]) == 1:
            ((atom, sign),) = product
            if atom[0] == "symbol":
                merged, extra = _merged((), ((atom, sign * number),))
                return _root_of_number(factor, number) * Value({merged: extra}, ONE)
    content = _content(base)
    if content != 1:
        reduced = base * constant(1 / content)
        return _root_of_number(content, number) * _opaque_power(reduced, exponent)
    return _opaque_power(base, exponent)


def _content(value):
    """Returns the positive Fraction that all coefficients share."""
    factors = [abs(f) for f in value.top.values()]
    if not factors or value.bottom != ONE:
        return Fraction(1)
    tops = functools.reduce(math.gcd, (f.numerator for f in factors))
    return Fraction(tops, functools.reduce(math.lcm, (f.denominator for f in factors)))


def _whole_power(base, exponent):
    if exponent < 0:
        return _whole_power(base.inverse(), -exponent)
    single = len(base.top) == 1 and base.bottom == ONE
    if single:
        ((product, factor),) = base.top.items()
        bits = max(factor.numerator.bit_length(), factor.denominator.bit_length())
        if factor in (1, -1) or bits * exponent <= MAX_BITS:
            product, extra = _merged((), tuple((atom, e * exponent) for atom, e in product))
            return Value({product: _number_power(factor, exponent) * extra}, ONE)
        return _opaque_power(base, constant(exponent))
    if exponent > MAX_EXPANDED:
        return _opaque_power(base, constant(exponent))
    result = constant(1)
    for _ in range(exponent):
        result = result * base
    return result


def _root_of_number(number, exponent):
    """Returns number ** exponent as a fraction times primes with exponents between 0 and 1."""
    if number < 0 or max(number.numerator, number.denominator) > MAX_FACTORED:
        return _opaque_power(constant(number), constant(exponent))
    if number == 0:
        if exponent < 0:
            raise TooMuch
        return constant(0)
    powers = {p: n * exponent for p, n in _primes(number.numerator).items()}
    powers |= {p: -n * exponent for p, n in _primes(number.denominator).items()}
    product, factor = _merged((), tuple((("prime", p), n) for p, n in powers.items()))
    return Value(_bounded({product: factor}), ONE)


@functools.lru_cache(maxsize=1_000)
def _primes(number):
    found, divisor = {}, 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found[divisor], number = found.get(divisor, 0) + 1, number // divisor
        divisor += 1 if divisor == 2 else 2
    return found | ({number: found.get(number, 0) + 1} if number > 1 else {})


def _opaque_power(base, exponent):
    atom = ("power", base.key, exponent.key)
    return Value({((atom, Fraction(1)),): Fraction(1)}, ONE)
