"""The Flow-GRPO loss and its variants.

A variant is three choices: the advantages, what a turn counts, and whether the ratio is that of a
token or of a whole turn. Everything else is shared.

Source: arXiv 2510.05592, Eq. 5-7.

Dimensions:
  B rows    A response tokens of a row, of one or several turns
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from flow_grpo_jax import credit

# Beyond it exp overflows in float32 products, and 0 * inf in the gradient of `minimum` is NaN.
LARGEST_LOG_RATIO = 20.0
# Where k3 goes on as its tangent: the reference gives a token 148 times the policy's probability.
LARGEST_KL_LOG_RATIO = 5.0


@dataclasses.dataclass(frozen=True)
class Variant:
    """Functions of `credit.py`, and the field of the same name of `Numbers`.

    advantages: None if rollouts branch and turns have their own, of `counterfactual.of_turns`.
    """

    advantages: Callable | None
    weigh: Callable
    sequence_ratio: bool = False


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What `policy_loss` is told beside arrays.

    clip_low, clip_high: ε of Eq. 5, both positive.
    dual_clip: c > 1 bounds the loss of a token with A < 0 by c |A| (arXiv 1912.09729); 0 = off.
    kl_coef: β; 0 leaves the term out.
    sequence_ratio: ρ is exp(mean log ratio over the turn) for each of its tokens
      (arXiv 2507.18071, Eq. 7).
    tis_cap: 0 = off; else a token's gain is multiplied by min(π_old / π_sampler, tis_cap), without
      gradient, for old log-probs that were recomputed.
    """

    clip_low: float
    clip_high: float
    dual_clip: float
    kl_coef: float
    sequence_ratio: bool
    tis_cap: float


VARIANTS = {
    # Eq. 5 literally: mean over trajectories, their turns, the turn's tokens.
    "flow": Variant(credit.flow, credit.weigh_turns),
    # The authors' code. The only variant that depends on the micro-batch size.
    "original": Variant(credit.original, credit.weigh_micro_batch_tokens),
    "per_rollout_mean": Variant(credit.flow, credit.weigh_rollout_tokens),
    "token_mean": Variant(credit.flow, credit.weigh_tokens),
    # arXiv 2503.20783.
    "dr_grpo": Variant(credit.dr_grpo, credit.weigh_constant_length),
    # arXiv 2507.18071; its ε are smaller than those of token ratios by about the turn's length.
    "gspo": Variant(credit.flow, credit.weigh_turns, sequence_ratio=True),
    # As if only what was done last led to the outcome.
    "last_turn": Variant(credit.flow, credit.weigh_last_turn),
    # Each turn against others in its place.
    "turns": Variant(None, credit.weigh_constant_length),
}


def choose(name, *, temperature):
    """Returns the Variant of a name, for rollouts at a temperature.

    Raises:
      ValueError: no variant has the name, or the rollouts are greedy.
    """
    if name not in VARIANTS:
        raise ValueError(f"loss.variant={name!r} is unknown; valid: {', '.join(VARIANTS)}.")
    if temperature <= 0:
        raise ValueError(
            f"rollout.temperature={temperature}: greedy rollouts of one question are all alike and "
            "teach nothing. Use a temperature above 0."
        )
    return VARIANTS[name]


def turn_mean(x_BA, mask_BA, turn_BA):
    """Returns [B, A]: at each entry the mean of x over the unmasked entries of its turn.

    Args:
      x_BA: float, 0 where the mask is False.
      turn_BA: int32, 0 .. A - 1; entries of one row with the same number are one turn.
    """

    def of_row(x_A, mask_A, turn_A):
        pair_A2 = jnp.stack([x_A, mask_A.astype(x_A.dtype)], axis=-1)
        sum_A, count_A = jax.ops.segment_sum(pair_A2, turn_A, num_segments=len(x_A)).T
        return (sum_A / jnp.maximum(count_A, 1.0))[turn_A]

    return jax.vmap(of_row)(x_BA, mask_BA, turn_BA)


def k3(log_ratio):
    """Returns exp(r) - r - 1, from LARGEST_KL_LOG_RATIO on its tangent: unbiased up to there."""
    inside = jnp.minimum(log_ratio, LARGEST_KL_LOG_RATIO)
    beyond = jnp.maximum(log_ratio - LARGEST_KL_LOG_RATIO, 0.0)
    return jnp.exp(inside) - inside - 1.0 + math.expm1(LARGEST_KL_LOG_RATIO) * beyond


def policy_loss(logp_BA, ref_logp_BA, batch, *, numbers):
    """Computes the clipped policy loss plus kl_coef times the k3 estimate of KL(π_θ || π_ref).

        ρ = exp(log π_θ - log π_old)
        gain = min(ρ A, clip(ρ, 1 - clip_low, 1 + clip_high) A), for A < 0 not below dual_clip * A
        k3 = exp(r) - r - 1,  r = log π_ref - log π_θ; its tangent beyond LARGEST_KL_LOG_RATIO
        loss = Σ_tokens weight * (kl_coef * k3 - gain)

    The tangent pulls a token that the policy has lost back with a bounded force (147 kl_coef); the
    exponential would own the clipped step from r = 7 or so. The authors' code instead cuts k3 off
    at 10, that is at r = 2.6, from where nothing pulls.

    Additive over micro-batches: the weights know the whole optimizer step, and the turn's 1/|a|.
    Where the mask is False, values do not matter to the loss or its gradient, not even NaN.

    Args:
      logp_BA: float32, nats, log π_θ of batch.target_BA.
      ref_logp_BA: the same under π_ref; None if kl_coef is 0.
      batch: TurnBatch.
      numbers: Numbers.

    Returns:
      (loss, sums): float32 scalar; dict of float32 scalars to be added up over micro-batches,
      except `gap_max`, a maximum:
        policy, kl: the weighted terms, loss = policy + kl_coef * kl
        tokens: sampled tokens; clipped, ratio, gap, gap_k3: sums over these of whether a clip
        bound was active, ρ, |Δ|, and exp(Δ) - 1 - Δ, with Δ = log π_θ - log π_sampler
    """
    mask_BA, adv_BA = batch.mask_BA, batch.adv_BA

    # Inputs of exp are masked, not outputs: 0 * inf would be a NaN gradient.
    log_ratio_BA = jnp.where(mask_BA, logp_BA - batch.old_logp_BA, 0.0)
    if numbers.sequence_ratio:
        log_ratio_BA = jnp.where(mask_BA, turn_mean(log_ratio_BA, mask_BA, batch.turn_BA), 0.0)
    ratio_BA = jnp.exp(jnp.minimum(log_ratio_BA, LARGEST_LOG_RATIO))

    free_BA = ratio_BA * adv_BA
    lowest, highest = 1.0 - numbers.clip_low, 1.0 + numbers.clip_high
    gain_BA = jnp.minimum(free_BA, jnp.clip(ratio_BA, lowest, highest) * adv_BA)
    if numbers.dual_clip:
        bad_BA = adv_BA < 0
        gain_BA = jnp.where(bad_BA, jnp.maximum(gain_BA, numbers.dual_clip * adv_BA), gain_BA)
    clipped_BA = gain_BA != free_BA
    if numbers.tis_cap:
        log_tis_BA = jnp.where(mask_BA, batch.old_logp_BA - batch.sampler_logp_BA, 0.0)
        tis_BA = jnp.exp(jnp.minimum(log_tis_BA, LARGEST_LOG_RATIO))
        gain_BA *= jax.lax.stop_gradient(jnp.minimum(tis_BA, numbers.tis_cap))

    def weighted(x_BA):
        return jnp.where(mask_BA, batch.weight_BA * x_BA, 0.0).sum()

    policy, kl = -weighted(gain_BA), jnp.zeros(())
    if numbers.kl_coef:
        kl = weighted(k3(jnp.where(mask_BA, ref_logp_BA - logp_BA, 0.0)))

    gap_BA = jnp.where(mask_BA, logp_BA - batch.sampler_logp_BA, 0.0)
    # expm1, because the gap is close to rounding in float32.
    gap_k3_BA = jnp.expm1(jnp.minimum(gap_BA, LARGEST_LOG_RATIO)) - gap_BA
    sums = {
        "policy": policy,
        "kl": kl,
        "tokens": mask_BA.sum(dtype=jnp.float32),
        "clipped": jnp.where(mask_BA, clipped_BA, False).sum(dtype=jnp.float32),
        "ratio": jnp.where(mask_BA, ratio_BA, 0.0).sum(),
        "gap": jnp.abs(gap_BA).sum(),
        "gap_k3": gap_k3_BA.sum(),
        "gap_max": jnp.abs(gap_BA).max(),
    }
    return policy + numbers.kl_coef * kl, jax.lax.stop_gradient(sums)
