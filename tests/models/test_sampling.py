"""Sampling against NumPy in float64.

Dimensions: B rows  V vocabulary  A address parts  X things to pick from
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.engine import sampling, types

V = 300  # not a multiple of sampling.BLOCK
draw = jax.jit(sampling.draw)
floors = jax.jit(sampling.floors)


def parameters(rows, *, temperature=1.0, top_p=1.0, min_p=0.0, top_k=0):
    fill = lambda value, dtype: jnp.broadcast_to(jnp.asarray(value, dtype), (rows,))
    return sampling.Parameters(
        fill(temperature, jnp.float32),
        fill(top_p, jnp.float32),
        fill(min_p, jnp.float32),
        fill(top_k, jnp.int32),
    )


def reference(logits_V, *, temperature=1.0, top_p=1.0, min_p=0.0, top_k=0):
    """Probabilities, float64 [V]: sort, cut, renormalise, one truncation after the other."""
    logits_V = np.asarray(logits_V, np.float64) / temperature
    p_V = np.exp(logits_V - logits_V.max())
    p_V /= p_V.sum()
    best_V = np.argsort(-p_V, kind="stable")
    if top_k:
        p_V[best_V[top_k:]] = 0
        p_V /= p_V.sum()
    if top_p < 1:
        needed = np.searchsorted(np.cumsum(p_V[best_V]), top_p) + 1
        p_V[best_V[needed:]] = 0
        p_V /= p_V.sum()
    p_V[p_V < min_p * p_V.max()] = 0
    return p_V / p_V.sum()


def test_parameters_are_the_fields_of_requests():
    rows = [
        types.Sampling(3, temperature=0.5, top_p=0.25, top_k=2**40, min_p=0.125),
        types.Sampling(4),
        sampling.NOTHING,
    ]
    found = sampling.as_parameters(rows)
    assert found.temperature_B.tolist() == [0.5, 1, 0]
    assert found.top_p_B.tolist() == [0.25, 1, 1]
    assert found.min_p_B.tolist() == [0.125, 0, 0]
    assert found.top_k_B.tolist() == [2**31 - 1, 0, 0]
    assert [x.dtype for x in found] == [np.float32] * 3 + [np.int32]


CUTS = [
    dict(),
    dict(temperature=0.7),
    dict(top_k=1),
    dict(top_k=7),
    dict(top_k=10_000),
    dict(top_p=0.9),
    dict(top_p=1e-6),
    dict(top_p=1e-60),
    dict(min_p=0.05),
    dict(min_p=1.0),
    dict(temperature=1.3, top_k=40, top_p=0.8),
    dict(temperature=0.9, top_k=60, top_p=0.95, min_p=0.02),
]


@pytest.fixture(scope="module")
def logits_BV():
    return np.random.default_rng(0).normal(size=(16, V)).astype(np.float32) * 3


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_support_and_logprobs_equal_the_reference(logits_BV, cuts):
    rows = len(logits_BV)
    floor_B = np.asarray(floors(logits_BV, parameters(rows, **cuts)))
    kept_BV = np.asarray(sampling._scaled(logits_BV, parameters(rows, **cuts))) >= floor_B[:, None]
    p_BV = np.array([reference(logits_V, **cuts) for logits_V in logits_BV])
    np.testing.assert_array_equal(kept_BV, p_BV > 0)
    uniform_B2 = np.random.default_rng(1).uniform(size=(rows, 2)).astype(np.float32)
    token_B, logprob_B, raw_B = draw(logits_BV, uniform_B2, parameters(rows, **cuts))
    np.testing.assert_allclose(logprob_B, np.log(p_BV[np.arange(rows), token_B]), atol=1e-5)
    p_BV = np.array([reference(logits_V) for logits_V in logits_BV])
    np.testing.assert_allclose(raw_B, np.log(p_BV[np.arange(rows), token_B]), atol=1e-5)


@pytest.mark.parametrize("cuts", [dict(), dict(temperature=1.5, top_k=30, top_p=0.9)], ids=str)
def test_frequencies_equal_the_probabilities(logits_BV, cuts):
    draws, logits_V = 20_000, logits_BV[0]
    key_B2 = jnp.broadcast_to(jnp.array([3, 4], jnp.uint32), (draws, 2))
    uniform_B2 = sampling.uniforms(key_B2, jnp.arange(draws))
    many_BV = np.broadcast_to(logits_V, (draws, V))
    token_B, *_ = draw(many_BV, uniform_B2, parameters(draws, **cuts))
    expected_V = draws * reference(logits_V, **cuts)
    seen_V = np.bincount(np.asarray(token_B), minlength=V)
    assert seen_V[expected_V == 0].sum() == 0
    common_V = expected_V > 5
    rest = (seen_V[~common_V].sum(), expected_V[~common_V].sum())
    seen, expected = np.append(seen_V[common_V], rest[0]), np.append(expected_V[common_V], rest[1])
    chi2 = ((seen - expected) ** 2 / np.maximum(expected, 1)).sum()
    degrees = len(seen) - 1
    assert chi2 < degrees + 4 * np.sqrt(2 * degrees)


def test_greedy_takes_the_first_maximum_and_ignores_truncation(logits_BV):
    logits_BV = logits_BV.copy()
    logits_BV[0, [5, 140, 290]] = 50
    rows = len(logits_BV)
    uniform_B2 = np.full((rows, 2), 0.99, np.float32)
    token_B, logprob_B, raw_B = draw(
        logits_BV, uniform_B2, parameters(rows, temperature=0, top_k=1)
    )
    np.testing.assert_array_equal(raw_B, logprob_B)
    np.testing.assert_array_equal(token_B, logits_BV.argmax(-1))
    assert token_B[0] == 5
    p_BV = np.array([reference(logits_V) for logits_V in logits_BV])
    np.testing.assert_allclose(logprob_B, np.log(p_BV[np.arange(rows), token_B]), atol=1e-5)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_masked_tokens_are_never_drawn(uniform):
    rng = np.random.default_rng(2)
    logits_BV = np.full((64, V), -np.inf, np.float32)
    for logits_V in logits_BV:
        allowed = rng.choice(V, size=rng.integers(1, 6), replace=False)
        logits_V[allowed] = rng.normal(size=allowed.size) * 30
    uniform_B2 = np.full((64, 2), uniform, np.float32)
    token_B, logprob_B, _ = draw(logits_BV, uniform_B2, parameters(64))
    assert np.isfinite(logits_BV[np.arange(64), token_B]).all()
    assert np.isfinite(logprob_B).all()


def test_pick_never_lands_on_a_weight_of_zero():
    rng = np.random.default_rng(3)
    weight_BX = rng.uniform(size=(512, 3000)).astype(np.float32)
    weight_BX[rng.uniform(size=weight_BX.shape) < 0.5] = 0
    weight_BX[:, ::16] = weight_BX[:, -1] = 0
    # Targets just where a rounded cumulative sum may step although the weight is zero.
    total_BX = np.asarray(jnp.cumsum(weight_BX, axis=-1))
    before_B = 16 * rng.integers(1, 187, size=512) - 1
    edge_B = total_BX[np.arange(512), before_B] / total_BX[:, -1]
    for uniform_B in (edge_B, np.zeros(512), np.full(512, 1 - 2**-24)):
        picked_B = np.asarray(sampling._pick(weight_BX, uniform_B.astype(np.float32)))
        assert (weight_BX[np.arange(512), picked_B] > 0).all()


def test_a_row_does_not_depend_on_other_rows(logits_BV):
    rows = len(logits_BV)
    uniform_B2 = np.random.default_rng(4).uniform(size=(rows, 2)).astype(np.float32)
    plain = draw(logits_BV, uniform_B2, parameters(rows))
    # Every other row is replaced by one that truncates, so the other branch runs.
    odd = np.arange(rows) % 2 == 1
    mixed = parameters(
        rows,
        temperature=np.where(odd, 0.3, 1.0),
        top_k=np.where(odd, 3, 0),
        top_p=np.where(odd, 0.5, 1.0),
    )
    other_BV = np.where(odd[:, None], logits_BV[::-1], logits_BV)
    for alone_B, beside_B in zip(plain, draw(other_BV, uniform_B2, mixed), strict=True):
        np.testing.assert_array_equal(np.asarray(alone_B)[~odd], np.asarray(beside_B)[~odd])
    backwards = draw(logits_BV[::-1], uniform_B2[::-1], parameters(rows))
    for alone_B, backwards_B in zip(plain, backwards, strict=True):
        np.testing.assert_array_equal(alone_B, np.asarray(backwards_B)[::-1])


def test_keys_are_fold_in_over_the_address():
    addresses = [(), (5,), (5, 0), (5, 0, 2**32 - 1), (0, 5)]
    address_BA = np.full((len(addresses), 4), 99, np.uint32)
    for row, address in enumerate(addresses):
        address_BA[row, : len(address)] = address
    parts_B = np.array([len(address) for address in addresses], np.int32)
    key_B2 = sampling.request_keys(np.uint32(11), address_BA, parts_B)
    uniform_B2 = sampling.uniforms(key_B2, np.full(len(addresses), 7))
    for row, address in enumerate(addresses):
        key = jax.random.key(11, impl="threefry2x32")
        for part in (*address, 7):
            key = jax.random.fold_in(key, np.uint32(part))
        np.testing.assert_array_equal(uniform_B2[row], jax.random.uniform(key, (2,)) + 2**-24)
    assert len({float(u) for u in uniform_B2[:, 0]}) == len(addresses)
