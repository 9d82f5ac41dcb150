"""The update: accumulation, old log-probs, skipped steps, compilations, and every kind of mesh."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flow_grpo_jax import batching, credit, logprobs, loss, optimizer, update
from models import decoder, sharding

pytestmark = pytest.mark.usefixtures("quick_compilation")
CONFIG = decoder.Config(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)
SCORING = dict(temperature=0.7, chunk=64, execution=decoder.Execution(jnp.float32, "none"))
HOW = SCORING | dict(epochs=1, old_logprobs="sampler")
NUMBERS = loss.Numbers(
    clip_low=0.2, clip_high=0.3, dual_clip=3.0, kl_coef=0.0, sequence_ratio=False, tis_cap=0.0
)
# every part of the program
FULL = dict(
    numbers=dataclasses.replace(NUMBERS, kl_coef=0.05),
    chunk=24,
    execution=decoder.Execution(jnp.float32, "dots"),
)
ADAM = dict(b1=0.9, b2=0.99, weight_decay=0.01, clip_norm=1.0)
ADAM |= dict(warmup_steps=0, moment_dtype="float32")


def make_model(seed=0):
    """Random weights, norms and biases included, drawn on the host: nothing to compile."""
    shapes = jax.eval_shape(lambda: decoder.Decoder(jax.random.key(0), CONFIG))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), shapes)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def ref_model():
    return make_model(seed=1)


@jax.jit
def score(model, batch):
    return logprobs.score(model, batch, **SCORING)[0]


def micro_batches(model, *, rows=8, noise=0.0, seed=0, count=12, **changes):
    """`count` random turns whose sampler log-probs are the model's own, plus noise."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        prompt, response = rng.integers(0, 32, rng.integers(1, 9)), rng.integers(0, 32, 1 + i % 6)
        zeros = (0.0,) * len(response)
        trajectory = i % 4
        samples.append(
            batching.TurnSample(
                tuple(prompt.tolist()), tuple(response.tolist()), zeros, trajectory, trajectory // 2
            )
        )
    options = dict(
        adv_QG=np.array([[1.0, -1.0], [0.5, -0.5]]),
        valid_QG=np.ones((2, 2), bool),
        weigh=credit.weigh_turns,
        layout="padded",
        row_lengths=(16,),
        rows=(rows,),
        response_lengths=(6,),
        constant_length=0,
    )
    mini_batches = changes.pop("mini_batches", 1)
    split = functools.partial(batching.by_questions, mini_batches=mini_batches)
    result = []
    for part in batching.build(samples, split=split, **(options | changes)):
        result.append([])
        for batch in part:
            logp_BA = np.asarray(score(model, batch))
            logp_BA = logp_BA + noise * rng.normal(size=logp_BA.shape).astype(np.float32)
            result[-1].append(batch.replace(old_logp_BA=logp_BA, sampler_logp_BA=logp_BA))
    return result


# A large Adam ε, so that rounding of tiny gradients stays tiny.
OPTIMIZER = optimizer.make(lr=1e-2, eps=1e-3, **ADAM)


def make_update(**changes):
    return update.Update(OPTIMIZER, **(HOW | dict(numbers=NUMBERS) | changes))


@functools.cache
def updater(**changes):
    """One compiled update for each set of options, shared by the tests."""
    return make_update(**changes)


def fresh(model):
    return update.init(model, OPTIMIZER)


def run(model, ref_model, mini_batches, **changes):
    return updater(**changes)(fresh(model), ref_model, mini_batches)


def assert_close(tree, other, *, rtol=1e-4, atol=1e-6):
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    for name, (a, b) in zip(sharding.parameter_names(tree), leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)


def test_the_sums_are_those_of_the_loss_and_the_entropy(model):
    ((batch, *_),) = micro_batches(model)
    how = SCORING | dict(numbers=NUMBERS, mesh=None, on_policy=False)
    add = functools.partial(update.add_gradient, assemble=update.whole_model, **how)
    _, sums = jax.eval_shape(add, model, model, None, batch)
    assert set(sums) == set(update.sum_names()) and len(sums) == 9


METRICS = {
    "loss/total", "loss/policy", "loss/kl", "policy/clip_fraction", "policy/ratio_mean",
    "policy/entropy", "policy/logprob_gap_mean", "policy/logprob_gap_k3",
    "policy/logprob_gap_max", "optim/grad_norm",
    "optim/steps", "optim/skipped", "tokens/trained", "tokens/padding_share", "tokens/sharing",
    "compile/count",
}  # fmt: skip


@pytest.mark.slow
def test_metrics_of_an_on_policy_step(model):
    batches = micro_batches(model)
    state, metrics = run(model, None, batches)  # without KL, no reference model is needed
    assert set(metrics) == METRICS
    assert all(type(x) is float and np.isfinite(x) for x in metrics.values())
    assert metrics["policy/ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["policy/logprob_gap_max"] < 1e-5
    assert metrics["policy/clip_fraction"] == 0
    assert metrics["loss/kl"] == 0 and metrics["loss/total"] == metrics["loss/policy"]
    assert metrics["tokens/trained"] == sum(b.mask_BA.sum() for b in batches[0])
    assert 0 < metrics["policy/entropy"] < np.log(32)
    real = sum((b.until_BT > 0).sum() for b in batches[0])
    assert metrics["tokens/padding_share"] == pytest.approx(1 - real / (2 * 8 * 16))
    assert int(state.step) == 1


@pytest.mark.slow
def test_gap_is_between_the_sampler_and_the_first_parameters(model):
    batches = micro_batches(model, noise=0.3)
    gaps = [np.asarray(score(model, b) - b.sampler_logp_BA)[b.mask_BA] for b in batches[0]]
    gap = np.concatenate(gaps).astype(np.float64)
    expected = {
        "policy/logprob_gap_mean": np.abs(gap).mean(),
        "policy/logprob_gap_max": np.abs(gap).max(),
        "policy/logprob_gap_k3": (np.exp(gap) - 1 - gap).mean(),
    }
    for changes in (dict(), dict(old_logprobs="recompute"), dict(epochs=2)):
        _, metrics = run(model, model, batches, **changes)
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(value, rel=1e-3), name


@pytest.mark.slow
def test_accumulated_step_is_that_of_the_whole_batch(model, ref_model):
    """Two micro-batches through the update; one batch through jax.grad and optax directly."""
    noisy = dict(noise=0.2, weigh=credit.weigh_rollout_tokens)
    ((batch,),) = micro_batches(model, rows=12, **noisy)

    def objective(params):
        logp_BA = logprobs.score(params, batch, **SCORING)[0]
        ref_logp_BA = score(ref_model, batch)
        return loss.policy_loss(logp_BA, ref_logp_BA, batch, numbers=FULL["numbers"])[0]

    value, grads = jax.jit(jax.value_and_grad(objective))(model)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    updates, _ = OPTIMIZER.update(grads, OPTIMIZER.init(model), model)
    expected = jax.tree.map(jnp.add, model, updates)

    small = micro_batches(model, rows=8, **noisy)
    for b in small[0]:  # the same sampler log-probs, turn by turn
        for row in np.flatnonzero(b.mask_BA.any(1)):
            (whole,) = np.flatnonzero((batch.token_BT == b.token_BT[row]).all(1))
            b.old_logp_BA[row] = batch.old_logp_BA[whole]
    state, metrics = run(model, ref_model, small, **FULL)
    assert len(small[0]) == 2
    assert_close(state.params, expected)
    assert metrics["loss/total"] == pytest.approx(float(value), rel=1e-4)
    assert metrics["optim/grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["loss/kl"] > 0.1
    total = metrics["loss/policy"] + 0.05 * metrics["loss/kl"]
    assert metrics["loss/total"] == pytest.approx(total, rel=1e-5)


@pytest.mark.slow
def test_recomputed_old_logprobs_replace_the_samplers(model, ref_model):
    right, wrong = micro_batches(model), micro_batches(model, noise=0.5)
    for epochs in (1, 2):
        expected, _ = run(model, ref_model, right, epochs=epochs)
        state, metrics = run(model, ref_model, wrong, epochs=epochs, old_logprobs="recompute")
        assert_close(state.params, expected.params)
        unlike, _ = run(model, ref_model, wrong, epochs=epochs)
        with pytest.raises(AssertionError):
            assert_close(state.params, unlike.params)
    assert metrics["optim/steps"] == 2


@pytest.mark.slow
def test_mini_batches_step_one_after_the_other(model, ref_model):
    both = micro_batches(model, mini_batches=2)
    assert len(both) == 2
    state, metrics = run(model, ref_model, both)
    assert metrics["optim/steps"] == 2 and int(state.step) == 2
    expected = fresh(model)
    for part in both:
        expected, _ = updater()(expected, ref_model, [part])
    assert_close(state.params, expected.params)


def test_updates_raise_what_was_rewarded(model):
    batches = micro_batches(model)
    state = fresh(model)
    for _ in range(5):
        state, _ = updater()(state, None, batches)
    for batch in batches[0]:
        gain_BA = np.asarray(score(state.params, batch) - score(model, batch))
        gain_B = np.where(batch.mask_BA, gain_BA, 0).sum(-1)
        real_B = batch.mask_BA.any(1)
        assert (np.sign(gain_B) == np.sign(batch.adv_BA[:, 0]))[real_B].mean() > 0.8


@pytest.mark.parametrize("field", ["adv_BA", "weight_BA"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(model, field):
    good = micro_batches(model)
    bad_value = np.full_like(getattr(good[0][0], field), np.nan)
    bad = [[good[0][0].replace(**{field: bad_value}), good[0][1]]]
    state = fresh(model)
    before = jax.device_get(state)
    state, metrics = updater()(state, model, bad)
    assert metrics["optim/skipped"] == 1 and not np.isfinite(metrics["loss/total"])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)
    state, metrics = updater()(state, model, good)
    assert metrics["optim/skipped"] == 0 and int(state.step) == 1


@pytest.mark.slow
def test_one_compilation_for_each_shape(model):
    state, counts = fresh(model), []
    for seed, length in ((0, 16), (1, 16), (2, 24), (3, 16), (4, 24)):
        batches = micro_batches(model, seed=seed, row_lengths=(length,), count=12 + seed)
        state, metrics = updater()(state, None, batches)
        counts.append(metrics["compile/count"])
    assert counts[0] >= 3 and counts == [counts[0]] * 2 + [counts[0] + 1] * 3


def test_parameters_handed_to_the_sampler_survive_the_update(model):
    """Only the optimizer state is donated."""
    state, _ = run(model, None, micro_batches(model))
    assert not any(x.is_deleted() for x in jax.tree.leaves(model))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))


def test_adamw_by_hand():
    """Three steps in float64: clip by global norm, AdamW, decay on everything, warm-up."""
    numbers = dict(lr=0.1, b1=0.9, b2=0.95, eps=1e-3, weight_decay=0.2, clip_norm=1.0)
    adamw = optimizer.make(**numbers, warmup_steps=2, moment_dtype="float32")
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 2)), "scale": rng.normal(size=2)}
    state = update.init(jax.tree.map(jnp.float32, params), adamw)
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v = {k: np.zeros_like(v) for k, v in params.items()}
    for i in range(3):
        grads = {k: rng.normal(size=x.shape) * 10.0 ** (1 - i) for k, x in params.items()}
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        new = update.apply(
            state.params,
            state.opt_state,
            state.step,
            jax.tree.map(jnp.float32, grads),
            jnp.float32(0),
            optimizer=adamw,
        )
        state = update.State(*new[:3])
        assert float(new[3]) == pytest.approx(norm, rel=1e-5)
        lr = 0.1 * min(1, (i + 1) / 2)
        for k, g in grads.items():
            g = g * min(1, 1 / norm)
            m[k] = 0.9 * m[k] + 0.1 * g
            v[k] = 0.95 * v[k] + 0.05 * g**2
            direction = (m[k] / (1 - 0.9 ** (i + 1))) / (
                np.sqrt(v[k] / (1 - 0.95 ** (i + 1))) + 1e-3
            )
            params[k] = params[k] - lr * (direction + 0.2 * params[k])
            np.testing.assert_allclose(state.params[k], params[k], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(old_logprobs="engine"), "sampler, recompute"),
        (dict(numbers=dataclasses.replace(NUMBERS, tis_cap=2.0)), "tis_cap=2.0 .* does nothing"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make_update(**changes)


def test_a_batch_without_sampled_tokens_is_refused(model):
    (batches,) = micro_batches(model)
    empty = [[b.replace(mask_BA=np.zeros_like(b.mask_BA)) for b in batches]]
    with pytest.raises(ValueError, match="No sampled token"):
        run(model, model, empty)


MESHES = ((2, 2, 2), (2, 1, 1), (1, 2, 1), (1, 1, 2), (4, 1, 1), (1, 2, 2), (1, 8, 1))


def sharded_run(model, ref_model, batches, sizes):
    data, fsdp, tensor = sizes
    mesh = sharding.make_mesh(
        data=data, fsdp=fsdp, tensor=tensor, devices=jax.devices()[: data * fsdp * tensor]
    )
    shardings = sharding.parameter_shardings(mesh, model)
    place = lambda tree: jax.tree.map(jax.device_put, tree, shardings)
    state = update.init(place(model), OPTIMIZER, shardings=shardings)
    step = make_update(**FULL, shardings=shardings, batch_sharding=sharding.batch_sharding(mesh))
    return shardings, *two_updates(step, state, place(ref_model), batches)


def two_updates(step, state, ref_model, batches):
    state, _ = step(state, ref_model, batches)
    return step(state, ref_model, batches)


@pytest.fixture(scope="module")
def on_one_device(model, ref_model):
    batches = micro_batches(model, noise=0.1)
    return batches, *two_updates(updater(**FULL), fresh(model), ref_model, batches)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES)
def test_any_mesh_gives_the_update_of_one_device(model, ref_model, on_one_device, sizes):
    batches, expected, expected_metrics = on_one_device
    shardings, state, metrics = sharded_run(model, ref_model, batches, sizes)
    assert_close(state.params, expected.params)
    for name in METRICS - {"compile/count"}:
        assert metrics[name] == pytest.approx(expected_metrics[name], rel=1e-3, abs=1e-5), name
    for wanted, x in zip(jax.tree.leaves(shardings), jax.tree.leaves(state.params), strict=True):
        assert x.sharding.is_equivalent_to(wanted, x.ndim)
    # moments lie where their parameters lie, and nothing was compiled for the second update
    sizes_of = lambda tree: sorted(
        (x.shape, x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree) if x.ndim
    )
    assert sizes_of(state.opt_state) == sorted(sizes_of(state.params) * 2)
    assert metrics["compile/count"] == 3


def test_rounding_at_random_is_right_on_average():
    x = jnp.float32(1.0 + 2.0**-10)  # an eighth of the way to the next bfloat16
    drawn = optimizer.round_at_random(jax.random.key(0), jnp.full(40_000, x))
    assert drawn.dtype == jnp.bfloat16
    assert set(np.unique(np.asarray(drawn, np.float32))) == {1.0, 1.0078125}
    assert float(drawn.astype(jnp.float32).mean()) == pytest.approx(float(x), abs=1e-4)
    exact = jnp.array([0.0, -1.5, 2.0**-100], jnp.float32)
    np.testing.assert_array_equal(optimizer.round_at_random(jax.random.key(1), exact), exact)


def test_bfloat16_moments_follow_float32_ones():
    """Rounded to nearest, the second moment would stay where its first steps left it."""
    numbers = dict(lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=1e9)
    numbers["warmup_steps"] = 0
    states = {}
    for dtype in ("float32", "bfloat16"):
        adamw = optimizer.make(**numbers, moment_dtype=dtype)
        params = {"w": jnp.zeros(512)}
        state = jax.jit(adamw.init)(params)
        step = jax.jit(adamw.update)
        for i in range(400):  # the gradient grows after 100 steps
            grads = {"w": jnp.full(512, 1.0 if i < 100 else 3.0)}
            updates, state = step(grads, state, params)
        states[dtype] = state[1], updates["w"]
    (moments, updates), (expected, expected_updates) = states["bfloat16"], states["float32"]
    assert {x.dtype for x in jax.tree.leaves((moments.mu, moments.nu))} == {jnp.dtype("bfloat16")}
    mean = lambda x: float(x["w"].astype(jnp.float32).mean())
    assert mean(moments.nu) == pytest.approx(mean(expected.nu), rel=0.02)
    assert mean(moments.mu) == pytest.approx(mean(expected.mu), rel=0.01)
    np.testing.assert_allclose(updates.mean(), expected_updates.mean(), rtol=0.01)


def test_unknown_moment_dtype_is_named():
    with pytest.raises(ValueError, match="moment_dtype='int8' is unknown"):
        optimizer.make(lr=1.0, eps=1.0, **(ADAM | dict(moment_dtype="int8")))


def test_only_what_is_trained_gets_gradients_and_moments(model, ref_model):
    """A policy assembled of a trained part and a frozen one, as with adapters."""
    part = {"scale_D": model.final_norm.scale_D[...] + 0.0}

    def assemble(params, frozen):
        policy = jax.tree.map(lambda x: x, frozen)
        policy.final_norm.scale_D[...] = params["scale_D"]
        return policy

    batches = micro_batches(model)
    step = make_update(assemble=assemble)
    state, metrics = step(update.init(part, OPTIMIZER), model, batches)
    whole, _ = run(model, None, batches)
    assert metrics["policy/logprob_gap_max"] < 1e-5
    assert set(state.params) == {"scale_D"}
    assert np.abs(state.params["scale_D"] - part["scale_D"]).max() > 1e-4
    # The same direction as in the whole model, whose gradient was clipped by another norm.
    ours = state.params["scale_D"] - part["scale_D"]
    theirs = whole.params.final_norm.scale_D[...] - part["scale_D"]
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99


@pytest.mark.slow
def test_donated_parameters_are_gone(model):
    step = make_update(donate_params=True)
    params = jax.tree.map(lambda x: x + 0.0, model)
    state, _ = step(fresh(params), None, micro_batches(model))
    assert all(x.is_deleted() for x in jax.tree.leaves(params))
    assert not any(x.is_deleted() for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_float32_updates_ask_for_float32_products(model, dtype):
    step_program = make_update(execution=decoder.Execution(dtype, "dots"))
    ((batch, *_),) = micro_batches(model)
    sums = {name: jnp.zeros(()) for name in update.sum_names()}
    lowered = [
        step_program.accumulate.lower(model, sums, model, model, batch, on_policy=False),
        step_program.rescore.lower(model, model, batch),
    ]
    for program in lowered:
        found = re.findall(r".*stablehlo\.dot_general.*", program.as_text())
        assert len(found) > 8
        assert {"HIGHEST" in line for line in found} == {dtype == jnp.float32}
