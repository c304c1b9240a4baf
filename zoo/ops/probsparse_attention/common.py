"""What the implementations of ProbSparse attention share: the options, the budget, which keys a query looks at."""

import dataclasses
import itertools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.typing import Array, PRNGKeyArray

Sample = Literal["per_query", "shared"]
Selection = Literal["causal", "authors"]
CausalContext = Literal["mean", "cumsum"]

# The largest whole numbers not above e^0, e^1, ...: ceil(ln n) is how many of them are below n, without rounding.
_POWERS = np.array([math.floor(math.exp(m)) for m in range(22)], np.int32)


@dataclasses.dataclass(frozen=True)
class Options:
    """The choices of `probsparse_attention` that the implementations read."""

    factor: int
    scale: float
    sample: Sample = "per_query"
    causal: bool = False
    selection: Selection = "causal"
    causal_context: CausalContext = "mean"

    def __post_init__(self):
        # A budget is at most the length; a larger factor would only overflow its product.
        object.__setattr__(self, "factor", min(self.factor, 2**26))

    @property
    def looks_back(self) -> bool:
        """Whether sample and selection of a query are confined to what is not after it."""
        return self.causal and self.selection == "causal"


def check_options(factor: int, sample: str, selection: str, causal_context: str) -> None:
    """Raises ValueError where `probsparse_attention` does not take these options, whatever its arrays are."""
    if factor < 1:
        raise ValueError(f"factor={factor} must be at least 1.")
    for name, value, known in (
        ("sample", sample, ("per_query", "shared")),
        ("selection", selection, ("causal", "authors")),
        ("causal_context", causal_context, ("mean", "cumsum")),
    ):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}; there are {', '.join(known)}.")


def budget(length: int, factor: int) -> int:
    """factor * ceil(ln length), at least 1 and at most `length`: queries that attend, and keys that each samples."""
    return min(max(factor * int((length > _POWERS).sum()), 1), length)


def budgets(lengths: Array, factor: int) -> Array:
    """`budget` of each of an array of lengths; 0 for 0."""
    return jnp.minimum(jnp.maximum(factor * (lengths[..., None] > _POWERS).sum(-1), 1), lengths)


class Layout(NamedTuple):
    """Where the real tokens are; b is B, or 1 where no mask tells the examples apart.

    Attributes:
      places: [b, T], which of the real queries each query is, from 0.
      counts: [b, T], the keys that it may choose its sample from: all, or those not after it.
      order: [b, S], the positions of the real keys, in order.
      keys: [b, S], which keys are real.
      queries: [b, T], which queries are real.
    """

    places: Array
    counts: Array
    order: Array
    keys: Array
    queries: Array


def layout(query_mask: Array | None, mask: Array | None, length: int, sources: int, options: Options) -> Layout:
    """The `Layout` for masks [B, T] and [B, S], None where all is real."""
    queries = jnp.ones((1, length), bool) if query_mask is None else query_mask
    keys = jnp.ones((1, sources), bool) if mask is None else mask
    batch = max(len(queries), len(keys))
    queries, keys = (jnp.broadcast_to(x, (batch, x.shape[1])) for x in (queries, keys))
    ends = jnp.cumsum(queries, axis=1, dtype=jnp.int32)
    total = keys.sum(1, keepdims=True, dtype=jnp.int32)
    counts = ends if options.looks_back else jnp.broadcast_to(total, ends.shape)
    order = jnp.argsort(~keys, axis=1, stable=True).astype(jnp.int32)
    return Layout(jnp.maximum(ends - 1, 0), counts, order, keys, queries)


def per_query_slot(sample: PRNGKeyArray | Array, slot: Array, where: Layout, options: Options) -> tuple[Array, Array]:
    """Key positions [b, T] that fill one slot of each query's sample, and whether they count.

    Drawn, slot j of the query at place p is floor(r[j, p] * n) of the n keys that the query may choose from, and counts
    where j < budget(n). r[j] is drawn from `fold_in(key, j)`, and its first numbers are the same for every T, so that
    neither padding nor what follows changes a sample. Given, `sample` is [T, U].
    """
    if not is_key(sample):
        return _given(sample[:, slot][None], where, options)
    # Of the bits of a longer draw the first ones are the same (threefry, partitionable, JAX's default).
    draws = jax.random.uniform(jax.random.fold_in(sample, slot), where.places.shape[1:], jnp.float32)
    chosen = _scaled(draws[where.places], where.counts)
    return jnp.take_along_axis(where.order, chosen, axis=1), slot < budgets(where.counts, options.factor)


def shared_sample(sample: PRNGKeyArray | Array, where: Layout, options: Options) -> tuple[Array, Array]:
    """Key positions [b, U] that all queries share, and for which queries they count [b, 1 or T, U].

    Bidirectionally U keys are drawn from all real ones. Where a query may not look ahead, all prefixes of the sequence
    need samples, as parts of one sample: up to `factor` keys are drawn from each of the stretches [e^m, e^(m + 1)), and
    a query takes those that are not after it. Given, `sample` is [U].
    """
    length, sources = where.places.shape[1], where.order.shape[1]
    if not is_key(sample):
        index, counts = _given(sample[None, None, :], where, options)
        return index[:, 0], counts
    total = where.keys.sum(1, keepdims=True, dtype=jnp.int32)
    if not options.looks_back:
        slots = jnp.arange(budget(sources, options.factor))
        chosen = _scaled(_draw_each(sample, len(slots)), total)
        counts = (slots < budgets(total, options.factor))[:, None]
    else:
        low, size = _stretches(length, options.factor)
        chosen = low + _scaled(_draw_each(sample, len(low)), size)
        counts = chosen <= where.places[..., None]
        chosen = jnp.broadcast_to(jnp.minimum(chosen, length - 1), (len(total), len(low)))
    return jnp.take_along_axis(where.order, chosen, axis=1), counts


def is_key(sample: PRNGKeyArray | Array) -> bool:
    """Whether `sample` is a key to draw from rather than positions."""
    return jnp.issubdtype(sample.dtype, jax.dtypes.prng_key)


def zero_padding(x: Array, valid: Array | None) -> Array:
    """`x` [B, T, H, K] with zeros where `valid` [B, T] is False, whatever stood there."""
    return x if valid is None else jnp.where(valid[..., None, None], x, 0)


def context(v: Array, where: Layout, options: Options, dtype: jax.typing.DTypeLike) -> Array:
    """What a query gets that does not attend: [B, 1, H, V], or causally [B, T, H, V]. Padding in `v` is zero."""
    v = v.astype(dtype)
    if not options.causal:
        count = jnp.maximum(where.keys.sum(1), 1).astype(dtype)
        return v.sum(1, keepdims=True) / count[:, None, None, None]
    total = jnp.cumsum(v, axis=1)
    if options.causal_context == "cumsum":
        return total
    count = jnp.maximum(jnp.cumsum(where.keys, axis=1), 1).astype(dtype)
    return total / count[..., None, None]


def _given(index: Array, where: Layout, options: Options) -> tuple[Array, Array]:
    """Positions as the caller gave them, [1, T, ...], and whether they are of real keys that may be seen."""
    length = where.places.shape[1]
    flat = jnp.broadcast_to(index.reshape(1, -1), (len(where.keys), index.size))
    counts = jnp.take_along_axis(where.keys, flat, axis=1).reshape(len(where.keys), *index.shape[1:])
    if options.looks_back:
        position = jnp.arange(length).reshape(1, length, *(1,) * (index.ndim - 2))
        counts = counts & (index <= position)
    return jnp.broadcast_to(index, (len(where.keys), *index.shape[1:])), counts


def _draw_each(key: PRNGKeyArray, slots: int) -> Array:
    """One number in [0, 1) for each slot, the same for slot j however many slots there are."""
    return jax.vmap(lambda slot: jax.random.uniform(jax.random.fold_in(key, slot), (), jnp.float32))(jnp.arange(slots))


def _scaled(draws: Array, counts: Array) -> Array:
    """floor(draw * count), at least 0 and below count."""
    return jnp.maximum(jnp.minimum((draws * counts).astype(jnp.int32), counts - 1), 0)


def _stretches(length: int, factor: int) -> tuple[Array, Array]:
    """Start and size of the range that each shared slot is drawn from; a stretch of few keys gives each of them."""
    low, size = [], []
    for start, end in itertools.pairwise([0, *_POWERS[1:].tolist()]):
        if start >= length:
            break
        if end - start <= factor:
            low += range(start, end)
            size += [1] * (end - start)
        else:
            low += [start] * factor
            size += [end - start] * factor
    return jnp.array(low, jnp.int32), jnp.array(size, jnp.int32)
