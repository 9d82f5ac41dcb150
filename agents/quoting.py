"""Writes texts into prompts so that nothing in them looks like a line of the prompt itself.

A text that a tool, a page, a program or a model wrote may hold whole steps with verdicts. Each of
the two forms leaves a text of one line as it is, `escaped` only if it has no bar.
"""

import re

CONTINUED = "| "  # before each further line of a text
# All that str.splitlines and the readers of prompts take for the end of a line.
_BREAK = re.compile(r"\r\n|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# The bar, the wide one that some tokenizers read as it, and those that a reader takes for it.
BARS = "|\uff5c\uffe8\u01c0\u2223\u23d0\u2502\u2503\u2758"
_BAR = re.compile(f"[{BARS}]")


def escaped(text):
    """Returns a text on one line, breaks as Python writes them, with a backslash before bars."""
    text = _BREAK.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return _BAR.sub(lambda found: "\\" + found[0], text)


def quoted(text):
    """Returns a text whose lines after the first begin with CONTINUED."""
    return f"\n{CONTINUED}".join(_BREAK.split(text))
