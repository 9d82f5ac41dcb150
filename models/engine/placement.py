"""Weights from the update's mesh to the devices of this process that serve them."""

import functools
import math
import weakref

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models import sharding

MOVED_BYTES = 256 * 2**20  # between meshes at a time
SLICES_ARE_COPIED = ("cpu", "gpu")  # platforms whose programs copy a layer to multiply with it


class Place:
    """Where an engine keeps weights of one architecture: on its mesh, in its dtype.

    Args:
      model: Decoder of arrays or shapes, see `copies`.
      separate: of `copies`.
    """

    def __init__(self, model, *, mesh, dtype, separate):
        stacked = _stacked(model)
        self.structure = jax.tree.structure(stacked)
        self._config, self._shapes = model.config, _shapes(stacked)
        self._dtype, self._separate = dtype, separate
        self._shardings = jax.tree.leaves(sharding.parameter_shardings(mesh, stacked))
        self._in_blocks = _in_blocks(stacked)

    def check(self, name, model):
        """Raises ValueError unless a model has this architecture."""
        shapes = _shapes(_stacked(model))
        if model.config != self._config or shapes != self._shapes:
            different = sorted(set(shapes.items()) ^ set(self._shapes.items()))
            raise ValueError(
                f"Weights {name!r} differ from the engine's model in config or shapes "
                f"({model.config} against {self._config}; {different}). Give every weight set the "
                "same architecture, or build another engine."
            )

    def put(self, model):
        """Returns the list of a model's arrays there, a tuple over layers where they are separate.

        Those already there as wanted are not copied.
        """
        leaves = jax.tree.leaves(model, is_leaf=_is_separate)
        return list(map(self._put, leaves, self._shardings, self._in_blocks))

    @property
    def shapes(self):
        """The list that `put` returns, of shapes with shardings."""

        def shape(size, place, in_blocks):
            if not (in_blocks and self._separate):
                return jax.ShapeDtypeStruct(size, self._dtype, sharding=place)
            place = separate_sharding(place)
            return (jax.ShapeDtypeStruct(size[1:], self._dtype, sharding=place),) * size[0]

        return list(map(shape, self._shapes.values(), self._shardings, self._in_blocks))

    def _put(self, leaf, place, in_blocks):
        if _is_separate(leaf):
            return leaf
        leaf = jax.device_put(jnp.asarray(leaf, self._dtype), place)
        return separator(place)(leaf) if in_blocks and self._separate else leaf


def layer_bytes(model, mesh, dtype):
    """Returns the bytes of a model's layers on each device of a mesh, which may be abstract."""
    stacked = _stacked(model)
    places = jax.tree.leaves(sharding.parameter_shardings(mesh, stacked))
    leaves = jax.tree.leaves(stacked)
    count = sum(
        math.prod(place.shard_shape(leaf.shape))
        for leaf, place, in_blocks in zip(leaves, places, _in_blocks(stacked), strict=True)
        if in_blocks
    )
    return count * jnp.dtype(dtype).itemsize


def meshes(*, tensor, replicas):
    """Returns meshes over groups of this process's devices that only split heads and widths.

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
    return [sharding.make_mesh(tensor=tensor, devices=group) for group in groups]


class Copies:
    """The copies of all weight sets on the meshes that serve them; each array is copied once.

    A set that has arrays of another one, such as LoRA's base, gets the copies that are there.

    Args:
      dtype, meshes, separate: of `copies`.
    """

    def __init__(self, dtype, meshes, *, separate):
        self._dtype, self._meshes, self._separate = dtype, meshes, separate
        self._made = {}  # name -> {id of an array: (weak reference to it, its copies)}

    def make(self, name, tree):
        """Returns the list of `copies` of a weight set, which replaces the one of this name."""
        self._made.pop(name, None)
        known = {
            key: made
            for sets in self._made.values()
            for key, (array, made) in sets.items()
            if array() is not None
        }
        trees = copies(tree, self._dtype, self._meshes, separate=self._separate, known=known)
        leaves = functools.partial(jax.tree.leaves, is_leaf=_is_separate)
        columns = zip(*map(leaves, trees), strict=True)
        self._made[name] = {
            id(array): (weakref.ref(array), made)
            for array, made in zip(jax.tree.leaves(tree), columns, strict=True)
        }
        return trees

    def forget(self):
        """Lets go of all copies."""
        self._made.clear()


def shares(tree, dtype):
    """Returns whether `copies` of a tree may hold its very buffers.

    They may where nothing is cast. The arrays must not be donated then.

    Args:
      tree: pytree of arrays or shapes.
    """
    return any(leaf.dtype == dtype for leaf in jax.tree.leaves(tree))


def copies(tree, dtype, meshes, *, separate, known=None):
    """Puts a tree's values on each of `meshes`, split as `sharding.parameter_shardings` says there.

    Every process must call it, with the same sizes of meshes. Arrays are moved one at a time; those
    already placed correctly are not copied.

    Args:
      tree: pytree of arrays, on a mesh of all devices or anywhere.
      dtype: to cast to before anything is sent.
      separate: in the place of each array below `blocks`, put a tuple of one array a layer. These
        are always copies: a program that reads a slice of a stacked array may copy it first.
      known: id of an array -> its copies, where there are some.

    Returns:
      List of trees. What occurs twice in `tree` occurs twice in these.
    """
    tensor = meshes[0].shape["tensor"]
    rows = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    everyone = Mesh(np.array(rows).reshape(-1, 1, 1, tensor), ("replica", *sharding.AXES))
    shardings = sharding.parameter_shardings(meshes[0], tree)
    done = dict(known or {})

    def on_each(array, spec):
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
    places = jax.tree.leaves(shardings)
    for leaf, place, in_blocks in zip(leaves, places, _in_blocks(tree), strict=True):
        if id(leaf) not in done:
            done[id(leaf)] = on_each(leaf, place.spec)
            if in_blocks and separate:
                done[id(leaf)] = [separator(copy.sharding)(copy) for copy in done[id(leaf)]]
    trees = zip(*(done[id(leaf)] for leaf in leaves), strict=True)
    return [structure.unflatten(tree) for tree in trees]


def _moved(array, place):
    """Moves an array to another mesh, a few layers at a time: XLA may gather all that moves."""
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


def separate_sharding(place):
    """Returns the NamedSharding of one layer of an array that has this one."""
    return NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))


@functools.cache
def separator(place):
    """Returns the program that makes a tuple over layers of an array with a NamedSharding."""
    return jax.jit(tuple, out_shardings=separate_sharding(place))


def _is_separate(leaf):
    return isinstance(leaf, tuple)


def _in_blocks(stacked):
    """Returns for each array of a tree, in leaf order, whether it is below `blocks`."""
    return [name.startswith("blocks/") for name in sharding.parameter_names(stacked)]


def _stacked(model):
    """Returns a model of shapes without separate layers."""

    def shape(leaf):
        if _is_separate(leaf):
            return jax.ShapeDtypeStruct((len(leaf), *leaf[0].shape), leaf[0].dtype)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    return jax.tree.map(shape, model, is_leaf=_is_separate)


def _shapes(model):
    """Returns {name: shape} of a model's arrays."""
    names = sharding.parameter_names(model)
    shapes = (leaf.shape for leaf in jax.tree.leaves(model))
    return dict(zip(names, shapes, strict=True))
