"""The update: gradients over micro-batches, one AdamW step an optimizer step.

`make_update` compiles three small programs and returns the function that drives them. Nothing here
knows questions, rewards or agents: micro-batches arrive with advantages and weights.

Dimensions:
  B rows of a micro-batch, one planner turn each    T tokens in a row    A response tokens of a row
"""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from flow_grpo_jax import batching, logprobs, loss

OLD_LOGPROBS = ("sampler", "recompute")


@flax.struct.dataclass
class State:
    """params: float32 model. opt_state: of optax. step: int32, optimizer steps really applied."""

    params: Any
    opt_state: Any
    step: jax.Array


def make_optimizer(*, lr, b1, b2, eps, weight_decay, clip_norm, warmup_steps):
    """AdamW after clipping by global norm, at a constant rate after a linear warm-up.

    Weight decay acts on every parameter, norms and biases included, as torch's AdamW does in the
    code the paper was trained with.

    Args:
      lr: learning rate, reached at optimizer step `warmup_steps`.
      b1, b2, eps, weight_decay: of AdamW.
      clip_norm: largest global gradient norm.
      warmup_steps: 0 = constant from the first step; else step i uses lr * (i + 1) / warmup_steps.
    """
    schedule = lr
    if warmup_steps:
        schedule = lambda count: lr * jnp.minimum(1.0, (count + 1) / warmup_steps)
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay),
    )


def state_shardings(optimizer, shardings):
    """State of NamedShardings: moments lie where their parameters lie, counters everywhere.

    Args:
      shardings: NamedSharding of each parameter, structured like the parameters.
    """
    everywhere = NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())
    shapes = jax.tree.map(lambda _: jax.ShapeDtypeStruct((), jnp.float32), shardings)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, shapes),
        shardings,
        transform_non_params=lambda _: everywhere,
    )
    return State(shardings, opt_state, everywhere)


def init(params, optimizer, *, shardings=None):
    """State at step 0.

    Args:
      params: float32 model, already placed by `shardings`.
      shardings: as in `state_shardings`; None for one device.
    """
    start = lambda params: (optimizer.init(params), jnp.zeros((), jnp.int32))
    if shardings is None:
        return State(params, *start(params))
    places = state_shardings(optimizer, shardings)
    return State(params, *jax.jit(start, out_shardings=(places.opt_state, places.step))(params))


def gradient(
    params,
    ref_params,
    batch,
    *,
    temperature,
    chunk,
    dtype=jnp.float32,
    remat="none",
    kl_coef,
    on_policy=False,
    **loss_numbers,
):
    """Gradient of one micro-batch's loss.

    Args:
      params, ref_params: Qwen2; ref_params is not read if kl_coef is 0.
      batch: TurnBatch.
      temperature, chunk, dtype, remat: of `logprobs.score`.
      kl_coef, loss_numbers: of `loss.policy_loss`.
      on_policy: π_old is π_θ itself, so batch.old_logp_BA is not read.

    Returns:
      (gradient like params, sums): sums of `policy_loss` and `entropy`, summed over sampled tokens.
    """
    how = dict(temperature=temperature, chunk=chunk, dtype=dtype, remat=remat)
    ref_logp_BA = logprobs.score(ref_params, batch, **how)[0] if kl_coef else None

    def objective(params):
        logp_BA, entropy_BA = logprobs.score(params, batch, **how)
        old_logp_BA = jax.lax.stop_gradient(logp_BA) if on_policy else batch.old_logp_BA
        value, sums = loss.policy_loss(
            logp_BA,
            ref_logp_BA,
            batch.replace(old_logp_BA=old_logp_BA),
            kl_coef=kl_coef,
            **loss_numbers,
        )
        return value, sums | {"entropy": jnp.where(batch.mask_BA, entropy_BA, 0.0).sum()}

    grads, sums = jax.grad(objective, has_aux=True)(params)
    return grads, sums


def apply(params, opt_state, step, grads, loss_value, *, optimizer):
    """One optimizer step, or none if the loss or the gradient is not finite.

    Returns:
      (params, opt_state, step, norm, applied): norm is the gradient's before clipping.
    """
    norm = optax.tree.norm(grads)
    applied = jnp.isfinite(norm) & jnp.isfinite(loss_value)
    updates, new_opt_state = optimizer.update(grads, opt_state, params)
    new = (optax.apply_updates(params, updates), new_opt_state, step + 1)
    kept = jax.tree.map(lambda n, o: jnp.where(applied, n, o), new, (params, opt_state, step))
    return *kept, norm, applied


def make_update(
    optimizer,
    *,
    temperature,
    chunk,
    clip_low,
    clip_high,
    dual_clip,
    kl_coef,
    sequence_ratio=False,
    tis_cap=0.0,
    dtype=jnp.float32,
    remat="none",
    epochs=1,
    old_logprobs="sampler",
    shardings=None,
    batch_sharding=None,
):
    """Returns update(state, ref_params, mini_batches) -> (state, metrics).

    Gradients are summed in float32 over the micro-batches of a mini-batch, each of them one run of
    a program that is compiled once for each shape (B, T, A); then the optimizer steps once. This
    is done for every mini-batch, `epochs` times over.

    state.opt_state is donated. Parameters are not: the sampler may still hold these arrays.

    Args:
      optimizer: optax transformation.
      temperature, chunk, dtype, remat: of `logprobs.score`.
      clip_low, clip_high, dual_clip, kl_coef, sequence_ratio, tis_cap: of `loss.policy_loss`.
      epochs: passes over the mini-batches.
      old_logprobs: π_old of the ratio. "sampler": what the sampler reported. "recompute": scored
        once by the parameters the update starts from.
      shardings: NamedSharding of each parameter, structured like params; None for one device.
      batch_sharding: NamedSharding of the rows; None for one device. With several processes each
        one hands in its own rows.

    `metrics` is a dict of floats. Losses, clip fraction, ratio and entropy are means over the
    optimizer steps; the gap between sampler and trainer is that of the first step, before the
    parameters moved, so it covers the first mini-batch.
    """
    if old_logprobs not in OLD_LOGPROBS:
        raise ValueError(
            f"old_logprobs={old_logprobs!r} is unknown; valid: {', '.join(OLD_LOGPROBS)}."
        )
    if tis_cap and old_logprobs == "sampler":
        raise ValueError(
            f"tis_cap={tis_cap} corrects recomputed old log-probs for the sampler's distribution "
            "and does nothing with the sampler's own. Set old_logprobs to 'recompute' or tis_cap "
            "to 0."
        )
    how = dict(temperature=temperature, chunk=chunk, dtype=dtype, remat=remat)
    numbers = dict(
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        kl_coef=kl_coef,
        sequence_ratio=sequence_ratio,
        tis_cap=tis_cap,
    )

    def accumulate(grads, sums, params, ref_params, batch, *, on_policy):
        new_grads, new = gradient(params, ref_params, batch, on_policy=on_policy, **how, **numbers)
        grads = jax.tree.map(lambda total, g: total + g.astype(jnp.float32), grads, new_grads)
        gap_max = jnp.maximum(sums["gap_max"], new["gap_max"])
        return grads, {k: sums[k] + new[k] for k in new} | {"gap_max": gap_max}

    def zeros(params):
        names = ("policy", "kl", "tokens", "clipped", "ratio", "gap", "gap_max", "entropy")
        grads = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        return grads, {name: jnp.zeros(()) for name in names}

    def step(params, opt_state, count, grads, sums):
        value = sums["policy"] + kl_coef * sums["kl"]
        return apply(params, opt_state, count, grads, value, optimizer=optimizer)

    def rescore(params, batch):
        return logprobs.score(params, batch, **how)[0]

    # Outputs that come back as inputs must lie where they lay, or they compile anew.
    sums_out = stepped_out = rescore_out = None
    if shardings is not None:
        places = state_shardings(optimizer, shardings)
        sums_out = (shardings, places.step)
        stepped_out = (shardings, places.opt_state, *[places.step] * 3)
        rescore_out = batch_sharding
    zeros_program = jax.jit(zeros, out_shardings=sums_out)
    accumulate_program = jax.jit(
        accumulate, static_argnames="on_policy", donate_argnums=(0, 1), out_shardings=sums_out
    )
    rescore_program = jax.jit(rescore, out_shardings=rescore_out)
    step_program = jax.jit(step, donate_argnums=(1, 3), out_shardings=stepped_out)
    programs = (zeros_program, accumulate_program, rescore_program, step_program)

    def place(batch):
        if batch_sharding is None:
            return jax.tree.map(jnp.asarray, batch)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(batch_sharding, x), batch
        )

    def update(state, ref_params, mini_batches):
        flat = [batch for micro_batches in mini_batches for batch in micro_batches]
        if not batching.sampled_tokens(flat):
            raise ValueError(f"No sampled token in {len(flat)} micro-batches: nothing to train on.")
        placed = [[place(batch) for batch in micro_batches] for micro_batches in mini_batches]
        recompute = old_logprobs == "recompute"
        one_step = epochs * len(placed) == 1  # then π_old is π_θ: no extra pass
        if recompute and not one_step:
            placed = [
                [b.replace(old_logp_BA=rescore_program(state.params, b)) for b in micro_batches]
                for micro_batches in placed
            ]
        reports = []
        for _ in range(epochs):
            for micro_batches in placed:
                grads, sums = zeros_program(state.params)
                for batch in micro_batches:
                    grads, sums = accumulate_program(
                        grads,
                        sums,
                        state.params,
                        ref_params if kl_coef else None,
                        batch,
                        on_policy=recompute and one_step,
                    )
                params, opt_state, count, norm, applied = step_program(
                    state.params, state.opt_state, state.step, grads, sums
                )
                state = State(params, opt_state, count)
                reports.append(sums | {"norm": norm, "applied": applied})
        reports = jax.device_get(reports)

        def mean(value):
            return float(np.mean([value(report) for report in reports]))

        def token_mean(name):
            return mean(lambda report: report[name] / report["tokens"])

        metrics = {
            "loss/total": mean(lambda report: report["policy"] + kl_coef * report["kl"]),
            "loss/policy": mean(lambda report: report["policy"]),
            "loss/kl": mean(lambda report: report["kl"]),
            "policy/clip_fraction": token_mean("clipped"),
            "policy/ratio_mean": token_mean("ratio"),
            "policy/entropy": token_mean("entropy"),
            "policy/logprob_gap_mean": float(reports[0]["gap"] / reports[0]["tokens"]),
            "policy/logprob_gap_max": float(reports[0]["gap_max"]),
            "optim/grad_norm": mean(lambda report: report["norm"]),
            "optim/steps": float(len(reports)),
            "optim/skipped": float(sum(not report["applied"] for report in reports)),
            "tokens/trained": float(batching.sampled_tokens(flat)),
            "tokens/padding_share": batching.padding_share(flat),
            "compile/count": float(sum(program._cache_size() for program in programs)),
        }
        return state, metrics

    return update
