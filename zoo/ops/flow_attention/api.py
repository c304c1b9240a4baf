"""The public functions: checks, defaults, choice of implementation, and one decoding step."""

import jax
import jax.numpy as jnp

from zoo.ops.dispatch import select
from zoo.ops.flow_attention import linear, reference
from zoo.ops.flow_attention.common import (
    CompetitionAxis,
    FeatureMap,
    FlowState,
    Options,
    accumulation_dtype,
    empty_state,
    features,
    reciprocal,
    zero_padding,
)
from zoo.typing import Array, Bool, DType, Float

_FULL = {"xla": linear.full, "reference": reference.full}
_CAUSAL = {"xla": linear.causal, "reference": reference.causal}


def flow_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H V"],
    *,
    mask: Bool[Array, "B S"] | None = None,
    query_mask: Bool[Array, "B T"] | None = None,
    causal: bool = False,
    feature_map: FeatureMap = "sigmoid",
    source_clamp: float | None = 1.0,
    competition_axis: CompetitionAxis = "sequence",
    eps: float = 1e-6,
    chunk_size: int = 64,
    implementation: str | None = None,
    initial_state: FlowState | None = None,
    return_state: bool = False,
) -> Float[Array, "B T H V"] | tuple[Float[Array, "B T H V"], FlowState]:
    """Flow-Attention (Wu et al. 2022, arXiv:2202.06258), linear in T and S, with real padding semantics.

    Queries are sinks i, keys are sources j of a flow A_ij = φ(q_i)·φ(k_j). With I and O its row and column sums::

        Î_i = Σ_j A_ij / O_j          Ô_j = Σ_i A_ij / I_i           conservation of what each source, each sink carries
        C_j = S softmax_j(Ô_j)        R_i = sigmoid(Î_i T / S)       competition of sources, allocation to sinks
        y_i = R_i Σ_j (A_ij / I_i) C_j v_j

    The causal form lets every sum run over the tokens so far (those of a source too: over the sinks not after it), and
    replaces T, S by their count n: I and O become means, C_j = n_j exp(Ô_j) / Σ_{t<=j} exp(Ô_t), R_i = sigmoid(Î_i).
    It is a different function from the bidirectional form, at the last position too.

    Padding contributes to no sum and to no count, so neither its content nor its amount matters. Sums, softmax and
    reciprocals are float32 (float64 for float64 inputs) whatever the dtype of the inputs.

    The authors' variants: `source_clamp` 1 (core module, images, GPT), 5 (translation), 10 (reinforcement learning),
    None (time series); on Long Range Arena relu features, no clamp and, by what looks like an oversight, a competition
    softmax over the heads, still times S.

    Args:
      q, k, v: queries, keys and values; only bidirectionally may T differ from S.
      mask: True where a source is real; None where all are.
      query_mask: True where a sink is real. None: `mask` where T == S (self-attention), else all are. Give it for
        cross-attention, where T may happen to equal S. Causally there is one mask for both.
      causal: position i sees positions <= i only.
      feature_map: φ, "sigmoid" or "relu" (relu(x) + 1e-6).
      source_clamp: Ô is limited to ± this before the competition; None for no limit.
      competition_axis: what the competition softmax runs over, "sequence" (the paper) or "heads" (bidirectional only).
      eps: added to φ and to its sums, as the authors do.
      chunk_size: tokens per chunk of the causal form; it changes speed and memory, not the result.
      implementation: "xla", "reference" (all pairs written out), or None to choose.
      initial_state: causal only, what was read before; None for nothing.
      return_state: causal only, also return the state after the last token.

    Returns:
      The output [B, T, H, V] in the dtype of `v`, zero at padded queries; with `return_state` also the `FlowState`.

    Raises:
      ValueError: shapes or options that do not fit each other.
    """
    _check_shapes(q, k, v, mask, query_mask)
    options = Options(feature_map, source_clamp, competition_axis, eps, chunk_size, causal)
    batch, length, heads, width = q.shape
    sources = jnp.ones(k.shape[:2], bool) if mask is None else mask
    if not causal:
        if initial_state is not None or return_state:
            raise ValueError("flow_attention keeps a state in the causal form only; set causal=True.")
        if query_mask is None:
            query_mask = sources if length == k.shape[1] else jnp.ones(q.shape[:2], bool)
        run = select(implementation, _FULL, op="flow_attention", default="xla")
        return run(q, k, v, query_mask, sources, options).astype(v.dtype)
    if length != k.shape[1]:
        raise ValueError(f"causal flow_attention needs T == S; axis 1 of q has {length}, of k {k.shape[1]}.")
    if query_mask is not None:
        raise ValueError("causal flow_attention has one mask for queries and keys; give `mask`, not `query_mask`.")
    state = _ready_state(initial_state, (batch, heads, width, v.shape[3]), accumulation_dtype(q, k, v))
    run = select(implementation, _CAUSAL, op="causal flow_attention", default="xla")
    y, state = run(q, k, v, sources, options, state)
    return (y.astype(v.dtype), state) if return_state else y.astype(v.dtype)


def flow_attention_init(
    batch_size: int, num_heads: int, key_width: int, value_width: int | None = None, *, dtype: DType = jnp.float32
) -> FlowState:
    """The state before the first token; `value_width` None is `key_width`. Its arrays are zeros, batch first."""
    return empty_state(batch_size, num_heads, key_width, value_width or key_width, dtype)


def flow_attention_step(
    q: Float[Array, "B H K"],
    k: Float[Array, "B H K"],
    v: Float[Array, "B H V"],
    state: FlowState,
    *,
    mask: Bool[Array, "B"] | None = None,
    feature_map: FeatureMap = "sigmoid",
    source_clamp: float | None = 1.0,
    eps: float = 1e-6,
) -> tuple[Float[Array, "B H V"], FlowState]:
    """One token of causal `flow_attention`, in time and memory that do not depend on how many came before.

    Args:
      q, k, v: query, key and value of the token.
      state: after the tokens before it, from `flow_attention_init` or an earlier call.
      mask: False where an example has no token now: its state stays, its output is zero. None where all have one.
      feature_map, source_clamp, eps: as in `flow_attention`.

    Returns:
      The output [B, H, V] in the dtype of `v`, and the state after this token.

    Raises:
      ValueError: shapes or options that do not fit each other.
    """
    options = Options(feature_map, source_clamp, eps=eps)
    valid = jnp.ones(q.shape[:1], bool) if mask is None else mask
    _check_shapes(q[:, None], k[:, None], v[:, None], valid[:, None], None)
    dtype = accumulation_dtype(q, k, v)
    batch, heads, width = q.shape
    old = _ready_state(state, (batch, heads, width, v.shape[2]), dtype)
    q, k = features(q, valid, options, dtype), features(k, valid, options, dtype)
    sent = zero_padding(v.astype(dtype), valid)
    real = valid[:, None]
    count = old.count + valid
    n = jnp.maximum(count, 1)[:, None]

    def flow(x: Array, total: Array) -> Array:
        return ((x + eps) * (total + eps)).sum(-1)

    key, query = old.key + k, old.query + q
    incoming, outgoing = reciprocal(flow(q, key), real), reciprocal(flow(k, query), real)
    key_share = old.key_share + k * (n * outgoing)[..., None]
    query_share = old.query_share + q * (n * incoming)[..., None]
    conserved_sink, conserved_source = flow(q, key_share) / n, options.clamp(flow(k, query_share) / n)
    conserved_source = jnp.where(real, conserved_source, 0)
    peak = old.peak
    if not options.small_exponents:
        peak = jax.lax.stop_gradient(jnp.maximum(peak, conserved_source))
    grown = jnp.where(real, jnp.exp(conserved_source - peak), 0)
    weight = old.weight * jnp.exp(old.peak - peak) + grown
    sent = sent * (n * grown * reciprocal(weight, real))[..., None]
    memory = old.memory + k[..., None] * sent[..., None, :]
    y = jnp.einsum("bhk,bhkv->bhv", q, memory, precision=jax.lax.Precision.HIGHEST)
    y = y * (jax.nn.sigmoid(conserved_sink) * incoming)[..., None]
    return y.astype(v.dtype), FlowState(count, query, key, query_share, key_share, peak, weight, memory)


def _check_shapes(q: Array, k: Array, v: Array, mask: Array | None, query_mask: Array | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(f"flow_attention takes {name} of four axes [B, T, H, K]; it has shape {x.shape}.")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"flow_attention takes floating point {name}; it has dtype {x.dtype}.")
        if x.shape[1] == 0:
            raise ValueError(f"flow_attention needs at least one token; axis 1 of {name} has shape {x.shape}.")
    if (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(f"q {q.shape} and k {k.shape} must agree in axes 0 (B), 2 (H) and 3 (K).")
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"k {k.shape} and v {v.shape} must agree in axes 0 (B), 1 (S) and 2 (H).")
    for name, x, rows in (("mask", mask, k), ("query_mask", query_mask, q)):
        if x is not None and (x.shape != rows.shape[:2] or x.dtype != bool):
            raise ValueError(f"{name} must be bool of shape {rows.shape[:2]}, True = real; it is {x.dtype} {x.shape}.")


def _ready_state(state: FlowState | None, sizes: tuple[int, int, int, int], dtype: DType) -> FlowState:
    empty = jax.eval_shape(lambda: empty_state(*sizes, dtype))
    if state is None:
        return empty_state(*sizes, dtype)
    for name, found, want in zip(FlowState._fields, state, empty, strict=True):
        if found.shape != want.shape:
            raise ValueError(f"the state's `{name}` must have shape {want.shape}; it has {found.shape}.")
    state = FlowState(*(x.astype(dtype) for x in state))
    return state._replace(peak=jax.lax.stop_gradient(state.peak))
