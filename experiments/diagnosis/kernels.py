"""Which attention kernels pass their self-test on this device, and how fast they are.

Dimensions:
  B rows    T tokens of a row    N query heads    K key/value heads    H head size
  P sequences of the engine, each with one query    M pages of a page table    1 broadcast
"""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.diagnosis import machine
from experiments.diagnosis.rows import BROKEN, NOTE, OK, REPORT, Row
from models import precision, published, sharding
from models.attention import kernels
from models.engine import cache, selftest, shapes

SLOWER = "Nothing: the next one is used, which is slower. Report it with all of this output."
CPU, ACCELERATOR = "cpu", "accelerator"
ROWS = {CPU: (1, 512), ACCELERATOR: (2, 4_096)}  # B, T of the timed rows
SEQUENCES = {CPU: (8, 512), ACCELERATOR: (64, 4_096)}  # P, and tokens that each of them sees
MODELS = {CPU: ("0.5b",), ACCELERATOR: ("0.5b", "1.5b", "7b")}  # whose heads are tried
PAGE, REPEATS = 64, 5


def rows():
    """Yields Rows on the kernels of whole rows: those that "auto" would try, in its order."""
    dtype, rate, _ = machine.limits()
    backend = jax.default_backend()
    for model in MODELS[_class()]:
        dims = published.SIZES[model]
        shared = dims.num_attention_heads // dims.num_key_value_heads
        q_BTNH = jax.ShapeDtypeStruct(
            (*ROWS[_class()], dims.num_attention_heads, dims.head_dim), dtype
        )
        failures = {
            name: kernels.failure(name, backend, dtype.name, shared, dims.head_dim)
            for name in kernels.candidates(backend, q_BTNH)
        }
        work = functools.partial(_row_work, q_BTNH, dims.num_key_value_heads)
        yield from _in_order(model, failures, work, "forward and backward at", "FLOP", rate)


def pages():
    """Yields Rows on the kernels over the engine's pages: the layouts of its cache, in order."""
    dtype, _, bandwidth = machine.limits()
    mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
    for model in MODELS[_class()]:
        dims = dataclasses.replace(published.SIZES[model], num_hidden_layers=1)
        names = cache.candidates(jax.default_backend(), dims, size=PAGE, dtype=dtype)
        sizes = {name: _shapes(dims, name, dtype) for name in names}
        failures = {name: selftest.failure(sizes[name], mesh) for name in names}
        work = lambda name, sizes=sizes: _page_work(sizes[name])
        yield from _in_order(model, failures, work, "keys and values at", "B", bandwidth)
    if jax.default_backend() in selftest.OPTIONS:
        works = bool(selftest.compiler_options(mesh))
        text = "loops of a decode call run as graphs" if works else "loops do not run as graphs"
        yield Row("graphs", OK if works else NOTE, text, "" if works else SLOWER)


def _in_order(model, failures, work, what, unit, limit):
    """Yields a Row for each of several kernels; the first that does not fail is used.

    Args:
      failures: {name: why it must not be used, or ""}.
      work: name -> (work done, seconds). what, unit: of it. limit: work a second, at most.
    """
    chosen = next((name for name, reason in failures.items() if not reason), None)
    for name, reason in failures.items():
        label = f"{model} {name}"
        if reason and chosen is None:
            yield Row(label, BROKEN, reason, REPORT)
        elif reason:
            yield Row(label, NOTE, reason, SLOWER)
        else:
            done, seconds = work(name)
            share, rate = done / seconds / limit, machine.per_second(done / seconds, unit)
            text = f"passes; {what} {rate}, {share:.0%} of the limit"
            text += "; used" if name == chosen else ""
            facts = {"share": share, "seconds": seconds, "used": name == chosen}
            yield Row(label, OK, text, facts=facts)


def _class():
    return CPU if jax.default_backend() == "cpu" else ACCELERATOR


def _seconds(program, *arguments):
    """Returns the shortest time of a compiled program, of several runs."""
    jax.block_until_ready(program(*arguments))
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        best = min(best, time.perf_counter() - started)
    return best


def _row_work(q_BTNH, heads, name):
    """Returns (FLOPs of causal attention, forward and backward; seconds) of a kernel by name."""
    (B, T, N, H), dtype = q_BTNH.shape, q_BTNH.dtype
    key = jax.random.key(0)
    q_BTNH, do_BTNH = (jax.random.normal(key, (B, T, N, H), dtype) for _ in range(2))
    k_BTKH, v_BTKH = (jax.random.normal(key, (B, T, heads, H), dtype) for _ in range(2))
    until_BT = jnp.full((B, T), T, jnp.int32)
    attend = kernels.make(name)

    def both(*qkv):
        o_BTNH, backward = jax.vjp(lambda *qkv: attend(*qkv, until_BT), *qkv)
        return o_BTNH, backward(do_BTNH)

    program = jax.jit(precision.in_dtype(both, dtype))
    pairs = B * N * T * (T + 1) // 2
    return (4 + 10) * H * pairs, _seconds(program, q_BTNH, k_BTKH, v_BTKH)


def _shapes(dims, name, dtype):
    P, seen = SEQUENCES[_class()]
    return shapes.of(
        dims,
        layout=name,
        dtype=dtype,
        slots=P,
        max_length=seen,
        cache_tokens=P * seen,
        page_size=PAGE,
        prefill_tokens=PAGE,
        prefill_rows=2,
        decode_steps=1,
        constraints=False,
    )


def _page_work(sizes):
    """Returns (bytes of the keys and values that one decode step of a layer reads; seconds)."""
    P, seen = SEQUENCES[_class()]
    dims, M = sizes.config, sizes.widths[-1]
    [layer] = sizes.empty_cache()
    q_P1NH = jax.random.normal(
        jax.random.key(0), (P, 1, dims.num_attention_heads, dims.head_dim), sizes.dtype
    )
    table_PM = np.zeros((P, M), np.int32)
    table_PM[:, : seen // PAGE] = np.random.default_rng(0).permutation(sizes.pages).reshape(P, -1)
    position_P1 = np.full((P, 1), seen - 1, np.int32)
    attend = functools.partial(cache.attend, sizes.layout)
    seconds = _seconds(
        jax.jit(precision.in_dtype(attend, sizes.dtype)), q_P1NH, layer, table_PM, position_P1
    )
    kv = 2 * dims.num_key_value_heads * dims.head_dim * jnp.dtype(sizes.dtype).itemsize
    return P * seen * kv, seconds
