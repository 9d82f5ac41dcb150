"""Folders of models: what was found, and whether tokenizer, template and weights fit each other."""

import jax
import jax.numpy as jnp

from agents import prompts
from experiments.configs import quickstart
from experiments.diagnosis.rows import ABSENT, BROKEN, NOTE, OK, Row
from experiments.running import command, places, sessions, tokens
from models import hardware, hub, huggingface, model_card, weights
from models.gguf import folder as gguf_folder

EXAMPLE = "hf download Qwen/Qwen2.5-0.5B-Instruct"
SHOWN = 20  # models of the hub's cache


def found():
    """Yields Rows on the model that comes with the code and on those in the hub's cache."""
    yield from folder(places.resolve(quickstart.get_config().model.path), "shipped")
    cache = hub.cache()
    models = sorted(cache.glob(f"{hub.REPOSITORY}*")) if cache.is_dir() else []
    if not models:
        yield Row("hub's cache", ABSENT, f"no model in {cache}", EXAMPLE)
    for path in models[:SHOWN]:
        name = hub.name_of(path)
        try:
            config = huggingface.read_config(hub.locate(path, root="/"))
            dims = huggingface.config_from_dict(config)
        except (OSError, ValueError) as error:
            yield Row(name, NOTE, f"cannot be used: {error}")
        else:
            yield Row(name, OK, f"{_count(dims)} parameters")
    if len(models) > SHOWN:
        yield Row("hub's cache", OK, f"{len(models) - SHOWN} more in {cache}")


def folder(location, what=""):
    """Yields Rows on a model's folder: config, tokenizer and template, weights.

    Args:
      location: a folder, a URL or a name in the hub's cache.
      what: to call it; "" calls it by the part that is looked at.
    """
    name = f"{what} " if what else ""
    found, row = _looked_at(f"{name}config", lambda: _config(location))
    yield row
    if found is None:
        return
    path, dims = found
    for part, look in (("tokenizer", _tokenizer), ("weights", _weights)):
        _, row = _looked_at(name + part, lambda look=look: (True, look(path, dims)))
        yield row


def _looked_at(what, look):
    """Returns (value, Row) of a function that returns (value, text); (None, Row) if it raises."""
    try:
        value, text = look()
        return value, Row(what, OK, text)
    except (OSError, ValueError, command.ConfigError) as error:
        todo = "Download the folder again, with all files of one model."
        return None, Row(what, BROKEN, str(error), todo)


def _config(location):
    """Returns ((path, decoder.Config), text)."""
    path = sessions.locate_model(location)
    dims = huggingface.config_from_dict(huggingface.read_config(path))
    size = 2 * _parameters(dims)
    text = f"{path}: {_count(dims)} parameters, {size / hardware.GiB:.3g} GiB in bfloat16"
    room = hardware.free_bytes(jax.local_devices()[0])
    if room is not None and size > room:
        text += "; a device has less free: python -m experiments.plan says on which it fits"
    return (path, dims), text


def _tokenizer(path, dims):
    vocabulary = tokens.load(path, conversations=(tokens.CONVERSATION, tokens.REPAIR))
    if vocabulary.vocab_size > dims.vocab_size:
        raise ValueError(
            f"The tokenizer has {vocabulary.vocab_size:,} ids, the model {dims.vocab_size:,}: they "
            "are not of one model."
        )
    named = model_card.prompts(path)
    text = f"{vocabulary.vocab_size:,} of {dims.vocab_size:,} ids; the chat template takes the "
    text += f"agents' messages; {tokens.describe_ends(vocabulary)} ends a reply"
    return text + (f"; trained with the prompts {named}" if named in prompts.SETS else "")


def _weights(path, dims):
    dtypes = weights.check(gguf_folder.opened(path), sessions.abstract_model(dims, jnp.float32))
    return f"all tensors are there and fit config.json; {', '.join(dtypes)}"


def _count(dims):
    count = _parameters(dims)
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.3g}M"


def _parameters(dims):
    return sum(leaf.size for leaf in jax.tree.leaves(sessions.abstract_model(dims)))
