"""Flow-Attention written out: every pair of sink and source in a [B, H, T, S] array. Slow, and meant to be read.

A sink is a query i, a source is a key j, A_ij = φ(q_i)·φ(k_j) the flow between them (arXiv:2202.06258, section 3).
"""

import jax
import jax.numpy as jnp

from zoo.ops.flow_attention.common import FlowState, Options, accumulation_dtype, features, reciprocal, zero_padding
from zoo.typing import Array

_HIGHEST = jax.lax.Precision.HIGHEST


def _pairs(left: Array, right: Array) -> Array:
    return jnp.einsum("bthk,bshk->bhts", left, right, precision=_HIGHEST)


def full(q: Array, k: Array, v: Array, query_mask: Array, mask: Array, options: Options) -> Array:
    """Bidirectional form: out_i = R_i Σ_j (A_ij / I_i) C_j v_j."""
    dtype, eps = accumulation_dtype(q, k, v), options.eps
    q, k = features(q, query_mask, options, dtype), features(k, mask, options, dtype)
    v = zero_padding(v.astype(dtype), mask)
    sinks = query_mask.sum(1).astype(dtype)[:, None, None]
    sources = mask.sum(1).astype(dtype)[:, None, None]
    sink_ok = query_mask[:, None] & (sources > 0)
    source_ok = mask[:, None] & (sinks > 0)

    from_sink = _pairs(q + eps, k)  # what each source sends to sink i, [B, H, T, S]
    to_source = _pairs(q, k + eps)
    sink_floor = eps * jnp.moveaxis((q + eps).sum(-1), 1, 2)  # the ε added to a whole sum, not to its terms
    source_floor = eps * jnp.moveaxis((k + eps).sum(-1), 1, 2)
    incoming = reciprocal(from_sink.sum(3) + sink_floor, sink_ok)  # 1 / I [B, H, T]
    outgoing = reciprocal(to_source.sum(2) + source_floor, source_ok)  # 1 / O [B, H, S]
    conserved_sink = (from_sink * outgoing[:, :, None]).sum(3) + sink_floor
    conserved_source = options.clamp((to_source * incoming[..., None]).sum(2) + source_floor)

    allocation = jax.nn.sigmoid(conserved_sink * sinks / jnp.maximum(sources, 1))
    axis = 2 if options.competition_axis == "sequence" else 1
    # Flows are positive, so 0 stands in for padding under the maximum.
    logits = jnp.where(source_ok, conserved_source, 0)
    grown = jnp.where(source_ok, jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis, keepdims=True))), 0)
    total = grown.sum(axis, keepdims=True)
    competition = sources * grown / jnp.where(total > 0, total, 1)

    weights = _pairs(q, k) * (allocation * incoming)[..., None] * competition[:, :, None]
    return jnp.einsum("bhts,bshv->bthv", weights, v, precision=_HIGHEST)


def causal(q: Array, k: Array, v: Array, mask: Array, options: Options, state: FlowState) -> tuple[Array, FlowState]:
    """Causal form: sums over j <= i, of a source over the sinks not after it; `state` is what came before."""
    dtype, eps = accumulation_dtype(q, k, v), options.eps
    q, k = features(q, mask, options, dtype), features(k, mask, options, dtype)
    v = zero_padding(v.astype(dtype), mask)
    valid = mask[:, None]
    past = jnp.tril(jnp.ones((q.shape[1],) * 2, dtype))  # [i, j]: j <= i
    count = state.count[:, None] + mask.astype(dtype).cumsum(1)
    n = jnp.maximum(count, 1)[:, None]

    def before(x: Array, total: Array) -> Array:  # x_i · (total of the state + ε), [B, H, T]
        return jnp.einsum("bthk,bhk->bht", x + eps, total + eps, precision=_HIGHEST)

    from_sink = _pairs(q + eps, k) * past
    to_source = _pairs(q, k + eps) * past.T  # [.., i, j]: i <= j
    incoming = reciprocal(from_sink.sum(3) + before(q, state.key), valid)
    outgoing = reciprocal(to_source.sum(2) + before(k, state.query), valid)
    conserved_sink = ((from_sink * (n * outgoing)[:, :, None]).sum(3) + before(q, state.key_share)) / n
    conserved_source = ((to_source * (n * incoming)[..., None]).sum(2) + before(k, state.query_share)) / n

    flow = jnp.where(valid, options.clamp(conserved_source), 0)
    start = state.peak[..., None]
    peak = start + jnp.zeros_like(flow)
    if not options.small_exponents:
        peak = jax.lax.stop_gradient(jnp.maximum(start, jax.lax.cummax(flow, axis=2)))
    grown = jnp.exp(jnp.where(past > 0, flow[:, :, None] - peak[..., None], -jnp.inf)) * valid[:, :, None]
    weight = grown.sum(3) + state.weight[..., None] * jnp.exp(start - peak)
    competition = n * jnp.where(valid, jnp.exp(flow - peak), 0) * reciprocal(weight, valid)

    gate = jax.nn.sigmoid(conserved_sink) * incoming
    weights = _pairs(q, k) * past * gate[..., None] * competition[:, :, None]
    y = jnp.einsum("bhij,bjhv->bihv", weights, v, precision=_HIGHEST)
    y = y + jnp.einsum("bihk,bhi,bhkv->bihv", q, gate, state.memory, precision=_HIGHEST)
    new = FlowState(
        count=count[:, -1],
        query=state.query + q.sum(1),
        key=state.key + k.sum(1),
        query_share=state.query_share + jnp.einsum("bthk,bht->bhk", q, n * incoming, precision=_HIGHEST),
        key_share=state.key_share + jnp.einsum("bthk,bht->bhk", k, n * outgoing, precision=_HIGHEST),
        peak=peak[..., -1],
        weight=weight[..., -1],
        memory=state.memory + jnp.einsum("bthk,bht,bthv->bhkv", k, competition, v, precision=_HIGHEST),
    )
    return y, new
