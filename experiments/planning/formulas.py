"""What the update costs by arithmetic: FLOPs, and the memory of a micro-batch.

FLOPs count products only, causal attention by half. "Useful" is what the gradient needs: no
recomputation, no reference, no padding. Memory is an estimate, held against compiled programs in
docs/scaling.md; what lies in memory between programs is not estimated but counted (programs.py).

Dimensions:
  L layers    D model width    F feed-forward width    V vocabulary    N query heads
  K key/value heads    H head size    P rank of an adapter
"""

import dataclasses

import jax.numpy as jnp

from models import lora, qwen2

# How often the backward pass computes a layer's products with weights, and its attention, again.
RECOMPUTED = {"none": (0, 0), "dots": (0, 1), "attention": (1, 0), "full": (1, 1)}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What decides the cost of a micro-batch.

    data, fsdp, tensor: sizes of the mesh axes. sequence, remat, chunk: of the config.
    dtype: compute dtype by name.
    adapters: LoRA settings, None if every parameter is trained.
    reference: the reference policy is scored too.
    """

    shape: qwen2.Config
    data: int
    fsdp: int
    tensor: int
    sequence: bool
    dtype: str
    remat: str
    chunk: int
    adapters: lora.Settings | None
    reference: bool

    @property
    def devices(self):
        return self.data * self.fsdp * self.tensor


# ---- the model ---------------------------------------------------------------------------------


def layer_parameters(shape):
    """Parameters of the matrices of one layer."""
    D, F, H = shape.hidden_size, shape.intermediate_size, shape.head_dim
    N, K = shape.num_attention_heads, shape.num_key_value_heads
    return 2 * D * N * H + 2 * D * K * H + 3 * D * F


def matmul_parameters(shape):
    """Parameters a token is multiplied with: all matrices and the unembedding."""
    return shape.num_hidden_layers * layer_parameters(shape) + shape.hidden_size * shape.vocab_size


def attention_flops(shape, tokens):
    """Forward FLOPs of causal attention over a sequence of so many tokens, in all layers."""
    width = shape.num_attention_heads * shape.head_dim
    return 2 * shape.num_hidden_layers * width * tokens**2


def cache_bytes(shape, tokens, itemsize=2):
    """Bytes of the keys and values of so many tokens."""
    width = shape.num_key_value_heads * shape.head_dim
    return 2 * shape.num_hidden_layers * width * tokens * itemsize


# ---- FLOPs -------------------------------------------------------------------------------------


def train_flops(shape, tokens, turn_tokens):
    """Useful FLOPs of training all parameters on so many tokens, in sequences of `turn_tokens`.

    6 * matmul parameters a token and three times the attention's forward pass.
    """
    sequences = tokens / turn_tokens
    products = 6 * matmul_parameters(shape) * tokens
    return products + 3 * sequences * attention_flops(shape, turn_tokens)


def turn_flops(setting, tokens, responses):
    """(useful, executed) FLOPs of one turn in the update, whatever it shares with others.

    Args:
      tokens: of the turn, prompt and response. responses: of its response, which alone are
        unembedded.
    """
    shape = setting.shape
    layers = 2 * shape.num_hidden_layers * layer_parameters(shape) * tokens
    attention = attention_flops(shape, tokens)
    head = 2 * shape.hidden_size * shape.vocab_size * responses
    # Backward: the gradient of inputs and of weights, one product each; frozen weights have none.
    backward = 2 if setting.adapters is None else 1
    products, attentions = RECOMPUTED[setting.remat]
    useful = (1 + backward) * layers + 3 * attention + (1 + backward) * head
    again = products * layers + attentions * attention + head  # chunks of logits are made twice
    reference = layers + attention + head if setting.reference else 0
    return useful, useful + again + reference


# ---- memory ------------------------------------------------------------------------------------


def temporaries(setting, rows, tokens, responses):
    """Estimated bytes per device that one micro-batch takes beside its inputs and outputs.

    Args:
      rows: of the micro-batch, on all devices. tokens, responses: of a row.
    """
    shape, itemsize = setting.shape, jnp.dtype(setting.dtype).itemsize
    D, V = shape.hidden_size, shape.vocab_size
    tensor, both = setting.tensor, setting.fsdp * setting.tensor
    local = rows / (setting.data * setting.fsdp) * tokens  # tokens of this device's rows
    spread = local / (tensor if setting.sequence else 1)
    attention = shape.num_attention_heads * shape.head_dim / tensor
    projected = attention + 2 * shape.num_key_value_heads * shape.head_dim / tensor
    wide = shape.intermediate_size / tensor

    # Saved by the forward pass for the backward pass, of every layer.
    saved = spread * D * itemsize
    if setting.remat == "attention":
        saved += local * attention * itemsize
    elif setting.remat in ("dots", "none"):
        saved += (local * (projected + 2 * wide) + 2 * spread * D) * itemsize
        if setting.remat == "none":
            saved += local * (2 * attention + 2 * wide) * itemsize + 2 * spread * D * 4
    saved *= shape.num_hidden_layers
    copies = 0
    if setting.remat != "full" and setting.adapters is None:  # all weights cast, and their gradient
        copies = 2 * shape.num_hidden_layers * layer_parameters(shape) / both * itemsize
    head = V * D / both * itemsize  # as it is multiplied

    # Then either one layer: activations and their gradients, weights as gathered (with rows spread
    # over `tensor`, XLA prefers to gather these) and their gradient.
    layer = local * (4.5 * wide + 2 * projected + 2 * D) * itemsize + spread * D * 4
    layer += 1.5 * layer_parameters(shape) / (1 if setting.sequence else tensor) * itemsize
    # Or the unembedding: the gradient of the head, a chunk of logits, hidden states to unembed.
    logits = 3 * max(setting.chunk, rows) / setting.data * V / both * 4
    unembedding = logits + 3 * rows / setting.data * responses * D / setting.fsdp * itemsize
    if setting.adapters is None:
        unembedding += V * D / both * 4
    return saved + copies + head + max(layer, unembedding)


def exchanged(setting, rows, tokens):
    """Estimated bytes that one device receives in a micro-batch.

    Weights are gathered over `fsdp` in each pass and their gradients reduced once; between the
    devices of `tensor`, activations are gathered and reduced twice a layer and pass.
    """
    shape, itemsize = setting.shape, jnp.dtype(setting.dtype).itemsize
    passes = 2 + RECOMPUTED[setting.remat][0] + setting.reference
    layers = shape.num_hidden_layers * layer_parameters(shape) / setting.tensor * itemsize
    trained = setting.adapters is None
    weights = (passes + trained) * layers * (1 - 1 / setting.fsdp)
    reduced = 2 * layers * (1 - 1 / setting.data) if trained else 0
    local = rows / (setting.data * setting.fsdp) * tokens
    between = 4 * passes * local * shape.hidden_size * itemsize * (1 - 1 / setting.tensor)
    return weights + reduced + shape.num_hidden_layers * between
