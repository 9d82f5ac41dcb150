"""HTML whose texts are escaped where it is made."""

import html
import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]"
)


class Markup(str):
    """HTML that is ready; any other text is escaped."""


def element(tag, *children, **attributes):
    """Returns an element as `Markup`.

    children: texts, `Markup`, or None for nothing.    attributes: class_ is class; "_" is "-".
    """
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    shown = "".join(f' {name}="{escape(str(value))}"' for name, value in named.items())
    return Markup(f"<{tag}{shown}>{joined(*children)}</{tag}>")


def joined(*parts):
    """Returns texts and `Markup` in a row, as `Markup`."""
    return Markup("".join(escape(part) for part in parts if part is not None))


def escape(value):
    """Returns a text as HTML in which nothing hides; `Markup` as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(visible(value)))


def visible(value):
    """Writes out control and direction-changing characters, so that nothing hides."""
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", value)


def table(rows, *, heads=()):
    """Returns a table of texts; a cell's lines after the first are small."""
    lines = [element("tr", *(element("th", head) for head in heads))] if heads else []
    lines += [element("tr", *(_cell(cell) for cell in row)) for row in rows]
    return element("table", *lines)


def _cell(value):
    if isinstance(value, Markup):
        return element("td", value)
    first, _, rest = value.partition("\n")
    return element("td", first, element("small", rest) if rest else None)
