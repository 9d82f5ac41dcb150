"""The KV cache in pages, and attention over it.

One array a layer, [G, Z, J, H]: pages, tokens of a page, key and value heads in turn (k0 v0 k1 v1
...), head size; the layout that TPU's ragged paged attention reads. Token p of a sequence lies in
page `table[p // Z]` at p % Z, so a decode step touches only pages that hold something.

`attend` has three implementations, all with the same meaning:
  loop      any backend. Runs over the spans of the longest sequence of a few, and a span that a
            query does not see changes no bit of its result: it is independent of company.
  gathered  GPU. As long as the page table, so that the host need not follow a loop; the engine
            compiles it for several widths of tables. Decoding in half precision gathers the pages
            for cuDNN, which reads as far as each sequence goes.
  ragged    TPU. `ragged_paged_attention`, which stops at each sequence's length.

Dimensions:
  P sequences    T queries of each    M pages of a page table    G pages    Z tokens of a page
  J = 2 K    K key/value heads    R query heads of each    N = K R    H head size    S keys
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from models.attention import MASKED

SPAN = 256  # keys that `loop` reads at a time
SHARED = 8  # sequences that `loop` takes together, of like length
LANES = 128  # TPU: head sizes below are padded to it


def implementation(platform):
    """The best `attend` for a platform: "cpu", "gpu" or "tpu"."""
    return {"gpu": "gathered", "tpu": "ragged"}.get(platform, "loop")


def widths(name, most):
    """Widths of page tables that programs are compiled for, ascending; `most` is the last."""
    if name != "gathered":
        return (most,)
    return tuple(sorted({max(1, most // 16), max(1, most // 4), most}))


def stored_head(config, name):
    """H of the cache."""
    return -(-config.head_dim // LANES) * LANES if name == "ragged" else config.head_dim


def empty(config, *, pages, size, dtype, name):
    """List over layers of zeros [G, Z, J, H]."""
    shape = (pages, size, 2 * config.num_key_value_heads, stored_head(config, name))
    return [jnp.zeros(shape, dtype) for _ in range(config.num_hidden_layers)]


def write(cache_GZJH, k_PTKH, v_PTKH, table_PM, position_PT, valid_PT):
    """Stores keys and values at the positions where valid_PT is True."""
    G, Z, J, H = cache_GZJH.shape
    new_PTKH2 = jnp.stack([k_PTKH, v_PTKH], axis=3)
    P, T, _, _, h = new_PTKH2.shape
    new_XJH = new_PTKH2.reshape(P * T, J, h).astype(cache_GZJH.dtype)
    new_XJH = jnp.pad(new_XJH, ((0, 0), (0, 0), (0, H - h)))
    page_PT = jnp.take_along_axis(table_PM, position_PT // Z, axis=1)
    # Out of range is dropped.
    flat_PT = jnp.where(valid_PT, page_PT * Z + position_PT % Z, G * Z)
    rows = cache_GZJH.reshape(G * Z, J, H).at[flat_PT.reshape(-1)].set(new_XJH, mode="drop")
    return rows.reshape(G, Z, J, H)


def attend(name, q_PTNH, cache_GZJH, table_PM, position_PT, *, mesh=None):
    """Attention of every query to the keys at positions up to its own, in the dtype of q.

    Args:
      name: "loop", "gathered" or "ragged".
      position_PT: int32, consecutive in a row; -1 in a whole row that is unused, whose output is
        finite and meaningless.
      mesh: heads are split over its axis `tensor`; needed by "ragged" on several devices.
    """
    if name == "ragged":
        return _ragged(q_PTNH, cache_GZJH, table_PM, position_PT, mesh)
    if name == "gathered":
        return _gathered(q_PTNH, cache_GZJH, table_PM, position_PT)
    return _loop(q_PTNH, cache_GZJH, table_PM, position_PT)


def _loop(q_PTNH, cache_GZJH, table_PM, position_PT):
    """`_spans` of a few sequences at a time, so that long ones cost the short ones nothing."""
    P = q_PTNH.shape[0]
    if P <= SHARED or P % SHARED:
        return _spans(q_PTNH, cache_GZJH, table_PM, position_PT)
    order_P = jnp.argsort(position_PT[:, -1])
    back_P = jnp.argsort(order_P)
    cut = lambda x: x[order_P].reshape(P // SHARED, SHARED, *x.shape[1:])
    o = jax.lax.map(
        lambda group: _spans(group[0], cache_GZJH, *group[1:]),
        (cut(q_PTNH), cut(table_PM), cut(position_PT)),
    )
    return o.reshape(q_PTNH.shape)[back_P]


def _spans(q_PTNH, cache_GZJH, table_PM, position_PT, *, whole=False):
    """Softmax attention over spans of SPAN keys; `whole` reads all of the table."""
    P, T, N, H = q_PTNH.shape
    _, Z, J, _ = cache_GZJH.shape
    K, M = J // 2, table_PM.shape[1]
    R = N // K
    width = min(max(1, SPAN // Z), M)  # pages of a span
    table_PM = jnp.pad(table_PM, ((0, 0), (0, -M % width)))
    q_PTKRH = q_PTNH.reshape(P, T, K, R, H)
    keys = jnp.arange(width * Z)

    def span(i, carry):
        peak, mass, o = carry  # [P, K, R, T], [P, K, R, T], [P, K, R, T, H]
        pages_PW = jax.lax.dynamic_slice_in_dim(table_PM, i * width, width, axis=1)
        kv_PSKH2 = cache_GZJH[pages_PW].reshape(P, width * Z, K, 2, H)
        score = jnp.einsum(
            "PTKRH,PSKH->PKRTS",
            q_PTKRH,
            kv_PSKH2[:, :, :, 0],
            preferred_element_type=jnp.float32,
        )
        seen_PTS = i * width * Z + keys <= position_PT[:, :, None]
        score = jnp.where(seen_PTS[:, None, None], score * H**-0.5, MASKED)
        new_peak = jnp.maximum(peak, score.max(-1))
        keep = jnp.exp(peak - new_peak)
        weight = jnp.exp(score - new_peak[..., None])
        new = jnp.einsum(
            "PKRTS,PSKH->PKRTH",
            weight.astype(kv_PSKH2.dtype),
            kv_PSKH2[:, :, :, 1],
            preferred_element_type=jnp.float32,
        )
        return new_peak, mass * keep + weight.sum(-1), o * keep[..., None] + new

    shape = (P, K, R, T)
    start = (jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros((*shape, H)))
    spans = (position_PT.max() + width * Z) // (width * Z)
    if whole:
        spans = table_PM.shape[1] // width
    _, mass, o = jax.lax.fori_loop(0, spans, span, start)
    o = o / jnp.maximum(mass, 1e-30)[..., None]
    return o.transpose(0, 3, 1, 2, 4).reshape(P, T, N, H).astype(q_PTNH.dtype)


def _gathered(q_PTNH, cache_GZJH, table_PM, position_PT):
    if q_PTNH.shape[1] > 1 or q_PTNH.dtype not in (jnp.bfloat16, jnp.float16):
        return _spans(q_PTNH, cache_GZJH, table_PM, position_PT, whole=True)
    P, M = table_PM.shape
    _, Z, J, H = cache_GZJH.shape
    kv_PSKH2 = cache_GZJH[table_PM].reshape(P, M * Z, J // 2, 2, H)
    return jax.nn.dot_product_attention(
        q_PTNH,
        kv_PSKH2[:, :, :, 0],
        kv_PSKH2[:, :, :, 1],
        key_value_seq_lengths=jnp.maximum(position_PT[:, 0] + 1, 1),
        implementation="cudnn",
    )


def _ragged(q_PTNH, cache_GZJH, table_PM, position_PT, mesh):
    from jax.experimental.pallas.ops.tpu import ragged_paged_attention

    P, T, N, h = q_PTNH.shape
    H = cache_GZJH.shape[-1]
    q_XNH = jnp.pad(q_PTNH, ((0, 0), (0, 0), (0, 0), (0, H - h))).reshape(P * T, N, H)
    # A row's last queries may be padding: they read past their sequence, and nobody reads them.
    length_P = jnp.maximum(position_PT[:, 0], 0) + T
    bounds = jnp.arange(P + 1, dtype=jnp.int32) * T

    def kernel(q_XNH, cache_GZJH, length_P, table_PM, bounds):
        return ragged_paged_attention.ragged_paged_attention(
            q_XNH,
            cache_GZJH,
            length_P,
            table_PM,
            bounds,
            jnp.full(1, P, jnp.int32),
            sm_scale=h**-0.5,
        )

    if mesh is not None and mesh.size > 1:
        heads, whole = PartitionSpec(None, "tensor"), PartitionSpec()
        pages = PartitionSpec(None, None, "tensor")
        kernel = jax.shard_map(
            kernel,
            mesh=mesh,
            in_specs=(heads, pages, whole, whole, whole),
            out_specs=heads,
            check_vma=False,
        )
    o_XNH = kernel(q_XNH, cache_GZJH, length_P, table_PM, bounds)
    return o_XNH.reshape(P, T, N, H)[..., :h]
