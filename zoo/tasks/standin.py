"""Classification of examples that are made on the spot, as stand-ins for data that has to be fetched."""

import abc
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from zoo.registry import did_you_mean
from zoo.tasks.base import SPLITS, Split
from zoo.tasks.shortcuts import ShortcutTask, length_percentiles

if TYPE_CHECKING:
    from zoo.data.pairs import PairSource
    from zoo.data.rows import ByteSource, PixelSource


class StandInTask(ShortcutTask):
    """A task of tokens that need no file. A subclass sets `info`, names its sources, and makes the examples (`_make`).

    Args:
      source: which of the task's data sets.
      data_dir: unused; nothing is stored.
      seed: of the draws; another seed is another data set.

    Raises:
      ValueError: unknown source, or a seed out of range.
    """

    stands_for: ClassVar[str]
    """The task that it stands in for."""

    origin: ClassVar[str]
    """Where the examples come from."""

    def __init__(self, source: str, data_dir: str | Path | None, seed: int):
        if source not in self.sources:
            raise ValueError(f"{self.name} has no source {source!r}. {did_you_mean(source, self.sources)}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"task.seed must lie in 0..2**64-1, got {seed}.")
        self.source, self.seed, self._data_dir = source, seed, data_dir
        self._splits: dict[str, ByteSource | PixelSource | PairSource] = {}

    @abc.abstractmethod
    def _make(self, name: Split) -> "ByteSource | PixelSource | PairSource":
        """The examples of a split."""

    def is_prepared(self) -> bool:
        """True: there is nothing to prepare."""
        return True

    def prepare(self, *, progress: bool = True, workers: int | None = None) -> Path:
        """Does nothing, and returns the folder of all data."""
        from zoo.data.paths import data_dir

        return data_dir(self._data_dir)

    def verify(self) -> None:
        """Does nothing: no file can be damaged."""

    def split(self, name: Split) -> "ByteSource | PixelSource | PairSource":
        """The examples of a split, made once per task object.

        Raises:
          ValueError: unknown split.
        """
        if name not in SPLITS:
            raise ValueError(f"{self.name} has no split {name!r}; there are {', '.join(SPLITS)}.")
        if name not in self._splits:
            self._splits[name] = self._make(name)
        return self._splits[name]

    def fingerprint(self) -> str:
        """The start of the SHA-256 over the examples and labels of all splits."""
        digest = hashlib.sha256()
        for name in SPLITS:
            source = self.split(name)
            batch = source.gather(np.arange(len(source)), int(source.lengths.max()))
            for part, kind in (("inputs", "<i2"), ("mask", "u1"), ("label", "<i4")):
                digest.update(batch[part].astype(kind).tobytes())
        return digest.hexdigest()[:16]

    def cautions(self) -> list[str]:
        """That it is not the task that it stands in for."""
        return [f"a stand-in that needs no download; no result on it says anything of {self.stands_for}"]

    def describe(self) -> dict[str, Any]:
        """Origin, seed, cautions, checksum, and by split size, lengths and label counts."""
        return {
            "dataset": f"{self.name}/{self.source}",
            "origin": self.origin,
            "seed": self.seed,
            "cautions": self.cautions(),
            "splits": {name: self._summary(name) for name in SPLITS},
            "checksum": self.fingerprint(),
        }

    def _summary(self, split: Split) -> dict[str, Any]:
        source = self.split(split)
        return {
            "examples": len(source),
            "lengths": length_percentiles(source.lengths),
            "labels": np.bincount(source.labels, minlength=self.info.num_classes).tolist(),
        }
