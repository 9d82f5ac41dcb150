"""Moves a model's arrays from and to the tensors of a Hugging Face folder, one at a time.

Reading: each process reads its equal share of a tensor's rows, once, and puts them on its devices
as they lie in the file; the devices exchange, transpose and stack them. So a whole tensor exists on
devices only. Writing is the reverse: the devices put one tensor together, the first process writes
it.

Dimensions (parameter names end in them, as in models/decoder.py):
  L layers    D model width    F feed-forward width    V vocabulary
  N query heads    K key/value heads    H head size

Source: the models of transformers that `models/decoder.py` names. A `Linear` there holds [out, in]
with heads and head size merged; here a matrix is [in..., out...] and layers are stacked.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from models import safetensors_file, sharding
from models.gguf import folder as gguf_folder

LAYER = "model.layers.{layer}."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# Our name -> (Hugging Face name, input dimensions of the matrix; 0 for what is not a matrix).
LAYOUT = {
    "embed/table_VD": (EMBEDDING, 0),
    "blocks/attn_norm/scale_D": (LAYER + "input_layernorm.weight", 0),
    "blocks/attn/w_q_DNH": (LAYER + "self_attn.q_proj.weight", 1),
    "blocks/attn/w_k_DKH": (LAYER + "self_attn.k_proj.weight", 1),
    "blocks/attn/w_v_DKH": (LAYER + "self_attn.v_proj.weight", 1),
    "blocks/attn/w_o_NHD": (LAYER + "self_attn.o_proj.weight", 2),
    "blocks/attn/b_q_NH": (LAYER + "self_attn.q_proj.bias", 0),
    "blocks/attn/b_k_KH": (LAYER + "self_attn.k_proj.bias", 0),
    "blocks/attn/b_v_KH": (LAYER + "self_attn.v_proj.bias", 0),
    "blocks/attn/q_norm/scale_H": (LAYER + "self_attn.q_norm.weight", 0),
    "blocks/attn/k_norm/scale_H": (LAYER + "self_attn.k_norm.weight", 0),
    "blocks/mlp_norm/scale_D": (LAYER + "post_attention_layernorm.weight", 0),
    "blocks/mlp/w_gate_DF": (LAYER + "mlp.gate_proj.weight", 1),
    "blocks/mlp/w_up_DF": (LAYER + "mlp.up_proj.weight", 1),
    "blocks/mlp/w_down_FD": (LAYER + "mlp.down_proj.weight", 1),
    "final_norm/scale_D": ("model.norm.weight", 0),
    "head/w_DV": (HEAD, 1),
}
FLOATS = ("F64", "F32", "F16", "BF16")
# Computed from the configuration; files of old transformers versions hold them nevertheless.
COMPUTED = "rotary_emb.inv_freq"

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = "model-{number:05}-of-{count:05}.safetensors"
MAX_LISTED = 50  # problems in an error
READERS = 8  # threads that read blocks


@dataclasses.dataclass(frozen=True)
class Part:
    """The place of a file's tensor in the model.

    name: of our parameter.
    layer: index into its leading axis; None if it has none.
    shape: of the part here, without layers.
    file_shape: of the tensor.
    inputs: as in LAYOUT.
    """

    name: str
    layer: int | None
    shape: tuple[int, ...]
    file_shape: tuple[int, ...]
    inputs: int


def parts(model):
    """Returns {tensor name: Part} of a Decoder of arrays or shapes, in transformers' order.

    Raises:
      ValueError: a parameter has no place in such a file.
    """
    names = sharding.parameter_names(model)
    unknown = sorted(set(names) - set(LAYOUT))
    if unknown:
        raise ValueError(
            f"A Hugging Face file has no place for {', '.join(unknown)}. Adapters are merged "
            "first, or kept in a folder of their own (models/lora.py)."
        )
    shape_of = {name: leaf.shape for name, leaf in zip(names, jax.tree.leaves(model), strict=True)}
    before, layers, after = {}, {}, {}
    for name, (template, inputs) in LAYOUT.items():
        if name not in shape_of:
            continue
        shape = shape_of[name]
        if LAYER not in template:
            group = before if template == EMBEDDING else after
            group[template] = Part(name, None, shape, _file_shape(template, inputs, shape), inputs)
            continue
        for layer in range(shape[0]):
            file_shape = _file_shape(template, inputs, shape[1:])
            part = Part(name, layer, shape[1:], file_shape, inputs)
            layers.setdefault(layer, {})[template.format(layer=layer)] = part
    return (
        before | {name: part for group in layers.values() for name, part in group.items()} | after
    )


def _file_shape(template, inputs, shape):
    """Returns the shape in the file of one layer's parameter of `shape` here."""
    if inputs:
        return math.prod(shape[inputs:]), math.prod(shape[:inputs])
    return shape if template == EMBEDDING else (math.prod(shape),)


# ---------------------------------------------------------------- reading


def read(folder, model, *, dtype=None, shardings=None):
    """Returns the arrays of a folder's safetensors or GGUF files.

    Args:
      folder: folders.Folder with model.safetensors, or its shards and their index; or GgufFolder.
      model: Decoder of shapes (`jax.eval_shape`).
      dtype: dtype of the arrays; None keeps that of the file, the widest where layers differ.
      shardings: pytree from `sharding.parameter_shardings`; None puts all on the default device.

    Returns:
      `model` with arrays.

    Memory beyond the model: on the host the process's share of the largest tensor, which also
    bounds what is read ahead; on each device one tensor of one layer, before and after its layout
    changes.

    Raises:
      FileNotFoundError: no safetensors file.
      ValueError: a damaged file, or tensors that are missing, unexpected or of another shape or
        dtype; all of them are listed.
    """
    names, structure = sharding.parameter_names(model), jax.tree.structure(model)
    places = [None] * len(names) if shardings is None else jax.tree.leaves(shardings)
    place_of, wanted = dict(zip(names, places, strict=True)), parts(model)
    with contextlib.ExitStack() as stack:
        files, pool = _opened(folder, stack)
        file_of = _check_tensors(folder, model.config, wanted, files, pool)
        dtype_of = _dtypes(wanted, file_of, dtype)
        arrays = _empty_stacks(wanted, dtype_of, place_of)
        reads = [
            Read(name, wanted[name], file, place_of[wanted[name].name])
            for file in files
            for name in sorted(file.entries, key=lambda name: file.entries[name].start)
            if name in wanted
        ]
        _read_ahead(reads, pool, functools.partial(_add, arrays, dtype_of))
    return structure.unflatten([arrays[name] for name in names])


def check(folder, model):
    """Returns the dtypes of a folder's tensors, sorted; reads no more than the files' headers.

    folder, model: of `read`, which raises the same for a folder that does not fit. (Where the
    embedding is also the head and a file holds both, these are read and compared.)
    """
    with contextlib.ExitStack() as stack:
        files, pool = _opened(folder, stack)
        file_of = _check_tensors(folder, model.config, parts(model), files, pool)
        return sorted({file.entries[name].dtype for name, file in file_of.items()})


def _opened(folder, stack):
    """Returns a folder's files and the threads that read them, entered into an ExitStack."""
    if isinstance(folder, gguf_folder.GgufFolder):
        opened = iter(folder.open_weights())
    else:
        opened = (safetensors_file.File(folder, name) for name in _weight_files(folder))
    files = [stack.enter_context(file) for file in opened]
    # Entered last, so that after an error no thread reads from a closed file.
    return files, stack.enter_context(concurrent.futures.ThreadPoolExecutor(READERS, "read"))


@dataclasses.dataclass(frozen=True)
class Read:
    """One tensor to read: its name in the file, what it is here, and where its parameter goes."""

    tensor: str
    part: Part
    file: safetensors_file.File
    place: jax.sharding.Sharding | None

    @functools.cached_property
    def shape(self):
        """Shape in the file, with rows added so that all devices have equal shares."""
        rows, *rest = self.part.file_shape
        shares = self.place.mesh.size if isinstance(self.place, NamedSharding) else 1
        return -(-rows // shares) * shares, *rest

    @functools.cached_property
    def sharding(self):
        """The rows over all devices; None is the default device."""
        if isinstance(self.place, NamedSharding):
            return NamedSharding(self.place.mesh, PartitionSpec(self.place.mesh.axis_names))
        return self.place

    @functools.cached_property
    def spans(self):
        """{device of this process: (first row, end)} of `shape`."""
        if self.place is None:
            return {None: (0, self.shape[0])}
        indices = self.sharding.addressable_devices_indices_map(self.shape)
        return {device: index[0].indices(self.shape[0])[:2] for device, index in indices.items()}

    @functools.cached_property
    def nbytes(self):
        """Host memory that this process needs for it."""
        itemsize = np.dtype(safetensors_file.DTYPES[self.file.entries[self.tensor].dtype]).itemsize
        rows = sum(end - first for first, end in self.spans.values())
        return rows * math.prod(self.shape[1:]) * itemsize

    def begin(self, pool):
        """Starts the reads: {device: safetensors_file.Pending}."""
        rows, pending = self.part.file_shape[0], {}
        for device, (first, end) in self.spans.items():
            pending[device] = self.file.read_rows(
                self.tensor, min(first, rows), min(end, rows), pool=pool, padded_to=end - first
            )
        return pending

    def array(self, pending):
        """Returns the result of `begin` as one array of `shape`."""
        shares = [jax.device_put(share.result(), device) for device, share in pending.items()]
        if self.place is None:
            return shares[0]
        return jax.make_array_from_single_device_arrays(self.shape, self.sharding, shares)


def _read_ahead(reads, pool, finish):
    """Calls finish(read, pending) for each in turn while the next ones are being read.

    All that has begun and is not finished fits into the memory that the largest needs alone.
    """
    limit, begun, used = max(read.nbytes for read in reads), collections.deque(), 0
    for read in [*reads, None]:
        while begun and (read is None or used + read.nbytes > limit):
            used -= begun[0][0].nbytes
            finish(*begun.popleft())  # held by no name here, so its memory is free afterwards
        if read is not None:
            begun.append((read, read.begin(pool)))
            used += read.nbytes


def _add(arrays, dtype_of, read, pending):
    """Puts a tensor where it belongs in `arrays`; the host's copy is free when this returns."""
    part, place = read.part, read.place
    layer_place = place if part.layer is None else _layer_place(place)
    dtype = dtype_of[part.name] if part.layer is None else None
    program = _from_file(part.shape, part.inputs, part.file_shape[0], dtype, layer_place)
    value = program(read.array(pending))
    if part.layer is None:
        arrays[part.name] = value
    else:
        arrays[part.name] = _store(place)(arrays[part.name], value, part.layer)
    value.block_until_ready()


def _dtypes(wanted, file_of, dtype):
    """Returns {parameter: dtype of its array}."""
    found = {}
    for tensor, part in wanted.items():
        entry = file_of[tensor].entries[tensor]
        own = np.dtype(dtype or safetensors_file.DTYPES[entry.dtype])
        found[part.name] = jnp.promote_types(found.get(part.name, own), own)
    return {name: jax.dtypes.canonicalize_dtype(own) for name, own in found.items()}


def _empty_stacks(wanted, dtype_of, place_of):
    """Returns {parameter with layers: zeros}, where they belong."""
    layers = collections.Counter(
        (part.name, part.shape) for part in wanted.values() if part.layer is not None
    )
    make = lambda: {
        name: jnp.zeros((count, *shape), dtype_of[name]) for (name, shape), count in layers.items()
    }
    return jax.jit(make, out_shardings={name: place_of[name] for name, _ in layers})()


# Programs. XLA:CPU shaped them: in one program it fuses transposing and storing into a loop eight
# times slower than the two, and it moves bfloat16 by way of float32, eight times slower than bits
# ([8960, 1536] bfloat16, on one core: transposing 18 ms, storing 5 ms, together 159 ms).


@functools.lru_cache
def _from_file(shape, inputs, rows, dtype, place):
    """Makes the program: a tensor of the file, with rows added -> array of `shape` at `place`.

    dtype: None keeps it.
    """

    def program(tensor):
        if isinstance(place, NamedSharding):
            # Whole on each device: no share of merged dimensions is one of the parted ones.
            tensor = jax.lax.with_sharding_constraint(tensor, _everywhere(place))
        tensor = tensor[:rows]
        return (tensor.T if inputs else tensor).reshape(shape).astype(dtype or tensor.dtype)

    return jax.jit(program, out_shardings=place)


@functools.lru_cache
def _to_file(file_shape, inputs, dtype, place):
    """Makes the inverse program of `_from_file`, in `dtype`, whole on every device of `place`."""

    def program(value):
        value = value.astype(dtype)
        if isinstance(place, NamedSharding):
            value = jax.lax.with_sharding_constraint(value, _everywhere(place))
        return value.reshape(file_shape[::-1]).T if inputs else value.reshape(file_shape)

    return jax.jit(program, out_shardings=_everywhere(place))


@functools.lru_cache
def _store(place):
    """Makes the program (stack, value, layer) -> the stack with that layer, in the same memory."""

    def program(stack, value, layer):
        new = _bits(value.astype(stack.dtype))
        new = jax.lax.dynamic_update_index_in_dim(_bits(stack), new, layer, 0)
        return jax.lax.bitcast_convert_type(new, stack.dtype)

    return jax.jit(program, out_shardings=place, donate_argnums=0)


@functools.lru_cache
def _take(place):
    """Makes the program (stack, layer) -> the layer, at `place`."""

    def program(stack, layer):
        value = jax.lax.dynamic_index_in_dim(_bits(stack), layer, 0, keepdims=False)
        return jax.lax.bitcast_convert_type(value, stack.dtype)

    return jax.jit(program, out_shardings=place)


def _bits(x):
    """Returns the same bits as unsigned integers."""
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))


def _layer_place(place):
    """Returns placement of one layer of a stack."""
    if isinstance(place, NamedSharding):
        return NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))
    return place


def _everywhere(place):
    """Returns the sharding that keeps all of an array on each device; None for one device."""
    return NamedSharding(place.mesh, PartitionSpec()) if isinstance(place, NamedSharding) else None


def _weight_files(folder):
    """Names of the files that hold a folder's weights."""
    names = folder.names()
    if SINGLE in names:
        return [SINGLE]
    if INDEX not in names:
        raise FileNotFoundError(
            f"{folder} has neither {SINGLE} nor {INDEX}; it has {', '.join(names) or 'nothing'}. "
            "Download the safetensors form of the checkpoint (.bin and .pt files are not read)."
        )
    weight_map = folder.read_json(INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(n, str) for n in weight_map.values()):
        raise ValueError(f"{folder}/{INDEX} is damaged: its weight_map names no files.")
    shards = sorted(set(weight_map.values()))
    absent = [name for name in shards if name not in names]
    if absent:
        raise FileNotFoundError(
            f"{folder}/{INDEX} names {len(shards)} files; absent: {', '.join(absent)}. Download "
            "them too."
        )
    return shards


def _check_tensors(folder, config, wanted, files, pool):
    """Returns {tensor name: File}; one ValueError lists everything wrong with the tensors."""
    file_of, problems = {}, []
    for file in files:
        problems += [f"twice: {name}" for name in file.entries if name in file_of]
        file_of |= dict.fromkeys(file.entries, file)
    for name, part in wanted.items():
        if name not in file_of:
            problems.append(f"missing: {name} {list(part.file_shape)}")
            continue
        entry, expected = file_of[name].entries[name], list(part.file_shape)
        if list(entry.shape) != expected:
            problems.append(f"shape of {name}: {list(entry.shape)}, expected {expected}")
        if entry.dtype not in FLOATS:
            problems.append(f"dtype of {name}: {entry.dtype}, expected {'/'.join(FLOATS)}")
    for name in sorted(set(file_of) - set(wanted)):
        if name == HEAD and config.tie_word_embeddings:
            if EMBEDDING in file_of and not _equal(file_of, HEAD, EMBEDDING, pool):
                problems.append(f"{HEAD} differs from the embedding, but tie_word_embeddings=true")
        elif not name.endswith(COMPUTED):
            problems.append(f"unexpected: {name} {list(file_of[name].entries[name].shape)}")
    if problems:
        listing = listed(problems)
        raise ValueError(
            f"{folder}: the tensors do not fit config.json. Check that both come from the same "
            f"checkpoint and that the download is complete.\n  {listing}"
        )
    return file_of


def listed(problems):
    """Returns the lines of a list of problems, MAX_LISTED at most."""
    more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
    return "\n  ".join([f"{problem:.200}" for problem in problems[:MAX_LISTED]] + more)


def _equal(file_of, first, second, pool):
    """Whether two tensors hold the same values; reads them in blocks."""
    entries = [file_of[name].entries[name] for name in (first, second)]
    if entries[0].shape != entries[1].shape or entries[0].dtype != entries[1].dtype:
        return False
    rows = entries[0].shape[0]
    step = max(1, rows * safetensors_file.BLOCK // (entries[0].stop - entries[0].start))
    for start in range(0, rows, step):
        span = start, min(start + step, rows)
        both = [file_of[name].read_rows(name, *span, pool=pool) for name in (first, second)]
        if not np.array_equal(*(block.result() for block in both)):
            return False
    return True


# ---------------------------------------------------------------- writing


def write(folder, model, *, dtype=None, max_shard_bytes):
    """Writes model.safetensors, or shards of it with their index. All processes call this.

    Args:
      folder: folders.Folder; None on the processes that only help to put tensors together.
      model: Decoder of arrays, without adapters.
      dtype: numpy dtype of the files; None keeps the model's.
      max_shard_bytes: a file holds no more than this, or a single tensor.

    Memory: on the host and on each device, one tensor of one layer.
    """
    files = _shards(_tensors(model, dtype), max_shard_bytes)
    for name, tensors in files.items():
        safetensors_file.write(folder, name, tensors, metadata={"format": "pt"})
    if folder is not None and len(files) > 1:
        sizes = [tensor.nbytes for tensors in files.values() for tensor in tensors]
        weight_map = {tensor.name: file for file, tensors in files.items() for tensor in tensors}
        folder.write_json(INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map})


def is_weights(name):
    """Whether a file of this name is one that `write` writes."""
    return name == INDEX or (name.startswith("model") and name.endswith(".safetensors"))


def _tensors(model, dtype):
    """Returns the [safetensors_file.Tensor] of a model, in the order of transformers' files."""
    names = sharding.parameter_names(model)
    leaf_of = dict(zip(names, jax.tree.leaves(model), strict=True))

    def tensor(name, part):
        leaf = leaf_of[part.name]
        place = leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None
        file_dtype = np.dtype(dtype or leaf.dtype)

        def fetch():
            whole = part.layer is None
            value = leaf if whole else _take(_layer_place(place))(leaf, part.layer)
            return np.asarray(_to_file(part.file_shape, part.inputs, file_dtype, place)(value))

        return safetensors_file.Tensor(name, file_dtype, part.file_shape, fetch)

    return [tensor(name, part) for name, part in parts(model).items()]


def _shards(tensors, max_bytes):
    """Returns {file name: tensors}, filled in order."""
    shards, used = [[]], 0
    for tensor in tensors:
        if shards[-1] and used + tensor.nbytes > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += tensor.nbytes
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    count = len(shards)
    return {SHARD.format(number=i, count=count): group for i, group in enumerate(shards, start=1)}
