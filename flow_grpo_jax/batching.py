"""Planner turns to micro-batches of a few fixed shapes.

A turn is a prompt and the tokens sampled after it. Rows hold one turn each, or several, or a prefix
tree of them (`packing.py`); all give the same loss and gradient. A micro-batch is a fixed number of
rows of one shape, so the update compiles once for each shape. `weight_BA` says what each token
counts in the loss.

Dimensions:
  Q questions    G rollouts of a question    P questions of a mini-batch
  S samples (turns) of an optimizer step
  B rows of a micro-batch    T tokens in a row    A response tokens of a row
"""

import dataclasses
import functools

import flax
import jax
import numpy as np
from absl import logging

from flow_grpo_jax import credit, packing


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
    """Rows of one shape. A row holds one turn, several turns, or a tree of turns.

    Query i of a row sees key j iff j <= i < until[j], so a token is visible up to the end of its
    segment, or of its subtree where turns share a prefix. Loss entries are listed apart from the
    tokens: entry a is the logit of target[a] at the hidden state of token index[a].

        two turns: prompt 5 6 7, sampled 1 2 9; prompt 5 6, sampled 4 9 (9 = stop token)

                padded, row of the first  packed                 tree, 5 6 written once
        token   5 6 7 1 2 9 0 0 0 0       5 6 7 1 2 9 5 6 4 9    5 6 4 9 7 1 2 9 0 0
        until   6 6 6 6 6 6 0 0 0 0       6 6 6 6 6 6 * * * *    8 8 4 4 8 8 8 8 0 0    * = 10
        index   2 3 4 0 0                 2 3 4 7 8              1 2 4 5 6
        target  1 2 9 0 0                 1 2 9 4 9              4 9 1 2 9
        mask    1 1 1 0 0                 1 1 1 1 1              1 1 1 1 1
        turn    0 0 0 0 0                 0 0 0 1 1              0 0 1 1 1

    token_BT:        int32 ids, 0 on padding.
    until_BT:        int32, index in the row up to which (exclusive) a token is seen; 0 on padding.
    index_BA:        int32, index in the row of the state that predicts the target; 0 on padding.
    target_BA:       int32, the sampled ids; 0 on padding.
    mask_BA:         bool, True exactly on sampled tokens, stop token included.
    turn_BA:         int32, number of the turn in its row, 0 .. A - 1; 0 on padding.
    old_logp_BA:     float32, nats, log π_old of target_BA; arbitrary where the mask is False.
    sampler_logp_BA: float32, nats, what the sampler reported; equal to old_logp_BA unless the
                     update recomputed that. Arbitrary where the mask is False.
    adv_BA:          float32, the advantage of the trajectory or of the turn, for all tokens of it.
    weight_BA:       float32, the turn's share in the loss / its tokens; 0 on padding.
    """

    token_BT: jax.Array | np.ndarray
    until_BT: jax.Array | np.ndarray
    index_BA: jax.Array | np.ndarray
    target_BA: jax.Array | np.ndarray
    mask_BA: jax.Array | np.ndarray
    turn_BA: jax.Array | np.ndarray
    old_logp_BA: jax.Array | np.ndarray
    sampler_logp_BA: jax.Array | np.ndarray
    adv_BA: jax.Array | np.ndarray
    weight_BA: jax.Array | np.ndarray


def shapes(*, rows, tokens, sampled):
    """Returns a TurnBatch of ShapeDtypeStructs: B = rows, T = tokens, A = sampled."""
    of_tokens = functools.partial(jax.ShapeDtypeStruct, (rows, tokens))
    of_sampled = functools.partial(jax.ShapeDtypeStruct, (rows, sampled))
    return TurnBatch(
        token_BT=of_tokens(np.int32),
        until_BT=of_tokens(np.int32),
        index_BA=of_sampled(np.int32),
        target_BA=of_sampled(np.int32),
        mask_BA=of_sampled(np.bool_),
        turn_BA=of_sampled(np.int32),
        old_logp_BA=of_sampled(np.float32),
        sampler_logp_BA=of_sampled(np.float32),
        adv_BA=of_sampled(np.float32),
        weight_BA=of_sampled(np.float32),
    )


# ---- samples -> micro-batches ------------------------------------------------------------------


def turn_counts(samples, *, questions, rollouts):
    """Counts the turns of each trajectory: int64 [Q, G]."""
    counts = np.bincount([s.trajectory for s in samples], minlength=questions * rollouts)
    return counts.reshape(questions, rollouts)


def build(
    samples,
    *,
    adv_QG,
    valid_QG,
    weigh,
    layout,
    row_lengths,
    rows,
    response_lengths,
    split,
    constant_length,
    own=None,
):
    """Lays samples out in micro-batches.

    Each sample of a valid trajectory appears exactly once; those of invalid ones do not appear and
    count in no average. A valid trajectory counts in the average whatever its advantage, even if it
    has no sample.

    Args:
      samples: sequence of TurnSample.
      adv_QG: advantages, one a trajectory; not read if turns have their own.
      valid_QG: bool, False for trajectories that must not count.
      weigh: one of the `weigh_*` functions.
      layout: "padded", one turn a row; "packed", several; "tree", several with common prefixes
        computed once.
      row_lengths: ascending; the values that T has. A length may stand there again with more rows.
      rows: B of each row length.
      response_lengths: A of each row length, ascending; neighbours may be equal.
      split: (question_S, questions) -> the turns of each optimizer step; `by_questions` or
        `shuffled` with the rest of their arguments given.
      constant_length: for `weigh_constant_length` only.
      own: `credit.Own` of the samples; None gives turns their trajectory's advantage, and
        trajectories the shares of `credit.equal_questions`.

    Returns:
      List over mini-batches of lists of TurnBatch (NumPy), longest rows first. Depends on the
      arguments alone, so processes that hold the same samples build the same batches. Steps
      without any sample are left out.

    Raises:
      ValueError: a sample is malformed or too long, or nothing is left to train on.
    """
    valid_QG = np.asarray(valid_QG, bool)
    check_buckets(row_lengths, rows, response_lengths, layout=layout)
    buckets = [
        packing.Shape(*bucket) for bucket in zip(rows, row_lengths, response_lengths, strict=True)
    ]
    for index, sample in enumerate(samples):
        _check_sample(index, sample, valid_QG.shape, buckets[-1])
    kept = [index for index, s in enumerate(samples) if valid_QG.flat[s.trajectory]]
    valid = [samples[index] for index in kept]
    if not valid:
        raise ValueError(
            f"No sampled token to train on: {len(samples)} samples, {int(valid_QG.sum())} valid "
            f"trajectories of {valid_QG.size}. Look at rollout/infra_errors."
        )
    sequences = [np.array(s.prompt_tokens + s.response_tokens, np.int32) for s in valid]
    sampled_S = np.array([len(s.response_tokens) for s in valid])
    trajectory_S = np.array([s.trajectory for s in valid])
    question_S = np.array([s.group for s in valid])
    if own is None:
        adv_S = np.asarray(adv_QG).flat[trajectory_S]
        among_S = credit.equal_questions(valid_QG)[question_S]
    else:
        adv_S, among_S = own.adv_S[kept], own.among_S[kept]
    steps = split(question_S, len(valid_QG))
    micro_S, plans = np.empty(len(valid), int), []
    for members in steps:
        if not len(members):
            continue
        plan = packing.lay_out(
            [sequences[s] for s in members],
            sampled_S[members],
            question_S=question_S[members],
            trajectory_S=trajectory_S[members],
            shapes=buckets,
            layout=layout,
        )
        plan = [(shape, [members[row].tolist() for row in row_lists]) for shape, row_lists in plan]
        for micro, (_, row_lists) in enumerate(plan, start=sum(map(len, plans))):
            micro_S[sum(row_lists, [])] = micro
        plans.append(plan)
    weight_S = weigh(
        sampled_S,
        trajectory_S,
        micro_S,
        among_S=among_S,
        steps=len(steps),
        constant_length=constant_length,
    )
    columns = dict(
        samples=valid,
        sequences=sequences,
        adv_S=adv_S,
        weight_S=weight_S / sampled_S,
    )
    write = functools.partial(_write, share=layout == "tree", **columns)
    return [[write(shape, row_lists) for shape, row_lists in plan] for plan in plans]


def by_questions(question_S, questions, *, mini_batches):
    """Splits turns into optimizer steps: consecutive questions, as many in each as can be.

    Args:
      question_S: int, question of each turn. questions: how many there are.

    Returns:
      List of `mini_batches` int arrays, the turns of each step; empty where none is left.
    """
    if not 1 <= mini_batches <= questions:
        raise ValueError(
            f"mini_batches={mini_batches} must be between 1 and the {questions} questions."
        )
    parts = np.array_split(np.arange(questions), mini_batches)
    steps = [np.flatnonzero(np.isin(question_S, part)) for part in parts]
    for part, members in zip(parts, steps, strict=True):
        if not len(members):
            logging.warning("Questions %s have no valid sample: no optimizer step.", part)
    return steps


def shuffled(question_S, questions, *, turns, seed):
    """Splits turns in random order into as many optimizer steps as `turns` of them fit in.

    The authors' code makes as many, of exactly 64, and drops the rest; here they are spread over
    the steps.

    Args:
      question_S: int, question of each turn. questions: not read.
      turns: least in a step, unless all of them are fewer.
      seed: ints; the same ones give the same order.
    """
    order_S = np.random.default_rng(seed).permutation(len(question_S))
    return [np.sort(part) for part in np.array_split(order_S, max(1, len(order_S) // turns))]


def _write(shape, row_lists, *, share, samples, sequences, adv_S, weight_S):
    """Writes a TurnBatch of one packing.Shape.

    Args:
      row_lists: sample numbers of each row.
      share: whether common prefixes are written once.
      weight_S: what each token of a sample counts.
    """
    empty = shapes(rows=shape.rows, tokens=shape.tokens, sampled=shape.sampled)
    batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), empty)
    for b, row in enumerate(row_lists):
        token_T, until_T, where_S = packing.write_row([sequences[s] for s in row], share=share)
        batch.token_BT[b, : len(token_T)] = token_T
        batch.until_BT[b, : len(token_T)] = until_T
        end = 0
        for turn, (s, where_T) in enumerate(zip(row, where_S, strict=True)):
            start, end = end, end + len(samples[s].response_tokens)
            entries = b, slice(start, end)
            batch.index_BA[entries] = where_T[start - end - 1 : -1]
            batch.target_BA[entries] = samples[s].response_tokens
            batch.mask_BA[entries] = True
            batch.turn_BA[entries] = turn
            batch.old_logp_BA[entries] = samples[s].logprobs
            batch.adv_BA[entries] = adv_S[s]
            batch.weight_BA[entries] = weight_S[s]
    batch.sampler_logp_BA[:] = batch.old_logp_BA
    return batch


# ---- counting ----------------------------------------------------------------------------------


def padding_share(micro_batches):
    """Returns padding tokens / all tokens, padding rows included."""
    return 1.0 - _real_tokens(micro_batches) / sum(batch.until_BT.size for batch in micro_batches)


def sampled_tokens(micro_batches):
    """Counts the tokens that carry loss."""
    return sum(int(batch.mask_BA.sum()) for batch in micro_batches)


def sharing(micro_batches):
    """Returns tokens of all turns, each counted alone / tokens computed without padding.

    It is 1 unless the layout is "tree".
    """
    alone = 0
    for batch in micro_batches:
        # A turn's length is the depth of its last target, one more than that of the state before.
        last_BA = batch.mask_BA & ~(
            np.pad(batch.mask_BA[:, 1:], [(0, 0), (0, 1)])
            & (np.diff(batch.turn_BA, axis=1, append=0) == 0)
        )
        depth_BA = np.take_along_axis(_depth(batch.until_BT), batch.index_BA, axis=1)
        alone += int((depth_BA + 1)[last_BA].sum())
    return alone / _real_tokens(micro_batches)


def _real_tokens(micro_batches):
    return sum(int((batch.until_BT > 0).sum()) for batch in micro_batches)


def _depth(until_BT):
    """Counts the tokens that each token sees, itself included: int [B, T]."""
    closed_BT = np.zeros((until_BT.shape[0], until_BT.shape[1] + 1), int)
    np.add.at(closed_BT, (np.arange(len(until_BT))[:, None], until_BT), until_BT > 0)
    return np.cumsum((until_BT > 0) - closed_BT[:, :-1], axis=1)


# ---- checks ------------------------------------------------------------------------------------


def check_buckets(
    row_lengths,
    rows,
    response_lengths,
    *,
    layout,
    longest_prompt=1,
    longest_response=1,
):
    """Checks that `build` can fill the shapes; call it before the first rollout.

    Args:
      row_lengths, rows, response_lengths, layout: of `build`.
      longest_prompt, longest_response: tokens that a turn may have.

    Raises:
      ValueError: a shape makes no sense, or the largest does not hold the longest turn.
    """
    if layout not in packing.LAYOUTS:
        raise ValueError(f"layout={layout!r} is unknown; valid: {', '.join(packing.LAYOUTS)}.")
    if not row_lengths or row_lengths[0] < 1:
        raise ValueError(f"row_lengths={row_lengths} must be positive numbers.")
    for name, sizes in (("rows", rows), ("response_lengths", response_lengths)):
        if len(sizes) != len(row_lengths):
            raise ValueError(f"{name}={sizes} needs one entry for each of {row_lengths=}.")
    sizes = list(zip(row_lengths, rows, strict=True))
    if sizes != sorted(set(sizes)):
        raise ValueError(
            f"row_lengths={row_lengths} must ascend, where two are equal with {rows=} that ascend."
        )
    if list(response_lengths) != sorted(response_lengths) or response_lengths[0] < 1:
        raise ValueError(
            f"response_lengths={response_lengths} must be positive and must not descend: a longer "
            "row holds at least the response tokens of a shorter one."
        )
    if len(set(zip(row_lengths, response_lengths, strict=True))) > len(set(row_lengths)):
        raise ValueError(
            f"response_lengths={response_lengths} must be equal where {row_lengths=} are."
        )
    if min(rows) < 1:
        raise ValueError(f"{rows=} must be positive numbers.")
    longest = longest_prompt + longest_response
    if longest > row_lengths[-1]:
        raise ValueError(
            f"rollout.max_prompt_tokens={longest_prompt} and rollout.max_response_tokens="
            f"{longest_response} exceed the largest of batch.row_lengths={row_lengths}. Make it "
            f"{longest} or more, or lower the limits."
        )
    if longest_response > response_lengths[-1]:
        raise ValueError(
            f"rollout.max_response_tokens={longest_response} exceeds the largest of "
            f"batch.response_lengths={response_lengths}. Make it {longest_response} or more, or "
            "lower the limit."
        )


def _check_sample(index, sample, shape_QG, largest):
    name = f"Sample {index} (question {sample.group}, trajectory {sample.trajectory})"
    questions, rollouts = shape_QG
    prompt, response = len(sample.prompt_tokens), len(sample.response_tokens)
    if not (0 <= sample.group < questions and sample.trajectory // rollouts == sample.group):
        raise ValueError(
            f"{name} does not fit {questions} questions of {rollouts} rollouts: trajectory must be "
            "question * rollouts + rollout."
        )
    if not prompt:
        raise ValueError(f"{name} has an empty prompt: nothing predicts its first token.")
    if not response:
        raise ValueError(
            f"{name} has an empty response. A turn samples at least its stop token; leave out "
            "turns that were never sampled."
        )
    if len(sample.logprobs) != response:
        raise ValueError(
            f"{name} has {response} response tokens and {len(sample.logprobs)} logprobs; they must "
            "agree."
        )
    if not largest.holds((prompt + response, response)):
        raise ValueError(
            f"{name} has {prompt} prompt and {response} response tokens, more than the largest row "
            f"holds: row_lengths up to {largest.tokens}, response_lengths up to {largest.sampled}. "
            "Add a larger entry, or shorten prompts where they are made."
        )
