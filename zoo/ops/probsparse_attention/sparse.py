"""ProbSparse attention in O(T log T) time and memory: measure by samples, gather the chosen queries, scatter them."""

import jax
import jax.numpy as jnp

from zoo.ops.probsparse_attention.common import (
    Layout,
    Options,
    budget,
    budgets,
    context,
    is_key,
    per_query_slot,
    shared_sample,
)
from zoo.typing import Array, PRNGKeyArray

_HIGHEST = jax.lax.Precision.HIGHEST


def attend(q: Array, k: Array, v: Array, sample: PRNGKeyArray | Array, where: Layout, options: Options) -> Array:
    """See `probsparse_attention`; padding in `q`, `k` and `v` is zero. The result is in the accumulation dtype."""
    dtype = jnp.promote_types(jnp.result_type(q, k, v), jnp.float32)
    # Which queries attend is a choice, not a function with a derivative; nothing of it is kept for the backward pass.
    frozen = jax.lax.stop_gradient((q, k))
    rows = select(measure(*frozen, sample, where, options, dtype), where, options)
    y = context(v, where, options, dtype)
    y = jnp.broadcast_to(y, (*q.shape[:3], v.shape[3]))
    example = jnp.arange(q.shape[0])[:, None, None]
    head = jnp.arange(q.shape[2])[:, None]
    # Rows from T on stand for "none", each with a number of its own.
    chosen = q.at[example, rows, head].get(mode="fill", fill_value=0)
    scores = options.scale * _products("bhuk,bshk->bhus", chosen, k, dtype)
    allowed = where.keys[:, None, None, :]
    if options.causal:
        allowed = allowed & (jnp.arange(k.shape[1]) <= rows[..., None])
    # A finite filler keeps the gradient finite where a query sees no key at all.
    weights = jax.nn.softmax(jnp.where(allowed, scores, jnp.finfo(dtype).min))
    weights = jnp.where(allowed, weights, 0).astype(v.dtype)
    attended = _products("bhus,bshv->bhuv", weights, v, dtype)
    return y.at[example, rows, head].set(attended, mode="drop", unique_indices=True)


def measure(
    q: Array, k: Array, sample: PRNGKeyArray | Array, where: Layout, options: Options, dtype: jax.typing.DTypeLike
) -> Array:
    """max - sum / (number of keys) over each query's sample of unscaled scores, [B, H, T]; -inf for padding."""
    if options.sample == "shared":
        index, counts = shared_sample(sample, where, options)
        scores = _products("bthk,buhk->bthu", q, _keys_at(k, index), dtype)
        counts = counts[:, :, None]
        top = jnp.max(scores, axis=-1, where=counts, initial=-jnp.inf)
        total = jnp.sum(scores, axis=-1, where=counts)
    else:
        slots = budget(k.shape[1], options.factor) if is_key(sample) else sample.shape[1]

        def add(carry, slot):
            top, total = carry
            index, counts = per_query_slot(sample, slot, where, options)
            score = _products("bthk,bthk->bth", q, _keys_at(k, index), dtype)
            counts = counts[..., None]
            return (jnp.maximum(top, jnp.where(counts, score, -jnp.inf)), total + jnp.where(counts, score, 0)), None

        # One slot after another: the sampled keys of all slots at once are U copies of k.
        zeros = jnp.zeros(q.shape[:3], dtype)
        (top, total), _ = jax.lax.scan(add, (zeros - jnp.inf, zeros), jnp.arange(slots))
    found = top - total / jnp.maximum(where.counts, 1).astype(dtype)[..., None]
    found = jnp.maximum(found, jnp.finfo(dtype).min)  # a real query whose sample is empty comes before padding
    return jnp.where(where.queries[..., None], found, -jnp.inf).swapaxes(1, 2)


def select(found: Array, where: Layout, options: Options) -> Array:
    """The positions [B, H, u] of the queries that attend, and T, T + 1, ... in the places that none needs."""
    length = found.shape[-1]
    width = budget(length, options.factor)
    none = length + jnp.arange(width)
    if not options.looks_back:
        rows = jax.lax.top_k(found, width)[1]
        number = budgets(where.queries.sum(1), options.factor)
        return jnp.where(jnp.arange(width) < number[:, None, None], rows, none)
    active = _records(found, where, options)
    # The largest of T, T - 1, ..., 1, at the places of active queries, are those queries in order.
    first = jax.lax.top_k(jnp.where(active, length - jnp.arange(length), 0), width)[0]
    return jnp.where(first > 0, length - first, none)


def _records(found: Array, where: Layout, options: Options) -> Array:
    """Which queries attend [B, H, T], each decided by what is not after it: see `probsparse_attention`."""

    def shifted(x, fill):
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 0)], constant_values=fill)[..., :-1]

    def next_largest(carry, _):
        rest, _ = carry
        before = shifted(jax.lax.cummax(rest, axis=rest.ndim - 1), -jnp.inf)
        return (jnp.minimum(rest, before), before), None

    # The largest so far, then the largest of what it displaced, and so on: the factor-th largest before each query.
    (_, threshold), _ = jax.lax.scan(next_largest, (found, found), length=min(options.factor, found.shape[-1]))
    among = (found > threshold) | (where.places[:, None] < options.factor)
    among = among & where.queries[:, None]
    wanted = jnp.cumsum(among, axis=-1, dtype=jnp.int32)
    # The number of active queries is a_t = min(a_(t - 1) + among_t, room_t), here without a loop.
    room = budgets(where.places + 1, options.factor)[:, None]
    number = wanted + jnp.minimum(jax.lax.cummin(room - wanted, axis=wanted.ndim - 1), 0)
    return number > shifted(number, 0)


def _keys_at(k: Array, index: Array) -> Array:
    """k[b, index[b]], with one `index` for all examples or one for each."""
    return k[:, index[0]] if len(index) == 1 else k[jnp.arange(len(k))[:, None], index]


def _products(equation: str, a: Array, b: Array, dtype: jax.typing.DTypeLike) -> Array:
    return jnp.einsum(equation, a, b, precision=_HIGHEST, preferred_element_type=dtype)
