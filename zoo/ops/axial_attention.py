"""Axial attention (Ho et al. 2019, arXiv:1912.12180, section 3): softmax attention along one axis of a grid.

    Y[.., i, ..] = sum_j softmax_j(scale * Q[.., i, ..] . K[.., j, ..]) V[.., j, ..],    i, j along `axis`

All other axes of the grid are like batch axes: a cell sees those that differ from it along `axis` alone. Over a grid of
N cells that costs N * n scores where n is the length of the axis, and not N * N. The axis is moved beside the heads and
the rest folded into the batch; the attention is that of `zoo.ops.softmax_attention`, with its implementations.
"""

import math

import jax.numpy as jnp

from zoo.ops.softmax_attention import softmax_attention
from zoo.typing import Array, Bool, Float, PRNGKeyArray


def axial_attention(
    q: Float[Array, "B *N H K"],
    k: Float[Array, "B *N H K"],
    v: Float[Array, "B *N H V"],
    *,
    axis: int,
    mask: Bool[Array, "B *N"] | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    dropout_key: PRNGKeyArray | None = None,
    scale: float | None = None,
    query_chunk_size: int | None = None,
    implementation: str | None = None,
) -> Float[Array, "B *N H V"]:
    """Softmax attention of `q` over `k` and `v` along one axis of a grid of any number of axes.

    A query that may see no key at all (its whole line is masked, say) gets zeros, with zero gradients. The softmax is
    computed in float32 (float64 if the inputs are), whatever the dtype of the inputs.

    Args:
      q, k, v: queries, keys and values on a grid n_1 x ... x n_k, of one dtype, which is also the result's.
      axis: of the arrays: 1 for n_1 to k for n_k; or counted from the end, -3 for n_k.
      mask: True where a key may be seen; None where all may.
      causal: a query sees the keys up to its own place along `axis`.
      dropout, dropout_key: as in `softmax_attention`, whose batch is here that of all lines along `axis`.
      scale: the factor of the scores; None for 1 / sqrt(K).
      query_chunk_size, implementation: see `softmax_attention`.

    Raises:
      ValueError: shapes or dtypes do not fit, `axis` is none of the grid, or what `softmax_attention` refuses.
    """
    axis = _check(q, k, v, axis, mask)
    last = q.ndim - 3
    # softmax_attention on [B * the other axes, n, H, K].
    lines = [jnp.moveaxis(x, axis, last) for x in (q, k, v)]
    outside = lines[0].shape[:last]
    folded = [x.reshape(math.prod(outside), *x.shape[last:]) for x in lines]
    if mask is not None:
        mask = jnp.moveaxis(mask, axis, last).reshape(math.prod(outside), q.shape[axis])
    y = softmax_attention(
        *folded,
        mask=mask,
        causal=causal,
        dropout=dropout,
        dropout_key=dropout_key,
        scale=scale,
        query_chunk_size=query_chunk_size,
        implementation=implementation,
    )
    return jnp.moveaxis(y.reshape(*outside, *y.shape[1:]), last, axis)


def _check(q: Array, k: Array, v: Array, axis: int, mask: Array | None) -> int:
    """The axis counted from the front."""
    if q.ndim < 4:
        raise ValueError(f"axial_attention takes q [B, n_1, ..., n_k, H, K] with k >= 1; q has the shape {q.shape}.")
    if k.shape != q.shape or v.shape[:-1] != q.shape[:-1]:
        raise ValueError(
            f"axial_attention takes k and v on the grid of q, {q.shape[:-1]}, and k as wide as q; q, k, v are "
            f"{q.shape}, {k.shape}, {v.shape}."
        )
    if mask is not None and (mask.shape != q.shape[:-2] or mask.dtype != jnp.bool_):
        raise ValueError(f"axial_attention takes mask as bool {q.shape[:-2]}; got {mask.dtype} {mask.shape}.")
    counted = axis + q.ndim if axis < 0 else axis
    if not 1 <= counted <= q.ndim - 3:
        raise ValueError(
            f"axis={axis} is no axis of the grid: with q of shape {q.shape} these are 1 to {q.ndim - 3} (or "
            f"{1 - q.ndim} to -3)."
        )
    return counted
