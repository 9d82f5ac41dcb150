"""Texts from elsewhere: what is dropped and replaced, and that each way in does it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import settings
from tools import google_search, http_client, protocol, recording
from tools.protocol import Ask, Parameter, Tool, ToolError

DIRTY, CLEAN = "a\ud83d b\0c\x1b[1m \ud83d\ude00\tä\n", "a\ufffd bc[1m 😀\tä\n"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (DIRTY, CLEAN),
        ("\ude00\ud83d", "\ufffd\ufffd"),  # a pair in the wrong order is none
        ("\ud83d\ud83d\ude00", "\ufffd😀"),
        ("a\fb\vc\r\nd\x85e\x1cf", "a\fb\vc\r\nd\x85e\x1cf"),  # blanks keep words apart
        ("\x7f\x80\x9f\x01\x08", ""),
        ("\ufeff\u200d\xad", "\ufeff\u200d\xad"),  # invisible, but no harm
        ({"k\ud800": ["\0", 1, None]}, {"k\ufffd": ["", 1, None]}),
    ],
)
def test_what_is_cleaned(text, cleaned):
    assert protocol.clean(text) == cleaned


@given(st.text(st.characters(exclude_categories=())))
def test_every_clean_text_can_be_encoded_and_is_clean(text):
    cleaned = protocol.clean(text)
    cleaned.encode()
    assert protocol.clean(cleaned) == cleaned
    if text.isprintable():
        assert cleaned == text


def test_json_is_read_whatever_its_bytes():
    assert http_client.loads(b'\xef\xbb\xbf{"a": "\xff \\ud800 \xc3\xa4"}') == {
        "a": "\ufffd \ufffd ä"
    }
    assert http_client.loads('"ä"'.encode("utf-16")) == "ä"
    assert http_client.loads(b"[%s, 9]" % (b"9" * 5_000)) == ["9" * 5_000, 9]
    for bad in (b"", b"no", b"[" * 100_000):
        with pytest.raises(ValueError):
            http_client.loads(bad)


# ---- the ways in: each source answers DIRTY --------------------------------------------------


def tool_that(run):
    return Tool("t", "", (Parameter("x", "str", ""),), "", "t(x='a')", run, 1.0, remote=True)


def fails(*, x):
    raise ToolError(DIRTY)


@pytest.mark.parametrize("recorded", [False, True])
def test_results_of_any_tool(tmp_path, recorded):
    def called(run):
        tool = tool_that(run)
        folder = tmp_path / run.__name__
        return recording.wrap(tool, folder, replay=False) if recorded else tool

    def text(*, x):
        return DIRTY

    def ask(*, x):
        return Ask(DIRTY)

    assert protocol.call(called(text), {"x": "a"}) == CLEAN
    assert protocol.call(called(ask), {"x": "a"}) == Ask(CLEAN)
    with pytest.raises(ToolError) as error:
        protocol.call(called(fails), {"x": "a"})
    assert str(error.value) == CLEAN


ROW = dict(title="t", link="https://b", url="https://b")
ROW |= dict(snippet=DIRTY, description=DIRTY, content=DIRTY)
ANSWERS = {
    "gemini": {"candidates": [{"content": {"parts": [{"text": DIRTY}]}}]},
    "serper": {"organic": [ROW]},
    "brave": {"web": {"results": [ROW]}},
    "searxng": {"results": [ROW]},
}


@pytest.mark.parametrize("engine", google_search.ENGINES)
def test_search_results(server, monkeypatch, engine):
    monkeypatch.setenv("MY_KEY", "k")
    tool = settings.make(
        "google_search", engine=engine, url=server.url, key_variable="MY_KEY", per_second=0
    )
    request = google_search.ENGINES[engine].request(server.url, "k", "q", 1, "gemini-2.5-flash")
    server.answer(request["url"].removeprefix(server.url).partition("?")[0], ANSWERS[engine])
    assert " ".join(CLEAN.split()) in " ".join(protocol.call(tool, {"query": "q"}).split())


def test_a_key_in_the_reason_of_a_refusal_is_masked(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "SECRET_OF_MINE")
    tool = settings.make("google_search", url=server.url, key_variable="MY_KEY", per_second=0)
    path = "/v1beta/models/gemini-2.5-flash:generateContent"
    server.answer(path, {"promptFeedback": {"blockReason": "SECRET_OF_MINE"}})
    with pytest.raises(protocol.ToolError, match=r"refuses this query \(\*\*\*\)"):
        protocol.call(tool, {"query": "q"})


def test_pages_of_wikipedia_and_articles_of_a_service(server):
    page = {"title": "T", "extract": DIRTY, "fullurl": "https://w"}
    server.answer("/api.php", {"query": {"pages": [page]}})
    wikipedia = settings.make("wikipedia_search", contact="a@b.c", url=server.url + "/api.php")
    assert CLEAN.strip() in protocol.call(wikipedia, {"query": "T"})
    server.answer("/search", [{"title": "T", "text": DIRTY}])
    articles = settings.make("knowledge_search", url=server.url + "/search")
    assert protocol.call(articles, {"query": "T"}) == " ".join(CLEAN.split())


@pytest.mark.parametrize(
    "body", [b"a\xed\xa0\xbd b\0c\x1b", "a\ufffd b&#0;c&#xD83D;".encode(), "a\0".encode("utf-16")]
)
def test_pages_of_the_web(server, body):
    server.answer("/", body, type="text/html")
    page = settings.make("web_search", private_hosts=(server.host,))
    text = protocol.call(page, {"url": server.url + "/", "query": "q"})
    assert text.startswith("a") and text == protocol.clean(text) and text.encode()


def test_output_and_errors_of_programs():
    tool = settings.make("python_coder", sandbox="minimal")
    write = "import os; os.write(1, b'a\\xed\\xa0\\xbd b\\0c\\x1b'); "
    for end in ("", "raise ValueError('\\ud83d \\0')"):
        try:
            text = protocol.call(tool, {"code": write + end})
        except ToolError as error:
            text = str(error)
        assert text.startswith("a\ufffd") and text == protocol.clean(text) and text.encode()


def test_tools_of_mcp_servers():
    module = pytest.importorskip("mcp.server.mcpserver")
    from tools import mcp_tools

    server = module.MCPServer("test")

    @server.tool(description=DIRTY)
    def dirty(kind: str) -> str:
        return json.loads(kind)

    connection = mcp_tools.Connection(server)
    try:
        (tool,) = connection.tools
        assert tool.description == " ".join(CLEAN.split())
        assert protocol.call(tool, {"kind": json.dumps(DIRTY)}) == CLEAN.strip()
    finally:
        connection.close()
