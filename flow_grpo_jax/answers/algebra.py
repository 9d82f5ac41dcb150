"""Exact equality of expressions: quotients of sums of products, with fractions as coefficients.

A value is a quotient of two polynomials over atoms. Atoms are symbols, constants, primes (to
fractional powers: roots), powers with symbolic exponents, and applied functions with their
arguments in this same form; no relation between atoms is known but i^2 = -1 and that equal bases
multiply by adding exponents. So two texts called equal are equal wherever both are defined, in real
numbers; some that are equal, by a trigonometric identity say, are not found to be.

Every size is bounded: what grows beyond raises `TooLarge` and is compared as text.
"""

import math
import re
from dataclasses import dataclass, field
from fractions import Fraction

from flow_grpo_jax.answers.trees import Tree

MAX_TERMS = 150
MAX_BITS = 8_192  # of a coefficient
MAX_POWER = 64  # of a sum
MAX_STEPS = 6_000  # products of two terms, in one comparison
_PRIMES = [n for n in range(2, 1_000) if all(n % d for d in range(2, math.isqrt(n) + 1))]
_MAX_FACTORIAL = 20
_IMAGINARY = re.compile(r"(?<![a-z])i\^")


class TooLarge(ValueError):
    """The expression has no bounded value in this form."""


@dataclass(frozen=True, order=True)
class Atom:
    """name: canonical; atoms of one name are equal. positive: known to be > 0 (its powers combine).

    inner: the polynomial, in the atom that is one (the radicand of a root of a sum).
    """

    name: str
    positive: bool = field(compare=False, default=False)
    inner: "Polynomial | None" = field(compare=False, default=None)


Monomial = tuple[tuple[Atom, Fraction], ...]  # sorted; no exponent is 0
Polynomial = dict[Monomial, Fraction]  # no coefficient is 0; {} is 0

_I, _E, _PI = Atom("i"), Atom("e", True), Atom("pi", True)
_OO = Atom("oo")
_ONE: Polynomial = {(): Fraction(1)}


@dataclass(frozen=True)
class Quotient:
    top: Polynomial
    bottom: Polynomial

    def monomial(self) -> tuple[Monomial, Fraction] | None:
        """Returns the one term that this is, if it is one."""
        if self.bottom == _ONE and len(self.top) == 1:
            return next(iter(self.top.items()))
        return None

    def constant(self) -> Fraction | None:
        """Returns the rational number that this is, if it is one."""
        if self.bottom == _ONE and set(self.top) <= {()}:
            return self.top.get((), Fraction(0))
        return None


class Algebra:
    """Computes with bounded work; `log` names what a bare log means: "log" or "ln"."""

    def __init__(self, log="ln"):
        self._log, self._steps = log, 0

    # ------------------------------------------------------------------------- polynomials

    def _number(self, value: Fraction) -> Fraction:
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
            raise TooLarge("digits")
        return value

    def _add(self, a: Polynomial, b: Polynomial) -> Polynomial:
        total = dict(a)
        for monomial, coefficient in b.items():
            value = self._number(total.get(monomial, 0) + coefficient)
            if value:
                total[monomial] = value
            else:
                total.pop(monomial, None)
        if len(total) > MAX_TERMS:
            raise TooLarge("terms")
        return total

    def _multiply(self, a: Polynomial, b: Polynomial) -> Polynomial:
        total: Polynomial = {}
        for left, one in a.items():
            for right, other in b.items():
                self._steps += 1
                if self._steps > MAX_STEPS:
                    raise TooLarge("steps")
                total = self._accumulate(total, *self._product(left, right, one * other))
        return total

    def _accumulate(self, total, monomial, coefficient, factors):
        part = {monomial: self._number(coefficient)} if coefficient else {}
        for factor in factors:
            part = self._multiply(part, factor)
        if len(part) > 1:
            return self._add(total, part)
        for key, value in part.items():
            value += total.get(key, 0)
            if value:
                total[key] = self._number(value)
            else:
                del total[key]
        if len(total) > MAX_TERMS:
            raise TooLarge("terms")
        return total

    def _product(self, left: Monomial, right: Monomial, coefficient: Fraction):
        """Returns (monomial, coefficient, polynomials that still multiply it)."""
        powers = dict(left)
        for atom, exponent in right:
            powers[atom] = powers.get(atom, Fraction(0)) + exponent
        return self._normal(powers, coefficient)

    def _normal(self, powers: dict[Atom, Fraction], coefficient: Fraction):
        kept, factors = [], []
        for atom, exponent in powers.items():
            if not exponent:
                continue
            whole = math.floor(exponent)
            if atom.name.isdigit() and whole:  # a prime: its whole powers are coefficients
                prime = int(atom.name)
                if abs(whole) * prime.bit_length() > MAX_BITS:
                    raise TooLarge("digits")
                coefficient *= Fraction(prime) ** whole
                exponent -= whole
            elif atom == _I:
                if exponent.denominator != 1:
                    raise TooLarge("a root of i")
                coefficient *= -1 if exponent % 4 in (2, 3) else 1
                exponent %= 2
            elif atom.inner is not None and whole > 0:
                if whole > MAX_POWER:
                    raise TooLarge("power")
                factors += [atom.inner] * whole
                exponent -= whole
            if exponent:
                kept.append((atom, exponent))
        return tuple(sorted(kept)), self._number(coefficient), factors

    # --------------------------------------------------------------------------- quotients

    def _quotient(self, top: Polynomial, bottom: Polynomial) -> Quotient:
        """Divides by the factor that all terms of `bottom` share, and by its first coefficient."""
        if not bottom:
            raise TooLarge("division by zero")
        if not top:
            return Quotient(top, _ONE)
        first = min(bottom)
        shared = dict(first)
        for monomial in bottom:
            powers = dict(monomial)
            shared = {a: min(e, powers[a]) for a, e in shared.items() if a in powers}
        shared = {a: e for a, e in shared.items() if a.inner is None and a != _OO}
        if _I in shared:
            shared[_I] = Fraction(1)
        inverse = {tuple(sorted((a, -e) for a, e in shared.items())): 1 / bottom[first]}
        if inverse == _ONE:
            return Quotient(top, bottom)
        return Quotient(self._multiply(top, inverse), self._multiply(bottom, inverse))

    def add(self, a: Quotient, b: Quotient) -> Quotient:
        if a.bottom == b.bottom:
            return self._quotient(self._add(a.top, b.top), a.bottom)
        top = self._add(self._multiply(a.top, b.bottom), self._multiply(b.top, a.bottom))
        return self._quotient(top, self._multiply(a.bottom, b.bottom))

    def multiply(self, a: Quotient, b: Quotient) -> Quotient:
        if a.bottom == b.top:
            return self._quotient(a.top, b.bottom)
        if a.top == b.bottom:
            return self._quotient(b.top, a.bottom)
        return self._quotient(self._multiply(a.top, b.top), self._multiply(a.bottom, b.bottom))

    def inverse(self, a: Quotient) -> Quotient:
        return self._quotient(a.bottom, a.top)

    def power(self, base: Quotient, exponent: Quotient) -> Quotient:
        """Raises, within what is true for real numbers wherever both sides are defined."""
        number = exponent.constant()
        if number is not None and number.denominator == 1:
            return self._whole_power(base, number.numerator)
        if number is not None:
            return self._root_power(base, number)
        return self._symbolic_power(base, exponent)

    def _whole_power(self, base, number):
        if not base.top and number <= 0:
            raise TooLarge("0^0")
        if number < 0:
            return self._whole_power(self.inverse(base), -number)
        if term := base.monomial():
            monomial, coefficient = term
            self._check_power(coefficient, number)
            powers = {atom: exponent * number for atom, exponent in monomial}
            return self._of(*self._normal(powers, coefficient**number))
        if number > MAX_POWER:
            raise TooLarge("power")
        total = Quotient(_ONE, _ONE)
        for _ in range(number):
            total = self.multiply(total, base)
        return total

    def _check_power(self, coefficient, number):
        bits = max(coefficient.numerator.bit_length(), coefficient.denominator.bit_length())
        if bits > 1 and (bits - 1) * number > MAX_BITS or number > 10**6:
            raise TooLarge("digits")

    def _of(self, monomial, coefficient, factors):
        return Quotient(self._accumulate({}, monomial, coefficient, factors), _ONE)

    def _root_power(self, base: Quotient, number: Fraction) -> Quotient:
        if not base.top:
            if number < 0:
                raise TooLarge("division by zero")
            return base
        term = base.monomial()
        if term is None:
            return self._root_of_sum(base, number)
        monomial, coefficient = term
        unknown = [(a, e) for a, e in monomial if not a.positive]
        if any(atom == _I for atom, _ in unknown):
            raise TooLarge("a root of i")
        known = {a: e * number for a, e in monomial if a.positive}
        result = self._of(*self._normal(known, Fraction(1)))
        # sqrt(1/n) = 1/sqrt(n): both need n > 0. But sqrt(x^2) is no x, and x y > 0 needs no x > 0.
        if unknown and number.denominator % 2 == 0:
            power = unknown[0][1]
            odd = power.numerator % 2 or power.denominator % 2 == 0
            if len(unknown) > 1 or not odd or coefficient < 0:
                sign = Fraction(-1 if coefficient < 0 else 1)
                inner = {tuple(unknown): sign}
                result = self.multiply(result, self._root_of_polynomial(inner, number))
                return self.multiply(result, self._number_power(abs(coefficient), number))
        powers = {a: e * number for a, e in unknown}
        result = self.multiply(result, self._of(*self._normal(powers, Fraction(1))))
        return self.multiply(result, self._number_power(coefficient, number))

    def _number_power(self, value: Fraction, number: Fraction) -> Quotient:
        """Raises a rational number to a fraction; a negative one by a square or an odd root."""
        factor = Quotient(_ONE, _ONE)
        if value < 0:
            if number.denominator == 2:
                factor = self._of(*self._normal({_I: number * 2}, Fraction(1)))
            elif number.denominator % 2 and number.numerator % 2:
                factor = Quotient({(): Fraction(-1)}, _ONE)
            elif not number.denominator % 2:
                raise TooLarge("root of a negative number")
            value = -value
        powers = {Atom(str(p), True): e * number for p, e in factors_of(value).items()}
        return self.multiply(factor, self._of(*self._normal(powers, Fraction(1))))

    def _root_of_sum(self, base, number):
        top, content = self._primitive(base.top)
        result = self._number_power(content, number)
        if base.bottom == _ONE:
            return self.multiply(result, self._root_of_polynomial(top, number))
        atom = Atom(f"({self.text(Quotient(top, base.bottom))})")
        return self.multiply(result, self._of(((atom, number),), Fraction(1), []))

    def _root_of_polynomial(self, inner, number):
        """Keeps only the part of the exponent below 1; the atom's whole powers are `inner`."""
        whole = math.floor(number)
        result = self._whole_power(Quotient(inner, _ONE), whole)
        atom = Atom(f"({self._polynomial_text(inner)})", False, inner)
        return self.multiply(result, self._of(((atom, number - whole),), Fraction(1), []))

    def _primitive(self, polynomial):
        """Returns (polynomial with integer coefficients without a common factor, that factor)."""
        tops = [c.numerator for c in polynomial.values()]
        bottoms = [c.denominator for c in polynomial.values()]
        content = self._number(Fraction(math.gcd(*tops), math.lcm(*bottoms)))
        return {m: c / content for m, c in polynomial.items()}, content

    def _symbolic_power(self, base: Quotient, exponent: Quotient) -> Quotient:
        """Splits the exponent into terms, so that e^(x+1) is e e^x and 4^x is (2^x)^2."""
        if not base.top:
            raise TooLarge("a power of zero")
        bases = self._bases(base)
        if exponent.bottom != _ONE:
            parts = [(self.text(exponent), Fraction(1))]
        else:
            parts = [(self._term_text(m), c) for m, c in exponent.top.items() if m]
        result = Quotient(_ONE, _ONE)
        for atom, times in bases:
            powers = {}
            for name, coefficient in parts:
                positive = atom.positive and not _IMAGINARY.search(name)
                powers[Atom(f"({atom.name})^({name})", positive)] = coefficient * times
            result = self.multiply(result, self._of(*self._normal(powers, Fraction(1))))
        if exponent.bottom == _ONE and () in exponent.top:
            constant = Quotient({(): exponent.top[()]}, _ONE)
            result = self.multiply(result, self.power(base, constant))
        return result

    def _bases(self, base):
        """Returns the atoms, with exponents, that a power with a symbolic exponent splits into."""
        term = base.monomial()
        if term is not None:
            monomial, coefficient = term
            symbols = [(a, e) for a, e in monomial if not a.positive]
            splits = not symbols or (len(monomial) == len(symbols) == 1 and coefficient > 0)
            if splits and all(exponent == 1 for _, exponent in symbols):
                numbers = factors_of(abs(coefficient)).items()
                bases = [(Atom(str(prime), True), Fraction(e)) for prime, e in numbers]
                if coefficient < 0:
                    bases.append((Atom("-1"), Fraction(1)))
                return bases + list(monomial)
        return [(Atom(self.text(base)), Fraction(1))]

    # --------------------------------------------------------------------------- functions

    def call(self, name: str, arguments: list[Quotient]) -> Quotient:
        """Applies a function; known only: |-x| = |x|, logarithms of numbers, small factorials."""
        if any((_OO, 1) in m for a in arguments for m in a.top):
            raise TooLarge("a function of infinity")
        if name == "log":
            name = self._log
        number = arguments[0].constant()
        if name == "abs":
            if number is not None:
                return Quotient({(): abs(number)} if number else {}, _ONE)
            first = arguments[0].top[min(arguments[0].top)]
            if first < 0:
                negative = Quotient({(): Fraction(-1)}, _ONE)
                arguments = [self.multiply(arguments[0], negative)]
        if name in ("ln", "log"):
            return self._logarithm(name, arguments[0])
        if name == "factorial" and number in range(_MAX_FACTORIAL):
            return Quotient({(): Fraction(math.factorial(number.numerator))}, _ONE)
        text = f"{name}({', '.join(map(self.text, arguments))})"
        return self._of(((Atom(text), Fraction(1)),), Fraction(1), [])

    def _logarithm(self, name, argument):
        number = argument.constant()
        if number is not None and number <= 0:
            raise TooLarge("logarithm of a negative number")
        parts: list[tuple[str, Fraction]] = []
        if number is not None:
            parts = [(str(prime), Fraction(e)) for prime, e in factors_of(number).items()]
        elif (term := argument.monomial()) and term[1] > 0 and all(a.positive for a, _ in term[0]):
            parts = [(str(prime), Fraction(e)) for prime, e in factors_of(term[1]).items()]
            parts += [(a.name, e) for a, e in term[0]]
        else:
            parts = [(self.text(argument), Fraction(1))]
        total: Polynomial = {}
        for text, times in parts:
            if (name, text) == ("ln", "e"):
                total = self._add(total, {(): times})
            else:
                total = self._add(total, {((Atom(f"{name}({text})"), Fraction(1)),): times})
        return Quotient(total, _ONE)

    # ------------------------------------------------------------------------------- trees

    def value(self, tree: Tree) -> Quotient:
        """Returns the value of a tree of `expressions`. Raises TooLarge."""
        kind, *parts = tree
        if kind == "number":
            number = self._number(parts[0])
            return Quotient({(): number} if number else {}, _ONE)
        if kind == "symbol":
            atom = {"i": _I, "e": _E, "pi": _PI, "oo": _OO}.get(parts[0]) or Atom(parts[0])
            return Quotient({((atom, Fraction(1)),): Fraction(1)}, _ONE)
        if kind == "call":
            return self.call(parts[0], [self.value(part) for part in parts[1:]])
        if kind == "root":
            degree = Quotient({(): Fraction(1, parts[0])}, _ONE)
            return self.power(self.value(parts[1]), degree)
        first, *others = values = [self.value(part) for part in parts]
        infinite = any((_OO, 1) in m for part in values for m in part.top | part.bottom)
        if infinite and (kind != "multiply" or abs(first.constant() or 0) != 1):
            raise TooLarge("arithmetic with infinity")
        if kind == "add":
            for other in others:
                first = self.add(first, other)
            return first
        second = others[0]
        if kind == "divide":
            second = self.inverse(second)
        return self.power(first, second) if kind == "power" else self.multiply(first, second)

    def equal(self, a: Quotient, b: Quotient) -> bool:
        difference = self._multiply(b.top, a.bottom)
        difference = {m: -c for m, c in difference.items()}
        return not self._add(self._multiply(a.top, b.bottom), difference)

    def proportional(self, a: Quotient, b: Quotient) -> Fraction | None:
        """Returns the rational r != 0 with a = r b, or None."""
        left, right = self._multiply(a.top, b.bottom), self._multiply(b.top, a.bottom)
        if not left or set(left) != set(right):
            return None
        ratios = {left[m] / right[m] for m in left}
        return ratios.pop() if len(ratios) == 1 else None

    # ------------------------------------------------------------------------------- texts

    def text(self, value: Quotient) -> str:
        top = self._polynomial_text(value.top)
        text = top if value.bottom == _ONE else f"({top})/({self._polynomial_text(value.bottom)})"
        if len(text) > 20_000:
            raise TooLarge("characters")
        return text

    def _polynomial_text(self, polynomial):
        terms = sorted(polynomial.items())
        return "+".join(f"{c}*{self._term_text(m)}" if m else str(c) for m, c in terms) or "0"

    def _term_text(self, monomial):
        return "*".join(f"{atom.name}^{exponent}" for atom, exponent in monomial)


def factors_of(value: Fraction) -> dict[int, int]:
    """Returns {prime: exponent} of a positive number; what small primes leave counts as a prime."""
    exponents: dict[int, int] = {}
    for part, sign in ((value.numerator, 1), (value.denominator, -1)):
        for prime in _PRIMES:
            while part % prime == 0:
                part //= prime
                exponents[prime] = exponents.get(prime, 0) + sign
        if part > 1:
            root = math.isqrt(part)
            base, times = (root, 2) if root * root == part else (part, 1)
            exponents[base] = exponents.get(base, 0) + sign * times
    return exponents
