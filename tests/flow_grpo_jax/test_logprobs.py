"""Chunked log-probabilities against float64 NumPy, and their memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flow_grpo_jax import batching, logprobs
from models import qwen2

CONFIG = qwen2.Config(
    vocab_size=37,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)


def make_model(seed=0):
    """Random weights, norms and biases included, drawn on the host: nothing to compile."""
    shapes = jax.eval_shape(lambda: qwen2.Qwen2(jax.random.key(0), CONFIG))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), shapes)


@pytest.fixture(scope="module")
def model():
    return make_model()


def inputs(B=3, A=7, seed=0):
    rng = np.random.default_rng(seed)
    hidden_BAD = rng.normal(size=(B, A, CONFIG.hidden_size)).astype(np.float32)
    return hidden_BAD, rng.integers(0, CONFIG.vocab_size, (B, A)).astype(np.int32)


def reference(model, hidden_BAD, target_BA, temperature):
    """(logp_BA, entropy_BA) in float64."""
    table_VD = np.asarray(model.embed.table_VD[...], np.float64)
    logits_BAV = hidden_BAD.astype(np.float64) @ table_VD.T / temperature
    logits_BAV -= logits_BAV.max(-1, keepdims=True)
    p_BAV = np.exp(logits_BAV)
    p_BAV /= p_BAV.sum(-1, keepdims=True)
    logp_BAV = np.log(p_BAV)
    return np.take_along_axis(logp_BAV, target_BA[..., None], -1)[..., 0], -(p_BAV * logp_BAV).sum(
        -1
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("chunk", [1, 3, 6, 9, 12, 21, 1000])
def test_equal_to_float64_whatever_the_chunk(model, chunk, temperature):
    hidden_BAD, target_BA = inputs()
    logp_BA, entropy_BA = jax.jit(
        lambda: logprobs.token_logprobs(
            model, hidden_BAD, target_BA, temperature=temperature, chunk=chunk
        )
    )()
    expected_BA, expected_entropy_BA = reference(model, hidden_BAD, target_BA, temperature)
    assert logp_BA.shape == (3, 7) and logp_BA.dtype == jnp.float32
    np.testing.assert_allclose(logp_BA, expected_BA, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(entropy_BA, expected_entropy_BA, rtol=1e-5, atol=2e-5)


def gradients(model, hidden_BAD, target_BA, chunk, entropy=0.0):
    """Of the embedding table and of the hidden states."""

    def objective(model, hidden_BAD):
        logp_BA, entropy_BA = logprobs.token_logprobs(
            model, hidden_BAD, target_BA, temperature=0.7, chunk=chunk
        )
        return (logp_BA**2).sum() + entropy * entropy_BA.sum()

    grads, grad_BAD = jax.jit(jax.grad(objective, argnums=(0, 1)))(model, hidden_BAD)
    return grads.embed.table_VD[...], grad_BAD


def test_gradient_does_not_depend_on_the_chunk_and_skips_the_entropy(model):
    whole = gradients(model, *inputs(), chunk=1000)
    for other in (gradients(model, *inputs(), chunk=6), gradients(model, *inputs(), 1000, 5.0)):
        for a, b in zip(whole, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    hidden_BAD, target_BA = inputs()
    h = np.zeros_like(hidden_BAD)
    h[1, 2, 3] = 1e-4
    value = lambda x: (reference(model, x, target_BA, 0.7)[0] ** 2).sum()
    slope = (value(hidden_BAD.astype(np.float64) + h) - value(hidden_BAD - h)) / 2e-4
    assert float(whole[1][1, 2, 3]) == pytest.approx(slope, rel=1e-3)


def test_memory_does_not_grow_with_the_tokens():
    """Temporaries of value and gradient at A and 4 A; unchunked they grow and are far larger."""
    config = qwen2.Config(2048, 16, 16, 1, 2, 2, 8)
    model = jax.eval_shape(lambda: qwen2.Qwen2(jax.random.key(0), config))

    def temporaries(A, chunk):
        def objective(model, hidden_BAD, target_BA):
            logp_BA, _ = logprobs.token_logprobs(
                model, hidden_BAD, target_BA, temperature=1.0, chunk=chunk
            )
            return logp_BA.sum()

        shapes = (
            jax.ShapeDtypeStruct((2, A, 16), jnp.float32),
            jax.ShapeDtypeStruct((2, A), jnp.int32),
        )
        compiled = jax.jit(jax.grad(objective, argnums=(0, 1))).lower(model, *shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporaries(128, 32), temporaries(512, 32)
    inputs_grow = 4 * (2 * 512 - 2 * 128) * (16 + 2)  # hidden states and their gradient
    assert large - small <= 2 * inputs_grow
    assert temporaries(512, 10**6) > 8 * large


def test_response_hidden_reads_the_positions_before_each_token():
    position_BTD = jnp.broadcast_to(jnp.arange(6.0)[None, :, None], (2, 6, 1))
    picked_BAD = logprobs.response_hidden(position_BTD, jnp.array([1, 4]), response_length=4)
    assert picked_BAD[..., 0].tolist() == [[0, 1, 2, 3], [3, 4, 5, 5]]


RESPONSES = {
    "EOS first": (9,),
    "EOS last": (4, 5, 9),
    "no EOS, row full": (4, 5, 6, 7, 8),
    "pad id sampled": (0, 4, 0, 9),
}


def test_score_equals_whole_row_logits(model):
    """Against log_softmax of all logits of each row alone, read one position before each token."""
    prompt = (5, 0, 7)
    samples = [batching.TurnSample(prompt, r, (0.0,) * len(r), 0, 0) for r in RESPONSES.values()]
    ((batch,),) = batching.build(
        samples,
        adv_QG=np.ones((1, 1)),
        valid_QG=np.ones((1, 1), bool),
        weigh=batching.weigh_turns,
        row_lengths=(8,),
        rows=(6,),
        response_lengths=(6,),
    )
    scored = jax.jit(lambda m, b: logprobs.score(m, b, temperature=0.5, chunk=12))(model, batch)
    hidden = jax.jit(lambda m, t: m.hidden(t, jnp.ones_like(t)))
    for b, (case, response) in enumerate(RESPONSES.items()):
        filler = (11,) * (8 - 3 - len(response))  # causal: what follows changes nothing
        token_1T = np.array([prompt + response + filler], np.int32)
        count = len(response)
        target_1A = token_1T[:, 3 : 3 + count]
        hidden_1AD = np.asarray(hidden(model, token_1T))[:, 2 : 2 + count]
        expected = reference(model, hidden_1AD, target_1A, 0.5)
        for x_BA, expected_1A in zip(scored, expected, strict=True):
            np.testing.assert_allclose(
                x_BA[b, :count], expected_1A[0], rtol=1e-4, atol=1e-4, err_msg=case
            )
            assert np.isfinite(x_BA).all()


@pytest.mark.parametrize(
    "numbers", [dict(temperature=0.0, chunk=8), dict(temperature=1.0, chunk=0)]
)
def test_mistakes_are_named(model, numbers):
    with pytest.raises(ValueError, match="must be positive"):
        logprobs.token_logprobs(model, *inputs(), **numbers)
