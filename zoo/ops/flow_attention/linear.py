"""Flow-Attention in time and memory linear in the sequence, by XLA alone. Inside, heads come before tokens."""

import functools
import math

import jax
import jax.numpy as jnp

from zoo.ops.flow_attention.common import (
    FlowState,
    Options,
    accumulation_dtype,
    features,
    matmul_precision,
    reciprocal,
    zero_padding,
)
from zoo.typing import Array

# Products that cost little are exact on every platform.
_exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
# Chunks worked on at once: enough to fill an accelerator, few enough that nothing wide is kept for the whole sequence.
_CHUNKS_PER_BLOCK = 16


def full(q: Array, k: Array, v: Array, query_mask: Array, mask: Array, options: Options) -> Array:
    """Bidirectional form [B, T, H, V]: sums over the sequence first, then one matrix of K x V per head."""
    dtype, eps = accumulation_dtype(q, k, v), options.eps
    dot = functools.partial(jnp.einsum, precision=matmul_precision(q, k, v))
    q = jnp.moveaxis(features(q, query_mask, options, dtype), 2, 1)
    k = jnp.moveaxis(features(k, mask, options, dtype), 2, 1)
    v = jnp.moveaxis(zero_padding(v.astype(dtype), mask), 2, 1)
    sinks = query_mask.sum(1).astype(dtype)[:, None, None]
    sources = mask.sum(1).astype(dtype)[:, None, None]
    sink_ok = query_mask[:, None] & (sources > 0)
    source_ok = mask[:, None] & (sinks > 0)

    def flow(x: Array, total: Array) -> Array:
        return _exact("bhtk,bhk->bht", x + eps, total + eps)

    incoming = reciprocal(flow(q, k.sum(2)), sink_ok)  # 1 / I [B, H, T]
    outgoing = reciprocal(flow(k, q.sum(2)), source_ok)  # 1 / O [B, H, S]
    conserved_sink = flow(q, _exact("bhsk,bhs->bhk", k, outgoing))
    conserved_source = options.clamp(flow(k, _exact("bhtk,bht->bhk", q, incoming)))

    allocation = jax.nn.sigmoid(conserved_sink * sinks / jnp.maximum(sources, 1))
    axis = 2 if options.competition_axis == "sequence" else 1
    # Flows are positive, so 0 stands in for padding under the maximum.
    logits = jnp.where(source_ok, conserved_source, 0)
    grown = jnp.where(source_ok, jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis, keepdims=True))), 0)
    total = grown.sum(axis, keepdims=True)
    competition = sources * grown / jnp.where(total > 0, total, 1)

    memory = dot("bhsk,bhsv->bhkv", k, v * competition[..., None])
    y = dot("bhtk,bhkv->bhtv", q, memory) * (incoming * allocation)[..., None]
    return jnp.moveaxis(y, 1, 2)


def _running(x: Array, start: Array) -> tuple[Array, Array]:
    """Sums of `x` [B, N, ...] before each n, begun at `start` [B, ...]; and the sum after the last."""
    steps = jnp.tril(jnp.ones((x.shape[1] + 1, x.shape[1]), x.dtype), -1)
    total = start[:, None] + _exact("mn,bn...->bm...", steps, x)
    return total[:, :-1], total[:, -1]


def _sums_in_chunk(x: Array) -> Array:
    """Running sums [B, N, H, c] inside each chunk, the token itself included."""
    return _exact("bnhj,ij->bnhi", x, jnp.tril(jnp.ones((x.shape[-1],) * 2, x.dtype)))


def _running_softmax(flow: Array, valid: Array, peak: Array, weight: Array, options: Options):
    """exp(Ô_j) / Σ_{t <= j} exp(Ô_t), safe for every Ô >= 0.

    Where the clamp does not keep Ô small, everything is scaled by a running maximum: exponents are never positive, and
    the sum at j is at least 1 in units of its own maximum.

    Args:
      flow: Ô [B, N, H, c].
      valid: bool [B, N, 1, c].
      peak, weight: those of the state, [B, H].
      options: say whether Ô is small.

    Returns:
      (quotient [B, N, H, c], new peak [B, H], new weight [B, H]).
    """
    flow = jnp.where(valid, flow, 0)
    if options.small_exponents:
        grown = jnp.where(valid, jnp.exp(flow - peak[:, None, :, None]), 0)
        before, last = _running(grown.sum(3), weight)
        return grown * reciprocal(before[..., None] + _sums_in_chunk(grown), valid), peak, last

    fixed = jax.lax.stop_gradient(flow)  # a scale only: it cancels in the quotient
    ends = jax.lax.cummax(
        jnp.concatenate([peak[:, None], fixed.max(3)], axis=1), axis=1
    )  # [B, 1 + N, H], before each chunk
    peaks = jnp.maximum(ends[:, :-1, :, None], jax.lax.cummax(fixed, axis=3))
    past = jnp.tril(jnp.ones((flow.shape[-1],) * 2, bool)) & valid[..., None, :]
    local = jnp.exp(jnp.where(past, flow[..., None, :] - peaks[..., None], -jnp.inf)).sum(4)
    # Each chunk's own sum, and the state's, in units of `ends` there; carried to the units of every later chunk end.
    sums = jnp.concatenate([weight[:, None], local[..., -1]], axis=1)
    later = jnp.tril(jnp.ones((sums.shape[1],) * 2, bool))[..., None]
    carry = jnp.exp(jnp.where(later, ends[:, None] - ends[:, :, None], -jnp.inf))
    sums = _exact("bmnh,bnh->bmh", carry, sums)
    total = local + sums[:, :-1, :, None] * jnp.exp(ends[:, :-1, :, None] - peaks)
    grown = jnp.where(valid, jnp.exp(flow - peaks), 0)
    return grown * reciprocal(total, valid), ends[:, -1], sums[:, -1]


def _block(state: FlowState, block: tuple[Array, ...], *, options: Options, chunk: int) -> tuple[FlowState, Array]:
    """The new state, and the output [B, T, H, V], of T tokens after `state`; T is a multiple of `chunk`."""
    q, k, v, mask = block
    batch, length, heads, _ = q.shape
    dtype, eps = state.memory.dtype, options.eps
    dot = functools.partial(jnp.einsum, precision=matmul_precision(q, k, v))

    def split(x: Array) -> Array:  # [B, T, H, ...] -> [B, N, H, c, ...]
        return jnp.moveaxis(x.reshape(batch, -1, chunk, *x.shape[2:]), 2, 3)

    q, k = split(features(q, mask, options, dtype)), split(features(k, mask, options, dtype))
    v, valid = split(zero_padding(v.astype(dtype), mask)), split(mask[..., None])
    ones = valid.astype(dtype)
    count, count_last = _running(ones.sum((2, 3)), state.count)
    n = jnp.maximum(count[:, :, None, None] + _sums_in_chunk(ones), 1)  # [B, N, 1, c]
    past = jnp.tril(jnp.ones((chunk, chunk), bool))

    scores = dot("bnhik,bnhjk->bnhij", q, k)
    # The terms (φ(q_i) + ε)·φ(k_j), j <= i, and φ(q_i)·(φ(k_j) + ε), i <= j, of this chunk.
    from_sink = jnp.where(past, scores + eps * k.sum(-1)[..., None, :], 0)
    to_source = jnp.where(past.T, scores + eps * q.sum(-1)[..., None], 0)

    def before(x: Array, total: Array) -> Array:  # x_i · (sum over all earlier chunks + ε)
        return _exact("bnhik,bnhk->bnhi", x + eps, total + eps)

    key, key_last = _running(k.sum(3), state.key)
    query, query_last = _running(q.sum(3), state.query)
    incoming = reciprocal(from_sink.sum(4) + before(q, key), valid)
    outgoing = reciprocal(to_source.sum(3) + before(k, query), valid)
    key_share, key_share_last = _running(_exact("bnhik,bnhi->bnhk", k, n * outgoing), state.key_share)
    query_share, query_share_last = _running(_exact("bnhik,bnhi->bnhk", q, n * incoming), state.query_share)
    conserved_sink = (_exact("bnhij,bnhj->bnhi", from_sink, n * outgoing) + before(q, key_share)) / n
    conserved_source = (_exact("bnhij,bnhi->bnhj", to_source, n * incoming) + before(k, query_share)) / n

    source = options.clamp(conserved_source)
    competition, peak, weight = _running_softmax(source, valid, state.peak, state.weight, options)
    sent = v * (n * competition)[..., None]  # C_j v_j
    memory, memory_last = _running(dot("bnhik,bnhiv->bnhkv", k, sent), state.memory)
    y = dot("bnhij,bnhjv->bnhiv", jnp.where(past, scores, 0), sent) + dot("bnhik,bnhkv->bnhiv", q, memory)
    y = y * (jax.nn.sigmoid(conserved_sink) * incoming)[..., None]
    y = jnp.moveaxis(y, 3, 2).reshape(batch, length, heads, -1)
    last = (query_last, key_last, query_share_last, key_share_last, peak, weight, memory_last)
    return FlowState(count_last, *last), y


def causal(q: Array, k: Array, v: Array, mask: Array, options: Options, state: FlowState) -> tuple[Array, FlowState]:
    """Causal form: quadratic inside chunks, the state between them.

    Blocks of chunks follow each other in a scan whose body is recomputed in the backward pass, so that what is kept for
    it is the inputs and one state per block.
    """
    batch, length = mask.shape
    chunk = min(options.chunk_size, length)
    chunks = math.ceil(length / chunk)
    blocks = math.ceil(chunks / _CHUNKS_PER_BLOCK)
    size = math.ceil(chunks / blocks) * chunk

    def split(x: Array) -> Array:  # [B, T, ...] -> [blocks, B, size, ...]
        x = jnp.pad(x, [(0, 0), (0, blocks * size - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, blocks, size, *x.shape[2:]), 1, 0)

    body = jax.checkpoint(functools.partial(_block, options=options, chunk=chunk), prevent_cse=False)
    state, y = jax.lax.scan(body, state, tuple(map(split, (q, k, v, mask))))
    y = jnp.moveaxis(y, 0, 1).reshape(batch, blocks * size, *y.shape[3:])
    return y[:, :length], state
