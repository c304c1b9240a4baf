"""One chunk of gated linear attention whose decay is a number per head and key channel, as in GLA (arXiv:2312.06635).

The functions are those of `per_head`, with a_t a vector over K. The decay between two tokens stands inside the product
of query and key,

    scores[i, j] = Σ_k q_i[k] k_j[k] prod_{t = j+1..i} a_t[k]

and there is no factor per token that would give it for all pairs without overflow. So pairs are grouped by level (see
`spans`): between the halves of a span it is prefix[i] * suffix[j], both at most 1, and the scores there are one matrix
product. The levels cover the triangle j < i exactly once, in half of the operations of the square.
"""

import functools

import jax.numpy as jnp

from zoo.ops.gated_linear_attention.common import Chunk, sum_paths
from zoo.ops.gated_linear_attention.spans import Span, spans
from zoo.typing import Array


def _inputs(chunk: Chunk) -> tuple[Array, Array, list[Span]]:
    """Queries and keys of every head, and the products of factors, all [B, G, R, c, K]."""
    assert chunk.factors is not None
    q, k = (jnp.broadcast_to(x[:, :, None], chunk.factors.shape) for x in (chunk.q, chunk.k))
    return q, k, spans(chunk.factors)


def _half(x: Array, size: int, which: int) -> Array:
    """The first (0) or second (1) halves of spans of 2 `size` tokens: [..., c, K] -> [..., c / (2 size), size, K]."""
    return x.reshape(*x.shape[:-2], -1, 2, size, x.shape[-1])[..., which, :, :]


def _whole(half: Array, which: int) -> Array:
    """The inverse of `_half`, with zeros in the other halves."""
    halves = [half, jnp.zeros_like(half)] if which == 0 else [jnp.zeros_like(half), half]
    return jnp.stack(halves, axis=-3).reshape(*half.shape[:-3], -1, half.shape[-1])


def _decayed(q: Array, k: Array, span: Span) -> tuple[Array, Array]:
    """What one level multiplies: queries of the second halves, keys of the first."""
    return _half(q * span.prefix, span.size, 1), _half(k * span.suffix, span.size, 0)


def _scores(q: Array, k: Array, levels: list[Span], dot: functools.partial) -> Array:
    """The lower triangle [..., c, c], its diagonal included: blocks joined to ever larger ones."""
    blocks = (q * k).sum(-1)[..., None, None]  # [..., c, 1, 1]
    for span in levels:
        block = dot("...ik,...jk->...ij", *_decayed(q, k, span))
        pairs = blocks.reshape(*block.shape[:-3], -1, 2, span.size, span.size)
        above = jnp.concatenate([pairs[..., 0, :, :], jnp.zeros_like(block)], axis=-1)
        below = jnp.concatenate([block, pairs[..., 1, :, :]], axis=-1)
        blocks = jnp.concatenate([above, below], axis=-2)
    return blocks[..., 0, :, :]


def _blocks(scores: Array, levels: list[Span]) -> tuple[list[Array], Array]:
    """The inverse of `_scores`: the block [..., c / (2 size), size, size] of each level, and the diagonal [..., c]."""
    found, rest = [], scores[..., None, :, :]
    for span in reversed(levels):
        size = span.size
        found.append(rest[..., size:, :size])
        rest = jnp.stack([rest[..., :size, :size], rest[..., size:, size:]], axis=-3)
        rest = rest.reshape(*rest.shape[:-4], -1, size, size)
    return found[::-1], rest[..., 0, 0]


def advance(chunk: Chunk, dot: functools.partial) -> tuple[Array, Array]:
    """See `per_head.advance`."""
    _, k, (*_, whole) = _inputs(chunk)
    return whole.prefix[..., -1, :, None], dot("bgrck,bgrcv->bgrkv", k * whole.suffix, chunk.v)


def outputs(chunk: Chunk, state: Array, dot: functools.partial) -> Array:
    """See `per_head.outputs`."""
    q, k, (*levels, whole) = _inputs(chunk)
    y = dot("bgrij,bgrjv->bgriv", _scores(q, k, levels, dot), chunk.v)
    return y + dot("bgrik,bgrkv->bgriv", q * whole.prefix, state)


def retreat(chunk: Chunk, dy: Array, dot: functools.partial) -> tuple[Array, Array]:
    """See `per_head.retreat`."""
    q, _, (*_, whole) = _inputs(chunk)
    return whole.prefix[..., -1, :, None], dot("bgrck,bgrcv->bgrkv", q * whole.prefix, dy)


def gradients(
    chunk: Chunk, state: Array, dy: Array, dstate: Array, dot: functools.partial
) -> tuple[Array, Array, Array, Array | None]:
    """See `per_head.gradients`; here everything holds for each key channel by itself."""
    q, k, (*levels, whole) = _inputs(chunk)
    blocks, diagonal = _blocks(dot("bgriv,bgrjv->bgrij", dy, chunk.v), levels)
    dq = dk = jnp.zeros_like(whole.prefix)  # by way of the pairs i > j
    for span, block in zip(levels, blocks, strict=True):
        later, earlier = _decayed(q, k, span)
        dq += span.prefix * _whole(dot("...ij,...jk->...ik", block, earlier), 1)
        dk += span.suffix * _whole(dot("...ij,...ik->...jk", block, later), 0)
    dq_state = whole.prefix * dot("bgrcv,bgrkv->bgrck", dy, state)
    dk_state = whole.suffix * dot("bgrcv,bgrkv->bgrck", chunk.v, dstate)
    dv = dot("bgrij,bgriv->bgrjv", _scores(q, k, levels, dot), dy)
    dv += dot("bgrck,bgrkv->bgrcv", k * whole.suffix, dstate)
    total = whole.prefix[..., -1:, :]
    through = total * (state * dstate).sum(-1)[..., None, :]
    dlog = sum_paths(q * (dq + dq_state) - k * dk, k * dk_state) + through
    diagonal = diagonal[..., None]
    dq, dk = dq + dq_state + diagonal * k, dk + dk_state + diagonal * q
    return dq.sum(2), dk.sum(2), dv, jnp.where(chunk.factors == 0, 0, dlog)
