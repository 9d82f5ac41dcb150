"""Attention over grouped query heads: which kernel runs it, on one device or a mesh.

Every kernel takes its mask as the vector `until_BT`, see `masks.py`.

Dimensions:
  B rows    T tokens    N query heads    K key/value heads    H head size    1 broadcast
"""

import functools
import math

import jax
import jax.numpy as jnp
from absl import logging
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from models.attention import blockwise, masks, selftest

KERNELS = {  # platforms on which each runs; None is all
    "reference": None,
    "blockwise": None,
    "flash": ("gpu", "cuda"),
    "cudnn": ("gpu", "cuda"),
    "splash": ("tpu",),
    "pallas": ("tpu",),
}
PLAIN = ("reference", "blockwise")  # JAX alone, nothing to test
FLASH_HEAD_SIZES = (64, 128)
SHORT = 128  # tokens of a row below which the reference is the fastest on CPU
SPLASH_TOKENS = 4096  # up to here the masks of splash are small: 0.1 GiB a row, at 20,480 3.5 GiB
CUDNN_PAIRS = 2**30  # rows * T * T up to which cuDNN's mask is small: 2 GiB


@functools.cache
def make(name="auto", *, mesh=None):
    """Returns attention of whole rows: attend(q_BTNH, k_BTKH, v_BTKH, until_BT) -> o_BTNH.

    | name        | runs on    | what it is                                                   |
    |-------------|------------|--------------------------------------------------------------|
    | "reference" | all        | all scores at once: T * T memory per head                    |
    | "blockwise" | all        | flash attention in plain JAX, skips blocks that see nothing  |
    | "flash"     | NVIDIA     | bfloat16 or float16, head sizes 64 and 128; rows of one      |
    |             |            | sequence by cuDNN without a mask, others by a kernel that    |
    |             |            | skips blocks that see nothing                                |
    | "cudnn"     | NVIDIA     | bfloat16 or float16; a T * T mask per row                    |
    | "splash"    | TPU        | the kernel shipped with JAX; T * T masks per row             |
    | "pallas"    | TPU        | flash attention that skips blocks and makes no T * T mask    |

    "auto" chooses by platform and, inside `attend`, by static shape and dtype:

    | platform | choice                                                                          |
    |----------|---------------------------------------------------------------------------------|
    | TPU      | "splash" for rows of up to 4,096 tokens, longer ones "pallas"                   |
    | GPU      | "flash" for bfloat16 and float16 and head sizes 64 and 128; "cudnn" for these   |
    |          | dtypes, head sizes of 8 to 128 in steps of 8 and a mask of up to 2 GiB (one row |
    |          | of 32k tokens); else as on CPU                                                  |
    | CPU      | "blockwise", rows of less than 128 tokens "reference"                           |

    A kernel that is not plain JAX has a self-test before its first use on a device, `selftest.py`;
    if it fails, "auto" logs why and takes the next one.

    All have exact gradients, compute softmax and sums in float32 and return the dtype of q. Query
    head n reads key/value head n // (N / K). Whatever stands at padding, even nan, changes nothing;
    outputs and gradients there are 0. With `mesh`, rows lie over ("data", "fsdp") and heads over
    "tensor".

    Args:
      name: one of KERNELS, or "auto".
      mesh: of the devices it will run on, from sharding.make_mesh; None is one device of the
        default backend.

    Raises:
      ValueError: the name is unknown, or the kernel does not run on the platform or dtype, or a
        kernel that was asked for by name fails its self-test.
    """
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    if name != "auto" and name not in KERNELS:
        raise ValueError(f"attention={name!r} is unknown; valid: auto, {', '.join(KERNELS)}.")
    if name != "auto" and KERNELS[name] and platform not in KERNELS[name]:
        raise ValueError(
            f"attention={name!r} runs on {KERNELS[name][0]}, but the devices are {platform}. "
            "Use auto, reference or blockwise."
        )

    here = platform == jax.default_backend()  # else programs are compiled for devices elsewhere

    def attend(q_BTNH, k_BTKH, v_BTKH, until_BT):
        traits = (q_BTNH.dtype.name, q_BTNH.shape[2] // k_BTKH.shape[2], q_BTNH.shape[3])
        fails = lambda name: here and name not in PLAIN and failure(name, platform, *traits)
        if name == "auto":
            chosen = next(x for x in candidates(platform, q_BTNH, mesh) if not fails(x))
        else:
            chosen = name
            if reason := fails(name):
                raise ValueError(f"attention={name!r} fails on this device: {reason}. Use auto.")
        return _run(chosen, platform, mesh)(q_BTNH, k_BTKH, v_BTKH, until_BT)

    return attend


def candidates(platform, q_BTNH, mesh=None):
    """Returns the names that "auto" tries in turn for these queries; the table is in `make`."""
    rows, tokens, _, head_size = q_BTNH.shape
    if mesh is not None:
        rows = -(-rows // (mesh.shape["data"] * mesh.shape["fsdp"]))
    plain = "reference" if tokens < SHORT else "blockwise"
    if platform == "tpu":
        return ("splash", "pallas", plain) if tokens <= SPLASH_TOKENS else ("pallas", plain)
    names = []
    if platform in KERNELS["cudnn"] and q_BTNH.dtype in (jnp.bfloat16, jnp.float16):
        if head_size in FLASH_HEAD_SIZES:
            names.append("flash")
        if head_size % 8 == 0 and head_size <= 128 and rows * tokens**2 <= CUDNN_PAIRS:
            names.append("cudnn")
    return (*names, plain)


@functools.cache
def failure(name, platform, dtype, shared, head_size):
    """Returns why a kernel must not be used on this device, "" if it may be; logs it once."""
    reason = selftest.failure(_run(name, platform, None), jnp.dtype(dtype), shared, head_size)
    if reason:
        logging.warning("Attention kernel %r is not used on this device: %s", name, reason)
    return reason


def _run(name, platform, mesh):
    """Returns attend(q_BTNH, k_BTKH, v_BTKH, until_BT) by the kernel of this name."""

    def attend(q_BTNH, k_BTKH, v_BTKH, until_BT):
        kernel, block = _kernel(name, platform, q_BTNH.shape[1])
        run = whole_rows(
            kernel,
            block=block,
            # The reference is plain products and sums, which the compiler splits by itself.
            mesh=None if name == "reference" else mesh,
            padding=name == "flash",
        )
        return run(q_BTNH, k_BTKH, v_BTKH, until_BT)

    return attend


def _kernel(name, platform, tokens):
    """Returns (kernel(q, k, v, until, block=), block) for rows of `tokens` tokens."""
    if name in ("splash", "pallas"):
        # Imported here: Pallas takes a second to load, and only TPUs run these.
        from models.attention import pallas, splash

        kernel = {"splash": splash.attend, "pallas": pallas.attend}[name]
        smallest, largest = 128, 512
    elif name == "flash":
        from models.attention import flash, triton  # Pallas again

        kernel, smallest, largest = flash.attend, triton.BLOCK, triton.BLOCK
    else:
        kernel, smallest, largest = {  # with the smallest and the largest block of tokens
            "reference": (_reference, 1, 1),
            "cudnn": (_cudnn, 2, 2),
            "blockwise": (blockwise.attend, 64, 64 if platform == "cpu" else 512),
        }[name]
    return kernel, min(largest, -(-tokens // smallest) * smallest)


def whole_rows(kernel, *, block=1, mesh=None, padding=False):
    """Wraps a raw kernel so that it meets the contract of `make`.

    Args:
      kernel: (q_BTNH, k_BTKH, v_BTKH, until_BT, block=) -> o_BTNH. It is handed rows whose length
        is a multiple of `block`, zeros at padding, and an until_BT by which every token sees
        itself.
      block: tokens.
      mesh: as in `make`; the kernel sees the rows and heads of one device.
      padding: hand over until_BT as it is, 0 at padding.
    """
    kernel = functools.partial(kernel, block=block)

    def attend(q_BTNH, k_BTKH, v_BTKH, until_BT):
        tokens = until_BT.shape[1]
        index_T = jnp.arange(tokens, dtype=jnp.int32)
        real_BT11 = (until_BT > index_T)[:, :, None, None]
        arrays = [jnp.where(real_BT11, x, 0) for x in (q_BTNH, k_BTKH, v_BTKH)]
        if tokens % block:
            arrays = [jnp.pad(x, ((0, 0), (0, -tokens % block), (0, 0), (0, 0))) for x in arrays]
            until_BT = jnp.pad(until_BT, ((0, 0), (0, -tokens % block)))
        itself_T = jnp.arange(1, until_BT.shape[1] + 1, dtype=jnp.int32)
        run = kernel if mesh is None or mesh.size == 1 else _on_mesh(kernel, mesh)
        o_BTNH = run(*arrays, until_BT if padding else jnp.maximum(until_BT, itself_T))
        return jnp.where(real_BT11, o_BTNH[:, :tokens], 0)

    return attend


def _on_mesh(kernel, mesh):
    """Wraps a kernel so that it runs on the rows and heads of each device."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    tensor = mesh.shape["tensor"]

    def attend(q_BTNH, k_BTKH, v_BTKH, until_BT):
        (B, _, N, _), K = q_BTNH.shape, k_BTKH.shape[2]
        if B % shards:
            raise ValueError(
                f"{B} rows cannot be split over data * fsdp = {shards} devices; use a multiple, "
                f"e.g. {-(-B // shards) * shards}."
            )
        heads = math.lcm(K, tensor)  # each device needs whole groups: copy heads that they share
        if N % heads:
            raise ValueError(
                f"{N} query and {K} key/value heads cannot be split over tensor={tensor} devices; "
                f"valid: {', '.join(str(n) for n in range(1, N + 1) if N % math.lcm(K, n) == 0)}."
            )
        k_BTKH, v_BTKH = (jnp.repeat(x, heads // K, axis=2) for x in (k_BTKH, v_BTKH))
        rows = ("data", "fsdp")
        spread = P(rows, None, "tensor", None)
        return jax.shard_map(
            kernel,
            mesh=mesh,
            in_specs=(spread, spread, spread, P(rows)),
            out_specs=spread,
            check_vma=False,  # Pallas kernels do not say over which axes their outputs vary
        )(q_BTNH, k_BTKH, v_BTKH, until_BT)

    return attend


def saveable(primitive, *inputs, **parameters):
    """Decides, as a policy of jax.checkpoint, to keep what the backward pass needs of attention.

    Kernels here name it SAVED. JAX does not name what cuDNN returns, so that call is kept whole.
    """
    named = jax.checkpoint_policies.save_only_these_names(masks.SAVED)
    cudnn = primitive.name == "dot_product_attention_fwd_wrapper"
    return cudnn or named(primitive, *inputs, **parameters)


def _reference(q_BTNH, k_BTKH, v_BTKH, until_BT, *, block):
    del block
    o_BTNH = masks.attend_reference(q_BTNH, k_BTKH, v_BTKH, masks.visible(until_BT))
    return checkpoint_name(o_BTNH, masks.SAVED)


def _cudnn(q_BTNH, k_BTKH, v_BTKH, until_BT, *, block):
    """Calls cuDNN's flash attention: causal, with the rest of the mask as an array.

    JAX before 0.11.1 also computes a gradient of the mask, which nobody reads: right, but slow.
    """
    del block
    if q_BTNH.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"attention='cudnn' computes in bfloat16 or float16, not in {q_BTNH.dtype}. Use one of "
            "them as the dtype of the update, or attention auto, reference or blockwise."
        )
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        mask=masks.visible(until_BT)[:, None],
        is_causal=True,
        implementation="cudnn",
    )
