"""The gradients of what is inside a chunk, on a Hopper GPU: `chunk.gradients`, one warpgroup per 64 columns of K.

With N, S, dX and dS' of the recurrence, for 64 of the columns of K, Q and the rows of S::

    dP = dY N^T ∘ D       dL = -tril(dX N^T, -1) ∘ D          over all of V, 64 columns at a time, as are
    dQ = E dY S^T + dP K          d(beta K) = dL K - E dX S^T
    dK = dP^T Q + dL^T (beta K) + F N dS'^T + beta d(beta K)

What there is of the gradients of beta and of the log decays are sums over these columns. Those of log decays come from
the products that are at hand anyhow: Σ_j A_ij dA_ij, for one, is the product of row i of Q with row i of dP K.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoo.ops.gated_delta_rule.hopper.inverse import between, rows_twice
from zoo.ops.gated_delta_rule.hopper.layout import BETA, CHUNK, END, START, VALUES, WHOLE, Tokens
from zoo.ops.gated_delta_rule.hopper.pieces import multiply, read, row, turned, write
from zoo.ops.mosaic_gpu import (
    MATRIX,
    ROWS,
    SMEM,
    barrier,
    cast,
    copy_in,
    copy_out,
    iota,
    launch,
    pl,
    plgpu,
    read_out,
    store,
    synchronise,
)
from zoo.typing import Array, DType

_SQUARE = (CHUNK, CHUNK)
# Columns of K per warpgroup.
_COLUMNS = 64


class Found(NamedTuple):
    """What `gradients` returns, float32 but for the first; K / 64 sums over the columns of K each, to be added up.

    Attributes:
      q, k: gradients of q and k, [B, T, HV, K], of the dtype asked for.
      beta: part of that of beta, [n, B, HV, K / 64, 64].
      paths: None without decays; else values times gradients, [n, B, HV, K / 64, 64] each: of each token, of paths to
        its query that come from before it, less those that leave from its key to queries in the chunk; of paths from
        its key to the state after the chunk; and, for 64 rows of the state, of paths through the chunk.
    """

    q: Array
    k: Array
    beta: Array
    paths: tuple[Array, Array, Array] | None


class _Operands(NamedTuple):
    """What is read 64 columns of V at a time, in pieces: [P, B, T, HV, V] three times, [P, n, B, HV, K, V] twice."""

    dy: Any
    n: Any
    dx: Any
    before: Any
    dafter: Any


def gradients(tokens: Tokens, dy: Array, n: Array, dx: Array, befores: Array, dafters: Array, dtype: DType) -> Found:
    """See `Found`.

    Args:
      tokens: see there.
      dy: gradient of the outputs, times the scale, in pieces, as all that follow.
      n, befores: N and S, of `recurrence.states`.
      dx, dafters: dX and dS', of `recurrence.backward`.
      dtype: of the gradients of q and k.
    """
    pieces, (chunks, batch, heads) = tokens.pieces, tokens.of_heads
    width, values = befores.shape[-2:]
    parts = width // _COLUMNS
    wide = jax.ShapeDtypeStruct((batch, chunks * CHUNK, heads, width), dtype)
    sums = jax.ShapeDtypeStruct((chunks, batch, heads, parts, CHUNK), jnp.float32)
    # So that there is room for two blocks on a multiprocessor, of which one computes while the other waits for memory:
    # what is made of the tiles takes their place, results too where they are as narrow, else there are no tiles ahead.
    narrow = pieces == 1 and dtype == jnp.bfloat16
    stages = min(2 if narrow else 1, values // VALUES)

    tile, wide_tile = SMEM((pieces, *_SQUARE), jnp.bfloat16), SMEM(_SQUARE, dtype)
    found = launch(
        functools.partial(_gradients, tokens, values // VALUES),
        out=(wide, wide, *(sums for _ in range(4 if tokens.gated else 1))),
        grid=(chunks, batch, heads * parts),
        grid_names=("chunk", "batch", "part"),
        scratch=(
            [tile, tile, rows_twice(tokens.rows)],
            [_Operands(*(tile for _ in range(5))) for _ in range(stages)],
            [] if narrow else [wide_tile, wide_tile],
            [barrier(2 * pieces + 2), barrier(5 * pieces, stages)],
        ),
        name="delta_rule_gradients",
        semantics="warpgroup",
    )(tokens.q, tokens.k, tokens.rows, _Operands(dy, n, dx, befores, dafters))
    dq, dk, dbeta, *paths = found
    return Found(dq, dk, dbeta, (paths[0], paths[1], paths[2]) if paths else None)


def _gradients(tokens: Tokens, steps: int, q, k, rows, of_values, *refs: Any) -> None:
    *outs, (q_tile, k_tile, r), tiles, results, (arrived, arrived_values) = refs
    chunk, batch, part = (jax.lax.axis_index(axis) for axis in ("chunk", "batch", "part"))
    parts = tokens.k.shape[-1] // _COLUMNS
    head, part = part // parts, part % parts
    here, columns = pl.ds(chunk * CHUNK, CHUNK), pl.ds(part * _COLUMNS, _COLUMNS)
    gated, stages = tokens.gated, len(tiles)

    def fetch(step: int) -> None:
        slot, values = step % stages, pl.ds(step * VALUES, VALUES)
        for piece in range(tokens.pieces):
            for name, source in of_values._asdict().items():
                if name in ("dy", "n", "dx"):
                    source = source.at[piece, batch, here, head, values]
                else:
                    source = source.at[piece, chunk, batch, head, columns, values]
                copy_in(source, getattr(tiles[slot], name).at[piece], arrived_values.at[slot])

    for piece in range(tokens.pieces):
        for source, tile in ((q, q_tile), (k, k_tile)):
            copy_in(source.at[piece, batch, here, head // tokens.group, columns], tile.at[piece], arrived)
    for copy in range(2):
        copy_in(rows.at[chunk, batch, head], r.at[copy], arrived)
    for step in range(stages):
        fetch(step)

    total, through = [], 0.0
    for step in range(steps):
        slot = step % stages
        plgpu.barrier_wait(arrived_values.at[slot])
        dy, n, dx, before, dafter = tiles[slot]
        through = through + (read(before) * read(dafter)).sum(1) if gated else through
        operands = (dy, turned(n)), (dx, turned(n)), (dy, turned(before)), (dx, turned(before)), (n, turned(dafter))
        total = multiply(*operands, onto=total)
        if step + stages < steps:
            synchronise()  # all threads have read the tiles
            fetch(step + stages)
    dscores, dlower, from_queries, from_keys, to_end = total
    dp, dl, bk, *others = tiles[0]  # all of which has been read
    dq_out, dk_out = results or (other.at[0] for other in others)

    plgpu.barrier_wait(arrived)
    i, j = (iota(_SQUARE, axis, MATRIX) for axis in (0, 1))
    pairs = between(r) if gated else 1.0
    write(dp, jnp.where(j <= i, dscores * pairs, 0.0))
    write(dl, jnp.where(j < i, -dlower * pairs, 0.0))
    key, beta = read(k_tile), row(r, BETA, _SQUARE)
    write(bk, beta * key)
    synchronise()
    # What these have in common, by rows and by columns, is to cancel in the gradients of log decays.
    queries, keys = multiply((dp, k_tile), (dl, k_tile), exact=True)
    from_keys = -from_keys
    if gated:
        start = row(r, START, _SQUARE)
        from_queries, from_keys = from_queries * start, from_keys * start
        to_end = to_end * row(r, END, _SQUARE)
    dq, dbk = from_queries + queries, from_keys + keys
    by_queries, by_keys = multiply((turned(dp), q_tile), (turned(dl), bk), exact=True)
    inside = by_queries + by_keys
    store(dq_out, dq.astype(dq_out.dtype))
    store(dk_out, (inside + to_end + beta * dbk).astype(dk_out.dtype))

    def give(out: Any, values: Array) -> None:
        store(out.at[chunk, batch, head, part], cast(values, ROWS))

    give(outs[2], (dbk * key).sum(1))
    if gated:
        give(outs[3], (read(q_tile) * dq + beta * key * dbk - key * inside).sum(1))
        give(outs[4], (key * to_end).sum(1))
        give(outs[5], through * r[0, WHOLE, 0])
    synchronise()
    copy_out(dq_out, outs[0].at[batch, here, head, columns])
    copy_out(dk_out, outs[1].at[batch, here, head, columns])
    read_out()
