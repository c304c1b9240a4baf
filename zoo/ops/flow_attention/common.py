"""What every implementation of Flow-Attention shares: the state, the options, the features, the guards."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from zoo.typing import Array, DType

FeatureMap = Literal["sigmoid", "relu"]
CompetitionAxis = Literal["sequence", "heads"]
# Sums of exp(x) for x up to this stay far inside float32, for sequences of any practical length.
_SAFE_EXPONENT = 20.0


class FlowState(NamedTuple):
    """All that causal Flow-Attention remembers: its size does not depend on how much was read. Empty is all zeros.

    Attributes:
      count: [B], how many real tokens were read (exact up to 2**24 in float32).
      query: [B, H, K], sum of the query features φ(q).
      key: [B, H, K], sum of the key features φ(k).
      query_share: [B, H, K], sum of φ(q) n / I.
      key_share: [B, H, K], sum of φ(k) n / O.
      peak: [B, H], what is taken off the exponents in `weight`: the largest Ô so far where Ô may be large (no clamp, or
        a wide one), else 0. A scale only, without gradient.
      weight: [B, H], sum of exp(Ô - peak).
      memory: [B, H, K, V], sum of φ(k) ⊗ (C v).
    """

    count: Array
    query: Array
    key: Array
    query_share: Array
    key_share: Array
    peak: Array
    weight: Array
    memory: Array


@dataclasses.dataclass(frozen=True)
class Options:
    """The choices of `flow_attention` that the implementations read."""

    feature_map: FeatureMap = "sigmoid"
    source_clamp: float | None = 1.0
    competition_axis: CompetitionAxis = "sequence"
    eps: float = 1e-6
    chunk_size: int = 64
    causal: bool = False

    def __post_init__(self):
        if self.feature_map not in ("sigmoid", "relu"):
            raise ValueError(f"feature_map={self.feature_map!r} is not known; it is 'sigmoid' or 'relu'.")
        if self.competition_axis not in ("sequence", "heads"):
            raise ValueError(f"competition_axis={self.competition_axis!r} is not known; it is 'sequence' or 'heads'.")
        if self.source_clamp is not None and not self.source_clamp > 0:
            raise ValueError(f"source_clamp={self.source_clamp} must be positive, or None for no clamp.")
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps} must be positive: it keeps the reciprocals of the flows finite.")
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size={self.chunk_size} must be at least 1.")
        if self.causal and self.competition_axis == "heads":
            raise ValueError("competition_axis='heads' has no causal form; use 'sequence', or causal=False.")

    @property
    def small_exponents(self) -> bool:
        """Whether the clamp alone keeps sums of exp(Ô) finite, so that no running maximum is needed."""
        return self.source_clamp is not None and self.source_clamp <= _SAFE_EXPONENT

    def clamp(self, flow: Array) -> Array:
        """Ô within ± `source_clamp`."""
        return flow if self.source_clamp is None else jnp.clip(flow, -self.source_clamp, self.source_clamp)


def accumulation_dtype(*arrays: Array) -> DType:
    """float64 if an input is, else float32: sums and reciprocals are never done in less."""
    return jnp.float64 if any(x.dtype == jnp.float64 for x in arrays) else jnp.float32


def matmul_precision(*arrays: Array) -> jax.lax.Precision:
    """Full float32 products for float32 inputs (accelerators would round them); the default for 16-bit inputs."""
    narrow = all(x.dtype in (jnp.bfloat16, jnp.float16) for x in arrays)
    return jax.lax.Precision.DEFAULT if narrow else jax.lax.Precision.HIGHEST


def features(x: Array, valid: Array, options: Options, dtype: DType) -> Array:
    """φ(x) [..., H, K] in `dtype`, zero where `valid` [...] is False: φ(0) is not 0, so the mask comes after φ."""
    x = x.astype(dtype)
    mapped = jax.nn.sigmoid(x) if options.feature_map == "sigmoid" else jax.nn.relu(x) + 1e-6
    return zero_padding(mapped, valid)


def zero_padding(x: Array, valid: Array) -> Array:
    """`x` [..., H, K] with zeros where `valid` [...] is False, whatever stood there."""
    return jnp.where(valid[..., None, None], x, 0)


def reciprocal(x: Array, valid: Array) -> Array:
    """1 / x where `valid`, else 1: padding has no flow, and its gradient must not be 0 * inf."""
    return 1 / jnp.where(valid, x, 1)


def empty_state(batch: int, heads: int, key_width: int, value_width: int, dtype: DType) -> FlowState:
    """The state before the first token: zeros."""
    vector = jnp.zeros((batch, heads, key_width), dtype)
    scalar = jnp.zeros((batch, heads), dtype)
    memory = jnp.zeros((batch, heads, key_width, value_width), dtype)
    return FlowState(jnp.zeros((batch,), dtype), vector, vector, vector, vector, scalar, scalar, memory)
