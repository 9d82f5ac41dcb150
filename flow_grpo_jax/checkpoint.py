"""Orbax checkpoints: parameters, optimizer, step, data cursor. Saves are atomic.

Several processes save and restore together, each its part of every array, in one shared folder.
Any number of processes can restore it on any mesh.

A checkpoint holds the checksums of its arrays and a digest of everything else in its metadata;
both are compared when it is read, so changed bits are damage like any other.
"""

import contextlib
import errno
import functools
import hashlib
import json
import logging as python_logging
import pathlib
import re
import shutil
import sys
import traceback
import warnings

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging

from flow_grpo_jax import files, processes
from flow_grpo_jax.bounds import json_text

FORMAT = 3
UNCHECKED = 2  # the format before it: no checksums, no digest
STEP = "step"  # prefix of their folders
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that is being written
OWN = ("format", "arrays", "digest")  # entries of the metadata that are not the caller's
_SHOWN = 160  # characters of an error of Orbax


class OtherArrays(ValueError):
    """A checkpoint is whole, but holds arrays of other names or shapes than those asked for."""


class Checkpoints:
    """Checkpoints of one run, newest `keep` kept.

    Args:
      folder: theirs; made if it is absent.
      keep: how many; None is for readers, which delete nothing.
    """

    def __init__(self, folder, *, keep):
        self.folder = pathlib.Path(folder).absolute()
        if keep is not None:
            self._remove_unfinished()  # of a run that was killed
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, step_prefix=STEP, create=True, enable_async_checkpointing=False
        )
        self.good = set()  # steps that this process saved or read
        with _silent_orbax():
            self.manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step, state, meta):
        """Saves a pytree of arrays and a JSON-able dict under a step, replacing that step.

        Raises:
          RuntimeError: says why it cannot be written and which step is safe.
        """
        if step in self.good:
            return
        if step in self.steps():  # damaged: `restore` fell back to one before it
            self.manager.delete(step)
        arrays, _ = _named(state)
        needed = sum(array.nbytes for array in arrays.values())
        if processes.of_first(files.free_bytes(self.folder)) < needed:
            raise self._cannot_save(step, files.reason(self.folder, errno.ENOSPC, needed=needed))
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            meta=ocp.args.JsonSave(_sealed({"format": FORMAT, "arrays": _facts(arrays), **meta})),
        )
        try:
            with _silent_orbax():
                self.manager.save(step, args=args, force=True)
                self.manager.wait_until_finished()
        except Exception as error:
            self._remove_unfinished()
            number = _errno(error)
            why = files.reason(self.folder, number, needed=needed) if number else _short(error)
            raise self._cannot_save(step, why) from error
        self.good.add(step)

    def _remove_unfinished(self):
        if processes.index() == 0:
            for path in self.folder.glob(f"{STEP}_*{UNFINISHED}*"):
                shutil.rmtree(path, ignore_errors=True)

    def safe(self):
        """Returns a sentence that says from where a run goes on."""
        if not (safe := self.good & set(self.steps())):
            return "No step is saved yet."
        return f"Step {max(safe)} is saved: the same command goes on from there."

    def _cannot_save(self, step, why):
        return RuntimeError(
            f"The checkpoint of step {step} cannot be written to {self.folder}: {why}. "
            f"{self.safe()}"
        )

    def restore(self, like, *, step=None):
        """Reads (step, state, meta) of the newest readable checkpoint, or of `step`; None if none.

        If one process cannot read a checkpoint, all of them skip it.

        Args:
          like: pytree of arrays or ShapeDtypeStructs with shardings; gives structure and placement.
            An array that was saved in another dtype is converted.

        Raises:
          OtherArrays: names or shapes are not those of `like`.
          ValueError: `step` does not exist, the format is unknown, or no checkpoint is readable.
        """
        return self._newest(step, *_named(like), whole=True)

    def restore_part(self, like, part, *, step=None):
        """Restores like `restore`, but one subtree of the state; nothing else is read.

        Args:
          like: as in `restore`, for the subtree alone.
          part: its path, such as "params".
        """
        named, treedef = _named(like)
        named = {f"{part}/{name}": leaf for name, leaf in named.items()}
        return self._newest(step, named, treedef, whole=False)

    def _newest(self, step, named, treedef, *, whole):
        steps = self.steps()[::-1]
        if step is not None and step not in steps:
            raise ValueError(f"There is no checkpoint of step {step}; there are {steps[::-1]}.")
        damaged = []
        for candidate in [step] if step is not None else steps:
            arrays, meta, problem = {}, {}, ""
            try:
                with _silent_orbax():
                    meta = self._read_meta(candidate)
                    stored = meta.get("arrays") or self._arrays_of_orbax(candidate)
                    _check_names(candidate, stored, named, whole=whole)
                    arrays = self._read_arrays(candidate, named, meta, whole=whole)
            except OtherArrays:
                raise
            except Exception as error:  # noqa: BLE001  Orbax raises it for damaged data
                problem = _short(error.__cause__ or error)
            problems = list(filter(None, processes.gather([problem])))
            if not problems and "arrays" in meta:  # checksums need all processes
                problems = list(filter(None, processes.gather([_changed(arrays, meta["arrays"])])))
            if not problems:
                self.good.add(candidate)
                leaves = [arrays[name].astype(like.dtype) for name, like in named.items()]
                meta = {name: value for name, value in meta.items() if name not in OWN}
                return candidate, jax.tree.unflatten(treedef, leaves), meta
            logging.error("checkpoint of step %d is damaged: %s", candidate, problems[0])
            damaged.append(candidate)
        if damaged:
            raise ValueError(
                f"No checkpoint in {self.folder} can be read; damaged: "
                f"{', '.join(f'step {step}' for step in damaged)}. Bring one back from a copy, or "
                "start again in a new folder."
            )
        return None

    def _read_meta(self, step):
        json_text.read_object(self._place(step) / "meta" / "metadata")  # its size and depth
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        with _reader(ocp.CompositeCheckpointHandler()) as reader:
            meta = reader.restore(self._place(step), args=args).meta
        if meta["format"] not in (FORMAT, UNCHECKED):
            raise ValueError(f"Its format {meta['format']} is not {FORMAT} or {UNCHECKED}.")
        sealed = meta["format"] == FORMAT or "digest" in meta
        if sealed and meta.get("digest") != _sealed(meta)["digest"]:
            raise ValueError("Its metadata has changed since it was saved.")
        return meta

    def _read_arrays(self, step, named, meta, *, whole):
        """Returns {name: array}, in the dtypes that were saved where they are known."""
        stored = meta.get("arrays", {})
        abstract = {
            name: jax.ShapeDtypeStruct(
                leaf.shape,
                stored[name]["dtype"] if name in stored else leaf.dtype,
                sharding=leaf.sharding,
            )
            for name, leaf in named.items()
        }
        state = ocp.args.StandardRestore(abstract)
        if not whole:
            how = ocp.checkpoint_utils.construct_restore_args(abstract)
            state = ocp.args.PyTreeRestore(abstract, restore_args=how, partial_restore=True)
        with _reader(ocp.CompositeCheckpointHandler()) as reader:
            args = ocp.args.Composite(state=state)
            arrays = reader.restore(self._place(step), args=args).state
        absent = [name for name in named if not isinstance(arrays[name], jax.Array)]
        if absent:  # a partial restore leaves out what it does not find
            raise ValueError(f"It has no {', '.join(absent)}.")
        return arrays

    def _arrays_of_orbax(self, step):
        """Returns {name: {"shape"}} of a checkpoint that does not list its arrays itself."""
        tree = ocp.StandardCheckpointHandler().metadata(self._place(step) / "state")
        return {name: {"shape": list(leaf.shape)} for name, leaf in _named(tree)[0].items()}

    def _place(self, step):
        return self.folder / f"{STEP}_{step}"

    def steps(self):
        """Returns the steps that have a checkpoint, readable or not, in order."""
        return processes.of_first(sorted(self.manager.all_steps()))

    def close(self):
        self.manager.close()


def _named(tree):
    """Returns ({slash path: leaf}, treedef): Orbax need not know the tree's classes."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    return dict(zip(names, (leaf for _, leaf in flat), strict=True)), treedef


def _reader(handler):
    # Each process reads alone: if one failed, Orbax would let the others wait for it.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=processes.index(), active_processes={processes.index()}
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


# ---- what is wrong with a checkpoint -----------------------------------------------------------


def _check_names(step, stored, wanted, *, whole):
    """Raises OtherArrays if names or shapes differ; other names besides are fine for a part."""
    absent = [name for name in wanted if name not in stored]
    besides = [name for name in stored if name not in wanted] if whole else []
    differ = [
        f"{name} (there {tuple(stored[name]['shape'])}, here {leaf.shape})"
        for name, leaf in wanted.items()
        if name in stored and tuple(stored[name]["shape"]) != tuple(leaf.shape)
    ]
    found = [
        f"{text} {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
        for text, names in (("it lacks", absent), ("it has", besides), ("shapes differ:", differ))
        if names
    ]
    if found:
        raise OtherArrays(f"The checkpoint of step {step} holds other arrays: {'; '.join(found)}.")


def _facts(arrays):
    """Returns {name: shape, dtype and checksums} of arrays."""
    together, sums = {}, {}  # names of arrays that lie on the same devices
    for name, leaf in arrays.items():
        together.setdefault(frozenset(leaf.sharding.device_set), []).append(name)
    for names in together.values():
        found = jax.device_get(_checksums([arrays[name] for name in names]))
        sums |= {name: [int(a), int(b)] for name, (a, b) in zip(names, found, strict=True)}
    return {
        name: {"shape": list(leaf.shape), "dtype": leaf.dtype.name, "sums": sums[name]}
        for name, leaf in arrays.items()
    }


def _changed(arrays, stored):
    """Returns what is wrong with the values of arrays, "" if nothing is."""
    wrong = [name for name, facts in _facts(arrays).items() if facts != stored[name]]
    more = f" and {len(wrong) - 1} more arrays" if wrong[1:] else ""
    return f"the values of {wrong[0]}{more} have changed since they were saved" if wrong else ""


def _sealed(meta):
    """Returns metadata with the digest of all its other entries."""
    rest = {name: value for name, value in meta.items() if name != "digest"}
    text = json.dumps(rest, sort_keys=True)
    return {**rest, "digest": hashlib.sha256(text.encode()).hexdigest()}


def _errno(error):
    """Returns the errno behind an exception of Orbax, 0 if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if found := re.search(r"os_error_code='(\d+)'", str(error)):  # of TensorStore
            return int(found.group(1))
        error = error.__cause__ or error.__context__
    return 0


def _short(error):
    """Returns the start of the first line of an error: TensorStore's fill a page."""
    line = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


@contextlib.contextmanager
def _silent_orbax():
    """Keeps the tracebacks of Orbax's threads out of the log: what went wrong is raised as well."""
    _hide_leftovers()
    logger = logging.get_absl_logger()
    ours = lambda entry: "site-packages" not in entry.pathname
    logger.addFilter(ours)
    try:
        yield
    finally:
        logger.removeFilter(ours)


@functools.cache
def _hide_leftovers():
    """Hides what threads of a save or restore that failed say when they end, from now on."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda found: None if _is_leftover(found.exc_value) else before(found)
    python_logging.getLogger("asyncio").addFilter(
        lambda entry: not (entry.exc_info and _is_leftover(entry.exc_info[1]))
    )
    warnings.filterwarnings("ignore", r"coroutine 'Store\.\w+' was never awaited", RuntimeWarning)


def _is_leftover(error):
    """Whether an exception that nobody waits for comes from Orbax's use of TensorStore."""
    frames = traceback.walk_tb(error.__traceback__ if error else None)
    return (
        str(error) == "Event loop is closed"
        or "tensorstore_spec" in str(error)
        or any("orbax" in frame.f_code.co_filename for frame, _ in frames)
    )


# ---- checksums ---------------------------------------------------------------------------------


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
