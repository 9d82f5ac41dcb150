"""The TPU kernels of attention compile for real chips, ahead of time and without one.

Needs libtpu, which brings its own description of each chip: `pip install "jax[tpu]"` in an
environment of its own, then `python -m pytest tests/models/test_attention_tpu.py`.
"""

import importlib.util
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from models import decoder, sharding
from models.attention import kernels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is missing"),
]
CHIPS = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v5p": "v5p:2x2x1"}


@pytest.fixture
def devices(monkeypatch):
    """chip -> its devices, four of them."""
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # there is no machine to ask
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    return lambda chip: (
        topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip]).devices
    )


def compiled(devices, name, tokens, size, **options):
    """Values and gradients of one attention, compiled for as many of the devices as the mesh has.

    Args:
      options: dtype, rows, heads (query, key/value), policy of jax.checkpoint, and sizes of the
        mesh.
    """
    rows, heads = options.pop("rows", 1), options.pop("heads", (14, 2))
    dtype, policy = options.pop("dtype", jnp.bfloat16), options.pop("policy", None)
    sizes = {"data": 1, **options}
    mesh = sharding.make_mesh(devices=devices[: math.prod(sizes.values())], **sizes)
    attend = kernels.make(name, mesh=mesh)
    layer = lambda q_BTNH, *inputs: attend(2 * q_BTNH, *inputs)
    layer = jax.checkpoint(layer, policy=policy) if policy else layer

    def run(q_BTNH, k_BTKH, v_BTKH, do_BTNH, until_BT):
        attend_rows = lambda *qkv: layer(*qkv, until_BT)
        o_BTNH, backward = jax.vjp(attend_rows, q_BTNH, k_BTKH, v_BTKH)
        return o_BTNH, *backward(do_BTNH)

    split = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor", None))
    q_BTNH, k_BTKH = (
        jax.ShapeDtypeStruct((rows, tokens, n, size), dtype, sharding=split) for n in heads
    )
    split = sharding.batch_sharding(mesh)
    until_BT = jax.ShapeDtypeStruct((rows, tokens), jnp.int32, sharding=split)
    return jax.jit(run).lower(q_BTNH, k_BTKH, k_BTKH, q_BTNH, until_BT).compile()


def temporaries(program):
    """MiB per device."""
    return program.memory_analysis().temp_size_in_bytes / 2**20


def kernel_calls(program):
    return program.as_text().count('custom_call_target="tpu_custom_call"')


@pytest.mark.parametrize("tokens", [4096, 20480])
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("chip", CHIPS)
def test_pallas_compiles_and_its_memory_grows_with_the_row(devices, chip, size, tokens):
    program = compiled(devices(chip), "pallas", tokens, size)
    inputs = 2 * tokens * (14 + 2 + 2 + 14) * max(size, 128) / 2**20  # lanes are padded to 128
    assert kernel_calls(program) == 3
    assert temporaries(program) < 2 * inputs + 32


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("chip", CHIPS)
def test_splash_compiles(devices, chip, size):
    program = compiled(devices(chip), "splash", 4096, size, rows=2)
    assert kernel_calls(program) == 3
    assert temporaries(program) < 512


@pytest.mark.parametrize("kernel", ["pallas", "splash", "blockwise"])
def test_small_heads_and_float32_compile(devices, kernel):
    compiled(devices("v5e"), kernel, 1000, 32, dtype=jnp.float32, heads=(4, 2), rows=2)


@pytest.mark.parametrize("tokens", [4096, 12288])
def test_auto_compiles_on_a_mesh(devices, tokens):
    program = compiled(devices("v5e"), "auto", tokens, 128, rows=4, heads=(28, 4), fsdp=2, tensor=2)
    assert kernel_calls(program) == 3
    assert temporaries(program) < 1024


@pytest.mark.parametrize("kernel", ["pallas", "splash"])
@pytest.mark.parametrize("sizes", [dict(), dict(fsdp=2, tensor=2)], ids=["alone", "mesh"])
def test_remat_policy_spares_the_forward_kernel(devices, kernel, sizes):
    def runs(policy):
        return kernel_calls(
            compiled(devices("v5e"), kernel, 1024, 128, rows=2, policy=policy, **sizes)
        )

    assert (
        runs(decoder.REMAT["attention"]) == 3
    )  # forward, query gradients, key and value gradients
    assert runs(jax.checkpoint_policies.nothing_saveable) == 4
