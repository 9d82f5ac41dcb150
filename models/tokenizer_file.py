"""Files of a tokenizer: bounds that come before the library reads them, its failures, two versions.

Reading and writing is `models.tokenizer`.
"""

import contextlib
import math

from flow_grpo_jax.bounds import json_text

MAX_PATTERN = 20_000  # characters of a regular expression; published ones have up to 2,000
MAX_GROWTH = 64  # of a text by replacements; published ones write 1 or 3 characters for one
MAX_ADDED = 2**15  # added tokens, each of which costs 50 us; published files have up to 7,000
MAX_IDS = 2**24  # the largest published vocabularies have 2**18
STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")  # of a model, around each word


def check(path):
    """Raises ValueError if a tokenizer.json goes over a bound; the message names the file.

    Replacements, one after another, would otherwise turn a line into gigabytes.
    """
    values = json_text.read_object(path, advice=json_text.DOWNLOAD)
    if not isinstance(model := values.get("model"), dict):
        raise ValueError(f"{path} is damaged: it describes no tokenizer. {json_text.DOWNLOAD}")
    if isinstance(added := values.get("added_tokens"), list) and len(added) > MAX_ADDED:
        raise ValueError(f"{path} has {len(added):,} added tokens; the most are {MAX_ADDED:,}.")
    for name in AFFIXES:
        if len(str(model.get(name))) > MAX_GROWTH:
            raise ValueError(f"{path}: {name} has more than {MAX_GROWTH} characters.")
    for name in STEPS:
        growths = []
        for part in _objects(values.get(name)):
            pattern, content = part.get("pattern"), part.get("content", part.get("prepend"))
            found = pattern.get("String", pattern.get("Regex")) if isinstance(pattern, dict) else ""
            if isinstance(found, str) and len(found) > MAX_PATTERN:
                raise ValueError(
                    f"{path}: {name} has a pattern of {len(found):,} characters; the most are "
                    f"{MAX_PATTERN:,}."
                )
            if isinstance(content, str):
                is_text = isinstance(pattern, dict) and isinstance(pattern.get("String"), str)
                growths.append(max(1, len(content) / max(1, len(found) if is_text else 1)))
        if math.prod(growths) > MAX_GROWTH:
            raise ValueError(
                f"{path}: {name} may replace a character by {math.prod(growths):.0f}; the most are "
                f"{MAX_GROWTH}."
            )


@contextlib.contextmanager
def failures(what):
    """Raises whatever the library raises as a ValueError that begins with `what`.

    Among it are Exception itself and, where Rust code panics, as when a regular expression gives
    up, a BaseException. OSErrors are left as they are.
    """
    try:
        yield
    except OSError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = str(error)[:500] or type(error).__name__
        if isinstance(error, LookupError | TypeError | AttributeError):
            why = f"it describes no tokenizer ({type(error).__name__}: {why})"
        raise ValueError(f"{what}: {why}") from error


def check_ids(ids, place):
    """Raises ValueError unless all are ids that a vocabulary may have."""
    for each in ids:
        if type(each) is not int or not 0 <= each < MAX_IDS:
            raise ValueError(f"{place} has the token id {each!r:.40}; ids go from 0 to {MAX_IDS}.")


def for_both_versions(config):
    """Returns a tokenizer_config.json that transformers 4 and 5 read the same way.

    What version 5 calls `extra_special_tokens` and writes as a list is `additional_special_tokens`
    to version 4, which ends in an error on the list; 5 reads that name too. The class that 5 writes
    for a tokenizer without one of its own is `PreTrainedTokenizerFast` in both.
    """
    config = dict(config)
    if isinstance(config.get("extra_special_tokens"), list):
        tokens = config.pop("extra_special_tokens")
        config["additional_special_tokens"] = config.get("additional_special_tokens") or tokens
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return config


def _objects(value):
    """Yields the objects in a JSON value, those inside others too."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
        if isinstance(each, dict | list):
            waiting += each.values() if isinstance(each, dict) else each
