"""Which shape a small grey picture shows, pixel by pixel: a stand-in for LRA Image."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zoo.registry import register_task
from zoo.tasks.base import SPLITS, Split, TaskInfo
from zoo.tasks.standin import StandInTask

if TYPE_CHECKING:
    from zoo.data.rows import PixelSource


class Size(NamedTuple):
    """What a source draws: images of `side` x `side` pixels."""

    side: int
    train: int = 20_000
    heldout: int = 2_000


_SIZES = {"grey32": Size(32), "grey16": Size(16, train=10_000, heldout=1_000)}
KINDS = ("square", "disc", "diamond", "frame", "ring", "rhombus", "cross", "saltire")
_NOISE = 12  # largest change of a pixel, up or down
_SPECKS = 24  # one pixel in so many has any value
_BLOCK = 1_024


@register_task(
    "classify/shapes",
    title="Which of eight shapes a small grey picture shows, pixel by pixel",
    inputs=("tokens",),
    notes="Sources: grey32 (32 x 32), grey16 (16 x 16). Nothing to download: drawn. A stand-in for lra/image.",
)
class Shapes(StandInTask):
    """A bright shape on a dark ground: square, disc or diamond, filled or outlined, or an upright or diagonal cross.

    Size, place, and the brightness of shape and ground are random, one pixel in 24 has any value, and all have noise:
    what can be known without their order is how many there are of each brightness. The number of bright ones alone
    tells the shape in 45 to 47 % of images, the most frequent label is in an eighth: see `baselines`. A pixel's id is
    its value, 0 to 255, and every pixel is real. All is drawn from the seed, by whole numbers: the same everywhere.

    Args:
      source: "grey32" (1,024 pixels, as LRA Image has) or "grey16" (256 pixels).
      max_len: None, or the number of pixels.
      data_dir: unused; nothing is stored.
      seed: of the draws; another seed is another data set.

    Raises:
      ValueError: unknown source, another `max_len`, or a seed out of range.
    """

    name = "classify/shapes"
    sources = tuple(_SIZES)
    stands_for = "LRA Image"
    origin = "drawn from the seed"

    def __init__(
        self, source: str = "grey32", max_len: int | None = None, data_dir: str | Path | None = None, seed: int = 0
    ):
        super().__init__(source, data_dir, seed)
        self._size = _SIZES[source]
        pixels = self._size.side**2
        if max_len not in (None, pixels):
            raise ValueError(f"{self.name}/{source} has {pixels} pixels, which max_len={max_len} cannot change.")
        self.info = TaskInfo("tokens", vocab_size=256, num_classes=len(KINDS), max_len=pixels)

    def baselines(self, split: Split = "test") -> dict[str, float]:
        """As those of `StandInTask`; and "bright_pixels", the likeliest label given how many pixels are above 128."""
        counts = np.ones((self.info.max_len + 1, len(KINDS)))
        train, scored = self.split("train"), self.split(split)
        np.add.at(counts, (_bright(train), train.labels), 1)
        guess = counts.argmax(1)[_bright(scored)]
        return {**super().baselines(split), "bright_pixels": float((guess == scored.labels).mean())}

    def _make(self, name: Split) -> "PixelSource":
        from zoo.data.draws import Draws
        from zoo.data.rows import PixelSource

        rows = self._size.train if name == "train" else self._size.heldout
        draws = Draws(self.seed, stream=SPLITS.index(name))
        # In blocks, because draws take many times the memory of what is made of them.
        blocks = [_draw(draws, self._size.side, min(_BLOCK, rows - at)) for at in range(0, rows, _BLOCK)]
        images, labels = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        return PixelSource(images.reshape(rows, -1), labels)


def _bright(source: Any) -> np.ndarray:
    return (source.pixels > 128).sum(1)


def _draw(draws: Any, side: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 [rows, side, side], and labels, int64 [rows]."""

    def numbers(bound: int, *shape: int) -> np.ndarray:
        return draws.integers(bound, (rows, *shape)).astype(np.int32)

    labels = draws.integers(len(KINDS), (rows,))
    radius = side // 6 + numbers(side // 3 - side // 6 + 1, 1, 1)
    middle = [radius + draws.integers(2**20, (rows, 1, 1)) % (side - 2 * radius) for _ in range(2)]
    down, across = (np.abs(axis - at) for axis, at in zip(np.indices((side, side)), middle, strict=True))
    inside = np.choose(labels[:, None, None], _shapes(down, across, radius))
    dark, bright = _NOISE + numbers(80, 1, 1), 255 - _NOISE - numbers(80, 1, 1)
    images = np.where(inside, bright, dark) + numbers(2 * _NOISE + 1, side, side) - _NOISE
    specks = numbers(_SPECKS, side, side) == 0
    return np.where(specks, numbers(256, side, side), images).astype(np.uint8), labels


def _shapes(down: np.ndarray, across: np.ndarray, radius: np.ndarray) -> list[np.ndarray]:
    """Whether each pixel is in each of `KINDS`, by its distances from the middle."""
    width = 1 + radius // 4  # of lines
    largest, total, square = np.maximum(down, across), down + across, down**2 + across**2
    box, disc, diamond = largest <= radius, square <= radius * (radius + 1), total <= radius
    return [
        box,
        disc,
        diamond,
        box & (largest > radius - width),
        disc & (square > (radius - width) * (radius - width + 1)),
        diamond & (total > radius - width),
        box & (2 * np.minimum(down, across) < width),
        box & (2 * np.abs(down - across) < width),
    ]
