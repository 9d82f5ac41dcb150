"""The pages of the documentation: their links, and the messages that one of them lists."""

import pathlib
import re

from experiments.documenting import messages

ROOT = pathlib.Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(text):
    """What can stand behind the # of a link to a page, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.*)$", CODE_BLOCK.sub("", text), re.MULTILINE)
    plain = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def broken_links(page, text):
    """Relative links of a page that lead to no file, or to no heading of it."""
    folder, broken = (ROOT / page).parent, []
    for link in LINK.findall(CODE_BLOCK.sub("", text)):
        file, _, anchor = link.partition("#")
        path = folder / file if file else ROOT / page
        if link.startswith("http"):
            continue
        there = path.exists() and path.resolve().is_relative_to(ROOT)
        if not there or (anchor and anchor not in anchors(path.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


def listed(message):
    """The lines of the troubleshooting page that are the beginning of a message."""
    blocks = re.findall(r"^```text\n(.*?)^```$", read("docs/troubleshooting.md"), re.M | re.S)
    patterns = {
        line: ".*".join(map(re.escape, line.split(messages.GAP)))
        for block in blocks
        for line in block.splitlines()
        if len(re.findall(r"\w\w+", line)) > 1
    }
    return [line for line, pattern in patterns.items() if re.match(pattern, message)]
