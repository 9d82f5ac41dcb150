"""The engine's programs from shapes alone, for devices that need not be there."""

import contextlib
import functools
from unittest import mock

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from models import sharding
from models.engine import cache, engine, pool, programs


def lowered(
    model,
    *,
    mesh,
    slots,
    max_length,
    cache_tokens,
    page_size,
    prefill_tokens,
    prefill_rows,
    decode_steps,
    dtype,
    constraints=False,
    attend=None,
):
    """The programs that an `Engine` of these settings runs, lowered for a mesh.

    Args:
      model: Qwen2 of shapes.
      mesh: as of an Engine; its devices may be of `jax.experimental.topologies`.
      cache_tokens: the engine's, for all of its weight sets.
      attend: of `cache.attend`; None is the one for the mesh's platform.

    Returns:
      {"prefill", "decode"}: `jax.stages.Lowered`; their second argument is the cache, a list over
      layers. With several widths of page tables, the programs of the widest.
    """
    attend = attend or cache.implementation(mesh.devices.flat[0].platform)
    run = engine.Run(dtype, attend, mesh, 0)
    shape = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    everywhere = NamedSharding(mesh, PartitionSpec())
    placed = functools.partial(jax.tree.map, lambda leaf: shape(leaf, everywhere))

    leaves = [
        jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place)
        for leaf, place in zip(
            jax.tree.leaves(model),
            jax.tree.leaves(sharding.parameter_shardings(mesh, model)),
            strict=True,
        )
    ]
    make = functools.partial(
        cache.empty,
        model.config,
        pages=cache_tokens // page_size,
        size=page_size,
        dtype=dtype,
        name=attend,
    )
    split = NamedSharding(mesh, cache.spec(attend))
    pages = [shape(leaf, split) for leaf in jax.eval_shape(make)]
    state = placed(jax.eval_shape(functools.partial(programs.empty_slots, slots)))
    words = -(-model.config.vocab_size // 32) if constraints else 0
    width = cache.widths(attend, -(-(max_length + prefill_tokens) // page_size))[-1]
    chunk = pool.chunk(
        [],
        size=prefill_tokens,
        count=prefill_rows,
        slots=slots,
        table_width=width,
        vocabulary_words=words,
    )
    integers_B = np.zeros(slots, np.int32)
    table_BM = np.zeros((slots, width), np.int32)
    allowed_BW = np.zeros((slots, words), np.uint32) if words else None
    prefill, decode = engine.jitted(run, jax.tree.structure(model), steps=decode_steps)
    calls = {
        "prefill": (prefill, (chunk, np.uint32(0))),
        "decode": (decode, (table_BM, integers_B > 0, integers_B, allowed_BW)),
    }
    with _as_on(mesh.devices.flat[0]):
        return {
            name: program.lower(leaves, pages, state, *placed(rest))
            for name, (program, rest) in calls.items()
        }


@contextlib.contextmanager
def _as_on(device):
    """Lets Pallas, which asks for the device it runs on, believe that it is this TPU."""
    if device.platform != "tpu":
        yield
        return
    from jax._src.pallas.mosaic import tpu_info  # there is no public way

    answers = dict(
        get_device_kind=lambda: device.device_kind,
        get_num_device_cores=lambda: device.num_cores,
    )
    with mock.patch.multiple(tpu_info, **answers):
        tpu_info.get_tpu_info.cache_clear()
        try:
            yield
        finally:
            tpu_info.get_tpu_info.cache_clear()
