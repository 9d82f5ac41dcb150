"""Products of float32 arrays that are products of float32 numbers.

GPUs and TPUs round the inputs of such products, to TF32 or bfloat16, unless a program says
otherwise: the sampler's log-probs were 2e-2 apart from the trainer's.
"""

import functools

import jax
import jax.numpy as jnp


def in_dtype(function, dtype):
    """Returns a function to be traced, which computes in `dtype` what it means.

    Programs in half precision are left as they are, and stay fast.
    """
    if jnp.dtype(dtype) != jnp.float32:
        return function

    @functools.wraps(function)
    def exact(*arguments, **options):
        with jax.default_matmul_precision("highest"):
            return function(*arguments, **options)

    return exact
