"""The forms of the modules' replies, for an engine that can hold a reply to one.

A form is a regular expression for the whole reply, without look-around and back references. It
asks for what `prompts` asks for. `parsing` accepts every match and more: several calls, positional
arguments, prose around a fence, odd wrappings.

A reply that the token limit cuts off is only the beginning of a match.
"""

import re

_GAP = r"(?: |\n {0,8})?"
# A wrong escape, half a surrogate pair and NUL are errors of Python's own parser or of ours.
_ESCAPE = (
    r"\\(?:[^xuUN\r\x00]|x[0-9a-fA-F]{2}"
    r"|u(?:[0-9abcefABCEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2})"
    r"|U00(?:0[1-9a-fA-F]|10)[0-9a-fA-F]{4})"
)
_STRINGS = [
    form
    for quote in ('"', "'")
    for form in (
        rf"{quote}(?:[^{quote}\\\n\r\x00]|{_ESCAPE})*{quote}",
        rf"{quote * 3}(?:{quote}{{0,2}}(?:[^{quote}\\\r\x00]|{_ESCAPE}))*{quote * 3}",
    )
]
_LITERALS = {
    "str": f"(?:{'|'.join(_STRINGS)})",
    "int": r"-?(?:0|[1-9][0-9]{0,17})",
    "float": r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?(?:e-?[0-9]{1,2})?",
    "bool": r"(?:True|False)",
}

# An explanation of bounded length, so that a model that wanders comes back to the point.
VERDICT = r"(?:(?:.|\n){0,1000}\n)?Verdict: (?:STOP|CONTINUE)"
ANSWER = r"(?:(?:.|\n){0,2000}\n)?Answer: [^\s\x00-\x1f][^\n]{0,500}"


def command(tool):
    """Returns the form of one call of a tool: every parameter by name, in order, as a literal."""
    arguments = f",{_GAP}".join(
        f"{re.escape(parameter.name)}={_LITERALS[parameter.type]}" for parameter in tool.parameters
    )
    return rf"{re.escape(tool.name)}\({_GAP}{arguments}{_GAP}\)"
