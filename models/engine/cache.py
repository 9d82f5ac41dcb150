"""The KV cache in pages, and attention over it.

One array a layer. Token p of a sequence lies in page `table[p // Z]` at p % Z, so a decode step
touches only pages that hold something. Key and value heads take turns (k0 v0 k1 v1 ...).

`attend` has three implementations, all with the same meaning:
  loop      any backend, array [J, G, Z, H]. Runs over the spans of the longest sequence of a few,
            and a span that a query does not see changes no bit of its result: it is independent of
            company.
  gathered  GPU, array [J, G, Z, H]. As long as the page table, so that the host need not follow a
            loop; the engine compiles it for several widths of tables. Decoding in half precision
            gathers the pages for cuDNN, which reads as far as each sequence goes.
  ragged    TPU, array [G, Z, J, H]. `ragged_paged_attention`; stops at the length of each sequence.

Dimensions:
  P sequences    T queries of each    M pages of a page table    G pages    Z tokens of a page
  J = 2 K    K key/value heads    R query heads of each    N = K R    H head size    S keys
  X = P T
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from models.attention.masks import MASKED

SPANS = {"loop": 64, "gathered": 1024, "ragged": 1024}  # keys that are read at a time
QUERIES = 32  # that `ragged` takes together
TOGETHER = 8  # sequences that `loop` takes together, of like length
LANES = 128  # TPU: head sizes below are padded to it


def implementation(platform):
    """The best `attend` for a platform: "cpu", "gpu" or "tpu"."""
    return {"gpu": "gathered", "tpu": "ragged"}.get(platform, "loop")


def widths(name, most):
    """Widths of page tables that programs are compiled for, ascending; `most` is the last."""
    if name != "gathered":
        return (most,)
    return tuple(sorted({max(1, most // 16), max(1, most // 4), most}))


def spec(name):
    """PartitionSpec of the cache: heads over `tensor`."""
    return PartitionSpec(None, None, "tensor") if name == "ragged" else PartitionSpec("tensor")


def empty(config, *, pages, size, dtype, name):
    """List over layers of zeros."""
    heads, head = 2 * config.num_key_value_heads, config.head_dim
    shape = (heads, pages, size, head)
    if name == "ragged":
        shape = (pages, size, heads, -(-head // LANES) * LANES)
    return [jnp.zeros(shape, dtype) for _ in range(config.num_hidden_layers)]


def write(name, cache, k_PTKH, v_PTKH, table_PM, position_PT, valid_PT, *, mesh=None):
    """Stores keys and values at the positions where valid_PT is True.

    Args:
      mesh: heads are split over its axis `tensor`.
    """
    heads = PartitionSpec(None, None, "tensor")
    return _on_heads(
        functools.partial(_written, name),
        mesh,
        (spec(name), heads, heads, *(PartitionSpec(),) * 3),
        spec(name),
    )(cache, k_PTKH, v_PTKH, table_PM, position_PT, valid_PT)


def attend(name, q_PTNH, cache, table_PM, position_PT, *, mesh=None):
    """Attention of every query to the keys at positions up to its own, in the dtype of q.

    Args:
      name: "loop", "gathered" or "ragged".
      position_PT: int32, consecutive in a row; -1 in a whole row that is unused, whose output is
        finite and meaningless.
      mesh: heads are split over its axis `tensor`.
    """
    heads = PartitionSpec(None, None, "tensor")
    return _on_heads(
        {"loop": _loop, "gathered": _gathered, "ragged": _ragged}[name],
        mesh,
        (heads, spec(name), PartitionSpec(), PartitionSpec()),
        heads,
    )(q_PTNH, cache, table_PM, position_PT)


def _on_heads(function, mesh, in_specs, out_specs):
    """The function of each device's heads."""
    if mesh is None or mesh.size == 1:
        return function
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def _written(name, cache, k_PTKH, v_PTKH, table_PM, position_PT, valid_PT):
    new_PTKH2 = jnp.stack([k_PTKH, v_PTKH], axis=3)
    P, T, K, _, h = new_PTKH2.shape
    J, H = 2 * K, cache.shape[-1]
    new_XJH = new_PTKH2.reshape(P * T, J, h).astype(cache.dtype)
    G, Z = cache.shape[:2] if name == "ragged" else cache.shape[1:3]
    page_PT = jnp.take_along_axis(table_PM, position_PT // Z, axis=1)
    flat_X = (page_PT * Z + position_PT % Z).reshape(-1)
    valid_X = valid_PT.reshape(-1)
    if name == "ragged":
        new_XJH = jnp.pad(new_XJH, ((0, 0), (0, 0), (0, H - h)))
        flat_X = jnp.where(valid_X, flat_X, G * Z)  # out of range is dropped
        return cache.reshape(G * Z, J, H).at[flat_X].set(new_XJH, mode="drop").reshape(cache.shape)
    flat_XJ = flat_X[:, None] + jnp.arange(J) * (G * Z)
    flat_XJ = jnp.where(valid_X[:, None], flat_XJ, J * G * Z)
    return cache.reshape(-1, H).at[flat_XJ].set(new_XJH, mode="drop").reshape(cache.shape)


def _loop(q_PTNH, cache_JGZH, table_PM, position_PT):
    """`_spans` of a few sequences at a time, so that long ones cost the short ones nothing."""
    P = q_PTNH.shape[0]
    if P <= TOGETHER or P % TOGETHER:
        return _spans(q_PTNH, cache_JGZH, table_PM, position_PT, keys=SPANS["loop"])
    order_P = jnp.argsort(position_PT[:, -1])
    back_P = jnp.argsort(order_P)
    cut = lambda x: x[order_P].reshape(P // TOGETHER, TOGETHER, *x.shape[1:])
    o = jax.lax.map(
        lambda group: _spans(group[0], cache_JGZH, *group[1:], keys=SPANS["loop"]),
        (cut(q_PTNH), cut(table_PM), cut(position_PT)),
    )
    return o.reshape(q_PTNH.shape)[back_P]


def _spans(q_PTNH, cache_JGZH, table_PM, position_PT, *, keys, whole=False):
    """Softmax attention over spans of so many keys; `whole` reads all of the table."""
    P, T, N, H = q_PTNH.shape
    J, G, Z, _ = cache_JGZH.shape
    K, M = J // 2, table_PM.shape[1]
    R = N // K
    width = min(max(1, keys // Z), M)  # pages of a span
    S = width * Z
    table_PM = jnp.pad(table_PM, ((0, 0), (0, -M % width)))
    q_KPRTH = q_PTNH.reshape(P, T, K, R, H).transpose(2, 0, 3, 1, 4)
    pages_FZH = cache_JGZH.reshape(J * G, Z, H)
    first_K11 = 2 * G * jnp.arange(K)[:, None, None]

    def span(i, carry):
        peak_KPRT, mass_KPRT, o_KPRTH = carry
        page_KPW = first_K11 + jax.lax.dynamic_slice_in_dim(table_PM, i * width, width, axis=1)
        k_KPSH = pages_FZH[page_KPW].reshape(K, P, S, H)
        v_KPSH = pages_FZH[page_KPW + G].reshape(K, P, S, H)
        score = jnp.einsum("KPRTH,KPSH->KPRTS", q_KPRTH, k_KPSH, preferred_element_type=jnp.float32)
        seen_PTS = i * S + jnp.arange(S) <= position_PT[:, :, None]
        score = jnp.where(seen_PTS[:, None], score * H**-0.5, MASKED)
        new_peak = jnp.maximum(peak_KPRT, score.max(-1))
        keep = jnp.exp(peak_KPRT - new_peak)
        weight = jnp.exp(score - new_peak[..., None])
        new = jnp.einsum(
            "KPRTS,KPSH->KPRTH",
            weight.astype(v_KPSH.dtype),
            v_KPSH,
            preferred_element_type=jnp.float32,
        )
        return new_peak, mass_KPRT * keep + weight.sum(-1), o_KPRTH * keep[..., None] + new

    shape = (K, P, R, T)
    start = (jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros((*shape, H)))
    spans = table_PM.shape[1] // width if whole else (position_PT.max() + S) // S
    _, mass, o_KPRTH = jax.lax.fori_loop(0, spans, span, start)
    o_KPRTH = o_KPRTH / jnp.maximum(mass, 1e-30)[..., None]
    return o_KPRTH.transpose(1, 3, 0, 2, 4).reshape(P, T, N, H).astype(q_PTNH.dtype)


def _gathered(q_PTNH, cache_JGZH, table_PM, position_PT):
    if q_PTNH.shape[1] > 1 or q_PTNH.dtype not in (jnp.bfloat16, jnp.float16):
        keys = SPANS["gathered"]
        return _spans(q_PTNH, cache_JGZH, table_PM, position_PT, keys=keys, whole=True)
    P, M = table_PM.shape
    J, _, Z, H = cache_JGZH.shape
    kv_JPSH = cache_JGZH[:, table_PM].reshape(J, P, M * Z, H)
    return jax.nn.dot_product_attention(
        q_PTNH,
        kv_JPSH[::2].transpose(1, 2, 0, 3),
        kv_JPSH[1::2].transpose(1, 2, 0, 3),
        key_value_seq_lengths=jnp.maximum(position_PT[:, 0] + 1, 1),
        implementation="cudnn",
    )


def _ragged(q_PTNH, cache_GZJH, table_PM, position_PT):
    from jax.experimental.pallas.ops.tpu import ragged_paged_attention

    P, T, N, h = q_PTNH.shape
    _, Z, _, H = cache_GZJH.shape
    q_XNH = jnp.pad(q_PTNH, ((0, 0), (0, 0), (0, 0), (0, H - h))).reshape(P * T, N, H)
    # A row's last queries may be padding: they read past their sequence, and nobody reads them.
    o_XNH = ragged_paged_attention.ragged_paged_attention(
        q_XNH,
        cache_GZJH,
        jnp.maximum(position_PT[:, 0], 0) + T,
        table_PM,
        jnp.arange(P + 1, dtype=jnp.int32) * T,
        jnp.full(1, P, jnp.int32),
        sm_scale=h**-0.5,
        # Given, because the kernel's own table asks for the device it runs on, which may be absent.
        num_kv_pages_per_block=min(max(1, SPANS["ragged"] // Z), table_PM.shape[1]),
        num_queries_per_block=min(QUERIES, P * T),
    )
    return o_XNH.reshape(P, T, N, H)[..., :h]
