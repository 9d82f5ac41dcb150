"""Turns drawn tokens into the text that a client may see, piece by piece."""

import json

UNFINISHED = "\ufffd"  # how the beginning of a UTF-8 sequence decodes


class TextStream:
    """Text of a growing response; nothing it gives out has to be taken back.

    The beginning of a character or of a possible stop string is held back. The text
    ends before the stop string that is complete first, so it does not depend on how the tokens were
    cut into pushes.

    Args:
      decode: token ids -> text, without special tokens.
      stops: stop strings.

    Attributes:
      length: characters decoded so far, given out or not, stop string included.
      given: characters given out.
      stopped: whether a stop string was found.
    """

    def __init__(self, decode, stops=()):
        self._decode, self._stops = decode, stops
        self._ids, self._start, self._read = [], 0, 0
        self._held = ""
        self.length, self.given, self.stopped = 0, 0, False

    def push(self, ids, *, last=False):
        """Adds tokens; `last` says that none will follow.

        A tokenizer may drop a blank at the start, so new tokens are decoded behind earlier ones.
        """
        if self.stopped:
            return
        self._ids += ids
        before = self._decode(self._ids[self._start : self._read])
        after = self._decode(self._ids[self._start :])
        if len(after) > len(before) and (last or not after.endswith(UNFINISHED)):
            self._start, self._read = self._read, len(self._ids)
            self._add(after[len(before) :])

    def take(self, *, last=False):
        """Returns the text that is certain now; `last` says that no tokens will follow."""
        certain = len(self._held)
        if not (last or self.stopped):
            certain -= self._may_become_stop()
        text, self._held = self._held[:certain], self._held[certain:]
        self.given += len(text)
        return text

    def _add(self, text):
        self.length += len(text)
        self._held += text
        found = [(self._held.find(stop), stop) for stop in self._stops]
        ends = [(start + len(stop), start) for start, stop in found if start >= 0]
        if ends:
            self._held, self.stopped = self._held[: min(ends)[1]], True

    def _may_become_stop(self):
        """Counts characters at the end that begin a stop string."""
        return max(
            (
                size
                for stop in self._stops
                for size in range(1, min(len(stop) - 1, len(self._held)) + 1)
                if self._held.endswith(stop[:size])
            ),
            default=0,
        )


class Vocabulary:
    """The texts and bytes of token ids.

    Attributes:
      decode: token ids -> text, without special tokens.
    """

    def __init__(self, tokenizer):
        self.decode = tokenizer.decode
        values = json.loads(tokenizer.json)
        vocabulary, added = values["model"]["vocab"], values["added_tokens"]
        if isinstance(vocabulary, list):  # of (token, score)
            vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
        in_bytes = _of_bytes if "ByteLevel" in json.dumps(values["decoder"]) else _of_pieces
        self._bytes = {index: in_bytes(token) for token, index in vocabulary.items()}
        self._bytes |= {token["id"]: token["content"].encode() for token in added}

    def bytes(self, index):
        """Returns the bytes of a token; b"" for an id without any."""
        return self._bytes.get(index, b"")


def _of_bytes(token):
    """Returns a byte-level token's bytes; its vocabulary spells bytes as printable characters."""
    return bytes(BYTE_OF[letter] for letter in token)


def _of_pieces(token):
    """Returns the bytes of a token of a SentencePiece vocabulary."""
    if len(token) == 6 and token.startswith("<0x"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def _spelling():
    """Returns GPT-2's {character: byte}: bytes that print are themselves, others from 256 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


BYTE_OF = _spelling()
