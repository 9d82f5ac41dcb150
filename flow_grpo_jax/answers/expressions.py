r"""Reads an expression, in LaTeX or as Python and sympy print it, into a tree.

Every sign of the text must be read: a macro, word or sign that is not known makes the whole text
unreadable, and so does what can be read in two ways (1/2x). `trees` says what a tree is.
"""

import re
from fractions import Fraction

from flow_grpo_jax.answers.latex import TEXT_IN_LATEX, one_spelling, without_latex
from flow_grpo_jax.answers.text import MAX_EXPRESSION
from flow_grpo_jax.answers.trees import MINUS_ONE, Tree

_WORDS = re.compile(r"\w+")
_SMALL = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau"
_SMALL += " phi chi psi omega upsilon"
_CAPITAL = "Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega"
GREEK = _WORDS.findall(f"{_SMALL} {_CAPITAL} varepsilon vartheta varphi")
_CONSTANTS = {"pi": "pi", "infty": "oo", "infinity": "oo", "oo": "oo"}
_LETTERS = {"π": "pi", "∞": "oo", "ℯ": "e"}
_LETTERS |= dict(zip("αβγδεζηθικλμνξρστφχψωυΓΔΘΛΞΣΦΨΩ", GREEK[:31], strict=True))
_FUNCTIONS = "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan ln log exp"
_UNARY = {name: name for name in _WORDS.findall(_FUNCTIONS)}
_UNARY |= {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "lg"}
# Functions of Python, which need their brackets: name -> (name in the tree, number of arguments).
_CALLS = {
    "sqrt": ("sqrt", 1),
    "cbrt": ("cbrt", 1),
    "Abs": ("abs", 1),
    "abs": ("abs", 1),
    "factorial": ("factorial", 1),
    "floor": ("floor", 1),
    "ceil": ("ceiling", 1),
    "ceiling": ("ceiling", 1),
    "binomial": ("binomial", 2),
    "gcd": ("gcd", 2),
    "lcm": ("lcm", 2),
}
_BASES = (("number", "2", False), ("number", "10", False))
_FUNCTION_LETTERS = frozenset("fghFGH")  # before a bracket: f(x) is no product
_DECORATIONS = frozenset({"bar", "hat", "vec", "tilde", "overline", "mathbf", "mathbb", "mathcal"})
_MAX_DEPTH = 40

_TOKEN = re.compile(
    r"(?P<number>\d+(?:\.\d+)?|\.\d+)|\\(?P<macro>[a-zA-Z]+)|(?P<word>[a-zA-Z]+)"
    r"|(?P<sign>\\[{}|]|\S)"
)
KNOWN_WORDS = {*_UNARY, *_CALLS, *_CONSTANTS, *GREEK}


class Unreadable(ValueError):
    """The text is no expression of the grammar."""


def parse(text: str) -> Tree | None:
    """Returns the tree of all of `text`, or None."""
    if len(text) > MAX_EXPRESSION:
        return None
    text = one_spelling(text)
    words = (match[1].strip() for match in TEXT_IN_LATEX.finditer(text))
    if any(len(word) > 1 and word not in KNOWN_WORDS for word in words):
        return None
    if re.search(r"\d[eE][-+]?\d", text):  # 2e-3 x: a power of ten, or e?
        return None
    text = without_latex(text).replace("**", "^")
    text = re.sub(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])", lambda m: m[0].replace(",", ""), text)
    try:
        return _Reader(text).whole()
    except Unreadable:
        return None


def _tokens(text: str) -> list[tuple[str, str, bool]]:
    """Returns (kind, text, whether blanks stand before it); words are split into letters."""
    tokens, end, last_word = [], 0, False
    for match in _TOKEN.finditer(text):
        kind, token, blank = match.lastgroup, match[match.lastgroup], match.start() > end
        long_word = kind == "word" and len(token) > 1 and token not in KNOWN_WORDS
        behind_letter = bool(tokens) and tokens[-1][0] in ("letter", "name")
        if blank and kind == "word" and (last_word or (long_word and behind_letter)):
            raise Unreadable("running text")
        last_word = long_word
        if long_word:
            if len(token) > 4 or any(len(n) > 1 and n in token for n in KNOWN_WORDS):
                raise Unreadable(f"word {token}")
            tokens += [("letter", letter, blank and not i) for i, letter in enumerate(token)]
        elif kind == "word":
            tokens.append(("letter" if len(token) == 1 else "name", token, blank))
        elif token in _LETTERS:
            tokens.append(("macro", _LETTERS[token], blank))
        else:
            tokens.append((kind, token, blank))
        end = match.end()
    return tokens


class _Reader:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text):
        self._tokens = _tokens(text)
        self._at = self._depth = 0
        self._bars = 0
        letters = {token for kind, token, _ in self._tokens if kind == "letter"}
        # Python prints I and E; a text that has both cases means two things by them.
        self._constants = {"i": "i", "e": "e"}
        self._constants |= {c: c.lower() for c in "IE" if c.lower() not in letters}

    def whole(self):
        tree = self._sum()
        if self._at < len(self._tokens):
            raise Unreadable(f"{self._tokens[self._at]} left over")
        return tree

    # ------------------------------------------------------------------------------- tokens

    def _peek(self, ahead=0):
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else ("end", "", False)

    def _next_is(self, *texts):
        kind, token, _ = self._peek()
        return kind == "sign" and token in texts

    def _take(self, text=None):
        kind, token, blank = self._peek()
        if kind == "end" or (text is not None and token != text):
            raise Unreadable(f"no {text}")
        self._at += 1
        return kind, token, blank

    # ------------------------------------------------------------------------------ grammar

    def _sum(self):
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise Unreadable("too deep")
        terms = []
        while not terms or self._next_is("+", "-"):
            signs = ""
            while self._next_is("+", "-"):
                signs += self._take()[1]
            if len(signs) > 2:
                raise Unreadable("three signs")
            term = self._product()
            terms.append(("multiply", MINUS_ONE, term) if signs.count("-") == 1 else term)
        self._depth -= 1
        return terms[0] if len(terms) == 1 else ("add", *terms)

    def _product(self):
        tree, divided = self._factor(), False
        while True:
            if self._next_is("*"):
                self._take()
                tree, divided = ("multiply", tree, self._signed()), False
            elif self._next_is("/"):
                self._take()
                tree, divided = ("divide", tree, self._signed()), True
            elif self._starts_factor():
                if divided:
                    raise Unreadable("1/2x has two readings")
                tree = self._beside(tree)
            else:
                return tree

    def _signed(self):
        if self._next_is("-", "+"):
            sign = self._take()[1]
            factor = self._factor()
            return ("multiply", MINUS_ONE, factor) if sign == "-" else factor
        return self._factor()

    def _beside(self, left):
        """Reads the right factor of a product without a sign; 2\\frac12 is a mixed number."""
        kind, token, _ = self._peek()
        if kind == "number":
            raise Unreadable("a number behind a factor")
        start = self._at
        right = self._factor()
        plain = right[0] == "divide" and right[1][0] == right[2][0] == "number"
        if token == "frac" and plain and self._tokens[start - 1][0] == "number":
            if left[0] != "number" or left[1].denominator != 1:
                raise Unreadable("3 * 2 1/2")
            return ("add", left, right)
        return ("multiply", left, right)

    def _starts_factor(self):
        kind, token, _ = self._peek()
        if kind == "sign":
            return token in "([{√∛" or (token == "|" and not self._bars) or token == "\\|"
        if kind == "macro":
            return token not in ("rfloor", "rceil", "rvert", "rangle", "rVert")
        return kind in ("number", "letter", "name")

    def _factor(self):
        tree = self._atom()
        while self._next_is("!"):
            self._take()
            if self._next_is("!", "="):
                raise Unreadable("!! or !=")
            tree = ("call", "factorial", tree)
        if self._next_is("^"):
            self._take()
            function = tree[0] == "symbol" and tree[1][0] in _FUNCTION_LETTERS
            tree = ("power", tree, self._exponent())
            if self._next_is("!") or (function and self._next_is("(")):
                raise Unreadable("x^2! or f^2(x)")
        return tree

    def _exponent(self):
        if self._next_is("-", "+"):
            sign = self._take()[1]
            tree = self._exponent()
            return ("multiply", MINUS_ONE, tree) if sign == "-" else tree
        kind, token, _ = self._peek()
        if kind == "sign" and token not in "({√":
            raise Unreadable(f"exponent {token}")
        tree = self._atom()
        if self._next_is("^"):
            self._take()
            return ("power", tree, self._exponent())
        return tree

    def _group(self, closing):
        bars, self._bars = self._bars, 0
        tree = self._sum()
        self._take(closing)
        self._bars = bars
        return tree

    def _atom(self):
        kind, token, _ = self._take()
        if kind == "number":
            return self._number(token)
        if kind == "letter":
            return self._letter(token)
        if kind in ("name", "macro"):
            return self._named(token, is_macro=kind == "macro")
        if token == "(":
            return self._group(")")
        if token == "[":
            return self._group("]")
        if token == "{":
            return self._group("}")
        if token == "|":
            return self._absolute("|")
        if token == "√":
            return ("root", 2, self._radicand())
        if token == "∛":
            return ("root", 3, self._radicand())
        raise Unreadable(f"sign {token}")

    def _absolute(self, closing):
        self._bars += 1
        tree = self._sum()
        self._bars -= 1
        self._take(closing)
        return ("call", "abs", tree)

    def _number(self, token):
        if self._next_is("_"):
            raise Unreadable("a number to some base")
        value = Fraction(token)
        if self._next_is(".") and self._peek(1)[1] == "overline":
            self._take()
        if self._peek()[:2] == ("macro", "overline"):
            self._take()
            self._take("{")
            kind, digits, _ = self._take()
            self._take("}")
            if kind != "number" or not digits.isdigit():
                raise Unreadable("overline")
            scale = (10 ** len(digits) - 1) * 10 ** len(token.partition(".")[2])
            value += Fraction(int(digits), scale)
        return ("number", value)

    def _letter(self, letter):
        kind, token, blank = self._peek()
        if kind == "number" and not blank and token.isdigit():  # x1, as programs name it
            self._take()
            return ("symbol", f"{letter}_{token}")
        name = letter + self._subscript()
        if letter in _FUNCTION_LETTERS and self._next_is("("):
            return ("call", name, *self._arguments())
        if name != letter:
            return ("symbol", name)
        if letter in self._constants:
            return ("symbol", self._constants[letter])
        return ("symbol", letter)

    def _subscript(self):
        """Reads the subscript and primes behind a letter; they belong to its name."""
        name = ""
        if self._next_is("_"):
            self._take()
            kind, token, _ = self._take()
            if token == "{":
                inside = []
                while not self._next_is("}"):
                    inside.append(self._take()[1])
                self._take("}")
                token = " ".join(inside)
            elif kind == "number" or kind == "letter" or token in GREEK:
                pass
            else:
                raise Unreadable("subscript")
            name = f"_{token}"
        while self._next_is("'"):
            name += self._take()[1]
        return name

    def _arguments(self):
        self._take("(")
        bars, self._bars = self._bars, 0
        arguments = [self._sum()]
        while self._next_is(","):
            self._take()
            arguments.append(self._sum())
        self._take(")")
        self._bars = bars
        return arguments

    def _braced(self):
        """Reads an argument of a macro: a group, one digit or one letter."""
        kind, token, blank = self._peek()
        if token == "{" and kind == "sign":
            self._take()
            return self._group("}")
        if kind == "number":
            if len(token) > 1:
                raise Unreadable("an argument of several digits without braces")
            self._take()
            return ("number", Fraction(token))
        if kind == "letter":
            self._take()
            return ("symbol", self._constants.get(token, token))
        if kind == "macro" and (token in _CONSTANTS or token in GREEK):
            self._take()
            return ("symbol", _CONSTANTS.get(token, token))
        raise Unreadable("argument")

    def _radicand(self):
        kind, token, _ = self._peek()
        if kind == "number":  # √13 and \sqrt13 are meant alike
            self._take()
            return ("number", Fraction(token))
        if token == "(":
            self._take()
            return self._group(")")
        return self._braced()

    def _named(self, name, *, is_macro):
        if name in _CONSTANTS:
            return ("symbol", _CONSTANTS[name])
        if name in GREEK:
            if self._next_is("_", "'"):
                return ("symbol", name + self._subscript())
            return ("symbol", name.removeprefix("var"))
        if name in _UNARY:
            return self._function(_UNARY[name], is_macro=is_macro)
        if name == "sqrt" and is_macro:
            degree = 2
            if self._next_is("["):
                self._take()
                kind, token, _ = self._take()
                self._take("]")
                if kind != "number" or not token.isdigit() or not 2 <= int(token) <= 99:
                    raise Unreadable("degree of a root")
                degree = int(token)
            return ("root", degree, self._radicand())
        if name in _CALLS and not is_macro or name in ("gcd", "lcm"):
            return self._call(*_CALLS[name])
        return self._macro(name)

    def _call(self, name, count):
        arguments = self._arguments()
        if len(arguments) != count:
            raise Unreadable(f"arguments of {name}")
        if name in ("sqrt", "cbrt"):
            return ("root", 2 if name == "sqrt" else 3, *arguments)
        return ("call", name, *arguments)

    def _macro(self, name):
        if name == "frac":
            top = self._braced()
            bottom = self._braced()
            if self._peek()[0] == "number" and not self._peek()[2]:
                raise Unreadable("\\frac123")
            return ("divide", top, bottom)
        if name in ("binom", "dbinom", "tbinom"):
            return ("call", "binomial", self._braced(), self._braced())
        if name in ("lfloor", "lceil", "lvert"):
            bars, self._bars = self._bars, 0
            tree = self._sum()
            self._take("r" + name[1:])
            self._bars = bars
            call = {"lfloor": "floor", "lceil": "ceiling", "lvert": "abs"}[name]
            return ("call", call, tree)
        if name in _DECORATIONS:
            inside = self._braced()
            if inside[0] != "symbol":
                raise Unreadable(f"\\{name}")
            return ("symbol", f"{name} {inside[1]}" + self._subscript())
        raise Unreadable(f"macro {name}")

    def _function(self, name, *, is_macro):
        power = base = None
        if self._next_is("_") and name == "log":
            self._take()
            base = self._radicand() if self._peek()[0] == "number" else self._braced()
        elif name == "log" and self._peek() in _BASES and self._peek(1)[1] == "(":  # log2(x)
            base = self._radicand()
        if self._next_is("^"):
            self._take()
            power = self._exponent()
            if power == ("multiply", MINUS_ONE, ("number", Fraction(1))):
                if name not in ("sin", "cos", "tan"):
                    raise Unreadable("inverse function")
                name, power = f"arc{name}", None
        if self._next_is("("):
            arguments = self._arguments()
            if len(arguments) == 2 and name == "log" and base is None:
                arguments, base = arguments[:1], arguments[1]
            if len(arguments) != 1:
                raise Unreadable(f"arguments of {name}")
            if power is not None and self._next_is("^"):
                raise Unreadable("two powers")
        elif is_macro or base is not None or self._peek()[2]:  # ln 2, but not ln2
            arguments = [self._bare_argument()]
        else:
            raise Unreadable(f"{name} without brackets")
        if name == "lg":
            base = ("number", Fraction(10))
        if name == "exp":
            tree = ("power", ("symbol", "e"), *arguments)
        elif base is not None:
            tree = ("divide", ("call", "ln", *arguments), ("call", "ln", base))
        else:
            tree = ("call", name, *arguments)
        return tree if power is None else ("power", tree, power)

    def _bare_argument(self):
        r"""Reads what a function without brackets takes: \sin 2x, up to a sign or a function."""
        if not self._starts_factor():
            raise Unreadable("function of nothing")
        tree = self._factor()
        while self._starts_factor():
            kind, token, _ = self._peek()
            if kind in ("macro", "name") and token in _UNARY:
                break
            if token == "(" and kind == "sign":
                raise Unreadable("\\sin x(x+1) has two readings")
            tree = self._beside(tree)
        return tree
