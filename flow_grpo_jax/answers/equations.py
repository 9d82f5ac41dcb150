r"""Which equations only name a value: x = 5, f(2) = 7, m + n = 16 + 21 = 37, 17 * 23 = 391.

Only what follows the last sign of such an equation is compared. x^2 + y^2 = 25 names nothing: it is
compared as an equation, or 25 would be full marks for every circle.
"""

import re

_SIGN = re.compile(r"(?<![<>!=≠≤≥≈~:])=(?!=)")
_OTHER = re.compile(r"[<>≠≤≥≈≡~∈∝→]|==|!=|:=|\\(?:n?eq|ne|approx|equiv|sim|in|to)(?![a-zA-Z])")
_INDEX = r"(?:_(?:\w|\{\w{1,9}\}))?'{0,3}"
_MACROS = (
    r"\\(?:angle|measuredangle|triangle|overline|overrightarrow|operatorname"
    r"|alpha|beta|gamma|theta|lambda|mu|sigma|omega|phi)(?![a-zA-Z])"
)
_NAME = rf"(?:(?:[^\W\d_]|{_MACROS}|[ {{}}°|∠△]){{1,40}}{_INDEX})"
_NAMED = re.compile(rf"\s*{_NAME}(?:\(\s*[-\w\s,.]{{1,20}}\))?\s*")
_SUM = re.compile(r"\s*[a-zA-Z](?:\s*[-+*]\s*[a-zA-Z]){1,7}\s*")
_ARITHMETIC = re.compile(
    r"(?:[\d\s+\-*/^().,{}!√]|\\(?:frac|sqrt|cdot|times|div|binom)(?![a-zA-Z]))+"
)
_UNKNOWNS = frozenset("xyzXYZ")
MAX_SIDES = 8


def sides(text):
    """Returns what stands between the equality signs; [text] if there are other relations."""
    if _OTHER.search(text):
        return [text]
    found = [side.strip() for side in _SIGN.split(text)]
    return found if all(found) and len(found) <= MAX_SIDES else [text]


def named_value(text, *, strict):
    """Returns the text of the value that an equation names, or None if it names none.

    Args:
      strict: x + y and xy name nothing, as in the equation of a line: for what was asked for.
        An answer that adds up unknowns is read as their sum.
    """
    found = sides(text)
    if len(found) < 2 or not _names(found[0], strict=strict):
        return None
    plain = [side for side in found if re.fullmatch(r"[-+]?\d+(?:\.\d+)?", side)]
    if len(set(plain)) > 1 or (plain and plain[-1] != found[-1] and _is_plain(found[-1])):
        return None  # 3 = 5
    return found[-1]


def _is_plain(side):
    return re.fullmatch(r"[-+]?\d+(?:\.\d+)?", side) is not None


def name_of(text):
    """Returns what stands left of the first equality sign, "" if there is none."""
    found = sides(text)
    return "".join(found[0].split()) if len(found) > 1 else ""


def _names(side, *, strict):
    if len(side) > 80:
        return False
    if _ARITHMETIC.fullmatch(side):
        return True
    unknowns = _UNKNOWNS & set(re.sub(r"\([^()]*\)", "", side))
    several = len(unknowns) > 1 or (unknowns and _SUM.fullmatch(side))
    if several and strict and not re.search(r"[a-wA-W]{3}", side):
        return False
    return bool(_NAMED.fullmatch(side) or _SUM.fullmatch(side))
