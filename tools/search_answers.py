"""What search services answer, as text for the model: one function a service.

Each takes the JSON value of an answer and how many results are wanted. A row counts with whatever
it has of title, address and text, as long as it has a title or a text; other rows, and fields that
are null or of another type, are passed over. "" means that nothing was found.
"""

import math
import re

from tools import page_text

ATTRIBUTES = 12  # of Serper's knowledge graph that are shown
_REASON = re.compile(r"[A-Z_]{1,40}")


class Malformed(Exception):
    """An answer that is not in the service's form: its failure, not an empty result."""


class Refused(Exception):
    """The service will not answer this query; the message is written for the model."""


def gemini(answer, top_k):
    """Reads the first candidate that has a text, and its sources.

    A stop before the end is named after the text, or refuses the query if there is none.
    """
    answer = _object(answer, "candidates", "promptFeedback")
    candidates = [_candidate(row, top_k) for row in _listed(answer, "candidates")]
    blocked = _reason(_inner(answer, "promptFeedback").get("blockReason"))
    if blocked and not any(text for text, *_ in candidates):
        raise Refused(f"The search service refuses this query ({blocked}); ask in other words.")
    if not candidates:
        raise Malformed
    text, sources, stop = next((found for found in candidates if found[0]), candidates[0])
    if not text and stop == "MAX_TOKENS":
        raise Refused("The search service met its limit of length (MAX_TOKENS); ask for less.")
    if not text and stop:
        raise Refused(f"The search service gave no answer ({stop}); ask in other words.")
    note = [f"[the answer ends early: {stop}]"] if stop else []
    return "\n".join(filter(None, [text, *note, *sources]))


def _candidate(row, top_k):
    """Returns (text, lines of sources, why it ended or "" if by itself)."""
    parts = [part for part in _rows(_inner(row, "content"), "parts") if not part.get("thought")]
    text = "".join(part["text"] for part in parts if isinstance(part.get("text"), str)).strip()
    chunks = _rows(_inner(row, "groundingMetadata"), "groundingChunks")
    pages = [_line(page, "title", "uri") for page in map(_web, chunks)]
    stop = _reason(row.get("finishReason"))
    ended = stop in ("", "STOP", "FINISH_REASON_UNSPECIFIED")
    return text, [f"Source: {page}" for page in pages if page][:top_k], "" if ended else stop


def _web(chunk):
    return _inner(chunk, "web")


def _reason(value):
    if value is None or value in ("", "BLOCK_REASON_UNSPECIFIED"):
        return ""
    known = isinstance(value, str) and _REASON.fullmatch(value.upper())
    return value.upper() if known else "for an unknown reason"


def serper(answer, top_k):
    """Reads Google's answer box and knowledge graph, and then the results."""
    answer = _object(answer, "organic", "answerBox", "knowledgeGraph", "searchParameters")
    results = [_result(row, "link", "snippet") for row in _listed(answer, "organic")]
    box, graph = _inner(answer, "answerBox"), _inner(answer, "knowledgeGraph")
    facts = [_text(box, "answer"), _text(box, "snippet")]
    boxed = _joined(_line(box, "title", "link"), *dict.fromkeys(facts)) if any(facts) else ""
    found = _inner(graph, "attributes")
    about = [f"{name}: {_text(found, name)}" for name in found if _text(found, name)]
    facts = [_text(graph, "type"), _text(graph, "description"), *about[:ATTRIBUTES]]
    source = "descriptionLink" if _text(graph, "descriptionLink") else "website"
    graphed = _joined(_line(graph, "title", source), *facts) if any(facts) else ""
    return _joined(boxed, graphed, *_kept(results, top_k))


def brave(answer, top_k):
    """Reads the results of the web; their texts are pieces of HTML."""
    answer = _object(answer, "web", "query")
    web = answer.get("web")
    rows = [] if web is None else _listed(_object(web), "results")
    plain = [
        row | {name: _plain(_text(row, name)) for name in ("title", "description")} for row in rows
    ]
    return _joined(*_kept([_result(row, "url", "description") for row in plain], top_k))


def searxng(answer, top_k):
    """Reads the results."""
    rows = _listed(_object(answer, "results"), "results")
    return _joined(*_kept([_result(row, "url", "content") for row in rows], top_k))


def wikipedia(answer):
    """Returns (title, text, address) of the pages, best first; the answer is MediaWiki's.

    A page may have one of title and text alone. MediaWiki before 1.25 answers an object of pages.
    """
    answer = _object(answer, "query", "batchcomplete", "continue", "warnings")
    pages = _object(answer.get("query") or {}).get("pages")
    pages = list(pages.values()) if isinstance(pages, dict) else pages
    ranked = sorted(_listed({"pages": pages}, "pages"), key=_rank)
    found = [[_text(page, name) for name in ("title", "extract", "fullurl")] for page in ranked]
    return [(title, text, address) for title, text, address in found if title or text]


def articles(answer):
    """Returns (title, text) of the rows with a text; the answer is of a service of your own."""
    rows = _rows({"rows": answer}, "rows")
    if not isinstance(answer, list) or (answer and not any("text" in row for row in rows)):
        raise Malformed
    return [(_text(row, "title"), _text(row, "text")) for row in rows if _text(row, "text")]


def _rank(page):
    index = page.get("index")
    return index if isinstance(index, int) else math.inf


def _object(answer, *fields):
    """Returns an answer that is an object, with one of these fields at least if any are named."""
    if not isinstance(answer, dict) or (fields and not any(name in answer for name in fields)):
        raise Malformed
    return answer


def _inner(row, field):
    """Returns an object within a row; {} if there is none."""
    value = row.get(field)
    return value if isinstance(value, dict) else {}


def _rows(row, field):
    """Returns the objects of a list within a row."""
    value = row.get(field)
    return [inner for inner in value if isinstance(inner, dict)] if isinstance(value, list) else []


def _listed(answer, field):
    """Returns the objects of the list that an answer is about; null and nothing are empty."""
    if not isinstance(answer.get(field), list | None):
        raise Malformed
    return _rows(answer, field)


def _text(row, field):
    """Returns a text or a number as text; "" for everything else."""
    value = row.get(field)
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _line(row, title, address):
    return f"{_text(row, title)} {_text(row, address)}".strip()


def _result(row, address, text):
    """Returns a row's lines; "" if it has neither title nor text."""
    if not _text(row, "title") and not _text(row, text):
        return ""
    return _joined(_line(row, "title", address), _text(row, text))


def _kept(results, top_k):
    return [result for result in results if result][:top_k]


def _joined(*parts):
    return "\n".join(part for part in parts if part)


def _plain(text):
    """Returns a piece of HTML as text on one line."""
    return " ".join(page_text.scan(text)[1].split())
