"""ProbSparse attention written out with [B, H, T, T] arrays: slow, and meant to be read."""

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
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    length, sources = q.shape[1], k.shape[1]
    scores = jnp.einsum("bthk,bshk->bhts", q, k, precision=_HIGHEST)

    found = _measure(jax.lax.stop_gradient(scores), sample, where, options)
    active = _looking_back(found, where, options) if options.looks_back else _over_all(found, where, options)

    allowed = jnp.broadcast_to(where.keys[:, None, None, :], scores.shape)
    if options.causal:
        allowed = allowed & jnp.tril(jnp.ones((length, sources), bool))
    top = jnp.max(scores, axis=-1, keepdims=True, where=allowed, initial=-jnp.inf)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    powers = jnp.where(allowed, jnp.exp(options.scale * jnp.where(allowed, scores - top, 0)), 0)
    total = powers.sum(-1, keepdims=True)
    attended = jnp.einsum("bhts,bshv->bthv", powers / jnp.where(total > 0, total, 1), v, precision=_HIGHEST)
    return jnp.where(active.swapaxes(1, 2)[..., None], attended, context(v, where, options, dtype))


def _measure(scores: Array, sample: PRNGKeyArray | Array, where: Layout, options: Options) -> Array:
    """The measure of every query [B, H, T] from all scores [B, H, T, S]."""
    sources = scores.shape[3]
    if options.sample == "shared":
        index, counts = shared_sample(sample, where, options)
        index, counts = index[:, None, None], counts[:, None]
    else:
        slots = jnp.arange(budget(sources, options.factor) if is_key(sample) else sample.shape[1])
        index, counts = jax.vmap(lambda slot: per_query_slot(sample, slot, where, options), out_axes=-1)(slots)
        index, counts = index[:, None], counts[:, None]
    index = jnp.broadcast_to(index, (*scores.shape[:3], index.shape[-1]))
    sampled = jnp.take_along_axis(scores, index, axis=-1)
    top = jnp.where(counts, sampled, -jnp.inf).max(-1)
    found = top - jnp.where(counts, sampled, 0).sum(-1) / jnp.maximum(where.counts, 1)[:, None]
    return jnp.where(where.queries[:, None], jnp.maximum(found, jnp.finfo(scores.dtype).min), -jnp.inf)


def _over_all(found: Array, where: Layout, options: Options) -> Array:
    """Active are the queries that fewer than u others surpass; of equals the earlier comes first."""
    position = jnp.arange(found.shape[-1])
    one, other = found[..., :, None], found[..., None, :]
    surpassed = (other > one) | ((other == one) & (position[None, :] < position[:, None]))
    number = budgets(where.queries.sum(1), options.factor)[:, None, None]
    return (surpassed.sum(-1) < number) & where.queries[:, None]


def _looking_back(found: Array, where: Layout, options: Options) -> Array:
    """Active are the queries that fewer than c earlier ones reach, while there is room, one query after another."""
    length = found.shape[-1]
    earlier = jnp.tril(jnp.ones((length, length), bool), -1) & where.queries[:, None, None, :]
    reached = (earlier & (found[..., None, :] >= found[..., :, None])).sum(-1)
    among = (reached < options.factor) & where.queries[:, None]
    room = jnp.broadcast_to(budgets(where.places + 1, options.factor)[:, None], among.shape)

    def one(number, query):
        among, room = query
        active = among & (number < room)
        return number + active, active

    queries = (jnp.moveaxis(among, -1, 0), jnp.moveaxis(room, -1, 0))
    active = jax.lax.scan(one, jnp.zeros(among.shape[:2], jnp.int32), queries)[1]
    return jnp.moveaxis(active, 0, -1)
