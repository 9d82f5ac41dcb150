"""The flash attention kernel shipped with JAX for TPU ("splash"), with masks that are data.

It takes a mask in blocks, each empty, whole or in between, and skips empty ones. All blocks of
[T, T] are made twice per row, once for each of the two orders in which gradients are gathered:
memory grows with the square of T.

Dimensions:
  B rows    T tokens    N query heads    K key/value heads    H head size    1 broadcast
"""

import functools

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as masks

from models.attention.masks import SAVED, visible


def attend(q_BTNH, k_BTKH, v_BTKH, until_BT, *, block, interpret=False):
    """Computes attention as a kernel for kernels.whole_rows.

    Args:
      block: tokens of a block, a multiple of 128; divides T.
      interpret: walk through the kernel with XLA on any backend, for tests.
    """
    H = q_BTNH.shape[3]
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )

    # What is named is kept for the backward pass; the masks, which are large, are made again.
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(SAVED))
    def row(arrays):
        q_TNH, k_TKH, v_TKH, until_T = arrays
        mask_1TT = visible(until_T[None])
        by_query, _ = masks.process_dynamic_mask(mask_1TT, (block, block))
        by_key, _ = masks.process_dynamic_mask_dkv(mask_1TT, (block, block))
        kernel = splash.SplashAttentionKernel(
            by_query._replace(is_dynamic_mask=None),
            by_query._replace(is_dynamic_mask=None),
            by_key._replace(is_dynamic_mask=None),
            block_sizes=sizes,
            is_mqa=False,
            save_residuals=False,
            mask_value=splash.DEFAULT_MASK_VALUE,
            attn_logits_soft_cap=None,
            residual_checkpoint_name=SAVED,
            mask_function=None,
            interpret=interpret,
        )
        q_NTH, k_KTH, v_KTH = (x.swapaxes(0, 1) for x in (q_TNH, k_TKH, v_TKH))
        return kernel(q_NTH * H**-0.5, k_KTH, v_KTH).swapaxes(0, 1)

    return jax.lax.map(row, (q_BTNH, k_BTKH, v_BTKH, until_BT))
