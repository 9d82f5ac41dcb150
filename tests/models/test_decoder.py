"""The model against those of transformers.

Dimensions:
  B rows    T tokens in a row    D model width    V vocabulary
  N query heads    K key/value heads    H head size
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from models import decoder, huggingface
from models.attention import masks
from tests.models import conftest

TOLERANCE = 1e-4  # of the largest logit


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def tokens(rows, length, *, seed=0):
    return np.random.default_rng(seed).integers(0, 64, (rows, length)).astype(np.int32)


def logits(model, token_BT, segment_BT=None):
    segment_BT = np.ones_like(token_BT) if segment_BT is None else segment_BT
    until_BT = masks.until_of_segments(jnp.asarray(segment_BT))
    forward = lambda model, token_BT, until_BT: model.logits(model.hidden(token_BT, until_BT))
    return np.asarray(jax.jit(forward)(model, token_BT, until_BT))


def gap(ours, theirs):
    """Largest difference as a share of the largest value."""
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("shape", conftest.SHAPES)
def test_logits_equal_transformers(reference, shape):
    expected = reference(shape)
    token_BT = tokens(2, 24)
    ours = logits(huggingface.load(expected.folder), token_BT)
    assert ours.dtype == np.float32
    assert gap(ours, expected.logits(token_BT)) < TOLERANCE


@pytest.mark.parametrize("shape", ["tied", pytest.param("low_theta", marks=pytest.mark.slow)])
def test_logits_equal_transformers_at_long_positions(reference, shape):
    expected = reference(shape)
    token_BT = tokens(1, 700)
    ours = logits(huggingface.load(expected.folder), token_BT)
    assert gap(ours, expected.logits(token_BT)) < TOLERANCE


def without_bias(name):
    def change(model, monkeypatch):
        bias = getattr(model.blocks.attn, name)
        bias[...] = jnp.zeros_like(bias[...])

    return change


def configured(**changes):
    def change(model, monkeypatch):
        model.config = dataclasses.replace(model.config, **changes)

    return change


def tiled_kv_heads(model, monkeypatch):
    right = masks.attend_reference

    def wrong(q_BTNH, k_BSKH, v_BSKH, mask_BTS):
        B, T, N, H = q_BTNH.shape
        K = k_BSKH.shape[2]
        regrouped = q_BTNH.reshape(B, T, N // K, K, H).swapaxes(2, 3).reshape(B, T, N, H)
        o_BTNH = right(regrouped, k_BSKH, v_BSKH, mask_BTS)
        return o_BTNH.reshape(B, T, K, N // K, H).swapaxes(2, 3).reshape(B, T, N, H)

    monkeypatch.setattr(masks, "attend_reference", wrong)


def unscaled_attention(model, monkeypatch):
    right = masks.attend_reference
    wrong = lambda q, k, v, mask: right(q * q.shape[-1] ** 0.5, k, v, mask)
    monkeypatch.setattr(masks, "attend_reference", wrong)


def no_causal_mask(model, monkeypatch):
    everything = lambda until_BT: jnp.broadcast_to(
        until_BT[:, None, :] > 0, (*until_BT.shape, until_BT.shape[1])
    )
    monkeypatch.setattr(masks, "visible", everything)


def interleaved_rotation(model, monkeypatch):
    def wrong(x_BTNH, rope):
        cos, sin = rope
        even, odd = x_BTNH[..., ::2], x_BTNH[..., 1::2]
        pair = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
        return pair.reshape(x_BTNH.shape)

    monkeypatch.setattr(decoder, "rotate", wrong)


def small_norm_eps(model, monkeypatch):
    for norm in (model.blocks.attn_norm, model.blocks.mlp_norm, model.final_norm):
        norm.eps = 1e-6


def head_from_embedding(model, monkeypatch):
    model.config = dataclasses.replace(model.config, tie_word_embeddings=True)


def without_head_norms(model, monkeypatch):
    monkeypatch.setattr(decoder.HeadNorm, "__call__", lambda self, x_BTNH: x_BTNH)


def swapped_head_norms(model, monkeypatch):
    attn = model.blocks.attn
    attn.q_norm, attn.k_norm = attn.k_norm, attn.q_norm


def half_of_llama3(model, monkeypatch):
    """Divides all slow frequencies by the factor, as if nothing lay between the two bounds."""
    scaling = model.config.rope_scaling
    scaling = dataclasses.replace(scaling, low_freq_factor=scaling.high_freq_factor - 1e-6)
    model.config = dataclasses.replace(model.config, rope_scaling=scaling)


BUGS = {
    "nothing": None,
    "rope_theta": configured(rope_theta=1e4),
    "rope_interleaved": interleaved_rotation,
    "q_bias": without_bias("b_q_NH"),
    "k_bias": without_bias("b_k_KH"),
    "v_bias": without_bias("b_v_KH"),
    "kv_order": tiled_kv_heads,
    "scale": unscaled_attention,
    "causal": no_causal_mask,
    "norm_eps": small_norm_eps,
    "tie": head_from_embedding,
}
FAMILY_BUGS = {
    ("qwen3", "no norms"): without_head_norms,
    ("qwen3", "norms swapped"): swapped_head_norms,
    ("llama3", "plain frequencies"): configured(rope_scaling=None),
    ("llama3", "no ramp"): half_of_llama3,
}


@pytest.mark.parametrize(("shape", "bug"), FAMILY_BUGS)
def test_parity_of_families_would_notice(reference, monkeypatch, shape, bug):
    expected, token_BT = reference(shape), tokens(2, 24)
    model = huggingface.load(expected.folder)
    FAMILY_BUGS[shape, bug](model, monkeypatch)
    assert gap(logits(model, token_BT), expected.logits(token_BT)) > 10 * TOLERANCE


@pytest.mark.parametrize("bug", BUGS)
def test_parity_would_notice(reference, monkeypatch, bug):
    expected, token_BT = reference("untied"), tokens(2, 24)
    model = huggingface.load(expected.folder)
    if BUGS[bug] is None:
        assert gap(logits(model, token_BT), expected.logits(token_BT)) < TOLERANCE
        return
    BUGS[bug](model, monkeypatch)
    assert gap(logits(model, token_BT), expected.logits(token_BT)) > 10 * TOLERANCE


@pytest.mark.slow
def test_padding_on_either_side_is_inert(reference):
    expected, token_BT = reference("tied"), tokens(1, 12)
    model = huggingface.load(expected.folder)
    alone = expected.logits(token_BT)[0]
    #             <-- left padded -->     <-- right padded ->
    lefts = np.array([4, 0])
    padded_BT = np.full((2, 16), 9, np.int32)
    segment_BT = np.zeros((2, 16), np.int32)
    for row, left in enumerate(lefts):
        padded_BT[row, left : left + 12] = token_BT[0]
        segment_BT[row, left : left + 12] = 1
    both = logits(model, padded_BT, segment_BT)
    assert np.isfinite(both).all()
    for row, left in enumerate(lefts):
        assert gap(both[row, left : left + 12], alone) < TOLERANCE


def test_packed_segments_equal_separate_rows(reference):
    expected = reference("tied")
    first_BT, second_BT = tokens(1, 7, seed=1), tokens(1, 9, seed=2)
    #          1 1 1 1 1 1 1 0 0 2 2 2 2 2 2 2 2 2
    packed_BT = np.concatenate([first_BT, np.zeros((1, 2), np.int32), second_BT], axis=1)
    segment_BT = np.array([[1] * 7 + [0] * 2 + [2] * 9], np.int32)
    packed = logits(huggingface.load(expected.folder), packed_BT, segment_BT)
    assert gap(packed[:, :7], expected.logits(first_BT)) < TOLERANCE
    assert gap(packed[:, 9:], expected.logits(second_BT)) < TOLERANCE


def gradient(model, token_BT, weight_BTV, remat="none"):
    """That of the weighted sum of all logits, as a Decoder."""

    def loss(model):
        execution = decoder.Execution(jnp.float32, remat)
        until_BT = np.full_like(token_BT, token_BT.shape[1])
        return (model.logits(model.hidden(token_BT, until_BT, execution)) * weight_BTV).sum()

    return jax.jit(jax.grad(loss))(model)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["untied", "qwen3", "llama3", "mistral"])
def test_gradients_equal_torch(reference, tmp_path, shape):
    expected, token_BT = reference(shape), tokens(2, 16)
    weight_BTV = np.random.default_rng(3).normal(size=(2, 16, 64)).astype(np.float32)
    expected.model.zero_grad()
    theirs = expected.model(torch.tensor(token_BT)).logits
    (theirs * torch.tensor(weight_BTV)).sum().backward()

    kept = gradient(huggingface.load(expected.folder), token_BT, weight_BTV)
    huggingface.save(tmp_path, kept)  # under their names, in their shapes
    ours = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    parameters = dict(expected.model.named_parameters())
    assert set(ours) == set(parameters)
    for name, parameter in parameters.items():
        assert gap(ours[name], parameter.grad.numpy()) < 10 * TOLERANCE, name


@pytest.mark.slow
def test_gradients_are_the_same_however_much_is_recomputed(reference):
    token_BT = tokens(2, 16)
    weight_BTV = np.random.default_rng(3).normal(size=(2, 16, 64)).astype(np.float32)
    model = huggingface.load(reference("untied").folder)
    kept = gradient(model, token_BT, weight_BTV)
    for remat in set(decoder.REMAT) - {"none"}:
        recomputed = gradient(model, token_BT, weight_BTV, remat)
        for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(recomputed), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(a).max()))


def test_unknown_remat_names_the_valid_ones():
    message = "remat='half' is unknown; valid: none, dots, attention, full"
    with pytest.raises(ValueError, match=message):
        decoder.Execution(jnp.float32, remat="half")


def published(**changes):
    """What the published config.json files of Qwen2.5 have in common, and `changes`."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": 32768,
        "torch_dtype": "bfloat16",
        **changes,
    }


SIZES = {
    "0.5B": (494_032_768, 151936, 896, 4864, 24, 14, 2, True),
    "1.5B": (1_543_714_304, 151936, 1536, 8960, 28, 12, 2, True),
    "3B": (3_085_938_688, 151936, 2048, 11008, 36, 16, 2, True),
    "7B": (7_615_616_512, 152064, 3584, 18944, 28, 28, 4, False),
}


@pytest.mark.parametrize("size", SIZES)
def test_published_parameter_counts(size):
    count, vocab, width, feed_forward, layers, heads, kv_heads, tied = SIZES[size]
    config = huggingface.config_from_dict(
        published(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=feed_forward,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            tie_word_embeddings=tied,
        )
    )
    shapes = jax.eval_shape(lambda key: decoder.Decoder(key, config), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
