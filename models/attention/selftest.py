"""The kernels' self-test: on first use they are compared with the definition, where they run.

Dimensions:
  B rows    T tokens    N query heads    K key/value heads    H head size
"""

import concurrent.futures
import functools

import jax
import jax.numpy as jnp
import numpy as np

from models.attention import masks

TOLERANCE = 3e-2  # rounding to bfloat16 is at 4e-3
TOKENS = 320  # several blocks, the last one not full
# What compilers and devices raise for a program that they do not take.
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, ImportError)


def failure(attend, dtype, shared, head_size):
    """Returns why a kernel must not be used on the default device, "" if it may be.

    Values and gradients are compared with the definition in float32. This runs in a thread of its
    own, which knows nothing of a trace that the caller may be in.

    Args:
      attend: as of kernels.make.
      dtype: of queries, keys and values. shared: query heads for each key/value head.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as alone:
        try:
            errors = alone.submit(_errors, attend, dtype, shared, head_size).result()
        except FAILURES as problem:
            return told(problem)
    worst = max(errors, key=lambda what: np.nan_to_num(errors[what], nan=np.inf))
    if errors[worst] <= TOLERANCE:  # nan is not
        return ""
    return f"{worst} are off by {errors[worst]:.1e} of their size; {TOLERANCE:g} is allowed"


def told(problem):
    """Returns the first line of an exception, with its type."""
    lines = str(problem).strip().splitlines() or [""]
    return f"{type(problem).__name__}: {lines[0][:200]}"


def _errors(attend, dtype, shared, head_size):
    """Returns {what: largest error of a token}, as a share of its norm plus the mean norm."""
    K, H = 2, head_size
    rng = np.random.default_rng(0)
    loud = lambda heads: jnp.asarray(1.5 * rng.normal(size=(3, TOKENS, heads, H)), dtype)
    arrays = [loud(heads) for heads in (K * shared, K, K, K * shared)]
    errors = {}
    for name, until_BT in _rows().items():

        def outputs(attend, q_BTNH, k_BTKH, v_BTKH, do_BTNH, until_BT=until_BT):
            run = lambda *qkv: attend(*qkv, until_BT)
            o_BTNH, backward = jax.vjp(run, q_BTNH, k_BTKH, v_BTKH)
            return o_BTNH, *backward(do_BTNH)

        real_BT11 = (until_BT > 0)[:, :, None, None]
        masked = [jnp.where(real_BT11, x, 0) for x in arrays]
        found = jax.jit(functools.partial(outputs, attend))(*masked)
        with jax.default_matmul_precision("highest"):
            exact = [x.astype(jnp.float32) for x in masked]
            wanted = jax.jit(functools.partial(outputs, _definition))(*exact)
        for what, ours, theirs in zip(("o", "dq", "dk", "dv"), found, wanted, strict=True):
            size = lambda x: jnp.linalg.norm(x, axis=(2, 3))
            apart_BT = size(ours.astype(jnp.float32) - theirs)
            share_BT = apart_BT / (size(theirs) + size(theirs).mean())
            errors[f"{what} of {name} rows"] = float(share_BT.max())
    return errors


def _definition(q_BTNH, k_BTKH, v_BTKH, until_BT):
    seen_BTT = masks.visible(jnp.maximum(until_BT, jnp.arange(1, TOKENS + 1)))
    o_BTNH = masks.attend_reference(q_BTNH, k_BTKH, v_BTKH, seen_BTT)
    return jnp.where((until_BT > 0)[:, :, None, None], o_BTNH, 0)


def _rows():
    """Returns {name: until_BT}: rows of one sequence; trees, segments and padding."""
    index_T = np.arange(TOKENS)
    whole = np.stack([np.where(index_T < end, end, 0) for end in (TOKENS, TOKENS - 70, 130)])
    tree = np.full(TOKENS, 300)  # root of two branches, one with two leaves; then padding
    tree[40:170], tree[90:130], tree[130:170], tree[300:] = 170, 130, 170, 0
    packed = np.repeat([100, 101, 290, 0], [100, 1, 189, 30])
    mixed = np.stack([tree, packed, whole[1]])
    return {"whole": jnp.asarray(whole, jnp.int32), "mixed": jnp.asarray(mixed, jnp.int32)}
