"""LRA Text: whether a film review is positive, byte by byte."""

from pathlib import Path
from typing import TYPE_CHECKING

from zoo.registry import register_task
from zoo.tasks.archives import ArchiveTask, Part
from zoo.tasks.base import TaskInfo

if TYPE_CHECKING:
    from zoo.data.rows import ByteSource
    from zoo.data.source import RaggedSource

_MAX_LEN = 1_000


@register_task(
    "lra/text",
    title="Sentiment of film reviews, byte by byte (LRA Text, IMDB)",
    paper="2011.04006",
    inputs=("tokens",),
    test_args={"source": "smoke"},
    notes="Reads the publisher's aclImdb_v1.tar.gz. Sources: original (validation is the test split, as there), clean "
    "(validation out of training), smoke (a small part).",
)
class Text(ArchiveTask):
    """LRA's byte-level text classification (Tay et al. 2020, arXiv:2011.04006) on IMDB (Maas et al. 2011).

    A token is the byte's value plus 1, and 0 is padding: 257 ids. The first `max_len` bytes of a review are read, as
    they are: upper and lower case, `<br />` and all; nothing is put before or after them. The original code reads 1,000
    bytes; its paper reports the best of 1,000 to 4,000 by model, and later work reads 4,000 or 4,096 bytes or
    characters, so that figures are to be compared at one length only.

    Rows have the order of TFDS' `imdb_reviews`, which mixes the labels.

    Args:
      source: "original" (25,000 for training, and the 25,000 test reviews for validation as well, as in the original:
        a choice by validation is one by test), "clean" (the last 2,500 training reviews are for validation; other
        reviews of a film may be among the others) or "smoke" (2,000, 500 and 500 of these).
      max_len: bytes that are read; None for 1,000.
      data_dir: where `aclImdb_v1.tar.gz` and the prepared data lie, or come to lie; None for the default.
      seed: unused; nothing is drawn.
      archive: the path of `aclImdb_v1.tar.gz` or of the folder in it, where it lies elsewhere; or an address of it.

    Raises:
      ValueError: unknown source, or `max_len` below 1.
    """

    name = "lra/text"
    dataset = "lra_text/1.0.0"
    sources = ("original", "clean", "smoke")
    parts = {  # noqa: RUF012
        "original": {"train": Part("train"), "validation": Part("test"), "test": Part("test")},
        "clean": {"train": Part("train", 0, 90), "validation": Part("train", 90), "test": Part("test")},
        "smoke": {"train": Part("train", 0, 8), "validation": Part("train", 98), "test": Part("test", 0, 2)},
    }

    def __init__(
        self,
        source: str = "original",
        max_len: int | None = None,
        data_dir: str | Path | None = None,
        seed: int = 0,
        *,
        archive: str | Path | None = None,
    ):
        del seed
        super().__init__(source, data_dir, archive)
        if max_len is not None and max_len < 1:
            raise ValueError(f"max_len must be at least 1, got {max_len}.")
        self.info = TaskInfo("tokens", vocab_size=257, num_classes=2, max_len=max_len or _MAX_LEN)

    def cautions(self) -> list[str]:
        """As those of `ArchiveTask`; and of "original", that validation is the test split."""
        if self.source != "original":
            return super().cautions()
        return [
            *super().cautions(),
            "validation is the test split, as in the original: the best on it is chosen by test",
        ]

    def _builder(self):
        from zoo.data.builders.lra import LraText

        return LraText

    def _published(self):
        from zoo.data.imdb import IMDB

        return IMDB

    def _source(self, rows: "RaggedSource", first: int, last: int, *, tokens: bool = False) -> "ByteSource":
        from zoo.data.rows import ByteSource

        del tokens
        return ByteSource(rows.tokens, rows.offsets, rows.labels).part(first, last)
