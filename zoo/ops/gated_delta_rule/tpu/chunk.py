"""The mathematics of one chunk inside a kernel for a TPU: `zoo.ops.gated_delta_rule.chunk`, for arrays in VMEM.

Arrays are [G, C, K]: G heads at once, so that while the matrix unit still works on one head there is another to begin.
With the names of that module, A = Q K^T ∘ D for queries that have the scale, and X = diag(beta) (V - E K S)::

    N = T X        Y = E Q S + A N        S' = exp(g_{C-1}) S + K^T (F N)

    dN = A^T dY + F K dS'        dX = T^T dN        dS = exp(g_{C-1}) dS' + Q^T (E dY) - K^T (beta E dX)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo.typing import Array

# Tokens per chunk: the width of the matrix unit, and of a vector register.
CHUNK = 128
# Rows of a register; diagonal blocks of this size are inverted row by row.
_ROWS = 8
# Rows of the larger blocks, of which inverses are made.
BLOCK = 32
# What is in the rows, of one number per token, that a kernel is given, and in those that it gives back.
BETA, COARSE, FINE = range(3)
DBETA, TO_QUERY, FROM_KEY, THROUGH = range(4)

# Which axes of [G, m, k] and [G, k, n] are summed over, with one of the two as it is or transposed.
_AXES = {"nn": (2, 1), "nt": (2, 2), "tn": (1, 1)}


class Products(NamedTuple):
    """Products of matrices with sums in float32.

    Attributes:
      narrow: whether operands are rounded to bfloat16, what the matrix unit takes; else they have all of float32, in
        six products.
    """

    narrow: bool

    def __call__(self, a: Array, b: Array, axes: str = "nn") -> Array:
        """a b, a b^T ("nt") or a^T b ("tn") of each head."""
        return _rounded(a, b, axes) if self.narrow else _full(a, b, axes)

    def exact(self, a: Array, b: Array) -> Array:
        """a b, if narrow of numbers of 16 bits."""
        if not self.narrow:
            return _full(a, b, "nn")
        (high, low), (b_high, b_low), rows = _pieces(a), _pieces(b), a.shape[1]
        found = _rounded(jnp.concatenate([high, low], axis=1), b_high, "nn")
        return found[:, :rows] + found[:, rows:] + _rounded(high, b_low, "nn")

    def half_exact(self, a: Array, b: Array, axes: str = "nn") -> Array:
        """a b or a^T b ("tn"), if narrow of numbers of 16 bits in a and 8 in b."""
        if not self.narrow:
            return _full(a, b, axes)
        (high, low), (rows, down) = _pieces(a), (a.shape[1], 1) if axes == "nn" else (a.shape[2], 2)
        found = _rounded(jnp.concatenate([high, low], axis=down), b, axes)
        return found[:, :rows] + found[:, rows:]


def _rounded(a: Array, b: Array, axes: str) -> Array:
    return _dot(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), axes, jax.lax.Precision.DEFAULT)


def _full(a: Array, b: Array, axes: str) -> Array:
    return _dot(a.astype(jnp.float32), b.astype(jnp.float32), axes, jax.lax.Precision.HIGHEST)


def _dot(a: Array, b: Array, axes: str, precision: jax.lax.Precision) -> Array:
    left, right = _AXES[axes]
    dimensions = (((left,), (right,)), ((0,), (0,)))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _pieces(x: Array) -> tuple[Array, Array]:
    """Two bfloat16 arrays whose sum is `x` to 16 bits."""
    high = x.astype(jnp.bfloat16)
    return high, (x - high.astype(jnp.float32)).astype(jnp.bfloat16)


class Inputs(NamedTuple):
    """A chunk. Where products are narrow, `q` and `k` are bfloat16.

    Attributes:
      q: [G, C, K], without the scale; or None.
      k: [G, C, K].
      v: [G, C, V].
      beta: [G, C, 1].
      decay: see `Decay`.
    """

    q: Array | None
    k: Array
    v: Array
    beta: Array
    decay: "Decay"


class Decay(NamedTuple):
    """As `zoo.ops.gated_delta_rule.chunk.Decay`, but None, for 1, where nothing decays.

    Attributes:
      pairs: D [G, C, C], or [1, C, C] where nothing decays.
      start, end: [G, C, C], a token's number C times over, as many as a register has lanes.
      whole: [G, 1, 1].
    """

    pairs: Array
    start: Array | None
    end: Array | None
    whole: Array | None


def decays(rows: Array, columns: Array, gated: bool) -> Decay:
    """From sums of log decays, with one token per column [G, 8, C], and with one per row [G, C, 8]."""
    size = rows.shape[-1]
    past = _index(size, 1) >= _index(size, 2)
    if not gated:
        return Decay(past.astype(jnp.float32), None, None, None)
    coarse, fine = (jnp.broadcast_to(columns[:, :, i : i + 1], (*rows.shape[:1], size, size)) for i in (COARSE, FINE))
    coarse_row, fine_row = (rows[:, i : i + 1, :] for i in (COARSE, FINE))
    pairs = jnp.exp(jnp.where(past, (coarse - coarse_row) + (fine - fine_row), -jnp.inf))
    last_coarse, last_fine = coarse_row[:, :, size - 1 :], fine_row[:, :, size - 1 :]
    return Decay(
        pairs,
        jnp.exp(coarse + fine),
        jnp.exp((last_coarse - coarse) + (last_fine - fine)),
        jnp.exp(last_coarse + last_fine),
    )


def times(x: Array, factor: Array | None) -> Array:
    """The product with one number per row, C times over, or with one for all; None stands for 1."""
    if factor is None:
        return x
    width, copies = x.shape[-1], factor.shape[-1]
    if copies > 1:
        factor = factor[:, :, :width] if width <= copies else jnp.concatenate([factor] * (width // copies), axis=2)
    return x * factor


def through_norm(x: Array, r: Array, dy: Array) -> Array:
    """The gradient of x, from that of y = r x, r = 1 / sqrt(x·x + eps)."""
    y = x.astype(jnp.float32) * r
    return r * (dy - y * (y * dy).sum(-1, keepdims=True))


def lower(chunk: Inputs, dot: Products) -> Array:
    """L = diag(beta) K K^T ∘ D below the diagonal, [G, C, C]."""
    return jnp.where(_below(chunk), chunk.beta * dot(chunk.k, chunk.k, "nt") * chunk.decay.pairs, 0.0)


def attention(chunk: Inputs, scale: float, dot: Products) -> Array:
    """A [G, C, C]."""
    assert chunk.q is not None
    return scale * dot(chunk.q, chunk.k, "nt") * chunk.decay.pairs


def written(chunk: Inputs, low: Array, blocks: Array, state: Array, dot: Products) -> Array:
    """N [G, C, V], from `lower` and the `inverses` of its blocks."""
    return solve(low, blocks, chunk.beta * (chunk.v - times(dot(chunk.k, state), chunk.decay.start)), dot)


def advance(chunk: Inputs, n: Array, state: Array, dot: Products) -> Array:
    """S' [G, K, V]."""
    return times(state, chunk.decay.whole) + dot(chunk.k, times(n, chunk.decay.end), "tn")


def outputs(chunk: Inputs, n: Array, state: Array, scale: float, dot: Products) -> Array:
    """Y [G, C, V]."""
    assert chunk.q is not None
    inner = dot(attention(chunk, scale, dot), n)
    return scale * times(dot(chunk.q, state), chunk.decay.start) + inner


class Gradients(NamedTuple):
    """Of the inputs of a chunk and of the state before it.

    Attributes:
      q, k, v: as the inputs; q with the factor of the scale.
      columns: what sums up to the other gradients, [G, C, 1] each: dbeta, and where there are decays what ends at each
        token's query and what begins at its key, see `zoo.ops.gated_delta_rule.chunk.gradients`.
      ends: a part of the second that has one token per column, [G, 1, C], or None.
      through: what goes past all tokens, [G, 1, 1], or None.
      state: [G, K, V].
    """

    q: Array
    k: Array
    v: Array
    columns: list[Array]
    ends: Array | None
    through: Array | None
    state: Array


def gradients(
    chunk: Inputs, blocks: Array, state: Array, dy: Array, dafter: Array, scale: float, dot: Products
) -> Gradients:
    """From those of the outputs and of the state after the chunk; `blocks` as of `written`, `state` that before it."""
    q, k, v, beta, decay = chunk
    assert q is not None
    low, a, below = lower(chunk, dot), attention(chunk, scale, dot), _below(chunk)
    n = written(chunk, low, blocks, state, dot)
    dn = dot(a, dy, "tn") + times(dot(k, dafter), decay.end)
    dx = solve_transposed(low, blocks, dn, dot)
    dbefore = times(dafter, decay.whole) + scale * dot(q, times(dy, decay.start), "tn")
    dbefore = dbefore - dot(k, times(beta * dx, decay.start), "tn")

    dattention, dlower = dot(dy, n, "nt"), -dot(dx, n, "nt")
    dscores, dlower_scores = dattention * decay.pairs, jnp.where(below, dlower * decay.pairs, 0.0)
    bk = beta * k.astype(jnp.float32)
    dq_state = times(dot(dy, state, "nt"), decay.start)
    dbk_state = -times(dot(dx, state, "nt"), decay.start)
    dk_end = times(dot(n, dafter, "nt"), decay.end)
    dq = scale * (dq_state + dot(dscores, k))
    dbk = dbk_state + dot(dlower_scores, k)
    dk = scale * dot(dscores, q, "tn") + dot(dlower_scores, bk, "tn") + dk_end + beta * dbk
    columns = [_sums(dx * v, dbk * k)]
    if decay.start is None:
        return Gradients(dq, dk, beta * dx, columns, None, None, dbefore)
    inside = jnp.where(below, a * dattention + low * dlower, 0.0)
    columns += [_sums(inside, scale * q * dq_state + bk * dbk_state), _sums(k * dk_end)]
    through = times(state * dafter, decay.whole).sum(2, keepdims=True).sum(1, keepdims=True)
    return Gradients(dq, dk, beta * dx, columns, inside.sum(1, keepdims=True), through, dbefore)


def _sums(*arrays: Array) -> Array:
    """Of all rows, [G, C, 1]; those of the same width are added up first, as a sum along lanes is what takes long."""
    widths = {x.shape[-1] for x in arrays}
    sums = [functools.reduce(jnp.add, [x for x in arrays if x.shape[-1] == width]) for width in widths]
    return functools.reduce(jnp.add, [x.sum(-1, keepdims=True) for x in sums])


def _below(chunk: Inputs) -> Array:
    size = chunk.k.shape[1]
    return _index(size, 1) > _index(size, 2)


def _index(size: int, axis: int) -> Array:
    """Of the rows (axis 1) or columns (2), [1, size, size]."""
    return jax.lax.broadcasted_iota(jnp.int32, (1, size, size), axis)


# --- the inverse


def inverses(lower: Array, dot: Products) -> Array:
    """(I + L)^-1 of the blocks [32, 32] on the diagonal of strictly lower triangular L [G, C, C].

    Blocks [w, w] of 8 and more are merged in pairs, all in two products of [C / 2, C] and [C, C], as in
    `zoo.ops.gated_delta_rule.inverse`.

    Returns:
      The inverses side by side, [G, 32, C].
    """
    size = lower.shape[-1]
    row, column = _index(size, 1), _index(size, 2)
    found, width = _diagonal_blocks(lower), _ROWS
    while width < BLOCK:
        corners = jnp.where((row ^ column) & -width == width, lower, 0)
        second = [found[:, i : i + width] for i in range(width, size, 2 * width)]
        change = dot.exact(dot.exact(jnp.concatenate(second, axis=1), corners), found)
        parts = []
        for i, part in enumerate(second):
            parts += [found[:, 2 * i * width : (2 * i + 1) * width], part - change[:, i * width : (i + 1) * width]]
        found = jnp.concatenate(parts, axis=1)
        width *= 2
    return functools.reduce(jnp.add, [found[:, i : i + BLOCK] for i in range(0, size, BLOCK)])


def solve(lower: Array, blocks: Array, x: Array, dot: Products) -> Array:
    """(I + L)^-1 x for x [G, C, V], block of rows by block of rows; `blocks` from `inverses`."""
    found: list[Array] = []
    for i in range(0, x.shape[1], BLOCK):
        here = slice(i, i + BLOCK)
        rest = x[:, here]
        if found:
            rest = rest - dot(lower[:, here, :i], jnp.concatenate(found, axis=1))
        found.append(dot.half_exact(blocks[:, :, here], rest))
    return jnp.concatenate(found, axis=1)


def solve_transposed(lower: Array, blocks: Array, x: Array, dot: Products) -> Array:
    """The same with the transpose of (I + L)^-1."""
    found: list[Array] = []
    for i in reversed(range(0, x.shape[1], BLOCK)):
        here = slice(i, i + BLOCK)
        rest = x[:, here]
        if found:
            rest = rest - dot(lower[:, i + BLOCK :, here], jnp.concatenate(found, axis=1), "tn")
        found.insert(0, dot.half_exact(blocks[:, :, here], rest, "tn"))
    return jnp.concatenate(found, axis=1)


def _diagonal_blocks(lower: Array) -> Array:
    """The inverses of the blocks [8, 8] on the diagonal, all else 0, row by row.

    The blocks lie side by side in [8, C], a register for each head. Column j of every block, spread over the block,
    times row j of the inverses is what goes from the rows after it.
    """
    heads, size = lower.shape[:2]
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (heads, _ROWS, size), axis) for axis in (1, 2))
    of_block = [(column & -_ROWS) == i for i in range(0, size, _ROWS)]
    strips = (jnp.where(mask, lower[:, i * _ROWS : (i + 1) * _ROWS], 0) for i, mask in enumerate(of_block))
    blocks = functools.reduce(jnp.add, strips)
    found = (row == (column & (_ROWS - 1))).astype(lower.dtype)
    for j in range(_ROWS - 1):
        found = found - _take(blocks, (column & -_ROWS) + j) * found[:, j : j + 1]
    return jnp.concatenate([jnp.where(mask, found, 0) for mask in of_block], axis=1)


def _take(x: Array, columns: Array) -> Array:
    """x[g, i, columns[g, i, j]]; the compiler does it for matrices."""
    heads, rows, size = x.shape
    flat = (heads * rows, size)
    return jnp.take_along_axis(x.reshape(flat), columns.reshape(flat), axis=1).reshape(x.shape)
