"""Small images of overlapping shapes, drawn when they are asked for."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.registry import register_task
from zoo.tasks.base import SPLITS, Split
from zoo.tasks.images import ImageDensityTask


class Size(NamedTuple):
    """What a source draws: images of `side` x `side` pixels."""

    side: int
    channels: int
    values: int = 16
    train: int = 20_000
    heldout: int = 1_000


_SIZES = {"grey": Size(12, 1), "colour": Size(8, 3)}
_SHAPES = 3  # of each image
_NOISE = 32  # one pixel in so many
_BLOCK = 4_096


@register_task(
    "density/shapes",
    title="Density of small drawn images",
    inputs=("image",),
    notes="Sources: grey (12 x 12), colour (8 x 8, three channels); 16 values each. Nothing is stored.",
)
class Shapes(ImageDensityTask):
    """Squares, discs and diamonds of random size, place and brightness over one another on a dark ground, with noise.

    One value in 32 is replaced by a random one, independently in each channel. All is drawn from the seed, by whole
    numbers: the same images everywhere.

    Args:
      source: "grey", 12 x 12 pixels of 16 values, or "colour", 8 x 8 of three channels.
      max_len: None, or the number of rows.
      data_dir: unused; nothing is stored.
      seed: of the draws; another seed is another data set.

    Raises:
      ValueError: unknown source, another `max_len`, or a seed out of range.
    """

    name = "density/shapes"
    sources = tuple(_SIZES)

    def __init__(
        self, source: str = "grey", max_len: int | None = None, data_dir: str | Path | None = None, seed: int = 0
    ):
        from zoo.registry import did_you_mean

        if source not in _SIZES:
            raise ValueError(f"{self.name} has no source {source!r}. {did_you_mean(source, _SIZES)}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"task.seed must lie in 0..2**64-1, got {seed}.")
        self.source, self.seed, self._data_dir = source, seed, data_dir
        self._size = size = _SIZES[source]
        super().__init__((size.side, size.side, size.channels), size.values, max_len)

    def is_prepared(self) -> bool:
        """True: there is nothing to prepare."""
        return True

    def prepare(self, *, progress: bool = True, workers: int | None = None) -> Path:
        """Does nothing, and returns the folder of all data."""
        from zoo.data.paths import data_dir

        return data_dir(self._data_dir)

    def verify(self) -> None:
        """Does nothing: no file can be damaged."""

    def describe(self) -> dict[str, Any]:
        """Sizes, values, origin, seed and checksum."""
        return {**super().describe(), "origin": "drawn from the seed", "seed": self.seed}

    def _load(self, name: Split) -> np.ndarray:
        from zoo.data.draws import Draws

        rows = self._size.train if name == "train" else self._size.heldout
        draws = Draws(self.seed, stream=SPLITS.index(name))
        # In blocks, because draws take many times the memory of what is made of them.
        return np.concatenate([_draw(draws, self._size, min(_BLOCK, rows - at)) for at in range(0, rows, _BLOCK)])


def _draw(draws: Any, size: Size, rows: int) -> np.ndarray:
    """uint8 [rows, side, side, C]."""
    side, channels, values = size.side, size.channels, size.values

    def numbers(bound: int, *shape: int) -> np.ndarray:
        return draws.integers(bound, (rows, *shape)).astype(np.int16)

    shape = (side, side, channels)
    images = np.broadcast_to(numbers(values // 4, 1, 1, channels), (rows, *shape))
    row, column = np.indices((side, side), np.int16)
    for _ in range(_SHAPES):
        down, across = (np.abs(axis - numbers(side, 1, 1)) for axis in (row, column))
        kind, radius = numbers(3, 1, 1), 1 + numbers(side // 3, 1, 1)
        square = np.maximum(down, across) <= radius
        disc = down**2 + across**2 <= radius * (radius + 1)
        diamond = down + across <= radius
        inside = np.choose(kind, [square, disc, diamond])[..., None]
        images = np.where(inside, numbers(values, 1, 1, channels), images)
    noisy = numbers(_NOISE, *shape) == 0
    return np.where(noisy, numbers(values, *shape), images).astype(np.uint8)
