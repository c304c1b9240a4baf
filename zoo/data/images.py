"""Datasets of whole images."""

from typing import Any

import numpy as np


class ImageSource:
    """Images of one size in memory, without labels.

    Args:
      images: integer [N, H, W, C]; uint8 is the cheapest.

    Raises:
      ValueError: the shape is another, or there are no images.
      TypeError: the dtype is no integer.
    """

    lengths = None

    def __init__(self, images: Any):
        self.images = np.asarray(images)
        if self.images.ndim != 4 or not self.images.size:
            raise ValueError(f"images must be [N, H, W, C], at least one, got shape {self.images.shape}.")
        if self.images.dtype.kind not in "iu":
            raise TypeError(f"images must be integers, got {self.images.dtype}.")

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, indices: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Returns a batch of whole images, `inputs` int32 [b, H, W, C]; see `zoo.data.source.Source.gather`."""
        del length
        return {"inputs": self.images[indices].astype(np.int32)}
