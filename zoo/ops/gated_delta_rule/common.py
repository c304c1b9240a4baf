"""What every implementation of the gated delta rule shares: the problem in one shape, the options, the dtypes."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo.typing import Array, DType

# Inside the square root of the L2 norm, as in flash-linear-attention.
L2_EPS = 1e-6


class Problem(NamedTuple):
    """The arrays that have gradients. `R = HV / H` value heads share one query and key.

    Attributes:
      q, k: [B, T, H, K].
      v: [B, T, HV, V].
      beta: [B, T, HV].
      log_decay: [B, T, HV], or None for no decay.
      state: [B, HV, K, V], before the first token.
    """

    q: Array
    k: Array
    v: Array
    beta: Array
    log_decay: Array | None
    state: Array


class Marks(NamedTuple):
    """Which tokens are not as the others: bool [B, T], or None where all are alike.

    Attributes:
      real: False at padding, which neither reads nor writes the state.
      starts: True at the first token of a packed sequence other than the first, where the old state is dropped.
    """

    real: Array | None
    starts: Array | None


@dataclasses.dataclass(frozen=True)
class Options:
    """The choices of `gated_delta_rule` that the implementations read.

    Attributes:
      scale: factor of the queries.
      l2norm: whether queries and keys are brought to length 1.
      reverse: process from the last token to the first.
      chunk_size: tokens per chunk; None for what is best on the platform.
    """

    scale: float
    l2norm: bool = False
    reverse: bool = False
    chunk_size: int | None = None


def accumulation_dtype(*arrays: Array | None) -> DType:
    """float64 if an input is, else float32: sums, decays and the state are never held in less."""
    return jnp.float64 if any(x is not None and x.dtype == jnp.float64 for x in arrays) else jnp.float32


def matmul_precision(*arrays: Array) -> jax.lax.Precision:
    """Full float32 products for float32 inputs (accelerators would round them); the default for 16-bit inputs."""
    narrow = all(x.dtype in (jnp.bfloat16, jnp.float16) for x in arrays)
    return jax.lax.Precision.DEFAULT if narrow else jax.lax.Precision.HIGHEST


def where(keep: Array | None, x: Array, other: float | Array = 0.0) -> Array:
    """`x` [B, ...] where `keep` [B, ...] (fewer axes, or None for all) is True, else `other`, whatever stood there."""
    if keep is None:
        return x
    return jnp.where(keep.reshape(keep.shape + (1,) * (x.ndim - keep.ndim)), x, other)


def inverse_norm(x: Array) -> Array:
    """1 / |x| over the last axis, [..., 1]; never infinite."""
    return jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + L2_EPS)


def lowest_log_decay(dtype: DType) -> float:
    """The exponential of this is 0 in `dtype`, and many of them can be summed without loss."""
    return -800.0 if jnp.dtype(dtype) == jnp.float64 else -128.0


def ready_log_decay(log_decay: Array | None, marks: Marks, like: Array, dtype: DType) -> Array | None:
    """The log decays in use: 0 at padding, so low that nothing is left at starts, nowhere lower; None if always 0.

    Args:
      log_decay: [B, ..., H] or None.
      marks: of these tokens, [B, ...].
      like: [B, ..., H], for the shape.
      dtype: of the result.
    """
    if log_decay is None and marks.starts is None:
        return None
    lowest = lowest_log_decay(dtype)
    log_decay = jnp.zeros(like.shape, dtype) if log_decay is None else jnp.maximum(log_decay.astype(dtype), lowest)
    if marks.starts is not None:
        log_decay = where(~marks.starts, log_decay, lowest)
    return where(marks.real, log_decay)
