"""Writes the pages that come from the code: the reference, and the messages of troubleshooting.

    python -m experiments.reference --out=docs

`reference.md` gets every field of a config and every metric. In `troubleshooting.md` only the lists
of messages are written anew; the text around them stays. A test compares both with the code.
"""

import ast
import pathlib
import re

from absl import flags, logging

from experiments.configs import common
from experiments.documenting import fields, messages, metrics
from experiments.running import command, places

REFERENCE, TROUBLES = "reference.md", "troubleshooting.md"
LIST = r"(<!-- messages: (\w+) -->\n).*?(<!-- end -->)"


def reference():
    """Returns the text of the page of fields and metrics."""
    sections = {GENERAL: []}
    for field in fields.collect():
        sections.setdefault(_section(field.name), []).append(field)
    links = " · ".join(f"[{name}](#{name.lower()})" for name in [*sections, "Configs", "Metrics"])
    parts = [HEAD.format(links=links)]
    for name, found in sections.items():
        rows = [
            f"| `{f.name}` | `{f.default}` | {_cell(f.allowed)} | {_cell(f.meaning)} |"
            for f in found
        ]
        head = ["| field | default | may be | |", "|---|---|---|---|"]
        note = [NOTES[name], ""] if name in NOTES else []
        parts.append("\n".join([f"## {name}", "", *note, *head, *rows]))
    rows = [f"| `{name}` | {_cell(what)} |" for name, what in _configs().items()]
    parts.append("\n".join(["## Configs", "", CONFIGS, "", "| name | |", "|---|---|", *rows]))
    rows = [
        f"| {', '.join(f'`{name}`' for name in names)} | {_cell(meaning)} |"
        for names, meaning in metrics.collect()
    ]
    parts.append("\n".join(["## Metrics", "", METRICS, "", "| name | |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def troubleshooting(page):
    """Returns the page with the lists of messages as they are in the code now.

    Raises:
      ValueError: a topic has no place on the page, or a place no topic.
    """
    found = messages.collect()
    spots = re.findall(LIST, page, re.DOTALL)
    if sorted(topic for _, topic, _ in spots) != sorted(found):
        wanted = ", ".join(f"<!-- messages: {topic} -->" for topic in found)
        raise ValueError(f"{TROUBLES} must have each of these once: {wanted}.")
    fill = lambda place: place[1] + _list(found[place[2]]) + place[3]
    return re.sub(LIST, fill, page, flags=re.DOTALL)


def main():
    folder = pathlib.Path(flags.FLAGS.out)
    if not (folder / TROUBLES).is_file():
        raise command.ConfigError(
            f"--out={folder} holds no {TROUBLES}; give the folder docs of a checkout."
        )
    page = (folder / TROUBLES).read_text(encoding="utf-8")
    for name, text in ((REFERENCE, reference()), (TROUBLES, troubleshooting(page))):
        (folder / name).write_text(text, encoding="utf-8")
        logging.info("wrote %s", folder / name)


GENERAL = "General"
NOTES = {
    "backends": f"NAME is one of {', '.join(common.MODULES)} and judge. The judge's default kind "
    "is `none`. All fields but `kind` concern a server: [backends.md](backends.md)."
}
HEAD = """# Reference

Written by `python -m experiments.reference --out=docs` from the code; do not edit.

Every field of a config, the configs that ship, and every metric: {links}.

`--config.NAME=VALUE` sets a field; the defaults below hold unless your config sets others.
[training.md](training.md) says where to start, [commands.md](commands.md) lists the flags of the
commands."""
CONFIGS = "`--config=NAME` takes one of these, `--config=NAME:ARGUMENT` gives it an argument."
METRICS = (
    "`metrics.jsonl` has one line per step; step 0 is the evaluation before training. "
    "[training.md](training.md#what-to-watch) says which to watch."
)


def _configs():
    """Returns {name: first paragraph of its docstring} of the configs that ship."""
    texts = {name: file.read_text(encoding="utf-8") for name, file in places.configs().items()}
    told = {name: ast.get_docstring(ast.parse(text)) for name, text in texts.items()}
    return {name: " ".join(text.split("\n\n")[0].split()) for name, text in told.items()}


def _section(name):
    if name.startswith("tools."):
        return "tools"
    return name.split(".")[0] if "." in name else GENERAL


def _cell(text):
    return text.replace("|", "\\|")


def _list(texts):
    lines = "\n".join(texts)
    title = f"<details><summary>{len(texts)} messages</summary>"
    return f"{title}\n\n```text\n{lines}\n```\n\n</details>\n"


def define_flags():
    flags.DEFINE_string("out", None, "Folder docs of a checkout.")


if __name__ == "__main__":
    define_flags()
    command.run(main, required=["out"])
