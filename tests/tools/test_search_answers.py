"""Answers of search services as they come: rows without fields, odd types, refusals, any JSON."""

import json

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as generated
from hypothesis import strategies as st

from tests.tools import settings
from tools import http_client, protocol, search_answers
from tools.http_client import HttpError
from tools.protocol import ToolError
from tools.search_answers import Malformed, Refused

ROWS = [  # fields by their meaning, and the lines that a row becomes
    ({"title": "A", "url": "https://a", "text": "of A"}, "A https://a\nof A"),
    ({"title": None, "url": "https://b", "text": "of B"}, "https://b\nof B"),
    ({"url": "https://c", "text": "of C"}, "https://c\nof C"),
    ({"title": "D", "text": "of D"}, "D\nof D"),
    ({"title": "E", "url": "https://e"}, "E https://e"),
    ({"title": 1984, "url": {"x": 1}, "text": ["of F"]}, "1984"),
    ({"title": "", "url": "https://g", "text": None}, ""),
    ({"title": True, "text": float("nan")}, ""),
    ({}, ""),
    (None, ""),
    ("a row", ""),
    ([["title", "A"]], ""),
]
ENGINES = {  # names of the fields, and how rows stand in an answer
    "serper": ({"url": "link", "text": "snippet"}, lambda rows: {"organic": rows}),
    "brave": ({"text": "description"}, lambda rows: {"web": {"results": rows}}),
    "searxng": ({"text": "content"}, lambda rows: {"results": rows}),
}


def named(row, names):
    return {names.get(k, k): v for k, v in row.items()} if isinstance(row, dict) else row


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_counts_with_what_it_has(engine):
    names, answer = ENGINES[engine]
    read = getattr(search_answers, engine)
    for row, text in ROWS:
        assert read(answer([named(row, names)]), 9) == text
    rows = [named(row, names) for row, _ in reversed(ROWS)]
    kept = [text for _, text in reversed(ROWS) if text]
    assert read(answer(rows), 9) == "\n".join(kept)
    assert read(answer(rows), 2) == "\n".join(kept[:2])  # rows that count


NOTHING = [("serper", {"organic": []}), ("serper", {"searchParameters": {"q": "x"}})]
NOTHING += [("serper", {"organic": None, "answerBox": "x", "knowledgeGraph": [1]})]
NOTHING += [("brave", {"query": {"original": "x"}, "type": "search"}), ("brave", {"web": None})]
NOTHING += [("brave", {"web": {"results": None}}), ("brave", {"web": {}})]
NOTHING += [("searxng", {"results": []}), ("searxng", {"results": None})]
NOTHING += [("gemini", {"candidates": [{"finishReason": "STOP"}]})]
NOTHING += [("gemini", {"candidates": [{"content": {"role": "model"}, "finishReason": "STOP"}]})]


@pytest.mark.parametrize(("engine", "answer"), NOTHING)
def test_nothing_found(engine, answer):
    assert getattr(search_answers, engine)(answer, 3) == ""


OTHER = [None, [], "text", 7, {}, {"message": "Unauthorized."}, {"error": {"code": 500}}]
WRONG = [("serper", {"organic": "x"}), ("brave", {"web": [1]}), ("brave", {"web": {"results": 1}})]
WRONG += [("searxng", {"results": {}}), ("gemini", {"candidates": []})]
WRONG += [("gemini", {"promptFeedback": None, "candidates": None}), ("gemini", {"candidates": 1})]
WRONG += [(engine, answer) for engine in (*ENGINES, "gemini") for answer in OTHER]


@pytest.mark.parametrize(("engine", "answer"), WRONG)
def test_an_answer_of_another_form_is_not_an_empty_one(engine, answer):
    with pytest.raises(Malformed):
        getattr(search_answers, engine)(answer, 3)


def test_pieces_of_html_in_brave():
    row = {
        "title": "AT&amp;T &#x27;s <b>best</b>",
        "url": "https://a?x=1&y=2",
        "description": "1 &lt; 2<br>is <strong>true</strong>, 10<sup>6</sup>\n&quot;x&quot;",
    }
    text = 'AT&T \'s best https://a?x=1&y=2\n1 < 2 is true, 10^6 "x"'
    assert search_answers.brave({"web": {"results": [row]}}, 3) == text


def test_serpers_answer_box_and_knowledge_graph_come_first():
    box = {"title": "Baikal / Depth", "answer": "1,642 m", "link": "b.org"}
    box["snippet"] = "It is deep."
    graph = {
        "title": "Lake Baikal",
        "type": "Lake in Russia",
        "website": "https://home",
        "description": "A rift lake.",
        "descriptionLink": "https://w",
        "attributes": {"Max depth": "1,642 m", "Islands": 27, "Odd": None, "Odder": ["x"]},
    }
    row = {"title": "A", "link": "https://a", "snippet": "of A"}
    boxed = "Baikal / Depth b.org\n1,642 m\nIt is deep."
    known = "Lake Baikal https://w\nLake in Russia\nA rift lake.\nMax depth: 1,642 m\nIslands: 27"
    answer = {"answerBox": box, "knowledgeGraph": graph, "organic": [row, row]}
    assert search_answers.serper(answer, 1) == f"{boxed}\n{known}\nA https://a\nof A"
    assert search_answers.serper({"answerBox": {"snippet": "s"}}, 1) == "s"
    assert search_answers.serper({"answerBox": {"title": "t"}, "organic": [row]}, 1)[0] == "A"
    many = {"attributes": {f"k{i}": "v" for i in range(50)}}
    assert len(search_answers.serper({"knowledgeGraph": many}, 1).splitlines()) == 12


WEB = {"uri": "https://b", "title": "b.org"}


def test_gemini_keeps_what_can_be_read():
    parts = [{"text": "1642"}, {"text": None}, {"text": "no", "thought": True}, None, {"x": 1}]
    chunks = [{"web": None}, None, {}, {"web": {"title": None, "uri": 1}}, {"web": WEB}]
    chunks += [{"web": {"title": "c.org"}}, {"web": {"uri": "https://d"}}, {"web": WEB}]
    candidate = {
        "content": {"parts": [*parts, {"text": " m"}]},
        "groundingMetadata": {"groundingChunks": chunks},
    }
    sources = "Source: 1\nSource: b.org https://b\nSource: c.org"
    answer = {"candidates": [None, {"content": None, "finishReason": "SAFETY"}, candidate]}
    assert search_answers.gemini(answer, 3) == f"1642 m\n{sources}"
    assert search_answers.gemini({"candidates": [candidate | {"groundingMetadata": 1}]}, 3) == (
        "1642 m"
    )


@pytest.mark.parametrize("stop", ["SAFETY", "RECITATION", "MAX_TOKENS", "OTHER", "max_tokens"])
def test_geminis_stops_are_named(stop):
    cut = {"content": {"parts": [{"text": "It is"}]}, "finishReason": stop}
    name = stop.upper()
    text = f"It is\n[the answer ends early: {name}]"
    assert search_answers.gemini({"candidates": [cut]}, 3) == text
    for empty in ({}, {"content": {}}, {"content": {"parts": [{"text": " "}]}}):
        with pytest.raises(Refused, match=name):
            search_answers.gemini({"candidates": [empty | {"finishReason": stop}]}, 3)


@pytest.mark.parametrize("reason", ["SAFETY", "BLOCKLIST", "<b>\n", 3])
def test_geminis_blocks_are_named(reason):
    shown = reason if str(reason).isupper() else "unknown reason"
    for candidates in (None, [], [{}], [{"content": {"parts": [{"text": ""}]}}]):
        with pytest.raises(Refused, match=shown):
            answer = {"promptFeedback": {"blockReason": reason}, "candidates": candidates}
            search_answers.gemini(answer, 3)


def test_pages_of_wikipedia():
    good = {"title": "A", "extract": "of A", "fullurl": "https://a", "index": 2}
    bare, first = {"title": "B", "extract": None, "index": "x"}, {"extract": "of C", "index": 1}
    pages = [None, {"index": 0}, bare, good, "page", first]
    read = [("", "of C", ""), ("A", "of A", "https://a"), ("B", "", "")]
    assert search_answers.wikipedia({"query": {"pages": pages}}) == read
    by_id = {str(i): page for i, page in enumerate(pages)}
    assert search_answers.wikipedia({"query": {"pages": by_id}}) == read
    for nothing in ({"query": None}, {"query": []}, {"batchcomplete": ""}, {"query": {}}):
        assert search_answers.wikipedia(nothing) == []
    for wrong in (*OTHER, {"query": "x"}, {"query": {"pages": "x"}}):
        with pytest.raises(Malformed):
            search_answers.wikipedia(wrong)


def test_articles_of_ones_own_service():
    rows = [{"title": "A", "text": "of A"}, None, {"title": "B"}, {"text": "of C"}, {"text": None}]
    assert search_answers.articles(rows) == [("A", "of A"), ("", "of C")]
    assert search_answers.articles([]) == []
    for wrong in (None, {}, "x", [1], [{"title": "A", "contents": "of A"}]):  # it never has texts
        with pytest.raises(Malformed):
            search_answers.articles(wrong)


# ---- any JSON --------------------------------------------------------------------------------

PAGE = {"title": "A", "extract": "of A", "fullurl": "https://a", "index": 1}
ROW = {"title": "A", "link": "https://a", "url": "https://a", "snippet": "of A"}
ROW |= {"description": "of <b>A</b>", "content": "of A", "text": "of A"}
GOOD = {
    "gemini": {
        "candidates": [
            {
                "content": {"parts": [{"text": "of A", "thought": False}]},
                "finishReason": "STOP",
                "groundingMetadata": {"groundingChunks": [{"web": WEB}]},
            }
        ],
        "promptFeedback": {"blockReason": None},
    },
    "serper": {
        "searchParameters": {"q": "x"},
        "answerBox": {"title": "t", "answer": "a", "snippet": "s", "link": "l"},
        "knowledgeGraph": {"title": "t", "type": "x", "attributes": {"a": "b"}},
        "organic": [ROW, ROW],
    },
    "brave": {"query": {}, "web": {"results": [ROW, ROW]}},
    "searxng": {"results": [ROW, ROW]},
    "wikipedia_search": {"query": {"pages": [PAGE, PAGE]}, "error": None},
    "knowledge_search": [ROW, ROW],
}
FIELDS = [*ROW, *PAGE, *GOOD["gemini"], *GOOD["serper"], "web", "parts", "code", "error", "pages"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400)
LEAVES |= st.sampled_from(["", "\ud800", "<b", "MAX_TOKENS", "&#xD800;"]) | st.text(max_size=5)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def mutated(draw, value):
    """The value with some of its parts replaced, left out or repeated."""
    if draw(st.integers(0, 9)) == 0:
        return draw(JSON)
    if isinstance(value, dict):
        kept = [name for name in value if draw(st.integers(0, 7))]
        return {name: draw(mutated(value[name])) for name in kept}
    if isinstance(value, list):
        rows = [draw(mutated(row)) for row in value for _ in range(draw(st.integers(0, 2)))]
        return rows + draw(st.lists(JSON, max_size=1))
    return value


@pytest.mark.parametrize("service", GOOD)
def test_any_answer_is_read_refused_or_a_failure_of_the_service(service, monkeypatch):
    monkeypatch.setenv("MY_KEY", "k")
    if service in ("wikipedia_search", "knowledge_search"):
        more = {"contact": "a@b.c"} if service == "wikipedia_search" else {}
        tool = settings.make(service, url="http://a.test/x", **more)
    else:
        how = dict(engine=service, url="http://a.test", key_variable="MY_KEY")
        tool = settings.make("google_search", **how)
    queries = iter(range(10**9))  # no two answers come from a cache

    @generated(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated(GOOD[service]))
    def check(answer):
        body = json.dumps(answer).encode()
        response = http_client.Response(200, {}, body, "http://a.test")
        monkeypatch.setattr(http_client.Client, "request", lambda *_, **how: response)
        try:
            text = protocol.call(tool, {"query": f"a {next(queries)}"})
        except (ToolError, HttpError) as error:
            assert str(error)
        else:
            assert text and text.encode()

    check()
    good = http_client.Response(200, {}, json.dumps(GOOD[service]).encode(), "")
    monkeypatch.setattr(http_client.Client, "request", lambda *_, **how: good)
    assert "of A" in protocol.call(tool, {"query": "a"})
