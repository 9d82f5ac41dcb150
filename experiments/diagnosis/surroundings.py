"""What surrounds the models: the sandbox, search, and keys of services."""

import os
import pathlib
import tempfile

from experiments.configs import common
from experiments.diagnosis.rows import ABSENT, BROKEN, NOTE, OK, REPORT, Row
from tools import google_search, knowledge_search, text_index
from tools import keys as api_keys
from tools.sandbox import client, selftest

# Beside those of the search engines: of the server, of the hub, and the usual one of a backend.
KEYS = ("FLOW_GRPO_API_KEY", "HF_TOKEN", "OPENAI_API_KEY")
DOCUMENTS = (
    ("Lake Baikal", "The deepest lake of the world lies in Siberia."),
    ("Mount Elbrus", "The highest mountain of the Caucasus."),
)


def sandbox():
    """Yields Rows on the layers that hold, against the level that a default config asks for."""
    wanted = common.base().tools.python_coder.sandbox
    box = client.Sandbox()
    try:
        facts = selftest.examine(box)
    finally:
        box.close()
    try:
        selftest.require(wanted, facts)
    except ValueError as error:
        yield Row("level", BROKEN, str(error), "docs/tools.md says what each layer needs.", facts)
    else:
        yield Row("level", OK, f"{facts['level']}, and {wanted} is asked for", facts=facts)
    needed = selftest.LEVELS[: selftest.LEVELS.index(wanted) + 1]
    for name, state in facts["layers"].items():
        if state == selftest.VERIFIED:
            yield Row(name, OK, state)
        else:
            yield Row(name, BROKEN if selftest.LAYERS[name] in needed else NOTE, state)


def search():
    """Yields Rows on an index made on the spot and on the articles that come with the code."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "index.sqlite"
        text_index.build(path, DOCUMENTS)
        index = text_index.Index.open(path)
        try:
            titles = [document.title for document in index.search("deep lakes", top_k=1)]
        finally:
            index.close()
    yield _finds("index file", titles == [DOCUMENTS[0][0]], titles)
    tool = knowledge_search.make(**common.base().tools.knowledge_search)
    text = tool.run(query="Spain capital")
    yield _finds("knowledge_search", "Madrid" in text, text[:80])


def _finds(what, right, found):
    if right:
        return Row(what, OK, "finds what it should")
    return Row(what, BROKEN, f"does not find what it should, but {found!r}", REPORT)


def keys():
    """Yields a Row for each variable of a key: whether it is set, and never what it holds."""
    engines = {engine.key_variable: name for name, engine in google_search.ENGINES.items()}
    for variable in sorted({*engines, *KEYS} - {""}):
        if not os.environ.get(variable, "").strip():
            yield Row(variable, ABSENT, "not set")
            continue
        try:
            api_keys.api_key(variable)
        except ValueError as error:
            yield Row(variable, NOTE, str(error))
        else:
            yield Row(variable, OK, "set")
