"""Datasets of bytes and of pixels in memory, as LRA's models read them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.data.source import RaggedSource


class ByteSource(RaggedSource):
    """Texts as bytes: a token is the byte's value plus 1, so that 0 is padding and nothing else.

    Takes what `RaggedSource` does; `tokens` are the bytes themselves, uint8.
    """

    def gather(self, indices: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Returns a padded batch, see `zoo.data.source.Source.gather`."""
        batch = super().gather(indices, length)
        batch["inputs"] += batch["mask"]
        return batch


class PixelSource:
    """Grey images as sequences of pixels, row by row.

    Args:
      pixels: uint8 [N, L].
      labels: integer [N], from 0.
      scale: None for tokens, whose id is the pixel's value; or mean and deviation: (value - mean) / deviation, scalars.
      black_is_padding: leave black pixels out of the mask, as the original code does by accident.

    Raises:
      ValueError: the shapes do not fit one another, or there are no images.
      TypeError: `pixels` are no bytes.
    """

    def __init__(
        self,
        pixels: Any,
        labels: Any,
        *,
        scale: tuple[float, float] | None = None,
        black_is_padding: bool = False,
    ):
        self.pixels, self.labels = np.asarray(pixels), np.asarray(labels).astype(np.int32)
        if self.pixels.dtype != np.uint8:
            raise TypeError(f"pixels must be uint8, got {self.pixels.dtype}.")
        if self.pixels.ndim != 2 or not self.pixels.size or self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(
                f"pixels must be [N, L] and labels [N], at least one, got {self.pixels.shape} and {self.labels.shape}."
            )
        self._describe(self.pixels.shape[1], scale, black_is_padding)

    def _describe(self, length: int, scale: tuple[float, float] | None, black_is_padding: bool) -> None:
        self.scale, self.black_is_padding = scale, black_is_padding
        self.lengths = np.full(len(self.labels), length, np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """The pixels themselves of some images, uint8 [b, L]."""
        return self.pixels[indices]

    def gather(self, indices: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Returns a padded batch, see `zoo.data.source.Source.gather`."""
        pixels = self.rows(indices)[:, :length]
        mask = np.zeros((len(pixels), length), bool)
        inputs = np.zeros(mask.shape, np.int32 if self.scale is None else np.float32)
        mask[:, : pixels.shape[1]] = pixels > 0 if self.black_is_padding else True
        if self.scale is None:
            inputs[:, : pixels.shape[1]] = pixels
        else:
            mean, deviation = self.scale
            inputs[:, : pixels.shape[1]] = (pixels.astype(np.float32) - np.float32(mean)) / np.float32(deviation)
        return {"inputs": inputs, "mask": mask, "label": self.labels[indices]}


class LazyPixelSource(PixelSource):
    """Grey images that are read when they are asked for, for sets that do not fit in memory.

    Args:
      read: `read(indices)` returns the rows of these images, uint8 [b, L]. Grain's worker processes need it picklable.
      length: L.
      labels: integer [N], from 0.
      scale, black_is_padding: as for `PixelSource`.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], np.ndarray],
        length: int,
        labels: Any,
        *,
        scale: tuple[float, float] | None = None,
        black_is_padding: bool = False,
    ):
        self._read, self.labels = read, np.asarray(labels).astype(np.int32)
        self._describe(length, scale, black_is_padding)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """The pixels themselves of some images, uint8 [b, L]."""
        return self._read(indices)
