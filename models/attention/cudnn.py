"""cuDNN's flash attention with its log-sum-exp, and its gradients from saved outputs.

JAX's public function gives no way to hand saved outputs to the backward pass, so this file, and no
other, calls what JAX keeps private. The calls are the same in jax 0.10.2 to 0.11.2.

Dimensions:
  B rows    T tokens    N query heads    K key/value heads    H head size    1 broadcast
"""

import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as fused


def forward(q_BTNH, k_BTKH, v_BTKH, mask_B1TT=None):
    """Returns (o_BTNH, lse_BNT): outputs, and float32 log-sum-exp (nats) of scaled scores.

    Args:
      q_BTNH, k_BTKH, v_BTKH: bfloat16 or float16. Query t sees keys s <= t.
      mask_B1TT: bool, further limits what is seen; T must be even. None for no limit.
    """
    return fused.dot_product_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        mask=mask_B1TT,
        scale=q_BTNH.shape[-1] ** -0.5,
        mask_type=fused.MaskType.CAUSAL,
        return_residual=True,
    )


def backward(q_BTNH, k_BTKH, v_BTKH, o_BTNH, lse_BNT, do_BTNH, mask_B1TT=None):
    """Returns (dq_BTNH, dk_BTKH, dv_BTKH), from what `forward` returned and do_BTNH."""
    none = jnp.zeros(0, q_BTNH.dtype)
    bias = none if mask_B1TT is None else fused.combine_bias_and_mask(None, mask_B1TT, q_BTNH.dtype)
    saved = (q_BTNH, k_BTKH, v_BTKH, bias, *6 * (none,), lse_BNT, o_BTNH)
    grads = fused._dot_product_attention_bwd_rule(
        q_BTNH.shape[-1] ** -0.5,  # scale
        42,  # seed and rate of dropout
        0.0,
        (mask_B1TT is not None, False),  # there is a bias; its gradient is not wanted
        fused.MaskType.CAUSAL,
        fused.AttentionLayout.BTNH.value,
        None,  # sliding window
        None,
        False,  # `do` is of the outputs alone
        saved,
        do_BTNH,
    )
    return grads[:3]
