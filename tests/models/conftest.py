"""The independent reference: tiny random models of transformers, in float32 on the CPU."""

import dataclasses
import pathlib

import numpy as np
import pytest

COMMON = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_theta=1e6,
    rms_norm_eps=1e-2,  # so large that a forgotten one shows
    tie_word_embeddings=False,
)
SHAPES = {
    "tied": dict(tie_word_embeddings=True),
    "untied": dict(),
    "low_theta": dict(rope_theta=1e4),
    "one_kv_head": dict(num_key_value_heads=1),
    "all_kv_heads": dict(num_key_value_heads=4),
    "wide_heads": dict(head_dim=16),
    "qwen3": dict(model_type="qwen3", head_dim=16, tie_word_embeddings=True),
    "llama": dict(model_type="llama", tie_word_embeddings=True),
    # At 24 tokens half of the frequencies lie between the two factors or below them.
    "llama3": dict(
        model_type="llama",
        rope_theta=1e4,
        max_position_embeddings=128,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "mistral": dict(model_type="mistral", head_dim=16, sliding_window=None),
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """A transformers model and the folder that `save_pretrained` wrote it to."""

    folder: pathlib.Path
    model: object

    def logits(self, token_BT):
        """float32 [B, T, V], numpy."""
        import torch

        with torch.no_grad():
            return self.model(torch.tensor(np.asarray(token_BT))).logits.numpy()


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """reference(shape name) -> Reference, made once.

    Weights have std 0.3, biases are not 0 and norm scales not 1: at the default initialisation a
    wrong rotary base or a missing bias hides below any tolerance.
    """
    import torch
    import transformers

    made = {}

    def make(name):
        if name not in made:
            config = transformers.AutoConfig.for_model(
                **({"model_type": "qwen2"} | COMMON | SHAPES[name]), attn_implementation="eager"
            )
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config).eval()
            with torch.no_grad():
                for parameter_name, parameter in model.named_parameters():
                    center = 1.0 if "norm" in parameter_name else 0.0
                    parameter.copy_(center + 0.3 * torch.randn(parameter.shape))
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            made[name] = Reference(folder, model)
        return made[name]

    return make
