"""Log-probabilities of sampled tokens without the logits of a whole batch.

Dimensions:
  B rows    T tokens in a row    A response tokens of a row    C response columns of a chunk
  D model width    V vocabulary
  X shards of the rows along the mesh axis `data`    N tokens of a chunk in one of these shards
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def token_logprobs(model, hidden_BAD, target_BA, mask_BA, *, temperature, chunk, mesh=None):
    """Computes the log-probability of each target and the entropy of its distribution, in nats.

    The unembedding runs over chunks of response columns up to the last one that any row uses, and
    the backward pass computes each chunk's logits again, so memory beyond inputs and outputs is
    that of one chunk, whatever A is. Columns are cut rather than flat tokens, so rows may be
    sharded. On a mesh the vocabulary is split over `tensor` and `fsdp` together: a chunk's hidden
    states are gathered instead of the head, and the head's gradient is summed over `data` once.

    Args:
      model: Decoder; its unembedding is used.
      hidden_BAD: final normalised hidden states. Their dtype is that of the products; logits, what
        follows from them and the sum of the head's gradient are float32.
      target_BA: int32 ids.
      mask_BA: bool; columns after the last True of all rows give 0 and are not computed.
      temperature: > 0, that of sampling: log-probs are of softmax(logits / temperature).
      chunk: token budget per chunk, whose logits a device holds at once; with the vocabulary split
        over n devices, n times as many tokens share it. A chunk has at least one column. Values do
        not depend on it. The head's gradient is read and written once a chunk, so small chunks are
        slow.
      mesh: of `sharding.make_mesh`, with rows split over `data` and `fsdp`; None for one device.

    Returns:
      (logp_BA, entropy_BA), float32; no gradient flows through the entropy.
    """
    if temperature <= 0 or chunk < 1:
        raise ValueError(f"temperature={temperature} and chunk={chunk} must be positive.")
    B, A, _ = hidden_BAD.shape
    vocabulary = _vocabulary_axes(mesh, model.config.vocab_size)
    devices = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in ("data", *vocabulary))
    chunks = -(-A // max(1, chunk * devices // B))
    columns = -(-A // chunks)
    spare = chunks * columns - A
    hidden_BAD = jnp.pad(hidden_BAD, [(0, 0), (0, spare), (0, 0)])
    target_BA = jnp.pad(target_BA, [(0, 0), (0, spare)])
    used = (jnp.arange(1, A + 1) * mask_BA).max()
    plan = _Plan(temperature, columns, model.config.tie_word_embeddings, mesh, vocabulary)
    head = model.embed.table_VD[...] if plan.tied else model.head.w_DV[...]
    logp_BA, entropy_BA = _chunked(plan, hidden_BAD, head, target_BA, -(-used // columns))
    return logp_BA[:, :A], entropy_BA[:, :A]


def score(model, batch, *, temperature, chunk, execution, mesh=None):
    """Returns (logp_BA, entropy_BA) of the sampled tokens of a TurnBatch; see `token_logprobs`.

    Args:
      model: Decoder.
      batch: TurnBatch.
      temperature, chunk, mesh: of `token_logprobs`.
      execution: decoder.Execution, how the transformer runs.
    """
    hidden_BTD = model.hidden(batch.token_BT, batch.until_BT, execution)
    hidden_BAD = jnp.take_along_axis(hidden_BTD, batch.index_BA[:, :, None], axis=1)
    return token_logprobs(
        model,
        hidden_BAD,
        batch.target_BA,
        batch.mask_BA,
        temperature=temperature,
        chunk=chunk,
        mesh=mesh,
    )


def _vocabulary_axes(mesh, vocabulary):
    """Returns as many of the mesh axes `tensor` and `fsdp` as divide the vocabulary."""
    for axes in (("tensor", "fsdp"), ("tensor",)):
        if mesh is not None and vocabulary % math.prod(mesh.shape[axis] for axis in axes) == 0:
            return axes
    return ()


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How chunks are computed, and where their arrays lie on the mesh.

    columns: C. tied: the head is the embedding table, [V, D]; else it is [D, V].
    vocabulary: mesh axes that split V.
    """

    temperature: float
    columns: int
    tied: bool
    mesh: Mesh | None
    vocabulary: tuple[str, ...]

    @property
    def head_letters(self):
        return "VD" if self.tied else "DV"

    @property
    def data_shards(self):
        return 1 if self.mesh is None else self.mesh.shape["data"]

    def cut(self, x_BA, i):
        """Returns chunk i of [B, A, ...] as [N, ...]."""
        x_BC = jax.lax.dynamic_slice_in_dim(x_BA, i * self.columns, self.columns, axis=1)
        return self.place_chunk(x_BC.reshape(-1, *x_BC.shape[2:]))

    def paste(self, x_BA, x_N, i):
        """Writes [N, ...] to chunk i of [B, A, ...]."""
        x_BC = self.place_rows(x_N.reshape(-1, self.columns, *x_N.shape[1:]))
        return jax.lax.dynamic_update_slice_in_dim(x_BA, x_BC, i * self.columns, axis=1)

    def split(self, x_N):
        """Reshapes [N, ...] to [X, N / X, ...]."""
        return x_N.reshape(self.data_shards, -1, *x_N.shape[1:])

    def logits(self, x_ND, head):
        """Returns float32 [N, V], divided by the temperature."""
        logits_NV = jnp.einsum(
            f"ND,{self.head_letters}->NV", x_ND, head, preferred_element_type=jnp.float32
        )
        return self.place_logits(logits_NV) / self.temperature

    # ---- where arrays lie on the mesh ----------------------------------------------------------

    def place_rows(self, x_BC):
        """Splits rows over `data` and `fsdp`."""
        return self._place(x_BC, ("data", "fsdp"))

    def place_chunk(self, x_N):
        """Splits the tokens of a chunk, or their shards, over `data`: `fsdp` gathers them."""
        return self._place(x_N, "data")

    def place_logits(self, x_NV):
        """Splits [N, V] or [X, N / X, V] as `place_chunk`, and V over the vocabulary axes."""
        between = [None] * (x_NV.ndim - 2)
        return self._place(x_NV, "data", *between, self.vocabulary)

    def place_head(self, head):
        """Splits V of the head over the vocabulary axes and a leading X over `data`."""
        axes = (self.vocabulary, None) if self.tied else (None, self.vocabulary)
        return self._place(head, *["data"] * (head.ndim - 2), *axes)

    def _place(self, x, *axes):
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(*axes)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(plan, hidden_BAD, head, target_BA, chunks):
    """Returns (logp_BA, entropy_BA) of the first chunks, 0 behind them. chunks: int32 scalar."""
    return _forward(plan, hidden_BAD, head, target_BA, chunks)[0]


def _forward(plan, hidden_BAD, head, target_BA, chunks):
    # Cast, and moved to where it is used, once and not in every chunk.
    cast = plan.place_head(head.astype(hidden_BAD.dtype))

    def step(i, results):
        logits_NV = plan.logits(plan.cut(hidden_BAD, i), cast)
        lse_N = jax.nn.logsumexp(logits_NV, axis=-1)
        chosen_N = jnp.take_along_axis(logits_NV, plan.cut(target_BA, i)[:, None], axis=-1)[:, 0]
        mean_N = (jnp.exp(logits_NV - lse_N[:, None]) * logits_NV).sum(-1)
        pairs = zip(results, (chosen_N - lse_N, lse_N - mean_N, lse_N), strict=True)
        return tuple(plan.paste(x_BA, x_N, i) for x_BA, x_N in pairs)

    zeros_BA = jnp.zeros(target_BA.shape, jnp.float32)
    logp_BA, entropy_BA, lse_BA = jax.lax.fori_loop(0, chunks, step, (zeros_BA,) * 3)
    return (logp_BA, entropy_BA), (hidden_BAD, head, target_BA, lse_BA, chunks)


def _backward(plan, saved, cotangents):
    hidden_BAD, head, target_BA, lse_BA, chunks = saved
    slope_BA, _ = cotangents  # none through the entropy
    cast = plan.place_head(head.astype(hidden_BAD.dtype))

    def step(i, grads):
        grad_BAD, grad_head = grads
        x_ND, target_N = plan.cut(hidden_BAD, i), plan.cut(target_BA, i)
        lse_N, slope_N = plan.cut(lse_BA, i), plan.cut(slope_BA, i) / plan.temperature
        logits_NV = plan.logits(x_ND, cast)
        is_target_NV = target_N[:, None] == jnp.arange(logits_NV.shape[1], dtype=target_N.dtype)
        grad_NV = (is_target_NV - jnp.exp(logits_NV - lse_N[:, None])) * slope_N[:, None]
        grad_NV = grad_NV.astype(x_ND.dtype)
        grad_ND = jnp.einsum(f"NV,{plan.head_letters}->ND", grad_NV, cast)
        # Summed over the shards of `data` after the loop, once.
        grad_head += jnp.einsum(
            f"XNV,XND->X{plan.head_letters}",
            plan.place_logits(plan.split(grad_NV)),
            plan.place_chunk(plan.split(x_ND)),
            preferred_element_type=jnp.float32,
        )
        return plan.paste(grad_BAD, grad_ND, i), plan.place_head(grad_head)

    shape = (plan.data_shards, *head.shape)
    zeros = jnp.zeros_like(hidden_BAD), plan.place_head(jnp.zeros(shape, jnp.float32))
    grad_BAD, grad_head = jax.lax.fori_loop(0, chunks, step, zeros)
    return grad_BAD, grad_head.sum(0).astype(head.dtype), None, None


_chunked.defvjp(_forward, _backward)
