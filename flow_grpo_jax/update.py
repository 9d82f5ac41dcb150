"""The update: gradients over micro-batches, one AdamW step an optimizer step.

`Update` compiles a program for each row length, one that starts and one that ends an optimizer
step. Nothing here knows questions, rewards or agents: micro-batches arrive with advantages and
weights.

There are two pytrees of weights. `params` is what is trained: a whole Decoder, or LoRA adapters.
`frozen` never changes: the reference policy, and with LoRA the base as well. `assemble` makes the
policy from both.

Dimensions:
  B rows of a micro-batch    T tokens in a row    A response tokens of a row
"""

import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from flow_grpo_jax import batching, logprobs, loss
from models import precision

OLD_LOGPROBS = ("sampler", "recompute")


@flax.struct.dataclass
class State:
    """params: float32 masters. opt_state: of optax. step: int32, optimizer steps not skipped."""

    params: Any
    opt_state: Any
    step: jax.Array


def whole_model(params, frozen):
    """Returns the policy in full fine-tuning, where it is what is trained; an `assemble`."""
    del frozen
    return params


# ---- state -------------------------------------------------------------------------------------


def state_shardings(optimizer, shardings):
    """Returns a State of NamedShardings: moments lie with their parameters, counters everywhere.

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
    """Returns the State at step 0.

    Args:
      params: float32 model, already placed by `shardings`.
      shardings: as in `state_shardings`; None for one device.
    """
    start = lambda params: (optimizer.init(params), jnp.zeros((), jnp.int32))
    if shardings is None:
        return State(params, *start(params))
    places = state_shardings(optimizer, shardings)
    return State(params, *jax.jit(start, out_shardings=(places.opt_state, places.step))(params))


# ---- one micro-batch ---------------------------------------------------------------------------


def add_gradient(
    grads,
    params,
    frozen,
    batch,
    *,
    execution,
    temperature,
    chunk,
    mesh,
    numbers,
    on_policy,
    assemble,
):
    """Adds the gradient of one micro-batch's loss to a sum.

    The backward pass adds each layer's gradient as soon as it is computed, so that the gradient of
    a micro-batch never exists as a whole.

    Args:
      grads: like params, the sum so far.
      params: what is trained.
      frozen: Decoder, the reference policy; not read if the KL coefficient is 0 and `assemble`
        ignores it.
      batch: TurnBatch.
      execution, temperature, chunk, mesh: of `logprobs.score`.
      numbers: loss.Numbers.
      on_policy: π_old is π_θ itself, so batch.old_logp_BA is not read.
      assemble: (params, frozen) -> Decoder, the policy.

    Returns:
      (grads, sums): sums of `policy_loss` and `entropy`, summed over sampled tokens.
    """
    how = dict(execution=execution, temperature=temperature, chunk=chunk, mesh=mesh)
    ref_logp_BA = logprobs.score(frozen, batch, **how)[0] if numbers.kl_coef else None

    def objective(params):
        logp_BA, entropy_BA = logprobs.score(assemble(params, frozen), batch, **how)
        old_logp_BA = jax.lax.stop_gradient(logp_BA) if on_policy else batch.old_logp_BA
        value, sums = loss.policy_loss(
            logp_BA, ref_logp_BA, batch.replace(old_logp_BA=old_logp_BA), numbers=numbers
        )
        return value, sums | {"entropy": jnp.where(batch.mask_BA, entropy_BA, 0.0).sum()}

    totals = jax.tree.map(jax.new_ref, grads)
    value, pull, sums = jax.vjp(objective, params, has_aux=True)
    pull.with_refs(totals)(jnp.ones_like(value))
    return jax.tree.map(jax.freeze, totals), sums


def sum_names():
    """Returns the names of what `add_gradient` sums: those of the loss, and "entropy"."""
    batch = batching.shapes(rows=1, tokens=1, sampled=1)
    numbers = loss.Numbers(
        clip_low=0.0, clip_high=0.0, dual_clip=0.0, kl_coef=0.0, sequence_ratio=False, tis_cap=0.0
    )
    of = functools.partial(loss.policy_loss, numbers=numbers)
    return (*jax.eval_shape(of, batch.old_logp_BA, None, batch)[1], "entropy")


def apply(params, opt_state, step, grads, loss_value, *, optimizer):
    """Takes one optimizer step, or none if the loss or the gradient is not finite.

    Returns:
      (params, opt_state, step, norm, applied): norm is the gradient's before clipping.
    """
    norm = optax.tree.norm(grads)
    applied = jnp.isfinite(norm) & jnp.isfinite(loss_value)
    updates, new_opt_state = optimizer.update(grads, opt_state, params)
    new = (optax.apply_updates(params, updates), new_opt_state, step + 1)
    kept = jax.tree.map(lambda n, o: jnp.where(applied, n, o), new, (params, opt_state, step))
    return *kept, norm, applied


# ---- the whole update --------------------------------------------------------------------------


class Update:
    """The whole update: (state, frozen, mini_batches) -> (state, metrics).

    Gradients are summed over the micro-batches of a mini-batch, each of them one run of a program
    that is compiled once for each shape (B, T, A); then the optimizer steps once. This is done for
    every mini-batch, `epochs` times over.

    The programs, for ahead-of-time compilation: `zeros(params) -> (grads, sums)`,
    `accumulate(grads, sums, params, frozen, batch, on_policy=) -> (grads, sums)`,
    `rescore(params, frozen, batch) -> logp_BA` (only for recomputed π_old and several steps),
    `finish(params, opt_state, count, grads, sums) -> (params, opt_state, count, norm, applied)`.

    Args:
      optimizer: optax transformation.
      numbers: loss.Numbers.
      execution, temperature, chunk: of `logprobs.score`.
      epochs: passes over the mini-batches.
      old_logprobs: π_old of the ratio. "sampler": what the sampler reported. "recompute": scored
        once by the parameters the update starts from.
      assemble: (params, frozen) -> Decoder, the policy; `whole_model`, or `lora.combine`.
      donate_params: the new parameters may take the memory of the old ones. False while a sampler
        holds the same arrays. The optimizer's state is always donated.
      shardings: NamedSharding of each trained parameter, structured like params; None for one
        device.
      batch_sharding: NamedSharding of the rows; None for one device. Every process hands in the
        same whole batch and places the rows of its own devices.

    `metrics` is a dict of floats. Losses, clip fraction, ratio and entropy are means over the
    optimizer steps; the gap between sampler and trainer is measured in the first step, before the
    parameters change, so it covers the first mini-batch.
    """

    def __init__(
        self,
        optimizer,
        *,
        numbers,
        execution,
        temperature,
        chunk,
        epochs,
        old_logprobs,
        assemble=whole_model,
        donate_params=False,
        shardings=None,
        batch_sharding=None,
    ):
        if old_logprobs not in OLD_LOGPROBS:
            raise ValueError(
                f"old_logprobs={old_logprobs!r} is unknown; valid: {', '.join(OLD_LOGPROBS)}."
            )
        if numbers.tis_cap and old_logprobs == "sampler":
            raise ValueError(
                f"tis_cap={numbers.tis_cap} corrects recomputed old log-probs for the sampler's "
                "distribution and does nothing with the sampler's own. Set old_logprobs to "
                "'recompute' or tis_cap to 0."
            )
        self.epochs, self.kl_coef = epochs, numbers.kl_coef
        self.recompute = old_logprobs == "recompute"
        self.reads_frozen = bool(numbers.kl_coef) or assemble is not whole_model
        self.batch_sharding = batch_sharding
        mesh = None if batch_sharding is None else batch_sharding.mesh
        score = dict(execution=execution, temperature=temperature, chunk=chunk, mesh=mesh)

        def zeros(params):
            grads = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
            return grads, {name: jnp.zeros(()) for name in sum_names()}

        def accumulate(grads, sums, params, frozen, batch, *, on_policy):
            grads, new = add_gradient(
                grads,
                params,
                frozen,
                batch,
                numbers=numbers,
                on_policy=on_policy,
                assemble=assemble,
                **score,
            )
            gap_max = jnp.maximum(sums["gap_max"], new["gap_max"])
            return grads, {k: sums[k] + new[k] for k in new} | {"gap_max": gap_max}

        def finish(params, opt_state, count, grads, sums):
            value = sums["policy"] + numbers.kl_coef * sums["kl"]
            return apply(params, opt_state, count, grads, value, optimizer=optimizer)

        def rescore(params, frozen, batch):
            return logprobs.score(assemble(params, frozen), batch, **score)[0]

        # Outputs that come back as inputs must keep their sharding, or the program compiles again.
        sums_out = finished_out = None
        if shardings is not None:
            places = state_shardings(optimizer, shardings)
            sums_out = (shardings, places.step)
            finished_out = (shardings, places.opt_state, *[places.step] * 3)
        # The new parameters take the place of the old ones, or of the gradients.
        donated = (0, 1) if donate_params else (1, 3)
        self.zeros = jax.jit(zeros, out_shardings=sums_out)
        exact = functools.partial(precision.in_dtype, dtype=execution.dtype)
        self.accumulate = jax.jit(
            exact(accumulate),
            static_argnames="on_policy",
            donate_argnums=(0, 1),
            out_shardings=sums_out,
        )
        self.rescore = jax.jit(exact(rescore), out_shardings=batch_sharding)
        self.finish = jax.jit(finish, donate_argnums=donated, out_shardings=finished_out)

    def __call__(self, state, frozen, mini_batches):
        flat = [batch for micro_batches in mini_batches for batch in micro_batches]
        if not batching.sampled_tokens(flat):
            raise ValueError(f"No sampled token in {len(flat)} micro-batches: nothing to train on.")
        frozen = frozen if self.reads_frozen else None
        placed = [[self.place(batch) for batch in part] for part in mini_batches]
        one_step = self.epochs * len(placed) == 1  # then π_old is π_θ: no extra pass
        if self.recompute and not one_step:
            rescore = functools.partial(self.rescore, state.params, frozen)
            placed = [[b.replace(old_logp_BA=rescore(b)) for b in part] for part in placed]
        reports = []
        for _ in range(self.epochs):
            for micro_batches in placed:
                grads, sums = self.zeros(state.params)
                for batch in micro_batches:
                    grads, sums = self.accumulate(
                        grads,
                        sums,
                        state.params,
                        frozen,
                        batch,
                        on_policy=self.recompute and one_step,
                    )
                params, opt_state, count, norm, applied = self.finish(
                    state.params, state.opt_state, state.step, grads, sums
                )
                state = State(params, opt_state, count)
                reports.append(sums | {"norm": norm, "applied": applied})
        return state, self._metrics(jax.device_get(reports), flat)

    def place(self, batch):
        """Puts a batch on the devices that hold its rows."""
        if self.batch_sharding is None:
            return jax.tree.map(jnp.asarray, batch)
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(
                x.shape, self.batch_sharding, lambda index: x[index]
            ),
            batch,
        )

    @property
    def compile_count(self):
        """Programs compiled so far."""
        programs = (self.zeros, self.accumulate, self.rescore, self.finish)
        return sum(program._cache_size() for program in programs)

    def _metrics(self, reports, flat):
        def mean(value):
            return float(np.mean([value(report) for report in reports]))

        def token_mean(name):
            return mean(lambda report: report[name] / report["tokens"])

        return {
            "loss/total": mean(lambda report: report["policy"] + self.kl_coef * report["kl"]),
            "loss/policy": mean(lambda report: report["policy"]),
            "loss/kl": mean(lambda report: report["kl"]),
            "policy/clip_fraction": token_mean("clipped"),
            "policy/ratio_mean": token_mean("ratio"),
            "policy/entropy": token_mean("entropy"),
            "policy/logprob_gap_mean": float(reports[0]["gap"] / reports[0]["tokens"]),
            "policy/logprob_gap_k3": float(reports[0]["gap_k3"] / reports[0]["tokens"]),
            "policy/logprob_gap_max": float(reports[0]["gap_max"]),
            "optim/grad_norm": mean(lambda report: report["norm"]),
            "optim/steps": float(len(reports)),
            "optim/skipped": float(sum(not report["applied"] for report in reports)),
            "tokens/trained": float(batching.sampled_tokens(flat)),
            "tokens/padding_share": batching.padding_share(flat),
            "tokens/sharing": batching.sharing(flat),
            "compile/count": float(self.compile_count),
        }
