"""A small Decoder architecture."""

from models import decoder


def small(**changes):
    sizes = dict(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    return decoder.Config(**sizes | changes)
