"""The selective scan token by token, and its own gradient: the fastest form of XLA on a CPU.

Forward, the state [B, N, E] (E contiguous) goes from token to token; at the start of every chunk it is kept. The
backward pass goes through the chunks the other way, and in each recomputes the states from the kept one. With w_t the
cotangent that reaches h_{t-1} from its successors::

    w_t = exp(delta_t A) (w_{t+1} + C_t dy_t)
    d(delta_t u_t) = Σ_n B_t (w_{t+1} + C_t dy_t)       dB_t = Σ_e delta_t u_t (w_{t+1} + C_t dy_t)
    d(delta_t A) = w_t h_{t-1}                          dC_t = Σ_e h_t dy_t

What makes it fast is that few arrays of the state's size are read or written per token, each by one loop that XLA can
vectorise: the chunk is small enough for its states and decays to stay in the cache, every decay is computed once in the
backward pass, and nothing of that size is copied. For the last point tokens are taken in pairs: the state before the
first of a pair is in one buffer, `even`, that before the second in another, `odd`, so that each step reads one buffer
and writes the other in place. And what an output needs of w_t is computed when w_t is written, not when it is used, so
that its buffer is free by then. Indices are unsigned, or each would cost a comparison with zero.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoo.ops.selective_scan import fast_math
from zoo.ops.selective_scan.common import Operands, Options, Tokens, draw_backward, gated, gated_backward, tokens
from zoo.typing import Array

_Index = jnp.uint32


def forward(x: Operands, options: Options, keep: bool) -> tuple[Array, Array, Array | None]:
    """Output [B, T, E], last state [B, N, E] and, if `keep`, the states before each chunk [T / chunk, B, N, E]."""
    chunk = _chunks(x, options)
    rate = _rate(x)

    def token(h: Array, now: Any) -> tuple[Array, Array]:
        delta, du, b, c, start = now
        h = _decay(delta, rate, start) * h + du[:, None] * b[..., None]
        return h, _contract("bne,bn->be", h, c)

    def one_chunk(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], Array | None]:
        h, out = carry
        now, mask, starts = chunk.read(index)
        last, y = jax.lax.scan(token, h, (now.delta, now.du, now.b, now.c, starts))
        out = chunk.write(out, gated(y, x.D, now, mask), index)
        return (last, out), h if keep else None

    start = (x.initial_state, jnp.zeros_like(x.u))
    (state, out), bounds = jax.lax.scan(one_chunk, start, jnp.arange(chunk.count, dtype=_Index))
    return out, state, bounds


class _Gradients(NamedTuple):
    """What the backward pass carries from chunk to chunk.

    Attributes:
      w: [B, N, E], the cotangent of the state before the chunk.
      A: [B, N, E], sum over tokens.
      D, dt_bias: [chunk, B, E], sums over chunks; or None.
      even, odd: [chunk / 2 + 1, B, N, E], [chunk / 2, B, N, E], room for the states of one chunk.
      du_now, b_now: [chunk + 1, B, E], [chunk + 1, B, N], room for the results of one chunk, a row late.
      delta_now: [chunk, B, E], likewise.
      u, dt, B, C, z: as the operands.
    """

    w: Array
    A: Array
    D: Array | None
    dt_bias: Array | None
    even: Array
    odd: Array
    du_now: Array
    b_now: Array
    delta_now: Array
    u: Array
    dt: Array
    B: Array
    C: Array
    z: Array | None


def backward(x: Operands, bounds: Array, dout: Array, dstate: Array, options: Options) -> Operands:
    """The cotangents of the operands (None for the mask and the starts)."""
    chunk, total = _chunks(x, options), _empty_gradients(x, dstate, options)
    one_chunk = functools.partial(_backward_chunk, x, dout, chunk, options.dt_softplus)
    indices = jnp.arange(chunk.count, dtype=_Index)
    total, _ = jax.lax.scan(one_chunk, total, (indices, bounds), reverse=True)
    return Operands(
        u=total.u,
        dt=total.dt,
        A=total.A.sum(0).T.astype(x.A.dtype),
        B=total.B,
        C=total.C,
        D=None if x.D is None or total.D is None else total.D.sum((0, 1)).astype(x.D.dtype),
        z=total.z,
        dt_bias=None
        if x.dt_bias is None or total.dt_bias is None
        else total.dt_bias.sum((0, 1)).astype(x.dt_bias.dtype),
        initial_state=total.w,
        mask=None,
        starts=None,
    )


def _empty_gradients(x: Operands, dstate: Array, options: Options) -> _Gradients:
    size, (batch, _, width), states = options.chunk_size, x.u.shape, x.A.shape[1]

    def zeros(*shape: int) -> Array:
        return jnp.zeros(shape, x.dtype)

    return _Gradients(
        w=dstate,
        A=zeros(batch, states, width),
        D=None if x.D is None else zeros(size, batch, width),
        dt_bias=None if x.dt_bias is None else zeros(size, batch, width),
        even=zeros(size // 2 + 1, batch, states, width),
        odd=zeros(size // 2, batch, states, width),
        du_now=zeros(size + 1, batch, width),
        b_now=zeros(size + 1, batch, states),
        delta_now=zeros(size, batch, width),
        u=jnp.zeros_like(x.u),
        dt=jnp.zeros_like(x.dt),
        B=jnp.zeros_like(x.B),
        C=jnp.zeros_like(x.C),
        z=None if x.z is None else jnp.zeros_like(x.z),
    )


def _backward_chunk(
    x: Operands,
    dout: Array,
    chunk: "_Chunks",
    dt_softplus: bool,
    total: _Gradients,
    position: tuple[Array, Array],
) -> tuple[_Gradients, None]:
    index, bound = position
    now, mask, starts = chunk.read(index)
    decay = _decay(now.delta, _rate(x), starts)
    even, odd = _states(now, decay, _put(total.even, bound, _Index(0)), total.odd)
    y = None if x.z is None else _per_token("tbne,tbn->tbe", even, odd, now.c)
    dy, dz = gated_backward(chunk.rows(dout, index).astype(x.dtype), y, x.D, now, mask)
    dc = _per_token("tbne,tbe->tbn", even, odd, dy)
    rate = x.A.astype(x.dtype).T
    w, da, ddu, db, ddelta = _reverse_chunk(now, decay, rate, dy, even, odd, total)
    # What the token's own output adds to the cotangent of its state.
    ddu_own = _contract("tbn,tbn->tb", now.b, now.c)[..., None] * dy
    db_own = _row_sums(dy * now.du)[..., None] * now.c
    full = ddu[1:] + ddu_own
    du = full * now.delta
    draw = draw_backward(ddelta + full * now.u, now, mask, dt_softplus)
    skip = total.D
    if x.D is not None and skip is not None:
        du = du + x.D.astype(x.dtype) * dy
        skip = skip + dy * now.u
    return _Gradients(
        w=w,
        A=da,
        D=skip,
        dt_bias=None if total.dt_bias is None else total.dt_bias + draw,
        even=even,
        odd=odd,
        du_now=ddu,
        b_now=db,
        delta_now=ddelta,
        u=chunk.write(total.u, du, index),
        dt=chunk.write(total.dt, draw, index),
        B=chunk.write(total.B, db[1:] + db_own, index),
        C=chunk.write(total.C, dc, index),
        z=None if total.z is None or dz is None else chunk.write(total.z, dz, index),
    ), None


def _states(now: Tokens, decay: Array, even: Array, odd: Array) -> tuple[Array, Array]:
    """The states before each token of a chunk, those of even and of odd ones, given the first; `even` has one more."""

    def step(h: Array, t: Array) -> Array:
        return _at(decay, t) * h + _at(now.du, t)[:, None] * _at(now.b, t)[..., None]

    def pair(k: Array, states: tuple[Array, Array]) -> tuple[Array, Array]:
        even, odd = states
        first = _Index(2) * k
        odd = _put(odd, step(_at(even, k), first), k)
        even = _put(even, step(_at(odd, k), first + _Index(1)), k + _Index(1))
        return even, odd

    return jax.lax.fori_loop(_Index(0), _Index(odd.shape[0]), pair, (even, odd))


def _reverse_chunk(now: Tokens, decay: Array, rate: Array, dy: Array, even: Array, odd: Array, total: _Gradients):
    """Goes through a chunk from its last token to its first.

    Returns w and the sum for A; and, per token, Σ_n B w and Σ_e delta u w (with w that of the next token, in the row
    after the token's own) and the cotangent of delta by way of the decay.
    """
    pairs = odd.shape[0]
    # Row t + 1 is token t: row 0 is nobody's, and takes what the first token's w would give to a token before it.
    b, du = (jnp.concatenate([jnp.zeros_like(v[:1]), v]) for v in (now.b, now.du))

    def outputs(sums: tuple[Array, Array], w: Array, row: Array) -> tuple[Array, Array]:
        ddu, db = sums
        ddu = _put(ddu, _contract("bne,bn->be", w, _at(b, row)), row)
        return ddu, _put(db, _contract("bne,be->bn", w, _at(du, row)), row)

    def step(w: Array, t: Array) -> Array:
        return _at(decay, t) * (w + _at(dy, t)[:, None] * _at(now.c, t)[..., None])

    def through_decay(w: Array, states: Array, k: Array) -> Array:
        """Σ_n A w h; each n is sliced by itself, or XLA would copy the state first."""
        batch, count, width = w.shape
        zero = _Index(0)
        terms = [
            w[:, n] * jax.lax.dynamic_slice(states, (k, zero, _Index(n), zero), (1, batch, 1, width))[0, :, 0] * rate[n]
            for n in range(count)
        ]
        return _tree_sum(terms)

    def pair(step_number: Array, carry):
        w, da, sums, ddelta = carry
        k = _Index(pairs - 1) - step_number
        first = _Index(2) * k
        second = first + _Index(1)
        middle = step(w, second)
        sums = outputs(sums, middle, second)
        w = step(middle, first)
        sums = outputs(sums, w, first)
        ddelta = _put(ddelta, through_decay(middle, odd, k), second)
        ddelta = _put(ddelta, through_decay(w, even, k), first)
        da = da + (
            middle * _at(odd, k) * _at(now.delta, second)[:, None] + w * _at(even, k) * _at(now.delta, first)[:, None]
        )
        return w, da, sums, ddelta

    sums = outputs((total.du_now, total.b_now), total.w, _Index(2 * pairs))
    carry = (total.w, total.A, sums, total.delta_now)
    w, da, (ddu, db), ddelta = jax.lax.fori_loop(_Index(0), _Index(pairs), pair, carry)
    return w, da, ddu, db, ddelta


def _rate(x: Operands) -> Array:
    """A in the form that `_decay` takes, [N, E]."""
    rate = x.A.astype(x.dtype).T
    return rate * fast_math.LOG2_E if x.dtype == jnp.float32 else rate


def _decay(delta: Array, rate: Array, starts: Array | None) -> Array:
    """exp(delta A) [..., N, E], zero where a new sequence starts."""
    exponent = delta[..., None, :] * rate
    decay = fast_math.power_of_two(exponent) if exponent.dtype == jnp.float32 else jnp.exp(exponent)
    return decay if starts is None else jnp.where(starts[..., None, None], 0, decay)


def _per_token(equation: str, even: Array, odd: Array, other: Array) -> Array:
    """An einsum of the states after each token of a chunk with `other` [chunk, ...]."""
    halves = other.reshape(-1, 2, *other.shape[1:])
    of_first = _contract(equation, odd, halves[:, 0])
    # A row of zeros for the state before the chunk costs less than a copy of the others without it.
    second = jnp.concatenate([jnp.zeros_like(halves[:1, 1]), halves[:, 1]])
    of_second = _contract(equation, even, second)[1:]
    both = jnp.stack([of_first, of_second], axis=1)
    return both.reshape(-1, *both.shape[2:])


def _row_sums(x: Array) -> Array:
    """Sums over the last axis; as a product with ones, which XLA does faster on a CPU than a reduction."""
    return jnp.matmul(x, jnp.ones(x.shape[-1], x.dtype), precision=jax.lax.Precision.HIGHEST)


def _contract(equation: str, *arrays: Array) -> Array:
    return jnp.einsum(equation, *arrays, precision=jax.lax.Precision.HIGHEST)


def _tree_sum(terms: list[Array]) -> Array:
    while len(terms) > 1:
        paired = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = paired + terms[2 * len(paired) :]
    return terms[0]


def _at(x: Array, index: Array) -> Array:
    """x[index]."""
    zeros = (_Index(0),) * (x.ndim - 1)
    return jax.lax.dynamic_slice(x, (index, *zeros), (1, *x.shape[1:]))[0]


def _put(x: Array, row: Array, index: Array) -> Array:
    """x with x[index] = row."""
    return jax.lax.dynamic_update_slice(x, row[None], (index,) + (_Index(0),) * (x.ndim - 1))


class _Chunks(NamedTuple):
    """Cuts chunks out of [B, T, ...] arrays and puts them back, in the order of processing.

    Attributes:
      count: how many there are.
      rows: `(array, index)` -> the array's chunk, time first, first token to be processed first.
      read: `index` -> the tokens, the mask and the starts of a chunk.
      write: `(array, rows, index)` -> the array with that chunk.
    """

    count: int
    rows: Callable[[Array, Array], Array]
    read: Callable[[Array], tuple[Tokens, Array | None, Array | None]]
    write: Callable[[Array, Array, Array], Array]


def _chunks(x: Operands, options: Options) -> _Chunks:
    size = options.chunk_size
    count = x.u.shape[1] // size

    def begin(array: Array, index: Array) -> tuple[Array, ...]:
        number = _Index(count - 1) - index if options.reverse else index
        return (_Index(0), _Index(size) * number) + (_Index(0),) * (array.ndim - 2)

    def flipped(rows: Array) -> Array:
        return rows[::-1] if options.reverse else rows

    def rows(array: Array, index: Array) -> Array:
        cut = jax.lax.dynamic_slice(array, begin(array, index), (array.shape[0], size, *array.shape[2:]))
        return flipped(jnp.swapaxes(cut, 0, 1))

    def read(index: Array) -> tuple[Tokens, Array | None, Array | None]:
        mask, starts, z = (None if a is None else rows(a, index) for a in (x.mask, x.starts, x.z))
        u, dt, b, c = (rows(a, index) for a in (x.u, x.dt, x.B, x.C))
        return tokens(u, dt, b, c, z, x.dt_bias, mask, x.dtype, options.dt_softplus), mask, starts

    def write(array: Array, rows: Array, index: Array) -> Array:
        rows = jnp.swapaxes(flipped(rows), 0, 1).astype(array.dtype)
        return jax.lax.dynamic_update_slice(array, rows, begin(array, index))

    return _Chunks(count, rows, read, write)
