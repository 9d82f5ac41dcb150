"""Rows as pictures, what shares a row, and gradients that no layout changes, in float64."""

import collections
import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_grpo_jax import batching, credit, logprobs, loss, packing
from models import decoder
from models.attention import kernels

# ---- rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case, sequences, share, token_T, until_T, where",
    [
        ("one after the other", [[5, 6, 4, 9], [5, 6, 7, 1, 2, 9]], False,
         [5, 6, 4, 9, 5, 6, 7, 1, 2, 9], [4] * 4 + [10] * 6, [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]),
        ("a common beginning", [[5, 6, 4, 9], [5, 6, 7, 1, 2, 9]], True,
         [5, 6, 4, 9, 7, 1, 2, 9], [8, 8, 4, 4, 8, 8, 8, 8], [[0, 1, 2, 3], [0, 1, 4, 5, 6, 7]]),
        ("nested branches", [[1, 2, 3], [1, 2, 4], [1, 5]], True,
         [1, 2, 3, 4, 5], [5, 4, 3, 4, 5], [[0, 1, 2], [0, 1, 3], [0, 4]]),
        ("nothing in common", [[1, 2], [3]], True, [1, 2, 3], [2, 2, 3], [[0, 1], [2]]),
        ("identical", [[1, 2], [1, 2]], True, [1, 2], [2, 2], [[0, 1], [0, 1]]),
        ("identical, apart", [[1, 2], [1, 2]], False, [1, 2, 1, 2], [2, 2, 4, 4], [[0, 1], [2, 3]]),
        ("one the beginning of the next", [[1], [1, 2], [1, 2, 3]], True,
         [1, 2, 3], [3, 3, 3], [[0], [0, 1], [0, 1, 2]]),
        ("and in the wrong order", [[1, 2, 3], [1]], True,
         [1, 2, 3], [3, 3, 3], [[0, 1, 2], [0]]),
        ("alike only later", [[1, 7, 7], [2, 7, 7]], True,
         [1, 7, 7, 2, 7, 7], [3, 3, 3, 6, 6, 6], [[0, 1, 2], [3, 4, 5]]),
        ("the same branch after another one", [[1, 2], [3], [1, 2]], True,
         [1, 2, 3, 1, 2], [2, 2, 3, 5, 5], [[0, 1], [2], [3, 4]]),
    ],
)  # fmt: skip
def test_row_as_a_picture(case, sequences, share, token_T, until_T, where):
    written = packing.write_row([np.array(s, np.int32) for s in sequences], share=share)
    assert written[0].tolist() == token_T
    assert written[1].tolist() == until_T
    assert [where_T.tolist() for where_T in written[2]] == where
    assert written[0].dtype == written[1].dtype == np.int32


# ---- what shares a row -------------------------------------------------------------------------


def lay_out(sequences, shapes, layout, *, sampled=None, questions=None, trajectories=None):
    count = len(sequences)
    return packing.lay_out(
        [np.array(s, np.int32) for s in sequences],
        [1] * count if sampled is None else sampled,
        [0] * count if questions is None else questions,
        range(count) if trajectories is None else trajectories,
        [packing.Shape(*shape) for shape in shapes],
        layout=layout,
    )


def written(sequences, row, layout):
    """Tokens that a row of sequence numbers takes."""
    rows = [np.array(sequences[s], np.int32) for s in row]
    return len(packing.write_row(rows, share=layout == "tree")[0])


SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=20)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4)).map(
    lambda rows: [(rows[0], 10, 4), (rows[1], 14, 4), (2, 24, 9), (5, 24, 9)]
)


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, SHAPES, st.sampled_from(packing.LAYOUTS), st.data())
def test_every_sequence_is_in_one_row_that_holds_it(sequences, shapes, layout, data):
    numbers = lambda top: data.draw(
        st.lists(st.integers(1, top), min_size=len(sequences), max_size=len(sequences))
    )
    options = dict(sampled=numbers(4), questions=numbers(2), trajectories=numbers(6))
    plan = lay_out(sequences, shapes, layout, **options)
    assert plan == lay_out(sequences, shapes, layout, **options)
    seen = []
    for shape, rows in plan:
        assert 1 <= len(rows) <= shape.rows
        for row in rows:
            seen += row
            assert written(sequences, row, layout) <= shape.tokens
            assert sum(options["sampled"][s] for s in row) <= shape.sampled
    assert sorted(seen) == list(range(len(sequences)))
    lengths = [shape.tokens for shape, _ in plan]
    assert lengths == sorted(lengths, reverse=True)
    if layout == "padded":
        assert all(len(row) == 1 for _, rows in plan for row in rows)


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, st.data())
def test_what_a_row_holds_already_is_counted_exactly(sequences, data):
    """A row with room for the tree of everything, and not a token more, takes everything."""
    labels = st.lists(st.integers(0, 3), min_size=len(sequences), max_size=len(sequences))
    everything = written(
        sequences, sorted(range(len(sequences)), key=sequences.__getitem__), "tree"
    )
    prefixes = {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}
    assert everything == len(prefixes)
    plan = lay_out(
        sequences,
        [(1, everything, len(sequences))],
        "tree",
        questions=data.draw(labels),
        trajectories=data.draw(labels),
    )
    assert [len(rows) for _, rows in plan] == [1]


def plan_of(lengths, sampled, shapes, layout="packed"):
    """[(T, rows of lengths)] of sequences that share nothing."""
    sequences = [[i] * length for i, length in enumerate(lengths)]
    plan = lay_out(sequences, shapes, layout, sampled=sampled)
    return [(shape.tokens, [[lengths[s] for s in row] for row in rows]) for shape, rows in plan]


def test_first_fit_decreasing_in_tokens_and_responses():
    assert plan_of([3, 5, 4, 7, 1], [1] * 5, [(1, 10, 5)]) == [(10, [[3, 7]]), (10, [[5, 4, 1]])]
    # response tokens are the scarce thing: 4 + 1 and 3 + 2
    assert plan_of([2, 2, 2, 2], [4, 3, 2, 1], [(1, 100, 5)]) == [(100, [[2, 2]]), (100, [[2, 2]])]
    assert plan_of([2, 2, 2], [4, 3, 3], [(1, 100, 5)]) == [(100, [[2]])] * 3


def test_the_last_rows_are_the_smallest_that_hold_them():
    shapes = [(1, 4, 9), (1, 8, 9), (1, 16, 9)]
    assert plan_of([9, 7, 8, 3], [1] * 4, shapes) == [(16, [[9, 7]]), (8, [[8]]), (4, [[3]])]
    # Six rows of sixteen would be two micro-batches of four.
    shapes = [(4, 4, 9), (4, 16, 9)]
    four = [[4]] * 4
    assert plan_of([16] * 4 + [4] * 6, [1] * 10, shapes) == [
        (16, [[16]] * 4),
        (4, four),
        (4, four[:2]),
    ]


def test_a_length_with_two_numbers_of_rows_leaves_little_padding():
    shapes = [(1, 4, 9), (1, 16, 9), (4, 16, 9)]
    plan = lay_out([[i] * 16 for i in range(7)] + [[9] * 3], shapes, "packed")
    assert [(s.tokens, s.rows, len(rows)) for s, rows in plan] == [
        (16, 4, 4),
        *[(16, 1, 1)] * 3,
        (4, 1, 1),
    ]


def test_padded_rows_that_would_be_empty_take_shorter_turns():
    shapes = [(4, 4, 9), (2, 8, 9)]
    assert plan_of([8, 3, 2], [1] * 3, shapes, "padded") == [(8, [[8], [2]]), (4, [[3]])]


def test_a_tree_gathers_questions_and_cuts_what_is_too_long():
    """Two questions of two trajectories; rows hold one question each but for its last turn."""
    system = [9] * 4
    a, b = [*system, 1, 1], [*system, 2, 2]
    sequences = [[*a, 3], [*b, 3], [*a, 4], [*b, 4], [*a, 3, 5, 6]]
    families, items = [0, 1, 0, 1, 0], [0, 2, 1, 3, 0]
    named = dict(questions=families, trajectories=items)
    ((_, rows),) = lay_out(sequences, [(2, 10, 9)], "tree", **named)
    assert rows == [[0, 4, 2], [1, 3]]
    assert [written(sequences, row, "tree") for row in rows] == [10, 8]
    # Nothing but one sequence fits: what is shared is repeated.
    plan = lay_out(sequences, [(1, 9, 2)], "tree", **named)
    assert sorted(row for _, (row,) in plan) == [[0, 4], [1, 3], [2]]


# ---- how much is saved -------------------------------------------------------------------------


def simulated_step(seed=0, *, questions=32, group=8):
    """(sequences, sampled_S, question_S, trajectory_S) of lengths as in an agent's step.

    A prompt is 2,200 tokens that are the question's, about 900 for each turn before, and 310 of
    its own; a trajectory has one to four turns, a response 350 tokens (median).
    """
    rng = np.random.default_rng(seed)
    draw = lambda count: rng.integers(0, 150_000, int(count), dtype=np.int32)
    turns = []
    for question in range(questions):
        asked_T = draw(2200)
        for rollout in range(group):
            memory_T = asked_T
            for _ in range(rng.integers(1, 5)):
                sampled_T = draw(np.clip(rng.lognormal(np.log(350), 0.7), 1, 2048))
                sequence_T = np.concatenate([memory_T, draw(310), sampled_T])
                turns.append((sequence_T, len(sampled_T), question, question * group + rollout))
                memory_T = np.concatenate([memory_T, draw(900 * rng.lognormal(-0.18, 0.6))])
    return tuple(zip(*turns, strict=True))


def of_plan(sequences, plan, layout):
    """(tokens of all sequences, tokens written, tokens computed with padding)."""
    alone = sum(map(len, sequences))
    used = sum(written(sequences, row, layout) for _, rows in plan for row in rows)
    return alone, used, sum(shape.rows * shape.tokens for shape, _ in plan)


def test_packed_rows_are_full():
    """645 turns, mean 4.2k tokens, 95th percentile 9.2k."""
    rng = np.random.default_rng(0)
    for longest in (12_288, 20_480):
        lengths = np.clip(rng.lognormal(np.log(3550), 0.58, 645), 100, longest).astype(int)
        sequences = [np.zeros(length, np.int32) for length in lengths]
        shapes = [packing.Shape(8, 4096, 1024), packing.Shape(8, longest, longest // 4)]
        labels = np.zeros((2, 645), int)
        plan = packing.lay_out(sequences, lengths // 10, *labels, shapes, layout="packed")
        alone, used, computed = of_plan(sequences, plan, "packed")
        assert alone == used >= 0.97 * computed


def test_trees_save_what_the_lengths_promise():
    """1.8 times less within trajectories, 2.6 times less within questions, found in 2 s."""
    sequences, *labels = simulated_step()
    assert 600 < len(sequences) < 700 and sum(map(len, sequences)) > 2.3e6
    order = sorted(range(len(sequences)), key=lambda s: sequences[s].tolist())
    for name, label_S, at_least in (("trajectory", labels[2], 1.75), ("question", labels[1], 2.7)):
        trees = collections.defaultdict(list)
        for s in order:
            trees[label_S[s]].append(s)
        used = sum(written(sequences, row, "tree") for row in trees.values())
        assert sum(map(len, sequences)) / used >= at_least, name

    started = time.process_time()
    shapes = [packing.Shape(1, 4096, 2048), packing.Shape(1, 20_480, 12_000)]
    plan = packing.lay_out(sequences, *labels, shapes, layout="tree")
    alone, used, computed = of_plan(sequences, plan, "tree")
    assert time.process_time() - started < 2
    assert alone >= 2.5 * used and alone >= 2.4 * computed


# ---- no layout changes the loss or its gradient ------------------------------------------------

CONFIG = decoder.Config(
    vocab_size=24,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)
NUMBERS = loss.Numbers(
    clip_low=0.2, clip_high=0.3, dual_clip=3.0, kl_coef=0.1, sequence_ratio=False, tis_cap=0.0
)
TEMPERATURE = 0.7


@pytest.fixture
def float64(monkeypatch):
    """Everything that says float32 is float64, and compilation is quick."""
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.enable_x64(True):
        monkeypatch.setattr(jnp, "float32", jnp.float64)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def make_model(seed):
    shapes = jax.eval_shape(lambda: decoder.Decoder(jax.random.key(0), CONFIG))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape)), shapes)


def agent_turns():
    """Two questions of two trajectories: shared prompts, one begun by another, two identical."""
    rng = np.random.default_rng(0)
    draw = lambda count: tuple(rng.integers(0, CONFIG.vocab_size, count).tolist())
    system, turns = draw(5), []
    for question in range(2):
        asked = system + draw(3)
        for trajectory in (2 * question, 2 * question + 1):
            memory = asked
            for turn in range(3):
                response = draw(2 + turn)
                turns.append((memory, response, trajectory))
                memory += response[: 2 * (turn % 2)] + draw(3)
    turns += [turns[0], (*turns[1][:2], 1)]  # identical, by the same and by another trajectory
    logprobs = lambda response: tuple((-3 + rng.normal(0, 0.3, len(response))).tolist())
    return [batching.TurnSample(p, r, logprobs(r), t, t // 2) for p, r, t in turns]


ADV_QG = np.array([[1.5, -0.7], [-1.2, 0.4]])


def one_by_one(model, ref_model, samples, execution):
    """Losses of `flow` and `gspo` by Eq. 5, each turn in a row of its own.

    Rows are filled up behind the turn, which causality hides; no mask is involved.
    """
    token_ST = np.zeros((len(samples), 32), np.int32)
    read, weight, adv, old, same_turn = [], [], [], [], []
    turns = collections.Counter(s.trajectory for s in samples)
    for s, sample in enumerate(samples):
        tokens = sample.prompt_tokens + sample.response_tokens
        token_ST[s, : len(tokens)] = tokens
        count = len(sample.response_tokens)
        for i in range(len(sample.prompt_tokens), len(tokens)):
            read.append((s, i - 1, tokens[i]))
            weight.append(1 / (4 * turns[sample.trajectory]) / count)
            adv.append(ADV_QG.flat[sample.trajectory])
        old += sample.logprobs
        same_turn.append(np.full((count, count), 1 / count))

    def logprobs_of(model):
        hidden_STD = model.hidden(token_ST, np.full_like(token_ST, 32), execution)
        return jax.nn.log_softmax(model.logits(hidden_STD) / TEMPERATURE)[tuple(np.array(read).T)]

    logp, ref = logprobs_of(model), logprobs_of(ref_model)
    weight, adv, old = (np.float32(x) for x in (weight, adv, old))  # as a batch holds them

    def loss_of(log_ratio):
        ratio = jnp.exp(log_ratio)
        gain = jnp.minimum(ratio * adv, jnp.clip(ratio, 0.8, 1.3) * adv)
        gain = jnp.where(adv < 0, jnp.maximum(gain, 3.0 * adv), gain)
        return (weight * (0.1 * (jnp.exp(ref - logp) - (ref - logp) - 1) - gain)).sum()

    return loss_of(logp - old), loss_of(jax.scipy.linalg.block_diag(*same_turn) @ (logp - old))


@pytest.mark.slow
def test_every_layout_has_the_loss_and_gradient_of_turns_one_by_one(float64):
    model, ref_model, samples = make_model(0), make_model(1), agent_turns()
    execution = decoder.Execution(jnp.float64, "none", attend=kernels.make("reference"))
    how = dict(temperature=TEMPERATURE, chunk=16, execution=execution)

    def in_batch(model, ref_model, batch):
        logp_BA, _ = logprobs.score(model, batch, **how)
        ref_logp_BA, _ = logprobs.score(ref_model, batch, **how)
        return [
            loss.policy_loss(logp_BA, ref_logp_BA, batch, numbers=numbers)[0]
            for numbers in (NUMBERS, dataclasses.replace(NUMBERS, sequence_ratio=True))
        ]

    def graded(losses):
        """(model, ...) -> the losses, and the gradient of a sum in which neither hides."""
        weighted = lambda values: (values[0] + 0.7 * values[1], values)
        grad = jax.grad(lambda *arguments: weighted(losses(*arguments)), has_aux=True)
        return jax.jit(lambda *arguments: grad(*arguments)[::-1])

    alone = graded(lambda model, ref_model: one_by_one(model, ref_model, samples, execution))
    expected = jax.tree.leaves(alone(model, ref_model))
    of_batch = graded(in_batch)
    for layout in packing.LAYOUTS:
        (batches,) = batching.build(
            samples,
            adv_QG=ADV_QG,
            valid_QG=np.ones((2, 2), bool),
            weigh=credit.weigh_turns,
            layout=layout,
            row_lengths=(48,),
            rows=(2,),
            response_lengths=(20,),
            split=functools.partial(batching.by_questions, mini_batches=1),
            constant_length=0,
        )
        assert len(batches) == {"padded": 7, "packed": 3, "tree": 2}[layout]
        got = jax.tree.map(
            lambda *parts: sum(parts), *[of_batch(model, ref_model, b) for b in batches]
        )
        for a, b in zip(jax.tree.leaves(got), expected, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=layout)
