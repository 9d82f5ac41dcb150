"""The character set of a page, as browsers find it (https://encoding.spec.whatwg.org).

A label means what browsers mean by it: pages that say gb2312 or iso-8859-1 are written in supersets
of these. Of the table's encodings Python has no EUC-JP with the vendors' characters and no
x-user-defined; iso-2022-cn, and names outside the table such as UTF-7, are none.
"""

import codecs
import html
import re

META_BYTES = 1024  # that may declare it
_LABELS = {  # Python's codec: labels
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8",
    "cp866": "866 cp866 csibm866 ibm866",
    "iso8859-2": "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 "
    "l2 latin2",
    "iso8859-3": "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 "
    "l3 latin3",
    "iso8859-4": "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 "
    "l4 latin4",
    "iso8859-5": "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5 "
    "iso_8859-5:1988",
    "iso8859-6": "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 "
    "iso-8859-6-e iso-8859-6-i iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987",
    "iso8859-7": "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 "
    "iso88597 iso_8859-7 iso_8859-7:1987 sun_eu_greek",
    "iso8859-8": "csiso88598e csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-ir-138 iso8859-8 "
    "iso88598 iso_8859-8 iso_8859-8:1988 visual csiso88598i iso-8859-8-i logical",
    "iso8859-10": "csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6",
    "iso8859-13": "iso-8859-13 iso8859-13 iso885913",
    "iso8859-14": "iso-8859-14 iso8859-14 iso885914",
    "iso8859-15": "csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9",
    "iso8859-16": "iso-8859-16",
    "koi8-r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8-u": "koi8-ru koi8-u",
    "mac-roman": "csmacintosh mac macintosh x-mac-roman",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp1250": "cp1250 windows-1250 x-cp1250",
    "cp1251": "cp1251 windows-1251 x-cp1251",
    "cp1252": "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 "
    "iso8859-1 iso88591 iso_8859-1 iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252",
    "cp1253": "cp1253 windows-1253 x-cp1253",
    "cp1254": "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 "
    "iso_8859-9:1989 l5 latin5 windows-1254 x-cp1254",
    "cp1255": "cp1255 windows-1255 x-cp1255",
    "cp1256": "cp1256 windows-1256 x-cp1256",
    "cp1257": "cp1257 windows-1257 x-cp1257",
    "cp1258": "cp1258 windows-1258 x-cp1258",
    "mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "gb18030": "chinese csgb2312 csiso58gb231280 gb18030 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 "
    "x-gbk",
    "hz": "hz-gb-2312",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc_jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    "iso2022_jp_ext": "csiso2022jp iso-2022-jp",
    "cp932": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
    "cp949": "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 "
    "ksc_5601 windows-949",
    "iso2022_kr": "csiso2022kr iso-2022-kr",
    "utf-16-be": "unicodefffe utf-16be",
    "utf-16-le": "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le",
}
_CODECS = {label: codec for codec, labels in _LABELS.items() for label in labels.split()}
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_MARKS += ((codecs.BOM_UTF16_LE, "utf-16-le"),)
_LABEL = r"""["']?\s*([\w.:-]{1,40})"""
_HEADER = re.compile(rf";\s*charset\s*=\s*{_LABEL}", re.IGNORECASE)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_META = re.compile(r"<meta[\s/]([^<>]*)", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""([\w-]+)\s*=\s*("[^"]*"|'[^']*'|[^\s"']+)""")
_CONTENT = re.compile(rf"charset\s*=\s*{_LABEL}", re.IGNORECASE)
_XML = re.compile(rf"<\?xml\s[^<>]*?\bencoding\s*=\s*{_LABEL}", re.IGNORECASE)


def codec(label: str) -> str | None:
    """Returns Python's name of the encoding that browsers mean by a label; None for no encoding.

    Python's own names of the table's encodings, such as cp949 and latin_1, are labels too.
    """
    label = label.strip().lower()
    if label in _CODECS:
        return _CODECS[label]
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        return None
    return name if name in _LABELS else _CODECS.get(name, _CODECS.get(name.replace("_", "-")))


def decode(body: bytes, *, content_type: str, markup: bool) -> str:
    """Decodes a page; bytes that do not fit become U+FFFD.

    The first of these counts that names an encoding: byte order mark, header, and in markup a
    <meta> of the first META_BYTES and the XML declaration. A page without one is UTF-8, unless
    most of what is not ASCII does not fit: then it is windows-1252.

    Args:
      content_type: value of the header, "" if there is none.
      markup: whether it is HTML or XML.
    """
    for mark, name in _MARKS:
        if body.startswith(mark):
            return body[len(mark) :].decode(name, "replace")
    found = [match[1] for match in [_HEADER.search(content_type)] if match]
    if markup:
        found += _declared(body)
    for label in found:
        if name := codec(label):
            return body.decode(name, "replace")
    text = body.decode("utf-8", "replace")
    wrong = text.count("\ufffd") - body.count("\ufffd".encode())
    if wrong * 2 > len(text) - len(text.encode("ascii", "ignore")):
        return body.decode("cp1252", "replace")
    return text


def _declared(body):
    """Returns the labels that the beginning of a page declares; its bytes are ASCII enough."""
    head = body[:META_BYTES]
    for name in ("utf-16-le", "utf-16-be"):
        if head.startswith("<?x".encode(name)):
            return [name]
    head = head.decode("latin-1")
    labels = []
    for meta in _META.finditer(_COMMENT.sub("", head)):
        pairs = reversed(_ATTRIBUTE.findall(meta[1].rstrip("/")))  # of one name the first counts
        about = {name.lower(): html.unescape(value.strip("\"'")) for name, value in pairs}
        label = about.get("charset")
        if label is None and about.get("http-equiv", "").strip().lower() == "content-type":
            match = _CONTENT.search(about.get("content", ""))
            label = match and match[1]
        if label:
            labels.append(label)
    xml = _XML.match(head)
    labels += [xml[1]] if xml else []
    # A declaration that could be read is in no encoding of two bytes.
    return ["utf-8" if (codec(label) or "").startswith("utf-16") else label for label in labels]
