"""Classification of what a publisher's archive holds: what such tasks share."""

import abc
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from zoo.data.manifest import DataError
from zoo.registry import did_you_mean
from zoo.tasks.base import SPLITS, Split
from zoo.tasks.shortcuts import ShortcutTask, length_percentiles

if TYPE_CHECKING:
    from zoo.data.archives import Archive
    from zoo.data.builders.archives import ArchiveBuilder
    from zoo.data.prepared import Prepared
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
        its `downloads/manual` and `downloads`, and fetched into the last.
      archive: where the archive is, or the folder that is in it, if not there; or the address to fetch it from. Read
        only to prepare the data.

    Raises:
      ValueError: unknown source.
    """

    parts: ClassVar[Mapping[str, Mapping[Split, Part]]]
    """By source and split, which rows they are."""

    dataset: ClassVar[str]
    """Name and version of the builder's data set, so that reading a pack of it does not import TFDS."""

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
    def _published(self) -> "Archive":
        """What is known of the publisher's archive."""

    @abc.abstractmethod
    def _source(self, rows: "RaggedSource", first: int, last: int, *, tokens: bool = False) -> "Source":
        """Some of the stored rows as models read them, or as tokens in any case."""

    @property
    def prepared(self) -> "Prepared":
        """The prepared data: a folder, or a pack."""
        from zoo.data.paths import data_dir
        from zoo.data.prepared import Prepared

        return Prepared(data_dir(self._data_dir), self.dataset, f"zoo data prepare {self.name}")

    @property
    def folder(self) -> Path:
        """Where the prepared data lies, if it is not packed."""
        return self.prepared.folder

    def is_prepared(self) -> bool:
        """Whether the data is there and whole: all files, with the right sizes."""
        try:
            self._manifest()
        except DataError:
            return False
        return True

    def prepare(self, *, progress: bool = True, workers: int | None = None) -> Path:
        """Fetches the archive, checks it and writes what is needed of it; does nothing where that is done.

        Raises:
          DataError: the archive is missing and cannot be fetched, damaged or another; damaged files, or no room on the
            disk. The message says what to do.
        """
        if self.prepared.packed:
            self._manifest()
            return self.prepared.pack
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
        manifest = self._manifest()
        cut = manifest.get("cut", {})
        found = [f"a pack of {cut['train']:,} of {cut['of']:,} training examples"] if "train" in cut else []
        archive = manifest["archive"]
        if archive["verified"]:
            return found
        if self._published().sha256 is None:
            why = "its publisher names no checksum"
        else:
            why = "its checksum is not the publisher's" if "sha256" in archive else "a folder has no checksum"
        return [*found, f"unverified data: {archive['name']} passed the checks of its content, but {why}"]

    def stored_splits(self) -> tuple[str, ...]:
        """The names under which rows are stored."""
        return tuple(self._manifest()["splits"])

    def cut(
        self, splits: dict[str, "RaggedSource"], *, examples: int | None, max_len: int | None
    ) -> dict[str, "RaggedSource"]:
        """Fewer training rows, or shorter rows, of the stored splits; for `zoo.tasks.packing.pack`.

        Raises:
          ValueError: validation is held out of the training rows, which then cannot be fewer.
        """
        if examples is not None:
            for source, parts in self.parts.items():
                if any(parts[name].stored == "train" for name in ("validation", "test")):
                    raise ValueError(
                        f"{self.name}/{source} holds validation out of the stored training rows, so that these cannot "
                        "be fewer: leave out examples."
                    )
            splits = {**splits, "train": splits["train"].part(0, examples)}
        return splits if max_len is None else {name: rows.shortened(max_len) for name, rows in splits.items()}

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
            "path": str(self.prepared.path),
            "bytes": self.prepared.bytes,
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
        part = self._part(split)
        rows = self._read(part.stored)
        return rows, len(rows) * part.first // 100, len(rows) * part.last // 100

    def _read(self, stored: str) -> "RaggedSource":
        """The rows of a stored split; read once, and checked to the last bit."""
        if stored not in self._stored:
            cut = self._manifest(verify=not self._stored).get("cut", {})
            if self.info.max_len > cut.get("max_len", self.info.max_len):
                raise DataError(
                    f"{self.prepared.pack} holds {cut['max_len']:,} bytes of each row, and max_len={self.info.max_len} "
                    f"are to be read. Pack it again with --max-len {self.info.max_len}."
                )
            self._stored[stored] = self.prepared.rows(stored)
        return self._stored[stored]

    def _tokens(self, split: Split) -> Any:
        return self._source(*self._rows(split), tokens=True)

    def _manifest(self, *, verify: bool = False) -> dict[str, Any]:
        return self.prepared.manifest(verify=verify)
