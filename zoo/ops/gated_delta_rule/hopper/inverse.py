"""What is between the tokens of a chunk, on a Hopper GPU: A = Q K^T ∘ D, and T. One warpgroup per chunk and head.

T = (I + L)^-1, with L = diag(beta) K K^T ∘ D below the diagonal, is built as in `gated_delta_rule.inverse`: of blocks
of one token on the diagonal, then pairs of neighbours are merged, all at once, into blocks of twice the size,

    X <- X - X L X,    of which only those blocks are taken that join the pairs.

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
    Matrix,
    barrier,
    cast,
    copy_in,
    copy_out,
    held,
    iota,
    launch,
    load,
    pl,
    plgpu,
    read_out,
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
    copies = 2 * pieces * (width // CHUNK)

    def squares(number: int) -> Any:
        return SMEM((number, *_SQUARE), jnp.bfloat16)

    found = launch(
        functools.partial(_pairs, tokens),
        out=(of_chunks(tokens, *_SQUARE), of_chunks(tokens, *_SQUARE, PIECES_OF_INVERSE)),
        grid=(chunks, batch, heads),
        grid_names=("chunk", "batch", "head"),
        scratch=(
            squares(max(copies, _PIECES)),
            rows_twice(tokens.rows),
            squares(pieces),
            squares(_PIECES),
            barrier(copies + 2),
        ),
        name="delta_rule_pairs",
        semantics="warpgroup",
    )(tokens.q, tokens.k, tokens.rows)
    return Pairs(*found)


def _pairs(tokens: Tokens, q, k, rows, attention, inverse, squares, r, a, x, arrived) -> None:
    chunk, batch, head = (jax.lax.axis_index(axis) for axis in ("chunk", "batch", "head"))
    here, width = pl.ds(chunk * CHUNK, CHUNK), tokens.k.shape[-1]
    # Queries and keys 64 columns at a time, so that they leave room for what follows.
    parts, free = [], 0
    for columns in (pl.ds(start, CHUNK) for start in range(0, width, CHUNK)):
        parts.append(([], []))
        for source, found in zip((q, k), parts[-1], strict=True):
            for piece in range(tokens.pieces):
                copy_in(source.at[piece, batch, here, head // tokens.group, columns], squares.at[free], arrived)
                found.append(Matrix(squares, (free,)))
                free += 1
    for copy in range(2):
        copy_in(rows.at[chunk, batch, head], r.at[copy], arrived)
    plgpu.barrier_wait(arrived)

    i, j = (iota(_SQUARE, axis, MATRIX) for axis in (0, 1))
    decays = between(r) if tokens.gated else 1.0
    (scores,) = multiply([(queries, turned(keys)) for queries, keys in parts])
    write(a, jnp.where(j <= i, scores * decays, 0.0))
    # Of one piece or of two: L is inverted, so nothing of it is left out.
    (lower,) = multiply([(keys, turned(keys)) for _, keys in parts], exact=True)
    lower = jnp.where(j < i, row(r, BETA, _SQUARE) * lower * decays, 0.0)
    _invert(lower, i ^ j, squares, x)
    synchronise()
    for piece in range(tokens.pieces):
        copy_out(a.at[piece], attention.at[piece, chunk, batch, head])
    for piece in range(PIECES_OF_INVERSE):
        copy_out(x.at[piece], inverse.at[piece, chunk, batch, head])
    read_out()


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


def _invert(lower: Array, apart: Array, squares: Any, x: Any) -> None:
    """Writes the pieces of (I + L)^-1 to `x`; `apart` is row XOR column, the first of `squares` are room for L."""
    minus = [Matrix(squares, (i,)) for i in range(_PIECES)]
    for i, piece in enumerate(split(-lower, _PIECES)):
        store(squares.at[i], piece)

    def merged(level: Array, inverse: Array) -> Array:
        pieces = split(inverse, _PIECES)
        for i, piece in enumerate(pieces):
            store(x.at[i], piece)
        synchronise()
        (half,) = multiply(([held(piece) for piece in pieces], minus))
        (corners,) = multiply(([held(piece) for piece in split(half, _PIECES)], x))
        return inverse + jnp.where(apart >> level == 1, corners, 0.0)

    single = jnp.where(apart == 0, 1.0, jnp.where(apart == 1, -lower, 0.0))
    inverse = jax.lax.fori_loop(1, CHUNK.bit_length() - 1, merged, single)
    for piece, value in enumerate(split(inverse, PIECES_OF_INVERSE)):
        store(x.at[piece], value)
