"""Orbax checkpoints: parameters, optimizer, step, data cursor. Saves are atomic."""

import hashlib
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

FORMAT = 1


def _named(tree):
    """{slash path: leaf}: Orbax then needs to know nothing of the tree's classes."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    return dict(zip(names, (leaf for _, leaf in flat), strict=True)), treedef


class Checkpoints:
    """Checkpoints of one run, newest `keep` kept."""

    def __init__(self, folder, *, keep):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, step_prefix="step", create=True, enable_async_checkpointing=False
        )
        self.good = set()  # steps that this process saved or read
        self.manager = ocp.CheckpointManager(pathlib.Path(folder).absolute(), options=options)

    def save(self, step, state, meta):
        """Saves a pytree of arrays and a JSON-able dict under a step, replacing that step."""
        if step in self.good:
            return
        if step in self.manager.all_steps():  # damaged: `restore` fell back to one before it
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
        """(step, state, meta) of the newest readable checkpoint, or of `step`; None if none.

        Args:
          like: pytree of arrays or ShapeDtypeStructs with shardings; gives structure and placement.

        Raises:
          ValueError: `step` does not exist, the format is unknown, or no checkpoint is readable.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        if step is not None and step not in steps:
            raise ValueError(f"There is no checkpoint of step {step}; there are {steps[::-1]}.")
        errors = []
        for candidate in [step] if step is not None else steps:
            try:
                return candidate, *self._restore(candidate, like)
            except (OSError, KeyError, ValueError) as error:
                logging.error("checkpoint of step %d is unreadable: %s", candidate, error)
                errors.append(f"step {candidate}: {error}")
        if errors:
            raise ValueError("No checkpoint could be read: " + "; ".join(errors))
        return None

    def _restore(self, step, like):
        named, treedef = _named(like)
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in named.items()
        }
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
        )
        restored = self.manager.restore(step, args=args)
        if restored.meta["format"] != FORMAT:
            raise ValueError(f"Checkpoint format {restored.meta['format']} is not {FORMAT}.")
        self.good.add(step)
        state = jax.tree.unflatten(treedef, [restored.state[name] for name in named])
        return state, restored.meta

    def close(self):
        self.manager.close()


def fingerprint(tree):
    """Hex digest of a pytree's names, shapes and values; identifies the reference policy."""
    digest = hashlib.sha256()
    for name, leaf in _named(tree)[0].items():
        digest.update(f"{name}{leaf.shape}{leaf.dtype}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
