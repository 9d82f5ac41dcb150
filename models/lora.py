"""Low-rank adapters of a Decoder: making, splitting, merging, and PEFT folders.

An adapter adds (x A) B * scale to the product of a block's input with one of its matrices. It is a
`LowRank` in that block, so training, sampling and the reference run one definition of the block:
`combine(adapters, base)` is the policy, `base` alone the reference. Neither copies an array.

Source: LoRA (arXiv 2106.09685), as `peft` initialises, scales and stores it.

Dimensions:
  L layers    I inputs of a matrix, flattened    O outputs of it, flattened    P rank    X tokens
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from models import folders, safetensors_file, sharding, tokenizer, weights

# PEFT's name of a matrix -> (its part of a block, the adapter there, the matrix, input dimensions).
TARGETS = {
    "q_proj": ("attn", "lora_q", "w_q_DNH", 1),
    "k_proj": ("attn", "lora_k", "w_k_DKH", 1),
    "v_proj": ("attn", "lora_v", "w_v_DKH", 1),
    "o_proj": ("attn", "lora_o", "w_o_NHD", 2),
    "gate_proj": ("mlp", "lora_gate", "w_gate_DF", 1),
    "up_proj": ("mlp", "lora_up", "w_up_DF", 1),
    "down_proj": ("mlp", "lora_down", "w_down_FD", 1),
}
PARTS = {"attn": "self_attn", "mlp": "mlp"}  # our name of a part of a block -> that of PEFT
SIDES = {"a_IP": "lora_A", "b_PO": "lora_B"}
MAX_RANK, MAX_ALPHA = 2**14, 10**6
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

READ = ("peft_type", "r", "lora_alpha", "use_rslora", "init_lora_weights")
# These do not change what stored adapters compute: notes, dropout, the matrices asked for
# (the tensors tell), and settings of initialisations.
IRRELEVANT = (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
)
# The other initialisations also change the weights below the adapters.
INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which matrices get adapters, and of what size.

    rank: inner dimension.
    alpha: the adapters' scale is alpha / rank.
    targets: names in TARGETS.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1:
            raise ValueError(f"LoRA rank={self.rank} must be at least 1, e.g. 16.")
        if self.alpha <= 0:
            raise ValueError(
                f"LoRA alpha={self.alpha} must be positive, e.g. alpha={2 * self.rank} with "
                f"rank={self.rank}."
            )
        if set(self.targets) - set(TARGETS) or not self.targets:
            raise ValueError(
                f"LoRA targets={self.targets} must name at least one matrix, each one of "
                f"{', '.join(TARGETS)}."
            )


class LowRank(nnx.Module):
    """The adapter of one matrix, or of that matrix in all layers.

    a_IP, b_PO: its two factors, with a leading L below `blocks`. alpha: scale times rank.
    """

    def __init__(self, a_IP, b_PO, alpha):
        self.a_IP, self.b_PO = nnx.Param(a_IP), nnx.Param(b_PO)
        self.alpha = alpha

    @property
    def rank(self):
        return self.a_IP.shape[-1]

    @property
    def scale(self):
        return self.alpha / self.rank

    def __call__(self, x_XI):
        """Returns [X, O] in the dtype of x."""
        low_XP = x_XI @ self.a_IP[...].astype(x_XI.dtype) * self.scale
        return low_XP @ self.b_PO[...].astype(x_XI.dtype)


def init(base, key, settings, *, dtype=jnp.float32):
    """Returns new adapters, which change nothing yet: A is uniform in ±1/sqrt(I), B is 0.

    Args:
      base: Decoder without adapters, of arrays or shapes; values are not used.

    Returns:
      Adapters as from `split`. In `jax.jit` with `out_shardings` from
      `sharding.parameter_shardings`, each part is made where it belongs.
    """
    adapters = {}
    for number, target in enumerate(TARGETS):
        if target in settings.targets:
            layers, inputs, outputs = _sizes(base, target)
            bound = 1 / math.sqrt(inputs)
            shape = (layers, inputs, settings.rank)
            own_key = jax.random.fold_in(key, number)
            a_LIP = jax.random.uniform(own_key, shape, minval=-bound, maxval=bound).astype(dtype)
            b_LPO = jnp.zeros((layers, settings.rank, outputs), dtype)
            _set(adapters, target, LowRank(a_LIP, b_LPO, settings.alpha))
    return {"blocks": adapters}


def add(model, key, settings, *, dtype=jnp.float32):
    """Returns the model with new adapters; its arrays are those of `model`."""
    return combine(init(model, key, settings, dtype=dtype), model)


def split(model):
    """Returns (adapters, base) of a model.

    Returns:
      adapters: {"blocks": {part: {adapter: LowRank}}}, a pytree with the names that the parameters
        have in the model; no arrays if it has no adapters.
      base: Decoder without adapters. All arrays are those of `model`.
    """
    base, adapters = _rebuilt(model), {}
    for target, (part, name, _, _) in TARGETS.items():
        if getattr(getattr(base.blocks, part), name) is not None:
            _set(adapters, target, getattr(getattr(base.blocks, part), name))
            delattr(getattr(base.blocks, part), name)
    return {"blocks": adapters}, base


def combine(adapters, base):
    """Returns the Decoder of the two parts of `split`; its arrays are those of the arguments."""
    model = _rebuilt(base)
    for _, part, name, low_rank in _each(_rebuilt(adapters)):
        setattr(getattr(model.blocks, part), name, low_rank)
    return model


def merged(model, *, donate=False):
    """Returns the Decoder without adapters that computes the same: W + scale A B in place of W.

    Sums are float32, rounded to the dtype of W. Goes through one stacked matrix at a time, layer by
    layer, in W's sharding: beyond the result this takes a few times the float32 memory of one
    layer's matrix (XLA:CPU also copies a stacked bfloat16 matrix).

    Args:
      donate: give up the model's adapted matrices, so that the result takes their memory.
    """
    adapters, base = split(model)
    for target, part, _, low_rank in _each(adapters):
        name = TARGETS[target][2]
        matrix = getattr(getattr(base.blocks, part), name)[...]
        program = jax.jit(
            _merged_matrix,
            static_argnames="scale",
            out_shardings=matrix.sharding,
            donate_argnums=0 if donate else (),
        )
        new = program(matrix, low_rank.a_IP[...], low_rank.b_PO[...], scale=low_rank.scale)
        setattr(getattr(base.blocks, part), name, nnx.Param(new))
    return base


def _merged_matrix(w, a_LIP, b_LPO, *, scale):
    """Returns w [L, ...I, ...O] with its adapters added."""

    def layer(l, w):
        a_IP, b_PO = a_LIP[l].astype(jnp.float32), b_LPO[l].astype(jnp.float32)
        change_IO = scale * jnp.matmul(a_IP, b_PO, precision=jax.lax.Precision.HIGHEST)
        new = w[l].astype(jnp.float32) + change_IO.reshape(w.shape[1:])
        return jax.lax.dynamic_update_index_in_dim(w, new.astype(w.dtype), l, axis=0)

    return jax.lax.fori_loop(0, w.shape[0], layer, w)


def save(folder, adapters, *, base_folder, tokenizer_folder=None, card=None):
    """Writes a folder that PEFT and vLLM load as an adapter of the model in `base_folder`.

    Writes adapter_config.json and adapter_model.safetensors; values are kept bit for bit. All
    processes call this, the first one writes. Memory on the host: one matrix of one layer.

    Args:
      folder: path or URL; made if it does not exist; files of these names in it are replaced.
      adapters: from `split`, on one device or sharded.
      base_folder: path or hub name of the model that they belong to.
      tokenizer_folder: copies the tokenizer's files from there.
      card: text of README.md; None writes none.
    """
    low_ranks = {target: low_rank for target, _, _, low_rank in _each(adapters)}
    if not low_ranks:
        raise ValueError("There are no adapters to save; `lora.add` makes them.")
    ((rank, alpha),) = {(low_rank.rank, low_rank.alpha) for low_rank in low_ranks.values()}
    values = {
        "base_model_name_or_path": str(base_folder),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(low_ranks),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    tensors = [
        _tensor(target, side, layer, getattr(low_rank, side)[...])
        for target, low_rank in low_ranks.items()
        for side in SIDES
        for layer in range(low_rank.a_IP.shape[0])
    ]
    with contextlib.ExitStack() as stack:
        written = None
        if jax.process_index() == 0:
            is_stale = lambda name: name.startswith("adapter_model")
            written = stack.enter_context(folders.replacing(folder, last=CONFIG, stale=is_stale))
        safetensors_file.write(written, WEIGHTS, tensors, metadata={"format": "pt"})
        if written:
            if tokenizer_folder is not None:
                tokenizer.copy_files(tokenizer_folder, written.location)
            if card is not None:
                written.write("README.md", card)
            written.write_json(CONFIG, values)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the adapters are complete")


def _tensor(target, side, layer, stacked):
    """Returns one layer's matrix for a file, transposed; it is fetched when its turn comes."""
    _, rows, columns = stacked.shape

    def fetch():
        everywhere = None
        if isinstance(stacked.sharding, NamedSharding):
            everywhere = NamedSharding(stacked.sharding.mesh, PartitionSpec())
        return np.asarray(_take(everywhere)(stacked, layer)).T

    name = _file_name(target, side, layer)
    return safetensors_file.Tensor(name, stacked.dtype, (columns, rows), fetch)


@functools.lru_cache
def _take(place):
    """Makes the program (stacked, layer) -> that layer, at `place`."""
    take = lambda stacked, layer: jax.lax.dynamic_index_in_dim(stacked, layer, 0, keepdims=False)
    return jax.jit(take, out_shardings=place)


def load(folder, model, *, dtype=jnp.float32, mesh=None):
    """Returns the model with the adapters of a PEFT folder; its own arrays are those of `model`.

    Args:
      folder: path or URL; holds adapter_config.json and adapter_model.safetensors.
      model: Decoder without adapters, the one they were trained for.
      dtype: dtype of the adapters, whatever the file holds.
      mesh: places them by `sharding.RULES`; None puts all on the default device.

    Raises:
      FileNotFoundError: one of the two files is missing.
      ValueError: the configuration asks for more than adapters of Settings' kind, or tensors are
        missing, unexpected or of another shape or dtype; all of it is listed.
    """
    folder = folders.Folder(folder)
    for name in (CONFIG, WEIGHTS):
        if not folder.has(name):
            raise FileNotFoundError(
                f"{folder}/{name} does not exist. An adapter folder holds {CONFIG} and {WEIGHTS}, "
                "as PEFT writes them (.bin files are not read)."
            )
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        file = stack.enter_context(safetensors_file.File(folder, WEIGHTS))
        settings = _settings(folder, folder.read_json(CONFIG), file.entries)
        start = lambda key: init(model, key, settings, dtype=dtype)
        shapes = jax.eval_shape(start, jax.random.key(0))
        _check_tensors(folder, shapes, file.entries)

        def read(target, side, shape):
            value = np.empty(shape, dtype)
            for layer, part in enumerate(value):
                name = _file_name(target, side, layer)
                part[...] = file.read_rows(name, 0, part.shape[1], pool=pool).result().T
            return value

        adapters = {}
        for target, _, _, low_rank in _each(shapes):
            sides = [read(target, side, getattr(low_rank, side).shape) for side in SIDES]
            _set(adapters, target, LowRank(*sides, settings.alpha))
    adapters = {"blocks": adapters}
    placements = None if mesh is None else sharding.parameter_shardings(mesh, adapters)
    return combine(jax.device_put(adapters, placements), model)


def _settings(folder, values, found):
    """Returns the Settings of an adapter_config.json beside tensors named `found`."""
    targets = [target for target in TARGETS if any(f".{target}.lora_" in name for name in found)]
    problems = [f"{key} is missing" for key in ("r", "lora_alpha") if not values.get(key)]
    for key, kinds, most in (("r", (int,), MAX_RANK), ("lora_alpha", (int, float), MAX_ALPHA)):
        value = values.get(key)
        if value and (type(value) not in kinds or not 0 < value <= most):
            problems.append(f"{key}={value!r:.40} (supported: up to {most})")
    if not targets:
        problems.append(f"none of its tensors adapts {', '.join(TARGETS)}")
    if values.get("peft_type") != "LORA":
        problems.append(f"peft_type={values.get('peft_type')!r} (supported: 'LORA')")
    if values.get("init_lora_weights", True) not in INITIALISATIONS:
        problems.append(
            f"init_lora_weights={values['init_lora_weights']!r} changed the weights of the base "
            f"(supported: {', '.join(map(str, INITIALISATIONS))})"
        )
    for key in sorted(set(values) - {*READ, *IRRELEVANT}):
        if values[key] and values[key] != "none":
            problems.append(f"{key}={values[key]!r} (supported: off)")
    if problems:
        raise ValueError(
            f"{folder}/{CONFIG} describes adapters that models/lora.py would not reproduce: "
            f"{'; '.join(problems)}. Merge them into the base with PEFT and load that instead."
        )
    rank, alpha = values["r"], values["lora_alpha"]
    if values.get("use_rslora"):  # its scale is alpha / sqrt(rank), arXiv 2312.03732
        alpha *= math.sqrt(rank)
    return Settings(rank, alpha, targets)


def _check_tensors(folder, shapes, entries):
    """Raises one ValueError that lists everything wrong with the tensors of a folder."""
    expected = {
        _file_name(target, side, layer): getattr(low_rank, side).shape[:0:-1]
        for target, _, _, low_rank in _each(shapes)
        for side in SIDES
        for layer in range(low_rank.a_IP.shape[0])
    }
    problems = []
    for name in sorted({*expected, *entries}):
        if name not in entries:
            problems.append(f"missing: {name} {list(expected[name])}")
            continue
        shape, dtype = entries[name].shape, entries[name].dtype
        if name not in expected:
            problems.append(f"unexpected: {name} {list(shape)}")
        elif shape != expected[name]:
            problems.append(f"shape of {name}: {list(shape)}, expected {list(expected[name])}")
        if dtype not in weights.FLOATS:
            problems.append(f"dtype of {name}: {dtype}, expected {'/'.join(weights.FLOATS)}")
    if problems:
        listing = weights.listed(problems)
        raise ValueError(
            f"{folder}/{WEIGHTS} does not fit the model and {CONFIG}. Adapters belong to the base "
            f"they were trained on, and cover all its layers here.\n  {listing}"
        )


def _file_name(target, side, layer):
    part = PARTS[TARGETS[target][0]]
    return f"base_model.model.model.layers.{layer}.{part}.{target}.{SIDES[side]}.weight"


def _sizes(base, target):
    """Returns (layers, inputs, outputs) of a matrix."""
    part, _, matrix, inputs = TARGETS[target]
    layers, *shape = getattr(getattr(base.blocks, part), matrix).shape
    return layers, math.prod(shape[:inputs]), math.prod(shape[inputs:])


def _each(adapters):
    """Yields (target, part, adapter's name, LowRank) of all adapters."""
    return [
        (target, part, name, adapters["blocks"][part][name])
        for target, (part, name, _, _) in TARGETS.items()
        if name in adapters["blocks"].get(part, {})
    ]


def _set(blocks, target, low_rank):
    part, name, _, _ = TARGETS[target]
    blocks.setdefault(part, {})[name] = low_rank


def _rebuilt(tree):
    """Puts the same arrays into new modules, which can be changed without changing the old ones."""
    return jax.tree.map(lambda leaf: leaf, tree)
