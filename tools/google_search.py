"""Web search by a service: Gemini with Google search, Serper, Brave, or your own SearXNG.

The key is read from an environment variable when needed, and never stored.
"""

import dataclasses
import urllib.parse
from collections.abc import Callable

from tools import http_client, keys, search_answers
from tools.protocol import Parameter, Tool, ToolError

MAX_QUERY = 1_000  # characters


@dataclasses.dataclass(frozen=True)
class Engine:
    """A search service.

    what: the tool's use of it, described for the model.
    limits: its limits, described for the model.
    url: default base URL; "" if each user has one.
    key_variable: default environment variable of the key; "" if there is none.
    request: (base URL, key, query, top_k, model) -> arguments of `Client.json`.
    read: one of `search_answers`.
    """

    what: str
    limits: str
    url: str
    key_variable: str
    request: Callable
    read: Callable


def make(
    *,
    engine: str,
    url: str,
    model: str,
    key_variable: str,
    top_k: int,
    max_characters: int,
    per_second: float,
    seconds: float,
) -> Tool:
    """Builds the tool.

    Args:
      engine: a key of ENGINES.
      url: base URL; the service's own if empty. SearXNG needs one.
      model: of Gemini.
      key_variable: environment variable that holds the key; the usual one if empty.
      top_k: results in one answer; Gemini decides by itself.
      max_characters: length of one answer; a longer one is cut and says so.
      per_second: most requests a second.
      seconds: deadline of one call.
    """
    if engine not in ENGINES:
        raise ValueError(f"Search engine {engine!r} is unknown; valid: {', '.join(ENGINES)}.")
    service = ENGINES[engine]
    base = (url or service.url).rstrip("/")
    if not base:
        raise ValueError(
            f"{engine} needs the address of your server: --config.tools.google_search.url=http://…"
        )
    variable = key_variable or service.key_variable
    client = http_client.Client(
        seconds=seconds,
        per_second=per_second,
        breaker_failures=5,
        private_hosts=(http_client.service_host(base),),
    )

    def ask(query):
        key = keys.api_key(variable)
        answer = client.json(**service.request(base, key, query, top_k, model), idempotent=False)
        try:
            return keys.masked(service.read(answer, top_k), key)
        except search_answers.Refused as error:
            raise ToolError(keys.masked(str(error), key)) from error
        except search_answers.Malformed as error:
            raise http_client.HttpError(
                "format", f"{engine} answered in another form than expected."
            ) from error

    def run(*, query: str) -> str:
        query = " ".join(query.split())[:MAX_QUERY]
        if not query:
            raise ToolError("The query is empty; write what to search for.")
        text = ask(query)
        if not text:
            return "Nothing found."
        return text if len(text) <= max_characters else text[:max_characters] + " [cut]"

    return Tool(
        name="google_search",
        description=service.what,
        parameters=(Parameter("query", "str", "what to search for"),),
        limits=service.limits,
        demo='google_search(query="How deep is Lake Baikal?")',
        run=run,
        seconds=seconds,
        probe=lambda: ask("Lake Baikal"),
        remote=True,
    )


def _ask_gemini(base, key, query, top_k, model):
    return dict(
        url=f"{base}/v1beta/models/{urllib.parse.quote(model)}:generateContent",
        headers={"x-goog-api-key": key},
        body={
            "contents": [{"role": "user", "parts": [{"text": query}]}],
            "tools": [{"google_search": {}}],
        },
    )


SNIPPETS = (
    "It returns short extracts, which may be out of date or wrong; pages are not opened. "
    "It does not reason or compute."
)
ENGINES = {
    "gemini": Engine(
        "Asks a language model (Gemini) that searches with Google, and returns its answer with "
        "the addresses of its sources.",
        "The answer is written by a model, which may misread its sources. It sees only the query.",
        "https://generativelanguage.googleapis.com",
        "GEMINI_API_KEY",
        _ask_gemini,
        search_answers.gemini,
    ),
    "serper": Engine(
        "Searches the web with Google (by Serper), and returns titles, addresses and extracts.",
        SNIPPETS,
        "https://google.serper.dev",
        "SERPER_API_KEY",
        lambda base, key, query, top_k, model: dict(
            url=f"{base}/search", headers={"X-API-KEY": key}, body={"q": query, "num": top_k}
        ),
        search_answers.serper,
    ),
    "brave": Engine(
        "Searches the web with Brave, not Google, and returns titles, addresses and extracts.",
        SNIPPETS,
        "https://api.search.brave.com",
        "BRAVE_API_KEY",
        lambda base, key, query, top_k, model: dict(
            url=f"{base}/res/v1/web/search?"
            + urllib.parse.urlencode({"q": query[:400], "count": top_k}),
            headers={"X-Subscription-Token": key, "Accept": "application/json"},
        ),
        search_answers.brave,
    ),
    "searxng": Engine(
        "Searches the web with several engines (by SearXNG), and returns titles, addresses and "
        "extracts.",
        SNIPPETS,
        "",
        "",
        lambda base, key, query, top_k, model: dict(
            url=f"{base}/search?" + urllib.parse.urlencode({"q": query, "format": "json"})
        ),
        search_answers.searxng,
    ),
}
