"""LaTeX and symbols reduced to plain text."""

import re

SYMBOLS = str.maketrans(
    {"−": "-", "–": "-", "×": "*", "⋅": "*", "·": "*", "∗": "*", "÷": "/", "∕": "/", "⁄": "/"}
)
# Full-width ASCII, as Chinese and Japanese texts write digits, signs and brackets.
FULL_WIDTH = str.maketrans(
    {0xFF01 + i: 0x21 + i for i in range(94)} | {"\u3000": " ", "。": ".", "、": ","}
)
TEXT_IN_LATEX = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|normal)?|math(?:rm|bf|it|sf)|mbox|operatorname\*?)\{([^{}]*)\}"
)
_FRACTIONS = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅛": "1/8"}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SIZES = r"left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits"


def without_latex(text: str) -> str:
    """Removes delimiters, spacing, text wrappers and synonyms of LaTeX; leaves fractions."""
    text = text.translate(SYMBOLS)
    text = re.sub(rf"\\!\s*|\\[()\[\]]|\\(?:{_SIZES})(?![a-zA-Z])|\$|\\\$", "", text)
    text = text.replace("\\%", "%").replace("{,}", ",")
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])|°", " degrees", text)
    text = re.sub(r"(?<=\d)(?:\\[,;:]|[\u2009\u202f\xa0])(?=\d{3})", "", text)
    text = re.sub(r"\\[,;:> ]|\\q?quad(?![a-zA-Z])|~|[\u2009\u202f\xa0]", " ", text)
    text = TEXT_IN_LATEX.sub(r" \1", text)
    text = re.sub(r"\\(?:times|cdot|ast)(?![a-zA-Z])", "*", text)
    text = re.sub(r"\\div(?![a-zA-Z])", "/", text)
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<=\d)\s*([½⅓⅔¼¾⅕⅛])", lambda m: " " + _FRACTIONS[m[1]], text)
    text = re.sub(r"[½⅓⅔¼¾⅕⅛]", lambda m: f"({_FRACTIONS[m[0]]})", text)
    superscripts = r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+"
    text = re.sub(superscripts, lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    return text.strip()
