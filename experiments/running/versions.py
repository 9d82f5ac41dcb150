"""What is installed that results depend on, and the devices."""

import importlib.metadata
import platform

import jax

DISTRIBUTION, UNKNOWN = "flow-grpo-jax", "unknown"
PACKAGES = (DISTRIBUTION, "jax", "jaxlib", "flax", "numpy", "transformers", "tokenizers")


def installed():
    """Returns {name: version} and, as "devices", how many of which kind."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = UNKNOWN
    devices = jax.devices()
    return found | {"devices": f"{len(devices)} x {devices[0].device_kind}"}
