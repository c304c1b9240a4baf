"""Learned positions on a grid: the sum of one vector for each axis (Ho et al. 2019, arXiv:1912.12180, section 3)."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.typing import Array, DType, Float


class AxialPositions(nnx.Module):
    """P[i_1, ..., i_k] = T_1[i_1] + ... + T_k[i_k], with a table T_i [n_i, D] for each axis.

    A grid of n_1 x ... x n_k cells has (n_1 + ... + n_k) D parameters, not n_1 ... n_k D.

    Args:
      shape: n_1 to n_k.
      d_model: D.
      std: standard deviation of the tables' initial values: 1 in `axial-attention`
        (github.com/lucidrains/axial-attention), 5 / sqrt(D) in the Axial Transformer of the paper's authors.
      param_dtype: dtype of the tables.
      rngs: for the initial parameters.

    Raises:
      ValueError: no axis, or one that is not positive.
    """

    def __init__(
        self,
        shape: Sequence[int],
        d_model: int,
        *,
        std: float = 1.0,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.shape = tuple(int(length) for length in shape)
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"axial positions need lengths of axes, at least 1; got {self.shape}.")
        init = initializers.normal(std)
        self.tables = nnx.List(nnx.Param(init(rngs.params(), (length, d_model), param_dtype)) for length in self.shape)

    def __call__(self) -> Float[Array, "*N D"]:
        """The vectors of all cells, [n_1, ..., n_k, D]."""
        grid = self.tables[0][...]
        for table in list(self.tables)[1:]:
            grid = grid[..., None, :] + table[...]
        return grid

    def rows(self, length: int) -> Float[Array, "length D"]:
        """The vectors of the first cells by rows: of a sequence that is laid out on the grid."""
        grid = self()
        return grid.reshape(-1, grid.shape[-1])[:length]


def square_grid(length: int) -> tuple[int, int]:
    """Rows and columns of a grid for `length` cells: its width is the square root, rounded up."""
    width = math.isqrt(max(length, 1) - 1) + 1
    return -(-max(length, 1) // width), width
