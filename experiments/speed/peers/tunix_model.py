"""Tunix's Qwen2 from a Hugging Face folder."""

import json
import pathlib

import jax.numpy as jnp
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen2 import params as qwen2_params


def read(folder, mesh, *, dtype, weights_dtype=jnp.float32, remat=False):
    """Reads the model, to compute in `dtype`; `remat` recomputes layers in backward."""
    values = json.loads((pathlib.Path(folder) / "config.json").read_text())
    heads = values["num_attention_heads"]
    config = qwen2.ModelConfig(
        num_layers=values["num_hidden_layers"],
        vocab_size=values["vocab_size"],
        embed_dim=values["hidden_size"],
        hidden_dim=values["intermediate_size"],
        num_heads=heads,
        head_dim=values.get("head_dim", values["hidden_size"] // heads),
        num_kv_heads=values["num_key_value_heads"],
        rope_theta=values["rope_theta"],
        norm_eps=values["rms_norm_eps"],
        use_tied_embedding=values["tie_word_embeddings"],
        remat_config=qwen2.RematConfig.DECODER if remat else qwen2.RematConfig.NONE,
        dtype=jnp.dtype(dtype),
    )
    return qwen2_params.create_model_from_safe_tensors(str(folder), config, mesh, weights_dtype)
