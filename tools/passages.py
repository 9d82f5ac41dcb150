"""Finds the passages of a text that answer a query best: BM25 over its own passages."""

import math
import re
from collections import Counter

PASSAGE_WORDS = 120
K1, B = 1.2, 0.75  # the usual constants of BM25


def split(text: str, *, words: int = PASSAGE_WORDS) -> list[str]:
    """Cuts a text into passages of about that many words, between paragraphs or sentences."""
    pieces = [
        piece
        for paragraph in re.split(r"\n+", text)
        for piece in re.split(r"(?<=[.!?。！？])\s+", paragraph.strip())
    ]
    passages, current, size = [], [], 0
    for piece in pieces:
        # A piece without a space may be long as well: characters count too.
        parts = re.findall(rf"(?:\S{{1,200}}\s*){{1,{words}}}", piece)
        for part in parts:
            count = max(len(part.split()), len(part) // 8)
            if current and size + count > words:
                passages.append(" ".join(current))
                current, size = [], 0
            current.append(part.strip())
            size += count
    return passages + [" ".join(current)] if current else passages


def scores(query: str, passages: list[str]) -> list[float]:
    """Scores every passage by BM25; 0 if it holds no word of the query."""
    counts = [Counter(_words(passage)) for passage in passages]
    lengths = [sum(count.values()) for count in counts]
    mean = sum(lengths) / max(len(lengths), 1) or 1.0
    score_of = [0.0] * len(passages)
    for word in dict.fromkeys(_words(query)):
        holders = sum(word in count for count in counts)
        weight = math.log(1 + (len(passages) - holders + 0.5) / (holders + 0.5))
        for i, count in enumerate(counts):
            if times := count[word]:
                norm = K1 * (1 - B + B * lengths[i] / mean)
                score_of[i] += weight * times * (K1 + 1) / (times + norm)
    return score_of


def join(passages: list[str], scores: list[float], *, max_characters: int) -> str:
    """Joins the best passages within a length, in the order of the text.

    The best one is cut if it alone is too long. The earlier one wins a tie.
    """
    order = sorted(range(len(passages)), key=lambda i: (-scores[i], i))
    kept, left = [], max_characters
    for i in order:
        if len(passages[i]) > left:
            break
        kept.append(i)
        left -= len(passages[i]) + 1
    if not kept and passages:
        return passages[order[0]][:max_characters] + " [cut]"
    return "\n".join(passages[i] for i in sorted(kept))


def best(query: str, text: str, *, max_characters: int) -> str:
    """Returns the part of a text that answers a query, within a length; all of a short text."""
    text = text.strip()
    if len(text) <= max_characters:
        return text
    found = split(text)
    return join(found, scores(query, found), max_characters=max_characters)


def _words(text):
    """Returns lower-case words without a plural s; each character of a script without spaces."""
    found = re.findall(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+", text.lower())
    return [word[:-1] if len(word) > 3 and word.endswith("s") else word for word in found]
