"""LRA Image: what a small grey picture shows, pixel by pixel."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zoo.registry import register_task
from zoo.tasks.archives import ArchiveTask, Part
from zoo.tasks.base import TaskInfo

if TYPE_CHECKING:
    from zoo.data.rows import PixelSource
    from zoo.data.source import RaggedSource

_PIXELS = 1_024
# Mean and deviation by which S4 and S5 scale pixels (state-spaces/s4 at e757cef).
_SCALE = (122.6, 61.0)


@register_task(
    "lra/image",
    title="Classification of grey images, pixel by pixel (LRA Image, CIFAR-10)",
    paper="2011.04006",
    inputs=("tokens", "scalars"),
    test_args={"source": "smoke"},
    notes="Reads the publisher's cifar-10-binary.tar.gz. Sources: original (45,000/5,000/10,000), smoke (a part).",
)
class Image(ArchiveTask):
    """LRA's image classification (Tay et al. 2020, arXiv:2011.04006) on CIFAR-10 (Krizhevsky 2009).

    Images are made grey as TensorFlow does (`zoo.data.grey.tf_grey`) and read row by row: 1,024 pixels, 10 classes. As
    tokens, a pixel's id is its value: 256 ids, none of them padding. Nothing is augmented.

    The original code takes every token 0 for padding, and so leaves black pixels (0.2 % of them) out of attention. Here
    every pixel is real, unless `black_is_padding`.

    Args:
      source: "original" (45,000 training images; the last 5,000 in TFDS' order for validation, as there; all 10,000
        test images, of which the original drops the last 16) or "smoke" (4,000, 1,000 and 500 of these).
      max_len: None or 1,024.
      data_dir: where `cifar-10-binary.tar.gz` and the prepared data lie, or come to lie; None for the default.
      seed: unused; nothing is drawn.
      inputs: "tokens", or "scalars": (value - 122.6) / 61, as S4 and S5 read them.
      black_is_padding: leave black pixels out of the mask.
      archive: the path of `cifar-10-binary.tar.gz` or of the folder in it, where it lies elsewhere; or an address
        of it.

    Raises:
      ValueError: unknown source or inputs, or another `max_len`.
    """

    name = "lra/image"
    dataset = "lra_image/1.0.0"
    sources = ("original", "smoke")
    parts = {  # noqa: RUF012
        "original": {"train": Part("train", 0, 90), "validation": Part("train", 90), "test": Part("test")},
        "smoke": {"train": Part("train", 0, 8), "validation": Part("train", 98), "test": Part("test", 0, 5)},
    }

    def __init__(
        self,
        source: str = "original",
        max_len: int | None = None,
        data_dir: str | Path | None = None,
        seed: int = 0,
        *,
        inputs: Literal["tokens", "scalars"] = "tokens",
        black_is_padding: bool = False,
        archive: str | Path | None = None,
    ):
        del seed
        super().__init__(source, data_dir, archive)
        if max_len not in (None, _PIXELS):
            raise ValueError(f"lra/image has {_PIXELS} pixels, which max_len={max_len} cannot change.")
        if inputs not in ("tokens", "scalars"):
            raise ValueError(f"lra/image: inputs must be 'tokens' or 'scalars', got {inputs!r}.")
        self._scale = None if inputs == "tokens" else _SCALE
        self._black_is_padding = bool(black_is_padding)
        self.info = TaskInfo(inputs, vocab_size=256 if inputs == "tokens" else None, num_classes=10, max_len=_PIXELS)

    def _builder(self):
        from zoo.data.builders.lra import LraImage

        return LraImage

    def _published(self):
        from zoo.data.cifar10 import CIFAR10

        return CIFAR10

    def _source(self, rows: "RaggedSource", first: int, last: int, *, tokens: bool = False) -> "PixelSource":
        from zoo.data.rows import PixelSource

        pixels, labels = rows.tokens.reshape(-1, _PIXELS)[first:last], rows.labels[first:last]
        if tokens:
            return PixelSource(pixels, labels)
        return PixelSource(pixels, labels, scale=self._scale, black_is_padding=self._black_is_padding)
