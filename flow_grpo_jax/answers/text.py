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


def final_answer(text: str, *, whole_line: bool = False) -> str:
    r"""Returns the last `\boxed{}`'s content, else what follows a last "#### ", else the sentence
    after "answer is", else `text`.

    Boxes with nothing but "or", "and" or a comma between them are one answer, a list: none of them
    may be picked. So are a box and the number or formula that an "or" beside it offers.
    whole_line: take the rest of the line after "answer is" instead of its first sentence.
    """
    boxes, start, end = _last_boxes(text)
    if boxes:
        answer = ", ".join(dict.fromkeys(boxes))
        before = _OR_BEFORE.search(text, max(0, start - _NEAR), start)
        after = _OR_AFTER.match(text, end, end + _NEAR)
        others = [found[1] for found in (before, after) if found and re.search(r"\d|\\", found[1])]
        return " or ".join([answer, *(without_stop(other, also="$") for other in others)])
    marked = text.rpartition("####")[2].strip()
    if "\n" not in marked:
        text = marked
    tail = text[max((m.end() for m in _ANSWER_IS.finditer(text)), default=len(text)) :].strip()
    if tail:
        text = tail.splitlines()[0]
        if not whole_line:
            text = re.split(r"\.(?=\s|$)|。", text, maxsplit=1)[0]
    return without_stop(text, also="*_`").lstrip(" \t\r\n*_`")


def without_stop(text: str, *, also: str = "") -> str:
    """Strips white space, the full stop and the characters of `also` at the end; dots stay."""
    blank = " \t\r\n。" + also
    text = text.rstrip(blank)
    while text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip(blank)
    return text


def _last_boxes(text: str) -> tuple[list[str], int, int]:
    r"""Returns (contents of the last boxes that only separators part, their start, their end); no
    contents if the last box is open."""
    opened, spans = [], []  # spans: (start of "\boxed", start, end of the content)
    for match in _BOX_OR_BRACE.finditer(text):
        if match["bare"]:
            spans.append((match.start(), *match.span("bare")))
        elif match[0] != "}":
            opened.append((match.start(), match.end(), match[0] != "{"))
        elif opened:
            start, inside, is_box = opened.pop()
            if is_box:
                spans.append((start, inside, match.start()))
    spans.sort()
    boxes, end = [], 0
    if spans and max((start for start, _, is_box in opened if is_box), default=-1) < spans[-1][0]:
        boxes.append(spans.pop())
        end = boxes[0][2]
        while spans and _BETWEEN_BOXES.fullmatch(text, spans[-1][2], boxes[-1][0]):
            boxes.append(spans.pop())
    contents = [without_stop(text[start:stop]).strip() for _, start, stop in reversed(boxes)]
    return contents, boxes[-1][0] if boxes else 0, end


_BOX_OR_BRACE = re.compile(
    r"\\f?box(?:ed)?\s{0,9}\{|\\boxed(?![a-zA-Z])\s{0,9}(?P<bare>[-+]?[\w.,/%]+)|[{}]"
)
_BETWEEN_BOXES = re.compile(r"\}?(?:[\s,;$.]|\\text\{|\}|\bor\b|\band\b|\\[()\[\]]){0,40}")
_NEAR = 100  # characters beside a box that are read
_OR = r"(?:\\text\{\s*)?\b(?:or|maybe|perhaps|possibly)\b(?:\s*\})?"
_OR_AFTER = re.compile(
    rf"\}}?[\s$),.;\]\\]{{0,9}}{_OR}(?!\s*(?:about|approx|roughly|nearly|\$?\\approx|≈|~))\s*"
    r"(?:equivalently|maybe|perhaps|possibly|even)?[\s,]*((?:[^.\n]|\.(?=\d))+)",
    re.I,
)
_OR_BEFORE = re.compile(rf"([^\s$=]+)\$?,?\s*{_OR}[\s$(\[\\]{{0,9}}\Z", re.I)
_ANSWER_IS = re.compile(
    r"(?<!wrong )(?<!incorrect )(?<!not the )\b(?:answer|option|choice)\b"
    r"(?:[^.\n:=]{0,60}?\b(?:is|(?:would|must|should|will)\s+be)\b|[\s*_]{0,9}[:=：])[\s*_:]{0,9}"
    r"|(?:最终答案(?:是|为)|(?:答案(?:是|为)?|答)[：:])[：:]?[\s*_]{0,9}",
    re.I,
)
