"""The self-test of what is fast where it works: layouts of the cache, options of the compiler.

Keys and values are written and attended to on the devices of an engine, in the shapes of its own
programs, and compared with softmax attention in float64 on the host. So a kernel that a device, a
driver or a version of JAX gets wrong is never used.

Dimensions:
  P sequences    T queries of each    M pages of a page table    G pages    Z tokens of a page
  S keys    K key/value heads    N query heads    R = N / K    H head size    1 broadcast
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from models import precision
from models.attention.selftest import FAILURES, told
from models.engine import cache, shapes

PLAIN = ("loop",)  # JAX alone, nothing to test
SPARE_PAGES = 8  # beyond those of one sequence, so that tables are no ranges
CHECKED = 4  # sequences, and queries of each
TOLERANCE = {"float32": 1e-4}  # relative; rounding to bfloat16 is at 2e-3
TOLERANCE_HALF = 2e-2
# By default XLA records all of these as graphs on a GPU but WHILE. Then a branch that holds a loop,
# as in `sampling`, makes the host wait for every step to ask which branch it is.
GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
OPTIONS = {"gpu": {"xla_gpu_enable_command_buffer": GRAPHS}}  # by platform


def choose(config, mesh, *, layout, **settings):
    """Returns the `Shapes` of an engine with the best layout that passes.

    Args:
      config: of the model.
      mesh: of the engine.
      layout: of `cache.candidates`.
      settings: the others of `shapes.of`.

    Raises:
      ValueError: the layout of this name cannot be used.
    """
    names = cache.candidates(
        mesh.devices.flat[0].platform,
        config,
        size=settings["page_size"],
        dtype=settings["dtype"],
        layout=layout,
    )
    return first_passing([shapes.of(config, layout=name, **settings) for name in names], mesh)


def first_passing(choices, mesh):
    """Returns the first of several `Shapes` whose layout passes; logs why others do not.

    Args:
      choices: `Shapes` of the same engine with different layouts.
      mesh: of the engine.

    Raises:
      ValueError: none passes.
    """
    reasons = []
    for sizes in choices:
        reason = failure(sizes, mesh)
        if not reason:
            return sizes
        reasons.append(f"layout={sizes.layout!r} fails on {mesh.devices.flat[0]}: {reason}")
    raise ValueError("; ".join(reasons) + ". Leave the choice to the engine (layout=None).")


@functools.cache
def failure(sizes, mesh):
    """Returns why the layout of a `Shapes` must not be used on a mesh, "" if it may."""
    if sizes.layout in PLAIN:
        return ""
    try:
        reason = _difference(sizes, mesh)
    except FAILURES as problem:
        reason = told(problem)
    if reason:
        logging.warning(
            "Cache layout %r is not used on %s: %s", sizes.layout, mesh.devices.flat[0], reason
        )
    return reason


@functools.cache
def compiler_options(mesh):
    """Returns the options with which an engine's programs are to be compiled for a mesh."""
    device = mesh.devices.flat[0]
    options = OPTIONS.get(device.platform)
    if options is None:
        return {}
    try:
        reason = _wrong_branches(device, options)
    except FAILURES as problem:
        reason = told(problem)
    if reason:
        logging.warning("Compiler options %s are not used on %s: %s", options, device, reason)
        return {}
    return options


def _wrong_branches(device, options):
    """Returns what a loop over branches with loops gets wrong, "" if nothing."""

    def doubled(x, times):
        return jax.lax.fori_loop(0, times, lambda _, x: 2 * x, x)

    def step(x, index):
        x = jax.lax.cond(index % 2 == 0, lambda x: doubled(x, 3), lambda x: x + 1, x)
        return x, x

    run = jax.jit(lambda x: jax.lax.scan(step, x, jnp.arange(4))[1], compiler_options=options)
    for _ in range(2):  # a graph is recorded once, and then repeated
        found = np.asarray(run(jax.device_put(jnp.ones(2, jnp.int32), device)))
        if found[:, 0].tolist() != [8, 9, 72, 73]:
            return f"a small program gives {found[:, 0].tolist()} and not [8, 9, 72, 73]"
    return ""


def _difference(sizes, mesh):
    """Returns what differs from the definition, "" if nothing does."""
    config, Z, M = sizes.config, sizes.page_size, sizes.widths[-1]
    G, K, H = min(sizes.pages, M + SPARE_PAGES), config.num_key_value_heads, config.head_dim
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(jnp.dtype(sizes.dtype))
    k_GZKH, v_GZKH = draw(G, Z, K, H), draw(G, Z, K, H)
    page_G1 = np.arange(G, dtype=np.int32)[:, None]
    place_GZ = np.broadcast_to(np.arange(Z, dtype=np.int32), (G, Z))
    on_layout = lambda function: jax.jit(
        precision.in_dtype(functools.partial(function, sizes.layout, mesh=mesh), sizes.dtype)
    )
    small = dataclasses.replace(
        sizes, pages=G, config=dataclasses.replace(config, num_hidden_layers=1)
    )
    [pages] = jax.jit(small.empty_cache, out_shardings=sizes.cache_sharding(mesh))()
    write, attend = on_layout(cache.write), on_layout(cache.attend)
    pages = write(pages, k_GZKH, v_GZKH, page_G1, place_GZ, np.ones((G, Z), bool))
    most = TOLERANCE.get(jnp.dtype(sizes.dtype).name, TOLERANCE_HALF)
    for P, T in ((sizes.slots, 1), (sizes.prefill_rows, sizes.prefill_tokens)):
        q_PTNH = draw(P, T, config.num_attention_heads, H)
        table_PM = rng.integers(0, G, (P, M)).astype(np.int32)
        start_P = rng.integers(0, M * Z - T + 1, P)
        start_P[-1], start_P[0] = min(Z, M * Z - T), M * Z - T
        position_PT = (start_P[:, None] + np.arange(T)).astype(np.int32)
        o_PTNH = np.asarray(attend(q_PTNH, pages, table_PM, position_PT), np.float32)
        for p in {*range(P)[:CHECKED], P - 1}:
            for t in np.unique(np.linspace(0, T - 1, CHECKED).astype(int)):
                seen = position_PT[p, t] + 1
                kv = (x[table_PM[p, : -(-seen // Z)]] for x in (k_GZKH, v_GZKH))
                wanted_NH = _definition(q_PTNH[p, t], *(x.reshape(-1, K, H)[:seen] for x in kv))
                apart = np.linalg.norm(o_PTNH[p, t] - wanted_NH) / np.linalg.norm(wanted_NH)
                if not apart <= most:  # nan is not
                    return (
                        f"query {t} of {T}, which sees {seen} keys, is off by {apart:.1e} of its "
                        f"size; {most:g} is allowed"
                    )
    return ""


def _definition(q_NH, k_SKH, v_SKH):
    """Returns softmax attention of one query to all keys, in float64."""
    q_NH, k_SKH, v_SKH = (x.astype(np.float64) for x in (q_NH, k_SKH, v_SKH))
    K, H = k_SKH.shape[1:]
    q_KRH = q_NH.reshape(K, -1, H)
    score_KRS = np.einsum("KRH,SKH->KRS", q_KRH, k_SKH) * H**-0.5
    weight_KRS = np.exp(score_KRS - score_KRS.max(-1, keepdims=True))
    o_KRH = np.einsum("KRS,SKH->KRH", weight_KRS, v_SKH) / weight_KRS.sum(-1)[..., None]
    return o_KRH.reshape(-1, H)
