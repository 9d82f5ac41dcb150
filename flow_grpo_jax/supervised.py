"""Supervised updates: the likelihood of given replies, by the update of Flow-GRPO.

    loss = -1/n Σ log π_θ(token | all before it), over the n tokens of a step's replies

On policy the ratio ρ is 1 and nothing is clipped, so the gradient of the gain ρ A is A ∇ log π_θ.
With A = 1 and all tokens weighed alike that is the gradient of the likelihood, and rows, kernels,
sharding, adapters and optimizer are those of `update`. Who writes demonstrations draws each token
with probability 1, log-prob 0: the gap |log π_θ - 0| in the metrics is the loss.

Dimensions:
  B rows    A response tokens of a row    Q replies of a step, each a group of its own    G = 1
"""

import functools

import numpy as np

from flow_grpo_jax import batching, credit, loss, update

# Of these only kl_coef matters where ρ is 1.
NUMBERS = loss.Numbers(
    clip_low=0.5, clip_high=0.5, dual_clip=0.0, kl_coef=0.0, sequence_ratio=False, tis_cap=0.0
)
LOSS = "policy/logprob_gap_mean"  # in the metrics of an update: nats a token


def make_update(optimizer, **settings):
    """Returns the `update.Update` that raises the likelihood of the rows of `lay_out`.

    settings: those of its arguments that no supervised update fixes.
    """
    return update.Update(
        optimizer,
        numbers=NUMBERS,
        temperature=1.0,
        epochs=1,
        old_logprobs="recompute",
        **settings,
    )


def lay_out(replies, shapes):
    """Returns the mini-batches of one optimizer step, as `batching.build` does.

    Args:
      replies: [(prompt token ids, response token ids)].
      shapes: arguments of `batching.build`: layout, row_lengths, rows, response_lengths.
    """
    samples = [
        batching.TurnSample(prompt, response, (0.0,) * len(response), trajectory=q, group=q)
        for q, (prompt, response) in enumerate(replies)
    ]
    each_QG = np.ones((len(samples), 1))
    return batching.build(
        samples,
        adv_QG=each_QG,
        valid_QG=each_QG,
        weigh=credit.weigh_tokens,
        split=functools.partial(batching.by_questions, mini_batches=1),
        constant_length=1,
        **shapes,
    )


def cross_entropy(program, params, frozen, replies, shapes):
    """Returns the loss of replies under the weights, in nats a token; nothing is trained.

    Args:
      program: of `make_update`.
      params, frozen: as in `update`.
      replies, shapes: of `lay_out`.
    """
    nats, frozen = 0.0, frozen if program.reads_frozen else None
    [micro_batches] = lay_out(replies, shapes)
    for batch in micro_batches:
        logp_BA = np.asarray(program.rescore(params, frozen, program.place(batch)))
        nats -= float(logp_BA[batch.mask_BA].sum(dtype=np.float64))
    return nats / batching.sampled_tokens(micro_batches)
