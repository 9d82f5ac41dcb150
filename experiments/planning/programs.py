"""The programs of an update, compiled for devices that need not be there.

Nothing is loaded and nothing runs: weights are shapes, placed by the same tables as in training.
TPU programs are compiled by libtpu, which needs no TPU; others by the CPU backend.

Dimensions:
  B rows of a micro-batch    T tokens in a row    A response tokens of a row
"""

import dataclasses
import functools
import importlib.util
import math
import os
import pathlib
import re
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.experimental import topologies

from experiments.running import command, sessions
from flow_grpo_jax import batching, optimizer, update
from models import lora, sharding

INSTALL = (
    "libtpu, the TPU compiler, is not installed here. It must match jaxlib, so give it an "
    "environment of its own: python -m venv plan && plan/bin/pip install -e '.[plan]', and run "
    "this command with plan/bin/python. No TPU is needed."
)
# What libtpu asks of a machine that has no TPU.
WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
ACCELERATOR_TYPES = {"v4": "v4-8", "v5e": "v5litepod-4", "v5p": "v5p-8", "v6e": "v6e-4"}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Arguments of the update's programs as shapes with shardings.

    frozen: None if nothing reads it. batches: one TurnBatch for each row length.
    """

    params: Any
    opt_state: Any
    count: Any
    frozen: Any
    grads: Any
    sums: Any
    batches: tuple


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program. All numbers are bytes per device.

    rows, tokens: of its micro-batch, 0 if it has none.
    inputs: arguments, and results that do not take their place.
    temporaries: what it needs besides.
    beside: what lies in memory meanwhile and is not among its arguments.
    """

    name: str
    rows: int
    tokens: int
    inputs: int
    temporaries: int
    beside: int

    @property
    def total(self):
        return self.inputs + self.temporaries + self.beside


# ---- devices -----------------------------------------------------------------------------------


def has_libtpu():
    return importlib.util.find_spec("libtpu") is not None


def prepare_machine(topology):
    """Sets what JAX must know before it starts its backend: once, at the start of the process."""
    jax.config.update("jax_platforms", "cpu")
    if topology.kind == "cpu":
        jax.config.update("jax_num_cpu_devices", topology.devices)


def devices(topology):
    """Returns devices of a topology that programs can be compiled for.

    Raises:
      ConfigError: libtpu is missing or does not know the slice, or the CPU has fewer devices.
    """
    if topology.kind == "cpu":
        local = jax.devices("cpu")[: topology.devices]
        if len(local) < topology.devices:
            raise command.ConfigError(
                f"{topology.name}: JAX has started with {len(local)} virtual devices already."
            )
        return local
    if not has_libtpu():
        raise command.ConfigError(INSTALL)
    for name, value in (WITHOUT_TPU | {"TPU_ACCELERATOR_TYPE": _type(topology)}).items():
        os.environ.setdefault(name, value)
    # Hosts have 2 x 2 chips; a slice that is no multiple of it counts as hosts of one chip each.
    whole = all(size % 2 == 0 for size in topology.shape[:2])
    options = {"chips_per_host_bounds": [2, 2, 1] if whole else [1, 1, 1]}
    if topology.chip == "v4":  # its two cores as one device, as JAX runs it
        options["chip_config_name"] = "megacore"
    sizes = topology.name.lower().partition(":")[2]
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{topology.chip}:{sizes}", **options
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise command.ConfigError(
            f"libtpu knows no slice {topology.name!r}: {str(error).splitlines()[0]}"
        ) from error


def _type(topology):
    return ACCELERATOR_TYPES[topology.chip]


def abstract_mesh(config, count):
    """Makes the config's mesh over `count` devices that nobody has: enough to count bytes."""
    with command.checking_config():
        sizes = sharding.mesh_sizes(
            data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor, count=count
        )
    return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))


def mesh_over(config, found):
    with command.checking_config():
        return sharding.make_mesh(
            data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor, devices=found
        )


# ---- shapes ------------------------------------------------------------------------------------


def adapters(config):
    """Returns lora.Settings of a config; None if every parameter is trained."""
    if not config.model.lora.rank:
        return None
    with command.checking_config():
        return lora.Settings(**config.model.lora)


abstract_model = functools.cache(sessions.abstract_model)  # advice asks for it again and again


def inputs(config, dims, mesh):
    """Returns the Inputs of the update that a config describes.

    Args:
      dims: decoder.Config.
      mesh: real or abstract.

    Raises:
      ConfigError: the mesh or the rows do not divide what they should.
    """
    settings = adapters(config)
    model = abstract_model(dims, jnp.float32)
    frozen = abstract_model(dims, sessions.compute_dtype(config))
    params = model
    if settings is not None:
        make = functools.partial(lora.init, settings=settings)
        params = jax.eval_shape(make, frozen, jax.random.key(0))
    with command.checking_config():
        adamw = optimizer.make(**config.optim)
        places = update.state_shardings(adamw, sharding.parameter_shardings(mesh, params))
        frozen = _placed(frozen, sharding.parameter_shardings(mesh, frozen))
    scalar = functools.partial(jax.ShapeDtypeStruct, (), sharding=places.step)
    return Inputs(
        params=_placed(params, places.params),
        opt_state=_placed(jax.eval_shape(adamw.init, params), places.opt_state),
        count=scalar(jnp.int32),
        frozen=frozen if config.loss.kl_coef or settings is not None else None,
        grads=_placed(params, places.params),
        sums={name: scalar(jnp.float32) for name in update.sum_names()},
        batches=_batches(config, mesh),
    )


def _placed(tree, shardings):
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(place, tree, shardings)


def _batches(config, mesh):
    sizes = sessions.batch_shapes(config, mesh)
    if config.mesh.sequence:
        for tokens in sizes["row_lengths"]:
            if tokens % mesh.shape["tensor"]:
                raise command.ConfigError(
                    f"mesh.sequence=True splits rows over tensor={mesh.shape['tensor']}, which "
                    f"does not divide batch.row_lengths={sizes['row_lengths']}."
                )
    place = sharding.batch_sharding(mesh)

    buckets = zip(sizes["rows"], sizes["row_lengths"], sizes["response_lengths"], strict=True)
    batches = tuple(
        batching.shapes(rows=rows, tokens=tokens, sampled=sampled)
        for rows, tokens, sampled in buckets
    )
    return jax.tree.map(lambda x: x.update(sharding=place), batches)


def bytes_per_device(tree):
    """Counts the bytes on a device of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


# ---- programs ----------------------------------------------------------------------------------


def compiled(config, variant, values, mesh, *, on_program=lambda program: None):
    """Compiles the config's update: a Program for each row length, `zeros` and `finish` ("step").

    Args:
      variant: of `loss.VARIANTS`.
      values: Inputs on `mesh`, whose devices say what it is compiled for.
      on_program: called with each Program when it is ready; a large one takes minutes.

    Raises:
      MemoryError: the compiler found no way to fit one; the message is its own.
    """
    assemble = update.whole_model if adapters(config) is None else lora.combine
    _, programs = sessions.make_update(
        config,
        variant,
        mesh=mesh,
        params=values.params,
        shardings=jax.tree.map(lambda x: x.sharding, values.params),
        assemble=assemble,
    )
    own = functools.partial(bytes_per_device)
    state, frozen = own((values.params, values.opt_state)), own(values.frozen)
    one_step = config.loss.epochs * config.loss.mini_batches == 1
    one_step = one_step and not config.loss.mini_batch_turns
    found = []

    def add(name, program, *arguments, batch=None, beside, **static):
        total = memory(program.lower(*arguments, **static), name)
        held = own(arguments)
        rows, tokens = (0, 0) if batch is None else batch.token_BT.shape
        found.append(Program(name, rows, tokens, held, max(0, total - held), beside))
        on_program(found[-1])

    for batch in reversed(values.batches):
        add(
            "accumulate",
            programs.accumulate,
            values.grads,
            values.sums,
            values.params,
            values.frozen,
            batch,
            batch=batch,
            beside=own(values.opt_state),
            on_policy=programs.recompute and one_step,
        )
        if programs.recompute and not one_step:
            arguments = (values.params, values.frozen, batch)
            beside = own(values.opt_state)
            add("rescore", programs.rescore, *arguments, batch=batch, beside=beside)
    step = (values.params, values.opt_state, values.count, values.grads, values.sums)
    add("step", programs.finish, *step, beside=frozen)
    add("zeros", programs.zeros, values.params, beside=state - own(values.params) + frozen)
    return found


def memory(lowered, name):
    """Compiles a program; returns the bytes per device that it needs, arguments included."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            program = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "Ran out of memory" not in str(error):
                raise
            logging.info("%s: %s", name, str(error).splitlines()[0])
            program = None
        total = _allocated(pathlib.Path(folder))
    if program is None and total is None:
        raise MemoryError(
            f"The compiler found no way to fit {name!r}, and did not say by how much."
        )
    if total is None:
        stats = program.memory_analysis()
        total = stats.argument_size_in_bytes + stats.temp_size_in_bytes
        total += stats.output_size_in_bytes - stats.alias_size_in_bytes
    return total


def _allocated(folder):
    """Sums libtpu's report of a program's allocations; None if there is none.

    `memory_analysis` of a TPU program counts some buffers twice, and its peak leaves out the gaps
    between buffers.
    """
    reports = sorted(folder.glob("*memory-usage-report.txt"))
    pattern = r"^Memory Space: default \(color=0\)\nTotal bytes: (\d+)"
    sizes = [re.search(pattern, path.read_text(), re.MULTILINE) for path in reports]
    return max((int(size[1]) for size in sizes if size), default=None)
