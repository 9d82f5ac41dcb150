"""Shapes of the published Qwen2.5 models, for plans and tests without a download.

The general, Instruct, Coder and Math models of one size share their shape. A folder's own
`config.json` takes precedence.

Source: the models' `config.json` files.
"""

from models import decoder


def _config(vocabulary, width, feed_forward, layers, heads, kv_heads, *, head_size=128, tied=False):
    return decoder.Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_size,
        tie_word_embeddings=tied,
    )


SIZES = {
    "0.5b": _config(151_936, 896, 4_864, 24, 14, 2, head_size=64, tied=True),
    "1.5b": _config(151_936, 1_536, 8_960, 28, 12, 2, tied=True),
    "3b": _config(151_936, 2_048, 11_008, 36, 16, 2, tied=True),
    "7b": _config(152_064, 3_584, 18_944, 28, 28, 4),
    "14b": _config(152_064, 5_120, 13_824, 48, 40, 8),
    "32b": _config(152_064, 5_120, 27_648, 64, 40, 8),
    "72b": _config(152_064, 8_192, 29_568, 80, 64, 8),
}
