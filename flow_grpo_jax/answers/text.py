r"""What of a text is the answer, and the texts of a question that count as right."""

import re
from collections.abc import Mapping

MAX_EXPRESSION = 300  # characters of a number, formula or arithmetic expression


def golds_of(question: Mapping) -> tuple[str, ...]:
    """Returns the accepted answers; `question["answer"]` is a string or a sequence of them."""
    answer = question["answer"]
    golds = (answer,) if isinstance(answer, str) else tuple(answer)
    if not golds or not all(isinstance(gold, str) and gold.strip() for gold in golds):
        raise ValueError(
            f"Question {question.get('id')!r} has answer {answer!r}; "
            "expected a non-empty string or a list of them."
        )
    return golds


def tagged_answer(text: str) -> str:
    """Returns the content of the last `<answer>...</answer>`, else `text`."""
    tagged = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", text, re.DOTALL)
    return (tagged[-1] if tagged else text).strip()


# Full-width letters, digits and signs, and the marks of Chinese and Japanese, as ASCII has them.
HALF_WIDTH = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x3000: " ", 0x3002: ". ", 0x3001: ", "}
HALF_WIDTH |= {0xFF61: ". ", 0xFF64: ", ", 0xFFE5: "¥", 0xFFE1: "£", 0xFFE0: "¢", 0xFEFF: ""}


def final_answer(text: str, *, whole_line: bool = False) -> str:
    r"""Returns the last `\boxed{}`'s content, else the sentence after "answer is", else `text`.

    Full-width characters become those of ASCII. `\boxed 25` is read like `\boxed{25}`.

    whole_line: take the rest of the line after "answer is" instead of its first sentence.
    """
    text = text.translate(HALF_WIDTH).replace("\\fbox", "\\boxed")
    text = re.sub(r"\\boxed\s+(?:\{|([^\s{}$]+))", _boxed, text)
    start = text.rfind(r"\boxed{")
    if start >= 0:
        depth = 0
        for end in range(start + 6, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start + 7 : end].strip()
    tail = text[max((m.end() for m in _ANSWER_IS.finditer(text)), default=len(text)) :].strip()
    if tail:
        text = tail.splitlines()[0]
        if not whole_line:
            text = re.split(r"\.(?=\s|$)", text, maxsplit=1)[0]
    return text.rstrip(" \t\r\n*_`.").lstrip(" \t\r\n*_`")


def _boxed(match):
    return rf"\boxed{{{match[1]}}}" if match[1] else r"\boxed{"


_ANSWER_IS = re.compile(
    r"(?:\b(?:answer|option|choice)\b(?:[^.\n:=]{0,60}?\bis\b|[\s*_]{0,9}[:=])"
    r"|#{4}|答案?[\s*_]{0,9}(?:[:=]|是|为|為))[\s*_:]{0,9}",
    re.I,
)
