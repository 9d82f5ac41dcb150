"""Qwen2.5 weights and configuration, from and to a Hugging Face folder. Needs no torch.

Dimensions (parameter names end in them, as in models/qwen2.py):
  L layers    D model width    F feed-forward width    V vocabulary
  N query heads    K key/value heads    H head size

Source: `Qwen2ForCausalLM` and `Qwen2Config` in transformers. A `Linear` there holds [out, in] with
heads and head size merged; here a matrix is [in..., out...] and layers are stacked.
"""

import contextlib
import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from models import qwen2, sharding, tokenizer

LAYER = "model.layers.{layer}."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# Our name -> (Hugging Face name, input dimensions of the matrix; 0 for what is not a matrix).
LAYOUT = {
    "embed/table_VD": (EMBEDDING, 0),
    "blocks/attn_norm/scale_D": (LAYER + "input_layernorm.weight", 0),
    "blocks/attn/w_q_DNH": (LAYER + "self_attn.q_proj.weight", 1),
    "blocks/attn/w_k_DKH": (LAYER + "self_attn.k_proj.weight", 1),
    "blocks/attn/w_v_DKH": (LAYER + "self_attn.v_proj.weight", 1),
    "blocks/attn/w_o_NHD": (LAYER + "self_attn.o_proj.weight", 2),
    "blocks/attn/b_q_NH": (LAYER + "self_attn.q_proj.bias", 0),
    "blocks/attn/b_k_KH": (LAYER + "self_attn.k_proj.bias", 0),
    "blocks/attn/b_v_KH": (LAYER + "self_attn.v_proj.bias", 0),
    "blocks/mlp_norm/scale_D": (LAYER + "post_attention_layernorm.weight", 0),
    "blocks/mlp/w_gate_DF": (LAYER + "mlp.gate_proj.weight", 1),
    "blocks/mlp/w_up_DF": (LAYER + "mlp.up_proj.weight", 1),
    "blocks/mlp/w_down_FD": (LAYER + "mlp.down_proj.weight", 1),
    "final_norm/scale_D": ("model.norm.weight", 0),
    "head/w_DV": (HEAD, 1),
}
FLOATS = ("F64", "F32", "F16", "BF16")
# Computed from the configuration; files of old transformers versions hold them all the same.
COMPUTED = "rotary_emb.inv_freq"

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
# What transformers assumes where config.json is silent (qwen2.Config has the published values).
ABSENT = {
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32768,
    "initializer_range": 0.02,
}
ABSENT_ROPE_THETA = 1e4


def config_from_dict(values):
    """The qwen2.Config of a parsed `config.json`, written by transformers 4 or 5.

    Raises:
      ValueError: lists every setting that this implementation would not follow.
    """
    problems = [f"{key} is missing" for key in REQUIRED if values.get(key) is None]
    for key, accepted in {
        "model_type": ("qwen2",),
        "hidden_act": ("silu", None),
        "use_sliding_window": (False, None),
        "attention_bias": (True, None),
        "qkv_bias": (True, None),
        "mlp_bias": (False, None),
        "quantization_config": (None,),
    }.items():
        if values.get(key) not in accepted:
            problems.append(f"{key}={values.get(key)!r} (supported: {accepted[0]!r})")
    if set(values.get("layer_types") or ()) - {"full_attention"}:
        problems.append(f"layer_types={values['layer_types']!r} (supported: 'full_attention')")
    theta, rope_problems = _rope_theta(values)
    problems += rope_problems
    if problems:
        raise ValueError(
            "config.json describes a model that models/qwen2.py would not reproduce: "
            f"{'; '.join(problems)}. Use a Qwen2 or Qwen2.5 checkpoint in its published form."
        )
    return qwen2.Config(
        **{key: values[key] for key in REQUIRED},
        **{key: values.get(key, default) for key, default in ABSENT.items()},
        head_dim=values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"],
        rope_theta=theta,
    )


def _rope_theta(values):
    """(theta, problems) from `rope_theta` and `rope_scaling`, or `rope_parameters`."""
    problems, thetas = [], []
    if values.get("rope_theta") is not None:
        thetas.append(values["rope_theta"])
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        unknown = set(rope) - {"rope_type", "type", "rope_theta"}
        if kind != "default" or (unknown and rope.get("partial_rotary_factor", 1.0) != 1.0):
            problems.append(f"{key}={rope!r} (supported: rope_type 'default')")
        if rope.get("rope_theta") is not None:
            thetas.append(rope["rope_theta"])
    if len(set(thetas)) > 1:
        problems.append(f"two different rope_theta: {thetas}")
    return float(thetas[0]) if thetas else ABSENT_ROPE_THETA, problems


def config_to_dict(config, *, dtype="float32"):
    """`config.json` of a qwen2.Config, readable by transformers 4 and 5 and by vLLM.

    Args:
      dtype: the dtype of the weights that will lie beside it, such as "bfloat16".
    """
    values = dataclasses.asdict(config)
    if config.head_dim * config.num_attention_heads == config.hidden_size:
        del values["head_dim"]
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_cache": True,
        "use_sliding_window": False,
        "torch_dtype": str(dtype),
        **values,
    }


def load(folder, *, dtype=jnp.float32, shardings=None):
    """Reads a Hugging Face folder into a Qwen2, one parameter at a time.

    Args:
      folder: holds config.json and model.safetensors, or its shards and their index.
      dtype: dtype of the arrays, whatever the file holds.
      shardings: pytree from `sharding.parameter_shardings`; None puts all on the default device.

    Memory: on the host, one stacked parameter (all layers of one matrix) in `dtype` at a time.

    Raises:
      FileNotFoundError: no configuration or no safetensors file.
      ValueError: an unsupported configuration, or tensors that are missing, unexpected or of
        another shape; all of them are listed.
    """
    folder = pathlib.Path(folder)
    config = config_from_dict(read_config(folder))
    make = lambda key: qwen2.Qwen2(key, config, dtype)
    leaves, structure = jax.tree.flatten(jax.eval_shape(make, jax.random.key(0)))
    names = sharding.parameter_names(structure.unflatten(leaves))
    placements = [None] * len(leaves) if shardings is None else jax.tree.leaves(shardings)
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(safetensors.safe_open(path, framework="numpy"))
            for path in _weight_files(folder)
        ]
        file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        _check_tensors(folder, config, names, leaves, file_of)
        arrays = [
            _place(_read(name, leaf, file_of), placement)
            for name, leaf, placement in zip(names, leaves, placements, strict=True)
        ]
    return structure.unflatten(arrays)


def read_config(folder):
    """The parsed config.json of a folder."""
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. A model folder holds config.json, model.safetensors and the "
            "tokenizer's files, as downloaded from the Hugging Face hub."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def save(folder, model, *, tokenizer_folder=None, dtype=None):
    """Writes a folder that transformers and vLLM load as `Qwen2ForCausalLM`.

    Writes config.json, model.safetensors and generation_config.json. The values are those of the
    model, bit for bit, unless `dtype` asks for a conversion.

    Args:
      folder: made if it does not exist; files of these names in it are replaced.
      model: a Qwen2.
      tokenizer_folder: copies the tokenizer's files from there; the generation configuration is
        that of this folder, with the tokenizer's end and padding tokens where it names none.
      dtype: dtype of the file; None keeps the model's own.
    """
    folder = pathlib.Path(folder)
    dtype = np.dtype(dtype or model.embed.table_VD[...].dtype)
    values, generation = config_to_dict(model.config, dtype=dtype.name), {}
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer_folder is not None:
        generation = _generation_config(tokenizer_folder, model.config.vocab_size)
        values |= {key: generation[key] for key in ("eos_token_id", "pad_token_id")}
        tokenizer.copy_files(tokenizer_folder, folder)
    _write_json(folder / "config.json", values)
    _write_json(folder / "generation_config.json", generation)
    safetensors.numpy.save_file(
        _tensors(model, dtype), folder / "model.safetensors", metadata={"format": "pt"}
    )


def _generation_config(tokenizer_folder, vocab_size):
    vocabulary = tokenizer.Tokenizer.load(tokenizer_folder)
    if vocabulary.vocab_size > vocab_size:
        raise ValueError(
            f"The tokenizer in {tokenizer_folder} has {vocabulary.vocab_size} tokens, the model "
            f"only {vocab_size}. Save the model with the tokenizer it was made for."
        )
    path = pathlib.Path(tokenizer_folder) / "generation_config.json"
    written = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    eos_ids = vocabulary.eos_ids
    ends = {"eos_token_id": eos_ids[0] if len(eos_ids) == 1 else list(eos_ids)}
    return {**ends, "pad_token_id": vocabulary.pad_id, **written}


def _tensors(model, dtype):
    """{Hugging Face name: numpy array} of a model."""
    tensors = {}
    for name, leaf in zip(sharding.parameter_names(model), jax.tree.leaves(model), strict=True):
        template, inputs = LAYOUT[name]
        value = np.asarray(leaf).astype(dtype, copy=False)
        for layer, part in enumerate(value if LAYER in template else value[None]):
            shape = _file_shape(name, part.shape)
            merged = part.reshape(shape[::-1]).T if inputs else part.reshape(shape)
            tensors[template.format(layer=layer)] = np.ascontiguousarray(merged)
    return tensors


def _write_json(path, values):
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _weight_files(folder):
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{folder} has neither {single.name} nor {index.name}; it has {found}. Download the "
            "safetensors form of the checkpoint (.bin and .pt files are not read)."
        )
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    paths = [folder / name for name in sorted(set(names))]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise FileNotFoundError(
            f"{index} names {len(paths)} files; absent: {', '.join(absent)}. Download them too."
        )
    return paths


def _file_shape(name, shape):
    """Shape in the file of one layer's parameter of shape `shape` here."""
    inputs = LAYOUT[name][1]
    if inputs:
        return math.prod(shape[inputs:]), math.prod(shape[:inputs])
    return shape if name == "embed/table_VD" else (math.prod(shape),)


def _check_tensors(folder, config, names, leaves, file_of):
    """Raises one ValueError that lists everything wrong with the tensors of a folder."""
    expected, problems = {}, []
    for name, leaf in zip(names, leaves, strict=True):
        template, _ = LAYOUT[name]
        layers = leaf.shape[0] if LAYER in template else 1
        shape = leaf.shape[1:] if LAYER in template else leaf.shape
        for layer in range(layers):
            expected[template.format(layer=layer)] = _file_shape(name, shape)
    for name, shape in expected.items():
        if name not in file_of:
            problems.append(f"missing: {name} {list(shape)}")
            continue
        found = file_of[name].get_slice(name)
        if tuple(found.get_shape()) != tuple(shape):
            problems.append(f"shape of {name}: {found.get_shape()}, expected {list(shape)}")
        if found.get_dtype() not in FLOATS:
            problems.append(f"dtype of {name}: {found.get_dtype()}, expected {'/'.join(FLOATS)}")
    for name in sorted(set(file_of) - set(expected)):
        if name == HEAD and config.tie_word_embeddings:
            table = file_of.get(EMBEDDING) and file_of[EMBEDDING].get_tensor(EMBEDDING)
            if not np.array_equal(file_of[HEAD].get_tensor(HEAD), table):
                problems.append(f"{HEAD} differs from the embedding, but tie_word_embeddings=true")
        elif not name.endswith(COMPUTED):
            problems.append(f"unexpected: {name} {file_of[name].get_slice(name).get_shape()}")
    if problems:
        listing = "\n  ".join(problems)
        raise ValueError(
            f"{folder}: the tensors do not fit config.json. Check that both come from the same "
            f"checkpoint and that the download is complete.\n  {listing}"
        )


def _read(name, leaf, file_of):
    """One parameter of shape leaf.shape as a numpy array, its layers stacked."""
    template, inputs = LAYOUT[name]
    value = np.empty(leaf.shape, leaf.dtype)
    for layer, part in enumerate(value if LAYER in template else value[None]):
        file_name = template.format(layer=layer)
        tensor = file_of[file_name].get_tensor(file_name)
        part[...] = (tensor.T if inputs else tensor).reshape(part.shape)
    return value


def _place(value, placement):
    if placement is None:
        return jnp.asarray(value)
    return jax.make_array_from_callback(value.shape, placement, lambda index: value[index])
