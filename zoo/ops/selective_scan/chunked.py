"""The selective scan with all chunks side by side, and its own gradient: the better form of XLA on an accelerator.

Instead of T small steps there are a few times `chunk` large ones. A chunk of its own accord ends in L_p, and passes on
its first state times exp(A Σ delta) = Q_p, since the decays of a channel multiply. So::

    L_p: all chunks from zero           S_{p+1} = Q_p S_p + L_p: associative, over the chunks
    y: all chunks again, from S_p

and likewise backwards for the cotangent of the state. The states within chunks are needed only while the gradients of a
few chunks are computed, `_TOGETHER` at a time, so they are never all there.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoo.ops.selective_scan.common import Operands, Options, Tokens, draw_backward, gated, gated_backward, tokens
from zoo.typing import Array

# Chunks whose states exist at once in the backward pass.
_TOGETHER = 64


class _Chunk(NamedTuple):
    """One chunk, time first; with a leading axis, all of them. The order is that of processing."""

    x: Tokens
    decay_sum: Array  # [B, E]
    mask: Array | None
    starts: Array | None


def forward(x: Operands, options: Options, keep: bool) -> tuple[Array, Array, Array | None]:
    """Output [B, T, E], last state [B, N, E] and, if `keep`, the states before each chunk [T / chunk, B, N, E]."""
    chunks, rate = _chunks(x, options), x.A.astype(x.dtype).T
    ends = jax.vmap(lambda chunk: _end(chunk, rate))(chunks)
    bounds, state = _chain(_passing(chunks, rate), ends, x.initial_state)

    def output(chunk: _Chunk, h: Array) -> Array:
        def token(h: Array, now: Any) -> tuple[Array, Array]:
            c, *rest = now
            h = _advance(h, rate, *rest)
            return h, _contract("bne,bn->be", h, c)

        now = chunk.x
        y = jax.lax.scan(token, h, (now.c, now.delta, now.du, now.b, chunk.starts))[1]
        return gated(y, x.D, now, chunk.mask)

    y = jax.vmap(output)(chunks, bounds)
    return _join(y, options).astype(x.u.dtype), state, bounds if keep else None


def backward(x: Operands, bounds: Array, dout: Array, dstate: Array, options: Options) -> Operands:
    """The cotangents of the operands (None for the mask and the starts)."""
    chunks, rate = _chunks(x, options), x.A.astype(x.dtype).T
    douts = _split(dout, options).astype(x.dtype)

    def end(chunk: _Chunk, dout: Array) -> Array:
        """What a chunk gives to the cotangent of the state before it, of its own accord."""

        def token(w: Array, now: Any) -> tuple[Array, None]:
            dy, c, delta, start = now
            return _decay(delta, rate, start) * (w + dy[:, None] * c[..., None]), None

        now = chunk.x
        dy, _ = gated_backward(dout, None, x.D, now, chunk.mask)
        zero = jnp.zeros_like(dstate)
        return jax.lax.scan(token, zero, (dy, now.c, now.delta, chunk.starts), reverse=True)[0]

    reached, first = _chain(_passing(chunks, rate), jax.vmap(end)(chunks, douts), dstate, reverse=True)

    def gradients(args: tuple[_Chunk, Array, Array, Array]) -> Operands:
        return _chunk_gradients(x, *args, rate, options.dt_softplus)

    together = min(_TOGETHER, bounds.shape[0])
    parts = jax.lax.map(gradients, (chunks, bounds, reached, douts), batch_size=together)

    def joined(part: Array | None, like: Array | None) -> Array | None:
        return None if part is None or like is None else _join(part, options).astype(like.dtype)

    def summed(part: Array | None, like: Array | None) -> Array | None:
        return None if part is None or like is None else part.sum((0, 1)).astype(like.dtype)

    return Operands(
        u=_join(parts.u, options).astype(x.u.dtype),
        dt=_join(parts.dt, options).astype(x.dt.dtype),
        A=parts.A.sum((0, 1)).T.astype(x.A.dtype),
        B=_join(parts.B, options).astype(x.B.dtype),
        C=_join(parts.C, options).astype(x.C.dtype),
        D=summed(parts.D, x.D),
        z=joined(parts.z, x.z),
        dt_bias=summed(parts.dt_bias, x.dt_bias),
        initial_state=first,
        mask=None,
        starts=None,
    )


def _chunk_gradients(
    x: Operands, chunk: _Chunk, h: Array, w: Array, dout: Array, rate: Array, dt_softplus: bool
) -> Operands:
    """The cotangents of one chunk's operands, given the state before it and the cotangent of the state after it."""
    now = chunk.x

    def recompute(h: Array, token: Any) -> tuple[Array, tuple[Array, Array]]:
        c, *rest = token
        after = _advance(h, rate, *rest)
        return after, (h, _contract("bne,bn->be", after, c))

    last, (before, y) = jax.lax.scan(recompute, h, (now.c, now.delta, now.du, now.b, chunk.starts))
    dy, dz = gated_backward(dout, y, x.D, now, chunk.mask)

    def token(carry: tuple[Array, Array, Array], step: Any):
        w, after, da = carry
        before, dy, delta, du, b, c, start = step
        g = w + dy[:, None] * c[..., None]
        w = _decay(delta, rate, start) * g
        through = w * before
        outputs = (
            _contract("bne,bn->be", g, b),
            _contract("bne,be->bn", g, du),
            _contract("bne,be->bn", after, dy),
            (through * rate).sum(1),
        )
        return (w, before, da + through * delta[:, None]), outputs

    steps = (before, dy, now.delta, now.du, now.b, now.c, chunk.starts)
    carry = (w, last, jnp.zeros_like(w))
    (w, _, da), (ddu, db, dc, ddelta) = jax.lax.scan(token, carry, steps, reverse=True)
    du = ddu * now.delta
    draw = draw_backward(ddelta + ddu * now.u, now, chunk.mask, dt_softplus)
    skip = None
    if x.D is not None:
        du = du + x.D.astype(x.dtype) * dy
        skip = (dy * now.u).sum(0)
    return Operands(
        u=du,
        dt=draw,
        A=da,
        B=db,
        C=dc,
        D=skip,
        z=dz,
        dt_bias=None if x.dt_bias is None else draw.sum(0),
        initial_state=w,
        mask=None,
        starts=None,
    )


def _end(chunk: _Chunk, rate: Array) -> Array:
    """The state in which a chunk ends when it starts from zero."""
    now = chunk.x
    batch, width, states = now.u.shape[1], now.u.shape[2], rate.shape[0]

    def token(h: Array, step: Any) -> tuple[Array, None]:
        return _advance(h, rate, *step), None

    zero = jnp.zeros((batch, states, width), now.u.dtype)
    return jax.lax.scan(token, zero, (now.delta, now.du, now.b, chunk.starts))[0]


def _advance(h: Array, rate: Array, delta: Array, du: Array, b: Array, start: Array | None) -> Array:
    return _decay(delta, rate, start) * h + du[:, None] * b[..., None]


def _decay(delta: Array, rate: Array, start: Array | None) -> Array:
    decay = jnp.exp(delta[:, None] * rate)
    return decay if start is None else jnp.where(start[:, None, None], 0, decay)


def _passing(chunks: _Chunk, rate: Array) -> Array:
    """Q: what of its first state each chunk passes on, [chunks, B, N, E]."""
    passing = jnp.exp(chunks.decay_sum[:, :, None] * rate)
    if chunks.starts is None:
        return passing
    return jnp.where(chunks.starts.any(1)[..., None, None], 0, passing)


def _chain(passing: Array, ends: Array, first: Array, *, reverse: bool = False) -> tuple[Array, Array]:
    """The state before each chunk in the direction of processing, and that after the last."""

    def combine(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    place = -1 if reverse else 0
    ends = ends.at[place].add(passing[place] * first)
    after = jax.lax.associative_scan(combine, (passing, ends), reverse=reverse)[1]
    if reverse:
        return jnp.concatenate([after[1:], first[None]]), after[0]
    return jnp.concatenate([first[None], after[:-1]]), after[-1]


def _split(array: Array, options: Options) -> Array:
    """[B, T, ...] to [chunks, chunk, B, ...], in the order of processing."""
    batch, length, *rest = array.shape
    size = options.chunk_size
    array = jnp.moveaxis(array.reshape(batch, length // size, size, *rest), 0, 2)
    return array[::-1, ::-1] if options.reverse else array


def _join(array: Array, options: Options) -> Array:
    """The inverse of `_split`."""
    array = array[::-1, ::-1] if options.reverse else array
    array = jnp.moveaxis(array, 2, 0)
    return array.reshape(array.shape[0], -1, *array.shape[3:])


def _chunks(x: Operands, options: Options) -> _Chunk:
    u, dt, b, c = (_split(a, options) for a in (x.u, x.dt, x.B, x.C))
    z, mask, starts = (None if a is None else _split(a, options) for a in (x.z, x.mask, x.starts))
    now = tokens(u, dt, b, c, z, x.dt_bias, mask, x.dtype, options.dt_softplus)
    return _Chunk(now, now.delta.sum(1), mask, starts)


def _contract(equation: str, *arrays: Array) -> Array:
    return jnp.einsum(equation, *arrays, precision=jax.lax.Precision.HIGHEST)
