"""The decoder of Qwen2.5, Qwen3, Llama and Mistral: a Flax NNX module used as a plain pytree.

They are one architecture; `Config` says where they differ. One definition of the block serves
training and sampling: the caller hands in `attend`, which training makes from a segment mask and
the engine from its cache. Layers are stacked: every array below `blocks` has a leading layer axis
(L) and `hidden` walks it with one `lax.scan`.

Source: Qwen2.5, Qwen3 and Llama 3 technical reports (arXiv 2412.15115, 2505.09388, 2407.21783);
`Qwen2ForCausalLM`, `Qwen3ForCausalLM`, `LlamaForCausalLM` and `MistralForCausalLM` in transformers.

Dimensions:
  B rows    T tokens in a row    D model width    F feed-forward width    V vocabulary
  L layers    N query heads    K key/value heads    H head size
  X tokens of all rows    I, O inputs and outputs of a matrix, flattened
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models import sharding
from models.attention import kernels, masks

REMAT = {  # what the backward pass of a block finds saved, besides the block's input
    "none": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, kernels.saveable
    ),
    "attention": kernels.saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Execution:
    """Choices for running whole sequences; they change rounding and memory, never the maths.

    dtype: compute dtype of the transformer; norms, softmax and logits are float32 inside.
    remat: what the backward pass finds saved, besides the input of each block:
      "none"       all activations
      "dots"       the results of products with weights, and what "attention" keeps
      "attention"  the output of attention, and its own residuals
      "full"       nothing; weights are cast to `dtype` layer by layer, not all beforehand, which
                   saves 4 bytes a parameter (the copy and its gradient)
    attend: (q_BTNH, k_BTKH, v_BTKH, until_BT) -> o_BTNH, from `kernels.make`.
    residual: NamedSharding of x_BTD between blocks, from `sharding.residual_sharding`; the layout
      of embeddings and weights follows from it. None for one device.
    """

    dtype: jax.typing.DTypeLike
    remat: str
    attend: Callable = dataclasses.field(default_factory=kernels.make)
    residual: jax.sharding.Sharding | None = None

    def __post_init__(self):
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat!r} is unknown; valid: {', '.join(REMAT)}.")

    def embedded(self, model, token_BT):
        if self.residual is None:
            return model.embedded(token_BT, self.dtype)
        return sharding.embedded_rows(
            model.embed.table_VD[...], token_BT, self.residual, self.dtype
        )

    def prepared(self, block):
        """Returns a block's weights in `dtype`, where its rows are."""
        block = jax.tree.map(functools.partial(cast_here, dtype=self.dtype), block)
        return block if self.residual is None else sharding.gathered(self.residual.mesh, block)

    def place(self, x_BTD):
        if self.residual is None:
            return x_BTD
        return jax.lax.with_sharding_constraint(x_BTD, self.residual)


@dataclasses.dataclass(frozen=True)
class Yarn:
    """Context extension by YaRN (arXiv 2309.00071); fields as in `rope_scaling` of `config.json`.

    factor: length of the context / that of pretraining.
    original_max_position_embeddings: tokens, context of pretraining.
    attention_factor: multiplies queries and keys; None computes it from factor, mscale and
      mscale_all_dim.
    beta_fast, beta_slow: a frequency with more than beta_fast turns over the pretraining context
      stays as it is; one with fewer than beta_slow is divided by factor.
    truncate: round the bounds between the two to whole dimensions.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Context extension of Llama 3.1 and later; fields as in `rope_scaling` of `config.json`.

    factor: divides the frequencies that turn fewer than low_freq_factor times over the context of
      pretraining; those that turn more than high_freq_factor times stay, between they are mixed.
    original_max_position_embeddings: tokens, context of pretraining.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class Family:
    """Where models of one `model_type` differ from others.

    title: the name that people know.
    qkv_bias: the products that make q, k and v have biases.
    qk_norm: each head of q and k is normalised before it is rotated.
    """

    title: str
    qkv_bias: bool = False
    qk_norm: bool = False


FAMILIES = {
    "qwen2": Family("Qwen2.5", qkv_bias=True),
    "qwen3": Family("Qwen3", qk_norm=True),
    "llama": Family("Llama"),
    "mistral": Family("Mistral"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape and constants of a model; fields as in a Hugging Face `config.json`.

    rope_scaling: Yarn, Llama3, or None for plain rotary embeddings.
    model_type: one of FAMILIES.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rope_scaling: Yarn | Llama3 | None = None
    model_type: str = "qwen2"

    def __post_init__(self):
        if self.model_type not in FAMILIES:
            raise ValueError(
                f"model_type={self.model_type!r} is unknown; valid: {', '.join(FAMILIES)}."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; rotary embeddings need it even.")

    @property
    def family(self):
        return FAMILIES[self.model_type]

    @property
    def layer_parameters(self):
        """Parameters of the matrices of one layer."""
        heads = self.num_attention_heads + self.num_key_value_heads
        attention = 2 * self.hidden_size * heads * self.head_dim
        return attention + 3 * self.hidden_size * self.intermediate_size


def rope_frequencies(config):
    """Returns (float32 [H/2] radians per position, factor on cos and sin) of a Config, in NumPy."""
    theta, H, scaling = config.rope_theta, config.head_dim, config.rope_scaling
    plain_H = theta ** (-np.arange(0, H, 2) / H)
    if isinstance(scaling, Yarn):
        return _yarn(plain_H, theta, scaling), _yarn_attention_factor(scaling)
    frequency_H = plain_H if scaling is None else _llama3(plain_H, scaling)
    return frequency_H.astype(np.float32), 1.0


def _yarn(plain_H, theta, yarn):
    """Returns the mean of the plain frequency and of it divided by `factor`.

    The weights are a ramp over the dimensions that turn between `beta_fast` and `beta_slow` times.
    """
    H = 2 * len(plain_H)

    def dimension(turns):  # that makes this many turns over the pretraining context
        wavelength = yarn.original_max_position_embeddings / turns
        return H * math.log(wavelength / (2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(yarn.beta_fast), dimension(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, H - 1)
    width = high - low if high != low else 1e-3
    ramp_H = np.clip((np.arange(H // 2) - low) / width, 0, 1)
    frequency_H = plain_H / yarn.factor * ramp_H + plain_H * (1 - ramp_H)
    return frequency_H.astype(np.float32)


def _llama3(plain_H, scaling):
    """Returns the mean of the plain frequency and of it divided by `factor`, weighted by turns."""
    turns_H = scaling.original_max_position_embeddings * plain_H / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_H = np.clip((turns_H - low) / (high - low), 0, 1)
    return plain_H / scaling.factor * (1 - kept_H) + plain_H * kept_H


def _yarn_attention_factor(yarn):
    if yarn.attention_factor is not None:
        return yarn.attention_factor
    scale = lambda mscale: 0.1 * mscale * math.log(max(yarn.factor, 1.0)) + 1.0
    if yarn.mscale and yarn.mscale_all_dim:
        return scale(yarn.mscale) / scale(yarn.mscale_all_dim)
    return scale(1.0)


def rope_angles(position_BT, config):
    """Returns rotary (cos, sin), float32 [B, T, 1, H/2] each (arXiv 2104.09864, half-split)."""
    frequency_H, factor = rope_frequencies(config)
    angle_BT1H = position_BT[:, :, None, None].astype(jnp.float32) * frequency_H
    return jnp.cos(angle_BT1H) * factor, jnp.sin(angle_BT1H) * factor


def rotate(x_BTNH, rope):
    """Applies rotary embeddings in float32; returns the dtype of x."""
    cos, sin = rope
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)


def cast_here(w, *, dtype):
    """Returns `w.astype(dtype)`, cast here and not earlier.

    XLA moves a narrowing cast of a slice in front of the slice, so out of the loop over layers, and
    then copies all layers. It does not move the cast past a rounding.
    """
    if w.dtype == dtype:
        return w
    kind = jnp.finfo(dtype)
    return jax.lax.reduce_precision(w, kind.nexp, kind.nmant).astype(dtype)


def linear(x, w, low_rank=None):
    """Multiplies x [..., I] by w [I, ...O] in the dtype of x and adds what its adapter adds.

    Leading axes are flattened first: XLA:CPU runs the weight gradient of a product with two
    contracted axes outside its fast matmul (a whole MLP backward took 39 ms, flattened 14 ms).
    """
    x_XI = x.reshape(-1, w.shape[0])
    y_XO = x_XI @ w.reshape(w.shape[0], -1).astype(x.dtype)
    if low_rank is not None:
        y_XO = y_XO + low_rank(x_XI)
    return y_XO.reshape(*x.shape[:-1], *w.shape[1:])


def _normal(key, shape, config, dtype):
    return nnx.Param((config.initializer_range * jax.random.normal(key, shape)).astype(dtype))


def _zeros(shape, dtype):
    return nnx.Param(jnp.zeros(shape, dtype))


def normalised(x, scale, eps):
    """Divides the last axis by its root mean square, in float32; returns the dtype of x."""
    x32 = x.astype(jnp.float32)
    variance = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(variance + eps)).astype(x.dtype) * scale.astype(x.dtype)


class RMSNorm(nnx.Module):
    def __init__(self, config, dtype):
        self.eps = config.rms_norm_eps
        self.scale_D = nnx.Param(jnp.ones(config.hidden_size, dtype))

    def __call__(self, x_BTD):
        return normalised(x_BTD, self.scale_D[...], self.eps)


class HeadNorm(nnx.Module):
    """Normalises each head by itself."""

    def __init__(self, config, dtype):
        self.eps = config.rms_norm_eps
        self.scale_H = nnx.Param(jnp.ones(config.head_dim, dtype))

    def __call__(self, x_BTNH):
        return normalised(x_BTNH, self.scale_H[...], self.eps)


class Attention(nnx.Module):
    # What a family has not is no part of the tree; nor are adapters, until a module is assigned
    # (models/lora.py).
    b_q_NH = b_k_KH = b_v_KH = None
    q_norm = k_norm = None
    lora_q = lora_k = lora_v = lora_o = None

    def __init__(self, key, config, dtype):
        D, H = config.hidden_size, config.head_dim
        N, K = config.num_attention_heads, config.num_key_value_heads
        key_q, key_k, key_v, key_o = jax.random.split(key, 4)
        self.w_q_DNH = _normal(key_q, (D, N, H), config, dtype)
        self.w_k_DKH = _normal(key_k, (D, K, H), config, dtype)
        self.w_v_DKH = _normal(key_v, (D, K, H), config, dtype)
        self.w_o_NHD = _normal(key_o, (N, H, D), config, dtype)
        if config.family.qkv_bias:
            self.b_q_NH = _zeros((N, H), dtype)
            self.b_k_KH = _zeros((K, H), dtype)
            self.b_v_KH = _zeros((K, H), dtype)
        if config.family.qk_norm:
            self.q_norm, self.k_norm = HeadNorm(config, dtype), HeadNorm(config, dtype)

    def __call__(self, x_BTD, rope, attend):
        def project(w, b, low_rank):
            y_BTNH = linear(x_BTD, w[...], low_rank)
            return y_BTNH if b is None else y_BTNH + b[...].astype(x_BTD.dtype)

        q_BTNH = project(self.w_q_DNH, self.b_q_NH, self.lora_q)
        k_BTKH = project(self.w_k_DKH, self.b_k_KH, self.lora_k)
        v_BTKH = project(self.w_v_DKH, self.b_v_KH, self.lora_v)
        if self.q_norm is not None:
            q_BTNH, k_BTKH = self.q_norm(q_BTNH), self.k_norm(k_BTKH)
        o_BTNH, aux = attend(rotate(q_BTNH, rope), rotate(k_BTKH, rope), v_BTKH)
        B, T, N, H = o_BTNH.shape
        w_o_OD = self.w_o_NHD[...].reshape(N * H, -1)
        return linear(o_BTNH.reshape(B, T, N * H), w_o_OD, self.lora_o), aux


class MLP(nnx.Module):
    """SwiGLU feed-forward (arXiv 2002.05202)."""

    lora_gate = lora_up = lora_down = None  # adapters, see models/lora.py

    def __init__(self, key, config, dtype):
        D, F = config.hidden_size, config.intermediate_size
        key_gate, key_up, key_down = jax.random.split(key, 3)
        self.w_gate_DF = _normal(key_gate, (D, F), config, dtype)
        self.w_up_DF = _normal(key_up, (D, F), config, dtype)
        self.w_down_FD = _normal(key_down, (F, D), config, dtype)

    def __call__(self, x_BTD):
        x_XD = x_BTD.reshape(-1, x_BTD.shape[-1])  # X = B * T; why: see `linear`
        gate_XF = jax.nn.silu(linear(x_XD, self.w_gate_DF[...], self.lora_gate))
        up_XF = linear(x_XD, self.w_up_DF[...], self.lora_up)
        y_XD = linear(gate_XF * up_XF, self.w_down_FD[...], self.lora_down)
        return y_XD.reshape(x_BTD.shape)


class Block(nnx.Module):
    """One decoder layer."""

    def __init__(self, key, config, dtype):
        key_attn, key_mlp = jax.random.split(key)
        self.attn_norm = RMSNorm(config, dtype)
        self.attn = Attention(key_attn, config, dtype)
        self.mlp_norm = RMSNorm(config, dtype)
        self.mlp = MLP(key_mlp, config, dtype)

    def __call__(self, x_BTD, rope, attend):
        """Returns (x_BTD, aux).

        Args:
          rope: (cos, sin) of the tokens' positions, from `rope_angles`.
          attend: (q_BTNH, k_BTKH, v_BTKH) -> (o_BTNH, aux); q and k are already rotated. `aux` is
            whatever the caller wants back, such as an updated cache.
        """
        o_BTD, aux = self.attn(self.attn_norm(x_BTD), rope, attend)
        x_BTD = x_BTD + o_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), aux


class Embedding(nnx.Module):
    def __init__(self, key, config, dtype):
        self.table_VD = _normal(key, (config.vocab_size, config.hidden_size), config, dtype)


class Head(nnx.Module):
    def __init__(self, key, config, dtype):
        self.w_DV = _normal(key, (config.hidden_size, config.vocab_size), config, dtype)


class Decoder(nnx.Module):
    """The language model. Arrays hold `dtype` (normally float32 masters)."""

    def __init__(self, key, config, dtype=jnp.float32):
        key_embed, key_blocks, key_head = jax.random.split(key, 3)
        self.config = config
        self.embed = Embedding(key_embed, config, dtype)
        self.blocks = jax.vmap(lambda k: Block(k, config, dtype))(
            jax.random.split(key_blocks, config.num_hidden_layers)
        )
        self.final_norm = RMSNorm(config, dtype)
        if not config.tie_word_embeddings:
            self.head = Head(key_head, config, dtype)

    def rope(self, position_BT):
        return rope_angles(position_BT, self.config)

    def embedded(self, token_BT, dtype=jnp.float32):
        """Returns [B, T, D] input embeddings in the compute dtype."""
        return self.embed.table_VD[...][token_BT].astype(dtype)

    def hidden(self, token_BT, until_BT, execution=None):
        """Returns the normalised hidden states [B, T, D] of whole sequences, for the update.

        Args:
          token_BT: int32 token ids; any valid id on padding.
          until_BT: int32, who sees whom; see `models/attention/masks.py`. Positions follow from it.
          execution: Execution; None computes in float32 and saves all activations.

        Outputs at padding are finite and meaningless.
        """
        execution = execution or Execution(jnp.float32, remat="none")
        rope = self.rope(masks.positions(until_BT))

        def attend(q_BTNH, k_BTKH, v_BTKH):
            return execution.attend(q_BTNH, k_BTKH, v_BTKH, until_BT), None

        def layer(x_BTD, block):
            x_BTD, _ = execution.prepared(block)(x_BTD, rope, attend)
            return execution.place(x_BTD), None

        if REMAT[execution.remat] is not None:
            layer = jax.checkpoint(layer, prevent_cse=False, policy=REMAT[execution.remat])
        blocks = self.blocks
        if execution.remat != "full":
            blocks = jax.tree.map(lambda w: w.astype(execution.dtype), blocks)
        x_BTD, _ = jax.lax.scan(layer, execution.embedded(self, token_BT), blocks)
        return self.final_norm(x_BTD)

    def logits(self, x_BTD):
        """Returns float32 [..., V] logits of final hidden states [..., D]."""
        tied = self.config.tie_word_embeddings
        w_DV = self.embed.table_VD[...].T if tied else self.head.w_DV[...]
        return jnp.matmul(x_BTD, w_DV.astype(x_BTD.dtype), preferred_element_type=jnp.float32)
