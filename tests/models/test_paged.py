"""The GPU's kernels that read pages in place, walked through on CPU; and layouts that must pass
their self-test before they are used.

Dimensions:
  P sequences    T queries of each    M pages of a page table    G pages    Z tokens of a page
  S keys    K key/value heads    R query heads of each    N = K R    H head size
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder, sharding
from models.attention import paged
from models.engine import selftest, shapes
from models.engine.layouts import paged as layout
from models.engine.types import Request, Sampling
from tests.models import configs, engines
from tests.models.test_engine import run, same

GROUPS = (1, 2, 4, 5, 6, 7, 8)  # query heads of a key/value head in published models
ROUNDING = {"float32": 1e-5, "bfloat16": 1.6e-2, "float16": 2e-3}  # of values up to 4


def inputs(T, R, H, Z, M, dtype, *, P=5, K=2, seed=0):
    """Returns (q, k, v, table, position): row 0 starts at 0, row 1 ends the table, row 2 is unused;
    the last queries of the others are padding."""
    rng = np.random.default_rng(seed)
    G = 2 * M + 3
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    table_PM = rng.integers(0, G, (P, M)).astype(np.int32)
    start_P, count_P = rng.integers(0, M * Z - T + 1, P), rng.integers(1, T + 1, P)
    start_P[0], start_P[1] = 0, M * Z - T
    count_P[0] = count_P[1] = T
    position_PT = start_P[:, None] + np.minimum(np.arange(T), count_P[:, None] - 1)
    position_PT[2] = -1
    kv = normal(G, K, Z, H), normal(G, K, Z, H)
    return 2 * normal(P, T, K * R, H), *kv, table_PM, position_PT.astype(np.int32)


def definition(q_PTNH, k_GKZH, v_GKZH, table_PM, position_PT):
    """Softmax attention in float64, one query at a time; unused rows stay 0."""
    q_PTNH, k_GKZH, v_GKZH = (
        np.asarray(x.astype(jnp.float32), float) for x in (q_PTNH, k_GKZH, v_GKZH)
    )
    o_PTNH = np.zeros(q_PTNH.shape)
    P, T, N, H = q_PTNH.shape
    K = k_GKZH.shape[1]
    for p, t, n in np.ndindex(P, T, N):
        k_SH, v_SH = (
            x[table_PM[p], n * K // N].reshape(-1, H)[: position_PT[p, t] + 1]
            for x in (k_GKZH, v_GKZH)
        )
        if len(k_SH):
            score_S = k_SH @ q_PTNH[p, t, n] / np.sqrt(H)
            weight_S = np.exp(score_S - score_S.max())
            o_PTNH[p, t, n] = weight_S @ v_SH / weight_S.sum()
    return o_PTNH


def check(arrays, dtype):
    got = np.asarray(paged.attend(*arrays, interpret=True).astype(jnp.float32))
    assert np.isfinite(got).all()
    real_PT = np.diff(arrays[-1], prepend=-2) > 0  # the first of each position, and no -1
    real_PT[2] = False
    expected = definition(*arrays)
    np.testing.assert_allclose(got[real_PT], expected[real_PT], rtol=0, atol=ROUNDING[dtype])


@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("H", [64, 128])
@pytest.mark.parametrize("R", GROUPS)
def test_all_groups_of_heads(R, H, T):
    check(inputs(T, R, H, 16, 7, "float32"), "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("T", "Z", "M"),
    [(1, 4, 3), (1, 64, 1), (1, 64, 19), (1, 256, 3), (40, 16, 9), (128, 64, 3), (200, 8, 37)],
)
def test_all_sizes_of_pages_and_rows(T, Z, M, dtype):
    check(inputs(T, 2, 16, Z, M, dtype), dtype)


def test_what_a_query_gets_depends_on_its_sequence_alone():
    """Bit for bit: other rows, other pages of the table, and other cuts of the prompt."""
    T, Z, M = 64, 16, 40
    q, k, v, table, position = inputs(T, 3, 16, Z, M, "bfloat16")
    position = 300 + np.arange(T)[None].repeat(len(q), 0).astype(np.int32)
    attend = functools.partial(paged.attend, interpret=True)
    whole = attend(q, k, v, table, position)
    shifted = attend(jnp.roll(q, -Z, 1), k, v, table, np.minimum(position + Z, 300 + T - 1))
    np.testing.assert_array_equal(whole[:, Z:], shifted[:, : T - Z])
    backwards = attend(q[::-1], k, v, table[::-1], position)
    np.testing.assert_array_equal(whole, backwards[::-1])
    one = functools.partial(attend, q[:, :1], k, v)
    alone = one(table, position[:, :1])
    lengths = position[:, :1].copy()
    lengths[1:] = [[0], [-1], [M * Z - 1], [17]]
    np.testing.assert_array_equal(alone[0], one(table, lengths)[0])
    unseen = table.copy()
    unseen[:, 300 // Z + 1 :] = 0
    np.testing.assert_array_equal(alone, one(unseen, position[:, :1]))


@pytest.mark.parametrize("T", [1, 256])
def test_kernels_lower_for_gpus(T):
    arrays = inputs(T, 7, 128, 64, 9, "bfloat16")
    lowered = jax.jit(paged.attend).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" in lowered
    assert "tensor<21x2x64x128xbf16>" in lowered  # pages go in as they are


# ---- the layout ----------------------------------------------------------------------------------

CONFIG = configs.small(head_dim=16, num_attention_heads=4, num_key_value_heads=2)
SIZES = dict(slots=3, max_length=96, page_size=8, prefill_tokens=16, prefill_rows=2, decode_steps=4)


@pytest.fixture
def on_cpu(monkeypatch):
    """Lets the layout run on CPU."""
    monkeypatch.setattr(layout, "PLATFORMS", ("cpu",))
    monkeypatch.setattr(paged, "attend", functools.partial(paged.attend, interpret=True))
    selftest.failure.cache_clear()
    yield
    selftest.failure.cache_clear()


@pytest.mark.slow
def test_an_engine_on_pages_draws_what_others_draw(on_cpu):
    model = decoder.Decoder(jax.random.key(0), CONFIG)
    build = functools.partial(engines.build, {"policy": model}, dtype=jnp.bfloat16, **SIZES)
    rng = np.random.default_rng(0)
    start = tuple(rng.integers(2, 60, 24).tolist())
    prompts = [start + tuple(rng.integers(2, 60, n).tolist()) for n in (1, 9, 40, 17, 30)]
    requests = [Request(p, Sampling(12), address=(n,)) for n, p in enumerate(prompts)]
    engine = build(layout="paged")
    assert engine.layout == "paged"
    together = run(engine, requests)
    assert engine.statistics.shared_tokens
    assert engine.cache_bytes == build(layout="loop").cache_bytes
    for request, got in zip(requests, together, strict=True):
        same(got, *run(build(layout="paged"), [request]))
        (other,) = run(build(layout="loop"), [request])
        assert got.tokens[0] == other.tokens[0]
        np.testing.assert_allclose(got.logprobs[0], other.logprobs[0], atol=0.05)


# ---- self-tests ----------------------------------------------------------------------------------


def shapes_with(name, dtype=jnp.float32):
    settings = dict(cache_tokens=400, constraints=False, **SIZES)
    return shapes.of(CONFIG, layout=name, dtype=dtype, **settings)


MESH = sharding.make_mesh(devices=jax.devices()[:1])


def test_a_right_layout_passes(on_cpu):
    assert selftest.failure(shapes_with("gathered"), MESH) == ""
    assert selftest.failure(shapes_with("paged", jnp.bfloat16), MESH) == ""


def last_key_is_not_seen(q, cache, table, position):
    return paged.attend(q, *cache, table, position - 1)


def heads_in_other_groups(q, cache, table, position):
    P, T, N, H = q.shape
    swapped = q.reshape(P, T, 2, 2, H).swapaxes(2, 3).reshape(q.shape)
    o = paged.attend(swapped, *cache, table, position)
    return o.reshape(P, T, 2, 2, H).swapaxes(2, 3).reshape(q.shape)


def one_sequence_is_nan(q, cache, table, position):
    return paged.attend(q, *cache, table, position).at[-1].set(jnp.nan)


def does_not_compile(q, cache, table, position):
    raise NotImplementedError("no kernel image for this device\nmore")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (last_key_is_not_seen, "query 0 of 1, which sees .* keys, is off by"),
        (heads_in_other_groups, "is off by"),
        (one_sequence_is_nan, "is off by nan"),
        (does_not_compile, "NotImplementedError: no kernel image for this device$"),
    ],
)
def test_a_wrong_layout_is_left_for_the_next_one(on_cpu, monkeypatch, caplog, wrong, reason):
    monkeypatch.setattr(layout, "attend", wrong)
    bad, good = shapes_with("paged", jnp.bfloat16), shapes_with("loop", jnp.bfloat16)
    with caplog.at_level("WARNING"):
        assert [selftest.first_passing([bad, good], MESH) for _ in range(2)] == [good, good]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("Cache layout 'paged' is not used on")
    np.testing.assert_(selftest.failure(bad, MESH) in line)
    with pytest.raises(ValueError, match="layout='paged' fails on .*Leave the choice"):
        selftest.first_passing([bad], MESH)


@pytest.fixture
def with_options(monkeypatch, caplog):
    """Returns what comes of options of the compiler on this CPU, and the lines logged."""

    def choose(options):
        selftest.compiler_options.cache_clear()
        monkeypatch.setattr(selftest, "OPTIONS", {"cpu": options})
        with caplog.at_level("WARNING"):
            found = selftest.compiler_options(MESH)
        return found, [record.getMessage() for record in caplog.records]

    yield choose
    selftest.compiler_options.cache_clear()


def test_compiler_options_that_work_are_used(with_options):
    known = dict(selftest.OPTIONS["gpu"])
    assert selftest.compiler_options(MESH) == {}  # none for CPUs
    assert with_options(known) == (known, [])


def test_compiler_options_that_fail_are_not_used(with_options):
    found, (line,) = with_options({"xla_gpu_enable_command_buffer": "A_NAME_OF_TOMORROW"})
    assert found == {} and "A_NAME_OF_TOMORROW' is not a valid" in line


def test_compiler_options_that_give_wrong_results_are_not_used(with_options, monkeypatch):
    monkeypatch.setattr(jax.lax, "cond", lambda _, first, second, x: second(x))
    found, (line,) = with_options(dict(selftest.OPTIONS["gpu"]))
    assert found == {} and "gives [2, 3, 4, 5] and not [8, 9, 72, 73]" in line
