"""The tokenizer that a GGUF file describes, as the files of a Hugging Face folder.

Source: `convert_hf_to_gguf.py` of llama.cpp, which wrote the values, and the `tokenizer.json` files
that it read.
"""

from models import splits

BYTE_LEVEL = "gpt2"  # what llama.cpp calls a BPE over bytes
CONTROL, USER_DEFINED, UNUSED, KINDS = 3, 4, 5, set(range(7))  # types of tokens; all that exist
VALUES = "tokenizer.ggml."
SPECIAL = {  # transformers' name -> that of the id here
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "padding_token_id",
    "unk_token": "unknown_token_id",
}
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of a text, a turn, a message


# llama.cpp's name of a way to cut -> (steps, normalizer, whether a word in the vocabulary is taken
# whole).
CUTS = {
    "qwen2": (splits.steps(splits.QWEN2), {"type": "NFC"}, False),
    "llama-bpe": (splits.steps(splits.LLAMA3), None, True),
    "smollm": (splits.SMOLLM, None, False),
}
CUTS |= dict.fromkeys(("llama3", "llama-v3"), CUTS["llama-bpe"])


def files(values, place):
    """Returns {name of a JSON file: what it holds}: tokenizer, its configuration, generation.

    Args:
      values: of the file, see `header.Header`.
      place: the file, as an error names it.

    Raises:
      ValueError: the tokenizer is of another kind, or the values contradict each other.
    """
    tokens, merges = values.get(f"{VALUES}tokens"), values.get(f"{VALUES}merges")
    kinds, model = values.get(f"{VALUES}token_type"), values.get(f"{VALUES}model")
    cut = values.get(f"{VALUES}pre")
    if model != BYTE_LEVEL or str(cut) not in CUTS:
        raise ValueError(
            f"{place} has a tokenizer of kind {model!r:.40}, cut by {cut!r:.40}; read are "
            f"{BYTE_LEVEL!r} with {', '.join(CUTS)}. Put the model's tokenizer.json and "
            "tokenizer_config.json beside it, in a folder of their own."
        )
    fit = all(isinstance(each, list) for each in (tokens, merges, kinds))
    # Items of one list are of one type.
    fit = fit and all(isinstance(first, str) for first in (*tokens[:1], *merges[:1]))
    pairs = [merge.split(" ") for merge in merges] if fit else []
    fit = fit and all(len(pair) == 2 for pair in pairs) and set(kinds) <= KINDS
    if not fit or not len(set(tokens)) == len(tokens) == len(kinds):
        raise ValueError(f"{place}: its tokens, their types and merges do not fit each other.")
    special = {
        name: tokens[index]
        for name, key in SPECIAL.items()
        if (index := _id(values, key, len(tokens))) is not None
    }
    ends = [_id(values, key, len(tokens)) for key in ENDS]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if isinstance(template := values.get("tokenizer.chat_template"), str):
        config["chat_template"] = template
    generation = {"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {}
    for name, key in (("bos_token_id", "bos_token_id"), ("pad_token_id", "padding_token_id")):
        if (index := _id(values, key, len(tokens))) is not None:
            generation[name] = index
    return {
        "tokenizer.json": _tokenizer(tokens, kinds, pairs, cut, _first(values, special)),
        "tokenizer_config.json": config | special,
        "generation_config.json": generation,
    }


def _id(values, key, count):
    index = values.get(VALUES + key)
    return index if type(index) is int and 0 <= index < count else None


def _first(values, special):
    """Returns the token that begins every text, or None."""
    return special.get("bos_token") if values.get(f"{VALUES}add_bos_token") is True else None


def _tokenizer(tokens, kinds, pairs, cut, first):
    """Returns a tokenizer.json."""
    steps, normalizer, whole_words = CUTS[cut]
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == CONTROL,
        }
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    processor = splits.byte_level(trim_offsets=False)
    if first is not None:
        one, two = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
        start = {"SpecialToken": {"id": first, "type_id": 0}}
        template = {
            "type": "TemplateProcessing",
            "single": [start, one],
            "pair": [start, one, start, two],
            "special_tokens": {
                first: {"id": first, "ids": [tokens.index(first)], "tokens": [first]}
            },
        }
        processor = {"type": "Sequence", "processors": [processor, template]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": processor,
        "decoder": splits.byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": whole_words,
            "vocab": {
                token: index
                for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
                if kind != UNUSED
            },
            "merges": pairs,
        },
    }
