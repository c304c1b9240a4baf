"""The data sets of LRA's Text and Image tasks."""

from pathlib import Path

import tensorflow_datasets as tfds

from zoo.data.builders.archives import ArchiveBuilder, Rows
from zoo.data.cifar10 import CIFAR10, read_cifar10
from zoo.data.grey import tf_grey
from zoo.data.imdb import IMDB, label_of, read_imdb


class LraText(ArchiveBuilder):
    """IMDB reviews as bytes, whole."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    ARCHIVE, TASK, NUM_CLASSES = IMDB, "lra/text", 2
    TEXT = "IMDB reviews (Maas et al. 2011): the UTF-8 bytes of each, labelled 0 (negative) or 1 (positive)."

    def read(self, path: Path) -> dict[str, Rows]:
        """The reviews, by the keys of TFDS' `imdb_reviews`."""
        return {
            split: Rows(list(texts.values()), [label_of(name) for name in texts], list(texts))
            for split, texts in read_imdb(path).items()
        }


class LraImage(ArchiveBuilder):
    """CIFAR-10 in grey, 1,024 pixels a row."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    ARCHIVE, TASK, NUM_CLASSES = CIFAR10, "lra/image", 10
    TEXT = "CIFAR-10 (Krizhevsky 2009) as tf.image.rgb_to_grayscale makes it grey: 32 x 32 pixels, row by row."

    def read(self, path: Path) -> dict[str, Rows]:
        """The images, by the keys of TFDS' `cifar10`: their number in the split."""
        splits = {}
        for split in ("train", "test"):
            images, labels = read_cifar10(path, split)
            pixels = tf_grey(images).reshape(len(images), -1)
            splits[split] = Rows([row.tobytes() for row in pixels], labels.tolist(), range(len(pixels)))
        return splits
