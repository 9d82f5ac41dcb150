r"""Whether two formulas are equal, by math-verify and sympy in a process that can be killed.

math-verify alone is not believed: it rounds to six places, and what its parser does not know (an
unknown macro, \mathrm{e}, dots, the rest of a sentence) is dropped without a word, so that 4 equals
"4 \foo{9}". "Equal" takes three things: this repository's own reader, which refuses a text with any
sign that it does not know, read both texts whole; sympy proves what it read equal, without floats;
and math-verify calls the texts equal. "Unequal" takes two different values at one point. Anything
else is no verdict, and so is a comparison that runs out of time or memory: both libraries hang on
hostile input such as 9^9^9^9.
"""

import importlib.util
import json
import re

from flow_grpo_jax.answers.formulas import leaves_work
from flow_grpo_jax.answers.statements import Statement, is_read, read, same
from tools import children

MAX_CHARACTERS = 300
MAX_QUESTIONS = 20  # pairs of expressions in one comparison of two lists
_CALL = re.compile(r"(?<![\\a-zA-Z])(sqrt|a?sin|a?cos|a?tan|sinh|cosh|tanh|log|ln|exp)(?=\()")


class Symbolic:
    """One child process, see `tools.children`.

    Raises ValueError if math-verify is not installed.
    """

    def __init__(self, *, seconds=3.0, memory_bytes=2 * 2**30):
        need()
        self._seconds = seconds
        self._children = children.Children(
            "flow_grpo_jax.symbolic_child", most=1, memory_bytes=memory_bytes
        )

    def equal(self, gold, answer):
        """Returns True, False, or None for no verdict."""
        if max(len(gold), len(answer)) > MAX_CHARACTERS:
            return False
        wanted, stated = _value(read(gold, gold=True)), _value(read(answer, gold=False))
        if not (is_read(wanted) and is_read(stated)):
            return None
        verdicts = []

        def proven(one, other):
            if leaves_work(one, other):
                return False
            asked = len(verdicts) < MAX_QUESTIONS
            verdicts.append(self._ask("trees", one, other) if asked else None)
            return verdicts[-1]

        if not same(wanted, stated, proven):
            return None if None in verdicts else False
        return self._ask("texts", _as_latex(gold), _as_latex(answer)) or None

    def _ask(self, what, gold, answer):
        ask = json.loads(json.dumps({what: [gold, answer]}, default=str))  # fractions as text
        return self._children.ask(ask, seconds=self._seconds)

    def close(self):
        self._children.close()


def need():
    """Raises ValueError if math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise ValueError('math-verify is not installed: pip install -e ".[math]".')


def _value(statement):
    """Returns a number without a unit as an expression: here 2^10 is 1024."""
    if statement.kind == "number" and statement.parts[0].unit is None:
        tree = ("number", statement.parts[0].number)
        return Statement("expression", (tree, None), statement.text)
    return statement


def _as_latex(text):
    """Writes what programs print as math-verify reads it."""
    names = {"log": "ln", "asin": "arcsin", "acos": "arccos", "atan": "arctan"}
    text = _CALL.sub(lambda match: "\\" + names.get(match[1], match[1]), text)
    text = re.sub(r"\\sqrt\(([^()]*)\)", r"\\sqrt{\1}", text)
    return text.replace("**", "^").replace("*", " \\cdot ")
