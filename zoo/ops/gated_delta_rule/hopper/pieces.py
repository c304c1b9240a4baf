"""Operands of the tensor cores as sums of bfloat16 arrays, in shared memory.

An operand of a product is one bfloat16 array, or the sum of some: its pieces, the rounded numbers, what rounding left
of them, rounded, and so on; each has 8 bits more. Of the products of pieces, those below the accuracy of the operands
are left out. Sums are float32.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zoo.ops.mosaic_gpu import MATRIX, ROWS, Matrix, cast, load, products, store, transposed
from zoo.typing import Array


def split(x: Array, pieces: int) -> list[Array]:
    """So many bfloat16 arrays whose sum is `x`: to 8 bits for one, to 16 for two, to 24 for three.

    All but the last are rounded as integers: the way back from bfloat16 costs a GPU more, and XLA may skip it.
    """
    found = []
    for _ in range(pieces - 1):
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
        upper = jax.lax.bitcast_convert_type((bits + 0x8000) & ~0xFFFF, jnp.float32)
        found.append(upper.astype(jnp.bfloat16))
        x = x - upper
    return [*found, x.astype(jnp.bfloat16)]


def write(ref: Any, x: Array) -> None:
    """Stores the pieces of `x`, as many as `ref` [pieces, ...] has."""
    for i, piece in enumerate(split(x, ref.shape[0])):
        store(ref.at[i], piece)


def read(ref: Any) -> Array:
    """The sum of the pieces, a float32 MATRIX."""
    first, *others = (load(ref.at[i], MATRIX).astype(jnp.float32) for i in range(ref.shape[0]))
    return sum(others, first)


def multiply(*sums: Any, onto: Sequence[Array | None] = (), exact: bool = False) -> list[Array]:
    """a @ b for each pair (a, b), and sums of these for lists of pairs; `exact` multiplies all pieces with each other.

    For `onto` see `products`.
    """
    lists = [of if isinstance(of, list) else [of] for of in sums]
    return products(
        *([pair for a, b in of for pair in _pairs_of_pieces(_pieces(a), _pieces(b), exact)] for of in lists), onto=onto
    )


def turned(ref: Any) -> list[Any]:
    """The transpose, for `multiply`."""
    return [transposed(piece) for piece in _pieces(ref)]


def row(rows: Any, which: int, shape: tuple[int, ...]) -> Array:
    """One number per token, for all columns of a MATRIX; `rows` is [1 or 2, R, 64]."""
    return cast(jax.lax.broadcast_in_dim(load(rows.at[0, which], ROWS), shape, (0,)), MATRIX)


def _pieces(operand: Any) -> list[Any]:
    return operand if isinstance(operand, list) else [Matrix(operand, (i,)) for i in range(operand.shape[0])]


def _pairs_of_pieces(a: list[Any], b: list[Any], exact: bool) -> list[tuple[Any, Any]]:
    most = max(len(a), len(b))
    places = [(i, j) for i in range(len(a)) for j in range(len(b)) if exact or i + j < most]
    # The smallest first, as tensor cores cut off what is small beside the sum.
    return [(a[i], b[j]) for i, j in sorted(places, key=sum, reverse=True)]
