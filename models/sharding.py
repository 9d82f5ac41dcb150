"""The sharding table: which mesh axis splits which dimension of which parameter.

Mesh axes:
  data     rows of a batch; parameters are copied along it
  fsdp     rows of a batch too, and one dimension of every matrix
  tensor   heads, feed-forward width and vocabulary

Dimensions (parameter names end in them, as in models/decoder.py):
  B rows    T tokens in a row
  L layers (leading axis of everything below `blocks`)    D model width    F feed-forward width
  V vocabulary    N query heads    K key/value heads    H head size
  I, O inputs and outputs of an adapted matrix, flattened    P rank of an adapter
"""

import math
import re

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")

RULES = [  # first match wins
    (r"embed/table_VD$", P(None, ("fsdp", "tensor"))),  # why: see `embedded_rows`
    (r"blocks/attn/w_q_DNH$", P(None, "fsdp", "tensor", None)),
    (r"blocks/attn/w_(k|v)_DKH$", P(None, "fsdp", "tensor", None)),
    (r"blocks/attn/w_o_NHD$", P(None, "tensor", None, "fsdp")),
    (r"blocks/attn/b_q_NH$", P(None, "tensor", None)),
    (r"blocks/attn/b_(k|v)_KH$", P(None, "tensor", None)),
    (r"blocks/mlp/w_(gate|up)_DF$", P(None, "fsdp", "tensor")),
    (r"blocks/mlp/w_down_FD$", P(None, "tensor", "fsdp")),
    (r"lora_(q|k|v|gate|up)/a_IP$", P(None, "fsdp", None)),
    (r"lora_(q|k|v|gate|up)/b_PO$", P(None, None, "tensor")),
    (r"lora_(o|down)/a_IP$", P(None, "tensor", None)),
    (r"lora_(o|down)/b_PO$", P(None, None, "fsdp")),
    (r"norm/scale_(D|H)$", P()),
    (r"head/w_DV$", P("fsdp", "tensor")),
]


def make_mesh(*, data=1, fsdp=1, tensor=1, devices=None):
    """Returns a mesh with axes ("data", "fsdp", "tensor") over exactly the given devices.

    Args:
      data, fsdp, tensor: of `mesh_sizes`.
      devices: the devices to use; None takes every device of every process.
    """
    count = jax.device_count() if devices is None else len(devices)
    sizes = mesh_sizes(data=data, fsdp=fsdp, tensor=tensor, count=count)
    return jax.make_mesh(
        tuple(sizes[axis] for axis in AXES),
        AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
        devices=devices,
    )


def mesh_sizes(*, data, fsdp, tensor, count):
    """Returns {axis: devices along it} of a mesh over `count` devices.

    Args:
      data, fsdp, tensor: devices along each axis; one of them may be -1, all that remain.

    Raises:
      ValueError: the sizes do not use every device exactly once.
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    asked = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    wrong = [axis for axis, size in sizes.items() if size < 1 and size != -1]
    if wrong or len(free) > 1:
        raise ValueError(
            f"Mesh sizes {asked} are not valid: each is 1 or more, and at most one is -1 "
            f"(all remaining of the {count} devices), e.g. data=-1, fsdp=1, tensor=1."
        )
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if free and count % fixed == 0:
        sizes[free[0]] = count // fixed
    elif free or fixed != count:
        raise ValueError(
            f"Mesh sizes {asked} take {'a multiple of ' if free else ''}{fixed} devices, but there "
            f"are {count}. Valid with these: {_example(sizes, count)}; fewer devices are used when "
            "they are handed over, e.g. devices=jax.devices()[:1]."
        )
    return sizes


def _example(sizes, count):
    """Returns sizes for `count` devices that keep as much of `sizes` as divides it."""
    tensor = int(np.gcd(max(sizes["tensor"], 1), count))
    fsdp = int(np.gcd(max(sizes["fsdp"], 1), count // tensor))
    return f"data={count // (tensor * fsdp)}, fsdp={fsdp}, tensor={tensor}"


def parameter_names(tree):
    """Returns slash paths of a model's arrays in leaf order, such as "blocks/attn/w_q_DNH"."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        for path, _ in paths
    ]


def parameter_shardings(mesh, tree):
    """Returns shardings of a model by RULES.

    Args:
      mesh: from `make_mesh`.
      tree: a Decoder of arrays or of shapes (`jax.eval_shape`), or any pytree whose paths end in
        parameter names, such as its gradients.

    Returns:
      The same pytree with a NamedSharding for each array.

    Raises:
      ValueError: no rule names a parameter, or an axis does not divide the dimension it splits.
    """
    leaves, structure = jax.tree.flatten(tree)
    named = zip(parameter_names(tree), leaves, strict=True)
    return structure.unflatten([_sharding(mesh, name, leaf.shape) for name, leaf in named])


def batch_sharding(mesh):
    """Spreads the rows of a batch over (data, fsdp); the other dimensions are whole."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def residual_sharding(mesh, *, sequence):
    """Returns the sharding of x_BTD between blocks.

    Args:
      sequence: positions lie over `tensor`; else all devices along it hold the same copy.
    """
    return NamedSharding(mesh, P(("data", "fsdp"), "tensor" if sequence else None, None))


def gathered(mesh, block):
    """Returns the arrays of one layer, whole along `fsdp`, as its devices multiply them.

    The constraint holds for the gradients too: each device makes the gradient of its rows, and
    these are summed into shards. Without it, XLA gathers the rows of all devices instead.

    Args:
      block: a `decoder.Block` without the layer axis.
    """
    leaves, structure = jax.tree.flatten(block)
    named = zip(parameter_names(block), leaves, strict=True)
    return structure.unflatten([_gathered(mesh, "blocks/" + name, leaf) for name, leaf in named])


def embedded_rows(table_VD, token_BT, residual, dtype):
    """Looks up x_BTD in `dtype` in a table with split columns; laid out as `residual` says.

    Each device looks up its columns for the rows of all its neighbours; then columns are exchanged
    for rows. So neither the table nor its gradient is whole on any device.
    """
    mesh, sequence = residual.mesh, residual.spec[1]

    def put(x, *axes):
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*axes)))

    x_BTD = table_VD[put(token_BT, "data")].astype(dtype)
    x_BTD = put(x_BTD, "data", None, ("fsdp", "tensor"))
    x_BTD = put(x_BTD, "data", sequence, "fsdp")  # one axis at a time: each is one exchange
    return put(x_BTD, ("data", "fsdp"), sequence, None)


def _rule(name, shape):
    """Returns (pattern, spec) of the first row of RULES that matches."""
    for pattern, spec in RULES:
        if re.search(pattern, name):
            return pattern, spec
    raise ValueError(
        f"No sharding rule matches {name!r} of shape {tuple(shape)}. "
        "Add a row to RULES in models/sharding.py (P() replicates)."
    )


def _gathered(mesh, name, leaf):
    _, spec = _rule(name, leaf.shape)
    axes = [None if axis == "fsdp" else axis for axis in spec[1:]]  # without the layers
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, P(*axes)))


def _sharding(mesh, name, shape):
    pattern, spec = _rule(name, shape)
    if len(spec) > len(shape):
        raise ValueError(
            f"The sharding rule {pattern!r} has {len(spec)} dimensions, but {name!r} has shape "
            f"{tuple(shape)}. Correct the row in RULES in models/sharding.py."
        )
    letters = name.rsplit("_", 1)[1].rjust(len(shape), "L")
    for letter, size, entry in zip(letters, shape, spec, strict=False):
        axes = (entry,) if isinstance(entry, str) else entry or ()
        shards = math.prod(mesh.shape[axis] for axis in axes)
        if size % shards:
            valid = [n for n in range(1, mesh.size + 1) if size % n == 0 and mesh.size % n == 0]
            axis = " * ".join(axes)
            raise ValueError(
                f"{name!r}: dimension {letter}={size} is not divisible by mesh axis "
                f"{axis}={shards}. Valid sizes of {axis!r} on {mesh.size} devices: "
                f"{', '.join(map(str, valid))}."
            )
    return NamedSharding(mesh, spec)
