"""Chunked log-probabilities against float64 NumPy, their memory, and what a mesh moves."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flow_grpo_jax import batching, credit, logprobs, packing
from models import decoder, sharding

CONFIG = decoder.Config(
    vocab_size=37,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)


def make_model(config=CONFIG, seed=0):
    """Random weights, norms and biases included, drawn on the host: nothing to compile."""
    shapes = jax.eval_shape(lambda: decoder.Decoder(jax.random.key(0), config))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), shapes)


@pytest.fixture(scope="module")
def model():
    return make_model()


def inputs(B=3, A=7, seed=0, vocabulary=CONFIG.vocab_size):
    """(hidden_BAD, target_BA, mask_BA), every token sampled."""
    rng = np.random.default_rng(seed)
    hidden_BAD = rng.normal(size=(B, A, CONFIG.hidden_size)).astype(np.float32)
    target_BA = rng.integers(0, vocabulary, (B, A)).astype(np.int32)
    return hidden_BAD, target_BA, np.ones((B, A), bool)


def reference(model, hidden_BAD, target_BA, temperature):
    """(logp_BA, entropy_BA) in float64."""
    tied = model.config.tie_word_embeddings
    w_DV = np.asarray(model.embed.table_VD[...].T if tied else model.head.w_DV[...], np.float64)
    logits_BAV = hidden_BAD.astype(np.float64) @ w_DV / temperature
    logits_BAV -= logits_BAV.max(-1, keepdims=True)
    p_BAV = np.exp(logits_BAV)
    p_BAV /= p_BAV.sum(-1, keepdims=True)
    logp_BAV = np.log(p_BAV)
    return np.take_along_axis(logp_BAV, target_BA[..., None], -1)[..., 0], -(p_BAV * logp_BAV).sum(
        -1
    )


UNTIED = dataclasses.replace(CONFIG, tie_word_embeddings=False)


@pytest.mark.parametrize(
    "chunk, temperature", [(1, 0.5), (6, 1.0), (9, 0.5), (12, 1.0), (21, 0.5), (1000, 1.0)]
)
def test_equal_to_float64_whatever_the_chunk(model, chunk, temperature):
    hidden_BAD, target_BA, mask_BA = inputs()
    logp_BA, entropy_BA = jax.jit(
        lambda: logprobs.token_logprobs(
            model, hidden_BAD, target_BA, mask_BA, temperature=temperature, chunk=chunk
        )
    )()
    expected_BA, expected_entropy_BA = reference(model, hidden_BAD, target_BA, temperature)
    assert logp_BA.shape == (3, 7) and logp_BA.dtype == jnp.float32
    np.testing.assert_allclose(logp_BA, expected_BA, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(entropy_BA, expected_entropy_BA, rtol=1e-5, atol=2e-5)


def gradients(model, hidden_BAD, target_BA, mask_BA, *, chunk, entropy=0.0):
    """Of the head and of the hidden states."""

    def objective(model, hidden_BAD):
        logp_BA, entropy_BA = logprobs.token_logprobs(
            model, hidden_BAD, target_BA, mask_BA, temperature=0.7, chunk=chunk
        )
        return (logp_BA**2).sum() + entropy * entropy_BA.sum()

    grads, grad_BAD = jax.jit(jax.grad(objective, argnums=(0, 1)))(model, hidden_BAD)
    tied = model.config.tie_word_embeddings
    return grads.embed.table_VD[...] if tied else grads.head.w_DV[...].T, grad_BAD


def reference_gradients(model, hidden_BAD, target_BA):
    """The same by hand in float64: d log p_y / d logits = (1[v = y] - p_v) / temperature."""
    tied = model.config.tie_word_embeddings
    w_DV = np.asarray(model.embed.table_VD[...].T if tied else model.head.w_DV[...], np.float64)
    hidden_BAD = np.asarray(hidden_BAD, np.float64)
    p_BAV = np.exp(hidden_BAD @ w_DV / 0.7)
    p_BAV /= p_BAV.sum(-1, keepdims=True)
    one_hot_BAV = np.eye(w_DV.shape[1])[target_BA]
    logp_BA = np.log((one_hot_BAV * p_BAV).sum(-1))
    grad_BAV = 2 * logp_BA[..., None] * (one_hot_BAV - p_BAV) / 0.7
    return np.einsum("BAV,BAD->VD", grad_BAV, hidden_BAD), grad_BAV @ w_DV.T


@pytest.mark.parametrize(
    "config, changes",
    [(CONFIG, dict(chunk=1000)), (CONFIG, dict(chunk=6, entropy=5.0)), (UNTIED, dict(chunk=6))],
)
def test_gradient_by_hand_whatever_the_chunk_and_without_the_entropy(config, changes):
    model = make_model(config)
    hidden_BAD, target_BA, mask_BA = inputs()
    got = gradients(model, hidden_BAD, target_BA, mask_BA, **changes)
    for a, b in zip(got, reference_gradients(model, hidden_BAD, target_BA), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_sums_over_chunks_are_float32_whatever_the_compute_dtype(model):
    """A thousand equal terms, one a chunk: a bfloat16 sum would stop growing at 256 of them."""
    hidden_1AD, target_1A, mask_1A = inputs(B=1, A=1)
    many = [np.repeat(x, 1000, axis=1) for x in (hidden_1AD, target_1A, mask_1A)]
    many[0] = jnp.asarray(many[0], jnp.bfloat16)
    grad_VD, grad_1AD = gradients(model, *many, chunk=1)
    assert grad_VD.dtype == jnp.float32 and grad_1AD.dtype == jnp.bfloat16
    expected_VD, _ = reference_gradients(model, many[0], many[1])
    assert np.abs(grad_VD - expected_VD).max() < 0.03 * np.abs(expected_VD).max()


def test_columns_behind_the_last_sampled_one_are_not_computed(model):
    """They hold NaN, which the head's gradient would not survive."""
    hidden_BAD, target_BA, mask_BA = inputs()
    mask_BA[:, 3:], mask_BA[0, 1] = False, False
    mask_BA[1, 3] = True
    hidden_BAD[:, 4:] = np.nan
    how = dict(temperature=0.7, chunk=6)  # two columns

    @jax.jit
    def scored(model, hidden_BAD):
        logp_BA, entropy_BA = logprobs.token_logprobs(model, hidden_BAD, target_BA, mask_BA, **how)
        return jnp.where(mask_BA, logp_BA, 0.0).sum(), (logp_BA, entropy_BA)

    (grads, grad_BAD), (logp_BA, entropy_BA) = jax.grad(scored, argnums=(0, 1), has_aux=True)(
        model, hidden_BAD
    )
    assert np.isfinite(grads.embed.table_VD[...]).all()
    assert not logp_BA[:, 4:].any() and not entropy_BA[:, 4:].any() and not grad_BAD[:, 4:].any()
    expected_BA, _ = reference(model, hidden_BAD[:, :4], target_BA[:, :4], 0.7)
    np.testing.assert_allclose(logp_BA[:, :4], expected_BA, rtol=1e-5, atol=2e-5)


def naive(model, hidden_BAD, target_BA, mask_BA):
    logp_BAV = jax.nn.log_softmax(model.logits(hidden_BAD))
    return jnp.take_along_axis(logp_BAV, target_BA[..., None], axis=-1)[..., 0]


def chunked(model, *arguments):
    return logprobs.token_logprobs(model, *arguments, temperature=1.0, chunk=256)[0]


def test_memory_is_that_of_a_chunk():
    """Temporaries of value and gradient at the size of Qwen2.5's vocabulary; nothing is run."""
    config = dataclasses.replace(CONFIG, vocab_size=151_936)
    model = jax.eval_shape(lambda: decoder.Decoder(jax.random.key(0), config))

    def temporaries(logps, A):
        shape = jax.ShapeDtypeStruct
        arguments = (
            shape((1, A, 16), jnp.float32),
            shape((1, A), jnp.int32),
            shape((1, A), jnp.bool_),
        )
        objective = lambda *arguments: logps(*arguments).sum()
        lowered = jax.jit(jax.value_and_grad(objective, argnums=(0, 1))).lower(model, *arguments)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    small, large = temporaries(chunked, 1024), temporaries(chunked, 4096)
    assert large - small <= (4096 - 1024) * 4 * 40  # a few numbers a token, such as its state
    assert large <= temporaries(naive, 4096) / 8


# ---- on a mesh ---------------------------------------------------------------------------------

COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def moved(text):
    """[(whether in a loop, operation, elements)] of each collective of a compiled program."""
    found, entry = [], False
    for line in text.splitlines():
        if not line.startswith(" "):
            entry = line.startswith("ENTRY")
        match = re.search(rf" = (.*?) ({COLLECTIVES})(-start)?\(", line)
        if match:
            sizes = [
                math.prod(int(size) for size in shape.split(",") if size)
                for shape in re.findall(r"\w\[([\d,]*)\]", match[1])
            ]
            found.append((not entry, match[2], max(sizes)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_on_a_mesh_neither_logits_nor_the_head_are_gathered(tied):
    """Same values and gradients; collectives of a chunk are no larger than its hidden states."""
    V, D = 640, CONFIG.hidden_size
    config = dataclasses.replace(CONFIG, vocab_size=V, tie_word_embeddings=tied)
    model, arguments = make_model(config), inputs(B=8, A=12, vocabulary=V)

    def graded(mesh):
        def objective(model, hidden_BAD, target_BA, mask_BA):
            logp_BA, entropy_BA = logprobs.token_logprobs(
                model, hidden_BAD, target_BA, mask_BA, temperature=0.7, chunk=4, mesh=mesh
            )
            return (logp_BA**2).sum(), (logp_BA, entropy_BA)

        return jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)

    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    places = sharding.parameter_shardings(mesh, model), sharding.batch_sharding(mesh)
    placed = jax.device_put((model, *arguments), (places[0], *[places[1]] * 3))

    def compiled(inner):
        out = ((None, (places[1],) * 2), places)
        return jax.jit(graded(inner), out_shardings=out).lower(*placed).compile()

    program = compiled(mesh)
    got, expected = program(*placed), jax.jit(graded(None))(model, *arguments)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)

    def assert_little_is_moved(text):
        for in_loop, operation, elements in moved(text):
            assert elements <= (32 * D if in_loop else V * D / 2), (operation, elements)

    assert len(moved(program.as_text())) > 5
    assert_little_is_moved(program.as_text())
    with pytest.raises(AssertionError):
        assert_little_is_moved(compiled(None).as_text())


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [38, 37])
def test_any_vocabulary_runs_on_a_mesh(vocabulary):
    """Divisible by tensor but not by tensor * fsdp, and by neither."""
    config = dataclasses.replace(CONFIG, vocab_size=vocabulary)
    model, arguments = make_model(config), inputs(B=4, vocabulary=vocabulary)
    mesh = sharding.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
    logps = lambda mesh: jax.jit(
        lambda *arguments: logprobs.token_logprobs(
            model, *arguments, temperature=0.7, chunk=8, mesh=mesh
        )
    )
    placed = jax.device_put(arguments, sharding.batch_sharding(mesh))
    for a, b in zip(logps(mesh)(*placed), logps(None)(*arguments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


# ---- of a batch --------------------------------------------------------------------------------

RESPONSES = {
    "EOS first": (9,),
    "EOS last": (4, 5, 9),
    "no EOS, row full": (4, 5, 6, 7, 8),
    "pad id sampled": (0, 4, 0, 9),
}


@pytest.mark.parametrize("layout", packing.LAYOUTS)
def test_score_equals_whole_row_logits(model, layout):
    """Against log_softmax of all logits of each row alone, read one position before each token."""
    prompt = (5, 0, 7)
    samples = [batching.TurnSample(prompt, r, (0.0,) * len(r), 0, 0) for r in RESPONSES.values()]
    ((batch,),) = batching.build(
        samples,
        adv_QG=np.ones((1, 1)),
        valid_QG=np.ones((1, 1), bool),
        weigh=credit.weigh_turns,
        layout=layout,
        row_lengths=(14,),
        rows=(6,),
        response_lengths=(13,),
        split=functools.partial(batching.by_questions, mini_batches=1),
        constant_length=0,
    )
    execution = decoder.Execution(jnp.float32, "none")
    scored = jax.jit(
        lambda m, b: logprobs.score(m, b, temperature=0.5, chunk=12, execution=execution)
    )(model, batch)
    hidden = jax.jit(lambda m, t: m.hidden(t, jnp.full_like(t, 8), execution))
    for case, response in RESPONSES.items():
        (at,) = [
            np.nonzero(batch.mask_BA & (np.arange(6)[:, None] == b) & (batch.turn_BA == turn))
            for b in range(6)
            for turn in range(4)
            if tuple(batch.target_BA[b][batch.mask_BA[b] & (batch.turn_BA[b] == turn)]) == response
        ]
        filler = (11,) * (8 - 3 - len(response))  # causal: what follows changes nothing
        token_1T = np.array([prompt + response + filler], np.int32)
        count = len(response)
        target_1A = token_1T[:, 3 : 3 + count]
        hidden_1AD = np.asarray(hidden(model, token_1T))[:, 2 : 2 + count]
        expected = reference(model, hidden_1AD, target_1A, 0.5)
        for x_BA, expected_1A in zip(scored, expected, strict=True):
            np.testing.assert_allclose(x_BA[at], expected_1A[0], rtol=1e-4, atol=1e-4, err_msg=case)
            assert np.isfinite(x_BA).all()


@pytest.mark.parametrize(
    "numbers", [dict(temperature=0.0, chunk=8), dict(temperature=1.0, chunk=0)]
)
def test_mistakes_are_named(model, numbers):
    with pytest.raises(ValueError, match="must be positive"):
        logprobs.token_logprobs(model, *inputs(), **numbers)
