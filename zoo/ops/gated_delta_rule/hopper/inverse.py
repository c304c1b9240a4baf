"""What is between the tokens of a chunk, on a Hopper GPU: A = Q K^T ∘ D, and T. One warpgroup per chunk and head.

T = (I + L)^-1, with L = diag(beta) K K^T ∘ D below the diagonal, is built as in `gated_delta_rule.inverse`: of blocks
of one token on the diagonal, then pairs of neighbours are merged, all at once, into blocks of twice the size,

    X <- X - X C X,    C = the blocks of L that join the pairs.

The tensor cores multiply the whole of these matrices, of whose 64 x 64 numbers most are zeros in the first merges.
Their operands are of three pieces, which is right to float32; in two, keys all alike and beta = 2 leave errors of 1 %
in T, which then grow.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from zoo.ops.gated_delta_rule.hopper.layout import (
    BETA,
    CHUNK,
    COARSE,
    FINE,
    PIECES_OF_INVERSE,
    Pairs,
    Tokens,
    of_chunks,
)
from zoo.ops.gated_delta_rule.hopper.pieces import multiply, row, split, turned, write
from zoo.ops.mosaic_gpu import (
    COLUMNS,
    MATRIX,
    SMEM,
    barrier,
    cast,
    copy_in,
    copy_out,
    iota,
    launch,
    load,
    pl,
    plgpu,
    store,
    synchronise,
)
from zoo.typing import Array

_SQUARE = (CHUNK, CHUNK)
_PIECES = 3


def pairs(tokens: Tokens) -> Pairs:
    """A and T of all chunks."""
    pieces, width = tokens.pieces, tokens.k.shape[-1]
    chunks, batch, heads = tokens.of_heads
    tile = SMEM((pieces, CHUNK, width), jnp.bfloat16)
    square = functools.partial(of_chunks, tokens, *_SQUARE)
    found = launch(
        functools.partial(_pairs, tokens),
        out=(square(), square(PIECES_OF_INVERSE)),
        grid=(chunks, batch, heads),
        grid_names=("chunk", "batch", "head"),
        scratch=(
            tile,
            tile,
            rows_twice(tokens.rows),
            SMEM((pieces, *_SQUARE), jnp.bfloat16),
            SMEM((_PIECES, *_SQUARE), jnp.bfloat16),
            SMEM((_PIECES, *_SQUARE), jnp.bfloat16),
            barrier(2 * pieces + 2),
        ),
        name="delta_rule_pairs",
        semantics="warpgroup",
    )(tokens.q, tokens.k, tokens.rows)
    return Pairs(*found)


def _pairs(tokens: Tokens, q, k, rows, attention, inverse, q_tile, k_tile, r, a, x, y, arrived) -> None:
    chunk, batch, head = (jax.lax.axis_index(axis) for axis in ("chunk", "batch", "head"))
    here = pl.ds(chunk * CHUNK, CHUNK)
    for piece in range(tokens.pieces):
        for source, tile in ((q, q_tile), (k, k_tile)):
            copy_in(source.at[piece, batch, here, head // tokens.group], tile.at[piece], arrived)
    for copy in range(2):
        copy_in(rows.at[chunk, batch, head], r.at[copy], arrived)
    plgpu.barrier_wait(arrived)

    i, j = (iota(_SQUARE, axis, MATRIX) for axis in (0, 1))
    decays = between(r) if tokens.gated else 1.0
    (scores,) = multiply((q_tile, turned(k_tile)))
    write(a, jnp.where(j <= i, scores * decays, 0.0))
    # Of one piece or of two: L is inverted, so nothing of it is left out.
    (lower,) = multiply((k_tile, turned(k_tile)), exact=True)
    lower = row(r, BETA, _SQUARE) * lower * decays
    _invert(jnp.where(j < i, lower, 0.0), i ^ j, x, y)
    synchronise()
    for piece in range(tokens.pieces):
        copy_out(a.at[piece], attention.at[piece, chunk, batch, head])
    for piece in range(PIECES_OF_INVERSE):
        copy_out(x.at[piece], inverse.at[piece, chunk, batch, head])
    plgpu.wait_smem_to_gmem(0)


def rows_twice(rows: Array) -> Any:
    """Shared memory for the rows of a chunk and once more for `between`, [2, R, 64].

    Two loads of one place are one to the compiler, which then finds no layout that is along rows and along columns.
    """
    return SMEM((2, *rows.shape[3:]), rows.dtype)


def between(rows: Any) -> Array:
    """exp(g_i - g_j) of all pairs, also where j > i, where it may be infinite."""

    def difference(which: int) -> Array:
        own = row(rows, which, _SQUARE)
        return own - cast(jax.lax.broadcast_in_dim(load(rows.at[1, which], COLUMNS), _SQUARE, (1,)), MATRIX)

    return jnp.exp(difference(COARSE) + difference(FINE))


def _invert(lower: Array, apart: Array, x: Any, y: Any) -> None:
    """Writes the pieces of (I + L)^-1 to `x`; `y` is for what is between; `apart` is row XOR column."""

    def merged(level: Array, inverse: Array) -> Array:
        write(x, inverse)
        write(y, jnp.where(apart >> level == 1, lower, 0.0))
        synchronise()
        (half,) = multiply((x, y))
        write(y, -half)
        synchronise()
        return multiply((y, x), onto=(inverse,))[0]

    single = jnp.where(apart == 0, 1.0, 0.0) - jnp.where(apart == 1, lower, 0.0)
    inverse = jax.lax.fori_loop(1, CHUNK.bit_length() - 1, merged, single)
    for piece, value in enumerate(split(inverse, PIECES_OF_INVERSE)):
        store(x.at[piece], value)
