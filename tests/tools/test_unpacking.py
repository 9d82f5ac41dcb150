"""Compressed bodies: whole, in members, unfinished, damaged, mislabelled, and far too large."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools import unpacking

TEXT = b"".join(b"line %d of a page\n" % i for i in range(3000))
MOST = 2_000_000


def unpack(body, coding="gzip", *, most=MOST):
    return unpacking.unpacked(body, coding, most=most)


def raw(body):
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return squeeze.compress(body) + squeeze.flush()


PACKED = gzip.compress(TEXT)


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (PACKED, "gzip"),
        (PACKED, " X-GZIP "),
        (PACKED, "deflate"),  # sites mix them up
        (zlib.compress(TEXT), "deflate"),
        (zlib.compress(TEXT), "gzip"),
        (raw(TEXT), "deflate"),
        (gzip.compress(TEXT[:5]) + gzip.compress(b"") + gzip.compress(TEXT[5:]), "gzip"),
        (b"".join(gzip.compress(TEXT[i : i + 99]) for i in range(0, len(TEXT), 99)), "gzip"),
        (PACKED + b"\0" * 9000, "gzip"),
        (PACKED + b"\r\n", "gzip"),
        (PACKED[:-8], "gzip"),  # neither checksum nor length
        (PACKED[:-8] + b"\1" * 8, "gzip"),  # wrong ones
        (gzip.compress(PACKED), "gzip, gzip"),
        (gzip.compress(raw(TEXT)), "deflate, gzip"),
        (TEXT, ""),
        (TEXT, "identity"),
        (TEXT, "utf-8"),  # nothing that browsers know
    ],
)
def test_the_content_comes_back(body, coding):
    assert unpack(body, coding) == (TEXT, False)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, raw])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_an_unfinished_archive_gives_its_beginning(pack, share):
    packed = pack(TEXT)
    content, cut = unpack(packed[: int(len(packed) * share)], "deflate")
    assert TEXT.startswith(content) and len(content) > len(TEXT) * (share - 0.2) and not cut


def test_a_damaged_archive_gives_what_comes_before():
    at = len(PACKED) // 2
    content, _ = unpack(PACKED[:at] + b"\xff" * 40 + PACKED[at:])
    assert len(content) > 10_000 and content[:10_000] == TEXT[:10_000]
    content, _ = unpack(PACKED + PACKED[:20] + b"\xff" * 40)
    assert content.startswith(TEXT)


def test_what_is_no_archive():
    assert unpack(b"") == (b"", False)
    for body, coding in ((b"<html>", "gzip"), (b"\x1f\x8bno", "gzip"), (TEXT, "deflate")):
        with pytest.raises(unpacking.Broken):
            unpack(body, coding)


@pytest.mark.parametrize(
    ("coding", "named"),
    [("br", "br"), ("ZSTD", "zstd"), ("gzip, br", "br"), ("compress", "compress")]
    + [("gzip, " * 3 + "gzip", "4 of them")],
)
def test_what_nobody_asked_for(coding, named):
    with pytest.raises(unpacking.Unsupported, match=named):
        unpack(PACKED, coding)


@pytest.mark.parametrize("most", [1, 4096, 50_000])
def test_a_content_that_is_too_long_is_cut(most):
    for body in (gzip.compress(b"\0" * 10**7), gzip.compress(b"\0" * (most + 1)), PACKED + PACKED):
        content, cut = unpack(body, most=most)
        assert len(content) == most and cut
    assert unpack(gzip.compress(b"\0" * most), most=most) == (b"\0" * most, False)
    twice = gzip.compress(gzip.compress(b"\0" * 10**8))
    assert unpack(twice, "gzip, gzip", most=10**6) == (b"\0" * 10**6, True)


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate", "gzip, deflate"]), st.data())
def test_any_body_is_read_or_refused(body, coding, data):
    packed = bytearray(gzip.compress(body))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(0, 255))
    for sent in (body, bytes(packed), bytes(packed) + body):
        try:
            content, _ = unpack(sent, coding, most=200)
        except unpacking.Broken:
            continue
        assert len(content) <= 200
