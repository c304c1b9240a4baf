"""The mathematics of one chunk of c tokens: the WY form of the gated delta rule, and its gradients.

Written for arrays [..., c, K], so that one chunk or many are worked on at once. With S the state before the chunk, g
the running sum of the log decays inside it, D_ij = exp(g_i - g_j) for j <= i and else 0, and
E = exp(g), F_j = exp(g_{c-1} - g_j)::

    T  = (I + tril(diag(beta) K K^T ∘ D, -1))^-1
    N  = T diag(beta) (V - E K S) = U - W S        what each token writes, its error at the state that it finds
    Y  = E Q S + (Q K^T ∘ D) N
    S' = exp(g_{c-1}) S + (F K)^T N

(Yang et al. 2024, arXiv:2406.06484 and arXiv:2412.06464, where the inverse has a minus that should be a plus.)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.ops.gated_delta_rule.common import lowest_log_decay
from zoo.ops.gated_delta_rule.inverse import inverse_of_unit_lower
from zoo.typing import Array

_exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Chunk(NamedTuple):
    """Tokens in the order of processing, in the dtype of the state; q has been multiplied by the scale.

    Attributes:
      q, k: [..., c, K].
      v: [..., c, V].
      beta: [..., c, 1].
      log_decay: [..., c], or None for zeros.
    """

    q: Array
    k: Array
    v: Array
    beta: Array
    log_decay: Array | None


class Decay(NamedTuple):
    """How much is left of the state, from one place in the chunk to a later one.

    Attributes:
      pairs: D [..., c, c].
      start: E [..., c, 1], from before the chunk.
      end: F [..., c, 1], to after the chunk.
      whole: [..., 1, 1], from before to after.
    """

    pairs: Array
    start: Array
    end: Array
    whole: Array


class Path(NamedTuple):
    """What the state meets in a chunk: U, W, F K, and the decay over the whole chunk [..., 1, 1]."""

    u: Array
    w: Array
    k_end: Array
    whole: Array


class Parts(NamedTuple):
    """What needs no state: diag(beta) K, Q K^T ∘ D, diag(beta) K K^T ∘ D below the diagonal, T, and what else there is.

    Attributes:
      bk, attention, lower, inverse: these four.
      path, decay: see `Path` and `Decay`.
    """

    bk: Array
    attention: Array
    lower: Array
    inverse: Array
    path: Path
    decay: Decay


def decays(chunk: Chunk) -> Decay:
    """The decays in a chunk, each to the accuracy of an exponential, however strong others are."""
    size, dtype = chunk.k.shape[-2], chunk.k.dtype
    past = np.tri(size, dtype=bool)
    if chunk.log_decay is None:
        one = jnp.ones((*chunk.k.shape[:-2], 1, 1), dtype)
        return Decay(jnp.asarray(past, dtype), one, one, one)
    coarse, fine = running_sums(chunk.log_decay)
    exponents = (coarse[..., :, None] - coarse[..., None, :]) + (fine[..., :, None] - fine[..., None, :])
    # Before the exponential, which would overflow above the diagonal.
    pairs = jnp.exp(jnp.where(past, exponents, -jnp.inf))
    start = jnp.exp(coarse + fine)[..., None]
    return Decay(pairs, start, pairs[..., -1, :, None], start[..., -1:, :])


def running_sums(log_decay: Array) -> tuple[Array, Array]:
    """The running sum of log decays [..., c], as a coarse and a fine part.

    Differences of running sums lose what is small beside what is large: after one token of -100, float32 leaves the
    decays of all later pairs 1e-5. So a multiple of a power of two, whose sums and differences are exact, is split off.
    """
    size, dtype = log_decay.shape[-1], log_decay.dtype
    largest = size * -lowest_log_decay(dtype)
    grid = 2.0 ** (np.ceil(np.log2(largest)) - jnp.finfo(dtype).nmant)
    coarse = jnp.round(log_decay / grid) * grid
    coarse, fine = (_exact("...j,ij->...i", x, np.tri(size, dtype=dtype)) for x in (coarse, log_decay - coarse))
    return coarse, fine


def parts(chunk: Chunk, dot: functools.partial, dot_keys: functools.partial = _exact) -> Parts:
    """See `Parts`; `dot` is einsum, and so is `dot_keys`, for K K^T alone.

    K K^T is inverted: less than full precision there would dominate all other errors, unless the keys have no more.
    """
    q, k, v, beta, _ = chunk
    decay = decays(chunk)
    bk = beta * k
    attention = dot("...ik,...jk->...ij", q, k) * decay.pairs
    lower = beta * dot_keys("...ik,...jk->...ij", k, k) * (decay.pairs * np.tri(k.shape[-2], k=-1, dtype=k.dtype))
    inverse = inverse_of_unit_lower(lower)
    u = dot("...ij,...jv->...iv", inverse, beta * v)
    w = dot("...ij,...jk->...ik", inverse, bk * decay.start)
    return Parts(bk, attention, lower, inverse, Path(u, w, k * decay.end, decay.whole), decay)


def advance(path: Path, state: Array, dot: functools.partial) -> tuple[Array, Array]:
    """N [..., c, V] and S' [..., K, V]."""
    n = path.u - dot("...ck,...kv->...cv", path.w, state)
    return n, path.whole * state + dot("...ck,...cv->...kv", path.k_end, n)


def outputs(q: Array, p: Parts, state: Array, n: Array, dot: functools.partial) -> Array:
    """Y [..., c, V]."""
    from_state = dot("...ck,...kv->...cv", q, state) * p.decay.start
    return from_state + dot("...ij,...jv->...iv", p.attention, n)


def retreat(path: Path, dn: Array, dstate: Array, from_outputs: Array, dot: functools.partial) -> tuple[Array, Array]:
    """The gradients of N and of S, from that of S' and what the outputs contribute to both."""
    dn = dn + dot("...ck,...kv->...cv", path.k_end, dstate)
    return dn, path.whole * dstate + from_outputs - dot("...ck,...cv->...kv", path.w, dn)


def from_outputs(chunk: Chunk, p: Parts, dy: Array, dot: functools.partial) -> tuple[Array, Array]:
    """What the outputs contribute to the gradients of N and of S."""
    dn = dot("...ij,...iv->...jv", p.attention, dy)
    return dn, dot("...ck,...cv->...kv", chunk.q * p.decay.start, dy)


def gradients(
    chunk: Chunk, p: Parts, state: Array, n: Array, dy: Array, dx: Array, dafter: Array, dot: functools.partial
) -> Chunk:
    """Gradients of the chunk's inputs.

    With X = diag(beta) (V - E K S), so that N = T X, and d() for gradients::

        dX = T^T dN         dL = -tril(dX N^T, -1)          dP = dY N^T ∘ D
        dQ = E dY S^T + dP K
        d(beta K) = (dL ∘ D) K - E dX S^T
        dK = dP^T Q + (dL ∘ D)^T (beta K) + F N dS'^T + beta d(beta K)
        dV = beta dX        dbeta = rowsum(dX ∘ V) + rowsum(d(beta K) ∘ K)

    A token's log decay is in the exponent of every path that crosses the token: from a key, or from the state, before
    it, to a query, or to the state after the chunk, not before it. Its gradient is the sum of (value times gradient)
    over these.

    Args:
      chunk, p: the inputs, and `parts` of them.
      state: S.
      n: N.
      dy: gradient of the outputs.
      dx: gradient of X, T^T dN.
      dafter: gradient of S'.
      dot: einsum.
    """
    q, k, v, beta, log_decay = chunk
    pairs = p.decay.pairs
    dattention = dot("...iv,...jv->...ij", dy, n)
    dlower = dot("...iv,...jv->...ij", dx, n) * -np.tri(q.shape[-2], k=-1, dtype=q.dtype)
    dscores, dlower_scores = dattention * pairs, dlower * pairs
    dq_state = dot("...cv,...kv->...ck", dy, state) * p.decay.start
    dbk_state = dot("...cv,...kv->...ck", dx, state) * -p.decay.start
    dk_end = dot("...cv,...kv->...ck", n, dafter) * p.decay.end
    dq = dq_state + dot("...ij,...jk->...ik", dscores, k)
    dbk = dbk_state + dot("...ij,...jk->...ik", dlower_scores, k)
    dk = dot("...ij,...ik->...jk", dscores, q) + dot("...ij,...ik->...jk", dlower_scores, p.bk)
    dk = dk + dk_end + beta * dbk
    dbeta = (dx * v).sum(-1, keepdims=True) + (dbk * k).sum(-1, keepdims=True)
    dlog = None
    if log_decay is not None:
        inside = np.tri(q.shape[-2], k=-1, dtype=q.dtype) * (p.attention * dattention) + p.lower * dlower
        to_query = inside.sum(-1) - inside.sum(-2) + (q * dq_state + p.bk * dbk_state).sum(-1)
        through = (p.decay.whole * state * dafter).sum((-2, -1))[..., None]
        dlog = sum_crossing(to_query, (k * dk_end).sum(-1)) + through
    return Chunk(dq, dk, beta * dx, dbeta, dlog)


def sum_crossing(to_query: Array, from_key: Array) -> Array:
    """Σ_{i >= t} to_query_i + Σ_{j < t} from_key_j for every token t, [..., c]."""
    size, dtype = to_query.shape[-1], to_query.dtype
    return _exact("...i,it->...t", to_query, np.tri(size, dtype=dtype)) + _exact(
        "...j,tj->...t", from_key, np.tri(size, k=-1, dtype=dtype)
    )
