"""Planner turns to padded micro-batches of a few fixed shapes.

A row is one planner turn: prompt, sampled tokens, padding. Rows are sorted into buckets by length,
each bucket into micro-batches of a fixed number of rows, so the update compiles once a bucket.
What a row counts in the loss is decided here too, in `weight_B`.

Dimensions:
  Q questions    G rollouts of a question    S samples (turns) of an optimizer step
  B rows of a micro-batch, one turn each    T tokens in a row    A response tokens of a row
"""

import collections
import dataclasses

import flax
import jax
import numpy as np
from absl import logging


@dataclasses.dataclass(frozen=True)
class TurnSample:
    """One planner turn as the engine saw it.

    prompt_tokens:   ids of the prompt, at least one.
    response_tokens: sampled ids, stop token included; at least one.
    logprobs:        nats, of each response token under the distribution it was drawn from.
    trajectory:      question * G + rollout.
    group:           question, 0 <= group < Q.
    """

    prompt_tokens: tuple[int, ...]
    response_tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    trajectory: int
    group: int


@flax.struct.dataclass
class TurnBatch:
    """Rows of one shape. Padding may stand only on the right, and whole rows may be padding.

        token_BT    5 6 7 1 2 3 9 0    prompt 5 6 7, sampled 1 2 3, stop token 9, padding
        segment_BT  1 1 1 1 1 1 1 0
        target_BA   1 2 3 9 0          start_B = 3; the hidden state that predicts column a
        mask_BA     1 1 1 1 0          stands at position start_B - 1 + a

    token_BT:        int32 ids, 0 on padding.
    segment_BT:      int32, 1 on real tokens, 0 on padding.
    start_B:         int32, index of the first sampled token; 1 on padding rows.
    target_BA:       int32, the sampled ids.
    mask_BA:         bool, True exactly on sampled tokens, stop token included.
    old_logp_BA:     float32, nats, log π_old of target_BA; arbitrary where the mask is False.
    sampler_logp_BA: float32, nats, what the sampler reported; equal to old_logp_BA unless the
                     update recomputed that. Arbitrary where the mask is False.
    adv_B:           float32, the trajectory's advantage, the same for all of its turns.
    weight_B:        float32, share of the row's token mean in the loss; 0 on padding rows.
    """

    token_BT: jax.Array | np.ndarray
    segment_BT: jax.Array | np.ndarray
    start_B: jax.Array | np.ndarray
    target_BA: jax.Array | np.ndarray
    mask_BA: jax.Array | np.ndarray
    old_logp_BA: jax.Array | np.ndarray
    sampler_logp_BA: jax.Array | np.ndarray
    adv_B: jax.Array | np.ndarray
    weight_B: jax.Array | np.ndarray


# ---- weights: loss = Σ_rows weight * (mean over the row's sampled tokens) ----------------------
# One signature: sampled tokens, trajectory and micro-batch of each row; how many valid trajectories
# the optimizer step has; the length that "constant length" means.


def weigh_turns(tokens_S, trajectory_S, micro_S, *, trajectories, constant_length):
    """1 / (trajectories * turns of this one): Eq. 5, with its 1/|a| in the loss."""
    turns_S = np.bincount(trajectory_S)[trajectory_S]
    return 1.0 / (trajectories * turns_S)


def weigh_rollout_tokens(tokens_S, trajectory_S, micro_S, *, trajectories, constant_length):
    """Mean over trajectories of the mean over all tokens of the trajectory."""
    total_S = np.bincount(trajectory_S, weights=tokens_S)[trajectory_S]
    return tokens_S / (trajectories * total_S)


def weigh_tokens(tokens_S, trajectory_S, micro_S, *, trajectories, constant_length):
    """Mean over all tokens of the step, whoever's they are."""
    return tokens_S / tokens_S.sum()


def weigh_micro_batch_tokens(tokens_S, trajectory_S, micro_S, *, trajectories, constant_length):
    """Token mean inside a micro-batch, then mean over micro-batches: depends on their size."""
    total_S = np.bincount(micro_S, weights=tokens_S)[micro_S]
    return tokens_S / (total_S * len(np.unique(micro_S)))


def weigh_constant_length(tokens_S, trajectory_S, micro_S, *, trajectories, constant_length):
    """Sum over a trajectory's tokens / constant_length, then mean over trajectories."""
    if constant_length < 1:
        raise ValueError(
            f"constant_length={constant_length} must be positive. Use the tokens a trajectory may "
            "sample at most: turns times response tokens."
        )
    return tokens_S / (trajectories * constant_length)


# ---- samples -> micro-batches ------------------------------------------------------------------


def turn_counts(samples, *, questions, rollouts):
    """int64 [Q, G]: number of turns of each trajectory."""
    counts = np.bincount([s.trajectory for s in samples], minlength=questions * rollouts)
    return counts.reshape(questions, rollouts)


def build(
    samples,
    *,
    adv_QG,
    valid_QG,
    weigh,
    row_lengths,
    rows,
    response_lengths,
    row_shards=1,
    mini_batches=1,
    constant_length=0,
):
    """Lays samples out in micro-batches.

    Samples of valid trajectories all appear exactly once; those of invalid ones do not appear and
    count in no average. A valid trajectory counts in the average whatever its advantage and even
    if it has no sample.

    Args:
      samples: sequence of TurnSample.
      adv_QG: advantages, one a trajectory.
      valid_QG: bool, False for trajectories that must not count.
      weigh: one of the `weigh_*` functions.
      row_lengths: ascending; a row gets the first T that holds prompt and response.
      rows: B of each row length, same number of entries.
      response_lengths: ascending; a row gets the first A that holds the response.
      row_shards: devices that share the rows (mesh axes data * fsdp).
      mini_batches: optimizer steps; questions are split into so many consecutive parts.
      constant_length: for `weigh_constant_length` only.

    Returns:
      List over mini-batches of lists of TurnBatch (NumPy). The order depends on the samples' order
      and lengths alone. Parts without any sample are left out, with a warning.

    Raises:
      ValueError: a sample is malformed or too long, rows do not divide, or nothing is left to
        train on.
    """
    adv_QG, valid_QG = np.asarray(adv_QG), np.asarray(valid_QG, bool)
    check_buckets(row_lengths, rows, response_lengths, row_shards)
    if not 1 <= mini_batches <= len(valid_QG):
        raise ValueError(
            f"mini_batches={mini_batches} must be between 1 and the {len(valid_QG)} questions."
        )
    for index, sample in enumerate(samples):
        _check_sample(index, sample, valid_QG.shape)
    valid = [s for s in samples if valid_QG.flat[s.trajectory]]
    if not valid:
        raise ValueError(
            f"No sampled token to train on: {len(samples)} samples, {int(valid_QG.sum())} valid "
            f"trajectories of {valid_QG.size}. Look at rollout/infra_errors."
        )
    result = []
    for question_P in np.array_split(np.arange(len(valid_QG)), mini_batches):
        part = [s for s in valid if question_P[0] <= s.group <= question_P[-1]]
        if not part:
            logging.warning("Questions %s have no valid sample: no optimizer step.", question_P)
            continue
        layout = _lay_out(part, row_lengths, rows, response_lengths)
        ordered = [sample for _, members in layout for sample in members]
        weight_S = weigh(
            np.array([len(s.response_tokens) for s in ordered]),
            np.array([s.trajectory for s in ordered]),
            np.repeat(np.arange(len(layout)), [len(members) for _, members in layout]),
            trajectories=int(valid_QG[question_P].sum()),
            constant_length=constant_length,
        )
        adv_S = adv_QG.flat[[s.trajectory for s in ordered]]
        micro_batches, first = [], 0
        for shape, members in layout:
            last = first + len(members)
            micro_batches.append(
                _pad(members, adv_S[first:last], weight_S[first:last], shape=shape)
            )
            first = last
        result.append(micro_batches)
    return result


def padding_share(micro_batches):
    """Padding tokens / all tokens, padding rows included."""
    real = sum(int((batch.segment_BT > 0).sum()) for batch in micro_batches)
    return 1.0 - real / sum(batch.segment_BT.size for batch in micro_batches)


def sampled_tokens(micro_batches):
    """Number of tokens that carry loss."""
    return sum(int(batch.mask_BA.sum()) for batch in micro_batches)


def check_buckets(row_lengths, rows, response_lengths, row_shards):
    """ValueError for buckets that `build` cannot fill; call it before the first rollout."""
    if len(rows) != len(row_lengths):
        raise ValueError(f"rows={rows} needs one entry for each of row_lengths={row_lengths}.")
    for name, sizes in (("row_lengths", row_lengths), ("response_lengths", response_lengths)):
        if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
            raise ValueError(f"{name}={sizes} must be ascending positive numbers.")
    for count in rows:
        if count < 1 or count % row_shards:
            multiple = max(1, -(-count // row_shards)) * row_shards
            raise ValueError(
                f"rows={rows}: {count} is not a positive multiple of the {row_shards} devices that "
                f"share the rows (mesh axes data * fsdp). Use e.g. {multiple}."
            )


def _check_sample(index, sample, shape_QG):
    name = f"Sample {index} (question {sample.group}, trajectory {sample.trajectory})"
    questions, rollouts = shape_QG
    if not (0 <= sample.group < questions and sample.trajectory // rollouts == sample.group):
        raise ValueError(
            f"{name} does not fit {questions} questions of {rollouts} rollouts: trajectory must be "
            "question * rollouts + rollout."
        )
    if not sample.prompt_tokens:
        raise ValueError(f"{name} has an empty prompt: nothing predicts its first token.")
    if not sample.response_tokens:
        raise ValueError(
            f"{name} has an empty response. A turn samples at least its stop token; leave out "
            "turns that were never sampled."
        )
    if len(sample.logprobs) != len(sample.response_tokens):
        raise ValueError(
            f"{name} has {len(sample.response_tokens)} response tokens and {len(sample.logprobs)} "
            "logprobs; they must agree."
        )


def _bucket(length, sizes, name):
    for size in sizes:
        if length <= size:
            return size
    raise ValueError(
        f"{length} tokens exceed the largest of {name}={tuple(sizes)}. Add a larger entry, or "
        "shorten prompts where they are made."
    )


def _lay_out(samples, row_lengths, rows, response_lengths):
    """[((B, T, A), samples of one micro-batch)], longest rows first."""
    rows_of = dict(zip(row_lengths, rows, strict=True))
    waiting = collections.defaultdict(list)
    for s in samples:
        T = _bucket(len(s.prompt_tokens) + len(s.response_tokens), row_lengths, "row_lengths")
        A = _bucket(len(s.response_tokens), response_lengths, "response_lengths")
        waiting[T, A].append(s)
    layout = []
    shapes = sorted(waiting, reverse=True)
    for i, (T, A) in enumerate(shapes):
        members, B = waiting[T, A], rows_of[T]
        # Rows that would be padding take turns of smaller buckets, which may save these a
        # micro-batch.
        for smaller in shapes[i + 1 :]:
            free = -len(members) % B
            if free and smaller[1] <= A:
                members += waiting[smaller][-free:]
                del waiting[smaller][-free:]
        layout += [((B, T, A), members[j : j + B]) for j in range(0, len(members), B)]
    return layout


def _pad(samples, adv_S, weight_S, *, shape):
    B, T, A = shape
    batch = TurnBatch(
        token_BT=np.zeros((B, T), np.int32),
        segment_BT=np.zeros((B, T), np.int32),
        start_B=np.ones(B, np.int32),
        target_BA=np.zeros((B, A), np.int32),
        mask_BA=np.zeros((B, A), bool),
        old_logp_BA=np.zeros((B, A), np.float32),
        sampler_logp_BA=np.zeros((B, A), np.float32),
        adv_B=np.zeros(B, np.float32),
        weight_B=np.zeros(B, np.float32),
    )
    for b, sample in enumerate(samples):
        start, sampled = len(sample.prompt_tokens), len(sample.response_tokens)
        batch.token_BT[b, :start] = sample.prompt_tokens
        batch.token_BT[b, start : start + sampled] = sample.response_tokens
        batch.segment_BT[b, : start + sampled] = 1
        batch.start_B[b] = start
        batch.target_BA[b, :sampled] = sample.response_tokens
        batch.mask_BA[b, :sampled] = True
        batch.old_logp_BA[b, :sampled] = sample.logprobs
    batch.sampler_logp_BA[:] = batch.old_logp_BA
    batch.adv_B[: len(samples)] = adv_S
    batch.weight_B[: len(samples)] = weight_S
    return batch
