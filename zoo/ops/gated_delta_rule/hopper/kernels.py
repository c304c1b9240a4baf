"""The recurrence over chunks on a Hopper GPU: the mathematics of `chunk`, the state in registers, products by wgmma.

One warpgroup works on the columns of one head's state that belong to 64 values, S [K, 64], from the first chunk to the
last or back. What needs no state is given: T, and A = scale Q K^T ∘ D. With the names of `chunk`, for 64 tokens::

    X = diag(beta) (V - E K S)      N = T X      Y = scale E Q S + A N      S' = exp(g_63) S + K^T (F N)

    dN = A^T dY + F K dS'           dX = T^T dN
    dS = exp(g_63) dS' + Q^T (scale E dY) - K^T (beta E dX)

An operand of a product is one bfloat16 array, or the sum of two: its pieces, the rounded numbers, and what rounding
left of them, rounded. Of the products of pieces all but that of the leftovers are added up. T always has two, at the
price of one small product: with keys all alike and beta = 2 its rows cancel, and one piece leaves errors of 35 % in the
outputs, two of 2 %. Sums, decays and the state are float32.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoo.ops.gated_delta_rule.hopper.loop import CHUNK, VALUES, Input, Plan, Site, run
from zoo.ops.mosaic_gpu import MATRIX, ROWS, SMEM, copy_out, load, products, read_out, store, synchronise, transposed
from zoo.typing import Array

# The rows of `Chunks.rows`.
_BETA, _START, _END, _WHOLE = range(4)


class Chunks(NamedTuple):
    """What all kernels read, in the order of processing: n chunks; P = 1 or 2 pieces of bfloat16.

    Attributes:
      q, k: [P, B, T, H, K], T = 64 n, K = 64 or 128; the queries without the scale.
      attention: A, [P, n, B, HV, 64, 64].
      inverse: T, [2, n, B, HV, 64, 64].
      rows: float32 [n, B, HV, R, 64]: beta, and where there are decays (R = 4) E, F, and exp(g_63) 64 times.
    """

    q: Array
    k: Array
    attention: Array
    inverse: Array
    rows: Array


def split(x: Array, pieces: int) -> list[Array]:
    """So many bfloat16 arrays whose sum is `x`: to 8 bits for one, to 16 for two."""
    found = []
    for _ in range(pieces):
        found.append(x.astype(jnp.bfloat16))
        x = x.astype(jnp.float32) - found[-1].astype(jnp.float32)
    return found


def forward(chunks: Chunks, v: Array, state: Array, scale: float) -> tuple[Array, Array]:
    """The outputs [B, T, HV, V] in the dtype of `v`, and the state after the last chunk.

    Args:
      chunks: see `Chunks`.
      v: [B, T, HV, V], V a multiple of 64.
      state: float32 [B, HV, K, V], before the first chunk.
      scale: of the queries.
    """
    plan = _plan(chunks, v)
    inputs = [*_operands(plan, chunks), Input(v[None], plan.values, (CHUNK, VALUES))]
    own = [plan.operand(plan.width), plan.operand(), plan.operand(), SMEM((CHUNK, VALUES), v.dtype)]
    body = functools.partial(_forward, plan, scale)
    y, last = run("delta_rule", body, plan, inputs, state, own, [jax.ShapeDtypeStruct(v.shape, v.dtype)])
    return y, last


def states(chunks: Chunks, v: Array, state: Array) -> tuple[Array, Array]:
    """The state before each chunk [P, n, B, HV, K, V] and N of each [P, n, B, HV, 64, V]; arguments as of `forward`."""
    plan = _plan(chunks, v)
    _, k, _, *others = _operands(plan, chunks)
    inputs = [k, *others, Input(v[None], plan.values, (CHUNK, VALUES))]
    own = [plan.operand(plan.width), plan.operand(), plan.operand()]
    body = functools.partial(_states, plan)
    befores, ns, _ = run("delta_rule_states", body, plan, inputs, state, own, [plan.out(plan.width), plan.out(CHUNK)])
    return befores, ns


def backward(chunks: Chunks, dy: Array, dstate: Array, scale: float) -> tuple[Array, Array, Array]:
    """The gradients of X and of the state after it of each chunk, and of the state before the first chunk.

    Args:
      chunks: see `Chunks`.
      dy: gradient of the outputs, in pieces, [P, B, T, HV, V].
      dstate: gradient of the state after the last chunk, float32 [B, HV, K, V].
      scale: of the queries.

    Returns:
      dX [P, n, B, HV, 64, V], dS' [P, n, B, HV, K, V], float32 [B, HV, K, V].
    """
    plan = _plan(chunks, dy[0])
    inputs = [*_operands(plan, chunks), Input(dy, plan.values, (CHUNK, VALUES))]
    own = [plan.operand(plan.width), *(plan.operand() for _ in range(3))]
    out = [plan.out(CHUNK), plan.out(plan.width)]
    body = functools.partial(_backward, plan, scale)
    dxs, dafters, dfirst = run("delta_rule_backward", body, plan, inputs, dstate, own, out, to_first=True)
    return dxs, dafters, dfirst


def _plan(chunks: Chunks, v: Array) -> Plan:
    pieces, batch, length, heads, width = chunks.k.shape
    grid = batch, v.shape[2], v.shape[3] // VALUES
    return Plan(pieces, length // CHUNK, width, chunks.rows.shape[-2] > 1, v.shape[2] // heads, grid)


def _operands(plan: Plan, chunks: Chunks) -> list[Input]:
    q, k, attention, inverse, rows = chunks
    return [
        *(Input(x, plan.keys, (CHUNK, plan.width)) for x in (q, k)),
        *(Input(x, plan.own, (CHUNK, CHUNK)) for x in (attention, inverse)),
        Input(rows[None], plan.own, rows.shape[-2:]),
    ]


# --- one chunk


def _forward(plan: Plan, scale: float, site: Site, tiles, own, out, state: Array) -> Array:
    q, k, attention, inverse, rows, v = tiles
    before, x, n, outputs = own
    _write(before, state)
    synchronise()
    ks, qs = _multiply((k, before), (q, before))
    to_end = _learn(plan, rows, v, inverse, ks, x, n)
    inner, new = _multiply((attention, n), (_turned(k), to_end))
    y = scale * (qs * _row(rows, _START, qs) if plan.gated else qs) + inner
    read_out()  # the outputs of the chunk before
    store(outputs, y.astype(outputs.dtype))
    synchronise()
    copy_out(outputs, out[0].at[site.batch, site.tokens, site.head, site.values])
    return _decayed(plan, rows, state) + new


def _states(plan: Plan, site: Site, tiles, own, out, state: Array) -> Array:
    k, inverse, rows, v = tiles
    before, x, n = own
    read_out()  # what the chunk before has given
    _write(before, state)
    synchronise()
    _give(before, out[0], site)
    (ks,) = _multiply((k, before))
    to_end = _learn(plan, rows, v, inverse, ks, x, n)
    _give(n, out[1], site)
    (new,) = _multiply((_turned(k), to_end))
    return _decayed(plan, rows, state) + new


def _backward(plan: Plan, scale: float, site: Site, tiles, own, out, dstate: Array) -> Array:
    q, k, attention, inverse, rows, dy = tiles
    dafter, dn, dx, dx_start = own
    read_out()  # what the chunk after has given
    _write(dafter, dstate)
    synchronise()
    _give(dafter, out[1], site)
    from_outputs, from_state = _multiply((_turned(attention), dy), (k, dafter))
    _write(dn, from_outputs + (from_state * _row(rows, _END, from_state) if plan.gated else from_state))
    synchronise()
    (found,) = _multiply((_turned(inverse), dn))
    _write(dx, found)
    dks, dqs = found * _row(rows, _BETA, found), dy
    if plan.gated:
        start = _row(rows, _START, found)
        dks = dks * start
        dqs = dn  # which is no longer needed
        _write(dqs, start * _read(dy))
    _write(dx_start, dks)
    synchronise()
    _give(dx, out[0], site)
    by_queries, by_keys = _multiply((_turned(q), dqs), (_turned(k), dx_start))
    return _decayed(plan, rows, dstate) + scale * by_queries - by_keys


def _learn(plan: Plan, rows: Any, v: Any, inverse: Any, ks: Array, x: Any, n: Any) -> Any:
    """N, committed to `n` in shared memory, by way of X in `x`; returns F N, which then is in `x`, or `n` itself."""
    ks = ks * _row(rows, _START, ks) if plan.gated else ks
    _write(x, _row(rows, _BETA, ks) * (load(v.at[0], MATRIX).astype(jnp.float32) - ks))
    synchronise()
    (found,) = _multiply((inverse, x))
    _write(n, found)
    if plan.gated:
        _write(x, found * _row(rows, _END, found))
    synchronise()
    return x if plan.gated else n


def _decayed(plan: Plan, rows: Any, state: Array) -> Array:
    return state * rows[0, _WHOLE, 0] if plan.gated else state


def _row(rows: Any, which: int, like: Array) -> Array:
    """One number per token, for all columns."""
    return jax.lax.broadcast_in_dim(load(rows.at[0, which], ROWS), like.shape, (0,))


# --- arrays of pieces in shared memory


def _write(ref: Any, x: Array) -> None:
    for i, piece in enumerate(split(x, ref.shape[0])):
        store(ref.at[i], piece)


def _read(ref: Any) -> Array:
    first, *others = (load(ref.at[i], MATRIX).astype(jnp.float32) for i in range(ref.shape[0]))
    return sum(others, first)


def _give(ref: Any, out: Any, site: Site) -> None:
    """Starts the copy of a chunk's tile or state to the output of `Plan.out`."""
    for i in range(ref.shape[0]):
        copy_out(ref.at[i], out.at[i, site.chunk, site.batch, site.head, :, site.values])


def _multiply(*pairs: tuple[Any, Any]) -> list[Array]:
    """a @ b, of each pair."""
    return products(*(_pairs_of_pieces(_pieces(a), _pieces(b)) for a, b in pairs))


def _turned(ref: Any) -> list[Any]:
    """The transpose, for `_multiply`."""
    return [transposed(piece) for piece in _pieces(ref)]


def _pieces(operand: Any) -> list[Any]:
    return operand if isinstance(operand, list) else [operand.at[i] for i in range(operand.shape[0])]


def _pairs_of_pieces(a: list[Any], b: list[Any]) -> list[tuple[Any, Any]]:
    """All but those of what rounding left of both."""
    return [(a[i], b[j]) for i in range(len(a)) for j in range(len(b)) if i + j < 2]
