"""Density estimation of CIFAR-10's images (Krizhevsky 2009)."""

from pathlib import Path
from typing import Any

import numpy as np

from zoo.registry import register_task
from zoo.tasks.base import SPLITS, Split
from zoo.tasks.images import ImageDensityTask

_VALIDATION = 5_000


@register_task(
    "density/cifar10",
    title="Density of CIFAR-10's images",
    inputs=("image",),
    notes="Reads the publisher's cifar-10-binary.tar.gz. 45,000 images for training.",
)
class Cifar10(ImageDensityTask):
    """32 x 32 pixels of three channels, 256 values each.

    The last 5,000 of the publisher's 50,000 training images are for validation; the test split is the publisher's.

    Args:
      source: "full".
      max_len: None, or the number of rows.
      data_dir: where `cifar-10-binary.tar.gz`, or the folder `cifar-10-batches-bin` that is in it, lies or is to lie;
        None for the default.
      seed: unused; nothing is drawn.
      size: 32, or 16 or 8: means of squares of 2 x 2 or 4 x 4 pixels, rounded down.

    Raises:
      ValueError: unknown source or size, or another `max_len`.
    """

    name = "density/cifar10"
    sources = ("full",)

    def __init__(
        self,
        source: str = "full",
        max_len: int | None = None,
        data_dir: str | Path | None = None,
        seed: int = 0,
        *,
        size: int = 32,
    ):
        del seed
        from zoo.data.paths import data_dir as folder

        if source not in self.sources:
            raise ValueError(f"{self.name} has no source {source!r}; there is {', '.join(self.sources)}.")
        if size not in (32, 16, 8):
            raise ValueError(f"{self.name}: size must be 32, 16 or 8, got {size!r}.")
        self.source, self.size, self.data_dir = source, size, folder(data_dir)
        super().__init__((size, size, 3), 256, max_len)

    def is_prepared(self) -> bool:
        """Whether the file is there."""
        from zoo.data.cifar10 import find_cifar10
        from zoo.data.manifest import DataError

        try:
            find_cifar10(self.data_dir)
        except DataError:
            return False
        return True

    def prepare(self, *, progress: bool = True, workers: int | None = None) -> Path:
        """Fetches the file where it is missing and reads the images, so that what is wrong is said now.

        Returns:
          The file.

        Raises:
          DataError: it is missing and cannot be fetched, damaged or not what it should be.
        """
        from zoo.data.cifar10 import CIFAR10

        path = CIFAR10.get(self.data_dir, progress=progress)
        self._read_all()
        return path

    def verify(self) -> None:
        """Reads the images again.

        Raises:
          DataError: the file is missing, damaged or not what it should be.
        """
        self._images.clear()
        self._read_all()

    def _read_all(self) -> None:
        for name in SPLITS:
            self.images(name)

    def cautions(self) -> list[str]:
        """That the file is not known to be the publisher's, where it is not."""
        from zoo.data.cifar10 import CIFAR10, find_cifar10

        path = find_cifar10(self.data_dir)
        if CIFAR10.is_published(path):
            return []
        return [f"unverified data: {path.name} is not the publisher's by its checksum"]

    def describe(self) -> dict[str, Any]:
        """Sizes, values, checksum, the file, and whether it is the publisher's.

        Raises:
          DataError: see `prepare`.
        """
        from zoo.data.cifar10 import CIFAR10, find_cifar10

        path = find_cifar10(self.data_dir)
        origin = {
            True: "the publisher's archive",
            False: "not the publisher's archive: its checksum differs",
            None: "an unpacked folder",
        }
        return {**super().describe(), "path": str(path), "origin": origin[CIFAR10.is_published(path)]}

    def _load(self, name: Split) -> np.ndarray:
        from zoo.data.cifar10 import find_cifar10, read_cifar10

        path = find_cifar10(self.data_dir)
        if name == "test":
            return _shrunk(read_cifar10(path, "test")[0], self.size)
        images = _shrunk(read_cifar10(path, "train")[0], self.size)
        self._images["train"], self._images["validation"] = images[:-_VALIDATION], images[-_VALIDATION:]
        return self._images[name]


def _shrunk(images: np.ndarray, size: int) -> np.ndarray:
    """[N, size, size, C], each pixel the mean of a square, rounded down."""
    side = images.shape[1] // size
    if side == 1:
        return images
    squares = images.reshape(len(images), size, side, size, side, -1)
    return (squares.sum((2, 4), dtype=np.uint32) // side**2).astype(np.uint8)
