"""The readable text of an HTML page: by trafilatura where installed, else by a list of tags.

The standard library's html.parser is not used: it spends half a minute on 100 kB of unclosed
attributes and blocks the interpreter meanwhile. The scanner here is linear in the page.

What is raised or lowered keeps its meaning: 10<sup>6</sup> is 10^6, x<sub>n+1</sub> is x_(n+1),
1<sup>1</sup>/<sub>2</sub> is 1 1/2. Nothing is marked where that would mislead: ordinals (19th),
signs (25°, Foo™), and raised or lowered text without a character to belong to (<sup>14</sup>C).
A marker of a footnote is shown in brackets: 1642[1].
"""

import contextlib
import html
import re

MAX_CHARACTERS = 1_000_000  # of HTML that is read
SKIP = {"script", "style", "noscript", "template", "svg", "math", "iframe", "textarea", "title"}
DROP = {"nav", "header", "footer", "aside", "form", "button", "select", "dialog"}
BLOCKS = {"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "section", "article"}
BLOCKS |= {"ul", "ol", "table", "blockquote", "pre", "dd", "dt", "figcaption", "td", "th", "hr"}
MAIN = {"main", "article"}

LEVEL = 3  # of superscripts within one another that are marked
ORDINALS = {"st", "nd", "rd", "th", "e", "er", "ère", "ème", "tm", "sm", "º", "ª"}

_FRACTION = re.compile(
    r"<sup\b[^<>]*+>\s{0,9}(\d{1,9})\s{0,9}</sup>\s{0,9}(?:/|⁄|&frasl;|&#8260;|&#x2044;)\s{0,9}"
    r"<sub\b[^<>]*+>\s{0,9}(\d{1,9})\s{0,9}</sub>",
    re.IGNORECASE,
)
_RAISED = re.compile(r"<(su[bp])\b[^<>]*+>((?:[^<]|<(?!/?su[bp]\b)){0,300})</\1\s*>", re.IGNORECASE)
_TO_A_NOTE = re.compile(r"<a\s[^<>]*?\bhref\s*=\s*[\"']?#", re.IGNORECASE)
_ALONE = {  # what needs no parentheses: a number or one letter, below also a word
    "sup": re.compile(r"[+\-−]?(?:\d+(?:[.,]\d+)*|[^\W\d_])[+\-−]?|[+\-−*′']+|\([^()]*\)"),
    "sub": re.compile(r"[+\-−]?\w+(?:[.,]\w+)*[+\-−]?|[+\-−*]+|\([^()]*\)"),
}
_LONG_NUMBER = re.compile(r"&#[0-9]{8,}+;?")  # more than any character's, or zeros in front
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*+)([^<>]*+)>|<!--|<[!?/][^<>]*+>")


def extract(page: str) -> tuple[str, str]:
    """Returns (title, text) of a page; one line a paragraph."""
    page = page[:MAX_CHARACTERS]
    title, text = scan(page)
    try:
        import trafilatura
    except ImportError:
        return title, text
    found = trafilatura.extract(_marked(page), include_comments=False, favor_recall=True)
    return title, found or text


def prepare():
    """Imports what `extract` needs: see `tools.children`."""
    with contextlib.suppress(ImportError):
        import trafilatura

        trafilatura.extract("<p>It reads its settings.</p>")


def answer(*, page: str, whole: bool) -> tuple[str, str]:
    """Returns `extract`, or `scan` if it is not to be `whole`."""
    return extract(page) if whole else scan(page)


def scan(page: str) -> tuple[str, str]:
    """Returns (title, text) outside of SKIP and DROP.

    Where a page has a <main> or <article> with text, only the inside of one counts.
    """
    page = _marked(page)
    title, everything, main = "", [], []
    dropped = []  # open elements of DROP
    mains = at = 0
    lower = page.lower() if page.isascii() else page  # lower() may change lengths

    def add(text):
        if not dropped:
            everything.append(text)
            if mains:
                main.append(text)

    while match := _TAG.search(page, at):
        add(re.sub(r"\s+", " ", _unescaped(page[at : match.start()])))
        at, tag = match.end(), (match[2] or "").lower()
        if match[0] == "<!--":
            end = page.find("-->", at)
            at = len(page) if end < 0 else end + 3
        elif match[1]:
            if tag in dropped:
                while dropped.pop() != tag:
                    pass
            mains -= bool(mains and tag in MAIN)
        elif tag in SKIP and not match[3].endswith("/"):
            end = lower.find(f"</{tag}", at)
            if tag == "title" and end >= 0 and not title:
                title = " ".join(_unescaped(page[at:end]).split())
            at = len(page) if end < 0 else end
        elif tag in DROP and len(dropped) < 100:
            dropped.append(tag)
        elif tag in MAIN:
            mains += 1
        elif tag == "body":
            dropped = []  # of an unclosed head
        if tag in BLOCKS:
            add("\n")
    add(re.sub(r"\s+", " ", _unescaped(page[at:])))
    return title, _lines(main) or _lines(everything)


def _marked(page):
    """Returns a page with what <sup> and <sub> say written out."""
    page = _FRACTION.sub(_fraction, page)
    for _ in range(LEVEL):  # the innermost first
        page, count = _RAISED.subn(_written, page)
        if not count:
            break
    return page


def _fraction(match):
    space = " " if _before(match).isalnum() else ""
    return f"{space}{match[1]}/{match[2]}"


def _written(match):
    kind, inside = match[1].lower(), match[2]
    plain = " ".join(_unescaped(_TAG.sub("", inside)).split())
    if plain.startswith("["):
        return inside
    if kind == "sup" and _TO_A_NOTE.search(inside):
        return html.escape(f"[{plain}]", quote=False)
    base = _before(match)
    says = any(map(str.isalnum, plain)) or _ALONE[kind].fullmatch(plain)
    ordinal = kind == "sup" and plain.lower() in ORDINALS and (len(plain) > 1 or base.isdigit())
    if not says or ordinal or not _holds(base):
        return inside
    text = plain if _ALONE[kind].fullmatch(plain) else f"({plain})"
    space = " " if inside[-1].isspace() else ""
    return html.escape(("^" if kind == "sup" else "_") + text, quote=False) + space


def _unescaped(text):
    """Returns a text with its character references replaced, whatever their numbers."""
    return html.unescape(_LONG_NUMBER.sub(_short_number, text))


def _short_number(match):
    number = match[0].strip("&#;").lstrip("0") or "0"
    return f"&#{number};" if len(number) < 8 else "\ufffd"


def _before(match):
    """Returns the character of the text right before a match; "" after a block or a blank."""
    page, end = match.string, match.start()
    for _ in range(4):  # tags in between
        if not page.endswith(">", 0, end):
            break
        start = page.rfind("<", max(0, end - 200), end)
        tag = _TAG.fullmatch(page, start, end) if start >= 0 else None
        if not tag or (tag[2] or "br").lower() in BLOCKS:
            return ""
        end = start
    if page.endswith(";", 0, end):
        entity = re.search(r"&#?\w{1,20};\Z", page[max(0, end - 24) : end])
        return _unescaped(entity[0])[-1] if entity else ""
    return page[end - 1] if end else ""


def _holds(base):
    """Whether something can be raised or lowered from a character."""
    return base.isalnum() or base in tuple(")]}|’′'\"”!")


def _lines(parts):
    lines = (" ".join(line.split()) for line in "".join(parts).splitlines())
    return "\n".join(line for line in lines if line)
