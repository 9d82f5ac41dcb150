"""Flow-GRPO in JAX; `__version__` is the one place of the version."""

__version__ = "0.2.0"
