"""Wikipedia: the introductions of the best pages by one request, or passages of a local index.

The API requires a contact (https://www.mediawiki.org/wiki/API:Etiquette); training at scale should
search a local index instead.
"""

import functools
import urllib.parse

from tools import http_client, passages, search_answers, text_index
from tools.protocol import Parameter, Tool, ToolError

MAX_QUERY = 300  # characters, the limit of the search
CACHED = 4096  # answers
LATER = ("maxlag", "ratelimited", "readonly")  # MediaWiki says so with status 200


def make(
    *,
    contact: str,
    index: str,
    url: str,
    top_k: int,
    max_characters: int,
    per_second: float,
    seconds: float,
) -> Tool:
    """Builds the tool.

    Args:
      contact: your e-mail address or web page; required by the live API.
      index: file of experiments.index to search instead of the API.
      url: api.php of any MediaWiki, such as a mirror.
      top_k: pages in one answer.
      max_characters: length of one answer, shared by its pages.
      per_second: most requests a second.
      seconds: deadline of one call.
    """
    if top_k < 1 or max_characters < top_k:
        raise ValueError(f"top_k={top_k} and max_characters={max_characters} do not fit.")
    if index:
        search, probe = text_index.Index.open(index).search, None
        what = "the best passages of the best matching pages"
    else:
        if "@" not in contact and "." not in contact:
            raise ValueError(
                "wikipedia_search needs your e-mail address or web page, by the rules of its API: "
                "--config.tools.wikipedia_search.contact=you@example.org; or a local index."
            )
        search, probe = _api(url, contact, per_second, seconds)
        what = "the introductions of the best matching pages"

    def run(*, query: str) -> str:
        query = " ".join(query.split())[:MAX_QUERY]
        if not text_index.words(query):
            raise ToolError(f"The query {query[:80]!r} has no word to search for.")
        documents = search(query, top_k=top_k)
        if not documents:
            return "No page found."
        share = max_characters // len(documents)
        return "\n\n".join(_shown(document, query, share) for document in documents)

    return Tool(
        name="wikipedia_search",
        description=f"Searches Wikipedia, and returns {what} with their addresses.",
        parameters=(Parameter("query", "str", "a name and what to find out about it"),),
        limits=f"At most {top_k} pages. Finds pages by their words; one subject per query.",
        demo='wikipedia_search(query="Lake Baikal depth")',
        run=run,
        seconds=seconds,
        probe=probe,
        remote=not index,
    )


def _shown(document, query, most):
    head = f"{document.title} {document.url}".strip()
    return f"{head}\n{passages.best(query, document.text, max_characters=most)}"


def _api(url, contact, per_second, seconds):
    client = http_client.Client(
        seconds=seconds,
        per_second=per_second,
        breaker_failures=5,
        private_hosts=(http_client.service_host(url),),
        agent=f"{http_client.AGENT} ({contact})",
    )

    def ask(**parameters):
        fixed = dict(action="query", format="json", formatversion=2, maxlag=5)
        answer = client.json(
            f"{url}?{urllib.parse.urlencode(fixed | parameters)}",
            busy=lambda response: response.headers.get("mediawiki-api-error") in LATER,
        )
        error = answer.get("error") if isinstance(answer, dict) else None
        if error:
            code = error.get("code") if isinstance(error, dict) else error
            raise http_client.HttpError("format", f"{url} answered with the error {code!s:.100}.")
        try:
            return search_answers.wikipedia(answer)
        except search_answers.Malformed as error:
            raise http_client.HttpError(
                "format", f"{url} answered in another form than expected."
            ) from error

    @functools.lru_cache(CACHED)
    def search(query, *, top_k):
        found = ask(
            generator="search",
            gsrsearch=query,
            gsrlimit=top_k,
            prop="extracts|info",
            exintro=1,
            explaintext=1,
            exlimit="max",
            inprop="url",
        )
        return tuple(text_index.Document(*page) for page in found)

    return search, lambda: ask(meta="siteinfo")
