"""Memory of log-probs, ours and of all logits at once; the programs are only compiled.

Dimensions:
  B rows    A response tokens of a row    D model width    V vocabulary
"""

import jax
import jax.numpy as jnp

from flow_grpo_jax import logprobs
from models import decoder

VOCABULARY, WIDTH, TOKENS = 151_936, 256, (1_024, 4_096)


def temporaries(chunk):
    """Returns temporary bytes of log-probs, forward and backward, by method and tokens.

    The programs are only compiled. V is Qwen's vocabulary; D is small, so that logits dominate.
    """
    config = decoder.Config(VOCABULARY, WIDTH, WIDTH, 1, 4, 1, 64)
    model = jax.eval_shape(lambda: decoder.Decoder(jax.random.key(0), config))

    def ours(model, hidden_BAD, target_BA):
        how = dict(temperature=1.0, chunk=chunk)
        mask_BA = jnp.ones(target_BA.shape, bool)
        return logprobs.token_logprobs(model, hidden_BAD, target_BA, mask_BA, **how)[0].sum()

    def naive(model, hidden_BAD, target_BA):
        logp_BAV = jax.nn.log_softmax(model.logits(hidden_BAD))
        return jnp.take_along_axis(logp_BAV, target_BA[:, :, None], axis=-1).sum()

    found = {}
    for name, function in (("ours", ours), ("naive", naive)):
        for tokens in TOKENS:
            arguments = (
                model,
                jax.ShapeDtypeStruct((1, tokens, WIDTH), jnp.float32),
                jax.ShapeDtypeStruct((1, tokens), jnp.int32),
            )
            compiled = jax.jit(jax.grad(function, argnums=(0, 1))).lower(*arguments).compile()
            found[f"{name} {tokens}"] = compiled.memory_analysis().temp_size_in_bytes
    return found
