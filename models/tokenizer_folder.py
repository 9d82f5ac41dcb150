"""The transformers tokenizer of a model folder, from whichever of its files there are."""

import os

import tokenizers

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no torch
import transformers  # noqa: E402

from flow_grpo_jax.bounds import files, json_text  # noqa: E402
from models import sentencepiece_model, tokenizer_file  # noqa: E402

SENTENCEPIECE = "tokenizer.model"
BACKENDS = ("tokenizer.json", "vocab.json", SENTENCEPIECE)  # the first of them that there is


def load(folder, config, template):
    """Returns the transformers tokenizer of a folder with one of BACKENDS.

    Args:
      folder: pathlib.Path.
      config: what its tokenizer_config.json holds.
      template: chat template, or None.

    Raises:
      ValueError: a file is damaged or over a bound. The library raises other exceptions too; see
        `tokenizer_file.failures`.
    """
    for name in ("special_tokens_map.json", "added_tokens.json"):
        read_json(folder / name)
    if (folder / "tokenizer.json").is_file():
        tokenizer_file.check(folder / "tokenizer.json")
        # As the file says: beside a Qwen2 model AutoTokenizer keeps only vocabulary and merges.
        return transformers.PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True, chat_template=template
        )
    if (folder / "vocab.json").is_file():
        read_json(folder / "vocab.json")
        if (folder / "merges.txt").is_file():
            files.read_bytes(folder / "merges.txt")
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, chat_template=template
        )
    return _from_sentencepiece(folder, config, template)


def _from_sentencepiece(folder, config, template):
    """Makes the transformers tokenizer of a folder with tokenizer.model."""
    fast, special = sentencepiece_model.convert(folder / SENTENCEPIECE)
    added = {int(i): value for i, value in config.get("added_tokens_decoder", {}).items()}
    for index, value in sorted(added.items()):
        if index >= fast.get_vocab_size():
            fast.add_tokens([tokenizers.AddedToken(**value)])
            if fast.token_to_id(value["content"]) != index:
                raise ValueError(
                    f"{folder}: added token {value['content']!r} should have id {index}, but the "
                    f"next free one is {fast.token_to_id(value['content'])}. "
                    "Use a folder that has a tokenizer.json."
                )
    for name in ("bos_token", "eos_token", "pad_token"):
        if config.get(name):
            token = config[name]
            special[name] = token if isinstance(token, str) else token["content"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, chat_template=template, clean_up_tokenization_spaces=False, **special
    )


def read_json(path):
    """Returns the object in a JSON file; {} if there is no file."""
    return json_text.read_object(path, advice=json_text.DOWNLOAD) if path.is_file() else {}
