"""Reads and writes the Hugging Face folder of a model: configuration, weights, the rest.

Needs no torch. Folders may be remote (gs://, s3://, ...; models/folders.py); the weights pass
through as models/weights.py says.

Source: the configurations and models of transformers that `models/decoder.py` names.

Dimensions:
  V vocabulary    D model width
"""

import contextlib
import dataclasses

import jax
import numpy as np
from jax.experimental import multihost_utils

from models import decoder, folders, tokenizer, weights
from models.gguf import folder as gguf_folder

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
# Assumed by transformers where config.json is silent (decoder.Config has the published values).
ABSENT = {
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32768,
    "initializer_range": 0.02,
}
ABSENT_IN = {  # where a family assumes something else
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "sliding_window": 4096},
}
ABSENT_ROPE_THETA = 1e4
# What a config.json of each family holds beside the fields of decoder.Config.
STATED = {
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False},
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "use_sliding_window": False,
        "attention_bias": False,
    },
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "mlp_bias": False,
    },
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": None},
}
ROPES = ("rope_scaling", "rope_parameters")  # of transformers 4 and 5
SCALINGS = {"yarn": decoder.Yarn, "llama3": decoder.Llama3}  # rope_type -> what it is here

# Most of what config.json may say, some times what is published; all are integers from 1 on.
MOST = {
    "vocab_size": 2**24,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**10,
    "num_key_value_heads": 2**10,
    "head_dim": 2**12,
    "max_position_embeddings": 2**28,
    "original_max_position_embeddings": 2**28,
}
# Ranges of other numbers, also inside ROPES.
RANGES = {
    "rms_norm_eps": (0, 1),
    "initializer_range": (0, 100),
    "rope_theta": (1, 1e15),
    "factor": (0, 1e6),
    "attention_factor": (-1e6, 1e6),
    "beta_fast": (0, 1e6),
    "beta_slow": (0, 1e6),
    "low_freq_factor": (0, 1e6),
    "high_freq_factor": (0, 1e6),
    "mscale": (-1e6, 1e6),
    "mscale_all_dim": (-1e6, 1e6),
}
FLAGS = ("tie_word_embeddings", "truncate")

CONFIG, GENERATION, CARD = "config.json", "generation_config.json", "README.md"
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")
MAX_SHARD_BYTES = 5 * 10**9


def config_from_dict(values, place=CONFIG):
    """Returns the decoder.Config of a parsed `config.json`, written by transformers 4 or 5.

    place: of the values, as an error names it.

    Raises:
      ValueError: lists every setting that this implementation would not follow.
    """
    kind = values.get("model_type")
    if kind not in decoder.FAMILIES:
        raise ValueError(
            f"{place} describes a model_type={kind!r:.80} that models/decoder.py does not know; it "
            f"knows {', '.join(decoder.FAMILIES)}. Use a model of one of these."
        )
    family, absent = decoder.FAMILIES[kind], ABSENT | ABSENT_IN[kind]
    if kind == "llama" and values.get("num_key_value_heads") is None:
        values = values | {"num_key_value_heads": values.get("num_attention_heads")}
    problems = [f"{key} is missing" for key in REQUIRED if values.get(key) is None]
    for key, accepted in {
        "hidden_act": ("silu", None),
        "use_sliding_window": (False, None),
        "use_mrope": (False, None),
        "partial_rotary_factor": (1.0, None),
        "original_max_position_embeddings": (None,),
        "attention_bias": (family.qkv_bias, None),
        "qkv_bias": (family.qkv_bias, None),
        "mlp_bias": (False, None),
        "is_causal": (True, None),
        "quantization_config": (None,),
    }.items():
        if values.get(key) not in accepted:
            problems.append(f"{key}={values.get(key)!r:.80} (supported: {accepted[0]!r})")
    window = values.get("sliding_window", absent.get("sliding_window"))
    if kind == "mistral" and window is not None:
        problems.append(f"sliding_window={window!r:.80} (supported: null)")
    if set(values.get("layer_types") or ()) - {"full_attention"}:
        problems.append(f"layer_types={values['layer_types']!r:.80} (supported: 'full_attention')")
    theta, scaling, rope_problems = _rope(values, absent["max_position_embeddings"])
    problems += rope_problems
    if problems:
        raise ValueError(
            f"{place} describes a model that models/decoder.py would not reproduce: "
            f"{'; '.join(problems)}. Use a {family.title} checkpoint in its published form."
        )
    head_dim = values.get("head_dim") or absent.get("head_dim")
    return decoder.Config(
        **{key: values[key] for key in REQUIRED},
        **{key: absent[key] if values.get(key) is None else values[key] for key in ABSENT},
        head_dim=head_dim or values["hidden_size"] // values["num_attention_heads"],
        rope_theta=theta,
        rope_scaling=scaling,
        model_type=kind,
    )


def _rope(values, context):
    """Returns (theta, scaling or None, problems) from the rope fields of a config.

    context: max_position_embeddings where the config is silent.
    """
    problems, thetas, scalings = [], [values.get("rope_theta")], []
    for key in filter(values.get, ROPES):
        rope = {name: value for name, value in values[key].items() if value is not None}
        thetas.append(rope.pop("rope_theta", None))
        kind = rope.pop("type", "default")
        kind = rope.pop("rope_type", kind)
        if rope.get("partial_rotary_factor") == 1.0:
            del rope["partial_rotary_factor"]
        scaling = SCALINGS.get(kind)
        known = {field.name for field in dataclasses.fields(scaling)} if scaling else set()
        if kind not in ("default", *SCALINGS) or set(rope) - known:
            valid = " or ".join(map(repr, ("default", *SCALINGS)))
            problems.append(f"{key}={values[key]!r} (supported: rope_type {valid})")
            continue
        made, unusable = None, []
        if scaling is decoder.Yarn:
            made, unusable = _yarn(rope, values.get("max_position_embeddings") or context)
        elif scaling is decoder.Llama3:
            made, unusable = _llama3(rope)
        scalings.append(made)
        problems += [f"{key}={values[key]!r}: {problem}" for problem in unusable]
    thetas = {float(theta) for theta in thetas if theta is not None} or {ABSENT_ROPE_THETA}
    if len(thetas) > 1:
        problems.append(f"different rope_theta: {sorted(thetas)}")
    if min(thetas) <= 1:
        problems.append(f"rope_theta={min(thetas)} (supported: above 1)")
    if len(set(scalings)) > 1:
        problems.append("rope_scaling and rope_parameters contradict each other")
    return min(thetas), scalings[0] if scalings else None, problems


def _yarn(rope, context):
    """Returns (Yarn, problems); absent settings are derived as in transformers."""
    original = rope.get("original_max_position_embeddings") or context
    factor = rope.get("factor") or context / original
    optional = {name: rope[name] for name in ("attention_factor", "truncate") if name in rope}
    # As in transformers, 0 means the same as none.
    names = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    optional |= {name: float(rope[name]) for name in names if rope.get(name)}
    yarn = decoder.Yarn(float(factor), int(original), **optional)
    problems = []
    if yarn.factor < 1:
        problems.append(f"factor {yarn.factor} is less than 1")
    if (yarn.attention_factor or 0) < 0:
        problems.append(f"attention_factor {yarn.attention_factor} is negative")
    if yarn.beta_fast < yarn.beta_slow:
        problems.append(f"beta_fast {yarn.beta_fast} is less than beta_slow {yarn.beta_slow}")
    return yarn, problems


def _llama3(rope):
    """Returns (Llama3, []), or (None, problems)."""
    names = [field.name for field in dataclasses.fields(decoder.Llama3)]
    problems = [f"{name} is missing" for name in names if name not in rope]
    if not problems and rope["factor"] < 1:
        problems.append(f"factor {rope['factor']} is less than 1")
    if not problems and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        problems.append("high_freq_factor is not above low_freq_factor")
    if problems:
        return None, problems
    factors = [float(rope[name]) for name in names[:-1]]
    return decoder.Llama3(*factors, int(rope[names[-1]])), []


def config_to_dict(config, *, dtype="float32", original=None):
    """Returns `config.json` of a decoder.Config, readable by transformers 4 and 5 and by vLLM.

    What the two versions call by different names is written under both: `rope_theta` and
    `rope_scaling` are read by 4, `rope_parameters` by 5; so are `torch_dtype` and `dtype`. A name
    that is missing is no error to them: they fall back on a default, such as a theta of 10,000.

    Args:
      dtype: the dtype of the weights that will lie beside it, such as "bfloat16".
      original: the parsed config.json of the model that the weights came from; if it describes the
        same model, all that it says stays, except the dtype.
    """
    values = {
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_cache": True,
        **STATED[config.model_type],
        **dataclasses.asdict(config),
    }
    derived = config.head_dim * config.num_attention_heads == config.hidden_size
    if derived and "head_dim" not in ABSENT_IN[config.model_type]:
        del values["head_dim"]
    scaling = values.pop("rope_scaling")
    with contextlib.suppress(ValueError):  # an original that this implementation would not follow
        if original and config_from_dict(original) == config:
            values = dict(original)
    stated = {"rope_type": "default"}
    if scaling is not None:
        stated = {name: value for name, value in scaling.items() if value is not None}
        kind = next(kind for kind, of in SCALINGS.items() if isinstance(config.rope_scaling, of))
        stated = {"rope_type": kind, **stated}
        values["rope_scaling"] = values.get("rope_scaling") or stated
    values["rope_theta"] = config.rope_theta
    stated = {"rope_theta": config.rope_theta, **stated}
    values["rope_parameters"] = stated | (values.get("rope_parameters") or {})
    return {**values, "dtype": str(dtype), "torch_dtype": str(dtype)}


def read_config(folder):
    """Returns the parsed config.json of a folder.

    Args:
      folder: path, or URL such as "gs://bucket/Qwen2.5-7B-Instruct".

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, or a number is of another type or size than any model has.
    """
    folder = gguf_folder.opened(folder)
    if not folder.has(CONFIG):
        raise FileNotFoundError(
            f"{folder} holds no model: there is no {CONFIG}. A model's folder has {CONFIG}, "
            f"{weights.SINGLE} and the tokenizer's files, as downloaded from the Hugging Face hub."
        )
    values = folder.read_json(CONFIG)
    ropes = {key: values[key] for key in ROPES if values.get(key) is not None}
    wrong = [f"{key}={rope!r:.80}" for key, rope in ropes.items() if not isinstance(rope, dict)]
    if not wrong:
        parts = [values, *ropes.values()]
        wrong = [f"{key}={part[key]!r:.80}" for part in parts for key in filter(_wrong(part), part)]
    if wrong:
        raise ValueError(f"{folder}/{CONFIG} is no model's: {'; '.join(wrong[:10])}.")
    return values


def model_config(folder):
    """Returns the decoder.Config of a folder; raises as `read_config` and `config_from_dict`."""
    return config_from_dict(read_config(folder), f"{folder}/{CONFIG}")


def _wrong(values):
    """Returns the function that tells whether the value of a key is of no model's type or size."""

    def wrong(key):
        value = values[key]
        if value is None:
            return False
        if key in MOST:
            return type(value) is not int or not 0 < value <= MOST[key]
        if key in RANGES:
            least, most = RANGES[key]
            return type(value) not in (int, float) or not least <= value <= most
        if key == "layer_types":
            return not isinstance(value, list) or not all(isinstance(kind, str) for kind in value)
        return key in FLAGS and type(value) is not bool

    return wrong


def load(folder, *, dtype=None, shardings=None):
    """Reads a Hugging Face folder into a Decoder.

    Args:
      folder: path or URL; holds config.json and model.safetensors, or its shards and their index.
      dtype, shardings: of `weights.read`, which also says what memory this takes.

    Raises:
      FileNotFoundError: no configuration or no safetensors file.
      ValueError: an unsupported configuration, a damaged file, or tensors that are missing,
        unexpected or of another shape or dtype; all of them are listed.
    """
    config = model_config(folder)
    model = jax.eval_shape(lambda key: decoder.Decoder(key, config), jax.random.key(0))
    return weights.read(gguf_folder.opened(folder), model, dtype=dtype, shardings=shardings)


def save(
    folder,
    model,
    *,
    base_folder=None,
    tokenizer_folder=None,
    dtype=None,
    generation=None,
    stops=(),
    card=None,
    max_shard_bytes=MAX_SHARD_BYTES,
):
    """Writes a folder that transformers and vLLM load as a model of the same family.

    The values are those of the model, bit for bit, unless `dtype` asks for a conversion. All
    processes call this, the first one writes. There is no config.json until all else is complete.

    Args:
      folder: path or URL; made if it does not exist; files of these names in it are replaced.
      model: a Decoder without adapters, on one device or sharded.
      base_folder: folder of the model it was trained from. What its config.json says stays, its
        licence is copied, and it is the tokenizer_folder if none is given.
      tokenizer_folder: copies the tokenizer's files from there; the generation configuration is
        that of this folder, with all tokens that end a reply by `Tokenizer.eos_ids`, and with the
        tokenizer's padding token where it names none.
      dtype, max_shard_bytes: of `weights.write`, which also says what memory this takes.
      stops: tokens that end a reply beside those that the tokenizer's folder names.
      generation: settings that replace those of the generation configuration.
      card: text of README.md; None writes none.

    Raises:
      ValueError: the model has adapters, or fewer tokens than the tokenizer.
    """
    tokenizer_folder = tokenizer_folder or base_folder
    base = gguf_folder.opened(base_folder) if base_folder else None
    original = base.read_json(CONFIG) if base else None
    written_dtype = np.dtype(dtype or model.embed.table_VD[...].dtype)
    values = config_to_dict(model.config, dtype=written_dtype.name, original=original)
    settings = {}
    if tokenizer_folder:
        settings = _generation_config(tokenizer_folder, model.config.vocab_size, stops)
        ends = ("eos_token_id", "pad_token_id")
        values |= {key: settings[key] for key in ends if values.get(key) is None}
    with contextlib.ExitStack() as stack:
        target = None
        if jax.process_index() == 0:
            new = folders.replacing(folder, last=CONFIG, stale=weights.is_weights)
            target = stack.enter_context(new)
        weights.write(target, model, dtype=dtype, max_shard_bytes=max_shard_bytes)
        if target:
            if tokenizer_folder:
                tokenizer.copy_files(tokenizer_folder, target.location)
            for name in LICENCES:
                if base and base.has(name):
                    target.write(name, base.read(name))
            if card is not None:
                target.write(CARD, card)
            target.write_json(GENERATION, settings | (generation or {}))
            target.write_json(CONFIG, values)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the folder is complete")


def _generation_config(tokenizer_folder, vocab_size, stops):
    vocabulary = tokenizer.Tokenizer.load(tokenizer_folder, stops=stops)
    if vocabulary.vocab_size > vocab_size:
        raise ValueError(
            f"The tokenizer in {tokenizer_folder} has {vocabulary.vocab_size} tokens, the model "
            f"only {vocab_size}. Save the model with the tokenizer it was made for."
        )
    written = gguf_folder.opened(tokenizer_folder).read_json(GENERATION)
    ends = vocabulary.eos_ids
    known = written.get("eos_token_id")
    if known is None or set(ends) - {*(known if isinstance(known, list) else [known])}:
        known = ends[0] if len(ends) == 1 else list(ends)
    return {"pad_token_id": vocabulary.pad_id, **written, "eos_token_id": known}
