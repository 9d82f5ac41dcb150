"""A GGUF file, or a folder of them, as the Hugging Face folder that it would have been.

Its `config.json`, tokenizer and generation configuration are made of the file's values; nothing is
written. So whatever reads a model's folder reads GGUF too.

Source: `convert_hf_to_gguf.py` of llama.cpp, and the values' names in its package `gguf`.

Dimensions:
  H head size
"""

import functools
import json
import math
import os
import re

import numpy as np

from models import folders
from models.gguf import header, tensors, vocabulary

SUFFIX = ".gguf"
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # with these a folder is no GGUF
REORDERED = ("llama",)  # architectures whose rows of q and k have llama.cpp's order

# Value of the architecture -> field of config.json.
FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
FLOATS = ("attention.layer_norm_rms_epsilon", "rope.freq_base")
REQUIRED = ("context_length", "embedding_length", "feed_forward_length", "block_count")
REQUIRED += ("attention.head_count", "attention.layer_norm_rms_epsilon")
# Values that are looked at, or that say nothing about what the model computes.
KNOWN = (*FIELDS, "vocab_size", "attention.value_length", "rope.dimension_count")
KNOWN += ("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length")
KNOWN += ("rope.scaling.finetuned", "tensor_data_layout")
NEUTRAL = {"attention.causal": True}  # of other values 0 and nothing are neutral, False is not
ARCHITECTURES = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
}
F32, MOST_FREQUENCIES = 0, 2**12  # number of a type; most values of `tensors.ROPE`
# As every published Llama 3.1, 3.2 and 3.3 has them; the factor differs.
LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def opened(location):
    """Returns the Folder of a model: a GgufFolder if a GGUF file, or a folder with one, is there.

    A folder that holds safetensors files too is no GgufFolder.

    Args:
      location: path or URL; a GGUF file must be on this disk.

    Raises:
      FileNotFoundError: a part of a model is absent.
      ImportError: the package `gguf` is not installed.
      ValueError: a folder holds several models, or a link is one that `Folder.source` refuses.
    """
    text = str(location)
    if "://" in text:
        if text.endswith(SUFFIX):
            raise ValueError(f"{text} is a remote GGUF file. Copy it to this disk.")
        return folders.Folder(text)
    if text.endswith(SUFFIX) and os.path.isfile(text):
        return GgufFolder(text, _parts(folders.Folder(os.path.dirname(text) or "."), text))
    folder = folders.Folder(text)
    if any(map(folder.has, WEIGHTS)):
        return folder
    names = [name for name in folder.names() if name.endswith(SUFFIX)]
    if not names:
        return folder
    models = sorted({(found := PART.fullmatch(name)) and found[1] or name for name in names})
    if len(models) > 1:
        raise ValueError(
            f"{text} holds {len(models)} GGUF models: {', '.join(models)[:500]}. Name the file."
        )
    return GgufFolder(text, _parts(folder, f"{text}/{names[0]}"))


def _parts(folder, path):
    """Returns the paths of a model's files, the first of which has its values."""
    found = PART.fullmatch(os.path.basename(path))
    if not found:
        return [folder.source(os.path.basename(path))]
    count = int(found[3])
    if not 0 < int(found[2]) <= count:
        raise ValueError(f"{path} is no part of {count} files. Download the model again.")
    names = [f"{found[1]}-{number:05}-of-{found[3]}{SUFFIX}" for number in range(1, count + 1)]
    absent = [name for name in names[:1000] if not folder.has(name)]
    if absent:
        raise FileNotFoundError(f"{folder}: {', '.join(absent)[:500]} is absent. Download it too.")
    return [folder.source(name) for name in names]


class GgufFolder(folders.Folder):
    """The folder of a GGUF model; see the module. It is only read.

    A tokenizer.json that lies beside the file is taken, with the files that belong to it.
    """

    made = True

    def __init__(self, location, parts):
        """Opens nothing.

        Args:
          location: the file or the folder.
          parts: paths of its files.

        Raises:
          ImportError: `gguf` is not installed.
        """
        super().__init__(location)
        tensors.package()
        self._parts = parts
        self._beside = folders.Folder(location) if os.path.isdir(location) else None

    def names(self):
        beside = self._beside.names() if self._beside else []
        return sorted({*beside, *self._files})

    def has(self, name):
        return name in self._files or (self._beside is not None and self._beside.has(name))

    def read(self, name):
        return self._files[name] if name in self._files else self._beside.read(name)

    def source(self, name):
        return self._beside.source(name)

    def open_weights(self):
        """Returns the `tensors.File` of each part.

        Raises:
          ValueError: a file is damaged, or of a kind that is not read.
        """
        config, heads = json.loads(self._files[CONFIG]), {}
        if config["model_type"] in REORDERED:
            for layer in range(config["num_hidden_layers"]):
                name = f"model.layers.{layer}.self_attn." + "{}_proj.weight"
                heads[name.format("q")] = config["num_attention_heads"]
                heads[name.format("k")] = config["num_key_value_heads"]
        return [tensors.File(path, header.read(path), heads=heads) for path in self._parts]

    @functools.cached_property
    def _files(self):
        """{name: bytes} of the files that are made."""
        values = header.read(self._parts[0]).values
        shapes = {}
        for path in self._parts:
            shapes |= {name: t.shape for name, t in header.read(path).tensors.items()}
        config = _config(values, shapes, self.location, self._rope_factors)
        written = {CONFIG: config}
        if self._beside is None or not self._beside.has(TOKENIZER):
            tokenizer = vocabulary.files(values, self.location)
            generation = tokenizer["generation_config.json"]
            config |= {key: generation[key] for key in generation if key != "eos_token_id"}
            written |= tokenizer
        made = {name: json.dumps(value).encode() for name, value in written.items()}
        if isinstance(licence := values.get("general.license"), str):
            made["README.md"] = f"---\nlicense: {json.dumps(licence)}\n---\n".encode()
        return made

    def _rope_factors(self):
        """Returns what divides each frequency, float32 [H/2]; None if there is nothing."""
        for path in self._parts:
            if tensor := header.read(path).tensors.get(tensors.ROPE):
                whole = math.prod(tensor.shape) <= MOST_FREQUENCIES and tensor.type == F32
                with open(path, "rb") as file:
                    file.seek(min(tensor.start, header.read(path).size))
                    raw = file.read(4 * tensor.shape[-1]) if whole else b""
                if len(raw) < 4 * tensor.shape[-1]:
                    raise ValueError(f"{path}: {tensors.ROPE} is damaged. Download it again.")
                return np.frombuffer(raw, "<f4")
        return None


def _config(values, shapes, place, rope_factors):
    """Returns the config.json of a file's values.

    Raises:
      ValueError: lists what this implementation would not follow.
    """
    kind = values.get("general.architecture")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ValueError(
            f"{place} holds a model of architecture {kind!r:.80}; read are "
            f"{', '.join(ARCHITECTURES)}."
        )
    own = {k.removeprefix(f"{kind}."): v for k, v in values.items() if k.startswith(f"{kind}.")}
    problems = [f"{kind}.{key} is missing" for key in REQUIRED if own.get(key) is None]
    problems += [
        f"{kind}.{key:.80}={own[key]!r:.80} (supported: absent)"
        for key in sorted(set(own) - set(KNOWN))
        if own[key] is not NEUTRAL.get(key) and (own[key] or own[key] is False)
    ]
    problems += [
        f"{kind}.{key}={own[key]!r:.80} (supported: a number)"
        for key in FIELDS
        if key in own and type(own[key]) is not (float if key in FLOATS else int)
    ]
    if "token_embd.weight" not in shapes:
        problems.append("token_embd.weight is missing")
    if not problems:
        config = {FIELDS[key]: _short(own[key]) for key in FIELDS if key in own}
        heads = config["num_attention_heads"]
        config.setdefault("num_key_value_heads", heads)
        config.setdefault("head_dim", config["hidden_size"] // max(heads, 1))
        for key in ("attention.value_length", "rope.dimension_count"):
            if own.get(key, config.get("head_dim")) != config.get("head_dim"):
                problems.append(f"{kind}.{key}={own[key]!r:.80} (supported: that of a head)")
        scaling, wrong = _scaling(own, rope_factors(), config)
        problems += wrong
    if problems:
        raise ValueError(
            f"{place} describes a model that would not be reproduced: {'; '.join(problems[:10])}."
        )
    config |= {"vocab_size": shapes["token_embd.weight"][0], **ARCHITECTURES[kind]}
    config |= {"tie_word_embeddings": "output.weight" not in shapes, "hidden_act": "silu"}
    config.setdefault("rope_theta", 1e4)
    return config | ({"rope_scaling": scaling} if scaling else {})


def _short(value):
    """Returns a float32 as the shortest decimal that it stands for: 1e-5, not 9.99999974738e-6."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _scaling(own, factors, config):
    """Returns (rope_scaling or None, problems)."""
    factor = own.get("rope.scaling.factor")
    kind = own.get("rope.scaling.type", "none" if factor in (None, 0, 1) else "linear")
    if kind == "yarn":
        scaling = {"rope_type": "yarn"}
        for key, name in (
            ("factor", "factor"),
            ("original_context_length", "original_max_position_embeddings"),
        ):
            if f"rope.scaling.{key}" in own:
                scaling[name] = own[f"rope.scaling.{key}"]
        return scaling, [] if factors is None else [f"{tensors.ROPE} beside yarn"]
    if kind != "none":
        return None, [f"rope.scaling.type={kind!r:.40} (supported: none, yarn)"]
    if factors is None:
        return None, []
    if 2 * len(factors) != config["head_dim"]:
        return None, [f"{tensors.ROPE} is not that of a head"]
    scaling = LLAMA3 | {"factor": _short(float(factors.max(initial=0)))}
    expected = _llama3_factors(scaling, config)
    if not np.allclose(factors, expected, rtol=1e-4):
        return None, [f"{tensors.ROPE} is not that of Llama 3"]
    return scaling, []


def _llama3_factors(scaling, config):
    """Returns what Llama 3 divides each frequency by, [H/2]."""
    H, theta = config["head_dim"], config.get("rope_theta", 1e4)
    turns_H = scaling["original_max_position_embeddings"] * theta ** (-np.arange(0, H, 2) / H)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept_H = np.clip((turns_H / (2 * np.pi) - low) / (high - low), 0, 1)
    return 1 / ((1 - kept_H) / max(scaling["factor"], 1e-9) + kept_H)
