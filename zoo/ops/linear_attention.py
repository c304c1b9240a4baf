"""Linear attention with a normaliser (Katharopoulos et al. 2020, arXiv:2006.16236), causal and bidirectional.

    y_i = φ(q_i)^T Σ_j φ(k_j) v_j^T / (φ(q_i)^T Σ_j φ(k_j) + eps)

over j <= i, or over all j. The sum over all j needs no recurrence: it is one matrix per head. The causal form is
`zoo.ops.gated_linear_attention` without decay, on values with a further column of ones, whose output is the normaliser.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp

from zoo.ops.gated_linear_attention import gated_linear_attention, gated_linear_attention_step
from zoo.ops.gated_linear_attention.common import accumulation_dtype, matmul_precision, where_real
from zoo.ops.segments import segment_runs
from zoo.typing import Array, Bool, Float, Int

FeatureMap = Literal["elu", "relu", "squared_relu", "identity", "dpfp", "taylor"]
FEATURE_MAPS: tuple[FeatureMap, ...] = ("elu", "relu", "squared_relu", "identity", "dpfp", "taylor")
# Shifts of the DPFP map; 4 in flash-linear-attention, 1 to 3 in the paper.
_SHIFTS = 4


def feature_map(x: Float[Array, "... K"], name: FeatureMap) -> Float[Array, "... F"]:
    """φ(x) in the dtype of `x`, computed in float32 (float64).

    "elu" is elu(x) + 1 (the paper's), "relu", "squared_relu" and "identity" what they say, "dpfp" the products of
    relu(x), relu(-x) with their rotations by 1 to 4 (Schlag et al. 2021, arXiv:2102.11174; F = 8 K), "taylor" the
    features of 1 + x·y / sqrt(K) + (x·y)^2 / (2 K) (Arora et al. 2024, arXiv:2402.18668; F = 1 + K + K (K + 1) / 2).

    Raises:
      ValueError: unknown name.
    """
    wide = x.astype(accumulation_dtype(x))
    if name == "elu":
        # exp(x) is elu(x) + 1 below 0, without the loss of digits of exp(x) - 1 + 1.
        mapped = jnp.where(wide > 0, wide + 1, jnp.exp(jnp.minimum(wide, 0)))
    elif name == "relu":
        mapped = jax.nn.relu(wide)
    elif name == "squared_relu":
        mapped = jnp.square(jax.nn.relu(wide))
    elif name == "identity":
        mapped = wide
    elif name == "dpfp":
        both = jax.nn.relu(jnp.concatenate([wide, -wide], axis=-1))
        mapped = jnp.concatenate([both * jnp.roll(both, shift, axis=-1) for shift in range(1, _SHIFTS + 1)], axis=-1)
    elif name == "taylor":
        mapped = _taylor(wide)
    else:
        raise ValueError(f"feature_map={name!r} is not known; there are {', '.join(FEATURE_MAPS)}.")
    return mapped.astype(x.dtype)


def feature_width(name: FeatureMap, width: int) -> int:
    """F of `feature_map` for K = `width`."""
    return {"dpfp": 2 * _SHIFTS * width, "taylor": 1 + width + width * (width + 1) // 2}.get(name, width)


def _taylor(x: Array) -> Array:
    width = x.shape[-1]
    x = x * width**-0.25
    rows, columns = jnp.triu_indices(width)
    # Each product of two different channels stands for two equal terms of (x·y)^2.
    weight = jnp.where(rows == columns, math.sqrt(0.5), 1.0).astype(x.dtype)
    return jnp.concatenate([jnp.ones_like(x[..., :1]), x, x[..., rows] * x[..., columns] * weight], axis=-1)


def linear_attention(
    q: Float[Array, "B T H F"],
    k: Float[Array, "B T H F"],
    v: Float[Array, "B T H V"],
    *,
    mask: Bool[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    causal: bool = False,
    normalize: bool = True,
    eps: float = 1e-6,
    initial_state: Float[Array, "B H F V1"] | None = None,
    return_state: bool = False,
    implementation: str | None = None,
    chunk_size: int | None = None,
) -> Float[Array, "B T H V"] | tuple[Float[Array, "B T H V"], Float[Array, "B H F V1"]]:
    """Linear attention of queries and keys that have been through `feature_map`.

    Args:
      q, k, v: φ(q), φ(k) and the values.
      mask: True at real tokens; the others are in no sum and have zero outputs. None where all are.
      segment_ids: packed sequences: tokens with different ids (in neighbouring runs) do not see each other.
      causal: position t sees positions <= t only.
      normalize: divide by the sum of the weights. Wants features that are not negative.
      eps: added to that sum.
      initial_state: causal only, from an earlier call. The last of its V + 1 columns is the sum of the keys, which is
        the normaliser's; V columns with `normalize=False`.
      return_state: causal only, also return the state after the last token.
      implementation: "xla" and None, or one of `gated_linear_attention`. Bidirectionally "reference" writes out all
        pairs and all others are the same.
      chunk_size: causal only, see `gated_linear_attention`.

    Returns:
      The output [B, T, H, V] in the dtype of `v`, and with `return_state` the state, float32 (float64).

    Raises:
      ValueError, TypeError: as `gated_linear_attention`; a state without `causal`; an `eps` that is not positive.
    """
    if eps <= 0:
        raise ValueError(f"linear_attention takes eps > 0, which keeps the normaliser from being 0; it is {eps}.")
    if not causal and (initial_state is not None or return_state):
        raise ValueError("linear_attention keeps a state in the causal form only; set causal=True.")
    scan = functools.partial(
        gated_linear_attention,
        scale=1.0,
        return_state=True,
        mask=mask,
        segment_ids=segment_ids,
        implementation=implementation,
        chunk_size=chunk_size,
    )
    values = _with_ones(v) if normalize else v
    if causal:
        y, state = scan(q, k, values, initial_state=initial_state)
        y = _divide(y, eps) if normalize else y
        return (y, state) if return_state else y
    jax.eval_shape(scan, q, k, values)  # raises where they do not fit
    if implementation == "reference":
        y = _pairs(q, k, values, mask, segment_ids)
    elif segment_ids is not None:
        own = jnp.einsum("bthk,bthk,bthv->bthv", *(where_real(x, mask) for x in (q, k, values)))
        y = scan(q, k, values)[0] + scan(q, k, values, reverse=True)[0] - own
    else:
        y = _sums(q, k, values, mask)
    return (_divide(y, eps) if normalize else y).astype(v.dtype)


def linear_attention_step(
    state: Float[Array, "B H F V1"],
    q: Float[Array, "B H F"],
    k: Float[Array, "B H F"],
    v: Float[Array, "B H V"],
    *,
    normalize: bool = True,
    eps: float = 1e-6,
    mask: Bool[Array, "B"] | None = None,
) -> tuple[Float[Array, "B H V"], Float[Array, "B H F V1"]]:
    """One token of causal `linear_attention`: its output and the state after it; see there."""
    y, state = gated_linear_attention_step(state, q, k, _with_ones(v) if normalize else v, scale=1.0, mask=mask)
    return _divide(y, eps) if normalize else y, state


def _with_ones(v: Array) -> Array:
    return jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)


def _divide(y: Array, eps: float) -> Array:
    return y[..., :-1] / (y[..., -1:] + eps)


def _sums(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    """Bidirectional: one matrix per head."""
    dtype, precision = accumulation_dtype(q, k, v), matmul_precision(q, k, v)
    q, k, v = (where_real(x.astype(dtype), mask) for x in (q, k, v))
    memory = jnp.einsum("bshk,bshv->bhkv", k, v, precision=precision)
    return jnp.einsum("bthk,bhkv->bthv", q, memory, precision=precision)


def _pairs(q: Array, k: Array, v: Array, mask: Array | None, segment_ids: Array | None) -> Array:
    """Bidirectional, every pair written out."""
    dtype, highest = accumulation_dtype(q, k, v), jax.lax.Precision.HIGHEST
    q, k, v = (where_real(x.astype(dtype), mask) for x in (q, k, v))
    scores = jnp.einsum("bthk,bshk->bhts", q, k, precision=highest)
    if segment_ids is not None:
        runs = segment_runs(segment_ids, mask)
        scores = jnp.where((runs[:, :, None] == runs[:, None])[:, None], scores, 0)
    return jnp.einsum("bhts,bshv->bthv", scores, v, precision=highest)
