"""Random draws that are the same on every machine and under every NumPy."""

import numpy as np


class Draws:
    """A stream of raw Philox-4x64 bits (Salmon et al. 2011), which NumPy keeps stable, and what is made of them.

    Args:
      seed: 0 <= seed < 2**64.
      stream: independent draws under the same seed.

    Raises:
      ValueError: the seed is out of range.
    """

    def __init__(self, seed: int, stream: int = 0):
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must lie in 0..2**64-1, got {seed}.")
        self._bits = np.random.Philox(key=np.array([seed, stream], np.uint64))

    def integers(self, bound: int, shape: tuple[int, ...]) -> np.ndarray:
        """Uniform in 0..bound-1, int64; the remainder of 64 bits, whose bias is below bound / 2**64."""
        return (self._raw(shape) % np.uint64(bound)).astype(np.int64)

    def uniform(self, shape: tuple[int, ...]) -> np.ndarray:
        """Uniform in (0, 1), float64, in steps of 2**-53."""
        return ((self._raw(shape) >> np.uint64(11)) + 0.5) * 2.0**-53

    def subsets(self, size: int, count: int, rows: int) -> np.ndarray:
        """`count` different numbers of 0..size-1 in random order, each such sequence as likely, int64 [rows, count].

        Floyd's algorithm draws the subset (Bentley and Floyd 1987), sorting by random bits its order.

        Raises:
          ValueError: there are not so many numbers.
        """
        if not 0 <= count <= size:
            raise ValueError(f"{count} different numbers of {size} cannot be drawn.")
        chosen = np.empty((rows, count), np.int64)
        for index, last in enumerate(range(size - count, size)):
            drawn = self.integers(last + 1, (rows,))
            taken = (chosen[:, :index] == drawn[:, None]).any(axis=1)
            chosen[:, index] = np.where(taken, last, drawn)
        return np.take_along_axis(chosen, np.argsort(self._raw((rows, count)), axis=1, kind="stable"), axis=1)

    def weighted_subsets(self, weights: np.ndarray, count: int, rows: int) -> np.ndarray:
        """`count` different indices of `weights`, one after another in proportion to those left, int64 [rows, count].

        A race of exponential clocks with these rates: the first to ring is drawn first (Efraimidis and Spirakis 2006).
        """
        clocks = -np.log(self.uniform((rows, len(weights)))) / weights
        return np.argsort(clocks, axis=1, kind="stable")[:, :count]

    def _raw(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._bits.random_raw(int(np.prod(shape))).reshape(shape)
