"""How byte-level tokenizers cut a text before they merge, and where a text may be parted.

Source: the published `tokenizer.json` files.
"""

import dataclasses
import json
import re

import tokenizers
from tokenizers import normalizers

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def steps(pattern):
    """Returns the pre-tokenizers of a tokenizer.json that isolate the matches of a pattern."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return [split | {"invert": False}, byte_level(use_regex=False)]


def byte_level(**changes):
    """Returns the pre-tokenizer of GPT-2, which cuts by a pattern of its own unless told not to."""
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return plain | {"use_regex": True} | changes


# GPT-2's, after each digit was isolated.
SMOLLM = [{"type": "Digits", "individual_digits": True}, byte_level()]


@dataclasses.dataclass(frozen=True)
class Parting:
    """Where a text may be parted: its ids are those of the parts.

    line_end: ends of lines that no match of the tokenizer's pattern goes past.
    anywhere: these, and ends of words.
    """

    line_end: re.Pattern
    anywhere: re.Pattern


def _parting(line_end):
    return Parting(re.compile(line_end), re.compile(line_end + r"|[A-Za-z](?= )"))


# Blanks and line breaks of several lines are one match of `\s*[\r\n]+`, whatever follows.
AFTER_BLANKS = _parting(r"\n(?=[!-~])")
# Where there is no such part, `\s+(?!\S)` takes them without the last one.
AFTER_TEXT = _parting(r"(?<=[!-~])\n(?=[!-~])")
PARTINGS = [(steps(QWEN2), AFTER_BLANKS), (steps(LLAMA3), AFTER_BLANKS), (SMOLLM, AFTER_TEXT)]


def parting(fast, added):
    """Returns the Parting of a tokenizer; None if it is not known to have one.

    Args:
      fast: tokenizers.Tokenizer.
      added: its added tokens.
    """
    if fast.pre_tokenizer is None or not isinstance(fast.model, tokenizers.models.BPE):
        return None
    own = json.loads(fast.pre_tokenizer.__getstate__()).get("pretokenizers", ())
    for known, found in PARTINGS:
        if (
            list(map(_compared, own)) == list(map(_compared, known))
            and (fast.normalizer is None or isinstance(fast.normalizer, normalizers.NFC))
            and not fast.model.dropout
            and not any(t.lstrip or t.rstrip or t.single_word for t in added)
            and not any("\n" in t.content or found.anywhere.search(t.content) for t in added)
        ):
            return found
    return None


def _compared(step):
    return {name: value for name, value in step.items() if name != "trim_offsets"}


def is_qwen2(values):
    """Whether a parsed tokenizer.json cuts texts as the class Qwen2Tokenizer does."""
    own = (values.get("pre_tokenizer") or {}).get("pretokenizers") or ()
    return list(map(_compared, own)) == list(map(_compared, steps(QWEN2)))
