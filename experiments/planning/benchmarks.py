"""Compiles what `engine` and `update` would run, for a device that need not be there.

    python -m experiments.benchmark ahead --topology=v5p-8

Nothing is measured but the seconds of the compiler and the bytes that each program needs beside
what stays in memory meanwhile. TPU programs are compiled by libtpu (pip install -e '.[plan]' in an
environment of its own), those of cpu:1 by XLA:CPU. Models and micro-batches are those that the
benchmarks would choose for one such device.

Dimensions:
  B rows    T tokens in a row    A response tokens of a row
"""

import functools
import time

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec

from experiments.planning import programs
from experiments.running import command
from experiments.speed import engine, loads, measure, step, traffic, update
from flow_grpo_jax import batching
from flow_grpo_jax.update import sum_names
from models import hardware, lora, sharding
from models.engine import ahead

EXAMPLE = "v5p-8"
CHUNK, REMAT, SEED = 512, "dots", 0  # as the benchmarks have them by default


def engine_programs(name, device, memory, dtype):
    """Yields (program, bytes) of our engine on all loads of a size."""
    size = traffic.SIZES[name]
    settings = engine.our_settings(
        size,
        engine.longest_of(size, traffic.LOADS, SEED),
        memory,
        dtype=dtype,
        platform=device.platform,
        chosen=dict.fromkeys(traffic.ON_CPU),
    )
    del settings["prefill_calls"]  # shapes do not depend on it
    lowered = ahead.lowered(
        programs.abstract_model(size.dims, dtype),
        mesh=sharding.make_mesh(devices=[device]),
        **settings,
    )
    for what, program in lowered.items():
        yield what, programs.memory(program, what)


def update_programs(name, device, memory, dtype):
    """Yields (program, bytes) of our update on all loads of a size, moments included."""
    size = loads.SIZES[name].fitted(memory)
    if size is None:
        raise command.ConfigError(f"--update={name} does not fit; leave it out.")
    mesh = sharding.make_mesh(devices=[device])
    adamw, make = step.maker(size, dtype=dtype, remat=REMAT, attend="auto", chunk=CHUNK, mesh=mesh)
    place = NamedSharding(mesh, PartitionSpec())
    placed = functools.partial(jax.tree.map, lambda x: x.update(sharding=place))
    shape = lambda tree: placed(jax.eval_shape(lambda: tree))
    model, frozen = (programs.abstract_model(size.dims, x) for x in (jnp.float32, dtype))
    params = model
    if size.rank:
        init = functools.partial(lora.init, settings=step.adapters(size))
        params = jax.eval_shape(init, frozen, jax.random.key(0))
    params, frozen = placed(params), placed(frozen)
    opt_state = placed(jax.eval_shape(adamw.init, params))
    sums = shape({name: jnp.zeros(()) for name in sum_names()})
    program, moments = make(), programs.bytes_per_device(opt_state)
    for rows, tokens, sampled in sorted(_shapes(size)):
        batch = placed(batching.shapes(rows=rows, tokens=tokens, sampled=sampled))
        lowered = program.accumulate.lower(params, sums, params, frozen, batch, on_policy=False)
        what = f"accumulate {rows} x {tokens}"
        yield what, moments + programs.memory(lowered, what)
    count = shape(jnp.zeros((), jnp.int32))
    lowered = program.finish.lower(params, opt_state, count, params, sums)
    yield "finish", programs.bytes_per_device(frozen) + programs.memory(lowered, "finish")


def _shapes(size):
    """Returns {(rows, tokens, sampled tokens of a row)} of the micro-batches of all loads."""
    found = set()
    for name, make in loads.LOADS.items():
        load = make(size, SEED)
        for layout in update.layouts_of(name, update.QUICK["layouts"]):
            batches = update.our_batches(size, load, layout, uniform=name == "uniform")
            found |= {(*batch.token_BT.shape, batch.mask_BA.shape[1]) for batch in batches}
    return found


def compiled(what, names, compile, device, memory, dtype):
    """Compiles all programs of several sizes; returns the rows of a table."""
    rows = []
    for name in names:
        started = time.perf_counter()
        for program, size in compile(name, device, memory, dtype):
            now = time.perf_counter()
            gib, seconds = f"{size / hardware.GiB:.2f}", f"{now - started:.1f}"
            rows.append([f"{what} {name}, {program}", gib, seconds])
            started = now
    return rows


def define_flags():
    flags.DEFINE_string("topology", EXAMPLE, "Devices, of which one is used: a TPU slice or cpu:1.")
    flags.DEFINE_list("engine", None, f"Of {', '.join(traffic.SIZES)}; by default what fits.")
    flags.DEFINE_list("update", None, f"Of {', '.join(loads.SIZES)}; by default what fits.")


def main():
    values = flags.FLAGS
    with command.checking_config():
        topology = hardware.topology(values.topology)
    if topology.kind == "gpu":
        raise command.ConfigError(
            f"--topology={topology.name}: there is no compiler for GPUs without one. Run "
            "experiments.benchmark engine and update there; TPU slices compile here."
        )
    programs.prepare_machine(topology)
    [device, *_] = programs.devices(hardware.part(topology, 1))
    memory = topology.limits and topology.limits.memory
    dtype = jnp.dtype(jnp.float32 if memory is None else jnp.bfloat16)
    by_default = {
        "engine": ["nano"] if memory is None else [traffic.largest_that_fits(memory)],
        "update": ["nano"] if memory is None else update.models_that_fit(memory),
    }
    rows = [["program", "GiB", "compile s"]]
    for what, sizes, compile in (
        ("engine", traffic.SIZES, engine_programs),
        ("update", loads.SIZES, update_programs),
    ):
        names = by_default[what] if values[what].value is None else values[what].value
        names = measure.known(what, names, sizes) if names else []
        rows += compiled(what, names, compile, device, memory, dtype)
    of = f" of {memory / hardware.GiB:.2f} GiB" if memory else ""
    title = f"one of {topology.name}{of}, jax {jax.__version__}"
    measure.write_lines([title, *measure.aligned(rows)])
