"""What the update costs by arithmetic: FLOPs, and the memory of a micro-batch.

FLOPs count products only, and half of the products of causal attention. "Useful" is what the
gradient needs: no recomputation, no reference, no padding. Memory is an estimate; docs/scaling.md
compares it with compiled programs. What stays in memory between programs is not estimated but
counted (programs.py).

Dimensions:
  D model width    F feed-forward width    V vocabulary    N query heads
  K key/value heads    H head size
"""

import dataclasses

import jax.numpy as jnp

from models import decoder, lora

# How many times the backward pass recomputes a layer's products with weights, and its attention.
RECOMPUTED = {"none": (0, 0), "dots": (0, 0), "attention": (1, 0), "full": (1, 1)}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What decides the cost of a micro-batch.

    data, fsdp, tensor: sizes of the mesh axes. sequence, remat, chunk: of the config.
    dtype: compute dtype by name.
    adapters: LoRA settings, None if every parameter is trained.
    reference: the reference policy is scored too.
    """

    dims: decoder.Config
    data: int
    fsdp: int
    tensor: int
    sequence: bool
    dtype: str
    remat: str
    chunk: int
    adapters: lora.Settings | None
    reference: bool


# ---- the model ---------------------------------------------------------------------------------


def attention_flops(dims, tokens):
    """Counts forward FLOPs of causal attention over a sequence of so many tokens, in all layers."""
    width = dims.num_attention_heads * dims.head_dim
    return 2 * dims.num_hidden_layers * width * tokens**2


# ---- FLOPs -------------------------------------------------------------------------------------


def turn_flops(setting, tokens, responses):
    """Returns (useful, executed) FLOPs of one turn in the update, whatever it shares with others.

    Args:
      tokens: of the turn, prompt and response. responses: of its response, which alone are
        unembedded.
    """
    dims = setting.dims
    layers = 2 * dims.num_hidden_layers * dims.layer_parameters * tokens
    attention = attention_flops(dims, tokens)
    head = 2 * dims.hidden_size * dims.vocab_size * responses
    # Backward: the gradient of inputs and of weights, one product each; frozen weights have none.
    backward = 2 if setting.adapters is None else 1
    products, attentions = RECOMPUTED[setting.remat]
    useful = (1 + backward) * layers + 3 * attention + (1 + backward) * head
    again = products * layers + attentions * attention + head  # chunks of logits are made twice
    reference = layers + attention + head if setting.reference else 0
    return useful, useful + again + reference


# ---- memory ------------------------------------------------------------------------------------


def temporaries(setting, rows, tokens, responses):
    """Estimates the bytes per device that one micro-batch takes beside its inputs and outputs.

    Args:
      rows: of the micro-batch, on all devices. tokens, responses: of a row.
    """
    dims, itemsize = setting.dims, jnp.dtype(setting.dtype).itemsize
    D, V = dims.hidden_size, dims.vocab_size
    tensor, both = setting.tensor, setting.fsdp * setting.tensor
    local = rows / (setting.data * setting.fsdp) * tokens  # tokens of this device's rows
    spread = local / (tensor if setting.sequence else 1)
    attention = dims.num_attention_heads * dims.head_dim / tensor
    projected = attention + 2 * dims.num_key_value_heads * dims.head_dim / tensor
    wide = dims.intermediate_size / tensor

    # Saved by the forward pass for the backward pass, of every layer.
    saved = spread * D * itemsize
    if setting.remat == "attention":
        saved += local * attention * itemsize
    elif setting.remat in ("dots", "none"):
        saved += (local * (projected + 2 * wide) + 2 * spread * D) * itemsize
        saved += local * attention * itemsize  # its output; "none" also keeps its input
        if setting.remat == "none":
            saved += local * (attention + 2 * wide) * itemsize + 2 * spread * D * 4
    saved *= dims.num_hidden_layers
    copies = 0
    if setting.remat != "full" and setting.adapters is None:  # all weights cast, and their gradient
        copies = 2 * dims.num_hidden_layers * dims.layer_parameters / both * itemsize
    head = V * D / both * itemsize  # as it is multiplied

    # Then either one layer: activations and their gradients, weights as gathered (with rows spread
    # over `tensor`, XLA prefers to gather these) and their gradient.
    layer = local * (4.5 * wide + 2 * projected + 2 * D) * itemsize + spread * D * 4
    layer += 1.5 * dims.layer_parameters / (1 if setting.sequence else tensor) * itemsize
    # Or the unembedding: the gradient of the head, a chunk of logits, hidden states to unembed.
    logits = 3 * max(setting.chunk, rows) / setting.data * V / both * 4
    unembedding = logits + 3 * rows / setting.data * responses * D / setting.fsdp * itemsize
    if setting.adapters is None:
        unembedding += V * D / both * 4
    return saved + copies + head + max(layer, unembedding)


def exchanged(setting, rows, tokens):
    """Estimates the bytes that one device receives in a micro-batch.

    Weights are gathered over `fsdp` in each pass and their gradients reduced once; between the
    devices of `tensor`, activations are gathered and reduced twice a layer and pass.
    """
    dims, itemsize = setting.dims, jnp.dtype(setting.dtype).itemsize
    passes = 2 + RECOMPUTED[setting.remat][0] + setting.reference
    layers = dims.num_hidden_layers * dims.layer_parameters / setting.tensor * itemsize
    trained = setting.adapters is None
    weights = (passes + trained) * layers * (1 - 1 / setting.fsdp)
    reduced = 2 * layers * (1 - 1 / setting.data) if trained else 0
    local = rows / (setting.data * setting.fsdp) * tokens
    between = 4 * passes * local * dims.hidden_size * itemsize * (1 - 1 / setting.tensor)
    return weights + reduced + dims.num_hidden_layers * between
