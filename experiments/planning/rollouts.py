"""What the sampling engine needs beside the trainer's state, on devices that need not be there."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from experiments.planning import programs
from experiments.running import command, sessions
from models import lora, sharding
from models.engine import ahead, cache, placement, shapes


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes per device while rollouts run.

    weights: of the policy and the frozen model. cache: keys and values.
    state: the trainer's parameters, moments and frozen weights, as far as they are other arrays.
    temporaries: of each compiled program by name; empty if none was compiled.
    """

    weights: int
    cache: int
    state: int
    temporaries: dict

    @property
    def total(self):
        return self.weights + self.cache + self.state + max(self.temporaries.values(), default=0)


def need(config, dims, topology, estimated, found=()):
    """Computes the Need of a config.

    Args:
      dims: decoder.Config.
      topology: hardware.Topology.
      estimated: `advice.Need` of the update.
      found: the devices of one replica, to compile its programs for; none compiles nothing.

    Raises:
      ConfigError: the engine's devices do not divide what they should.
    """
    tensor, settings = config.engine.tensor, sessions.engine_shapes(config)
    dtype = jnp.dtype(settings["dtype"])
    if tensor < 1 or topology.devices % tensor:
        raise command.ConfigError(
            f"engine.tensor={tensor} does not divide {topology.devices} devices."
        )
    mesh = jax.sharding.AbstractMesh((1, 1, tensor), sharding.AXES)
    adapters = programs.adapters(config)
    base = model = programs.abstract_model(dims, dtype)
    if adapters is not None:
        model = jax.eval_shape(
            functools.partial(lora.add, settings=adapters, dtype=dtype), base, jax.random.key(0)
        )
    with command.checking_config():
        base_bytes = _bytes(mesh, base, dtype)
        policy_bytes = _bytes(mesh, model, dtype)
        layers = placement.layer_bytes(base, mesh, dtype)
    weights = 2 * policy_bytes
    if adapters is not None:  # both sets have the arrays of one base
        weights -= base_bytes
    layout, *_ = cache.candidates(topology.kind, dims, size=settings["page_size"], dtype=dtype)
    cache_bytes = shapes.of(dims, layout=layout, **settings).cache_bytes(mesh)
    state = estimated.parameters + estimated.moments + estimated.frozen
    separate = config.engine.layers == "separate"
    if config.engine.layers == "auto":
        separate = topology.kind in placement.SLICES_ARE_COPIED
        if topology.limits is not None:
            separate &= weights + cache_bytes + state <= sessions.ROOM * topology.limits.memory
    if adapters is not None and topology.devices == 1:  # what is not separate is the trainer's
        weights -= base_bytes - separate * layers
    temporaries = {}
    if found:
        lowered = ahead.lowered(
            model,
            mesh=sharding.make_mesh(tensor=tensor, devices=found),
            separate=separate,
            **settings,
        )
        for name, program in lowered.items():
            total = programs.memory(program, name)
            temporaries[name] = max(0, total - policy_bytes - cache_bytes)
    return Need(
        weights=weights,
        cache=cache_bytes,
        state=state,
        temporaries=temporaries,
    )


def _bytes(mesh, model, dtype):
    shardings = jax.tree.leaves(sharding.parameter_shardings(mesh, model))
    leaves = zip(jax.tree.leaves(model), shardings, strict=True)
    return sum(math.prod(place.shard_shape(leaf.shape)) for leaf, place in leaves) * dtype.itemsize
