"""Text of pages and passages of texts: what stays, what is dropped, and that none takes long."""

import sys
import time
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools import page_text, passages


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>one</p><p>two  &lt;b&gt;\n three</p>", "one\ntwo <b> three"),
        ("a<br>b<!-- <p>no</p> -->c", "a\nbc"),
        ("<nav>no<ul><li>no</ul></nav><p>yes", "yes"),
        ("<body>out<article>in</article>out</body>", "in"),
        ("<body>out<main></main></body>", "out"),
        ("<script>if (a < b) '</p>'</script>x<STYLE>p{}</Style>y", "xy"),
        ("<header>no<body>yes", "yes"),
        ("plain & simple < text", "plain & simple < text"),
        ("<p>no end <script>", "no end"),
        ("", ""),
    ],
)
def test_text_of_pages(page, text):
    assert page_text.scan(page)[1] == text


HOSTILE = ["<", "<div>", "<!--", '<a b="', "&", "<!", "<?", "</", "<nav>", "</nav>", "<a", "a"]
HOSTILE += ["<script>", "<title>", "&#x", " ", "\n", "<main>", "<![CDATA[", "<p", "a ", "."]


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_pages_take_linear_time(piece):
    start = time.monotonic()
    title, text = page_text.scan(piece * (200_000 // len(piece)))
    passages.best("a b", text, max_characters=100)
    assert time.monotonic() - start < 1.0  # about 0.1


@given(st.lists(st.sampled_from([*HOSTILE, ">", "-->", "</script>", "</main>", "é", "İ"])))
def test_any_page_has_a_text(pieces):
    title, text = page_text.scan("".join(pieces))
    assert isinstance(title, str) and "\n\n" not in text


def test_trafilatura_is_used_where_it_is_installed(monkeypatch):
    other = types.SimpleNamespace(extract=lambda page, **how: "main" if "<p>" in page else None)
    monkeypatch.setitem(sys.modules, "trafilatura", other)
    assert page_text.extract("<title>T</title><p>x") == ("T", "main")
    assert page_text.extract("<title>T</title>x") == ("T", "x")
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    assert page_text.extract("<title>T</title><p>x") == ("T", "x")


def test_trafilatura_itself():
    try:
        import trafilatura  # noqa: F401
    except ImportError:
        pytest.skip("trafilatura is not installed, or without lxml_html_clean")
    story = "<p>The lake is the deepest one of the world, and also one of the oldest.</p>" * 5
    page = f"<title>T</title><nav>Home</nav><article>{story}</article><footer>No</footer>"
    title, text = page_text.extract(page)
    assert title == "T" and "deepest" in text and "Home" not in text


@given(st.text(alphabet="ab .\n漢", max_size=400), st.integers(1, 30))
def test_passages_are_the_text_in_pieces(text, words):
    found = passages.split(text, words=words)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_the_best_passages_come_in_the_order_of_the_text():
    found = ["the cat sat", "a dog ran", "cats and dogs", "nothing here"]
    scores = passages.scores("cat dog", found)
    assert max(scores) == scores[2] and scores[3] == 0
    assert passages.join(found, scores, max_characters=26) == "the cat sat\ncats and dogs"
    assert passages.join(found, scores, max_characters=4) == "cats [cut]"
    assert passages.join([], [], max_characters=4) == ""
