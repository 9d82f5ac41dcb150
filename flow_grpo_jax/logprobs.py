"""Log-probabilities of sampled tokens without float32 logits of a whole batch.

Dimensions:
  B rows    T tokens in a row    A response tokens    C response tokens in a chunk
  D model width    V vocabulary
"""

import jax
import jax.numpy as jnp


def response_hidden(hidden_BTD, start_B, *, response_length):
    """[B, A, D]: the states at start - 1 .. start - 1 + A, which predict the response.

    Positions past the end of a row read its last state; the mask hides them.
    """
    index_BA = start_B[:, None] - 1 + jnp.arange(response_length, dtype=start_B.dtype)
    index_BA = jnp.minimum(index_BA, hidden_BTD.shape[1] - 1)
    return jnp.take_along_axis(hidden_BTD, index_BA[:, :, None], axis=1)


def token_logprobs(model, hidden_BAD, target_BA, *, temperature, chunk):
    """Log-probability of each target and entropy of its distribution, in nats.

    The unembedding runs over chunks of response columns, and the backward pass computes each
    chunk's logits again, so memory beyond inputs and outputs is that of one chunk, whatever A is.
    Columns are cut rather than flat tokens, so rows may be sharded.

    Args:
      model: Qwen2; its `logits` is used.
      hidden_BAD: final normalised hidden states.
      target_BA: int32 ids.
      temperature: > 0, that of sampling: log-probs are of softmax(logits / temperature).
      chunk: tokens whose logits may exist at once, over all rows; at least one column is used.
        Does not change values.

    Returns:
      (logp_BA, entropy_BA), float32; no gradient flows through the entropy.
    """
    if temperature <= 0 or chunk < 1:
        raise ValueError(f"temperature={temperature} and chunk={chunk} must be positive.")

    def one_chunk(hidden_BCD, target_BC):
        logits_BCV = model.logits(hidden_BCD) / temperature
        lse_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
        chosen_BC = jnp.take_along_axis(logits_BCV, target_BC[:, :, None], axis=-1)[:, :, 0]
        still_BCV, still_BC = jax.lax.stop_gradient((logits_BCV, lse_BC))
        mean_BC = (jnp.exp(still_BCV - still_BC[:, :, None]) * still_BCV).sum(-1)
        return chosen_BC - lse_BC, still_BC - mean_BC

    B, A, _ = hidden_BAD.shape
    chunks = -(-A // max(1, chunk // B))
    if chunks == 1:
        return one_chunk(hidden_BAD, target_BA)
    C = -(-A // chunks)
    spare = chunks * C - A

    def cut(x_BA):
        x_BA = jnp.pad(x_BA, [(0, 0), (0, spare)] + [(0, 0)] * (x_BA.ndim - 2))
        return jnp.moveaxis(x_BA.reshape(B, chunks, C, *x_BA.shape[2:]), 1, 0)

    def join(x_XBC):
        return jnp.moveaxis(x_XBC, 0, 1).reshape(B, chunks * C)[:, :A]

    step = jax.checkpoint(lambda pair: one_chunk(*pair), prevent_cse=False)
    logp_XBC, entropy_XBC = jax.lax.map(step, (cut(hidden_BAD), cut(target_BA)))
    return join(logp_XBC), join(entropy_XBC)


def score(model, batch, *, temperature, chunk, dtype=jnp.float32, remat="none"):
    """(logp_BA, entropy_BA) of the sampled tokens of a TurnBatch; see `token_logprobs`.

    Args:
      model: Qwen2.
      batch: TurnBatch.
      dtype: compute dtype of the transformer; logits and log-probs are float32.
      remat: of `Qwen2.hidden`.
    """
    hidden_BTD = model.hidden(batch.token_BT, batch.segment_BT, dtype=dtype, remat=remat)
    hidden_BAD = response_hidden(
        hidden_BTD, batch.start_B, response_length=batch.target_BA.shape[1]
    )
    return token_logprobs(model, hidden_BAD, batch.target_BA, temperature=temperature, chunk=chunk)
