"""The tensors of a GGUF file by rows, as transformers names and orders them.

Blocks of quantised weights become float32; their arithmetic is that of the package `gguf`.

Source: `convert_hf_to_gguf.py` of llama.cpp for names and orders.
"""

import importlib
import itertools
import math
import os
import re

import ml_dtypes
import numpy as np

from models import safetensors_file

INSTALL = "GGUF files need the package gguf: pip install 'flow-grpo-jax[gguf]'"
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
TYPES += ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
STORED = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}

# Frequencies of Llama 3 as a tensor; `models.gguf.folder` reads them.
ROPE = "rope_freqs.weight"
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")


def package():
    """Returns the module `gguf`; ImportError says how to install it."""
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise ImportError(f"{INSTALL} ({error}).") from error


def name_of(tensor):
    """Returns what transformers calls a tensor; its own name if it has none there."""
    found = NAME.fullmatch(tensor)
    if not found or found[2] not in NAMES:
        return tensor
    layer = f"model.layers.{found[1]}." if found[1] is not None else ""
    return f"{layer}{NAMES[found[2]]}.{found[3]}"


class File:
    """A GGUF file that is read in parts, like `safetensors_file.File`; open in a with statement.

    Attributes:
      entries: {name in transformers: safetensors_file.Entry}, dtype as it is read.
    """

    def __init__(self, path, header, *, heads):
        """Opens nothing yet.

        Args:
          header: its `header.Header`.
          heads: {name in transformers: number of heads} of the matrices whose rows llama.cpp has
            reordered: row d of the first half of a head, then row d of the second, for each d. They
            are put back.

        Raises:
          ImportError: `gguf` is not installed.
          ValueError: a tensor is of a type that is not read, not whole, there twice, or overlaps
            another.
        """
        self._gguf, self.name, self._heads = package(), path, heads
        self._tensors, self._kinds, self.entries = {}, {}, {}
        kinds = {self._gguf.GGMLQuantizationType[kind]: kind for kind in TYPES}
        for own_name, tensor in header.tensors.items():
            name = name_of(own_name)
            if own_name == ROPE:
                continue
            if name in self.entries:
                raise ValueError(f"{path}: {name:.80} is there twice. Download it again.")
            if tensor.type not in kinds:
                raise ValueError(
                    f"{path}: {name:.80} is of type {self._type_name(tensor.type)}, which is not "
                    f"read; these are: {', '.join(TYPES)}. Use another quantisation of the model."
                )
            kind = kinds[tensor.type]
            block, nbytes = self._gguf.GGML_QUANT_SIZES[tensor.type]
            stop = tensor.start + math.prod(tensor.shape) // block * nbytes
            if tensor.shape[-1] % block or stop > header.size:
                raise ValueError(f"{path}: {name:.80} is not whole. Download it again.")
            self._tensors[name], self._kinds[name] = tensor, kind
            self.entries[name] = safetensors_file.Entry(
                kind if kind in STORED else "F32", tensor.shape, tensor.start, stop
            )
        # Else a small file could stand for a model of any size.
        placed = sorted(self.entries.values(), key=lambda entry: entry.start)
        if any(one.stop > other.start for one, other in itertools.pairwise(placed)):
            raise ValueError(f"{path}: its tensors overlap. Download it again.")
        self._descriptor = None

    def __enter__(self):
        self._descriptor = os.open(self.name, os.O_RDONLY)
        return self

    def __exit__(self, *_):
        os.close(self._descriptor)
        self._descriptor = None

    def read_rows(self, name, start, stop, *, pool, padded_to=0):
        """Starts to read rows start..stop of a tensor; as `safetensors_file.File.read_rows`."""
        shape = self._tensors[name].shape
        dtype = STORED.get(self._kinds[name], STORED["F32"])
        row = math.prod(shape[1:]) * dtype.itemsize
        rows = max(stop - start, padded_to)
        out = safetensors_file.aligned(rows * row).view(dtype).reshape(rows, *shape[1:])
        out[stop - start :] = 0
        step = max(1, safetensors_file.BLOCK // row)
        jobs = [
            pool.submit(self._fill, out[at - start : min(at + step, stop) - start], name, at)
            for at in range(start, stop, step)
        ]
        return safetensors_file.Pending(out, jobs)

    def _fill(self, out, name, start):
        """Reads the rows of a tensor from `start` on into all of `out`."""
        entry, kind = self.entries[name], self._kinds[name]
        rows, stop = entry.shape[0], start + len(out)
        if name in self._heads:
            size = rows // self._heads[name]
            first = start - start % size
            raw = self._rows(entry, first, min(-(-stop // size) * size, rows))
            raw = raw[_places(start, stop, size) - first]
        else:
            raw = self._rows(entry, start, stop)
        if kind in STORED:
            out[...] = raw.view(STORED[kind]).reshape(out.shape)
        else:
            kind = self._gguf.GGMLQuantizationType[kind]
            out[...] = self._gguf.quants.dequantize(raw, kind)

    def _rows(self, entry, start, stop):
        """Returns the bytes of rows start..stop as the file has them, uint8 [rows, bytes]."""
        row = (entry.stop - entry.start) // entry.shape[0]
        raw = np.empty((stop - start, row), np.uint8)
        safetensors_file.fill(
            raw.reshape(-1), self._descriptor, entry.start + start * row, path=self.name
        )
        return raw

    def _type_name(self, kind):
        known = {each.value: each.name for each in self._gguf.GGMLQuantizationType}
        return known.get(kind, kind)


def _places(start, stop, size):
    """Returns where rows start..stop lie in the file; see `heads` in File. size: rows of a head."""
    row = np.arange(start, stop)
    head, within = row - row % size, row % size
    return head + within % (size // 2) * 2 + within // (size // 2)
