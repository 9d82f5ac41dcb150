"""The readable text of an HTML page: by trafilatura where installed, else by a list of tags.

The standard library's html.parser is not used: it spends half a minute on 100 kB of unclosed
attributes and blocks the interpreter meanwhile. The scanner here is linear in the page.
"""

import html
import re

MAX_CHARACTERS = 1_000_000  # of HTML that is read
SKIP = {"script", "style", "noscript", "template", "svg", "math", "iframe", "textarea", "title"}
DROP = {"nav", "header", "footer", "aside", "form", "button", "select", "dialog"}
BLOCKS = {"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "section", "article"}
BLOCKS |= {"ul", "ol", "table", "blockquote", "pre", "dd", "dt", "figcaption", "td", "th", "hr"}
MAIN = {"main", "article"}

_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*+)([^<>]*+)>|<!--|<[!?/][^<>]*+>")


def extract(page: str) -> tuple[str, str]:
    """Returns (title, text) of a page; one line a paragraph."""
    page = page[:MAX_CHARACTERS]
    title, text = scan(page)
    try:
        import trafilatura
    except ImportError:
        return title, text
    found = trafilatura.extract(page, include_comments=False, favor_recall=True)
    return title, found or text


def scan(page: str) -> tuple[str, str]:
    """Returns (title, text) outside of SKIP and DROP.

    Where a page has a <main> or <article> with text, only the inside of one counts.
    """
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
        add(re.sub(r"\s+", " ", html.unescape(page[at : match.start()])))
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
                title = " ".join(html.unescape(page[at:end]).split())
            at = len(page) if end < 0 else end
        elif tag in DROP and len(dropped) < 100:
            dropped.append(tag)
        elif tag in MAIN:
            mains += 1
        elif tag == "body":
            dropped = []  # of an unclosed head
        if tag in BLOCKS:
            add("\n")
    add(re.sub(r"\s+", " ", html.unescape(page[at:])))
    return title, _lines(main) or _lines(everything)


def _lines(parts):
    lines = (" ".join(line.split()) for line in "".join(parts).splitlines())
    return "\n".join(line for line in lines if line)
