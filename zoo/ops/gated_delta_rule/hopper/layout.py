"""How the kernels' arrays lie in memory, and what they are called."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo.typing import Array

# Tokens per chunk, and values per warpgroup: the height of a wgmma tile, and what its registers have room for.
CHUNK = 64
VALUES = 64
# What of T is kept: with keys all alike and beta = 2 its rows cancel, and one piece leaves errors of 35 % in the
# outputs, two of 2 %. The price is one small product.
PIECES_OF_INVERSE = 2
# The rows of `Tokens.rows`.
BETA, START, END, WHOLE, COARSE, FINE = range(6)


class Tokens(NamedTuple):
    """What all kernels read, in the order of processing: n chunks; P = 1 or 2 pieces of bfloat16.

    Attributes:
      q, k: [P, B, T, H, K], T = 64 n, K = 64 or 128; the queries without the scale.
      rows: float32 [n, B, HV, R, 64]: beta, and where there are decays (R = 6) E, F, exp(g_63) 64 times, and the
        running sums g as `running_sums` has them.
    """

    q: Array
    k: Array
    rows: Array

    @property
    def pieces(self) -> int:
        """P."""
        return self.k.shape[0]

    @property
    def of_heads(self) -> tuple[int, int, int]:
        """(n, B, HV)."""
        chunks, batch, heads = self.rows.shape[:3]
        return chunks, batch, heads

    @property
    def group(self) -> int:
        """Heads of values for each of keys."""
        return self.rows.shape[2] // self.k.shape[3]

    @property
    def gated(self) -> bool:
        """Whether there are decays."""
        return self.rows.shape[3] > 1


class Pairs(NamedTuple):
    """What is between the tokens of a chunk.

    Attributes:
      attention: A = Q K^T ∘ D, [P, n, B, HV, 64, 64].
      inverse: T, [2, n, B, HV, 64, 64].
    """

    attention: Array
    inverse: Array


def of_tokens(tokens: Tokens, width: int) -> jax.ShapeDtypeStruct:
    """Pieces [P, B, T, HV, width]."""
    chunks, batch, heads = tokens.of_heads
    return jax.ShapeDtypeStruct((tokens.pieces, batch, chunks * CHUNK, heads, width), jnp.bfloat16)


def of_chunks(tokens: Tokens, rows: int, columns: int, pieces: int | None = None) -> jax.ShapeDtypeStruct:
    """Pieces [P, n, B, HV, rows, columns]."""
    return jax.ShapeDtypeStruct((pieces or tokens.pieces, *tokens.of_heads, rows, columns), jnp.bfloat16)
