"""Softmax attention: one entry point for full passes, one for decoding, and the kernels that may stand behind it.

B batch, T queries, S keys, N query heads, K key heads (each serves N/K neighbouring query heads), H head dim.

Every row is padded on the right, so causality alone keeps the padding out of prefill and training: no lengths
and no segment ids there. Decoding has one query against a cache of S slots, some of them empty: `attend_cache`.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from victor_jax.errors import UserError

Implementation = Literal["xla", "cudnn", "splash", "splash_interpret"]
Choice = Literal["auto", "xla", "cudnn", "splash", "splash_interpret"]

CacheAxes = tuple[str, str]  # the order of the axes in memory of cached keys and values, S the slots
CACHE_AXES: CacheAxes = ("BKHS", "BKSH")  # as the two products of decoding read them

# What a kernel demands; an implementation that is not listed demands nothing.
PLATFORMS = {"cudnn": ("gpu", "cuda"), "splash": ("tpu",)}
DTYPES = {
    "cudnn": ("bfloat16", "float16"),
    "splash": ("bfloat16", "float32"),
    "splash_interpret": ("bfloat16", "float32"),
}

CUDNN_HEADS, CUDNN_EVERYWHERE, CUDNN_HOPPER = 8, 128, 256  # head dims: their divisor, the largest before and on Hopper
SPLASH_FROM = 512  # keys: below, writing the scores costs little, and padding to tiles more
TILE = 128  # splash works on tiles of 128 queries and keys; any head dim compiles, 128 wastes nothing
BLOCKS = 8  # of causal queries, see causal_blocks
NOTHING = -1e30  # the score of a key that may not be seen; finite, so that a query without any key is no NaN
BATCH_AXES, HEAD_AXES = ("data", "fsdp"), ("tensor",)


def choose(asked: str, *, platform: str, dtype: Any, head_dims: tuple[int, ...]) -> Implementation:
    """Before any compile: what `asked` means on `platform` for these arrays, `UserError` where it cannot run.

    "auto" in 16 bits: cuDNN on a GPU, splash on a TPU. Everything else is XLA's.
    """
    if asked not in get_args(Choice):
        raise UserError(f"attention {asked!r} is unknown: use one of {', '.join(get_args(Choice))}.")
    if asked == "auto":
        name = jnp.dtype(dtype).name
        if platform == "tpu" and name == "bfloat16":
            return "splash"
        fits = all(n % CUDNN_HEADS == 0 and n <= CUDNN_EVERYWHERE for n in head_dims)
        return "cudnn" if platform in PLATFORMS["cudnn"] and name in DTYPES["cudnn"] and fits else "xla"
    platforms, dtypes = PLATFORMS.get(asked), DTYPES.get(asked)
    if platforms and platform not in platforms:
        needed, found = platforms[0].upper(), platform.upper()
        raise UserError(f"attention {asked!r} needs a {needed}, not a {found}: use 'auto' instead.")
    if dtypes and jnp.dtype(dtype).name not in dtypes:
        needed, found = " or ".join(dtypes), jnp.dtype(dtype).name
        raise UserError(f"attention {asked!r} takes {needed}, not {found}: use 'auto' instead.")
    if asked == "cudnn" and (wrong := [n for n in head_dims if n % CUDNN_HEADS or n > CUDNN_HOPPER]):
        raise UserError(
            f"attention 'cudnn' takes heads of a multiple of {CUDNN_HEADS} up to {CUDNN_HOPPER}, not of {wrong[0]}: "
            "use 'auto' instead."
        )
    return asked  # type: ignore[return-value]


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool,
    mask: Array | None = None,
    implementation: Implementation = "xla",
) -> Array:
    """q [B,T,N,H], k and v [B,S,K,H] -> [B,T,N,H] in the dtype of q; the softmax is computed in float32.

    `mask` [B,T,S] is True where a query may attend, on top of `causal`. No kernel takes one, so with a mask (a sliding
    window shorter than the row) XLA computes it. A query that may attend to nothing gets a mean of v, not NaN.
    """
    _check_arguments(q, k, v, causal, mask, implementation)
    if mask is not None or (implementation == "splash" and k.shape[1] < SPLASH_FROM):
        implementation = "xla"
    if implementation in ("splash", "splash_interpret"):
        return _splash(q, k, v, causal=causal, interpret=implementation == "splash_interpret")
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
    if not causal:
        return _plain(q, k, v, mask)
    # Queries in blocks, each against the keys up to its end: little above the diagonal is computed.
    blocks = [
        _plain(q[:, start:end], k[:, :end], v[:, :end], _visible(start, end, mask))
        for start, end in causal_blocks(q.shape[1])
    ]
    return jnp.concatenate(blocks, axis=1)


def attend_cache(q: Array, keys: Array, values: Array, filled: Array, axes: CacheAxes = CACHE_AXES) -> Array:
    """One query per row, q [B,1,N,H], against keys and values whose axes are in the order of `axes` -> [B,1,N,H].

    `filled` [B,S] is True where a slot may be attended to.
    """
    B, _, N, H = q.shape
    K = keys.shape[axes[0].index("K")]
    q = q.reshape(B, K, N // K, H)
    scores = jnp.einsum(f"BKGH,{axes[0]}->BKGS", q, keys, preferred_element_type=jnp.float32)
    weights, total = _softmax(scores, filled[:, None, None], H)
    weights = weights.astype(values.dtype)
    out = jnp.einsum(f"BKGS,{axes[1]}->BKGH", weights, values, preferred_element_type=jnp.float32)
    return (out / total[..., None]).astype(q.dtype).reshape(B, 1, N, H)


def attention_rows(q: Array, k: Array, visible: Array) -> Array:
    """The weights of a few queries alone: q [B,R,N,H], k [B,S,K,H], visible bool [B,R,S] -> float32 [B,N,R,S].

    What needs attention weights asks for its rows here, and the layer keeps its kernel.
    """
    B, R, N, H = q.shape
    K = k.shape[2]
    scores = jnp.einsum("BRKGH,BSKH->BKGRS", q.reshape(B, R, K, N // K, H), k, preferred_element_type=jnp.float32)
    weights, total = _softmax(scores, visible[:, None, None], H)
    return (weights / total[..., None]).reshape(B, N, R, k.shape[1])


def causal_blocks(length: int) -> list[tuple[int, int]]:
    """Where each block of queries starts and ends: at most BLOCKS of them, so that programs stay small."""
    size = max(TILE, -(-length // (BLOCKS * TILE)) * TILE)
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _visible(start: int, end: int, mask: Array | None) -> Array:
    """bool [B,T,S] or [1,T,S]: which keys the queries from `start` to `end` may attend to."""
    causal = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None]
    return causal[None] if mask is None else causal[None] & mask[:, start:end, :end]


def _plain(q: Array, k: Array, v: Array, visible: Array | None) -> Array:
    """As the textbook has it, except that the values are added up before the softmax divides: S / H times fewer.

    Heads come first, and both products are plain matrices: in the order of an einsum, XLA transposes the scores.
    """
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    queries = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    scores = jnp.matmul(queries, k.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)
    scores = scores.reshape(B, K, N // K, T, S)
    weights, total = _softmax(scores, None if visible is None else visible[:, None, None], H)
    weights = weights.astype(v.dtype).reshape(B, K, -1, S)
    out = jnp.matmul(weights, v.transpose(0, 2, 1, 3), preferred_element_type=jnp.float32)
    out = (out.reshape(B, K, N // K, T, H) / total[..., None]).astype(q.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape)


def _softmax(scores: Array, visible: Array | None, head_dim: int) -> tuple[Array, Array]:
    """float32 scores [...,S], not scaled yet -> the softmax's numerators [...,S] and their sum [...]."""
    if visible is not None:
        scores = jnp.where(visible, scores, NOTHING)
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))  # cancels out, and so does its gradient
    weights = jnp.exp((scores - largest) * head_dim**-0.5)
    return weights, weights.sum(axis=-1)


def _check_arguments(q: Array, k: Array, v: Array, causal: bool, mask: Array | None, name: str) -> None:
    """Raises ValueError for arguments that do not fit each other, in the same words for every kernel."""
    if name not in get_args(Implementation):
        raise ValueError(f"attention: {name!r} is none of {', '.join(get_args(Implementation))}")
    fit = q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[::3] == k.shape[::3]  # B and H
    if not fit or q.shape[2] % k.shape[2]:
        raise ValueError(
            "attention: expected q [B,T,N,H], k and v [B,S,K,H], N a multiple of K; "
            f"found q {q.shape}, k {k.shape}, v {v.shape}"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attention: q, k and v must share a dtype; found {q.dtype}, {k.dtype}, {v.dtype}")
    if q.dtype.name not in DTYPES.get(name, (q.dtype.name,)):
        raise ValueError(f"attention: {name!r} takes {' or '.join(DTYPES[name])}, found {q.dtype}")
    B, T, S = q.shape[0], q.shape[1], k.shape[1]
    if causal and T != S:
        # The triangle is aligned at the top left: one query against a cache would see its first key only.
        raise ValueError(f"attention: causal needs T == S, found T={T}, S={S}; decode with attend_cache instead")
    if mask is not None and (mask.shape != (B, T, S) or mask.dtype != jnp.bool_):
        raise ValueError(f"attention: expected a bool mask {(B, T, S)}, found {mask.dtype} {mask.shape}")


def _splash(q: Array, k: Array, v: Array, *, causal: bool, interpret: bool) -> Array:
    """The kernel on each device's share of batch and heads, because the compiler cannot split a kernel.

    An axis that the mesh lacks, or that does not divide, is left out: its devices repeat the same work.
    """

    def local(q: Array, k: Array, v: Array) -> Array:
        return _splash_on_one_device(q, k, v, causal=causal, interpret=interpret)

    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    # Inside another shard_map its axes are manual, and the arrays are already one device's share of them.
    sizes = {name: size for name, size, kind in axes if kind != AxisType.Manual}
    if not sizes:
        return local(q, k, v)
    spec = P(_dividing(BATCH_AXES, sizes, q.shape[0]), None, _dividing(HEAD_AXES, sizes, k.shape[2]), None)
    # check_vma=False: the kernel does not say over which axes its outputs vary.
    split = jax.shard_map(local, in_specs=(spec,) * 3, out_specs=spec, axis_names=set(sizes), check_vma=False)
    return split(q, k, v)


def _dividing(axes: tuple[str, ...], sizes: dict[str, int], length: int) -> tuple[str, ...]:
    """Those of `axes` that the mesh has and whose product divides `length`, first come, first served."""
    taken: tuple[str, ...] = ()
    for axis in axes:
        if axis in sizes and length % sizes[axis] == 0:
            taken, length = (*taken, axis), length // sizes[axis]
    return taken


def _splash_on_one_device(q: Array, k: Array, v: Array, *, causal: bool, interpret: bool) -> Array:
    """q [B,T,N,H], k and v [B,S,K,H] -> [B,T,N,H]; pads T and S on the right to whole tiles and cuts off."""
    # Here and not above: the module is experimental, and only those who ask for it should depend on it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    (_, T, N, H), S = q.shape, k.shape[1]
    # The kernel does not scale. In float32, because H ** -0.5 is itself no bfloat16 for H = 128.
    q = (q.astype(jnp.float32) * H**-0.5).astype(q.dtype)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # [B,N,T,H], [B,K,S,H]
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % TILE), (0, 0))) for x in (q, k, v))
    padded_T, padded_S = q.shape[2], k.shape[2]
    visible = (splash.CausalMask if causal else splash.FullMask)((padded_T, padded_S))
    bq, bkv = _block(padded_T), _block(padded_S)
    kernel = splash.make_splash_mha(  # takes K key heads as they are
        splash.MultiHeadMask([visible] * N),
        block_sizes=splash.BlockSizes(
            block_q=bq, block_kv=bkv, block_q_dkv=bq, block_kv_dkv=bkv, block_q_dq=bq, block_kv_dq=bkv
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = None
    if not causal and padded_S != S:  # a causal query comes before the padding and never sees it
        # Padded queries sit with the real keys too: a query without any key would have no softmax.
        is_pad = (jnp.arange(padded_S) >= S).astype(jnp.int32)
        segments = splash.SegmentIds(q=jnp.zeros(padded_T, jnp.int32), kv=is_pad)
    out = jax.vmap(lambda q, k, v: kernel(q, k, v, segments))(q, k, v)
    return out[:, :, :T].swapaxes(1, 2)


def _block(length: int) -> int:
    """The largest block that divides a padded length: fewer, larger steps of the kernel."""
    return next(block for block in (512, 256, TILE) if length % block == 0)
