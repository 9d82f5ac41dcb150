"""Rows, masks and weights of the training batch; masks are tested as pictures."""

import numpy as np
import pytest

from flow_grpo_jax import batching

EOS, PAD = 9, 0


def sample(prompt, response, *, trajectory=0, group=0, logprobs=None):
    logprobs = [-0.5 - i for i in range(len(response))] if logprobs is None else logprobs
    return batching.TurnSample(
        tuple(prompt), tuple(response), tuple(logprobs), trajectory=trajectory, group=group
    )


def build(samples, **changes):
    options = dict(
        adv_QG=np.arange(1.0, 5.0).reshape(2, 2),
        valid_QG=np.ones((2, 2), bool),
        weigh=batching.weigh_turns,
        row_lengths=(8,),
        rows=(4,),
        response_lengths=(5,),
    )
    return batching.build(samples, **(options | changes))


@pytest.mark.parametrize(
    "case, prompt, response, token_T, segment_T, target_A, mask_A",
    [
        #                                   <prompt>  sampled   pad
        ("EOS last", [5, 6, 7], [1, 2, EOS],
         [5, 6, 7, 1, 2, 9, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0], [1, 2, 9, 0, 0], [1, 1, 1, 0, 0]),
        ("EOS first", [5, 6, 7], [EOS],
         [5, 6, 7, 9, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], [9, 0, 0, 0, 0], [1, 0, 0, 0, 0]),
        ("no EOS", [5, 6, 7], [1, 2, 3, 4, 5],
         [5, 6, 7, 1, 2, 3, 4, 5], [1, 1, 1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5], [1, 1, 1, 1, 1]),
        ("pad id sampled", [5, 6, 7], [PAD, 2, PAD, EOS],
         [5, 6, 7, 0, 2, 0, 9, 0], [1, 1, 1, 1, 1, 1, 1, 0], [0, 2, 0, 9, 0], [1, 1, 1, 1, 0]),
        ("EOS and pad id in the prompt", [EOS, PAD], [3, EOS],
         [9, 0, 3, 9, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], [3, 9, 0, 0, 0], [1, 1, 0, 0, 0]),
    ],
)  # fmt: skip
def test_row_as_a_picture(case, prompt, response, token_T, segment_T, target_A, mask_A):
    ((batch,),) = build([sample(prompt, response)])
    assert batch.token_BT[0].tolist() == token_T
    assert batch.segment_BT[0].tolist() == segment_T
    assert batch.target_BA[0].tolist() == target_A
    assert batch.mask_BA[0].tolist() == mask_A
    assert batch.start_B[0] == len(prompt)
    # column a is the token after position start - 1 + a
    sampled = len(response)
    read = batch.token_BT[0, batch.start_B[0] - 1 + np.arange(sampled) + 1]
    assert read.tolist() == batch.target_BA[0, :sampled].tolist()
    np.testing.assert_array_equal(batch.old_logp_BA[0, :sampled], -0.5 - np.arange(sampled))
    np.testing.assert_array_equal(batch.old_logp_BA, batch.sampler_logp_BA)


def test_padding_rows_count_nothing():
    ((batch,),) = build([sample([5], [1, EOS])])
    assert batch.weight_B.tolist() == [0.25, 0, 0, 0]
    assert not batch.mask_BA[1:].any() and not batch.segment_BT[1:].any()
    assert (batch.start_B >= 1).all()
    assert batching.padding_share([batch]) == 1 - 3 / 32
    assert batching.sampled_tokens([batch]) == 2


def test_dtypes():
    ((batch,),) = build([sample([5], [1])])
    kinds = {name: getattr(batch, name).dtype.name for name in batch.__dataclass_fields__}
    assert kinds == {
        "token_BT": "int32", "segment_BT": "int32", "start_B": "int32", "target_BA": "int32",
        "mask_BA": "bool", "old_logp_BA": "float32", "sampler_logp_BA": "float32",
        "adv_B": "float32", "weight_B": "float32",
    }  # fmt: skip


def many(count, *, seed=0):
    """Samples of random lengths; the first prompt token is the sample's number + 1."""
    rng = np.random.default_rng(seed)
    result = []
    for i in range(count):
        prompt = [i + 1] + rng.integers(1, 9, rng.integers(0, 14)).tolist()
        response = rng.integers(1, 9, rng.integers(1, 6)).tolist()
        result.append(sample(prompt, response, trajectory=i % 4, group=i % 4 // 2))
    return result


def rows_of(micro_batches):
    """{sample number: (shape, adv, weight)} of all real rows."""
    found = {}
    for batch in micro_batches:
        for b in np.flatnonzero(batch.segment_BT[:, 0]):
            number = int(batch.token_BT[b, 0]) - 1
            assert number not in found, f"sample {number} appears twice"
            shape = (batch.token_BT.shape, batch.mask_BA.shape[1])
            found[number] = (shape, float(batch.adv_B[b]), float(batch.weight_B[b]))
    return found


BUCKETS = dict(row_lengths=(8, 12, 20), rows=(8, 4, 2), response_lengths=(3, 5))


def test_every_sample_appears_once_in_a_bucket_that_holds_it():
    samples = many(41)
    (micro_batches,) = build(samples, **BUCKETS)
    found = rows_of(micro_batches)
    assert sorted(found) == list(range(41))
    for number, (((B, T), A), adv, _) in found.items():
        s = samples[number]
        assert len(s.prompt_tokens) + len(s.response_tokens) <= T and len(s.response_tokens) <= A
        assert (T, B) in zip(BUCKETS["row_lengths"], BUCKETS["rows"], strict=True)
        assert adv == s.trajectory + 1
    assert sum(weight for _, _, weight in found.values()) == pytest.approx(1)


def test_order_is_deterministic_and_spare_rows_are_filled():
    (first,), (second,) = build(many(41), **BUCKETS), build(many(41), **BUCKETS)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.token_BT, b.token_BT)
    # one long and three short turns fit one micro-batch of four rows
    ((only,),) = build(
        [sample([1] * 9, [2])] + [sample([1], [2])] * 3, row_lengths=(4, 12), rows=(4, 4)
    )
    assert only.token_BT.shape == (4, 12) and (only.weight_B > 0).all()


def test_invalid_trajectories_do_not_appear_or_count():
    samples = [sample([i + 1], [2], trajectory=i, group=i // 2) for i in range(4)]
    ((batch,),) = build(samples, valid_QG=[[True, False], [True, True]])
    found = rows_of([batch])
    assert sorted(found) == [0, 2, 3]
    np.testing.assert_allclose([weight for _, _, weight in found.values()], 1 / 3)


def test_valid_trajectory_without_turns_stays_in_the_average():
    ((batch,),) = build([sample([1], [2], trajectory=0)])
    assert batch.weight_B[0] == 0.25


# trajectory 0: turns of 2 and 4 tokens; trajectory 1: one turn of 3
TOKENS_S, TRAJECTORY_S, MICRO_S = np.array([2, 4, 3]), np.array([0, 0, 1]), np.array([0, 1, 1])


@pytest.mark.parametrize(
    "name, expected_S",
    [
        ("weigh_turns", [1 / 4, 1 / 4, 1 / 2]),
        ("weigh_rollout_tokens", [2 / 12, 4 / 12, 1 / 2]),
        ("weigh_tokens", [2 / 9, 4 / 9, 3 / 9]),
        ("weigh_micro_batch_tokens", [1 / 2, 4 / 14, 3 / 14]),
        ("weigh_constant_length", [2 / 20, 4 / 20, 3 / 20]),
    ],
)
def test_weights_by_hand(name, expected_S):
    weight_S = getattr(batching, name)(
        TOKENS_S, TRAJECTORY_S, MICRO_S, trajectories=2, constant_length=10
    )
    np.testing.assert_allclose(weight_S, expected_S)


def test_mini_batches_are_weighted_each_for_itself():
    samples = many(12)
    parts = build(samples, mini_batches=2, **BUCKETS)
    assert len(parts) == 2
    for question, part in enumerate(parts):
        found = rows_of(part)
        assert sorted(found) == [i for i in range(12) if samples[i].group == question]
        assert sum(weight for _, _, weight in found.values()) == pytest.approx(1)


def test_mini_batch_without_samples_is_left_out():
    assert len(build([sample([1], [2])], mini_batches=2)) == 1


def test_turn_counts():
    counts_QG = batching.turn_counts(many(10), questions=2, rollouts=2)
    assert counts_QG.tolist() == [[3, 3], [2, 2]]
    assert batching.turn_counts([], questions=1, rollouts=2).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    "samples, changes, message",
    [
        ([sample([1], [])], {}, "empty response"),
        ([sample([], [1])], {}, "empty prompt"),
        ([sample([1], [1], logprobs=[])], {}, "1 response tokens and 0 logprobs"),
        ([sample([1] * 8, [1])], {}, "9 tokens exceed the largest of row_lengths"),
        ([sample([1], [1] * 6)], {}, "6 tokens exceed the largest of response_lengths"),
        ([sample([1], [1], trajectory=2)], {}, "does not fit 2 questions of 2 rollouts"),
        ([], {}, "No sampled token"),
        ([sample([1], [1])], dict(valid_QG=np.zeros((2, 2))), "No sampled token"),
        ([sample([1], [1])], dict(row_shards=8), "Use e.g. 8"),
        ([sample([1], [1])], dict(rows=(6,), row_shards=4), "Use e.g. 8"),
        ([sample([1], [1])], dict(rows=(4, 4)), "one entry for each"),
        ([sample([1], [1])], dict(row_lengths=(8, 4), rows=(4, 4)), "ascending"),
        ([sample([1], [1])], dict(mini_batches=3), "between 1 and the 2 questions"),
        ([sample([1], [1])], dict(weigh=batching.weigh_constant_length), "constant_length=0"),
    ],
)
def test_mistakes_are_named(samples, changes, message):
    with pytest.raises(ValueError, match=message):
        build(samples, **changes)
