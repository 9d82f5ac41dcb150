"""Which characters of a sampled text each of its tokens wrote."""

UNFINISHED = "\ufffd"  # how the beginning of a UTF-8 sequence decodes


def characters(decode, ids, text):
    """Returns how many characters of `text` each token adds, list[int] with sum len(text).

    A token that only begins a character adds 0; the one that completes it adds the character.
    Special tokens, such as the end of a reply, add 0. A tokenizer may drop a blank at the start, so
    each token is decoded behind earlier ones.

    Args:
      decode: token ids -> text, without special tokens.
      ids: sampled tokens; `text` is what they decode to, perhaps without the last one.

    Returns:
      None where the text is not the sum of its tokens' parts.
    """
    found, start, read, before, length = [], 0, 0, "", 0
    for end in range(1, len(ids) + 1):
        after = decode(ids[start:end])
        part = after[len(before) :]
        last = end == len(ids)
        if last and length == len(text):  # the text may leave out what ended it
            part = ""
        if not part or (part.endswith(UNFINISHED) and not last):
            found.append(0)
            continue
        if text[length : length + len(part)] != part:
            return None
        found.append(len(part))
        length += len(part)
        start, read = read, end
        before = decode(ids[start:read])
    return found if length == len(text) else None
