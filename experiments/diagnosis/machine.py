"""The machine and what is installed on it: versions, devices, their limits, compiled programs."""

import functools
import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import subprocess
import tempfile

import jax
import jax.numpy as jnp
from packaging.requirements import Requirement

from experiments.configs import common
from experiments.diagnosis.rows import ABSENT, BROKEN, INSTALL, NOTE, OK, Row
from experiments.running import compiled, places
from experiments.speed import measure
from flow_grpo_jax import __version__
from models import hardware

DISTRIBUTION = "flow-grpo-jax"
DEVELOPMENT = "dev"  # an extra that no run needs
# Shown where they are installed; no requirement of ours names them.
BESIDE = ("jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
BESIDE += ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
# Variables that change how programs are compiled or run.
SWITCHES = ("XLA_", "JAX_", "LIBTPU_INIT_ARGS", "CUDA_VISIBLE_DEVICES", "TPU_VISIBLE", "MALLOC_")
SWITCHES += ("GLIBC_TUNABLES", "OMP_NUM_THREADS")
SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD")  # in a name
ACCELERATORS = {"nvidia0": "cuda13", "accel0": "tpu"}  # in /dev -> the extra with its JAX
KINDS = {"v5 lite": "v5e", "v5e": "v5e", "v5": "v5p", "v6": "v6e", "v4": "v4"}  # of TPUs
KINDS |= {name: name for name in hardware.GPUS}
SLOW = 0.5  # share of the data sheet's rate below which something is wrong


# ---- versions ----------------------------------------------------------------------------------


def versions():
    """Yields Rows on the system, this code and the packages it needs."""
    yield Row("python", OK, f"{platform.python_version()} {platform.python_implementation()}")
    yield Row("system", OK, f"{platform.platform()}, {platform.machine()}")
    yield Row("code", OK, _commit())
    try:
        needed = list(_requirements(DISTRIBUTION))
    except importlib.metadata.PackageNotFoundError:
        needed = []
        yield Row("packages", NOTE, f"{DISTRIBUTION} is not installed as a package.", INSTALL)
    found = {name: _version(name) for name in [*(r.name for r in needed), *BESIDE]}
    found = {name: version for name, version in sorted(found.items()) if version}
    yield Row("packages", OK, ", ".join(map(" ".join, found.items())), facts=found)
    for problem in filter(None, map(_problem, needed)):
        yield Row("packages", BROKEN, problem, INSTALL)
    names = (name for name in sorted(os.environ) if name.startswith(SWITCHES))
    switches = {name: os.environ[name] for name in names if not SECRET.search(name)}
    shown = " ".join(f"{name}={value}" for name, value in switches.items())
    yield Row("environment", OK, shown or "nothing that changes programs", facts=switches)


def extras():
    """Yields a Row for each optional set of packages."""
    try:
        about = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return  # `versions` says so
    for extra in about.get_all("Provides-Extra") or []:
        if extra == DEVELOPMENT:
            continue
        missing = [p for r in _requirements(DISTRIBUTION, extra) if (p := _problem(r))]
        if missing:
            yield Row(extra, ABSENT, "; ".join(missing), f"pip install -e '.[{extra}]'")
        else:
            yield Row(extra, OK, "installed")


def _requirements(distribution, extra=""):
    """Yields the Requirements of a distribution, or what its extra adds to them."""
    for requirement in map(Requirement, importlib.metadata.requires(distribution) or ()):
        asked = lambda extra, marker=requirement.marker: not marker or marker.evaluate(extra)
        if asked({"extra": extra}) and not (extra and asked({"extra": ""})):
            yield requirement


def _problem(requirement):
    """Returns what keeps a Requirement from being met, "" if it is."""
    version = _version(requirement.name)
    if not version:
        return f"{requirement.name} is missing"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} is {version}, not {requirement.specifier}"
    inner = (_requirements(requirement.name, extra) for extra in requirement.extras)
    return "; ".join(p for each in inner for r in each if (p := _problem(r)))


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit():
    """Returns the version and, of a checkout, its commit."""
    if not (places.ROOT / ".git").exists() or not shutil.which("git"):
        return f"{__version__}, no git checkout"
    command = ["git", "-C", str(places.ROOT), "describe", "--always", "--dirty=, with changes"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if told.returncode != 0:
        return f"{__version__}, {told.stderr.strip()}"
    return f"{__version__}, commit {told.stdout.strip()}"


# ---- devices -----------------------------------------------------------------------------------


def devices():
    """Yields Rows on the devices that JAX found, their memory, and those that it did not find."""
    try:
        found = jax.devices()
    except (AssertionError, RuntimeError) as error:  # the former says nothing
        asked = os.environ.get("JAX_PLATFORMS") or "its own choice"
        reason = str(error) or "the package for it is missing, or it finds no device"
        todo = "Install the extra for the device, or run without JAX_PLATFORMS."
        yield Row("jax", BROKEN, f"JAX starts no device (JAX_PLATFORMS: {asked}): {reason}", todo)
        return
    first, platform_name = found[0], found[0].platform
    memory = first.memory_stats() or {}
    facts = {
        "platform": platform_name,
        "kind": first.device_kind,
        "count": len(found),
        "processes": jax.process_count(),
        "memory": memory.get("bytes_limit"),
        "backend": first.client.platform_version,
        "cores": len(os.sched_getaffinity(0)),
        "host_free": hardware.free_bytes(jax.devices("cpu")[0]),
    }
    text = f"{len(found)} x {first.device_kind} ({platform_name})"
    if limit := facts["memory"]:
        text += f", {limit / hardware.GiB:.1f} GiB each for JAX"
    version = facts["backend"].splitlines()[0] if facts["backend"] else ""
    yield Row("jax", OK, f"{text}; {version}".rstrip("; "), facts=facts)
    free = facts["host_free"]
    room = f", {free / hardware.GiB:.1f} GiB of memory free" if free else ""
    yield Row("host", OK, f"{facts['cores']} cores of {_processor()}{room}")
    if platform_name == "cpu":
        for name, extra in ACCELERATORS.items():
            if pathlib.Path("/dev", name).exists():
                yield Row(
                    name,
                    NOTE,
                    f"There is a /dev/{name}, but JAX runs on the CPU.",
                    f"pip install -e '.[{extra}]'; then look at JAX_PLATFORMS and the driver.",
                )


def _processor():
    if compiled.CPU_INFO.exists():
        lines = compiled.CPU_INFO.read_text(errors="replace").splitlines()
        if names := [line.partition(": ")[2] for line in lines if line.startswith("model name")]:
            return names[0]
    return platform.processor() or platform.machine()


# ---- limits ------------------------------------------------------------------------------------


@functools.cache
def limits():
    """Measures (dtype, FLOP/s of a large product in it, bytes/s of a copy) of the first device."""
    dtype = jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    return dtype, measure.matmul_rate(dtype), measure.copy_bandwidth()


def speed():
    """Yields Rows on the `limits`, beside those of the data sheet where the device is known."""
    dtype, rate, bandwidth = limits()
    sheet = chip(jax.devices()[0].device_kind)
    for what, value, unit, listed in (
        (f"product, {dtype.name}", rate, "FLOP", sheet and sheet.flops),
        ("copy", bandwidth, "B", sheet and sheet.bandwidth),
    ):
        share = value / listed if listed else None
        text = per_second(value, unit)
        text += f", {share:.0%} of the data sheet" if listed else ""
        slow = share is not None and share < SLOW
        yield Row(
            what,
            NOTE if slow else OK,
            text,
            "Does another process use the device, or is its power limited (nvidia-smi)?"
            if slow
            else "",
            facts={"per_second": value, "share": share},
        )


def per_second(value, unit):
    """Returns a rate as text."""
    return f"{value / 1e12:.3g} T{unit}/s" if value >= 1e12 else f"{value / 1e9:.3g} G{unit}/s"


def chip(kind):
    """Returns the hardware.Chip of a device by its kind; None if it is not known."""
    name = next((KINDS[key] for key in KINDS if key in kind.lower()), None)
    return (hardware.TPUS | hardware.GPUS).get(name)


# ---- compiled programs -------------------------------------------------------------------------


def cache():
    """Yields a Row on the folder of compiled programs, which the later checks use too."""
    compiled.keep(common.base().compile_cache, device=jax.default_backend())
    folder = jax.config.jax_compilation_cache_dir
    if not folder:
        todo = "Name a folder that you can write to: JAX_COMPILATION_CACHE_DIR."
        yield Row("folder", NOTE, "none: every start compiles anew", todo)
        return
    if "://" in folder:
        yield Row("folder", OK, folder)
        return
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):  # raises what keeps programs from being written
        sizes = [entry.stat().st_size for entry in path.iterdir() if entry.is_file()]
    text = f"{folder}: {len(sizes)} files, {sum(sizes) / 2**20:,.0f} MiB"
    facts = {"folder": folder, "files": len(sizes), "bytes": sum(sizes)}
    if path.stat().st_mode & 0o022:
        text += "; other users can write to it, and so run programs as you"
        yield Row("folder", NOTE, text, f"chmod go-w {folder}", facts)
    else:
        yield Row("folder", OK, text, facts=facts)
