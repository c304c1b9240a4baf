"""Density estimation of images: what its tasks share."""

import abc
import hashlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.tasks.base import SPLITS, Split, Task, TaskInfo

if TYPE_CHECKING:
    import jax

    from zoo.data.images import ImageSource

_AT_ONCE = 1_000


class ImageDensityTask(Task):
    """Bits per dimension of images: -log2 p(image) / (H W C), exact, less is better.

    A model gives logits of all values, [B, H, W, C, V], or of one channel of each image and which it is, as
    `zoo.models.axial_transformer.AxialTransformer` does in training; the loss is then C times that channel's. A
    subclass says what the images are (`_load`).

    Args:
      image_shape: H, W and C.
      num_values: V; values are 0 to V - 1.
      max_len: None, or H.

    Raises:
      ValueError: another `max_len`: images are neither cut nor padded.
    """

    metric = "bpd"
    lower_is_better = True

    def __init__(self, image_shape: tuple[int, int, int], num_values: int, max_len: int | None):
        if max_len not in (None, image_shape[0]):
            raise ValueError(f"{self.name} has images of {image_shape[0]} rows, which max_len={max_len} cannot change.")
        self.info = TaskInfo(
            "image",
            vocab_size=None,
            num_classes=0,
            max_len=image_shape[0],
            output="image",
            image_shape=image_shape,
            num_values=num_values,
        )
        self._images: dict[str, np.ndarray] = {}
        self._counted: np.ndarray | None = None

    @abc.abstractmethod
    def _load(self, name: Split) -> np.ndarray:
        """The images of a split, uint8 [N, H, W, C].

        Raises:
          DataError: they are not there.
        """

    def images(self, name: Split) -> np.ndarray:
        """The images of a split, uint8 [N, H, W, C]; loaded once per task object.

        Raises:
          ValueError: unknown split.
          DataError: they are not there.
        """
        if name not in SPLITS:
            raise ValueError(f"{self.name} has no split {name!r}; there are {', '.join(SPLITS)}.")
        if name not in self._images:
            self._images[name] = self._load(name)
        return self._images[name]

    def split(self, name: Split) -> "ImageSource":
        """The images of a split; raises as `images` does."""
        from zoo.data.images import ImageSource

        return ImageSource(self.images(name))

    def fingerprint(self) -> str:
        """The start of the SHA-256 over the images of all splits."""
        digest = hashlib.sha256()
        for name in SPLITS:
            images = self.images(name)
            digest.update(f"{name} {images.shape}\n".encode() + np.ascontiguousarray(images).data)
        return digest.hexdigest()[:16]

    def arguments(self, batch: dict[str, "jax.Array"]) -> dict[str, Any]:
        """Nothing besides the images: they have no padding."""
        del batch
        return {}

    def weights(self, batch: dict[str, "jax.Array"]) -> "jax.Array":
        """[B, H, W, C]: 1 for every value of the images that count."""
        import jax.numpy as jnp

        return jnp.broadcast_to(batch["weight"][:, None, None, None], batch["inputs"].shape)

    def sums(self, outputs: Any, batch: dict[str, "jax.Array"]) -> dict[str, "jax.Array"]:
        """Sums of nats ("loss") and of bits ("bpd") over all values; their number is the weight."""
        import jax.numpy as jnp
        import optax

        images, weight = batch["inputs"], batch["weight"]
        if isinstance(outputs, tuple):
            logits, channel = outputs
            label = jnp.take_along_axis(images, channel[:, None, None, None], axis=-1)[..., 0]
            times = images.shape[-1]
        else:
            logits, label, times = outputs, images, 1
        loss = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), label)
        total = times * (loss.reshape(len(loss), -1).sum(-1) * weight).sum()
        return {"loss": total, "bpd": total / math.log(2), "weight": self.weights(batch).sum()}

    def baselines(self, split: Split = "test") -> dict[str, float]:
        """Bits per dimension of `split` where every value is drawn by itself.

        Returns:
          "histogram": by how often each value came in its channel in training (every value counted once more).
          "pixel_histogram": by how often it came in its channel at its place.
        """
        counts = self._counts()
        found = {}
        for name, smoothed in {"histogram": counts.sum(0, keepdims=True) + 1, "pixel_histogram": counts + 1}.items():
            bits = -np.log2(smoothed / smoothed.sum(-1, keepdims=True))
            found[name] = float((bits * self._histogram(split)).sum() / self.images(split).size)
        return found

    def describe(self) -> dict[str, Any]:
        """Sizes, values and checksum; a subclass adds the origin."""
        return {
            "dataset": f"{self.name}/{self.source}",
            "splits": {name: len(self.images(name)) for name in SPLITS},
            "image_shape": list(self.info.image_shape or ()),
            "num_values": self.info.num_values,
            "checksum": self.fingerprint(),
        }

    def _counts(self) -> np.ndarray:
        if self._counted is None:
            self._counted = self._histogram("train")
        return self._counted

    def _histogram(self, name: Split) -> np.ndarray:
        """How often each value comes at each place of each channel, [H W, C, V]."""
        assert self.info.image_shape is not None
        assert self.info.num_values is not None
        height, width, channels = self.info.image_shape
        places, values = height * width * channels, self.info.num_values
        counts = np.zeros(places * values, np.int64)
        for part in _parts(self.images(name)):
            flat = part.reshape(len(part), -1).astype(np.int64) + values * np.arange(places)
            counts += np.bincount(flat.ravel(), minlength=places * values)
        return counts.reshape(height * width, channels, values)


def _parts(images: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(images), _AT_ONCE):
        yield images[first : first + _AT_ONCE]
