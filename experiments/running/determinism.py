"""Operations of GPUs that give the same bits in every process, which XLA is told before it starts.

By default XLA times several implementations of an operation on a GPU and takes the fastest, and
some of them add in no fixed order. On CPUs and TPUs there is nothing to switch.
"""

import os

import jax
from jax._src import xla_bridge  # whether a backend has started has no public name

from experiments.running import command

VARIABLE, FLAG = "XLA_FLAGS", "--xla_gpu_deterministic_ops=true"


def ask(wanted):
    """Has XLA use deterministic operations only, if wanted; before anything uses a device.

    Raises:
      ConfigError: JAX runs on a GPU already and was not told.
    """
    flags = os.environ.get(VARIABLE, "").split()
    if not wanted or FLAG in flags:
        return
    if not xla_bridge.backends_are_initialized():
        os.environ[VARIABLE] = " ".join([*flags, FLAG])  # the last one counts
    elif jax.default_backend() == "gpu":
        raise command.ConfigError(
            "deterministic=True comes too late: JAX has started in this process. Start another "
            f"one with {VARIABLE}={FLAG} in its environment."
        )
