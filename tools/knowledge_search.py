"""Search over a set of articles: those in the repository, an index file, or a search service."""

from collections.abc import Iterable

from tools import http_client, knowledge_base, search_answers, text_index
from tools.protocol import Parameter, Tool

MAX_QUERY = 1_000  # characters that are sent to a service


def make(
    articles: Iterable[knowledge_base.Article | tuple[str, str]] | None = None,
    *,
    index: str,
    url: str,
    top_k: int,
    max_characters: int,
    seconds: float,
) -> Tool:
    """Builds the search tool.

    Args:
      articles: any (title, text) pairs; None takes the embedded knowledge base.
      index: file of experiments.index to search instead of `articles`.
      url: service to ask instead: POST {"query": str, "k": int} answers a list of
        {"title", "text"}, best first; further fields are ignored.
      top_k: articles in one answer.
      max_characters: length of one answer; a longer one is cut and says so.
      seconds: deadline of one call.
    """
    if top_k < 1 or max_characters < 1:
        raise ValueError(f"top_k={top_k} and max_characters={max_characters} must be positive.")
    if index and url:
        raise ValueError(f"knowledge_search takes an index ({index}) or a url ({url}), not both.")
    if url:
        search, subject = _service(url, seconds), "a collection of articles"
    elif index:
        search, subject = text_index.Index.open(index).search, "a collection of articles"
    else:
        articles = knowledge_base.articles() if articles is None else articles
        search = text_index.Index.of(_pair(article) for article in articles).search
        subject = (
            "an encyclopedia of countries, US states, chemical elements, books, people and places"
        )

    def run(*, query: str) -> str:
        documents = search(query, top_k=top_k)
        if not documents:
            return "No article found."
        text = "\n".join(" ".join(document.text.split()) for document in documents)
        return text if len(text) <= max_characters else text[:max_characters] + " [cut]"

    return Tool(
        name="knowledge_search",
        description=f"Searches {subject}, and returns the best matching articles.",
        parameters=(Parameter("query", "str", "a name and what to find out about it"),),
        limits=(
            "Finds articles by their words, not by meaning; one subject per query. "
            "It does not reason or compute."
        ),
        demo='knowledge_search(query="Spain capital")',
        run=run,
        seconds=seconds,
        probe=(lambda: search("Spain", top_k=1)) if url else None,
        remote=bool(url),
    )


def _service(url, seconds):
    client = http_client.Client(
        seconds=seconds,
        breaker_failures=5,
        private_hosts=(http_client.service_host(url),),
    )

    def search(query, *, top_k):
        rows = client.json(url, body={"query": query[:MAX_QUERY], "k": top_k})
        try:
            return [text_index.Document(*row) for row in search_answers.articles(rows)[:top_k]]
        except search_answers.Malformed as error:
            raise http_client.HttpError(
                "format", f"{url} did not answer a list of objects with title and text."
            ) from error

    return search


def _pair(article):
    if isinstance(article, knowledge_base.Article):
        return article.title, article.text
    return article
