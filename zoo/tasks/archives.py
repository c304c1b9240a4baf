"""Classification of what a publisher's archive holds: what such tasks share."""

import abc
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from zoo.registry import did_you_mean
from zoo.tasks.base import SPLITS, Split
from zoo.tasks.shortcuts import ShortcutTask, length_percentiles

if TYPE_CHECKING:
    from zoo.data.builders.archives import ArchiveBuilder
    from zoo.data.source import RaggedSource, Source


class Part(NamedTuple):
    """Rows of a stored split, in the order of TFDS' catalogue: from `first` to `last` percent of them."""

    stored: str
    first: int = 0
    last: int = 100


class ArchiveTask(ShortcutTask):
    """A task whose rows of bytes are prepared from an archive. A subclass sets `info`, names its sources and loads.

    Args:
      source: which of the task's ways to split.
      data_dir: the folder of all data; None for `$ZOO_DATA` or `~/.cache/zoo`. The archive is looked for in it and in
        its `downloads/manual`.
      archive: where the archive is, or the folder that is in it, if not there. Read only to prepare the data.

    Raises:
      ValueError: unknown source.
    """

    parts: ClassVar[Mapping[str, Mapping[Split, Part]]]
    """By source and split, which rows they are."""

    def __init__(self, source: str, data_dir: str | Path | None, archive: str | Path | None):
        if source not in self.parts:
            raise ValueError(f"{self.name} has no source {source!r}. {did_you_mean(source, self.parts)}")
        self.source, self._data_dir, self._archive = source, data_dir, archive
        self._stored: dict[str, RaggedSource] = {}
        self._splits: dict[str, Source] = {}

    @abc.abstractmethod
    def _builder(self) -> type["ArchiveBuilder"]:
        """What prepares the data."""

    @abc.abstractmethod
    def _source(self, rows: "RaggedSource", first: int, last: int, *, tokens: bool = False) -> "Source":
        """Some of the stored rows as models read them, or as tokens in any case."""

    @property
    def folder(self) -> Path:
        """Where the prepared data lies."""
        from zoo.data.builders.archives import dataset_folder

        return dataset_folder(self._builder(), self._data_dir)

    def is_prepared(self) -> bool:
        """Whether the data is there and whole: all files, with the right sizes."""
        from zoo.data.manifest import DataError

        try:
            self._manifest()
        except DataError:
            return False
        return True

    def prepare(self, *, progress: bool = True, workers: int | None = None) -> Path:
        """Reads and checks the archive and writes what is needed of it; does nothing where the data is whole.

        Raises:
          DataError: the archive is missing, damaged or another; damaged files, or no room on the disk. The message says
            what to do.
        """
        from zoo.data.builders.archives import prepare

        return prepare(self._builder(), self._data_dir, archive=self._archive, progress=progress)

    def verify(self) -> None:
        """Computes the SHA-256 of every file.

        Raises:
          DataError: a file differs from the manifest; the message names it.
        """
        self._manifest(verify=True)

    def split(self, name: Split) -> "Source":
        """The examples of a split, in memory; read once per task object.

        Raises:
          ValueError: unknown split.
          DataError: the data is not prepared, or damaged.
        """
        if name not in SPLITS:
            raise ValueError(f"{self.name} has no split {name!r}; there are {', '.join(SPLITS)}.")
        if name not in self._splits:
            self._splits[name] = self._source(*self._rows(name))
        return self._splits[name]

    def fingerprint(self) -> str:
        """The start of the SHA-256 over the source and the checksums of the stored examples.

        Raises:
          DataError: the data is not prepared, or damaged.
        """
        stored = self._manifest()["splits"]
        text = [f"{name} {self.parts[self.source][name]} {stored[self._part(name).stored]}" for name in SPLITS]
        return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]

    def cautions(self) -> list[str]:
        """What must be said with every result: that the archive is not known to be its publisher's.

        Raises:
          DataError: the data is not prepared, or damaged.
        """
        archive = self._manifest()["archive"]
        if archive["verified"]:
            return []
        if self._builder().ARCHIVE.sha256 is None:
            why = "its publisher names no checksum"
        else:
            why = "its checksum is not the publisher's" if "sha256" in archive else "a folder has no checksum"
        return [f"unverified data: {archive['name']} passed the checks of its content, but {why}"]

    def describe(self) -> dict[str, Any]:
        """Path, archive and whether it is verified, cautions, checksum, and by split size, lengths and label counts.

        Raises:
          DataError: the data is not prepared, or damaged.
        """
        manifest = self._manifest()
        return {
            "dataset": f"{self.name}/{self.source}",
            "archive": manifest["archive"],
            "cautions": self.cautions(),
            "max_len": self.info.max_len,
            "splits": {name: self._summary(name) for name in SPLITS},
            "path": str(self.folder),
            "bytes": sum(entry["bytes"] for entry in manifest["files"].values()),
            "checksum": manifest["digest"],
        }

    def _summary(self, split: Split) -> dict[str, Any]:
        rows, first, last = self._rows(split)
        part = self._part(split)
        return {
            "examples": last - first,
            "from": f"{part.stored}[{part.first}%:{part.last}%]",
            "lengths": length_percentiles(rows.lengths[first:last]),
            "cut": int((rows.lengths[first:last] > self.info.max_len).sum()),
            "labels": np.bincount(rows.labels[first:last], minlength=self.info.num_classes).tolist(),
        }

    def _part(self, split: Split) -> Part:
        return self.parts[self.source][split]

    def _rows(self, split: Split) -> tuple["RaggedSource", int, int]:
        """The stored rows, and which of them are the split's."""
        from zoo.data.builders.archives import prepare_command
        from zoo.data.builders.base import read_ragged

        part = self._part(split)
        if part.stored not in self._stored:
            self._manifest(verify=not self._stored)  # to the last bit, once
            mend = prepare_command(self._builder())
            self._stored[part.stored] = read_ragged(self.folder, part.stored, mend=mend)
        rows = self._stored[part.stored]
        return rows, len(rows) * part.first // 100, len(rows) * part.last // 100

    def _tokens(self, split: Split) -> Any:
        return self._source(*self._rows(split), tokens=True)

    def _manifest(self, *, verify: bool = False) -> dict[str, Any]:
        from zoo.data.builders.archives import open_dataset

        return open_dataset(self._builder(), self._data_dir, verify=verify)
