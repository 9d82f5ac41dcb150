"""Character sets: what browsers mean by a label, and which declaration counts."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools import charsets

# Labels, bytes and what browsers show; the bytes are not in the set that the label names.
SHOWN = [
    ("gb2312", b"\xe9\x46 \x81\x30\x81\x30", "镕 \x80"),  # GBK alone, GB18030 alone
    ("GBK", b"\xa2\xe3", "€"),
    ("shift_jis", b"\x87\x40\xfa\xb1", "①﨑"),
    ("x-sjis", b"\x81\x60", "～"),
    ("euc-kr", b"\x8c\x63 \xb0\xa1", "똠 가"),
    ("ks_c_5601-1987", b"\x8c\x63", "똠"),
    ("iso-8859-1", b"\x93a\x94 \x80", "“a” €"),
    ("latin1", b"\x96", "–"),
    ("US-ASCII", b"\xe9\x85", "é…"),
    ("iso-8859-9", b"\x80\xfd", "€ı"),
    ("tis-620", b"\x80\xa1", "€ก"),
    ("big5", b"\xa4\xa4 \xf9\xd6 \x87\x40", "中 碁 䏰"),
    ("unicode", "aé".encode("utf-16-le"), "aé"),
    ("utf-16be", "aé".encode("utf-16-be"), "aé"),
    ("koi8-ru", b"\xa4", "є"),
    ("windows-31j", b"\xfb\xfc", "髙"),
    ("iso-2022-jp", b"\x1b$B0!\x1b(I1\x1b(B", "亜ｱ"),
    ("cp949", b"\x8c\x63", "똠"),
    ("latin_1", b"\x96", "–"),
]


@pytest.mark.parametrize(("label", "body", "text"), SHOWN)
def test_a_label_means_what_browsers_mean(label, body, text):
    for content_type in (f"text/html; charset={label}", f'text/html;Charset = "{label.upper()}"'):
        assert charsets.decode(body, content_type=content_type, markup=False) == text


def test_every_codec_of_the_table_reads_text():
    for name, label in ((charsets.codec(label), label) for label in charsets._CODECS):
        assert codecs.lookup(name) and b"a\0b\0".decode(name, "replace")
        assert label == label.lower().strip()


@pytest.mark.parametrize(
    "label", ["utf-7", "unicode_escape", "punycode", "idna", "rot13", "hex", "undefined", "", "a/b"]
)
def test_what_is_no_encoding_of_pages(label):
    assert charsets.codec(label) is None


META, EQUIV = '<meta charset="{}">', '<meta http-equiv=Content-Type content="text/html;charset={}">'
XML = '<?xml version="1.0" encoding="{}"?>'
NAMES = [META, EQUIV, XML, "<META\n\tCharSet = '{}' />", "<!-- <meta charset=utf-8> -->" + META]
NAMES += ["<meta charset=nonsense>" + META, '<meta charset="x" charset="koi8-r"><meta charset={}/>']
NAMES += ['<meta content="charset={}" http-equiv="content-type">', "<meta/charset={}>"]
NAMES += ["<meta name=a content='charset=utf-8'>" + META, XML + "<p>", META + EQUIV.format("big5")]


@pytest.mark.parametrize("declared", NAMES)
def test_a_page_may_name_its_encoding(declared):
    page = declared.format("windows-1251") + "Байкал"
    read = charsets.decode(page.encode("cp1251"), content_type="text/html", markup=True)
    assert read == page


@pytest.mark.parametrize(
    "hidden",
    [
        "<!-- <meta charset=koi8-r>",
        "<meta name=description content='charset=koi8-r'>",
        "<p>charset=koi8-r</p>",
        " " * 1024 + "<meta charset=koi8-r>",
        " " + XML.format("koi8-r"),
    ],
)
def test_what_declares_nothing(hidden):
    read = charsets.decode(f"{hidden}é".encode(), content_type="", markup=True)
    assert read == f"{hidden}é"
    plain = (META.format("koi8-r") + "é").encode()
    assert "é" in charsets.decode(plain, content_type="text/plain", markup=False)


def test_the_order_of_declarations():
    def read(body, header="", page=""):
        content_type = f"text/html; charset={header}" if header else "text/html"
        body = page.format("koi8-r").encode() + body
        return charsets.decode(body, content_type=content_type, markup=True)[-1]

    cyrillic = "я".encode("cp1251")
    assert read(cyrillic, "windows-1251", META) == "я"
    assert read("я".encode("koi8-r"), "nonsense", META) == "я"
    assert read("я".encode("koi8-r"), "", META + XML.format("cp866")) == "я"
    for mark, name in ((b"\xef\xbb\xbf", "utf-8"), (b"\xfe\xff", "utf-16-be")):
        assert read(mark + "я".encode(name), "windows-1251") == "я"
    little = b"\xff\xfe" + "aя".encode("utf-16-le")
    assert charsets.decode(little, content_type="text/html; charset=utf-8", markup=True) == "aя"
    for name in ("utf-16-le", "utf-16-be"):
        page = XML.format("utf-16") + "я"
        assert charsets.decode(page.encode(name), content_type="", markup=True) == page
    assert read("я".encode(), "", '<meta charset="utf-16">') == "я"  # its bytes say otherwise


def test_without_a_declaration():
    def read(body):
        return charsets.decode(body, content_type="", markup=False)

    assert read("naïve 漢字".encode()) == "naïve 漢字"
    assert read(b"caf\xe9, 20 \x80") == "café, 20 €"
    assert read("ÄÖÜ ".encode() + b"\xff") == "ÄÖÜ \ufffd"  # one wrong byte is not another set
    assert read("\ufffd".encode()) == "\ufffd"


@given(st.binary(max_size=200), st.sampled_from([*charsets._CODECS, "nonsense"]), st.booleans())
def test_any_bytes_are_read(body, label, in_page):
    page = f"<meta charset={label}>".encode() + body if in_page else body
    header = "" if in_page else f"text/html; charset={label}"
    assert isinstance(charsets.decode(page, content_type=header, markup=True), str)
