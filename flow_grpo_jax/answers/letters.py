"""A letter that names an option, and whether what follows explains it or takes it back."""

import re
from collections.abc import Iterator, Sequence

from flow_grpo_jax.answers import options
from flow_grpo_jax.answers.qa import normalise

MARKS = " \t\r\n*_`$#>"  # of Markdown and LaTeX around an answer
_LABEL = re.compile(
    r"(?P<noun>(?:the\s+)?(?:(?:correct|right|best)\s+)?(?:answer|option|choice|letter)\s*:?\s+)?"
    r"(?:[(\[]\s*(?P<inside>[A-Z])\s*[)\]]|(?P<bare>[A-Z])(?![\w'’^\\]))[*_`$]*"
    r"(?P<mark>\s*(?:[.):,;!](?![\d=])|[-–—]+(?=\s))|[ \t]*\n|)[\s*_`$]*",
    re.I | re.A,
)
_BECAUSE = r"[\s,;:(-]{0,9}\b(?:because|since|as(?!\s+(?:well|are|is|do|does)\b)|due\s+to|given)\b"
_REASON = re.compile(_BECAUSE, re.I)
_AFFIRMED = re.compile(
    r"is\s+(?:the\s+)?(?:only\s+)?(?:correct|right|best|true|answer)"
    rf"(?:\s+(?:one|answer|option|choice))?(?=[\s*_]*(?:[.!;\n]|\Z)|{_BECAUSE})",
    re.I,
)
_RELATIVE = re.compile(r",\s+(?:which|who|whose|where)\b", re.I)
_END = re.compile(r"[.!?;]+(?=\s|\Z)|\n")  # of a sentence
_NEGATIVE = r"(?:wrong|incorrect|false|untrue|invalid|impossible|excluded|eliminated|ruled\s+out)\b"
_ABOUT = (
    r"(?:(?:it|this|that|which|but|and|the|one|option|choice|answer|letter|wait|actually|\w+ly)\W+)"
)
_NO = r"no\b(?=\s*[^\w\s]|\s*\Z|\s+way)"
# What follows a letter at once and denies it.
_DENIED = re.compile(
    rf"[\W_]*{_ABOUT}*(?:(?:is|was|are|can|could|seems|looks|must\s+be|would\s+be)\s*)?"
    rf"(?:not\b|n['’]?t\b|\w+n['’]t\b|cannot\b|never\b|none\b|neither\b|nothing\b|nope\b|{_NO}"
    rf"|{_NEGATIVE})",
    re.I,
)
# A later sentence that takes the letter back.
_TAKEN_BACK = re.compile(
    rf"[\W_]*{_ABOUT}*(?:nope\b|{_NO}|(?:is|was)\s*(?:n['’]t\s+|not\s+)?(?:{_NEGATIVE}|none\b"
    rf"|neither\b|unknown\b)|(?:is|was)\s*(?:n['’]t|not)\s+(?:correct|right|true))",
    re.I,
)
_CONTRAST = re.compile(
    r"[\s,;(-]*(?:and\s+|but\s+)?(?:[Nn]ot|rather\s+than|instead\s+of)\s+(?:[Oo]ption\s+|[Cc]hoice\s+)?"
    r"\(?([A-Z])\b\)*"
)
_DENIES = re.compile(
    r"\b(?:not|no|never|neither|nor|wrong|incorrect|false|cannot|unlike|than|exclud\w+|fails?"
    r"|eliminat\w+|rul\w+\s+out|reject\w*|distractors?|impossible|invalid|untrue|unlikely"
    r"|contradict\w*)\b|n['’]t\b",
    re.I,
)
_OFFERS = re.compile(
    r"\b(?:or|also|but|alternativ\w+|maybe|perhaps|possibl[ey]|plausible|could|might|may|both"
    r"|either|correct|right|true|valid|acceptable|works|instead|rather|probably|likely|answer"
    r"|choose|pick|select|final)\b",
    re.I,
)
_DOUBTS = re.compile(
    r"\b(?:wait|actually|sorry|correction|second\s+thoughts?|reconsider\w*|hmm|oops|mistake|meant"
    r"|not\s+(?:only|sure|certain|wrong|incorrect|false)|unsure"
    r"|(?:cannot|can['’]t|not)\s+(?:be\s+)?(?:exclude|rule)d?)\b",
    re.I,
)
_CONCLUDES = re.compile(  # a sentence with a letter as all that it says: "Hmm, A", "then it is A"
    r"(?:[,:;]|\b(?:is|be|say|choose|pick|with))\s*(?:[Oo]ption\s+|[Cc]hoice\s+)?[*_(\[]*[A-Z][*_)\]]*\s*\Z"
)
# A letter in running text, but not the article A, the pronoun I, or a letter of a formula.
_MENTIONED = re.compile(
    r"[(\[]([A-Z])[)\]]|\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s+([A-Z])\b"
    r"|(?<![\w'’^\\=-])([B-HJ-Z])(?![\w'’^\\=-])"
    r"|(?<![\w'’^\\=-])([AI])(?=\)|\s*(?:[.,;:/&]|\Z)"
    r"|\s+(?:is|was|are|and|or|would|could|can|cannot|has|does|nor)\b)"
)


def written(text: str, texts: Sequence[str], *, whole: bool) -> tuple[set[int], str]:
    """Returns (the options that `text` writes out, what follows them in it).

    whole: nothing may follow; otherwise its first line, its first sentence or all before a reason
    may be the option.
    """
    ends = [len(text)]
    if not whole:
        found = (
            text.find("\n"),
            *(m.start() for sign in (_END, _REASON, _RELATIVE) if (m := sign.search(text))),
        )
        ends += [end for end in found if end > 0]
    for end in ends:
        if named := options.equal(text[:end].strip(MARKS), texts):
            return named, text[end:]
    return set(), ""


def labelled(text: str, texts: Sequence[str], *, stated: bool) -> set[int]:
    """Returns the options that a text names by the letter it starts with.

    Empty: it starts with no letter of an option, or with one that does not name it ("A bond").
    Several: it names more than one, or takes the letter back.

    stated: the text follows "answer is".
    """
    match = _LABEL.match(text)
    letter = match and (match["inside"] or match["bare"]).upper()
    if not match or not (label := ord(letter) - ord("A")) < len(texts):
        return set()
    rest, mark = text[match.end() :].rstrip(MARKS), match["mark"]
    if not rest.strip(MARKS + ".)!"):
        return {label}
    lone = match["bare"] in ("a", "i", "I") and not match["noun"]
    article = lone and mark.strip() not in (".", ")", ":")
    marked = bool(match["inside"] or mark) and not article  # or a pronoun
    named, tail = _own_text(rest, texts)
    if named and label not in named:
        return {label} | named if marked else set()
    if named and (marked or not tail or not tail[:1].isspace() or _REASON.match(tail)):
        rest = tail
    elif affirmed := _AFFIRMED.match(rest):
        rest = rest[affirmed.end() :]
    elif article or not (marked or _REASON.match(rest) or _CONTRAST.match(rest)):
        return set()
    sentence = "\n" in mark or (stated and mark.strip() == ".")
    return {label} if explains(rest, label, texts, sentence=sentence) else set(range(len(texts)))


def _own_text(rest: str, texts: Sequence[str]) -> tuple[set[int], str]:
    """Returns (options whose text stands after a letter, what follows it)."""
    named, tail = written(rest, texts, whole=False)
    if not named and (inside := re.match(r"\(([^()]*)\)", rest)):
        named, tail = options.equal(inside[1], texts), rest[inside.end() :]
    if not named:
        named, length = options.starts(rest, texts)
        tail = rest[length:]
    return named, tail


def explains(text: str, label: int, texts: Sequence[str], *, sentence: bool) -> bool:
    """Returns whether `text`, which follows the letter or text of an option, leaves it named.

    sentence: `text` starts a sentence of its own.
    """
    text = re.sub(r"\b(it|this|that)['’]s\b", r"\1 is", text, flags=re.I)
    contrast = _CONTRAST.match(text)
    if contrast and contrast[1] != _letter(label):
        text = text[contrast.end() :]
    strict = not (sentence or _REASON.match(text) or _END.match(text))
    if strict and _DENIED.match(text):
        return False
    others = {normalise(option) for i, option in enumerate(texts) if i != label}
    others -= {"", normalise(texts[label])}
    for place, part in enumerate(_END.split(text)):
        if _contradicts(part, label, len(texts), others, strict=strict and place == 0):
            return False
    return True


def _contradicts(sentence: str, label: int, count: int, others: set[str], *, strict: bool) -> bool:
    """Returns whether a sentence denies option `label` of `count`, or offers another.

    others: texts of the other options, normalised. strict: another letter may only be denied, and
    no other option's text may stand in it.
    """
    own = rf"\(?{_letter(label)}\)?"
    denied = rf"\bnot\s+(?:option\s+|choice\s+)?{own}(?!\w)"
    denied += rf"|(?<!\w){own}\s+(?:is|was)\s*(?:n['’]t|not|{_NEGATIVE})"
    if re.search(denied, sentence) or _TAKEN_BACK.match(sentence):
        return True
    denies = _DENIES.search(sentence) and not _DOUBTS.search(sentence)
    letters = set(_mentioned(sentence, count)) - {label}
    if letters and not denies:
        if strict or _OFFERS.search(sentence) or _DOUBTS.search(sentence):
            return True
        if not re.search(r"[a-z]{2}", sentence) or _CONCLUDES.search(sentence):  # a list of letters
            return True
    padded = f" {normalise(sentence)} "
    if any(f" {other} " in padded for other in others):
        return strict or bool(_OFFERS.search(sentence) and not denies)
    return False


def _mentioned(sentence: str, count: int) -> Iterator[int]:
    for groups in _MENTIONED.findall(sentence):
        if (index := ord("".join(groups)) - ord("A")) < count:
            yield index


def _letter(label: int) -> str:
    return chr(ord("A") + label)
