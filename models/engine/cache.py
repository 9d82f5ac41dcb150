"""The KV cache in pages and attention over it: what all its layouts mean, and which ones to use.

One array a layer, or one of keys and one of values. Token p of a sequence lies in page
`table[p // Z]` at p % Z, so a decode step touches only pages that hold something. Where a layer has
one array, key and value heads take turns in it (k0 v0 k1 v1 ...).

A layout is a module with `PLATFORMS`, on which it runs, and the functions `fits`, `widths`, `spec`,
`empty`, `write` and `attend`, on the heads of one device. All layouts mean the same.

Dimensions:
  P sequences    T queries of each    M pages of a page table    Z tokens of a page
  K key/value heads    N query heads    H head size
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from models.engine.layouts import gathered, loop, paged, ragged

LAYOUTS = {"loop": loop, "gathered": gathered, "paged": paged, "ragged": ragged}
BEST = {"gpu": ("paged", "gathered"), "tpu": ("ragged",)}  # by platform, before "loop"


def candidates(platform, config, *, size, dtype, layout=None):
    """Returns the names of layouts to try in turn; the last one needs no kernel but JAX.

    Args:
      platform: of the devices.
      config: of the model.
      size: tokens of a page.
      layout: a name to use alone; None tries all that fit.

    Raises:
      ValueError: the given one is unknown, does not run there, or not with these sizes and dtype.
    """
    if layout is None:
        names = (*BEST.get(platform, ()), "loop")
        return [name for name in names if LAYOUTS[name].fits(config, size=size, dtype=dtype)]
    if layout not in LAYOUTS or platform not in LAYOUTS[layout].PLATFORMS:
        valid = [name for name, module in LAYOUTS.items() if platform in module.PLATFORMS]
        raise ValueError(
            f"layout={layout!r} is none of those for {platform!r}; valid: {', '.join(valid)}."
        )
    if not LAYOUTS[layout].fits(config, size=size, dtype=dtype):
        raise ValueError(
            f"layout={layout!r} cannot hold {jnp.dtype(dtype).name} in pages of {size} tokens with "
            f"head size {config.head_dim}; leave the choice to the engine (None)."
        )
    return [layout]


def empty(layout, config, *, pages, size, dtype):
    """Returns the cache of a model's config, zeros, a list over layers."""
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
