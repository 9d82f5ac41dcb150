"""The optimizer: AdamW, with moments that may be stored in half the bytes."""

import jax
import jax.numpy as jnp
import optax


def make(*, lr, b1, b2, eps, weight_decay, clip_norm, warmup_steps, moment_dtype):
    """Builds AdamW after clipping by global norm, at a constant rate after a linear warm-up.

    Weight decay acts on every parameter, norms and biases included, like torch's AdamW in the code
    the paper was trained with.

    Args:
      lr: learning rate, reached at optimizer step `warmup_steps`; or with warmup_steps=0 a schedule
        of optax: steps before this one -> learning rate.
      b1, b2, eps, weight_decay: of AdamW.
      clip_norm: largest global gradient norm.
      warmup_steps: 0 = constant from the first step; else step i uses lr * (i + 1) / warmup_steps.
      moment_dtype: "float32", or "bfloat16", which saves 4 bytes a parameter; see `stored_as`.
    """
    schedule = lr
    if warmup_steps:
        schedule = lambda count: lr * jnp.minimum(1.0, (count + 1) / warmup_steps)
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        stored_as(optax.scale_by_adam(b1=b1, b2=b2, eps=eps), moment_dtype),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(schedule),
    )


def stored_as(adam, dtype):
    """Stores the moments of `optax.scale_by_adam` in `dtype` between steps; inside, float32.

    bfloat16 has 8 bits and the second moment moves by 1 - b2 = 0.1 % a step: rounded to nearest it
    would never move. It is rounded up or down at random, which is right on average.
    """
    dtype = jnp.dtype(dtype)
    if dtype == jnp.float32:
        return adam
    if dtype != jnp.bfloat16:
        raise ValueError(f"moment_dtype={dtype.name!r} is unknown; valid: float32, bfloat16.")

    def rest(state):
        key = jax.random.fold_in(jax.random.key(0), state.count)
        leaves, structure = jax.tree.flatten((state.mu, state.nu))
        keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
        mu, nu = structure.unflatten(map(round_at_random, keys, leaves))
        return state._replace(mu=mu, nu=nu)

    def init(params):
        state = adam.init(params)
        small = lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree)
        return state._replace(mu=small(state.mu), nu=small(state.nu))

    def update(updates, state, params=None):
        large = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
        state = state._replace(mu=large(state.mu), nu=large(state.nu))
        updates, state = adam.update(updates, state, params)
        return updates, rest(state)

    return optax.GradientTransformation(init, update)


def round_at_random(key, x):
    """Rounds float32 to bfloat16, up or down with the probability that makes the mean exact."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits = bits + jax.random.bits(key, x.shape, jnp.uint16)
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
