r"""Reads a formula, in LaTeX or as Python and SymPy print it, into an exact value.

2\sqrt{2}, 2*sqrt(2) and 2√2 are one value, as are \frac{\pi}{4} and pi/4, x**2 + 1 and 1 + x^2.
What the grammar does not cover (sums over an index, dots, matrices, an unknown macro, "1/2x") is
refused as a whole; nothing is left out to make a text fit.
"""

import re
from fractions import Fraction

from flow_grpo_jax.answers import algebra
from flow_grpo_jax.answers.algebra import TooMuch

MAX_DEPTH = 40

GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "zeta": "ζ", "eta": "η",
    "theta": "θ", "iota": "ι", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ",
    "rho": "ρ", "sigma": "σ", "tau": "τ", "upsilon": "υ", "phi": "φ", "chi": "χ", "psi": "ψ",
    "omega": "ω", "varphi": "φ", "varepsilon": "ε", "vartheta": "θ", "lamda": "λ", "ell": "ℓ",
}  # fmt: skip
NAMES = {"pi": "π", "infty": "∞", "oo": "∞", "inf": "∞", "infinity": "∞", "I": "i", "E": "e"}
FUNCTIONS = {  # by the names that LaTeX, Python and SymPy give them
    "sin": "sin", "cos": "cos", "tan": "tan", "sec": "sec", "csc": "csc", "cot": "cot",
    "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "arcsin": "arcsin", "arccos": "arccos",
    "arctan": "arctan", "asin": "arcsin", "acos": "arccos", "atan": "arctan", "ln": "ln",
    "log": "log", "lg": "lg", "exp": "exp", "sqrt": "sqrt", "cbrt": "cbrt", "abs": "abs",
    "Abs": "abs", "floor": "floor", "ceil": "ceil", "ceiling": "ceil", "gcd": "gcd", "lcm": "lcm",
    "max": "max", "min": "min", "Max": "max", "Min": "min", "binomial": "binomial",
    "factorial": "factorial",
}  # fmt: skip
CALLED = frozenset("fghFGH")  # before a bracket these are functions, other letters are factors

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<macro>\\[a-zA-Z]+)|(?P<word>[a-zA-Z]+)"
    r"|(?P<letter>[^\W\d_]|[∞∂ℓ])|(?P<sign>\*\*|[-+*/^!()\[\]{}|_,'√]))"
)
_FRACTIONS = ("\\frac", "\\dfrac", "\\tfrac", "\\cfrac")
_OPENING = {"(": ")", "[": "]", "{": "}"}


class Unreadable(Exception):
    """The text is not a formula of this grammar."""


def value_of(text, *, plus_minus=0, algebra=algebra):
    """Returns the value of a formula without relations, or None if it is not one.

    Args:
      algebra: the functions constant, symbol, application, power, inverse and number, whose values
        add, subtract, multiply and divide.
      plus_minus: 1 or -1, what ± stands for; 0: a text with ± is not one formula.
    """
    try:
        reader = _Reader(text, plus_minus, algebra)
        found = reader.sum(0)
        return None if reader.at < len(reader.tokens) else found
    except (Unreadable, TooMuch, ZeroDivisionError, OverflowError):
        return None


def _tokens(text, plus_minus):
    text = text.replace("\\pm", "±").replace("\\mp", "∓")
    if not plus_minus and ("±" in text or "∓" in text):
        raise Unreadable
    text = text.replace("±", "+" if plus_minus > 0 else "-")
    text = text.replace("∓", "-" if plus_minus > 0 else "+")
    tokens, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if not match:
            raise Unreadable
        tokens.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return tokens


class _Reader:
    """Recursive descent; `at` is the next token."""

    def __init__(self, text, plus_minus, algebra):
        self.tokens, self.at, self.algebra = _tokens(text, plus_minus), 0, algebra

    def peek(self, offset=0):
        at = self.at + offset
        return self.tokens[at] if at < len(self.tokens) else (None, None)

    def take(self, *texts):
        """Moves past the next token if it is one of these."""
        if self.peek()[1] in texts and self.peek()[0] is not None:
            self.at += 1
            return self.tokens[self.at - 1][1]
        return None

    def need(self, text):
        if not self.take(text):
            raise Unreadable

    def sum(self, depth):
        if depth > MAX_DEPTH:
            raise Unreadable
        total = None
        while True:
            sign = 1
            signs = 0
            while mark := self.take("+", "-"):
                sign, signs = (-sign if mark == "-" else sign), signs + 1
            if signs > 2 or (total is not None and not signs):
                raise Unreadable
            term = self.product(depth)
            term = -term if sign < 0 else term
            total = term if total is None else total + term
            if self.peek()[1] not in ("+", "-"):
                return total

    def product(self, depth):
        total, divided = self.factor(depth), False
        while True:
            if self.take("*", "\\cdot", "\\times", "\\ast"):
                total, divided = total * self.signed(depth), False
            elif self.take("/", "\\div"):
                total, divided = total / self.signed(depth), True
            elif self.starts_factor():
                if divided:  # 1/2x: which of the two is meant?
                    raise Unreadable
                if self.peek()[0] == "number" and self.peek(-1)[0] == "number":
                    raise Unreadable
                total = total * self.factor(depth)
            else:
                return total

    def signed(self, depth):
        """Reads a factor that may have a sign: 2*-3."""
        if self.take("-"):
            return -self.factor(depth)
        self.take("+")
        return self.factor(depth)

    def starts_factor(self):
        kind, text = self.peek()
        if kind in ("number", "word", "letter"):
            return True
        if kind == "macro":
            return text not in ("\\cdot", "\\times", "\\div", "\\ast", "\\right", "\\rvert")
        return kind == "sign" and text in ("(", "[", "{", "√")

    def factor(self, depth):
        base = self.primary(depth)
        while self.take("!"):
            base = self.algebra.application("factorial", base)
        if self.take("^", "**"):
            exponent = self.exponent(depth)
            base = self.algebra.power(base, exponent)
            while self.take("!"):
                base = self.algebra.application("factorial", base)
        return base

    def exponent(self, depth):
        if self.take("-"):
            return -self.factor(depth + 1)
        self.take("+")
        if depth > MAX_DEPTH:
            raise Unreadable
        return self.factor(depth + 1)

    def group(self, depth):
        """Reads a bracketed formula; the brackets must be of one kind."""
        opened = self.take("(", "[", "{")
        if not opened:
            raise Unreadable
        found = self.sum(depth + 1)
        self.need(_OPENING[opened])
        return found

    def argument(self, depth):
        """Reads what a macro takes: a group, or one digit or letter."""
        kind, text = self.peek()
        if text in ("{", "("):
            return self.group(depth)
        if (kind == "number" and len(text) == 1) or (kind == "word" and len(text) == 1):
            return self.primary(depth)
        if kind == "letter" or (kind == "macro" and text[1:] in (*GREEK, "pi")):
            return self.primary(depth)
        raise Unreadable

    def primary(self, depth):
        if depth > MAX_DEPTH:
            raise Unreadable
        kind, text = self.peek()
        if kind == "number":
            self.at += 1
            return self.algebra.constant(Fraction(text))
        if kind == "sign" and text in _OPENING:
            return self.group(depth)
        if kind == "sign" and text == "|":
            self.at += 1
            found = self.sum(depth + 1)
            self.need("|")
            return self.algebra.application("abs", found)
        if kind == "sign" and text == "√":
            self.at += 1
            inside = self.group(depth) if self.peek()[1] in ("(", "{") else self.primary(depth + 1)
            return self.algebra.power(inside, self.algebra.constant(Fraction(1, 2)))
        if kind == "macro":
            self.at += 1
            return self.macro(text, depth)
        if kind == "letter":
            self.at += 1
            return self.name(text)
        if kind == "word":
            return self.word(text, depth)
        raise Unreadable

    def macro(self, text, depth):
        if text in _FRACTIONS:
            return self.argument(depth) / self.argument(depth)
        if text == "\\sqrt":
            degree = self.algebra.constant(2)
            if self.take("["):
                degree = self.sum(depth + 1)
                self.need("]")
            return self.algebra.power(self.argument(depth), self.algebra.inverse(degree))
        if text in ("\\binom", "\\dbinom", "\\tbinom"):
            return self.algebra.application("binomial", self.argument(depth), self.argument(depth))
        if text == "\\lvert":
            found = self.sum(depth + 1)
            self.need("\\rvert")
            return self.algebra.application("abs", found)
        name = text[1:]
        if name in GREEK or name in ("pi", "infty"):
            return self.name(GREEK.get(name) or NAMES[name])
        if name in FUNCTIONS:
            return self.function(FUNCTIONS[name], depth)
        raise Unreadable

    def word(self, text, depth):
        """Reads a run of letters: a function, a name, or up to two letters that are multiplied."""
        if text in FUNCTIONS:
            self.at += 1
            # As in Python: the natural logarithm. LaTeX's \log says no base.
            return self.function("ln" if text == "log" else FUNCTIONS[text], depth)
        if text in GREEK or text in NAMES:
            self.at += 1
            return self.name(GREEK.get(text) or NAMES[text])
        if len(text) > 2:
            raise Unreadable
        self.at += 1
        if text in CALLED and self.peek()[1] == "(":
            return self.function(text, depth)
        found = None
        for letter in text[:-1]:
            found = self.algebra.symbol(letter.lower())
        last = self.name(text[-1].lower())
        return last if found is None else found * last

    def name(self, name):
        """Returns a symbol, with the index and the primes that follow."""
        if self.take("_"):
            kind, text = self.peek()
            if text == "{":
                closing = next(
                    (i for i in range(self.at, len(self.tokens)) if self.tokens[i][1] == "}"), None
                )
                if closing is None:
                    raise Unreadable
                inside = self.tokens[self.at + 1 : closing]
                if not inside or any(text in _OPENING for _, text in inside):
                    raise Unreadable
                text, self.at = "".join(text for _, text in inside), closing
            elif kind not in ("number", "word", "letter"):
                raise Unreadable
            self.at += 1
            name = f"{name}_{text.lower()}"
        while self.take("'"):
            name += "'"
        return self.algebra.symbol(name)

    def function(self, name, depth):
        exponent = None
        if self.take("^", "**"):  # \sin^2 x
            exponent = self.exponent(depth)
            number = self.algebra.number(exponent)
            if number is None or number < 0:
                raise Unreadable  # an inverse?
        base = None
        if name == "log" and self.take("_"):
            base = self.argument(depth)
        if self.peek()[1] in ("(", "{"):
            opened = self.take("(", "{")
            arguments = [self.sum(depth + 1)]
            while self.take(","):
                arguments.append(self.sum(depth + 1))
            self.need(_OPENING[opened])
        else:
            arguments = [self.bare_argument(depth)]
        found = _applied(self.algebra, name, arguments, base)
        return found if exponent is None else self.algebra.power(found, exponent)

    def bare_argument(self, depth):
        """Reads `2x` of \\sin 2x: a number, letters and macros up to an operator or function."""
        found = None
        while True:
            kind, text = self.peek()
            plain = kind in ("number", "letter") or (kind == "word" and text not in FUNCTIONS)
            greek = kind == "macro" and text[1:] in (*GREEK, "pi", "frac", "dfrac", "tfrac", "sqrt")
            if not plain and not greek:
                break
            if kind == "number" and found is not None:
                raise Unreadable
            part = self.factor(depth + 1)
            found = part if found is None else found * part
        if found is None:
            raise Unreadable
        return found


def _applied(algebra, name, arguments, base):
    counts = {"log": (1, 2), "ln": (1, 2), "max": (1, 9), "min": (1, 9), "gcd": (2, 9)}
    least, most = counts.get(name, (2, 2) if name == "binomial" else (1, 1))
    if name == "lcm":
        least, most = 2, 9
    if not least <= len(arguments) <= most:
        raise Unreadable
    if name == "exp":
        return algebra.power(algebra.symbol("e"), arguments[0])
    if name in ("sqrt", "cbrt"):
        root = Fraction(1, 2 if name == "sqrt" else 3)
        return algebra.power(arguments[0], algebra.constant(root))
    if len(arguments) == 2 and name in ("ln", "log"):  # log(8, 2)
        arguments, base = arguments[:1], arguments[1]
    if base is not None:
        return algebra.application("log_", arguments[0], base)
    if name in ("log", "ln") and algebra.number(arguments[0]) == 1:
        return algebra.constant(0)
    if name in ("max", "min", "gcd", "lcm"):
        arguments = sorted(arguments, key=algebra.key)
    return algebra.application(name, *arguments)
