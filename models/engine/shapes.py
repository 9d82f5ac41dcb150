"""Sizes of the arrays that an engine's programs take, worked out in one place.

Dimensions:
  B slots    P rows of one prefill call    T tokens of a row    M pages of a page table
  C steps of one decode call    W words of a mask    G pages    Z tokens of a page
"""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import NamedSharding

from models import decoder
from models.engine import cache, pages

BITS = 32  # of a word of a mask


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Sizes of the arrays of one engine; see `of`.

    config: of the model.    layout: of the cache.    dtype: of weights, activations and cache.
    slots: B.    prefill_rows, prefill_tokens: P, T.    pages, page_size: G, Z.
    widths: the M that programs are compiled for, ascending.    decode_steps: C.
    words: W; 0 if the engine knows no grammars.
    """

    config: decoder.Config
    layout: str
    dtype: jax.typing.DTypeLike
    slots: int
    prefill_rows: int
    prefill_tokens: int
    pages: int
    page_size: int
    widths: tuple[int, ...]
    decode_steps: int
    words: int

    def pages_for(self, tokens):
        """Returns how many pages hold so many tokens."""
        return pages.count_for(tokens, self.page_size)

    def width(self, wanted):
        """Returns the narrowest width of a page table that holds so many pages."""
        return next(width for width in self.widths if width >= wanted)

    def all_allowed(self, rows):
        """Returns uint32 [rows, W], masks that allow every token; None without masks."""
        return np.full((rows, self.words), 2**BITS - 1, np.uint32) if self.words else None

    def empty_cache(self):
        """Returns the cache, zeros, a list over layers."""
        return cache.empty(
            self.layout, self.config, pages=self.pages, size=self.page_size, dtype=self.dtype
        )

    def cache_sharding(self, mesh):
        """Returns the NamedSharding of each array of the cache."""
        return NamedSharding(mesh, cache.LAYOUTS[self.layout].spec())

    def cache_bytes(self, mesh):
        """Returns the bytes of the cache on each device of a mesh, which may be abstract."""
        place = self.cache_sharding(mesh).shard_shape
        return sum(
            math.prod(place(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(jax.eval_shape(self.empty_cache))
        )


def of(
    config,
    *,
    layout,
    slots,
    max_length,
    cache_tokens,
    page_size,
    prefill_tokens,
    prefill_rows,
    decode_steps,
    dtype,
    constraints,
):
    """Returns the Shapes of an engine with these settings.

    Args:
      config: of the model.
      layout: of `cache`.
      cache_tokens: over all weight sets.
      other: as of an `Engine`.
    """
    most = pages.count_for(max_length + prefill_tokens, page_size)  # `ragged` reads a row's padding
    return Shapes(
        config=config,
        layout=layout,
        dtype=dtype,
        slots=slots,
        prefill_rows=prefill_rows,
        prefill_tokens=prefill_tokens,
        pages=cache_tokens // page_size,
        page_size=page_size,
        widths=cache.LAYOUTS[layout].widths(most),
        decode_steps=decode_steps,
        words=-(-config.vocab_size // BITS) if constraints else 0,
    )
