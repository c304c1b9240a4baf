"""Softmax attention (Vaswani et al. 2017, arXiv:1706.03762, equation 1) with masks, dropout and bounded memory.

    A = softmax(scale * Q K^T + mask),    Y = dropout(A) V

Implementations:

- "xla": `jax.nn.dot_product_attention(implementation="xla")`; keeps the [B, H, T, S] weights for the backward pass.
- "cudnn": the same function's flash attention for NVIDIA GPUs, bfloat16 or float16, without dropout.
- "chunked": one block of queries at a time against all keys, recomputed in the backward pass, so that no [T, S] array
  is ever kept; runs everywhere, and is the fast path that can drop attention weights.
- "reference": the equations above, in float64 if the inputs are.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from zoo.ops.dispatch import select
from zoo.ops.dropout import draw_kept, kept_scale
from zoo.typing import Array, Bool, Float, PRNGKeyArray

# The plain path keeps the float32 weights, 4 B H T S bytes. Above this many the default is the chunked path; on a CPU
# that is also where it becomes the faster one.
PLAIN_LIMIT_BYTES = 2**30
PLAIN_LIMIT_BYTES_CPU = 2**28
# The chunked path takes as many queries at once as keep the float32 weights of one chunk below this.
CHUNK_LIMIT_BYTES = 2**27


def softmax_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H V"],
    *,
    mask: Bool[Array, "B S"] | Bool[Array, "B T S"] | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    dropout_key: PRNGKeyArray | None = None,
    scale: float | None = None,
    query_chunk_size: int | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T H V"]:
    """Softmax attention of `q` over `k` and `v`.

    A query that may see no key at all gets zeros, with zero gradients. The softmax is computed in float32 (float64 if
    the inputs are), whatever the dtype of the inputs.

    Args:
      q, k, v: queries, keys and values, of one dtype, which is also the result's.
      mask: True where a key may be seen: [B, S] for all queries alike (padding), or [B, T, S] per query.
      causal: query t sees the keys up to its own position. The queries are the last T of the S positions, so query t
        sees keys 0 to t + S - T.
      dropout: the share of the attention weights that is dropped where `dropout_key` is given. The row of query t is
        drawn from `fold_in(dropout_key, t)`, so the pattern depends on the key and the shapes, not on the chunk size.
      dropout_key: a key; None for no dropout.
      scale: the factor of the scores; None for 1 / sqrt(K).
      query_chunk_size: queries per chunk of "chunked"; None for as many as fit `CHUNK_LIMIT_BYTES`. Giving it makes
        "chunked" the default.
      implementation: "xla", "cudnn", "chunked" or "reference". None chooses "chunked" where there is dropout or a
        chunk size, or where the weights would take more than `PLAIN_LIMIT_BYTES` (on a CPU `PLAIN_LIMIT_BYTES_CPU`; B
        as seen inside `jax.vmap`), and otherwise leaves the choice to `jax.nn.dot_product_attention`.

    Raises:
      ValueError: shapes or dtypes do not fit, the implementation is unknown, cannot run here, or has no dropout.
    """
    _check(q, k, v, mask, dropout, query_chunk_size)
    dropping = dropout > 0.0 and dropout_key is not None
    if dropping and implementation in ("xla", "cudnn"):
        raise ValueError(
            f"softmax_attention with implementation={implementation!r} cannot drop weights (dropout={dropout}); use "
            "'chunked' or None, or dropout=0."
        )
    options: dict[str, Any] = {"causal": causal, "scale": q.shape[-1] ** -0.5 if scale is None else scale}
    if dropping:
        options |= {"dropout": dropout, "dropout_key": dropout_key}
    batch, length, heads, _ = q.shape
    if 0 in (batch, length, heads, k.shape[1]):
        return jnp.zeros((batch, length, heads, v.shape[-1]), q.dtype)
    limit = PLAIN_LIMIT_BYTES_CPU if jax.default_backend() == "cpu" else PLAIN_LIMIT_BYTES
    chunked = dropping or query_chunk_size is not None or _weight_bytes(q, k, length) > limit
    if implementation is None and not chunked:
        run = functools.partial(_library, implementation=None)
    else:
        run = select(implementation, _TABLE, op="softmax_attention", default="chunked")
    if run is _chunked:
        options["query_chunk_size"] = query_chunk_size
    return run(q, k, v, mask, **options)


def _check(q: Array, k: Array, v: Array, mask: Array | None, dropout: float, query_chunk_size: int | None) -> None:
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise ValueError(
            f"q, k, v must be [B, T, H, K], [B, S, H, K], [B, S, H, V]; got {q.shape}, {k.shape}, {v.shape}."
        )
    batch, length, heads, width = q.shape
    keys = k.shape[1]
    if k.shape != (batch, keys, heads, width) or v.shape[:3] != (batch, keys, heads):
        raise ValueError(
            f"With q of shape {q.shape}, k must be [{batch}, S, {heads}, {width}] and v [{batch}, S, {heads}, V], with "
            f"the same S; got {k.shape} and {v.shape}."
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must have one dtype; got {q.dtype}, {k.dtype} and {v.dtype}.")
    if mask is not None and (mask.dtype != jnp.bool_ or mask.shape not in ((batch, keys), (batch, length, keys))):
        raise ValueError(
            f"mask must be bool [{batch}, {keys}] (keys) or [{batch}, {length}, {keys}] (queries and keys); got "
            f"{mask.dtype} {mask.shape}."
        )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout={dropout} must be at least 0 and below 1.")
    if query_chunk_size is not None and query_chunk_size < 1:
        raise ValueError(f"query_chunk_size={query_chunk_size} must be at least 1.")


def _weight_bytes(q: Array, k: Array, length: int) -> int:
    """Size of the float32 weights of `length` queries."""
    return 4 * q.shape[0] * q.shape[2] * length * k.shape[1]


def _allowed(mask: Array | None, causal: bool, positions: Array, length: int, keys: int) -> Array | None:
    """What the queries at `positions` (of `length`) may see, broadcastable to [B, T, S]; None for everything.

    A `mask` of three axes has the rows of these positions only.
    """
    allowed = None if mask is None else mask if mask.ndim == 3 else mask[:, None, :]
    if causal:
        seen = (jnp.arange(keys)[None, :] <= positions[:, None] + (keys - length))[None]
        allowed = seen if allowed is None else allowed & seen
    return allowed


def _weights(scores: Array, allowed: Array | None) -> Array:
    """Softmax over the last axis of [B, H, T, S]; rows without an allowed key are zeros with zero gradients."""
    if allowed is None:
        return jax.nn.softmax(scores)
    allowed = allowed[:, None]
    # A finite filler keeps the gradient finite in rows where nothing is allowed, which are zeroed afterwards.
    weights = jax.nn.softmax(jnp.where(allowed, scores, jnp.finfo(scores.dtype).min))
    return jnp.where(allowed, weights, 0)


def _drop(weights: Array, positions: Array, dropout: float, dropout_key: Array) -> Array:
    """Inverted dropout of [B, H, T, S] weights, each query's row from its own key."""
    batch, heads, _, keys = weights.shape

    def row(t: Array) -> Array:
        return draw_kept(jax.random.fold_in(dropout_key, t), (batch, heads, keys), dropout)

    kept = jax.vmap(row, out_axes=2)(positions)
    return jnp.where(kept, weights * kept_scale(dropout), 0)


def _rows(
    q: Array,
    k: Array,
    v: Array,
    allowed: Array | None,
    positions: Array,
    scale: float,
    dropout: float,
    dropout_key: Array | None,
) -> Array:
    """The outputs [B, T, H, V] of whole rows of attention."""
    accumulate = jnp.promote_types(q.dtype, jnp.float32)
    scores = scale * jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=accumulate)
    weights = _weights(scores, allowed)
    if dropout_key is not None:
        weights = _drop(weights, positions, dropout, dropout_key)
    y = jnp.einsum("bhts,bshv->bthv", weights.astype(v.dtype), v, preferred_element_type=accumulate)
    return y.astype(q.dtype)


def _reference(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    *,
    causal: bool,
    scale: float,
    dropout: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """The equations, term by term, with every intermediate array in float32 or float64."""
    dtype = q.dtype
    q, k, v = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (q, k, v))
    batch, length = q.shape[:2]
    keys = k.shape[1]
    allowed = jnp.ones((batch, length, keys), bool)
    if mask is not None:
        allowed &= mask if mask.ndim == 3 else mask[:, None, :]
    if causal:
        allowed &= jnp.tril(jnp.ones((length, keys), bool), keys - length)
    allowed = allowed[:, None]
    scores = jnp.where(allowed, scale * jnp.einsum("bthk,bshk->bhts", q, k), 0)
    top = jnp.max(scores, axis=-1, keepdims=True, where=allowed, initial=-jnp.inf)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    powers = jnp.where(allowed, jnp.exp(scores - top), 0)
    total = powers.sum(-1, keepdims=True)
    weights = powers / jnp.where(total > 0, total, 1)
    if dropout_key is not None:
        weights = _drop(weights, jnp.arange(length), dropout, dropout_key)
    return jnp.einsum("bhts,bshv->bthv", weights, v).astype(dtype)


def _chunked(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    *,
    causal: bool,
    scale: float,
    dropout: float = 0.0,
    dropout_key: Array | None = None,
    query_chunk_size: int | None = None,
) -> Array:
    """Query chunks one after another; the backward pass recomputes each chunk from q, k and v."""
    length, keys = q.shape[1], k.shape[1]
    fitting = max(1, CHUNK_LIMIT_BYTES // _weight_bytes(q, k, 1))
    size = min(query_chunk_size or fitting, length)
    chunks = math.ceil(length / size)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, chunks * size - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(x.shape[0], chunks, size, *x.shape[2:]), 1, 0)

    def one_chunk(chunk: tuple[Array, Array | None, Array], k: Array, v: Array) -> Array:
        q_chunk, row_mask, start = chunk
        positions = start + jnp.arange(size)
        allowed = _allowed(mask if row_mask is None else row_mask, causal, positions, length, keys)
        return _rows(q_chunk, k, v, allowed, positions, scale, dropout, dropout_key)

    # Inside a scan nothing needs the barrier that keeps XLA from merging the recomputation with the forward pass.
    one_chunk = jax.checkpoint(one_chunk, prevent_cse=False)
    per_chunk = (split(q), split(mask) if mask is not None and mask.ndim == 3 else None, size * jnp.arange(chunks))
    y = jax.lax.map(lambda chunk: one_chunk(chunk, k, v), per_chunk)
    return jnp.moveaxis(y, 0, 1).reshape(q.shape[0], chunks * size, *y.shape[3:])[:, :length]


def _library(
    q: Array, k: Array, v: Array, mask: Array | None, *, causal: bool, scale: float, implementation: Any
) -> Array:
    """`jax.nn.dot_product_attention`, with the alignment, the empty rows and the widths that this op promises."""
    length, keys, width = q.shape[1], k.shape[1], v.shape[-1]
    # The library aligns causal queries at the start; where T differs from S, or rows may be empty, spell it out.
    plain_causal = causal and length == keys and mask is None
    allowed = _allowed(mask, causal and not plain_causal, jnp.arange(length), length, keys)
    some = None
    if allowed is not None:
        some = allowed.any(-1, keepdims=True)
        if implementation == "cudnn":
            allowed = jnp.broadcast_to(allowed, (allowed.shape[0], length, keys))
        allowed = allowed[:, None]
    # The library wants K = V; columns of zeros change neither the scores nor the other values.
    q, k, v = (_widen(x, max(k.shape[-1], width)) for x in (q, k, v))
    y = jax.nn.dot_product_attention(
        q, k, v, mask=allowed, scale=scale, is_causal=plain_causal, implementation=implementation
    )[..., :width]
    return y if some is None else jnp.where(some[..., None], y, 0)


def _widen(x: Array, width: int) -> Array:
    return jnp.pad(x, [(0, 0)] * 3 + [(0, width - x.shape[-1])]) if x.shape[-1] < width else x


def _xla(q: Array, k: Array, v: Array, mask: Array | None, **options: Any) -> Array:
    return _library(q, k, v, mask, implementation="xla", **options)


def _cudnn(q: Array, k: Array, v: Array, mask: Array | None, **options: Any) -> Array:
    why = "softmax_attention cannot use implementation='cudnn'"
    if jax.default_backend() != "gpu":
        raise ValueError(f"{why}: it needs an NVIDIA GPU, and JAX runs on {jax.default_backend()!r} here.")
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"{why}: it takes bfloat16 or float16, not {q.dtype}.")
    try:
        return _library(q, k, v, mask, implementation="cudnn", **options)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise ValueError(f"{why}: {error}") from error


_TABLE = {"xla": _xla, "cudnn": _cudnn, "chunked": _chunked, "reference": _reference}
