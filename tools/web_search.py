"""Reads one page of the web and returns the passages that answer a query."""

import importlib.util
import math

from tools import children, http_client, keys, page_text, passages
from tools.protocol import Parameter, Tool, ToolError

TYPES = (*http_client.HTML, "text/plain", "text/markdown", "text/csv", "application/json")
MAX_PASSAGES = 256  # that are embedded
MAX_QUERY, MAX_TITLE = 1_000, 200  # characters
# Of the processes that read pages.
READERS, READER_BYTES = 4, 2 * 2**30
MAIN_SECONDS, SCAN_SECONDS = 5.0, 3.0  # to find the main text of a page; all of its text

# Texts for the model. A site that answered badly, or does not exist, was chosen badly; silence may
# be a fault of this machine, not of the model.
SAID = {
    "url": "This is not an address of a page; write http:// or https:// and a host.",
    "address": "This address cannot be read.",
    "name": "There is no such host.",
    "tls": "The site has no valid certificate.",
    "slow": "The page took too long.",
    "broken": "The page cannot be read.",
    "size": "The page comes in too many pieces.",
    "redirects": "The page only redirects.",
    "type": "The page is not text.",
    "encoding": "The page is compressed in a way that cannot be read.",
    "format": "The page cannot be read.",
}


def make(
    *,
    max_characters: int,
    per_second: float,
    private_hosts: tuple[str, ...],
    embeddings_url: str,
    embeddings_model: str,
    embeddings_key_variable: str,
    seconds: float,
) -> Tool:
    """Builds the tool.

    Args:
      max_characters: length of one answer.
      per_second: most pages a second.
      private_hosts: "host:port" that may be read although their addresses are private.
      embeddings_url: base URL of an OpenAI-compatible server whose embeddings choose the passages,
        such as http://localhost:8000/v1; BM25 chooses without one.
      embeddings_model: its model.
      embeddings_key_variable: environment variable with its key; "" for none.
      seconds: deadline of one call.
    """
    if max_characters < 1:
        raise ValueError(f"max_characters={max_characters} must be positive.")
    client = http_client.Client(
        seconds=seconds, attempts=2, per_second=per_second, private_hosts=tuple(private_hosts)
    )
    readers = children.Children("tools.page_text", most=READERS, memory_bytes=READER_BYTES)
    score, probe = passages.scores, None
    if embeddings_url:
        score = _embeddings(embeddings_url, embeddings_model, embeddings_key_variable, seconds)
        probe = lambda: score("a", ["a"])

    def run(*, url: str, query: str) -> str:
        try:
            page = client.request(url.strip(), types=TYPES, cut=True)
        except http_client.HttpError as error:
            if error.reason == "status":
                raise ToolError(f"The site answered with status {error.status}.") from error
            if error.reason in SAID:
                raise ToolError(SAID[error.reason]) from error
            raise
        title, text = _read(page.text()) if page.type in http_client.HTML else ("", page.text())
        if not text.strip():
            raise ToolError("The page has no text.")
        chosen = _chosen(query[:MAX_QUERY], text)
        return "\n".join(part for part in (title[:MAX_TITLE], chosen) if part)

    def _read(page):
        page = page[: page_text.MAX_CHARACTERS]
        main = importlib.util.find_spec("trafilatura") is not None
        for whole, most in [(True, MAIN_SECONDS)] * main + [(False, SCAN_SECONDS)]:
            if found := readers.ask({"page": page, "whole": whole}, seconds=most):
                return found
        raise ToolError("The page cannot be read.")

    def _chosen(query, text):
        text = text.strip()
        if len(text) <= max_characters:
            return text
        parts = passages.split(text)
        return passages.join(parts, score(query, parts), max_characters=max_characters)

    return Tool(
        name="web_search",
        description="Reads one web page, and returns its passages that answer a query best.",
        parameters=(
            Parameter("url", "str", "the address of the page"),
            Parameter("query", "str", "what to find on the page"),
        ),
        limits=(
            "It reads the page at that address and no other; it cannot search for pages. "
            "Text only: no PDF, no images, no scripts."
        ),
        demo='web_search(url="https://en.wikipedia.org/wiki/Lake_Baikal", query="How deep is it?")',
        run=run,
        seconds=seconds + MAIN_SECONDS + SCAN_SECONDS,
        probe=probe,
        remote=True,
    )


def _embeddings(base, model, variable, seconds):
    """Makes a function like passages.scores: cosines of embeddings of the best by BM25."""
    client = http_client.Client(
        seconds=seconds,
        breaker_failures=5,
        private_hosts=(http_client.service_host(base),),
    )

    def score(query, parts):
        by_words = passages.scores(query, parts)
        some = sorted(range(len(parts)), key=lambda i: (-by_words[i], i))[:MAX_PASSAGES]
        key = keys.api_key(variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answer = client.json(
            base.rstrip("/") + "/embeddings",
            body={"model": model, "input": [query, *(parts[i] for i in some)]},
            headers=headers,
        )
        try:
            vectors = [row["embedding"] for row in sorted(answer["data"], key=lambda r: r["index"])]
            cosines = [_cosine(vectors[0], vector) for vector in vectors[1:]]
            scores = [-2.0] * len(parts)  # below every cosine
            for i, cosine in zip(some, cosines, strict=True):
                scores[i] = cosine
        except (TypeError, KeyError, ValueError, IndexError, OverflowError) as error:
            raise http_client.HttpError("format", f"{base} did not answer embeddings.") from error
        return scores

    return score


def _cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.hypot(*a) * math.hypot(*b) or 1.0)
