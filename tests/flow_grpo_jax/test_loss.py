"""The loss against Eq. 5-7 written as loops over trajectories, turns and tokens in float64."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flow_grpo_jax import batching, loss

NUMBERS = dict(clip_low=0.2, clip_high=0.3, dual_clip=3.0, kl_coef=0.1)
OFF = dict(sequence_ratio=False, tis_cap=0.0)
CONSTANT_LENGTH = 10


@dataclasses.dataclass
class Turn:
    """logp: π_θ; old: π_old; ref: π_ref; sampler: the sampler's. Lists over sampled tokens."""

    logp: list
    old: list
    ref: list
    sampler: list


@dataclasses.dataclass
class Rollout:
    reward: float
    valid: bool
    turns: list


def rollouts_QG(seed=0):
    """Three questions of four rollouts: unequal, equal and partly invalid rewards."""
    rng = np.random.default_rng(seed)

    def turn():
        count = rng.integers(1, 6)
        logp = -rng.uniform(0.1, 3, count)
        near = lambda: (logp + rng.normal(0, 0.4, count)).tolist()
        return Turn(logp.tolist(), near(), near(), near())

    rewards_QG = [[1, 0, 0, 1], [1, 1, 1, 1], [0, 1, 0, 0]]
    valid_QG = [[True] * 4, [True] * 4, [True, True, False, True]]
    return [
        [
            Rollout(reward, valid, [turn() for _ in range(rng.integers(1, 4))])
            for reward, valid in zip(rewards_G, valid_G, strict=True)
        ]
        for rewards_G, valid_G in zip(rewards_QG, valid_QG, strict=True)
    ]


# ---- the reference: no arrays, no masks --------------------------------------------------------


def reference_advantages(rollouts_G, variant):
    values = []
    for rollout in rollouts_G:
        if rollout.valid:
            values += [rollout.reward] * (len(rollout.turns) if variant == "original" else 1)
    if len(values) < 2 or max(values) == min(values):
        return [0.0] * len(rollouts_G)
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) + 1e-6
    return [(r.reward - mean) / (1.0 if variant == "dr_grpo" else std) for r in rollouts_G]


def reference_terms(turn, advantage, variant, tis_cap, numbers):
    """[-(gain - β k3)] of each token of a turn."""
    terms = []
    for j in range(len(turn.logp)):
        ratio = math.exp(turn.logp[j] - turn.old[j])
        if variant == "gspo":
            gaps = [a - b for a, b in zip(turn.logp, turn.old, strict=True)]
            ratio = math.exp(sum(gaps) / len(gaps))
        clipped = min(max(ratio, 1 - numbers["clip_low"]), 1 + numbers["clip_high"])
        gain = min(ratio * advantage, clipped * advantage)
        if advantage < 0 and numbers["dual_clip"]:
            gain = max(gain, numbers["dual_clip"] * advantage)
        if tis_cap:
            gain *= min(math.exp(turn.old[j] - turn.sampler[j]), tis_cap)
        r = turn.ref[j] - turn.logp[j]
        terms.append(-gain + numbers["kl_coef"] * (math.exp(r) - r - 1))
    return terms


def reference_loss(rollouts_QG, variant, micro_batches=None, tis_cap=0.0, **numbers):
    """micro_batches: lists of turn numbers in reading order, for `original` alone."""
    terms_QG = []  # of each question with valid rollouts, of each of these: terms of its turns
    for rollouts_G in rollouts_QG:
        advantages = reference_advantages(rollouts_G, variant)
        of_question = [
            [reference_terms(t, advantage, variant, tis_cap, numbers) for t in rollout.turns]
            for rollout, advantage in zip(rollouts_G, advantages, strict=True)
            if rollout.valid
        ]
        terms_QG += [of_question] if of_question else []
    mean = lambda values: sum(values) / len(values)
    flat = lambda lists: [x for values in lists for x in values]
    over_rollouts = lambda value: mean([mean([value(t) for t in terms_G]) for terms_G in terms_QG])
    if variant in ("flow", "gspo"):
        return over_rollouts(lambda turns: mean([mean(terms) for terms in turns]))
    if variant == "last_turn":
        return over_rollouts(lambda turns: mean(turns[-1]))
    if variant == "per_rollout_mean":
        return over_rollouts(lambda turns: mean(flat(turns)))
    if variant == "token_mean":
        return mean(flat(flat(flat(terms_QG))))
    if variant == "dr_grpo":
        return over_rollouts(lambda turns: sum(flat(turns)) / CONSTANT_LENGTH)
    all_turns = flat(flat(terms_QG))
    return mean([mean(flat([all_turns[i] for i in numbers])) for numbers in micro_batches])


def reference_gradient(rollouts_QG, variant, **options):
    """{turn number: d loss / d logp of each token}, by central differences in float64."""
    gradient, number = {}, 0
    for rollouts_G in rollouts_QG:
        for rollout in rollouts_G:
            if not rollout.valid:
                continue
            for turn in rollout.turns:
                gradient[number] = []
                for j, kept in enumerate(turn.logp):
                    sides = []
                    for h in (1e-6, -1e-6):
                        turn.logp[j] = kept + h
                        sides.append(reference_loss(rollouts_QG, variant, **options))
                    turn.logp[j] = kept
                    gradient[number].append((sides[0] - sides[1]) / 2e-6)
                number += 1
    return gradient


# ---- the same through the library --------------------------------------------------------------


def built(rollouts_QG, variant, *, layout="padded", rows=4, A=5, T=8, junk=np.nan):
    """[(batch, logp_BA, ref_logp_BA, {turn number: its entries})] with `junk` off the mask."""
    parts = loss.VARIANTS[variant]
    questions, rollouts = len(rollouts_QG), len(rollouts_QG[0])
    samples, turns = [], []
    for q, rollouts_G in enumerate(rollouts_QG):
        for g, rollout in enumerate(rollouts_G):
            for turn in rollout.turns:
                prompt = (0,)
                if rollout.valid:
                    turns.append(turn)
                    prompt = (len(turns),)  # so that a turn can be traced back
                sampled = len(turn.logp)
                samples.append(
                    batching.TurnSample(prompt, (1,) * sampled, turn.sampler, q * rollouts + g, q)
                )
    valid_QG = np.array([[r.valid for r in rollouts_G] for rollouts_G in rollouts_QG])
    adv_QG = parts.advantages(
        np.array([[r.reward for r in rollouts_G] for rollouts_G in rollouts_QG]),
        valid_QG,
        batching.turn_counts(samples, questions=questions, rollouts=rollouts),
    )
    (micro_batches,) = batching.build(
        samples,
        adv_QG=adv_QG,
        valid_QG=valid_QG,
        weigh=parts.weigh,
        layout=layout,
        row_lengths=(T,),
        rows=(rows,),
        response_lengths=(A,),
        split=functools.partial(batching.by_questions, mini_batches=1),
        constant_length=CONSTANT_LENGTH,
    )
    result = []
    for batch in micro_batches:
        off = lambda x_BA, value=junk, on=batch.mask_BA: np.where(on, x_BA, value).astype(
            x_BA.dtype
        )
        new_BA, ref_BA, old_BA = (off(np.zeros_like(batch.old_logp_BA)) for _ in range(3))
        entries = {}
        for b in np.flatnonzero(batch.mask_BA.any(1)):
            for number in range(batch.turn_BA[b].max() + 1):
                (at,) = np.nonzero(batch.mask_BA[b] & (batch.turn_BA[b] == number))
                turn_number = int(batch.token_BT[b, batch.index_BA[b, at[0]]]) - 1
                turn = turns[turn_number]
                new_BA[b, at], ref_BA[b, at], old_BA[b, at] = turn.logp, turn.ref, turn.old
                entries[turn_number] = (b, at)
        batch = batch.replace(
            old_logp_BA=old_BA,
            sampler_logp_BA=off(batch.sampler_logp_BA),
            adv_BA=off(batch.adv_BA),
            weight_BA=off(batch.weight_BA),
            turn_BA=off(batch.turn_BA, A - 1),
        )
        result.append((batch, new_BA, ref_BA, entries))
    return result


@functools.partial(jax.jit, static_argnames=("numbers",))
def graded(logp_BA, ref_logp_BA, batch, numbers):
    """((loss, sums), gradient); numbers: loss.Numbers."""
    objective = lambda x: loss.policy_loss(x, ref_logp_BA, batch, numbers=numbers)
    return jax.value_and_grad(objective, has_aux=True)(logp_BA)


def run(micro_batches, variant, **numbers):
    """(loss, {turn number: gradient}, sums), added up over micro-batches."""
    total, gradient, totals = 0.0, {}, {}
    numbers = OFF | numbers | {"sequence_ratio": loss.VARIANTS[variant].sequence_ratio}
    for batch, logp_BA, ref_logp_BA, entries in micro_batches:
        (value, sums), grad_BA = graded(logp_BA, ref_logp_BA, batch, loss.Numbers(**numbers))
        assert np.isfinite(grad_BA).all()
        assert not np.asarray(grad_BA)[~batch.mask_BA].any()
        total += float(value)
        for number, entry in entries.items():
            gradient[number] = np.asarray(grad_BA)[entry]
        for name, x in sums.items():
            totals.setdefault(name, []).append(float(x))
    return total, gradient, totals


PACKED = dict(layout="packed", rows=2, T=16, A=12)
# test_counterfactual.py is about turns that have credit of their own.
OF_TRAJECTORIES = [name for name, variant in loss.VARIANTS.items() if variant.advantages]


@pytest.mark.parametrize("tis_cap", [0.0, 1.2])
@pytest.mark.parametrize("layout", [dict(layout="padded"), PACKED], ids=["padded", "packed"])
@pytest.mark.parametrize("variant", OF_TRAJECTORIES)
def test_value_and_gradient_equal_the_ragged_reference(variant, layout, tis_cap):
    rollouts = rollouts_QG()
    micro_batches = built(rollouts, variant, **layout)
    assert len(micro_batches) > 2
    value, gradient, _ = run(micro_batches, variant, tis_cap=tis_cap, **NUMBERS)
    turn_numbers = [list(entries) for *_, entries in micro_batches]
    options = dict(micro_batches=turn_numbers, tis_cap=tis_cap, **NUMBERS)
    assert value == pytest.approx(reference_loss(rollouts, variant, **options), rel=1e-5)
    expected = reference_gradient(rollouts, variant, **options)
    assert sorted(gradient) == sorted(expected)
    for number, grads in expected.items():
        np.testing.assert_allclose(gradient[number], grads, rtol=1e-4, atol=1e-6)


def test_the_variants_differ():
    """Otherwise the test above would pass with any of them."""
    rollouts = rollouts_QG()
    values = [run(built(rollouts, v), v, **NUMBERS)[0] for v in OF_TRAJECTORIES]
    gaps = [abs(a - b) for i, a in enumerate(values) for b in values[:i]]
    assert min(gaps) > 5e-4  # values agree to 1e-5 of 0.1


@pytest.mark.parametrize("variant", ["flow", "gspo"])  # the two paths through policy_loss
def test_padding_is_inert(variant):
    """Wider in A, T and B, packed, and anything off the mask: same value, same gradient."""
    rollouts = rollouts_QG()
    tight = run(built(rollouts, variant, rows=32), variant, **NUMBERS)
    wider = (dict(A=9), dict(T=33), dict(rows=40), dict(junk=np.inf), dict(junk=7.0))
    for changes in wider + (PACKED, PACKED | dict(junk=np.inf)):
        wide = run(built(rollouts, variant, **(dict(rows=32) | changes)), variant, **NUMBERS)
        assert wide[0] == pytest.approx(tight[0], rel=1e-6)
        for number, grads in tight[1].items():
            np.testing.assert_allclose(wide[1][number], grads, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("variant", OF_TRAJECTORIES)
def test_micro_batch_size_matters_for_the_original_alone(variant):
    rollouts = rollouts_QG()
    values = [
        run(built(rollouts, variant, rows=rows), variant, **NUMBERS)[0] for rows in (1, 4, 32)
    ]
    if variant == "original":
        assert abs(values[0] - values[2]) > 1e-3 and abs(values[1] - values[2]) > 1e-3
    else:
        assert values[:2] == pytest.approx([values[2]] * 2, rel=1e-5)


def test_weights_sum_to_one_where_the_loss_is_a_mean():
    for variant in ("flow", "gspo", "per_rollout_mean", "token_mean", "original"):
        batches = [batch for batch, *_ in built(rollouts_QG(), variant, junk=0.0)]
        total = sum(batch.weight_BA.sum() for batch in batches)
        assert total == pytest.approx(1, rel=1e-6), variant


def test_a_variant_is_chosen_by_name_for_rollouts_that_differ():
    assert loss.choose("gspo", temperature=0.5) is loss.VARIANTS["gspo"]
    with pytest.raises(ValueError, match="loss.variant='ppo' is unknown; valid: flow, original"):
        loss.choose("ppo", temperature=0.5)
    with pytest.raises(ValueError, match="rollout.temperature=0.0: greedy rollouts"):
        loss.choose("flow", temperature=0.0)


def test_turn_mean_by_hand():
    x_BA = np.array([[1, 2, 6, 10, 0, 0], [4, 8, 0, 0, 0, 0]], np.float32)
    mask_BA = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]], bool)
    turn_BA = np.array([[0, 1, 1, 2, 0, 5], [0, 0, 0, 0, 1, 1]], np.int32)
    mean_BA = loss.turn_mean(x_BA, mask_BA, turn_BA)
    assert np.where(mask_BA, mean_BA, 0).tolist() == [[1, 4, 4, 10, 0, 0], [6, 6, 0, 0, 0, 0]]


# ---- by hand: one row, one token ---------------------------------------------------------------


def numbers_with(**changes):
    return loss.Numbers(**(NUMBERS | OFF | changes))


def one_token(advantage, log_ratio, *, log_ref=0.0, sampler=0.0):
    array = lambda x: np.array([[x]], np.float32)
    batch = batching.TurnBatch(
        token_BT=np.ones((1, 2), np.int32),
        until_BT=np.full((1, 2), 2, np.int32),
        index_BA=np.zeros((1, 1), np.int32),
        target_BA=np.ones((1, 1), np.int32),
        mask_BA=np.ones((1, 1), bool),
        turn_BA=np.zeros((1, 1), np.int32),
        old_logp_BA=array(-1.0 - log_ratio),
        sampler_logp_BA=array(-1.0 - sampler),
        adv_BA=array(advantage),
        weight_BA=array(1.0),
    )
    return batch, array(-1.0), array(-1.0 + log_ref)


@pytest.mark.parametrize(
    "advantage, ratio, dual_clip, expected_loss, expected_grad, clipped",
    [
        (2.0, 1.1, 3.0, -2.2, -2.2, 0),  # inside: d loss / d logp = -ρ A
        (2.0, 1.5, 3.0, -2.6, 0.0, 1),  # above 1 + 0.3: bounded, no gradient
        (2.0, 0.5, 3.0, -1.0, -1.0, 0),  # below 1 - 0.2 but min keeps the worse: gradient
        (-2.0, 1.5, 3.0, 3.0, 3.0, 0),  # a bad token made likelier: gradient
        (-2.0, 0.5, 3.0, 1.6, 0.0, 1),  # already made rarer: bounded
        (-2.0, 4.0, 3.0, 6.0, 0.0, 1),  # dual clip: c |A|
        (-2.0, 4.0, 0.0, 8.0, 8.0, 0),  # dual clip off
        (0.0, 4.0, 3.0, 0.0, 0.0, 0),
    ],
)
def test_clipping_by_hand(advantage, ratio, dual_clip, expected_loss, expected_grad, clipped):
    batch, logp_BA, ref_BA = one_token(advantage, math.log(ratio))
    numbers = numbers_with(dual_clip=dual_clip, kl_coef=0.0)
    (value, sums), grad_BA = graded(logp_BA, ref_BA, batch, numbers)
    assert float(value) == pytest.approx(expected_loss, rel=1e-5)
    assert float(grad_BA[0, 0]) == pytest.approx(expected_grad, rel=1e-5)
    assert float(sums["clipped"]) == clipped
    assert float(sums["ratio"]) == pytest.approx(ratio, rel=1e-5)


def test_kl_by_hand():
    """π_ref / π_θ = 2: k3 = 2 - ln 2 - 1, and d k3 / d logp = 1 - 2."""
    batch, logp_BA, ref_BA = one_token(0.0, 0.0, log_ref=math.log(2))
    numbers = numbers_with(kl_coef=0.5)
    (value, sums), grad_BA = graded(logp_BA, ref_BA, batch, numbers)
    assert float(sums["kl"]) == pytest.approx(1 - math.log(2), rel=1e-5)
    assert float(value) == pytest.approx(0.5 * (1 - math.log(2)), rel=1e-5)
    assert float(grad_BA[0, 0]) == pytest.approx(-0.5, rel=1e-5)


@pytest.mark.parametrize("log_ref", [-20.0, -1.0, 0.0, 2.6, 4.999, 5.001, 8.0, 25.0, 120.0])
def test_kl_goes_on_as_its_tangent(log_ref):
    """Exact up to r = 5; from there the slope stays e^5 - 1 and never turns or vanishes."""
    bound = 5.0
    value, slope = math.exp(min(log_ref, bound)) - log_ref - 1, math.expm1(min(log_ref, bound))
    if log_ref > bound:
        value = math.exp(bound) - bound - 1 + slope * (log_ref - bound)
    batch, logp_BA, ref_BA = one_token(0.0, 0.0, log_ref=log_ref)
    (_, sums), grad_BA = graded(logp_BA, ref_BA, batch, numbers_with(kl_coef=0.5))
    assert float(sums["kl"]) == pytest.approx(value, rel=1e-5, abs=1e-6)
    assert float(grad_BA[0, 0]) == pytest.approx(-0.5 * slope, rel=1e-5)


def test_kl_inside_its_bound_is_the_bare_formula_bit_for_bit():
    log_ratio = np.linspace(-30, 5, 10_001, dtype=np.float32)
    graded = lambda f: jax.jit(jax.vmap(jax.value_and_grad(f)))(log_ratio)
    bare = graded(lambda r: jnp.exp(jnp.minimum(r, 20.0)) - r - 1.0)
    for found, expected in zip(graded(loss.k3), bare, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_one_lost_token_does_not_own_the_step():
    """Its pull grows with the distance, never turns, and stays below 148 times that of others."""
    pulls = []
    for log_ref in (1.0, 3.0, 5.0, 7.0, 12.0, 19.9, 20.1, 60.0):
        batch, logp_BA, ref_BA = one_token(0.0, 0.0, log_ref=log_ref)
        _, grad_BA = graded(logp_BA, ref_BA, batch, numbers_with(kl_coef=1.0))
        pulls.append(-float(grad_BA[0, 0]))
    assert pulls == sorted(pulls) and pulls[0] > 1 and pulls[-1] < 148


def test_kl_off_does_not_read_the_reference():
    batch, logp_BA, _ = one_token(1.0, 0.0)
    value, _ = loss.policy_loss(logp_BA, None, batch, numbers=numbers_with(kl_coef=0.0))
    assert float(value) == -1


@pytest.mark.parametrize("log_ratio", [-300.0, 300.0])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_extreme_ratios_give_finite_gradients(advantage, log_ratio):
    batch, logp_BA, ref_BA = one_token(advantage, log_ratio, log_ref=log_ratio, sampler=log_ratio)
    numbers = numbers_with(tis_cap=2.0)
    (value, _), grad_BA = graded(logp_BA, ref_BA, batch, numbers)
    assert np.isfinite(value) and np.isfinite(grad_BA).all()


def test_truncated_importance_weight_by_hand():
    """π_old / π_sampler = 1.5 counts as it is, 4 as the cap 2; no gradient through it."""
    for weight, expected in ((1.5, 1.5), (4.0, 2.0)):
        batch, logp_BA, ref_BA = one_token(1.0, 0.0, sampler=math.log(weight))
        numbers = numbers_with(tis_cap=2.0, kl_coef=0.0)
        (value, _), grad_BA = graded(logp_BA, ref_BA, batch, numbers)
        assert float(value) == pytest.approx(-expected, rel=1e-5)
        assert float(grad_BA[0, 0]) == pytest.approx(-expected, rel=1e-5)


def test_sums_count_tokens_and_gap():
    totals = run(built(rollouts_QG(), "flow"), "flow", **NUMBERS)[2]
    turns = [t for rollouts in rollouts_QG() for r in rollouts if r.valid for t in r.turns]
    gaps = [a - b for t in turns for a, b in zip(t.logp, t.sampler, strict=True)]
    assert sum(totals["tokens"]) == len(gaps)
    assert sum(totals["gap"]) == pytest.approx(sum(map(abs, gaps)), rel=1e-5)
    assert max(totals["gap_max"]) == pytest.approx(max(map(abs, gaps)), rel=1e-5)
    k3 = sum(math.exp(gap) - 1 - gap for gap in gaps)
    assert sum(totals["gap_k3"]) == pytest.approx(k3, rel=1e-5)


def test_k3_is_the_divergence_of_the_sampler_from_the_trainer():
    """Over all tokens, each as often as the sampler draws it, k3 is KL(sampler || trainer)."""
    sampler, trainer = np.array([0.5, 0.25, 0.25]), np.array([0.2, 0.5, 0.3])
    divergence = (sampler * np.log(sampler / trainer)).sum()
    other_way = (trainer * np.log(trainer / sampler)).sum()
    found = 0.0
    for share, gap in zip(sampler, np.log(trainer / sampler), strict=True):
        batch, logp_BA, _ = one_token(1.0, 0.0, sampler=gap)
        sums = loss.policy_loss(logp_BA, None, batch, numbers=numbers_with(kl_coef=0.0))[1]
        found += share * float(sums["gap_k3"])
    assert found == pytest.approx(divergence, rel=1e-5)
    assert abs(divergence - other_way) > 0.01


@pytest.mark.parametrize("gap", [0.3, -0.3, 3e-2, -1e-3, 1e-4])
def test_small_gaps_are_not_lost_to_rounding(gap):
    batch, logp_BA, _ = one_token(1.0, 0.0, sampler=gap)
    sums = loss.policy_loss(logp_BA, None, batch, numbers=numbers_with(kl_coef=0.0))[1]
    exact = float(logp_BA[0, 0]) - float(batch.sampler_logp_BA[0, 0])
    assert float(sums["gap"]) == pytest.approx(abs(exact), rel=1e-6)
    assert float(sums["gap_k3"]) == pytest.approx(math.expm1(exact) - exact, rel=1e-2)
