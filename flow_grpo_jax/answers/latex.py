"""LaTeX and symbols reduced to plain text."""

import re
import unicodedata

SYMBOLS = str.maketrans(
    {"−": "-", "–": "-", "×": "*", "⋅": "*", "·": "*", "∗": "*", "÷": "/", "∕": "/", "⁄": "/"}
)
# Full-width ASCII, as Chinese and Japanese texts write digits, signs and brackets.
_FULL_WIDTH = {0xFF01 + i: 0x21 + i for i in range(94)} | {"\u3000": " ", "。": ".", "、": ","}
_SIGNS = {"٫": ".", "٬": ",", "٪": "%", "º": "°", "˚": "°", "℃": "°C", "℉": "°F"}
_SIGNS |= {"∠": r"\angle ", "△": r"\triangle ", "ℝ": r"\mathbb{R}", "∅": r"\emptyset"}
_SQUARED = {c: unicodedata.normalize("NFKC", chr(c)) for c in range(0x3380, 0x33E0)}  # ㎝, ㎡
_ONE_SIGN = str.maketrans(_FULL_WIDTH | _SIGNS | _SQUARED)
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
# The digits that come back in a decimal, after the point: 0.(3), 0.\bar{3}, 0.\dot{1}4\dot{2}.
_REPEATED = re.compile(
    r"(?<=\d\.)\((\d{1,20})\)(?![\d(])|(?<=[\d.])\\(?:bar|overline)\s*(?:\{(\d+)\}|(\d))"
    r"|(?<=[\d.])\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?|((?:\d\u0305)+)"
)
TEXT_IN_LATEX = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|normal)?|math(?:rm|bf|it|sf)|mbox|operatorname\*?)"
    r"\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}"
)
_WORD = r"\{\s*\\(?:text|mathrm)\{\s*([a-z]+)\s*\}\s*\}"
_UNIT_FRACTION = re.compile(rf"\\[dt]?frac\s*{_WORD}\s*{_WORD}")
_FRACTIONS = {
    sign: unicodedata.normalize("NFKC", sign).replace("\u2044", "/") for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SIZES = r"left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits"


def one_spelling(text: str) -> str:
    """Returns `text` with digits and signs of other scripts, indices and repeated digits written in
    one way: ２５ and ٢٥ as 25, x₁ as x_{1}, 0.(3) as 0.\\overline{3}."""
    text = re.sub(r"(?![0-9])\d", lambda digit: str(int(digit[0])), text.translate(_ONE_SIGN))
    text = re.sub("[₀-₉]+", lambda index: f"_{{{index[0].translate(_SUBSCRIPTS)}}}", text)
    return _REPEATED.sub(_overlined, text)


def _overlined(match: re.Match) -> str:
    return rf"\overline{{{''.join(filter(None, match.groups()))}}}".replace("\u0305", "")


def without_latex(text: str) -> str:
    """Removes delimiters, spacing, text wrappers and synonyms of LaTeX; leaves fractions."""
    text = text.translate(SYMBOLS)
    text = re.sub(rf"\\!\s*|\\[()\[\]]|\\(?:{_SIZES})(?![a-zA-Z])|\$|\\\$", "", text)
    text = re.sub(r"\\pmod\s*\{?(\w+)\}?", r"(mod \1)", text)
    text = _UNIT_FRACTION.sub(r" \1/\2", text)
    text = text.replace("\\%", "%").replace("{,}", ",")
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])|°", " degrees", text)
    text = re.sub(r"(?<=\d)(?:\\[,;:]|[\u2009\u202f\xa0])(?=\d{3})", "", text)
    text = re.sub(r"\\[,;:> ]|\\q?quad(?![a-zA-Z])|~|[\u2009\u202f\xa0]", " ", text)
    text = TEXT_IN_LATEX.sub(r" \1", text)
    text = re.sub(r"\\(?:times|cdot|ast)(?![a-zA-Z])", "*", text)
    text = re.sub(r"\\div(?![a-zA-Z])", "/", text)
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<=\d)\s*([½⅓⅔¼¾⅕-⅞])", lambda m: " " + _FRACTIONS[m[1]], text)
    text = re.sub("[½⅓⅔¼¾⅕-⅞]", lambda m: f"({_FRACTIONS[m[0]]})", text)
    superscripts = r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+"
    text = re.sub(superscripts, lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    return text.strip()
