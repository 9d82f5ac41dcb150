"""Shapes of published models, for plans and tests without a download.

The general, Instruct, Coder and Math models of one size share their shape. A folder's own
`config.json` takes precedence.

Source: the models' `config.json` files.
"""

from models import decoder


def _config(
    vocabulary, width, feed_forward, layers, heads, kv_heads, *, head_size=128, tied=False, **others
):
    return decoder.Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_size,
        tie_word_embeddings=tied,
        **others,
    )


def _qwen3(*sizes, tied=False):
    return _config(151_936, *sizes, tied=tied, model_type="qwen3", max_position_embeddings=40_960)


def _llama3(factor, *sizes, **others):
    return _config(
        128_256,
        *sizes,
        model_type="llama",
        max_position_embeddings=131_072,
        rope_theta=5e5,
        rope_scaling=decoder.Llama3(factor, 1.0, 4.0, 8_192),
        rms_norm_eps=1e-5,
        **others,
    )


def _smollm2(*sizes, theta=1e5):
    return _config(
        49_152,
        *sizes,
        head_size=64,
        tied=True,
        model_type="llama",
        max_position_embeddings=8_192,
        rope_theta=theta,
        rms_norm_eps=1e-5,
    )


SIZES = {  # Qwen2.5, then the others
    "0.5b": _config(151_936, 896, 4_864, 24, 14, 2, head_size=64, tied=True),
    "1.5b": _config(151_936, 1_536, 8_960, 28, 12, 2, tied=True),
    "3b": _config(151_936, 2_048, 11_008, 36, 16, 2, tied=True),
    "7b": _config(152_064, 3_584, 18_944, 28, 28, 4),
    "14b": _config(152_064, 5_120, 13_824, 48, 40, 8),
    "32b": _config(152_064, 5_120, 27_648, 64, 40, 8),
    "72b": _config(152_064, 8_192, 29_568, 80, 64, 8),
    "qwen3-0.6b": _qwen3(1_024, 3_072, 28, 16, 8, tied=True),
    "qwen3-1.7b": _qwen3(2_048, 6_144, 28, 16, 8, tied=True),
    "qwen3-4b": _qwen3(2_560, 9_728, 36, 32, 8, tied=True),
    "qwen3-8b": _qwen3(4_096, 12_288, 36, 32, 8),
    "qwen3-14b": _qwen3(5_120, 17_408, 40, 40, 8),
    "qwen3-32b": _qwen3(5_120, 25_600, 64, 64, 8),
    "llama3.2-1b": _llama3(32.0, 2_048, 8_192, 16, 32, 8, head_size=64, tied=True),
    "llama3.2-3b": _llama3(32.0, 3_072, 8_192, 28, 24, 8, tied=True),
    "llama3.1-8b": _llama3(8.0, 4_096, 14_336, 32, 32, 8),
    "llama3.1-70b": _llama3(8.0, 8_192, 28_672, 80, 64, 8),
    "smollm2-135m": _smollm2(576, 1_536, 30, 9, 3),
    "smollm2-360m": _smollm2(960, 2_560, 32, 15, 5),
    "smollm2-1.7b": _smollm2(2_048, 8_192, 24, 32, 32, theta=1.3e5),
    "mistral-7b": _config(
        32_768,
        4_096,
        14_336,
        32,
        32,
        8,
        model_type="mistral",
        rope_theta=1e6,
        rms_norm_eps=1e-5,
    ),
}
