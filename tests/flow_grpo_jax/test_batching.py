"""Rows, masks and weights of the training batch; masks are tested as pictures."""

import collections
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_grpo_jax import batching, credit, packing
from models.attention import masks

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
        weigh=credit.weigh_turns,
        layout="padded",
        row_lengths=(8,),
        rows=(4,),
        response_lengths=(5,),
        constant_length=0,
    )
    mini_batches = changes.pop("mini_batches", 1)
    split = functools.partial(batching.by_questions, mini_batches=mini_batches)
    return batching.build(samples, **(options | dict(split=split) | changes))


def picture(samples, layout):
    """{name: first row} of a batch with T = 10 and A = 7."""
    ((batch,),) = build(samples, layout=layout, row_lengths=(10,), response_lengths=(7,))
    names = ("token_BT", "until_BT", "index_BA", "target_BA", "mask_BA", "turn_BA")
    return {name[:-3]: getattr(batch, name)[0].astype(int).tolist() for name in names}


# One turn in a row looks the same in every layout.
@pytest.mark.parametrize("layout", packing.LAYOUTS)
@pytest.mark.parametrize(
    "case, prompt, response, expected",
    [
        ("EOS last", [5, 6, 7], [1, 2, EOS], dict(
            token=[5, 6, 7, 1, 2, 9, 0, 0, 0, 0],
            until=[6, 6, 6, 6, 6, 6, 0, 0, 0, 0],
            index=[2, 3, 4, 0, 0, 0, 0], target=[1, 2, 9, 0, 0, 0, 0],
            mask=[1, 1, 1, 0, 0, 0, 0], turn=[0, 0, 0, 0, 0, 0, 0])),
        ("EOS first", [5, 6, 7], [EOS], dict(
            token=[5, 6, 7, 9, 0, 0, 0, 0, 0, 0],
            until=[4, 4, 4, 4, 0, 0, 0, 0, 0, 0],
            index=[2, 0, 0, 0, 0, 0, 0], target=[9, 0, 0, 0, 0, 0, 0],
            mask=[1, 0, 0, 0, 0, 0, 0], turn=[0, 0, 0, 0, 0, 0, 0])),
        ("no EOS, row full", [5, 6, 7], [1, 2, 3, 4, 5, 6, 7], dict(
            token=[5, 6, 7, 1, 2, 3, 4, 5, 6, 7],
            until=[10, 10, 10, 10, 10, 10, 10, 10, 10, 10],
            index=[2, 3, 4, 5, 6, 7, 8], target=[1, 2, 3, 4, 5, 6, 7],
            mask=[1, 1, 1, 1, 1, 1, 1], turn=[0, 0, 0, 0, 0, 0, 0])),
        ("prompt of one token", [5], [1, EOS], dict(
            token=[5, 1, 9, 0, 0, 0, 0, 0, 0, 0],
            until=[3, 3, 3, 0, 0, 0, 0, 0, 0, 0],
            index=[0, 1, 0, 0, 0, 0, 0], target=[1, 9, 0, 0, 0, 0, 0],
            mask=[1, 1, 0, 0, 0, 0, 0], turn=[0, 0, 0, 0, 0, 0, 0])),
        ("EOS and pad id in the prompt, pad id sampled", [EOS, PAD], [PAD, 2, PAD], dict(
            token=[9, 0, 0, 2, 0, 0, 0, 0, 0, 0],
            until=[5, 5, 5, 5, 5, 0, 0, 0, 0, 0],
            index=[1, 2, 3, 0, 0, 0, 0], target=[0, 2, 0, 0, 0, 0, 0],
            mask=[1, 1, 1, 0, 0, 0, 0], turn=[0, 0, 0, 0, 0, 0, 0])),
    ],
)  # fmt: skip
def test_one_turn_as_a_picture(layout, case, prompt, response, expected):
    assert picture([sample(prompt, response)], layout) == expected


@pytest.mark.parametrize(
    "case, layout, turns, expected",
    [
        ("as drawn at TurnBatch", "packed", [([5, 6, 7], [1, 2, EOS]), ([5, 6], [4, EOS])], dict(
            token=[5, 6, 7, 1, 2, 9, 5, 6, 4, 9],
            until=[6, 6, 6, 6, 6, 6, 10, 10, 10, 10],
            index=[2, 3, 4, 7, 8, 0, 0], target=[1, 2, 9, 4, 9, 0, 0],
            mask=[1, 1, 1, 1, 1, 0, 0], turn=[0, 0, 0, 1, 1, 0, 0])),
        ("as drawn at TurnBatch", "tree", [([5, 6, 7], [1, 2, EOS]), ([5, 6], [4, EOS])], dict(
            token=[5, 6, 4, 9, 7, 1, 2, 9, 0, 0],
            until=[8, 8, 4, 4, 8, 8, 8, 8, 0, 0],
            index=[1, 2, 4, 5, 6, 0, 0], target=[4, 9, 1, 2, 9, 0, 0],
            mask=[1, 1, 1, 1, 1, 0, 0], turn=[0, 0, 1, 1, 1, 0, 0])),
        ("nothing shared", "tree", [([5], [1, EOS]), ([6, 5], [1, EOS])], dict(
            token=[5, 1, 9, 6, 5, 1, 9, 0, 0, 0],
            until=[3, 3, 3, 7, 7, 7, 7, 0, 0, 0],
            index=[0, 1, 4, 5, 0, 0, 0], target=[1, 9, 1, 9, 0, 0, 0],
            mask=[1, 1, 1, 1, 0, 0, 0], turn=[0, 0, 1, 1, 0, 0, 0])),
        ("identical turns count twice", "tree", [([5, 6], [1, EOS]), ([5, 6], [1, EOS])], dict(
            token=[5, 6, 1, 9, 0, 0, 0, 0, 0, 0],
            until=[4, 4, 4, 4, 0, 0, 0, 0, 0, 0],
            index=[1, 2, 1, 2, 0, 0, 0], target=[1, 9, 1, 9, 0, 0, 0],
            mask=[1, 1, 1, 1, 0, 0, 0], turn=[0, 0, 1, 1, 0, 0, 0])),
        ("a turn that begins another's prompt", "tree", [([5, 6, 1, 2], [3]), ([5, 6], [1])], dict(
            token=[5, 6, 1, 2, 3, 0, 0, 0, 0, 0],
            until=[5, 5, 5, 5, 5, 0, 0, 0, 0, 0],
            index=[1, 3, 0, 0, 0, 0, 0], target=[1, 3, 0, 0, 0, 0, 0],
            mask=[1, 1, 0, 0, 0, 0, 0], turn=[0, 1, 0, 0, 0, 0, 0])),
        ("responses part after two tokens", "tree", [([5], [1, 2, 3]), ([5], [1, 2, 4, EOS])], dict(
            token=[5, 1, 2, 3, 4, 9, 0, 0, 0, 0],
            until=[6, 6, 6, 4, 6, 6, 0, 0, 0, 0],
            index=[0, 1, 2, 0, 1, 2, 4], target=[1, 2, 3, 1, 2, 4, 9],
            mask=[1, 1, 1, 1, 1, 1, 1], turn=[0, 0, 0, 1, 1, 1, 1])),
        ("a response that is another's prompt", "tree", [([5], [6, 7]), ([5, 6, 7], [8])], dict(
            token=[5, 6, 7, 8, 0, 0, 0, 0, 0, 0],
            until=[4, 4, 4, 4, 0, 0, 0, 0, 0, 0],
            index=[0, 1, 2, 0, 0, 0, 0], target=[6, 7, 8, 0, 0, 0, 0],
            mask=[1, 1, 1, 0, 0, 0, 0], turn=[0, 0, 1, 0, 0, 0, 0])),
    ],
)  # fmt: skip
def test_a_row_of_two_turns_as_a_picture(case, layout, turns, expected):
    assert picture([sample(*turn) for turn in turns], layout) == expected


def test_each_turn_brings_its_own_numbers():
    """Two identical turns of a tree row differ in log-probs, advantage and weight."""
    first = sample([5, 6], [1, EOS], trajectory=0, group=0, logprobs=[-1, -2])
    second = sample([5, 6], [1, EOS], trajectory=1, group=0, logprobs=[-3, -4])
    longer = sample([5], [1], trajectory=1, group=0, logprobs=[-5])
    ((batch,),) = build([first, second, longer], layout="tree", rows=(1,))
    assert batch.token_BT.tolist() == [[5, 1, 6, 1, 9, 0, 0, 0]]
    assert batch.old_logp_BA.tolist() == [[-5, -1, -2, -3, -4]]
    assert batch.sampler_logp_BA.tolist() == [[-5, -1, -2, -3, -4]]
    assert batch.adv_BA.tolist() == [[2, 1, 1, 2, 2]]
    # of four trajectories; two turns of the second; tokens of the turn
    assert batch.weight_BA.tolist() == [[1 / 8, 1 / 8, 1 / 8, 1 / 16, 1 / 16]]


def test_padding_rows_count_nothing():
    ((batch,),) = build([sample([5], [1, EOS])])
    assert batch.weight_BA.tolist() == [[0.125, 0.125, 0, 0, 0]] + [[0] * 5] * 3
    assert not batch.mask_BA[1:].any() and not batch.until_BT[1:].any()
    assert not batch.index_BA[1:].any() and not batch.adv_BA[1:].any()


def test_dtypes():
    ((batch,),) = build([sample([5], [1])])
    kinds = {name: getattr(batch, name).dtype.name for name in batch.__dataclass_fields__}
    shapes = batching.shapes(rows=4, tokens=8, sampled=5)
    same = lambda x, shape: (x.shape, x.dtype) == (shape.shape, shape.dtype)
    assert jax.tree.all(jax.tree.map(same, batch, shapes))
    assert kinds == {
        "token_BT": "int32", "until_BT": "int32", "index_BA": "int32", "target_BA": "int32",
        "mask_BA": "bool", "turn_BA": "int32", "old_logp_BA": "float32",
        "sampler_logp_BA": "float32", "adv_BA": "float32", "weight_BA": "float32",
    }  # fmt: skip


# ---- reading batches back ----------------------------------------------------------------------


positions = jax.jit(masks.positions)


def read_turns(micro_batches):
    """[(prompt, response, log-probs, adv, weight of a token)] of every turn, as attention sees it.

    What a loss entry's state sees is read through until_BT alone.
    """
    turns = []
    for batch in micro_batches:
        position_BT = np.asarray(positions(batch.until_BT))
        for b, mask_A in enumerate(batch.mask_BA):
            entries = collections.defaultdict(list)
            for a in np.flatnonzero(mask_A):
                index = batch.index_BA[b, a]
                seen_T = np.flatnonzero(batch.until_BT[b, : index + 1] > index)
                assert position_BT[b, index] == len(seen_T) - 1
                entries[batch.turn_BA[b, a]].append((batch.token_BT[b, seen_T].tolist(), (b, a)))
            assert sorted(entries) == list(range(len(entries)))
            for contexts in entries.values():
                prompt, response = contexts[0][0], []
                for context, entry in contexts:
                    assert context == prompt + response
                    response.append(int(batch.target_BA[entry]))
                at = tuple(np.array([entry for _, entry in contexts]).T)
                (adv,), (weight,) = set(batch.adv_BA[at]), set(batch.weight_BA[at])
                logprobs = tuple(batch.old_logp_BA[at].tolist())
                turns.append((tuple(prompt), tuple(response), logprobs, float(adv), weight))
            assert (np.diff(batch.turn_BA[b, mask_A]) >= 0).all()
        assert not batch.weight_BA[~batch.mask_BA].any()
    return turns


def expected_turns(samples):
    turns = collections.Counter(s.trajectory for s in samples)
    return [
        (
            s.prompt_tokens,
            s.response_tokens,
            s.logprobs,
            s.trajectory + 1.0,
            np.float32(1 / (4 * turns[s.trajectory] * len(s.response_tokens))),
        )
        for s in samples
    ]


TOKENS = st.integers(0, 2)
TURN = st.tuples(
    st.lists(TOKENS, min_size=1, max_size=6), st.lists(TOKENS, min_size=1, max_size=4),
    st.integers(0, 3),
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(TURN, min_size=1, max_size=16), st.sampled_from(packing.LAYOUTS), st.data())
def test_every_sampled_token_sees_exactly_its_own_turn(turns, layout, data):
    """Few tokens, so that prefixes are shared by chance within and across questions."""
    count = iter(range(1000))
    samples = [
        sample(
            prompt, response, trajectory=t, group=t // 2, logprobs=[next(count) for _ in response]
        )
        for prompt, response, t in turns
    ]
    rows = tuple(data.draw(st.integers(1, 3)) for _ in range(2))
    (micro_batches,) = build(
        samples, layout=layout, row_lengths=(10, 16), rows=rows, response_lengths=(4, 9)
    )
    read = read_turns(micro_batches)
    assert sorted(read) == sorted(expected_turns(samples))
    assert batching.sampled_tokens(micro_batches) == next(count)
    # ---- and the counts
    alone = sum(len(s.prompt_tokens) + len(s.response_tokens) for s in samples)
    real = sum(int((b.until_BT > 0).sum()) for b in micro_batches)
    assert batching.sharing(micro_batches) == alone / real
    assert layout == "tree" or alone == real
    size = sum(b.token_BT.size for b in micro_batches)
    assert batching.padding_share(micro_batches) == pytest.approx(1 - real / size)


def many(count, *, seed=0):
    """Samples of random lengths; the first prompt token is the sample's number + 1."""
    rng = np.random.default_rng(seed)
    result = []
    for i in range(count):
        prompt = [i + 1] + rng.integers(1, 9, rng.integers(0, 14)).tolist()
        response = rng.integers(1, 9, rng.integers(1, 6)).tolist()
        result.append(sample(prompt, response, trajectory=i % 4, group=i % 4 // 2))
    return result


def weights_of(micro_batches):
    """{sample number: its weight} of samples made by `many`."""
    return {prompt[0] - 1: weight * len(r) for prompt, r, *_, weight in read_turns(micro_batches)}


BUCKETS = dict(row_lengths=(8, 12, 20), rows=(8, 4, 2), response_lengths=(5, 5, 7))


@pytest.mark.parametrize("layout", packing.LAYOUTS)
def test_batches_have_the_shapes_asked_for(layout):
    samples = many(41)
    (micro_batches,) = build(samples, layout=layout, **BUCKETS)
    assert sorted(weights_of(micro_batches)) == list(range(41))
    for batch in micro_batches:
        (B, T), A = batch.token_BT.shape, batch.mask_BA.shape[1]
        assert (T, B, A) in zip(*BUCKETS.values(), strict=True)
        for name in batch.__dataclass_fields__:
            assert getattr(batch, name).shape == ((B, T) if name.endswith("T") else (B, A)), name
    (again,) = build(many(41), layout=layout, **BUCKETS)
    for a, b in zip(micro_batches, again, strict=True):
        for name in a.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_spare_rows_are_filled():
    """One long and three short turns fit one micro-batch of four rows."""
    ((only,),) = build(
        [sample([1] * 9, [2])] + [sample([1], [2])] * 3,
        row_lengths=(4, 12), rows=(4, 4), response_lengths=(3, 3),
    )  # fmt: skip
    assert only.token_BT.shape == (4, 12) and only.mask_BA.any(1).all()


@pytest.mark.parametrize("layout", packing.LAYOUTS)
def test_invalid_trajectories_do_not_appear_or_count(layout):
    samples = [sample([i + 1], [2], trajectory=i, group=i // 2) for i in range(4)]
    (batches,) = build(samples, layout=layout, valid_QG=[[True, False], [True, True]])
    found = weights_of(batches)
    assert sorted(found) == [0, 2, 3]
    assert found == {0: 1 / 2, 2: 1 / 4, 3: 1 / 4}


def test_valid_trajectory_without_turns_stays_in_the_average():
    ((batch,),) = build([sample([1], [2], trajectory=0)])
    assert batch.weight_BA[0, 0] == 0.25


# trajectory 0: turns of 2 and 4 tokens; trajectory 1: one turn of 3
TOKENS_S, TRAJECTORY_S, MICRO_S = np.array([2, 4, 3]), np.array([0, 0, 1]), np.array([0, 1, 1])


@pytest.mark.parametrize(
    "name, expected_S",
    [
        ("weigh_turns", [1 / 4, 1 / 4, 1 / 2]),
        ("weigh_last_turn", [0, 1 / 2, 1 / 2]),
        ("weigh_rollout_tokens", [2 / 12, 4 / 12, 1 / 2]),
        ("weigh_tokens", [2 / 9, 4 / 9, 3 / 9]),
        ("weigh_micro_batch_tokens", [1 / 2, 4 / 14, 3 / 14]),
        ("weigh_constant_length", [2 / 20, 4 / 20, 3 / 20]),
    ],
)
def test_weights_by_hand(name, expected_S):
    weight_S = getattr(credit, name)(
        TOKENS_S, TRAJECTORY_S, MICRO_S, among_S=2, steps=1, constant_length=10
    )
    np.testing.assert_allclose(weight_S, expected_S)


@pytest.mark.parametrize("layout", packing.LAYOUTS)
def test_the_original_weighs_tokens_inside_their_micro_batch(layout):
    (micro_batches,) = build(
        many(41), layout=layout, weigh=credit.weigh_micro_batch_tokens, **BUCKETS
    )
    assert len(micro_batches) > 2
    for batch in micro_batches:
        expected = 1 / (len(micro_batches) * batch.mask_BA.sum())
        np.testing.assert_allclose(batch.weight_BA[batch.mask_BA], expected, rtol=1e-6)


@pytest.mark.parametrize("layout", packing.LAYOUTS)
def test_mini_batches_are_weighted_each_for_itself(layout):
    samples = many(12)
    parts = build(samples, layout=layout, mini_batches=2, **BUCKETS)
    assert len(parts) == 2
    for question, part in enumerate(parts):
        found = weights_of(part)
        assert sorted(found) == [i for i in range(12) if samples[i].group == question]
        assert sum(found.values()) == pytest.approx(1)


SIZES = [5, 3, 4, 2, 6]  # turns of the questions below


def five_questions():
    """Samples of five questions of two rollouts, and the valid trajectories."""
    found = []
    for question, turns in enumerate(SIZES):
        for turn in range(turns):
            prompt, rollout = [len(found) + 1], turn % 2
            found.append(
                sample(
                    prompt,
                    [1] * (1 + turn % 3),
                    trajectory=2 * question + rollout,
                    group=question,
                )
            )
    return found


SPLITS = {
    "one": functools.partial(batching.by_questions, mini_batches=1),
    "two": functools.partial(batching.by_questions, mini_batches=2),
    "five": functools.partial(batching.by_questions, mini_batches=5),
    "shuffled": functools.partial(batching.shuffled, turns=3, seed=(0, 7)),
}
WEIGH = [
    credit.weigh_turns,
    credit.weigh_last_turn,
    credit.weigh_rollout_tokens,
    credit.weigh_tokens,
    credit.weigh_constant_length,
]


def mean_weights(weigh, excluded, split):
    """(samples, valid_QG, [weight of each sample in the mean over the optimizer steps])."""
    samples = five_questions()
    valid_QG = np.ones((5, 2), bool)
    valid_QG.flat[list(excluded)] = False
    steps = split(np.array([s.group for s in samples if valid_QG.flat[s.trajectory]]), 5)
    parts = build(
        samples,
        adv_QG=np.ones((5, 2)),
        valid_QG=valid_QG,
        weigh=weigh,
        split=split,
        layout="packed",
        constant_length=7,
    )
    weight_S = np.zeros(len(samples))
    for part in parts:
        for number, weight in weights_of(part).items():
            weight_S[number] += weight / len(steps)
    return samples, valid_QG, weight_S


@pytest.mark.parametrize("weigh", WEIGH[:3])
@pytest.mark.parametrize("excluded", [(), (1,), (1, 4, 5)], ids=str)
@pytest.mark.parametrize("split", SPLITS)
def test_every_question_weighs_the_same(weigh, excluded, split):
    samples, valid_QG, weight_S = mean_weights(weigh, excluded, SPLITS[split])
    weight_QG = np.bincount([s.trajectory for s in samples], weight_S).reshape(5, 2)
    left_Q = valid_QG.any(1)
    expected_QG = (left_Q / left_Q.sum())[:, None] * valid_QG
    expected_QG = expected_QG / np.maximum(valid_QG.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(weight_QG, expected_QG, rtol=1e-6)


@pytest.mark.parametrize("weigh", WEIGH)
@pytest.mark.parametrize("excluded", [(), (1, 4, 5)], ids=str)
@pytest.mark.parametrize("split", ["two", "five", "shuffled"])
def test_the_mean_over_the_steps_is_a_single_step(weigh, excluded, split):
    """So is the mean of their gradients, as long as the parameters stay."""
    _, _, weight_S = mean_weights(weigh, excluded, SPLITS[split])
    np.testing.assert_allclose(weight_S, mean_weights(weigh, excluded, SPLITS["one"])[2], rtol=1e-6)


def test_every_micro_batch_of_the_original_weighs_the_same():
    parts = build(
        five_questions(),
        adv_QG=np.ones((5, 2)),
        valid_QG=np.ones((5, 2), bool),
        weigh=credit.weigh_micro_batch_tokens,
        split=SPLITS["two"],
        rows=(3,),
    )
    assert [len(part) for part in parts] == [4, 3]  # 12 and 8 turns, three in a micro-batch
    for batch in sum(parts, []):
        assert batch.weight_BA.sum() == pytest.approx(2 / 7)  # two steps, seven micro-batches


@pytest.mark.parametrize("mini_batches", [1, 2, 3, 6])
def test_even_steps_of_whole_questions_are_means_bit_for_bit(mini_batches):
    """6 questions of 7 rollouts: 1 / (trajectories of the step * turns), then / tokens."""
    samples = [
        sample([t], [1] * (1 + t % 3), trajectory=t, group=t // 7)
        for t in range(42)
        for _ in range(1 + t % 4)
    ]
    parts = build(
        samples,
        adv_QG=np.ones((6, 7)),
        valid_QG=np.ones((6, 7), bool),
        mini_batches=mini_batches,
        rows=(200,),
    )
    assert len(parts) == mini_batches
    for part in parts:
        for (t,), _, _, _, weight in read_turns(part):
            trajectories, turns, tokens = 42 // mini_batches, 1 + t % 4, 1 + t % 3
            assert weight == np.float32(1 / (trajectories * turns) / tokens)


def test_eight_two_and_one_valid_of_eight_weigh_a_third_each():
    valid_QG = np.arange(8) < np.array([[8], [2], [1]])
    assert credit.equal_questions(valid_QG).tolist() == [3 * 8, 3 * 2, 3 * 1]
    assert credit.equal_questions(np.vstack([valid_QG, np.zeros(8)])).tolist() == [24, 6, 3, 0]
    assert credit.equal_questions(np.ones((32, 8))).tolist() == [256] * 32


def test_shuffled_turns_are_split_like_the_authors_do():
    question_S = np.repeat(np.arange(40), 5)
    steps = batching.shuffled(question_S, 40, turns=64, seed=(0, 3))
    assert [len(part) for part in steps] == [67, 67, 66]  # three of 64 fit in 200
    assert sorted(np.concatenate(steps)) == list(range(200))
    assert all(len(set(question_S[part])) > 25 for part in steps)
    again = batching.shuffled(question_S, 40, turns=64, seed=(0, 3))
    assert [part.tolist() for part in again] == [part.tolist() for part in steps]
    other = batching.shuffled(question_S, 40, turns=64, seed=(0, 4))
    assert steps[0].tolist() != other[0].tolist()
    assert [len(part) for part in batching.shuffled(question_S[:9], 40, turns=64, seed=0)] == [9]


def test_mini_batch_without_samples_is_left_out():
    assert len(build([sample([1], [2])], mini_batches=2)) == 1


def test_turn_counts():
    counts_QG = batching.turn_counts(many(10), questions=2, rollouts=2)
    assert counts_QG.tolist() == [[3, 3], [2, 2]]
    assert batching.turn_counts([], questions=1, rollouts=2).tolist() == [[0, 0]]


ONE = [sample([1], [1])]


@pytest.mark.parametrize(
    "samples, changes, message",
    [
        ([sample([1], [])], {}, "empty response"),
        ([sample([], [1])], {}, "empty prompt"),
        ([sample([1], [1], logprobs=[])], {}, "1 response tokens and 0 logprobs"),
        ([sample([1] * 8, [1])], {}, "8 prompt and 1 response tokens, more than .* up to 8"),
        ([sample([1], [1] * 6)], {}, "6 response tokens, more than .* response_lengths up to 5"),
        ([sample([1], [1], trajectory=2)], {}, "does not fit 2 questions of 2 rollouts"),
        ([], {}, "No sampled token"),
        (ONE, dict(valid_QG=np.zeros((2, 2))), "No sampled token"),
        (ONE, dict(layout="dense"), "valid: padded, packed, tree"),
        (ONE, dict(rows=(0,)), r"rows=\(0,\) must be positive"),
        (ONE, dict(rows=(4, 4)), "one entry for each"),
        (ONE, dict(response_lengths=(4, 4)), "one entry for each"),
        (ONE, dict(row_lengths=()), "must be positive numbers"),
        (ONE, dict(row_lengths=(8, 4), rows=(4, 4), response_lengths=(4, 4)), "must ascend"),
        (ONE, dict(row_lengths=(8, 8), rows=(4, 4), response_lengths=(4, 4)), "must ascend"),
        (ONE, dict(row_lengths=(8, 8), rows=(2, 4), response_lengths=(4, 5)), "must be equal"),
        (ONE, dict(row_lengths=(4, 8), rows=(4, 4), response_lengths=(4, 3)), "must not descend"),
        (ONE, dict(mini_batches=3), "between 1 and the 2 questions"),
        (ONE, dict(weigh=credit.weigh_constant_length), "constant_length=0"),
    ],
)
def test_mistakes_are_named(samples, changes, message):
    with pytest.raises(ValueError, match=message):
        build(samples, **changes)


@pytest.mark.parametrize(
    "prompt, response, message",
    [
        (28, 4, None),
        (29, 4, "max_prompt_tokens=29 and .*tokens=4 exceed .* batch.row_lengths=.*Make it 33"),
        (10, 5, "rollout.max_response_tokens=5 exceeds .* batch.response_lengths=.*Make it 5"),
    ],
)
def test_the_largest_row_holds_the_longest_turn(prompt, response, message):
    check = lambda: batching.check_buckets(
        (8, 32), (2, 2), (4, 4),
        layout="tree", longest_prompt=prompt, longest_response=response,
    )  # fmt: skip
    if message is None:
        return check()
    with pytest.raises(ValueError, match=message):
        check()
