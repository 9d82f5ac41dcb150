"""Which mesh axis splits which dimension of which parameter.

Mesh axes:
  data     rows of a batch; parameters are copied along it
  fsdp     rows of a batch too, and one dimension of every matrix
  tensor   heads, feed-forward width and vocabulary

Dimensions (parameter names end in them, as in models/qwen2.py):
  L layers (leading axis of everything below `blocks`)    D model width    F feed-forward width
  V vocabulary    N query heads    K key/value heads    H head size
  I, O inputs and outputs of an adapted matrix, flattened    P rank of an adapter
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
MOVED_BYTES = 256 * 2**20  # between meshes at a time

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
    (r"norm/scale_D$", P()),
    (r"head/w_DV$", P("fsdp", "tensor")),
]


def make_mesh(*, data=1, fsdp=1, tensor=1, devices=None):
    """A mesh with axes ("data", "fsdp", "tensor") over exactly the given devices.

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
    """{axis: devices along it} of a mesh over `count` devices.

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
    """Sizes for `count` devices that keep as much of `sizes` as divides it."""
    tensor = int(np.gcd(max(sizes["tensor"], 1), count))
    fsdp = int(np.gcd(max(sizes["fsdp"], 1), count // tensor))
    return f"data={count // (tensor * fsdp)}, fsdp={fsdp}, tensor={tensor}"


def parameter_names(tree):
    """Slash paths of a model's arrays in leaf order, such as "blocks/attn/w_q_DNH"."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        for path, _ in paths
    ]


def parameter_shardings(mesh, tree):
    """Shardings of a model by RULES.

    Args:
      mesh: from `make_mesh`.
      tree: a Qwen2 of arrays or of shapes (`jax.eval_shape`), or any pytree whose paths end in
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
    """Rows of a batch over (data, fsdp); the other dimensions are whole."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def residual_sharding(mesh, *, sequence):
    """x_BTD between blocks.

    Args:
      sequence: positions lie over `tensor`; else all devices along it hold the same copy.
    """
    return NamedSharding(mesh, P(("data", "fsdp"), "tensor" if sequence else None, None))


def gathered(mesh, block):
    """The arrays of one layer, whole along `fsdp`: what its devices multiply their rows with.

    The constraint holds for the gradients too, so that each device makes the gradient of its rows
    and they are summed into shards. Left to itself, XLA gathers the rows of all devices instead.

    Args:
      block: a `qwen2.Block` without the layer axis.
    """
    leaves, structure = jax.tree.flatten(block)
    named = zip(parameter_names(block), leaves, strict=True)
    return structure.unflatten([_gathered(mesh, "blocks/" + name, leaf) for name, leaf in named])


def embedded_rows(table_VD, token_BT, residual, dtype):
    """x_BTD in `dtype` of a table whose columns are split, laid out as `residual` says.

    Each device looks up its columns for the rows of all its neighbours, then columns are exchanged
    for rows. So neither the table nor its gradient, a sum over tokens, is whole anywhere.
    """
    mesh, sequence = residual.mesh, residual.spec[1]

    def put(x, *axes):
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*axes)))

    x_BTD = table_VD[put(token_BT, "data")].astype(dtype)
    x_BTD = put(x_BTD, "data", None, ("fsdp", "tensor"))
    x_BTD = put(x_BTD, "data", sequence, "fsdp")  # one axis at a time: each is one exchange
    return put(x_BTD, ("data", "fsdp"), sequence, None)


def serving_meshes(*, tensor, replicas):
    """Meshes over groups of this process's devices that only split heads and widths.

    Args:
      tensor: devices of each.
      replicas: how many; 0 is as many as there are devices for, one where these are CPUs.

    Raises:
      ValueError: there are too few devices.
    """
    local = sorted(jax.local_devices(), key=lambda device: device.id)
    if tensor < 1 or len(local) % tensor:
        valid = [n for n in range(1, len(local) + 1) if len(local) % n == 0]
        raise ValueError(f"tensor={tensor} does not divide {len(local)} devices; valid: {valid}.")
    most = len(local) // tensor
    replicas = replicas or (1 if local[0].platform == "cpu" else most)
    if not 1 <= replicas <= most:
        raise ValueError(
            f"replicas={replicas} with tensor={tensor}, but {len(local)} devices are enough for "
            f"at most {most}."
        )
    groups = [local[n * tensor : (n + 1) * tensor] for n in range(replicas)]
    return [make_mesh(tensor=tensor, devices=group) for group in groups]


def serving_copies(tree, dtype, meshes):
    """A tree's values on each of `serving_meshes`, split as `parameter_shardings` says there.

    Every process must call it, with the same sizes of meshes. The values travel between devices,
    one array after the other; none where an array lies as it is wanted already.

    Args:
      tree: pytree of arrays, on a mesh of all devices or anywhere.
      dtype: to cast to before anything is sent.

    Returns:
      List of trees. What occurs twice in `tree` occurs twice in these.
    """
    tensor = meshes[0].shape["tensor"]
    rows = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    everyone = Mesh(np.array(rows).reshape(-1, 1, 1, tensor), ("replica", *AXES))
    shardings = parameter_shardings(meshes[0], tree)
    done = {}

    def copies(array, spec):
        array = array if array.dtype == dtype else _cast(array, dtype=dtype)
        if jax.process_count() == 1 and len(meshes) * tensor < jax.device_count():
            return [jax.device_put(array, NamedSharding(mesh, spec)) for mesh in meshes]
        array = _moved(array, NamedSharding(everyone, spec))
        part = {shard.device: shard.data for shard in array.addressable_shards}
        return [
            jax.make_array_from_single_device_arrays(
                array.shape, NamedSharding(mesh, spec), [part[d] for d in mesh.devices.flat]
            )
            for mesh in meshes
        ]

    leaves, structure = jax.tree.flatten(tree)
    for leaf, sharding_ in zip(leaves, jax.tree.leaves(shardings), strict=True):
        if id(leaf) not in done:
            done[id(leaf)] = copies(leaf, sharding_.spec)
    trees = zip(*(done[id(leaf)] for leaf in leaves), strict=True)
    return [structure.unflatten(tree) for tree in trees]


def _moved(array, place):
    """The array on another mesh, a few layers at a time: XLA may gather the whole of what moves."""
    there = place.is_equivalent_to(array.sharding, array.ndim)
    elsewhere = array.sharding.device_set != place.device_set
    if there or elsewhere or array.nbytes <= MOVED_BYTES:
        return jax.device_put(array, place)
    rows = max(1, MOVED_BYTES * len(array) // array.nbytes)
    whole = jax.jit(lambda: jnp.zeros(array.shape, array.dtype), out_shardings=place)()
    for first in range(0, len(array), rows):
        part = jax.device_put(array[first : first + rows], place)
        whole = _placed(whole, part, first)
    return whole


@functools.partial(jax.jit, donate_argnums=0)
def _placed(whole, part, first):
    return jax.lax.dynamic_update_slice_in_dim(whole, part, first, axis=0)


@functools.partial(jax.jit, static_argnames="dtype")
def _cast(array, *, dtype):
    return array.astype(dtype)


def _rule(name, shape):
    """(pattern, spec) of the first row of RULES that matches."""
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
