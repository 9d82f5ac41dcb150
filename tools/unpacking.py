"""Undoes the compression of an HTTP body, within a size, whatever was sent."""

import zlib

BLOCK = 4096  # bytes unpacked at once; what is left of one is copied for each member of an archive
MAX_CODINGS = 3  # around one another
PACKED = {"gzip", "x-gzip", "deflate"}
OTHERS = {"br", "compress", "dcb", "dcz", "x-compress", "zstd"}  # nobody asked for them


class Unsupported(Exception):
    """The body is compressed in a way that is not read; the message names it."""


class Broken(Exception):
    """Nothing can be read of the archive."""


def unpacked(body: bytes, coding: str, *, most: int) -> tuple[bytes, bool]:
    """Returns (content, whether it was cut) of a body.

    All members of an archive count. One that ends too early or is damaged gives what could be read
    of it. Names that are no compression, such as identity, change nothing, as in browsers.

    Args:
      coding: value of the header Content-Encoding.
      most: bytes of the content; what is longer is cut.

    Raises:
      Unsupported, Broken.
    """
    names = [name.strip().lower() for name in coding.split(",")]
    for name in names:
        if name in OTHERS:
            raise Unsupported(name)
    names = [name for name in names if name in PACKED]
    if len(names) > MAX_CODINGS:
        raise Unsupported(f"{len(names)} of them around one another")
    cut = False
    for name in reversed(names):
        body, longer = _unpacked(body, most, deflate=name == "deflate")
        cut = cut or longer
    return body, cut


def _unpacked(body, most, *, deflate):
    content, cut, damaged = _members(body, zlib.MAX_WBITS | 32, most)  # gzip or zlib
    if damaged and not content:
        if not deflate:
            raise Broken
        content, cut, damaged = _members(body, -zlib.MAX_WBITS, most)  # without a header
        if damaged:
            raise Broken
    return content, cut


def _members(body, bits, most):
    """Returns (content, whether it was cut, whether it is damaged)."""
    content, at = bytearray(), 0
    unpack = zlib.decompressobj(bits)
    while at < len(body):
        block, before = body[at : at + BLOCK], unpack.copy()
        try:
            content += unpack.decompress(block, most + 1 - len(content))
        except zlib.error:
            content += _before_damage(before, block, most + 1 - len(content))
            return bytes(content[:most]), len(content) > most, True
        if len(content) > most:
            return bytes(content[:most]), True, False
        at += len(block) - len(unpack.unused_data)
        if unpack.eof:
            if not body.startswith(b"\x1f\x8b", at):  # the end, or padding
                break
            unpack = zlib.decompressobj(bits)
    return bytes(content), False, False


def _before_damage(unpack, block, most):
    content = bytearray()
    try:
        for i in range(len(block)):
            content += unpack.decompress(block[i : i + 1], most)
            if len(content) >= most:
                break
    except zlib.error:
        return content
    return content
