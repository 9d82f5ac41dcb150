"""The KV cache in pages and attention over it: what all its layouts mean, and which one to use.

One array a layer. Token p of a sequence lies in page `table[p // Z]` at p % Z, so a decode step
touches only pages that hold something. Key and value heads take turns (k0 v0 k1 v1 ...).

A layout is a module with `PLATFORMS`, on which it runs, and the functions `widths`, `spec`,
`empty`, `write` and `attend`, on the heads of one device. All layouts mean the same.

Dimensions:
  P sequences    T queries of each    M pages of a page table    Z tokens of a page
  K key/value heads    N query heads    H head size
"""

import jax
from jax.sharding import PartitionSpec

from models.engine.layouts import gathered, loop, ragged

LAYOUTS = {"loop": loop, "gathered": gathered, "ragged": ragged}
BEST = {"gpu": "gathered", "tpu": "ragged"}  # platform -> layout; "loop" for all others


def choose(platform, layout=None):
    """Returns the name of the layout for a platform: the given one, or the best for None.

    Raises:
      ValueError: the given one is unknown or does not run there.
    """
    if layout is None:
        return BEST.get(platform, "loop")
    if layout not in LAYOUTS or platform not in LAYOUTS[layout].PLATFORMS:
        valid = [name for name, module in LAYOUTS.items() if platform in module.PLATFORMS]
        raise ValueError(
            f"layout={layout!r} is none of those for {platform!r}; valid: {', '.join(valid)}."
        )
    return layout


def empty(layout, config, *, pages, size, dtype):
    """Returns the cache of a model's config, a list over layers of zeros."""
    make = LAYOUTS[layout].empty
    return [
        make(config, pages=pages, size=size, dtype=dtype) for _ in range(config.num_hidden_layers)
    ]


def write(layout, cache, k_PTKH, v_PTKH, table_PM, position_PT, valid_PT, *, mesh=None):
    """Stores keys and values at the positions where valid_PT is True.

    Args:
      layout: of LAYOUTS.
      cache: of one layer.
      mesh: heads are split over its axis `tensor`.
    """
    module, heads = LAYOUTS[layout], PartitionSpec(None, None, "tensor")
    return _on_heads(
        module.write,
        mesh,
        (module.spec(), heads, heads, *(PartitionSpec(),) * 3),
        module.spec(),
    )(cache, k_PTKH, v_PTKH, table_PM, position_PT, valid_PT)


def attend(layout, q_PTNH, cache, table_PM, position_PT, *, mesh=None):
    """Attends with every query to the keys at positions up to its own, in the dtype of q.

    Args:
      layout: of LAYOUTS.
      cache: of one layer.
      position_PT: int32, consecutive in a row; -1 in a whole row that is unused, whose output is
        finite and meaningless.
      mesh: heads are split over its axis `tensor`.
    """
    module, heads = LAYOUTS[layout], PartitionSpec(None, None, "tensor")
    return _on_heads(
        module.attend,
        mesh,
        (heads, module.spec(), PartitionSpec(), PartitionSpec()),
        heads,
    )(q_PTNH, cache, table_PM, position_PT)


def _on_heads(function, mesh, in_specs, out_specs):
    """Returns the function, applied to each device's heads."""
    if mesh is None or mesh.size == 1:
        return function
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
