"""The tools that ask others, against a server on loopback that plays each service."""

import urllib.parse

import pytest

from tests.tools import settings
from tools import google_search, protocol, text_index, web_search
from tools.http_client import HttpError
from tools.protocol import ToolError

# ---- Wikipedia ---------------------------------------------------------------------------------

PAGES = [
    dict(title="Omul", index=2, extract="Omul is a fish of Lake Baikal.", fullurl="https://w/Omul"),
    dict(title="Lake Baikal", index=1, extract="A lake.\nIt is deep.", fullurl="https://w/Baikal"),
]
FOUND = {"query": {"pages": PAGES}}


def wikipedia(server, **how):
    return settings.make(
        "wikipedia_search",
        contact="me@example.org",
        url=server.url + "/api.php",
        per_second=0,
        **how,
    )


def test_wikipedia_is_one_request_with_a_contact(server):
    server.answer("/api.php", FOUND)
    tool = wikipedia(server, top_k=2)
    text = "Lake Baikal https://w/Baikal\nA lake.\nIt is deep.\n\nOmul https://w/Omul\n"
    assert tool.run(query=" Lake \nBaikal depth ") == text + "Omul is a fish of Lake Baikal."
    assert tool.run(query="Lake Baikal depth").startswith("Lake Baikal")  # from the cache
    (seen,) = server.seen
    asked = dict(urllib.parse.parse_qsl(seen.query))
    assert asked["gsrsearch"] == "Lake Baikal depth" and asked["gsrlimit"] == "2"
    assert (asked["generator"], asked["maxlag"], asked["exintro"]) == ("search", "5", "1")
    assert seen.headers["user-agent"] == "flow-grpo-jax (me@example.org)"


def test_wikipedia_waits_for_a_lagging_server(server):
    lag = {"error": {"code": "maxlag"}}
    waiting = [lag]

    def route(handler, seen):
        if waiting:
            handler.send(waiting.pop(), MediaWiki_API_Error="maxlag", Retry_After="0")
        else:
            handler.send(FOUND)

    server.routes["/api.php"] = route
    assert wikipedia(server).run(query="Baikal").startswith("Lake Baikal")
    assert len(server.seen) == 2


def test_what_is_wrong_with_wikipedia_is_not_the_models_fault(server):
    server.answer("/api.php", {"error": {"code": "badtoken"}}, {"batchcomplete": True})
    tool = wikipedia(server)
    with pytest.raises(HttpError, match="badtoken"):
        tool.run(query="Baikal")
    assert tool.run(query="Baikal") == "No page found."  # the error was not kept
    tool.probe()
    with pytest.raises(ToolError, match="no word"):
        tool.run(query=" ?! ")
    with pytest.raises(ValueError, match="e-mail address or web page"):
        settings.make("wikipedia_search")


def test_wikipedia_from_a_local_index(tmp_path):
    long = "Water is cold. " * 80 + "Its depth is 1642 metres. " + "It is old. " * 60
    path = tmp_path / "index.sqlite"
    text_index.build(path, [("Lake Baikal", long, "https://w/Baikal"), ("Omul", "A fish.")])
    tool = settings.make("wikipedia_search", index=str(path), top_k=1, max_characters=1200)
    text = tool.run(query="Lake Baikal depth")
    assert text.startswith("Lake Baikal https://w/Baikal\n") and "1642 metres" in text
    assert len(text) < 1300 and not tool.remote and tool.probe is None
    assert tool.run(query="nothing") == "No page found."


# ---- a page of the web -------------------------------------------------------------------------

PAGE = (
    "<html><head><title>Lake &amp; more</title><script>alert('no')</script></head><body>"
    "<nav>Home</nav><main><h1>Baikal</h1><p>It is old.</p><p>Its depth is 1642 metres.</p></main>"
    "<footer>Imprint</footer></body></html>"
)


def reader(server, **how):
    return settings.make(
        "web_search", private_hosts=(server.host,), per_second=0, seconds=2.0, **how
    )


def test_a_page_is_read(server):
    server.answer("/page", PAGE)
    text = reader(server).run(url=server.url + "/page", query="depth")
    assert text.splitlines()[0] == "Lake & more" and "1642 metres" in text
    assert not any(word in text for word in ("alert", "Home", "Imprint", "<"))


def test_a_page_that_takes_too_long_to_read_is_the_models_mistake(server, monkeypatch):
    monkeypatch.setattr(web_search, "MAIN_SECONDS", 0.01)
    monkeypatch.setattr(web_search, "SCAN_SECONDS", 0.01)
    server.answer("/hostile", "<p>a" * 250_000)
    server.answer("/page", PAGE)
    tool = reader(server)
    with pytest.raises(ToolError, match="cannot be read"):
        tool.run(url=server.url + "/hostile", query="a")
    monkeypatch.setattr(web_search, "SCAN_SECONDS", 5.0)
    assert "1642 metres" in tool.run(url=server.url + "/page", query="depth")


def test_long_pages_give_their_best_passages(server):
    paragraphs = [f"<p>{f'Sentence {i} about nothing. ' * 20}</p>" for i in range(50)]
    paragraphs.insert(30, "<p>The depth of Lake Baikal is 1642 metres.</p>")
    server.answer("/page", f"<body>{''.join(paragraphs)}</body>")
    text = reader(server, max_characters=1000).run(url=server.url + "/page", query="Baikal's depth")
    assert "1642 metres" in text and len(text) <= 1000
    server.answer("/page", f"<title>{'long ' * 50_000}</title><p>1642 metres")
    text = reader(server).run(url=server.url + "/page", query="depth")
    assert text == f"{'long ' * 40}\n1642 metres"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (dict(status=404), "status 404"),
        (dict(status=500), "status 500"),
        (dict(type="application/pdf"), "not text"),
        (dict(Content_Encoding="br"), "compressed in a way"),
        (dict(body="<script>1</script>"), "no text"),
        (dict(status=302, Location="http://localhost/"), "cannot be read"),
        (dict(status=302, Location="/page"), "only redirects"),
    ],
)
def test_a_bad_choice_of_page_is_the_models_mistake(server, how, said):
    server.answer("/page", how.pop("body", "text"), **how)
    with pytest.raises(ToolError, match=said):
        reader(server).run(url=server.url + "/page", query="q")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///etc/passwd", "not an address"),
        ("http://127.0.0.1/", "cannot be read"),
        ("http://[::ffff:169.254.169.254]/latest", "cannot be read"),
        ("Lake Baikal", "not an address"),
    ],
)
def test_addresses_that_are_not_read(server, url, said):
    with pytest.raises(ToolError, match=said):
        reader(server).run(url=url, query="q")


def test_a_site_that_says_nonsense_was_a_bad_choice(server):
    server.routes["/"] = lambda handler, seen: handler.wfile.write(b"nonsense\r\n\r\n")
    with pytest.raises(ToolError, match="cannot be read"):
        reader(server).run(url=server.url + "/", query="q")


def test_a_site_that_says_nothing_is_not_the_models_mistake(server):
    server.routes["/"] = lambda handler, seen: handler.connection.close()
    with pytest.raises(HttpError):
        reader(server).run(url=server.url + "/", query="q")


def test_embeddings_may_choose_the_passages(server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "k")
    words = "first " * 130 + ". " + "second " * 130 + ". " + "third " * 130
    server.answer("/page", words, type="text/plain")

    def embed(handler, seen):
        assert seen.headers["authorization"] == "Bearer k" and seen.json["model"] == "m"
        vectors = [
            [1.0, 0.0] if "second" in t or t == "q" else [0.0, 1.0] for t in seen.json["input"]
        ]
        rows = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        handler.send({"data": rows[::-1]})

    server.routes["/v1/embeddings"] = embed
    tool = reader(
        server,
        max_characters=900,
        embeddings_url=server.url + "/v1",
        embeddings_model="m",
        embeddings_key_variable="SOME_KEY",
    )
    tool.probe()
    assert tool.run(url=server.url + "/page", query="q").startswith("second")
    server.answer("/v1/embeddings", {"data": []})
    with pytest.raises(HttpError, match="did not answer embeddings"):
        tool.run(url=server.url + "/page", query="q")


# ---- search services ---------------------------------------------------------------------------

ROW = dict(title="Baikal", link="https://b", url="https://b", snippet="deep", description="deep")
ROW |= dict(content="deep")
GROUNDED = {
    "candidates": [
        {
            "content": {
                "parts": [{"text": "1642 m", "thought": False}, {"text": "hm", "thought": True}]
            },
            "groundingMetadata": {
                "groundingChunks": [{"web": {"uri": "https://b", "title": "b.org"}}]
            },
        }
    ]
}
SERVICES = {  # engine -> path, answer, text for the model, header of the key
    "gemini": (
        "/v1beta/models/gemini-2.5-flash:generateContent",
        GROUNDED,
        "1642 m\nSource: b.org https://b",
        "x-goog-api-key",
    ),
    "serper": ("/search", {"organic": [ROW]}, "Baikal https://b\ndeep", "x-api-key"),
    "brave": (
        "/res/v1/web/search",
        {"web": {"results": [ROW]}},
        "Baikal https://b\ndeep",
        "x-subscription-token",
    ),
    "searxng": ("/search", {"results": [ROW]}, "Baikal https://b\ndeep", ""),
}


@pytest.mark.parametrize("engine", google_search.ENGINES)
def test_each_search_service(server, monkeypatch, engine):
    path, answer, text, header = SERVICES[engine]
    server.answer(path, answer)
    monkeypatch.setenv("MY_KEY", "secret")
    tool = settings.make(
        "google_search", engine=engine, url=server.url, key_variable="MY_KEY", per_second=0
    )
    assert protocol.call(tool, {"query": "Baikal depth"}) == text
    (seen,) = server.seen
    assert "Baikal" in seen.query or "Baikal depth" in str(seen.json)
    assert not header or seen.headers[header] == "secret"
    assert "secret" not in seen.query and engine.lower() in tool.description.lower()
    server.answer(path, ["unexpected"])
    with pytest.raises(HttpError, match="another form"):
        tool.probe()


def test_a_query_that_the_service_refuses_is_the_models_mistake(server, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "secret")
    tool = settings.make("google_search", url=server.url)
    server.answer(SERVICES["gemini"][0], {"promptFeedback": {"blockReason": "SAFETY"}})
    with pytest.raises(ToolError, match="refuses this query"):
        tool.run(query="x")
    with pytest.raises(ToolError, match="empty"):
        tool.run(query=" ")


def test_an_answer_that_echoes_the_key_does_not_show_it(server, monkeypatch):
    key = "sk-proj/AbC+12"
    monkeypatch.setenv("SERPER_API_KEY", key)
    how = dict(engine="serper", url=server.url, max_characters=40)
    server.answer("/search", {"organic": [{"title": "x" * 30 + key, "snippet": key}]})
    text = settings.make("google_search", **how).run(query="x")
    assert text == "x" * 30 + "***\n***"


def test_a_missing_key_and_unknown_engines(monkeypatch):
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="GEMINI_API_KEY is not set"):
        settings.make("google_search").probe()
    with pytest.raises(
        ValueError, match="'bing' is unknown; valid: gemini, serper, brave, searxng"
    ):
        settings.make("google_search", engine="bing")
    with pytest.raises(ValueError, match="needs the address of your server"):
        settings.make("google_search", engine="searxng")
