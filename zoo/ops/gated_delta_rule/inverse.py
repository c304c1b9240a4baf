"""The inverse of unit lower triangular matrices, in full precision."""

import jax
import jax.numpy as jnp
import numpy as np

from zoo.typing import Array

# Blocks of this size are inverted row by row, written out; larger ones are merged from two halves by products.
_ROWS = 8


def inverse_of_unit_lower(lower: Array) -> Array:
    """(I + L)^-1 for strictly lower triangular L [..., c, c].

    Diagonal blocks by forward substitution, then pairs of neighbours merged into blocks of twice the size:

        [[A, 0], [C, B]]^-1 = [[A^-1, 0], [-B^-1 C A^-1, B^-1]]

    This never forms a power of L. With correlated keys and beta near 2 those reach 1e30 and cancel, so the product
    (I - L)(I + L^2)(I + L^4)..., equal on paper, loses every digit. It is also why all products here are in full
    precision, whatever the inputs' dtype.
    """
    length = lower.shape[-1]
    size = 1 << (length - 1).bit_length()
    lower = jnp.pad(lower, [(0, 0)] * (lower.ndim - 2) + [(0, size - length)] * 2)
    width = min(_ROWS, size)
    inverse = _by_rows(_diagonal_blocks(lower, width))
    while width < size:
        below = _diagonal_blocks(lower, 2 * width)[..., width:, :width]
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -_product(_product(second, below), first)
        above = jnp.concatenate([first, jnp.zeros_like(corner)], axis=-1)
        inverse = jnp.concatenate([above, jnp.concatenate([corner, second], axis=-1)], axis=-2)
        width *= 2
    return inverse[..., 0, :length, :length]


def _product(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _diagonal_blocks(x: Array, width: int) -> Array:
    """[..., c, c] -> [..., c / width, width, width]."""
    starts = range(0, x.shape[-1], width)
    return jnp.stack([x[..., i : i + width, i : i + width] for i in starts], axis=-3)


def _by_rows(lower: Array) -> Array:
    """Row i of the inverse is e_i - Σ_{j < i} L_ij row_j."""
    size = lower.shape[-1]
    rows = []
    for i, unit in enumerate(np.eye(size, dtype=lower.dtype)):
        row = jnp.broadcast_to(unit, (*lower.shape[:-2], size))
        for j, above in enumerate(rows):
            row = row - lower[..., i, j, None] * above
        rows.append(row)
    return jnp.stack(rows, axis=-2)
