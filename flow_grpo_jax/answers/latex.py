"""LaTeX and symbols reduced to plain text."""

import re
import unicodedata

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
SYMBOLS = str.maketrans(
    {"−": "-", "–": "-", "×": "*", "⋅": "*", "·": "*", "∗": "*", "÷": "/", "∕": "/", "⁄": "/"}
)
TEXT_IN_LATEX = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*)\}")


def without_latex(text: str) -> str:
    """Removes delimiters, spacing, text wrappers and synonyms of LaTeX; leaves fractions."""
    text = text.translate(SYMBOLS)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda m: f"^{{{m[0].translate(SUPERSCRIPTS)}}}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: f"_{{{m[0].translate(SUBSCRIPTS)}}}", text)
    text = re.sub("[¼½¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]", lambda m: f" {unicodedata.normalize('NFKC', m[0])}", text)
    text = text.replace("⁄", "/")
    text = re.sub(r"\\!\s*|\\[()\[\]]|\\(?:left|right|displaystyle)(?![a-zA-Z])|\$|\\\$", "", text)
    text = text.replace("\\%", "%").replace("{,}", ",")
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|°", " degrees", text)
    text = re.sub(r"(?<=\d)(?:\\[,;:]|[\u2009\u202f\xa0])(?=\d{3})", "", text)
    text = re.sub(r"\\[,;: ]|\\quad(?![a-zA-Z])|(?<=\S)~(?=\S)|[\u2009\u202f\xa0]", " ", text)
    text = TEXT_IN_LATEX.sub(r" \1", text)
    text = re.sub(r"\\(?:times|cdot)(?![a-zA-Z])", "*", text)
    text = re.sub(r"\\div(?![a-zA-Z])", "/", text)
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    return re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text).strip()
