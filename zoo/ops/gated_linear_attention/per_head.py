"""One chunk of gated linear attention whose decay is a number per head, or 1.

Axes, after the batch: G groups, R heads of a group, c tokens, K, V. Groups share queries and keys, so their scores are
computed once and no key is copied. With S the state before the chunk and a_t the decay factors::

    y_i  = Σ_{j <= i} (prod_{t = j+1..i} a_t) (q_i·k_j) v_j  +  (prod_{t <= i} a_t) S^T q_i
    S'   = (prod_t a_t) S  +  Σ_j (prod_{t > j} a_t) k_j v_j^T
"""

import functools

import jax.numpy as jnp
import numpy as np

from zoo.ops.gated_linear_attention.common import Chunk, sum_paths
from zoo.ops.gated_linear_attention.spans import spans
from zoo.typing import Array


def _decays(chunk: Chunk) -> tuple[Array, Array, Array, Array]:
    """Products of factors over j+1..i [.., i, j] (0 if j > i), 0..i [.., i, 1], j+1..c-1 [.., j, 1], all [.., 1, 1]."""
    size = chunk.v.shape[-2]
    rows, columns = np.arange(size)[:, None], np.arange(size)
    if chunk.factors is None:
        one = jnp.ones((1,) * chunk.v.ndim, chunk.v.dtype)
        return jnp.asarray(rows >= columns, chunk.v.dtype), one, one, one
    *levels, whole = spans(chunk.factors[..., None])
    matrix = jnp.eye(size, dtype=chunk.v.dtype)
    for span in levels:
        apart = (rows // (2 * span.size) == columns // (2 * span.size)) & (rows // span.size > columns // span.size)
        matrix = jnp.where(apart, span.prefix * jnp.swapaxes(span.suffix, -1, -2), matrix)
    return matrix, whole.prefix, whole.suffix, whole.prefix[..., -1:, :]


def advance(chunk: Chunk, dot: functools.partial) -> tuple[Array, Array]:
    """(factor [..., 1, 1], term) such that the state after the chunk is factor * state + term."""
    _, _, to_end, whole = _decays(chunk)
    return whole, dot("bgck,bgrcv->bgrkv", chunk.k, chunk.v * to_end)


def outputs(chunk: Chunk, state: Array, dot: functools.partial) -> Array:
    """y [B, G, R, c, V] for the state before the chunk."""
    matrix, from_start, _, _ = _decays(chunk)
    scores = dot("bgik,bgjk->bgij", chunk.q, chunk.k)[:, :, None] * matrix
    return dot("bgrij,bgrjv->bgriv", scores, chunk.v) + from_start * dot("bgik,bgrkv->bgriv", chunk.q, state)


def retreat(chunk: Chunk, dy: Array, dot: functools.partial) -> tuple[Array, Array]:
    """(factor, term) such that the gradient of the state before is factor * (that of the state after) + term."""
    _, from_start, _, whole = _decays(chunk)
    return whole, dot("bgck,bgrcv->bgrkv", chunk.q, dy * from_start)


def gradients(
    chunk: Chunk, state: Array, dy: Array, dstate: Array, dot: functools.partial
) -> tuple[Array, Array, Array, Array | None]:
    """Gradients of q, k, v and of the logarithms of the factors.

    The factor of token t is in every path from a token before t to one not before t, and multiplies it; so its
    logarithm's gradient is the sum of (gradient times value) over these paths, of which there are four kinds: from the
    state or a key of the chunk, to a query of the chunk or the state after it.

    Args:
      chunk: the inputs.
      state: before the chunk.
      dy: gradient of the outputs.
      dstate: gradient of the state after the chunk.
      dot: einsum.
    """
    q, k, v, factors = chunk
    matrix, from_start, to_end, whole = _decays(chunk)
    scores = dot("bgik,bgjk->bgij", q, k)[:, :, None]
    dscores = dot("bgriv,bgrjv->bgrij", dy, v) * matrix
    of_group = dscores.sum(2)
    dq_state = dot("bgrcv,bgrkv->bgrck", dy * from_start, state)
    dv_state = dot("bgck,bgrkv->bgrcv", k, dstate) * to_end
    dq = dot("bgij,bgjk->bgik", of_group, k) + dq_state.sum(2)
    dk = dot("bgij,bgik->bgjk", of_group, q) + dot("bgrcv,bgrkv->bgck", v * to_end, dstate)
    dv = dot("bgrij,bgriv->bgrjv", scores * matrix, dy) + dv_state
    if factors is None:
        return dq, dk, dv, None
    paths = jnp.where(np.tri(q.shape[-2], k=-1, dtype=bool), scores * dscores, 0)
    to_query = paths.sum(-1) - paths.sum(-2) + (q[:, :, None] * dq_state).sum(-1)
    from_key = (v * dv_state).sum(-1)
    through = (whole * state * dstate).sum((-2, -1))[..., None]
    dlog = sum_paths(to_query[..., None], from_key[..., None])[..., 0] + through
    return dq, dk, dv, jnp.where(factors == 0, 0, dlog)
