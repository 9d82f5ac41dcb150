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


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("about 10<sup>6</sup> of x<sub>1</sub>", "about 10^6 of x_1"),
        ("10<SUP class=a>\n-3 </SUP>m", "10^-3 m"),
        ("<i>x</i><sup><b>n+1</b></sup>, e<sup>i&pi;</sup>", "x^(n+1), e^(iπ)"),
        ("x<sup>2n</sup>, x<sup>1/2</sup>, x<sup>2.5</sup>", "x^(2n), x^(1/2), x^2.5"),
        ("2<sup>2<sup>3</sup></sup> &pi;<sup>2</sup>", "2^(2^3) π^2"),
        ("H<sub>2</sub>SO<sub>4</sub>, SO<sub>4</sub><sup>2−</sup>", "H_2SO_4, SO_4^2−"),
        ("(a+b)<sup>2</sup> f<sup>(4)</sup> T<sub>max</sub>", "(a+b)^2 f^(4) T_max"),
        ("x<sup>a&lt;b</sup>", "x^(a<b)"),
        ("1<sup>1</sup>/<sub>2</sub>, <sup>2</sup>&frasl;<sub>3</sub>", "1 1/2, 2/3"),
        ("19<sup>th</sup> 2<sup>e</sup> x<sup>e</sup> T<sub>th</sub>", "19th 2e x^e T_th"),
        ("25<sup>°</sup>C Foo<sup>&reg;</sup> Foo<sup>TM</sup>", "25°C Foo® FooTM"),
        ("of <sup>14</sup>C<p><sup>1</sup> See</p>", "of 14C\n1 See"),
        ("1642<sup>[1]</sup> m<sup id=x><a href='#n'>[2]</a></sup>", "1642[1] m[2]"),
        ("1642<sup><a class=a href=#n>3</a></sup>", "1642[3]"),
        ("1642<sup><a href=#n>&lt;i&gt;</a></sup>", "1642[<i>]"),
        ("x<sup>6 and y</sub>7<sup></sup>", "x6 and y7"),
        ("<script>a<sup>2</sup></script><textarea>a<sup>2</sup></textarea>b", "b"),
    ],
)
def test_raised_and_lowered_text_keeps_its_meaning(page, text):
    assert page_text.scan(page)[1] == text


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("&#" + "9" * 5_000 + ";", "\ufffd"),
        ("&#" + "9" * 5_000, "\ufffd"),
        ("&#" + "0" * 5_000 + "65;", "A"),
        ("&#0000000065x", "Ax"),
        ("&#x" + "f" * 20_000 + ";", "\ufffd"),
        ("&#128512;&#1114112;&#00000000;", "😀\ufffd\ufffd"),
    ],
)
def test_references_to_characters_of_any_number(reference, text):
    for page in ("<p>{}</p>", "<title>{}</title>", "1<sup>a{}</sup>"):
        found = "".join(page_text.scan(page.format(reference)))
        assert found.strip("1^()").removeprefix("a") == text


HOSTILE = ["<", "<div>", "<!--", '<a b="', "&", "<!", "<?", "</", "<nav>", "</nav>", "<a", "a"]
HOSTILE += ["<script>", "<title>", "&#x", " ", "\n", "<main>", "<![CDATA[", "<p", "a ", "."]
HOSTILE += [
    "<sup>",
    "</sup>",
    "1<sup>2</sup>",
    "1<sub><sup>",
    "<b></b><sup>1</sup>",
    "1<sup>2</sup>/<sub>",
]


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
    assert page_text.extract("<title>T</title>10<sup>6</sup>") == ("T", "10^6")
    other.extract = lambda page, **how: page
    assert page_text.extract("10<sup>6</sup>") == ("", "10^6")
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    assert page_text.extract("<title>T</title><p>x") == ("T", "x")


# A page as sites send them; {begins} and {ends} stand around what is to be read.
SAVED = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Lake Baikal</title>
<script>if (1 < 2) document.write("<p>script</p>")</script><style>.a { color: red }</style></head>
<body class="site"><div id="cookies" class="cookie-banner"><p>We use cookies to improve your
experience. <button>Accept all</button></p></div><header><a href="/">Home</a></header>
<nav><ul><li><a href="/a">Lakes</a></li><li><a href="/b">Rivers</a></li></ul></nav>
{begins}<h1>Lake Baikal</h1><p>Lake Baikal is a rift lake in Russia. It is situated in southern
Siberia, between Irkutsk Oblast to the northwest and Buryatia to the southeast.</p>
<table><tr><th>Max. depth</th><td>1,642 m</td></tr><tr><th>Area</th><td>31,722 km2</td></tr></table>
<h2>Geography</h2><p>It is the deepest lake of the world, and with 23,615 cubic kilometres it holds
more water than all the North American Great Lakes together.</p>
<ul><li>Inflow: Selenga, Barguzin</li><li>Outflow: Angara</li></ul>
<p>The lake is about 25 million years old, the oldest one of the world &amp; still growing.</p>
{ends}
<aside><h3>Related</h3><a href="/t">Tanganyika is the second deepest</a></aside>
<div id="comments" class="comments"><h3>Comments</h3><p>user1: I think it is 2,000 metres
deep, first comment here!</p></div><footer><p>Copyright Encyclopedia Ltd.</p></footer></body></html>
"""
FACTS = ("rift lake in Russia", "1,642 m", "31,722 km2", "23,615 cubic", "Barguzin", "Angara")
FACTS += ("25 million years old, the oldest one of the world & still growing",)
CLUTTER = ("script", "color", "Rivers", "Home", "Tanganyika", "Copyright", "Accept")
AROUND = ("cookies", "user1")  # only their meaning tells that they are no part of the article


@pytest.mark.parametrize(
    ("begins", "ends", "misses"),
    [
        ("<main><article>", "</article></main>", ()),
        ('<div id="content" class="content">', "</div>", AROUND),
    ],
)
def test_trafilatura_keeps_the_same_facts_and_drops_more(begins, ends, misses):
    """The real one, and by how much the scanner of tags is behind: `misses`."""
    pytest.importorskip("trafilatura", exc_type=ImportError, reason="of the extra web")
    page = SAVED.replace("{begins}", begins).replace("{ends}", ends)
    scanned, extracted = page_text.scan(page), page_text.extract(page)
    assert scanned[0] == extracted[0] == "Lake Baikal" and scanned[1] != extracted[1]
    for _, text in (scanned, extracted):
        plain = " ".join(text.split())
        assert [fact for fact in FACTS if fact not in plain] == []
        assert [word for word in CLUTTER if word in plain] == []
    assert tuple(word for word in AROUND if word in scanned[1]) == misses
    assert not any(word in extracted[1] for word in AROUND)


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
