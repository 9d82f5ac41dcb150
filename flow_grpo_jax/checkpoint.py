"""Orbax checkpoints: parameters, optimizer, step, data cursor. Saves are atomic.

Several processes save and restore together, each its part of every array, in one shared folder.
Any number of processes can restore it on any mesh.
"""

import hashlib
import pathlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging

from flow_grpo_jax import processes

FORMAT = 2
STEP = "step"  # prefix of their folders


def _named(tree):
    """Returns ({slash path: leaf}, treedef): Orbax need not know the tree's classes."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    return dict(zip(names, (leaf for _, leaf in flat), strict=True)), treedef


class Checkpoints:
    """Checkpoints of one run, newest `keep` kept."""

    def __init__(self, folder, *, keep):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, step_prefix=STEP, create=True, enable_async_checkpointing=False
        )
        self.good = set()  # steps that this process saved or read
        self.manager = ocp.CheckpointManager(pathlib.Path(folder).absolute(), options=options)

    def save(self, step, state, meta):
        """Saves a pytree of arrays and a JSON-able dict under a step, replacing that step."""
        if step in self.good:
            return
        if step in self.steps():  # damaged: `restore` fell back to one before it
            self.manager.delete(step)
        arrays, _ = _named(state)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            meta=ocp.args.JsonSave({"format": FORMAT, **meta}),
        )
        self.manager.save(step, args=args, force=True)
        self.manager.wait_until_finished()
        self.good.add(step)

    def restore(self, like, *, step=None):
        """Reads (step, state, meta) of the newest readable checkpoint, or of `step`; None if none.

        If one process cannot read a checkpoint, all of them skip it.

        Args:
          like: pytree of arrays or ShapeDtypeStructs with shardings; gives structure and placement.

        Raises:
          ValueError: `step` does not exist, the format is unknown, or no checkpoint is readable.
        """
        return self._newest(step, lambda candidate: self._restore(candidate, like))

    def restore_part(self, like, part, *, step=None):
        """Restores like `restore`, but one subtree of the state; nothing else is read.

        Args:
          like: as in `restore`, for the subtree alone.
          part: its path, such as "params".
        """
        return self._newest(step, lambda candidate: self._restore(candidate, like, part=part))

    def _newest(self, step, restore):
        steps = self.steps()[::-1]
        if step is not None and step not in steps:
            raise ValueError(f"There is no checkpoint of step {step}; there are {steps[::-1]}.")
        errors = []
        for candidate in [step] if step is not None else steps:
            problem = ""
            try:
                restored = restore(candidate)
            except Exception as error:  # noqa: BLE001  Orbax raises it for damaged data
                problem = processes.describe(error.__cause__ or error)
            if not (problems := list(filter(None, processes.gather([problem])))):
                self.good.add(candidate)
                return candidate, *restored
            logging.error("checkpoint of step %d is unreadable: %s", candidate, problems[0])
            errors.append(f"step {candidate}: {problems[0]}")
        if errors:
            raise ValueError("No checkpoint could be read: " + "; ".join(errors))
        return None

    def _restore(self, step, like, *, part=None):
        named, treedef = _named(like)
        if part is not None:
            named = {f"{part}/{name}": leaf for name, leaf in named.items()}
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in named.items()
        }
        state = ocp.args.StandardRestore(abstract)
        if part is not None:
            how = ocp.checkpoint_utils.construct_restore_args(abstract)
            state = ocp.args.PyTreeRestore(abstract, restore_args=how, partial_restore=True)
        args = ocp.args.Composite(state=state, meta=ocp.args.JsonRestore())
        # Each process reads alone: if one failed, Orbax would let the others wait for it.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=processes.index(), active_processes={processes.index()}
        )
        with ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(), multiprocessing_options=alone
        ) as reader:
            restored = reader.restore(self.manager.directory / f"{STEP}_{step}", args=args)
        if restored.meta["format"] != FORMAT:
            raise ValueError(f"Checkpoint format {restored.meta['format']} is not {FORMAT}.")
        absent = [name for name in named if not isinstance(restored.state[name], jax.Array)]
        if absent:  # a partial restore leaves out what it does not find
            raise ValueError(f"It has no {', '.join(absent)}.")
        state = jax.tree.unflatten(treedef, [restored.state[name] for name in named])
        return state, restored.meta

    def steps(self):
        """Returns the steps that have a checkpoint, readable or not, in order."""
        return processes.of_first(sorted(self.manager.all_steps()))

    def close(self):
        self.manager.close()


def fingerprint(tree):
    """Returns a hex digest of a pytree's names, shapes and values; identifies the reference policy.

    It does not depend on how the arrays are spread over devices and processes; nothing is moved to
    compute it.
    """
    named, _ = _named(tree)
    sums = jax.device_get(_checksums(list(named.values())))
    digest = hashlib.sha256()
    for (name, leaf), (first, second) in zip(named.items(), sums, strict=True):
        digest.update(f"{name}{leaf.shape}{leaf.dtype}{first},{second}".encode())
    return digest.hexdigest()[:16]


@jax.jit
def _checksums(arrays):
    """Returns two uint32 for each array: sums of two hashes of every element's bits and position.

    Integer sums are the same in any order, so with any sharding. One changed element always changes
    both sums; several changed ones go unnoticed with a probability of about 2**-64.
    """
    return [_checksum(array) for array in arrays]


def _checksum(array):
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    width = min(array.dtype.itemsize, 4)
    bits = jax.lax.bitcast_convert_type(array, f"uint{8 * width}").astype(jnp.uint32)

    def hashes(lane):
        position = jnp.uint32(lane)
        for axis, size in enumerate(bits.shape):
            along = _mixed(jnp.arange(size, dtype=jnp.uint32) * 16 + 2 * axis + lane)
            position += along.reshape([-1 if a == axis else 1 for a in range(bits.ndim)])
        return _mixed(bits + position)

    # Both sums in one reduction: XLA then reads the array once and writes no hash to memory.
    zero = jnp.uint32(0)
    add = lambda total, new: (total[0] + new[0], total[1] + new[1])
    return jax.lax.reduce((hashes(0), hashes(1)), (zero, zero), add, range(bits.ndim))


def _mixed(x):
    """Applies the 32-bit finalizer of MurmurHash3, a bijection."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
