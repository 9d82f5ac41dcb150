"""Qwen2.5 as a Flax NNX module that is used as a plain pytree.

One definition of the block serves training and sampling: the caller hands in `attend`, which
training makes from a segment mask and the engine from its cache. Layers are stacked: every array
below `blocks` has a leading layer axis (L) and `hidden` walks it with one `lax.scan`.

Source: Qwen2.5 technical report (arXiv 2412.15115); `Qwen2ForCausalLM` in transformers.

Dimensions:
  B rows    T tokens in a row    D model width    F feed-forward width    V vocabulary
  L layers    N query heads    K key/value heads    H head size
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from models import attention

REMAT = {  # what the backward pass of a block finds saved, besides the block's input
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape and constants of a Qwen2.5 model; fields as in a Hugging Face `config.json`."""

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

    def __post_init__(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; rotary embeddings need it even.")


def rope_angles(position_BT, head_dim, theta):
    """Rotary angles (cos, sin), float32 [B, T, 1, H/2] each (arXiv 2104.09864, half-split)."""
    frequency_H = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle_BT1H = position_BT[:, :, None, None].astype(jnp.float32) * frequency_H
    return jnp.cos(angle_BT1H), jnp.sin(angle_BT1H)


def rotate(x_BTNH, rope):
    """Applies rotary embeddings in float32; returns the dtype of x."""
    cos, sin = rope
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)


def positions(segment_BT):
    """int32 [B, T]: index of each token in its own segment, so padding never shifts a position."""
    index_T = jnp.arange(segment_BT.shape[1], dtype=jnp.int32)
    starts_BT = jnp.diff(segment_BT, axis=1, prepend=-1) != 0
    return index_T - jax.lax.cummax(jnp.where(starts_BT, index_T, 0), axis=1)


def linear(x, w):
    """x [..., I] times w [I, ...O] in the dtype of x.

    Leading axes are flattened first: XLA:CPU runs the weight gradient of a product with two
    contracted axes outside its fast matmul (a whole MLP backward took 39 ms, flattened 14 ms).
    """
    flat = x.reshape(-1, w.shape[0]) @ w.reshape(w.shape[0], -1).astype(x.dtype)
    return flat.reshape(*x.shape[:-1], *w.shape[1:])


def _normal(key, shape, config, dtype):
    return nnx.Param((config.initializer_range * jax.random.normal(key, shape)).astype(dtype))


def _zeros(shape, dtype):
    return nnx.Param(jnp.zeros(shape, dtype))


class RMSNorm(nnx.Module):
    def __init__(self, config, dtype):
        self.eps = config.rms_norm_eps
        self.scale_D = nnx.Param(jnp.ones(config.hidden_size, dtype))

    def __call__(self, x_BTD):
        x32_BTD = x_BTD.astype(jnp.float32)
        variance_BT1 = jnp.mean(jnp.square(x32_BTD), axis=-1, keepdims=True)
        unit_BTD = (x32_BTD * jax.lax.rsqrt(variance_BT1 + self.eps)).astype(x_BTD.dtype)
        return unit_BTD * self.scale_D[...].astype(x_BTD.dtype)


class Attention(nnx.Module):
    def __init__(self, key, config, dtype):
        D, H = config.hidden_size, config.head_dim
        N, K = config.num_attention_heads, config.num_key_value_heads
        key_q, key_k, key_v, key_o = jax.random.split(key, 4)
        self.w_q_DNH = _normal(key_q, (D, N, H), config, dtype)
        self.w_k_DKH = _normal(key_k, (D, K, H), config, dtype)
        self.w_v_DKH = _normal(key_v, (D, K, H), config, dtype)
        self.w_o_NHD = _normal(key_o, (N, H, D), config, dtype)
        self.b_q_NH = _zeros((N, H), dtype)
        self.b_k_KH = _zeros((K, H), dtype)
        self.b_v_KH = _zeros((K, H), dtype)

    def __call__(self, x_BTD, rope, attend):
        def project(w, b):
            return linear(x_BTD, w) + b.astype(x_BTD.dtype)

        q_BTNH = rotate(project(self.w_q_DNH[...], self.b_q_NH[...]), rope)
        k_BTKH = rotate(project(self.w_k_DKH[...], self.b_k_KH[...]), rope)
        v_BTKH = project(self.w_v_DKH[...], self.b_v_KH[...])
        o_BTNH, aux = attend(q_BTNH, k_BTKH, v_BTKH)
        B, T, N, H = o_BTNH.shape
        w_o_OD = self.w_o_NHD[...].reshape(N * H, -1)
        return linear(o_BTNH.reshape(B, T, N * H), w_o_OD), aux


class MLP(nnx.Module):
    """SwiGLU feed-forward (arXiv 2002.05202)."""

    def __init__(self, key, config, dtype):
        D, F = config.hidden_size, config.intermediate_size
        key_gate, key_up, key_down = jax.random.split(key, 3)
        self.w_gate_DF = _normal(key_gate, (D, F), config, dtype)
        self.w_up_DF = _normal(key_up, (D, F), config, dtype)
        self.w_down_FD = _normal(key_down, (F, D), config, dtype)

    def __call__(self, x_BTD):
        x_XD = x_BTD.reshape(-1, x_BTD.shape[-1])  # X = B * T; why: see `linear`
        gate_XF = jax.nn.silu(linear(x_XD, self.w_gate_DF[...]))
        y_XD = linear(gate_XF * linear(x_XD, self.w_up_DF[...]), self.w_down_FD[...])
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


class Qwen2(nnx.Module):
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
        return rope_angles(position_BT, self.config.head_dim, self.config.rope_theta)

    def embedded(self, token_BT, dtype=jnp.float32):
        """[B, T, D] input embeddings in the compute dtype."""
        return self.embed.table_VD[...][token_BT].astype(dtype)

    def hidden(self, token_BT, segment_BT, *, dtype=jnp.float32, remat="none"):
        """Final normalised hidden states [B, T, D] of whole sequences, for the update.

        Args:
          token_BT: int32 token ids; any valid id on padding.
          segment_BT: int32, > 0 and equal on the tokens of one sequence, 0 on padding. Padding may
            stand on either side; several sequences may share a row.
          dtype: compute dtype.
          remat: "none" keeps all activations; "dots" keeps the results of products with weights and
            recomputes the rest of each block in the backward pass; "full" recomputes all of it.

        Outputs at padding are finite and meaningless.
        """
        if remat not in REMAT:
            raise ValueError(f"remat={remat!r} is unknown; valid: {', '.join(REMAT)}.")
        mask_BTT = attention.segment_mask(segment_BT)
        rope = self.rope(positions(segment_BT))

        def attend(q_BTNH, k_BTKH, v_BTKH):
            return attention.attend_reference(q_BTNH, k_BTKH, v_BTKH, mask_BTT), None

        def layer(x_BTD, block):
            return block(x_BTD, rope, attend)

        if REMAT[remat] is not None:
            layer = jax.checkpoint(layer, prevent_cse=False, policy=REMAT[remat])
        x_BTD, _ = jax.lax.scan(layer, self.embedded(token_BT, dtype), self.blocks)
        return self.final_norm(x_BTD)

    def logits(self, x_BTD):
        """float32 [..., V] logits of final hidden states [..., D]."""
        tied = self.config.tie_word_embeddings
        w_DV = self.embed.table_VD[...].T if tied else self.head.w_DV[...]
        return jnp.matmul(x_BTD, w_DV.astype(x_BTD.dtype), preferred_element_type=jnp.float32)
