"""Measures the speed and memory of loading a model folder, against plain reading of its files.

    python -m experiments.benchmark loading --gigabytes=1.5 --rounds=5

Makes a folder of random bfloat16 weights in the shape of Qwen2.5-1.5B with fewer layers. A round
reads the files from start to end in one thread, in the same blocks as loading, then loads the
folder; once with the files dropped from the page cache before both, once without. The first load
also compiles programs, whose number does not depend on the model; it is reported separately. Memory
is the process's peak during a load, minus what it held before and the model itself; it is
meaningful only with malloc's usual settings.
"""

import ctypes
import gc
import json
import os
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
from absl import flags, logging

from models import decoder, folders, huggingface, safetensors_file, weights

SHAPE = dict(
    vocab_size=151_936,
    hidden_size=1536,
    intermediate_size=8960,
    num_attention_heads=12,
    num_key_value_heads=2,
    head_dim=128,
)


def make_folder(folder, *, gigabytes):
    """Writes random bfloat16 weights of about `gigabytes`; returns the decoder.Config."""
    config = decoder.Config(**SHAPE, num_hidden_layers=1)
    per_layer = _nbytes(decoder.Config(**SHAPE, num_hidden_layers=2)) - _nbytes(config)
    layers = max(1, round((gigabytes * 1e9 - _nbytes(config)) / per_layer) + 1)
    config = decoder.Config(**SHAPE, num_hidden_layers=layers)
    dtype, random = np.dtype(safetensors_file.DTYPES["BF16"]), np.random.default_rng(0)

    def tensor(name, shape):
        # Bit patterns of ordinary numbers, |x| < 2.
        fetch = lambda: random.integers(0, 0x3FFF, shape, np.uint16).view(dtype)
        return safetensors_file.Tensor(name, dtype, shape, fetch)

    tensors = [
        tensor(name, part.file_shape) for name, part in weights.parts(_shapes(config)).items()
    ]
    target = folders.Folder(folder)
    safetensors_file.write(target, weights.SINGLE, tensors, metadata={"format": "pt"})
    target.write_json(huggingface.CONFIG, huggingface.config_to_dict(config, dtype="bfloat16"))
    return config


def measure(folder, *, rounds):
    """Measures {name: number} of a folder here; rates in GB/s, medians over rounds.

    ratio is the median of load rate / read rate of the same round.
    """
    size = sum(path.stat().st_size for path in _files(folder))
    start = time.perf_counter()
    load(folder)
    numbers = {
        "first_load_s": time.perf_counter() - start,
        "memory/extra_mb": peak_beyond_model(folder) / 1e6,
        "memory/largest_tensor_mb": largest_tensor(folder) / 1e6,
    }
    for state in ("cold", "cached"):
        rates = {"read": [], "load": []}
        for _ in range(rounds):
            for name, work in (("read", _read), ("load", load)):
                if state == "cold":
                    _drop_from_cache(folder)
                start = time.perf_counter()
                work(folder)
                rates[name].append(size / 1e9 / (time.perf_counter() - start))
        ratios = [load / read for read, load in zip(rates["read"], rates["load"], strict=True)]
        numbers[f"{state}/read"] = statistics.median(rates["read"])
        numbers[f"{state}/load"] = statistics.median(rates["load"])
        numbers[f"{state}/ratio"] = statistics.median(ratios)
        numbers[f"{state}/ratio_min"], numbers[f"{state}/ratio_max"] = min(ratios), max(ratios)
    return numbers


def load(folder):
    """Loads the model on the default device."""
    model = huggingface.load(folder)
    jax.block_until_ready(model)
    return model


def _read(folder):
    """Reads all weight files, one after another, into one block."""
    block = memoryview(bytearray(safetensors_file.BLOCK))
    for path in _files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def _drop_from_cache(folder):
    for path in _files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def peak_beyond_model(folder):
    """Returns the peak bytes of host memory of a load beyond what stays (Linux, glibc).

    Load the folder once before, so that programs are compiled. malloc needs its usual settings.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    model = load(folder)
    stays = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    return _status("VmHWM") - before - (stays if jax.default_backend() == "cpu" else 0)


def _status(name):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {name}; this benchmark needs Linux.")


def _files(folder):
    return sorted(pathlib.Path(folder).glob("*.safetensors"))


def largest_tensor(folder):
    """Returns the bytes of the largest tensor of a folder."""
    sizes = []
    for path in _files(folder):
        with safetensors_file.File(folders.Folder(folder), path.name) as file:
            sizes += [entry.stop - entry.start for entry in file.entries.values()]
    return max(sizes)


def _shapes(config):
    return jax.eval_shape(lambda key: decoder.Decoder(key, config), jax.random.key(0))


def _nbytes(config):
    return 2 * sum(leaf.size for leaf in jax.tree.leaves(_shapes(config)))


def define_flags():
    flags.DEFINE_string("folder", None, "Model folder to load; made in a temporary one if absent.")
    flags.DEFINE_float("gigabytes", 1.5, "Size of the folder that is made.", 0.01)
    flags.DEFINE_integer(
        "rounds", 5, "Pairs of reading and loading, for each state of the cache.", lower_bound=1
    )


def main():
    values = flags.FLAGS
    with tempfile.TemporaryDirectory() as temporary:
        folder = values.folder or temporary
        if not values.folder:
            make_folder(folder, gigabytes=values.gigabytes)
        numbers = measure(folder, rounds=values.rounds)
    logging.info(
        "loading %s", json.dumps({name: round(value, 3) for name, value in numbers.items()})
    )
