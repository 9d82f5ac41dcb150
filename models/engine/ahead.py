"""The engine's programs from shapes alone, for devices that need not be there.

Dimensions:
  B slots    M pages of a page table    W words of a mask of allowed tokens
"""

import contextlib
import functools

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from models.engine import cache, placement, programs, seats, shapes


def lowered(model, *, mesh, separate, layout=None, **settings):
    """Lowers the programs that an `Engine` of these settings runs, for a mesh.

    Args:
      model: Decoder of shapes.
      mesh, separate: as of an Engine; devices may be of `jax.experimental.topologies`.
      layout: of the cache; None takes the first of `cache.candidates`.
      settings: the others of `shapes.of`.

    Returns:
      {"prefill", "decode"}: `jax.stages.Lowered`; their second argument is the cache, a list over
      layers. With several widths of page tables, the programs of the widest.
    """
    layout, *_ = cache.candidates(
        mesh.devices.flat[0].platform,
        model.config,
        size=settings["page_size"],
        dtype=settings["dtype"],
        layout=layout,
    )
    sizes = shapes.of(model.config, layout=layout, **settings)
    shape = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    everywhere = NamedSharding(mesh, PartitionSpec())
    placed = functools.partial(jax.tree.map, lambda leaf: shape(leaf, everywhere))

    place = placement.Place(model, mesh=mesh, dtype=sizes.dtype, separate=separate)
    in_cache = lambda leaf: shape(leaf, sizes.cache_sharding(mesh))
    kv = jax.tree.map(in_cache, jax.eval_shape(sizes.empty_cache))
    state = placed(jax.eval_shape(functools.partial(programs.empty_slots, sizes.slots)))
    chunk = seats.chunk([], shapes=sizes, width=sizes.widths[-1])
    integers_B = np.zeros(sizes.slots, np.int32)
    table_BM = np.zeros((sizes.slots, sizes.widths[-1]), np.int32)
    allowed_BW = sizes.all_allowed(sizes.slots)
    static = programs.Static(sizes.dtype, layout, mesh, 0)
    prefill, decode = programs.jitted(static, place.structure, steps=sizes.decode_steps)
    calls = {
        "prefill": (prefill, (chunk, np.uint32(0))),
        "decode": (decode, (table_BM, integers_B > 0, integers_B, allowed_BW)),
    }
    with _as_on(mesh.devices.flat[0]):
        return {
            name: program.lower(place.shapes, kv, state, *placed(rest))
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
    asked = {name: getattr(tpu_info, name) for name in answers}
    try:
        _replace(tpu_info, answers)
        yield
    finally:
        _replace(tpu_info, asked)


def _replace(tpu_info, functions):
    for name, function in functions.items():
        setattr(tpu_info, name, function)
    tpu_info.get_tpu_info.cache_clear()
