"""What every implementation of gated linear attention shares: the problem in one shape, the options, the dtypes."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.typing import Array, DType


class Problem(NamedTuple):
    """The arrays that have gradients. `R = H / G` heads share one query and key.

    Attributes:
      q, k: [B, T, G, K].
      v: [B, T, H, V].
      log_decay: [B, T, H], [B, T, H, K], or None for no decay.
      state: [B, H, K, V], before the first token.
    """

    q: Array
    k: Array
    v: Array
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
    """The choices of `gated_linear_attention` that the implementations read.

    Attributes:
      scale: factor of the outputs.
      reverse: from the last token to the first.
      chunk_size: tokens per chunk, 0 for that of the platform.
      chunks_per_block: how many chunks are worked on at once.
    """

    scale: float
    reverse: bool = False
    chunk_size: int = 0
    chunks_per_block: int = 1


class Chunk(NamedTuple):
    """A chunk of c tokens in the order of processing, in the dtype of the state; `R = H / G`.

    Attributes:
      q, k: [B, G, c, K]; q has been multiplied by the scale.
      v: [B, G, R, c, V].
      factors: exp(log_decay) [B, G, R, c] or [B, G, R, c, K], or None for ones.
    """

    q: Array
    k: Array
    v: Array
    factors: Array | None


def accumulation_dtype(*arrays: Array | None) -> DType:
    """float64 if an input is, else float32: sums, decays and the state are never held in less."""
    return jnp.float64 if any(x is not None and x.dtype == jnp.float64 for x in arrays) else jnp.float32


def matmul_precision(*arrays: Array) -> jax.lax.Precision:
    """Full float32 products for float32 inputs (accelerators would round them); the default for 16-bit inputs."""
    narrow = all(x.dtype in (jnp.bfloat16, jnp.float16) for x in arrays)
    return jax.lax.Precision.DEFAULT if narrow else jax.lax.Precision.HIGHEST


def where_real(x: Array, real: Array | None, other: float = 0.0) -> Array:
    """`x` [B, ...] with `other` where `real` [B, ...] (fewer axes) is False, whatever stood there."""
    if real is None:
        return x
    return jnp.where(real.reshape(real.shape + (1,) * (x.ndim - real.ndim)), x, other)


def decay_factors(log_decay: Array | None, marks: Marks, like: Array, dtype: DType) -> Array | None:
    """What the state is multiplied by before a token: exp(log_decay), 1 at padding, 0 at starts; None if always 1.

    Args:
      log_decay: [B, ..., H] or [B, ..., H, K], or None.
      marks: of these tokens, [B, ...].
      like: [B, ..., H, V], for the number of heads.
      dtype: of the result.
    """
    if log_decay is None:
        if marks.starts is None:
            return None
        factors = jnp.ones(like.shape[:-1], dtype)
    else:
        factors = jnp.exp(where_real(log_decay.astype(dtype), marks.real))
    return factors if marks.starts is None else where_real(factors, ~marks.starts)


def sum_paths(to_query: Array, from_key: Array) -> Array:
    """Σ_{i >= t} to_query_i + Σ_{j < t} from_key_j for every token t of a chunk [..., c, K]."""
    size, dtype, highest = to_query.shape[-2], to_query.dtype, jax.lax.Precision.HIGHEST
    from_here = jnp.einsum("...ik,it->...tk", to_query, np.tri(size, dtype=dtype), precision=highest)
    return from_here + jnp.einsum("...jk,tj->...tk", from_key, np.tri(size, k=-1, dtype=dtype), precision=highest)
