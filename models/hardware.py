"""Limits of accelerators, and names for groups of them.

A topology is named like "v5e:4x4" (a TPU slice, chips along each dimension of its torus) or, by
Google's name for it, "v5e-16"; "gpu:h200x1" (GPUs that NVLink joins) or "cpu:8" (virtual devices of
this machine).
"""

import dataclasses
import math
import pathlib
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    memory: bytes a program may use.
    flops: bf16 products, FLOP/s.
    bandwidth: of its memory, bytes/s.
    link: to other chips, bytes/s over all its links, one direction.
    """

    memory: float
    flops: float
    bandwidth: float
    link: float


GiB = 2**30

# TPU: memory that libtpu admits, rates of Google's data sheets. GPU: memory that a driver leaves
# free; the H200's rates were measured (matmul and copy), the others are from NVIDIA's data sheets.
TPUS = {
    "v4": Chip(30.75 * GiB, 275e12, 1.23e12, 150e9),
    "v5e": Chip(15.75 * GiB, 197e12, 0.82e12, 200e9),
    "v5p": Chip(95.74 * GiB, 459e12, 2.77e12, 600e9),
    "v6e": Chip(31.25 * GiB, 920e12, 1.64e12, 448e9),
}
GPUS = {
    "a100": Chip(79.0 * GiB, 312e12, 2.04e12, 300e9),
    "h100": Chip(79.0 * GiB, 989e12, 3.35e12, 450e9),
    "h200": Chip(139.0 * GiB, 790e12, 4.3e12, 450e9),
}

# Chips along each dimension of the slices that Google names, by the number in the name. It counts
# chips of v5e and v6e, and the cores of v4 and v5p, two a chip: a v5p-8 has four chips.
FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16)}
FLAT |= {256: (16, 16)}
CUBES = {8: (2, 2, 1), 16: (2, 2, 2), 32: (2, 2, 4), 64: (2, 4, 4), 128: (4, 4, 4), 256: (4, 4, 8)}
CUBES |= {512: (4, 8, 8), 1024: (8, 8, 8)}
SLICES = {"v4": CUBES, "v5p": CUBES, "v5e": FLAT, "v6e": FLAT}

KINDS = {"tpu": TPUS, "gpu": GPUS}
EXAMPLES = "v5e-16, v6e-8, v5p-16, v5p:2x2x2, v5e:4x4, gpu:h200x1, gpu:a100x8, cpu:8"


@dataclasses.dataclass(frozen=True)
class Topology:
    """A group of like devices.

    kind: "tpu", "gpu" or "cpu". chip: its name in TPUS or GPUS, "" for a CPU.
    shape: of a TPU slice, chips along three dimensions; else (devices, 1, 1).
    """

    name: str
    kind: str
    chip: str
    shape: tuple[int, int, int]

    @property
    def devices(self):
        return math.prod(self.shape)

    @property
    def limits(self):
        """Chip, or None for virtual devices, which share this machine."""
        return KINDS[self.kind][self.chip] if self.chip else None


def topology(name):
    """Returns the Topology of a name.

    Raises:
      ValueError: the name is unknown; the message lists the known ones.
    """
    if match := re.fullmatch(r"(v4|v5e|v5litepod|v5p|v6e)-(\d+)", name.lower()):
        kind = match[1].replace("litepod", "e")
        if (size := int(match[2])) in SLICES[kind]:
            return topology(f"{kind}:{'x'.join(map(str, SLICES[kind][size]))}")
        raise ValueError(
            f"topology={name!r} is no slice that Google names; valid: "
            f"{', '.join(f'{kind}-{size}' for size in SLICES[kind])}. Other shapes go by their "
            f"chips, e.g. {kind}:{'2x2x4' if SLICES[kind] is CUBES else '4x4'}."
        )
    kind, _, rest = name.lower().partition(":")
    if kind == "cpu" and re.fullmatch(r"[1-9]\d*", rest):
        return Topology(name, "cpu", "", (int(rest), 1, 1))
    match = re.fullmatch(r"([a-z]+\d+)x([1-9]\d*)", rest)
    if kind == "gpu" and match and match[1] in GPUS:
        return Topology(name, "gpu", match[1], (int(match[2]), 1, 1))
    if kind in TPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", rest):
        shape = tuple(int(size) for size in rest.split("x"))
        flat = kind in ("v5e", "v6e")  # a torus of two dimensions, the others of three
        if len(shape) == (2 if flat else 3):
            return Topology(name, "tpu", kind, (*shape, 1)[:3])
    raise ValueError(
        f"topology={name!r} is unknown. Valid: a TPU slice by name or by its chips "
        f"({', '.join(sorted(TPUS))}; two sizes for v5e and v6e, three for v4 and v5p), "
        f"gpu:NAMExCOUNT ({', '.join(sorted(GPUS))}) or "
        f"cpu:COUNT, e.g. {EXAMPLES}."
    )


def part(topology, count):
    """Returns the topology of `count` such devices alone, close together."""
    if topology.kind != "tpu":
        return dataclasses.replace(
            topology, name=f"{count} of {topology.name}", shape=(count, 1, 1)
        )
    width = 2 if count % 4 == 0 else 1
    shape = (width, count // width, 1)
    sizes = shape[: len(topology.name.split("x"))]  # as many as its name has
    name = f"{topology.chip}:{'x'.join(map(str, sizes))}"
    return dataclasses.replace(topology, name=name, shape=shape)


def like_gpus(topology):
    """Returns the v5p slice that stands in for as many GPUs where something must be compiled.

    The largest memory of a chip that libtpu knows; chips lie along the last dimension.
    """
    count = topology.devices
    shape = (2, 2, count // 4) if count % 4 == 0 else (1, 1, count)
    return Topology(f"v5p:{'x'.join(map(str, shape))}", "tpu", "v5p", shape)


def free_bytes(device):
    """Returns the bytes of memory that a device has to give, None where nothing tells.

    Args:
      device: jax.Device. A CPU's memory is that of the machine.
    """
    if device.platform != "cpu":
        found = device.memory_stats() or {}
        return found["bytes_limit"] - found["bytes_in_use"] if "bytes_limit" in found else None
    table = pathlib.Path("/proc/meminfo")
    if not table.exists():
        return None
    lines = dict(line.split(":") for line in table.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
