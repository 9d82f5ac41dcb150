"""Every attention kernel against one definition in float64 NumPy, values and gradients.

Dimensions:
  B rows    T tokens    N query heads    K key/value heads    H head size
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder, sharding
from models.attention import blockwise, flash, kernels, masks, pallas, selftest, splash, triton

interpreted = lambda kernel: functools.partial(kernel, interpret=True)


class InPlainJax:
    """What cuDNN computes for causal rows, in JAX."""

    def forward(q_BTNH, k_BTKH, v_BTKH):
        B, T, N, H = q_BTNH.shape
        k_BTNH, v_BTNH = (jnp.repeat(x, N // x.shape[2], axis=2) for x in (k_BTKH, v_BTKH))
        score_BNTT = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BTNH).astype(np.float32) * H**-0.5
        score_BNTT = jnp.where(np.tri(T, dtype=bool), score_BNTT, -np.inf)
        o_BTNH = jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(score_BNTT), v_BTNH)
        return o_BTNH.astype(q_BTNH.dtype), jax.nn.logsumexp(score_BNTT, axis=-1)

    def backward(q_BTNH, k_BTKH, v_BTKH, o_BTNH, lse_BNT, do_BTNH):
        outputs = lambda *qkv: InPlainJax.forward(*qkv)[0]
        return jax.vjp(outputs, q_BTNH, k_BTKH, v_BTKH)[1](do_BTNH)


class Interpreted:
    """The Triton kernels, walked through step by step."""

    forward, backward = interpreted(triton.forward), interpreted(triton.backward)


FLASH = kernels.whole_rows(flash.by_masks(InPlainJax, Interpreted), block=128, padding=True)
KERNELS = {  # Pallas kernels need blocks of 128 and are walked through step by step here
    "reference": kernels.make("reference"),
    "blockwise": kernels.whole_rows(blockwise.attend, block=16),
    "pallas": kernels.whole_rows(interpreted(pallas.attend), block=128),
    "splash": kernels.whole_rows(interpreted(splash.attend), block=128),
    "flash": FLASH,
}
BY_128 = ("pallas", "splash", "flash")
EACH = ["reference", "blockwise", *(pytest.param(name, marks=pytest.mark.slow) for name in BY_128)]


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def lengths(rng, total, *, most):
    """Random positive lengths that add up to `total`."""
    result = []
    while sum(result) < total:
        result.append(int(min(rng.integers(1, most + 1), total - sum(result))))
    return result


def packed(rng, tokens):
    """Segments one after another; every fourth is padding."""
    until_T = np.zeros(tokens, np.int32)
    end = 0
    for length in lengths(rng, tokens, most=tokens // 3):
        start, end = end, end + length
        until_T[start:end] = end if rng.integers(4) else 0
    return until_T


def tree(rng, tokens):
    """Prefix trees in depth-first order, with padding here and there."""
    until_T = np.zeros(tokens, np.int32)

    def node(start, end):
        own = start + int(rng.integers(1, max((end - start) // 2, 1) + 1))
        until_T[start:own] = end
        child = own
        for length in lengths(rng, end - own, most=max((end - own) * 3 // 4, 1)):
            node(child, child + length)
            child += length

    root = 0
    for length in lengths(rng, tokens, most=tokens):
        node(root, root + length)
        root += length
    return np.where(rng.integers(12, size=tokens) == 0, 0, until_T)


def layouts(tokens):
    """Rows of each kind of visibility, by name."""
    rng = np.random.default_rng(tokens)
    index_T = np.arange(tokens)
    third = tokens // 3
    return {
        "whole row": np.full(tokens, tokens),
        "right padding": np.where(index_T < 2 * third, 2 * third, 0),
        "left padding": np.where(index_T < third, 0, tokens),
        "packed": packed(rng, tokens),
        "tree": tree(rng, tokens),
        "only padding": np.zeros(tokens),
    }


def inputs(rows, tokens, heads, kv_heads, size, *, seed=0, dtype=np.float32):
    """Loud random q, k, v and the gradient of o: scores have a standard deviation of 3."""
    rng = np.random.default_rng(seed)
    shapes = [(rows, tokens, n, size) for n in (heads, kv_heads, kv_heads, heads)]
    return [jnp.asarray(3**0.5 * rng.normal(size=shape), dtype) for shape in shapes]


def definition(q_BTNH, k_BTKH, v_BTKH, do_BTNH, until_BT):
    """(o, dq, dk, dv) in float64, head by head and row by row; 0 at padding."""
    q_BTNH, k_BTKH, v_BTKH, do_BTNH = (
        np.array(x, np.float64) for x in (q_BTNH, k_BTKH, v_BTKH, do_BTNH)
    )
    B, T, N, H = q_BTNH.shape
    R = N // k_BTKH.shape[2]
    o, dq, dk, dv = (np.zeros_like(x) for x in (q_BTNH, q_BTNH, k_BTKH, v_BTKH))
    i, j = np.arange(T)[:, None], np.arange(T)[None, :]
    for b, n in itertools.product(range(B), range(N)):
        real = np.flatnonzero(until_BT[b] > np.arange(T))
        if not real.size:
            continue
        sees = ((j <= i) & (i < until_BT[b][j]))[np.ix_(real, real)]
        q, do = q_BTNH[b, real, n], do_BTNH[b, real, n]
        k, v = k_BTKH[b, real, n // R], v_BTKH[b, real, n // R]
        score = np.where(sees, q @ k.T / np.sqrt(H), -np.inf)
        weight = np.exp(score - score.max(axis=1, keepdims=True))
        weight /= weight.sum(axis=1, keepdims=True)
        dweight = do @ v.T
        dscore = weight * (dweight - (weight * dweight).sum(axis=1, keepdims=True)) / np.sqrt(H)
        o[b, real, n], dq[b, real, n] = weight @ v, dscore @ k
        dk[b, real, n // R] += dscore.T @ q
        dv[b, real, n // R] += weight.T @ do
    return o, dq, dk, dv


@functools.cache
def compiled(attend):
    """(q, k, v, do, until) -> (o, dq, dk, dv) of an attention function."""

    def run(q_BTNH, k_BTKH, v_BTKH, do_BTNH, until_BT):
        attend_rows = lambda *qkv: attend(*qkv, until_BT)
        o_BTNH, backward = jax.vjp(attend_rows, q_BTNH, k_BTKH, v_BTKH)
        return o_BTNH, *backward(do_BTNH)

    return jax.jit(run)


def gaps(ours, theirs):
    """Largest difference of o, dq, dk and dv in each row, as a share of the largest value."""
    return {
        name: np.abs(np.float64(a) - b).max(axis=(1, 2, 3)) / max(np.abs(b).max(), 1e-9)
        for name, a, b in zip(("o", "dq", "dk", "dv"), ours, theirs, strict=True)
    }


def assert_close(ours, theirs, tolerance, names=None):
    for what, gap_B in gaps(ours, theirs).items():
        bad = [
            (names[b] if names else b, gap) for b, gap in enumerate(gap_B) if not gap < tolerance
        ]
        assert not bad, f"{what} is off in {bad}"


def shape(kernel):
    """(tokens, heads, kv_heads, head size): rows of three blocks, the last one not full."""
    return (300, 4, 2, 64) if kernel in BY_128 else (77, 4, 2, 16)


@pytest.mark.parametrize("kernel", EACH)
def test_equals_the_definition(kernel):
    tokens, *sizes = shape(kernel)
    rows = layouts(tokens)
    until_BT = np.stack(list(rows.values())).astype(np.int32)
    arrays = inputs(len(rows), tokens, *sizes)
    ours = compiled(KERNELS[kernel])(*arrays, until_BT)
    assert all(x.dtype == np.float32 for x in ours)
    assert_close(ours, definition(*arrays, until_BT), 2e-5, list(rows))


@pytest.mark.parametrize("heads", [(2, 2), (7, 1)], ids="{0[0]} over {0[1]}".format)
@pytest.mark.parametrize("kernel", EACH)
def test_equals_the_definition_with_any_group_size(kernel, heads):
    tokens, *_, size = shape(kernel)
    until_BT = np.stack([layouts(tokens)["tree"]]).astype(np.int32)
    arrays = inputs(1, tokens, *heads, size)
    ours = compiled(KERNELS[kernel])(*arrays, until_BT)
    assert_close(ours, definition(*arrays, until_BT), 2e-5)


@pytest.mark.parametrize("kernel", EACH)
def test_equals_the_definition_on_random_rows(kernel):
    tokens, *sizes = shape(kernel)
    arrays = inputs(6, tokens, *sizes)
    for seed in range(2 if kernel in BY_128 else 8):
        rng = np.random.default_rng(seed)
        until_BT = np.stack([draw(rng, tokens) for draw in (tree, packed) * 3])
        ours = compiled(KERNELS[kernel])(*arrays, until_BT)
        assert_close(ours, definition(*arrays, until_BT), 2e-5)


@pytest.mark.parametrize("kernel", EACH)
def test_padding_can_hold_anything(kernel):
    tokens, *sizes = shape(kernel)
    until_BT = np.stack(list(layouts(tokens).values())).astype(np.int32)
    padding = (until_BT <= np.arange(tokens))[:, :, None, None]
    clean = [jnp.where(padding, 0, x) for x in inputs(len(until_BT), tokens, *sizes)]
    expected = compiled(KERNELS[kernel])(*clean, until_BT)
    for garbage in (np.nan, np.inf, 1e30):
        dirty = [jnp.where(padding, garbage, x) for x in clean]
        for ours, theirs in zip(compiled(KERNELS[kernel])(*dirty, until_BT), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert not np.where(padding, ours, 0).any()


@pytest.mark.parametrize("kernel", EACH)
def test_bfloat16_rounds_and_no_more(kernel):
    tokens, *sizes = shape(kernel)
    until_BT = np.stack([layouts(tokens)["tree"]]).astype(np.int32)
    arrays = inputs(1, tokens, *sizes, dtype=jnp.bfloat16)
    ours = compiled(KERNELS[kernel])(*arrays, until_BT)
    assert all(x.dtype == jnp.bfloat16 for x in ours)
    assert_close(ours, definition(*arrays, until_BT), 2e-2)


@pytest.mark.parametrize("kernel", EACH[1:])
def test_blocks_that_do_not_see_each_other_are_never_touched(kernel):
    """A masked product with nan is nan: only skipping keeps segments of whole blocks apart."""
    block, size = (128, 64) if kernel in BY_128 else (16, 8)
    raw = {
        "blockwise": blockwise.attend,
        "pallas": interpreted(pallas.attend),
        "splash": interpreted(splash.attend),
        "flash": flash.by_masks(InPlainJax, Interpreted),
    }[kernel]
    until_BT = np.repeat(block * np.array([[1, 3, 3]], np.int32), block, axis=1)
    q, k, v, do = inputs(1, 3 * block, 2, 1, size)
    k, v = (x.at[:, :block].set(np.nan) for x in (k, v))
    o, dq, dk, dv = compiled(functools.partial(raw, block=block))(q, k, v, do, until_BT)
    for x in (o, dq, dk, dv):
        assert np.isfinite(x[:, block:]).all()
    assert np.isnan(o[:, :block]).all()


visible_pairs = jax.jit(blockwise.visible_pairs, static_argnames=("block", "by_key"))


def pairs(until_T, block, **options):
    *indices, count = visible_pairs(jnp.asarray([until_T]), block=block, **options)
    rows, queries, keys = (x[:count].tolist() for x in indices)
    assert set(rows) == {0}
    return list(zip(queries, keys, strict=True))


def test_visible_pairs_are_a_picture():
    #         a prompt, two answers to it, another prompt
    until_T = [6, 6, 4, 4, 6, 6, 8, 8]
    assert pairs(until_T, 2) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 2), (3, 3)]
    assert pairs(until_T, 2, by_key=True) == [(0, 0), (1, 0), (2, 0), (1, 1), (2, 2), (3, 3)]
    assert pairs(until_T, 4) == [(0, 0), (1, 0), (1, 1)]


@pytest.mark.slow
def test_visible_pairs_miss_nothing_and_little_more():
    block, tokens = 4, 48
    for seed in range(50):
        until_T = tree(np.random.default_rng(seed), tokens)
        until_T = np.maximum(until_T, np.arange(1, tokens + 1))
        seen_TT = np.asarray(jax.jit(masks.visible)(until_T[None])[0])
        blocks = seen_TT.reshape(tokens // block, block, -1, block).any(axis=(1, 3))
        found = pairs(until_T, block)
        assert found == sorted(found)
        assert found == [tuple(pair) for pair in np.argwhere(blocks).tolist()]
        assert sorted(pairs(until_T, block, by_key=True)) == found


def test_visibility_is_a_picture():
    segment_BT = jnp.array([[0, 0, 1, 1, 1, 2, 2, 0]])
    until_BT = masks.until_of_segments(segment_BT)
    assert until_BT.tolist() == [[0, 0, 5, 5, 5, 7, 7, 0]]
    assert masks.positions(until_BT).tolist() == [[0, 0, 0, 1, 2, 0, 1, 0]]
    assert masks.visible(until_BT)[0].astype(int).tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_visibility_of_a_tree_is_a_picture():
    #         prompt  1st answer  2nd answer, its two ends
    until_BT = jnp.array([[8, 8, 4, 4, 8, 6, 8, 8]])
    assert masks.positions(until_BT).tolist() == [[0, 1, 2, 3, 2, 3, 3, 4]]
    assert masks.visible(until_BT)[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0, 1, 0],
        [1, 1, 0, 0, 1, 0, 1, 1],
    ]


def test_positions_count_what_is_seen():
    for seed in range(20):
        until_BT = jnp.asarray([tree(np.random.default_rng(seed), 60)])
        expected_BT = np.asarray(jax.jit(masks.visible)(until_BT)).sum(axis=-1) - 1
        real_BT = np.asarray(until_BT) > np.arange(60)
        positions_BT = np.asarray(jax.jit(masks.positions)(until_BT))
        np.testing.assert_array_equal(positions_BT[real_BT], expected_BT[real_BT])
        assert (positions_BT >= 0).all()


@pytest.mark.slow
def test_memory_of_blockwise_grows_with_the_row_and_not_its_square():
    def temporaries(attend, tokens):
        arrays = inputs(1, tokens, 2, 1, 16)
        loss = lambda *qkvo: jnp.vdot(attend(*qkvo[:3], jnp.full((1, tokens), tokens)), qkvo[3])
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    blockwise, reference = kernels.make("blockwise"), kernels.make("reference")
    assert temporaries(blockwise, 4096) < 4.5 * temporaries(blockwise, 1024)
    assert temporaries(blockwise, 4096) < temporaries(reference, 4096) / 16
    assert temporaries(reference, 4096) > 10 * temporaries(reference, 1024)


def primitives(jaxpr, names):
    """How often a traced function calls the primitives of these names, however deep inside."""
    inner = itertools.chain.from_iterable(
        jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"))
        for eqn in jaxpr.eqns
    )
    inner = [getattr(x, "jaxpr", x) for x in inner]
    own = sum(eqn.primitive.name in names for eqn in jaxpr.eqns)
    return own + sum(primitives(x, names) for x in inner if hasattr(x, "eqns"))


@pytest.mark.parametrize("mesh", [None, dict(data=2, fsdp=2, tensor=2)], ids=["alone", "mesh"])
def test_remat_policy_spares_the_forward_loop(mesh):
    """For kernels of Pallas see test_attention_tpu.py: there the compiler drops the call."""
    attend = kernels.make("blockwise", mesh=mesh and sharding.make_mesh(**mesh))
    *arrays, _ = inputs(4, 128, 4, 2, 64)

    def loops(policy):
        layer = lambda q, k, v: attend(2 * q, k, v, jnp.full((4, 128), 128))
        loss = lambda *qkv: jax.checkpoint(layer, policy=policy)(*qkv).sum()
        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*arrays).jaxpr
        return primitives(jaxpr, ["while"])

    assert loops(decoder.REMAT["attention"]) == 2
    assert loops(jax.checkpoint_policies.save_only_these_names(masks.SAVED)) == 2
    assert loops(jax.checkpoint_policies.nothing_saveable) == 3


@pytest.mark.parametrize(("remat", "runs"), [("attention", 2), ("dots", 2), ("full", 3)])
def test_remat_policy_spares_the_forward_pass_of_flash(remat, runs):
    *arrays, _ = inputs(1, 128, 4, 2, 64)
    layer = lambda q, k, v: FLASH(2 * q, k, v, jnp.full((1, 128), 128))
    loss = lambda *qkv: jax.checkpoint(layer, policy=decoder.REMAT[remat])(*qkv).sum()
    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*arrays).jaxpr
    assert primitives(jaxpr, ["cond"]) == runs


@pytest.mark.parametrize(
    ("sizes", "heads"),
    [
        (dict(data=2, fsdp=2, tensor=2), (4, 2)),
        pytest.param(dict(data=8), (4, 2), marks=pytest.mark.slow),
        # Two devices share a key/value head, evenly and not.
        pytest.param(dict(data=1, fsdp=2, tensor=4), (8, 2), marks=pytest.mark.slow),
        pytest.param(dict(data=1, fsdp=2, tensor=4), (12, 6), marks=pytest.mark.slow),
    ],
)
def test_a_mesh_changes_nothing(sizes, heads):
    mesh = sharding.make_mesh(**sizes)
    tokens = 150
    rows = [layouts(tokens)[name] for name in ("packed", "tree", "left padding", "only padding")]
    until_BT = np.stack(rows * 2).astype(np.int32)
    arrays = inputs(8, tokens, *heads, 8)
    alone = compiled(kernels.make("blockwise"))(*arrays, until_BT)
    split = compiled(kernels.make("auto", mesh=mesh))(*arrays, until_BT)
    assert_close(split, [np.asarray(x) for x in alone], 1e-6)


def test_a_mesh_that_does_not_fit_names_what_does():
    attend = kernels.make("blockwise", mesh=sharding.make_mesh(data=4, fsdp=1, tensor=2))
    with pytest.raises(ValueError, match=r"6 rows .* data \* fsdp = 4 devices; .* e.g. 8"):
        attend(*inputs(6, 8, 4, 2, 8)[:3], jnp.full((6, 8), 8))
    with pytest.raises(ValueError, match="3 query and 3 key/value heads .* valid: 1, 3"):
        attend(*inputs(4, 8, 3, 3, 8)[:3], jnp.full((4, 8), 8))


@pytest.mark.parametrize(
    ("platform", "shape", "dtype", "expected"),
    [
        ("tpu", (8, 1024, 14, 64), jnp.bfloat16, "splash"),
        ("tpu", (1, 4096, 28, 128), jnp.bfloat16, "splash"),
        ("tpu", (1, 4224, 28, 128), jnp.bfloat16, "pallas"),
        ("tpu", (1, 20480, 28, 128), jnp.float32, "pallas"),
        ("gpu", (1, 20480, 28, 128), jnp.bfloat16, "flash"),
        ("gpu", (8, 4096, 14, 64), jnp.float16, "flash"),
        ("gpu", (8, 4096, 14, 32), jnp.float16, "cudnn"),
        ("gpu", (4, 20480, 28, 96), jnp.bfloat16, "blockwise"),
        ("gpu", (8, 4096, 14, 64), jnp.float32, "blockwise"),
        ("gpu", (8, 4096, 14, 20), jnp.bfloat16, "blockwise"),
        ("cpu", (8, 128, 4, 32), jnp.float32, "blockwise"),
        ("cpu", (8, 127, 4, 32), jnp.float32, "reference"),
        ("cpu", (1, 20480, 28, 128), jnp.bfloat16, "blockwise"),
    ],
)
def test_auto_chooses_by_platform_shape_and_dtype(platform, shape, dtype, expected):
    assert kernels.candidates(platform, jax.ShapeDtypeStruct(shape, dtype))[0] == expected


def test_auto_counts_the_rows_of_one_device():
    queries = jax.ShapeDtypeStruct((8, 20480, 28, 128), jnp.bfloat16)
    mesh = sharding.make_mesh(data=2, fsdp=4)
    assert kernels.candidates("gpu", queries) == ("flash", "blockwise")
    assert kernels.candidates("gpu", queries, mesh) == ("flash", "cudnn", "blockwise")


def test_unknown_names_and_wrong_platforms_are_refused():
    valid = "auto, reference, blockwise, flash, cudnn, splash, pallas"
    with pytest.raises(ValueError, match=f"attention='fast' is unknown; valid: {valid}"):
        kernels.make("fast")
    with pytest.raises(ValueError, match="attention='splash' runs on tpu, but the devices are cpu"):
        kernels.make("splash")
    with pytest.raises(ValueError, match="attention='cudnn' runs on gpu, but the devices are cpu"):
        kernels.make("cudnn", mesh=sharding.make_mesh(data=8))


def test_the_same_call_gives_the_same_function():
    """So that it can be a static argument of compiled functions."""
    mesh = sharding.make_mesh(data=8)
    assert kernels.make("auto", mesh=mesh) is kernels.make("auto", mesh=mesh)


# ---- the kernels' self-test -------------------------------------------------------------


@pytest.fixture
def wrong(monkeypatch):
    """Makes "splash" and "pallas" run here; returns what is done to their results, by name."""
    done = {}

    def pretend(name):
        def kernel(*inputs, block):
            return done.get(name, lambda o: o)(kernels._reference(*inputs, block=block))

        return kernel

    def kernel_of(name, platform, tokens):
        return (
            (pretend(name), 1) if name in ("splash", "pallas") else actual(name, platform, tokens)
        )

    actual = kernels._kernel
    monkeypatch.setattr(kernels, "_kernel", kernel_of)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    for cached in (kernels.make, kernels.failure):
        cached.cache_clear()
    yield done
    for cached in (kernels.make, kernels.failure):
        cached.cache_clear()


def refuse(o_BTNH):
    raise NotImplementedError("Mosaic says no.\nIn many lines.")


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        (lambda o: o.at[0, 5].multiply(1.1), "o of whole rows are off by"),
        (lambda o: jax.lax.stop_gradient(o), "of whole rows are off by 9."),
        (lambda o: o * jnp.where(jnp.arange(o.shape[1]) == 200, jnp.nan, 1)[:, None, None], "nan"),
        (refuse, "NotImplementedError: Mosaic says no."),
    ],
    ids=["value", "gradient", "nan", "raises"],
)
def test_a_kernel_that_fails_its_self_test_is_not_used(wrong, caplog, mistake, reason):
    *arrays, _ = inputs(1, 140, 4, 2, 16)
    until_BT = jnp.full((1, 140), 140)
    wanted = masks.attend_reference(*arrays, masks.visible(until_BT))
    wrong["splash"] = mistake
    attend = jax.jit(kernels.make("auto"))
    for _ in range(2):
        np.testing.assert_allclose(attend(*arrays, until_BT), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="attention='splash' fails on this device: .* Use auto."):
        kernels.make("splash")(*arrays, until_BT)
    assert reason in caplog.text
    assert [r.levelname for r in caplog.records] == ["WARNING"]  # once


@pytest.mark.slow
def test_pallas_kernels_prove_themselves_inside_a_trace():
    """Where a kernel is chosen, JAX traces the model; the self-test must not be part of that."""
    reasons = []

    def model(x):
        reasons.append(selftest.failure(FLASH, jnp.dtype(jnp.bfloat16), 2, 64))
        return x + 1

    assert jax.jit(model)(1) == 2
    assert reasons == [""]


def test_flash_knows_rows_that_need_no_mask():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for draw in (tree, packed):
            until_T = draw(rng, 20)
            real_T = until_T > np.arange(20)
            until_T = np.where(real_T, until_T, 0)
            seen_TT = np.asarray(masks.visible(until_T[None])[0])[real_T]
            expected = (seen_TT == np.tri(20, dtype=bool)[real_T]).all()
            assert flash.causal(jnp.asarray(until_T[None])) == expected
    whole = jnp.asarray([[5, 5, 5, 5, 5], [3, 3, 3, 0, 0], [0, 0, 0, 0, 0]])
    assert flash.causal(whole)
    for other in ([2, 2, 3, 0, 0], [0, 5, 5, 5, 5], [5, 5, 4, 4, 5]):
        assert not flash.causal(whole.at[1].set(jnp.asarray(other)))


@pytest.mark.parametrize("by_key", [False, True])
def test_plan_of_triton_lists_each_pair_once(by_key):
    tile = triton.Tile(queries=4, keys=8, warps=1, stages=1)
    for seed in range(20):
        until_T = np.maximum(tree(np.random.default_rng(seed), 48), np.arange(1, 49))
        order, count = triton.plan(jnp.asarray(until_T[None]), tile, by_key=by_key)
        seen = np.asarray(masks.visible(until_T[None])[0]).reshape(12, 4, 6, 8).swapaxes(1, 2)
        some, whole = seen.any((2, 3)), seen.all((2, 3))
        if by_key:
            some, whole = some.T, whole.T
        for c, (unmasked, total) in enumerate(np.asarray(count[0])):
            listed = np.asarray(order[0, c, :total]).tolist()
            assert set(listed[:unmasked]) == set(np.flatnonzero(whole[c]))
            assert set(np.flatnonzero(some[c])) <= set(listed)
            assert len(set(listed)) == total


CUDNN = kernels.whole_rows(kernels._cudnn, block=2)


def test_cudnn_refuses_float32():
    with pytest.raises(ValueError, match="'cudnn' computes in bfloat16 or float16, not in float32"):
        CUDNN(*inputs(1, 8, 2, 1, 8)[:3], jnp.full((1, 8), 8))


def test_cudnn_is_handed_the_right_problem(monkeypatch):
    """The same call, answered by JAX's plain implementation."""
    plain = jax.nn.dot_product_attention
    asked = []

    def answer(*arrays, implementation, **options):
        asked.append(implementation)
        return plain(*arrays, **options, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", answer)
    rows = layouts(77)
    until_BT = np.stack(list(rows.values())).astype(np.int32)
    arrays = inputs(len(rows), 77, 4, 2, 16, dtype=jnp.bfloat16)
    ours = compiled(CUDNN)(*arrays, until_BT)
    assert set(asked) == {"cudnn"}
    assert_close(ours, definition(*arrays, until_BT), 2e-2, list(rows))


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Lets JAX lower cuDNN calls where there is no GPU to ask what it can do."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)


def test_cudnn_lowers_to_its_flash_attention(pretended_gpu):
    *arrays, do_BTNH = inputs(2, 63, 6, 2, 64, dtype=jnp.bfloat16)  # odd: cuDNN wants even lengths
    loss = lambda *qkv: jnp.vdot(CUDNN(*qkv, jnp.full((2, 63), 63)), do_BTNH)
    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*arrays)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "custom_call @__cudnn" in line]
    assert len(calls) == 2
    for call, name in zip(calls, ("Softmax(", "SoftmaxBackward("), strict=True):
        assert f"__cudnn$fmhaScaleBias{name}" in call
        assert "CAUSAL" in call
        assert "tensor<2x1x64x64xbf16>" in call  # the mask: one for all heads
        assert "tensor<2x64x2x64xbf16>" in call  # keys and values: not repeated


def test_remat_policy_spares_the_cudnn_call(pretended_gpu):
    *arrays, _ = inputs(2, 64, 4, 2, 64, dtype=jnp.bfloat16)

    def runs(policy):
        layer = lambda q, k, v: CUDNN(2 * q, k, v, jnp.full((2, 64), 64))
        loss = lambda *qkv: jax.checkpoint(layer, policy=policy)(*qkv).sum()
        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*arrays).jaxpr
        return primitives(jaxpr, ["dot_product_attention_fwd_wrapper"])

    assert runs(decoder.REMAT["attention"]) == 1
    assert runs(jax.checkpoint_policies.nothing_saveable) == 2
