"""Trees of expressions, and what can be seen of one without computing.

A tree is a tuple:
  ("number", Fraction)    ("symbol", name)        ("add", tree, ...)    ("multiply", tree, ...)
  ("divide", top, bottom) ("power", base, exponent)                     ("root", degree, tree)
  ("call", name, tree, ...)
Subtraction is the addition of ("multiply", ("number", -1), tree). Constants are the symbols
"pi", "e", "i" and "oo".
"""

from fractions import Fraction

Tree = tuple
MINUS_ONE = ("number", Fraction(-1))


def symbols_of(tree: Tree) -> set[str]:
    """Returns the names of a tree's symbols other than pi, e, i and oo."""
    if tree[0] == "symbol":
        return {tree[1]} - {"pi", "e", "i", "oo"}
    return set().union(*(symbols_of(part) for part in tree[1:] if isinstance(part, tuple)))


def uses(tree: Tree, function: str) -> bool:
    """Returns whether a tree applies the function."""
    parts = (part for part in tree[1:] if isinstance(part, tuple))
    return tree[:2] == ("call", function) or any(uses(part, function) for part in parts)


def is_worked_out(tree: Tree) -> bool:
    """Returns whether a tree without symbols is written as a value: no sum is multiplied by a sum,
    raised or divided by, and no numbers are left to be added, multiplied or raised."""
    kind, *parts = tree
    if kind in ("number", "symbol"):
        return True
    trees = [part for part in parts if isinstance(part, tuple)]
    if not all(map(is_worked_out, trees)):
        return False
    if kind == "add":
        return sum(_is_rational(part) for part in trees) < 2
    if kind == "divide":
        return not _holds_sum(parts[1])
    if kind == "multiply":
        if MINUS_ONE in parts:
            return True
        sums = sum(_holds_sum(part) for part in parts)
        return sums < 2 and not all(map(_is_rational, parts))
    if kind == "power":
        exponent = parts[1][2] if parts[1][:2] == ("multiply", MINUS_ONE) else parts[1]
        whole = exponent[0] == "number" and exponent[1].denominator == 1
        return not _holds_sum(parts[0]) and not (whole and _is_rational(parts[0]))
    return True


def count_terms(tree: Tree) -> int:
    """Returns how many terms a sum has as it is written; 1 for what is no sum."""
    if tree[0] == "add":
        return sum(map(count_terms, tree[1:]))
    if tree[0] in ("multiply", "divide"):
        return max(map(count_terms, tree[1:]))
    return 1


def _is_rational(tree: Tree) -> bool:
    """Returns whether a tree is a number, a fraction of numbers or one of them with a sign."""
    if tree[0] in ("multiply", "divide"):
        return all(map(_is_rational, tree[1:]))
    return tree[0] == "number"


def _holds_sum(tree: Tree) -> bool:
    if tree[0] in ("multiply", "divide"):
        return any(map(_holds_sum, tree[1:]))
    return tree[0] == "add"
