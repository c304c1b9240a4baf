"""LRA Retrieval: whether one of two papers cites the other, byte by byte."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.registry import register_task
from zoo.tasks.archives import ArchiveTask, Part
from zoo.tasks.base import Split, TaskInfo

if TYPE_CHECKING:
    from zoo.data.pairs import PairSource
    from zoo.data.source import RaggedSource

_MAX_LEN = 4_000
_VOCAB = 257


class PairTask(ArchiveTask):
    """Pairs of documents as bytes, out of an archive: what `lra/retrieval` and its stand-ins share.

    Inputs and mask are [B, T, 2]. A token is the byte's value plus 1, and 0 is padding; the first `max_len` bytes of
    each document are read, and nothing is put before or after them.

    Args:
      source, data_dir, archive: see `ArchiveTask`.
      max_len: bytes that are read of each document.

    Raises:
      ValueError: unknown source, or `max_len` is not from 1 to 10,000, which is what is kept of a document.
    """

    def __init__(self, source: str, max_len: int | None, data_dir: str | Path | None, archive: str | Path | None):
        super().__init__(source, data_dir, archive)
        self._pairs: dict[str, Any] = {}
        length = _MAX_LEN if max_len is None else max_len
        if not 1 <= length <= 10_000:
            raise ValueError(f"max_len must be from 1 to 10000, got {max_len}.")
        self.info = TaskInfo("tokens", vocab_size=_VOCAB, num_classes=2, max_len=length, pairs=True)

    def _rows(self, split: Split) -> tuple[Any, int, int]:
        """The stored pairs, and which of them are the split's."""
        from zoo.data.pairs import DOCUMENTS, NUMBERS, PairSource

        part = self._part(split)
        if part.stored not in self._pairs:
            rows = self._read(part.stored)
            pairs = rows.tokens.view(NUMBERS).reshape(-1, 2)
            self._pairs[part.stored] = PairSource(self._read(DOCUMENTS), pairs, rows.labels)
        rows = self._pairs[part.stored]
        return rows, len(rows) * part.first // 100, len(rows) * part.last // 100

    def cut(
        self, splits: dict[str, "RaggedSource"], *, examples: int | None, max_len: int | None
    ) -> dict[str, "RaggedSource"]:
        """Fewer training pairs, and of the documents those that are left in a pair, or less of each."""
        import numpy as np

        from zoo.data.pairs import DOCUMENTS, NUMBERS
        from zoo.data.source import RaggedSource

        documents = splits[DOCUMENTS]
        pairs = super().cut({k: v for k, v in splits.items() if k != DOCUMENTS}, examples=examples, max_len=None)
        numbers = {name: rows.tokens.view(NUMBERS) for name, rows in pairs.items()}
        used = np.unique(np.concatenate(list(numbers.values())))
        width = 2 * NUMBERS.itemsize
        cut = {
            name: RaggedSource(
                np.searchsorted(used, numbers[name]).astype(NUMBERS).view(np.uint8),
                width * np.arange(len(rows) + 1),
                rows.labels,
            )
            for name, rows in pairs.items()
        }
        kept = RaggedSource.from_rows(
            [documents.tokens[documents.offsets[i] : documents.offsets[i + 1]][:max_len] for i in used],
            documents.labels[used],
        )
        return {**cut, DOCUMENTS: kept}

    def _source(self, rows: Any, first: int, last: int, *, tokens: bool = False) -> "PairSource":
        from zoo.data.pairs import PairSource

        del tokens
        return PairSource(rows.documents, rows.pairs[first:last], rows.labels[first:last])


@register_task(
    "lra/retrieval",
    title="Whether one of two papers cites the other, byte by byte (LRA Retrieval, AAN)",
    paper="2011.04006",
    inputs=("tokens",),
    test_args={"source": "smoke"},
    notes="Reads new_aan_pairs.{train,eval,test}.tsv of the release, in a folder tsv_data or out of lra_release.gz. "
    "Sources: original, smoke (a small part).",
)
class Retrieval(PairTask):
    """LRA's byte-level document retrieval (Tay et al. 2020, arXiv:2011.04006) on the ACL Anthology Network.

    147,086 pairs for training, 18,090 for validation and 17,437 for test, every one of them evaluated (the original
    leaves out the last batch). Quotes in the files mean nothing; readers that take them to mean something lose rows.

    How a model compares the two documents moves the figure by 20 points: the original code reads [a, b] alone and
    trains for 5,000 updates with 8,000 of warm-up (53 to 60 %), later code [a, b, a * b, a - b] and for 30,000 and more
    (76 to 91 %). Figures are to be compared within one protocol only.

    Args:
      source: "original", or "smoke" (the first 2 % of the training pairs and 5 % of the others).
      max_len: bytes that are read of each document, up to 10,000; None for 4,000.
      data_dir: where the files and the prepared data lie; None for the default.
      seed: unused; nothing is drawn.
      archive: the path of the folder `tsv_data`, or of `lra_release.gz`, where it lies elsewhere; or the address of the
        latter (8 GB), which is fetched only where it is named here.

    Raises:
      ValueError: unknown source, or `max_len` is out of range.
    """

    name = "lra/retrieval"
    dataset = "lra_retrieval/1.0.0"
    sources = ("original", "smoke")
    parts = {  # noqa: RUF012
        "original": {name: Part(name) for name in ("train", "validation", "test")},
        "smoke": {"train": Part("train", 0, 2), "validation": Part("validation", 0, 5), "test": Part("test", 0, 5)},
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
        super().__init__(source, max_len, data_dir, archive)

    def _builder(self):
        from zoo.data.builders.pairs import LraRetrieval

        return LraRetrieval

    def _published(self):
        from zoo.data.pairs import AAN

        return AAN
