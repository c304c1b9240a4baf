"""Classification of what a publisher's archive holds: what such tasks share."""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from zoo.data.manifest import DataError
from zoo.registry import did_you_mean
from zoo.tasks.base import SPLITS, Split
from zoo.tasks.prepared import PreparedTask, cut_caution
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


class ArchiveTask(PreparedTask, ShortcutTask):
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

    def _build(self, **options: Any) -> Path:
        from zoo.data.builders.archives import prepare

        del options["workers"]  # one reads the archive
        return prepare(self._builder(), self._data_dir, archive=self._archive, **options)

    def _read_split(self, name: Split) -> "Source":
        return self._source(*self._rows(name))

    def _content(self, name: Split) -> str:
        return f"{self.parts[self.source][name]} {self._manifest()['splits'][self._part(name).stored]}"

    def cautions(self) -> list[str]:
        """What must be said with every result: that the archive is not known to be its publisher's.

        Raises:
          DataError: the data is not prepared, or damaged.
        """
        manifest = self._manifest()
        found = cut_caution(manifest)
        archive = manifest["archive"]
        if archive["verified"]:
            return found
        if self._published().sha256 is None:
            why = "its publisher names no checksum"
        else:
            why = "its checksum is not the publisher's" if "sha256" in archive else "a folder has no checksum"
        return [*found, f"unverified data: {archive['name']} passed the checks of its content, but {why}"]

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
            **self._facts(),
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
            cut = self._whole.get("cut", {})
            if self.info.max_len > cut.get("max_len", self.info.max_len):
                raise DataError(
                    f"{self.prepared.pack} holds {cut['max_len']:,} bytes of each row, and max_len={self.info.max_len} "
                    f"are to be read. Pack it again with --max-len {self.info.max_len}."
                )
            self._stored[stored] = self.prepared.rows(stored)
        return self._stored[stored]

    def _tokens(self, split: Split) -> Any:
        return self._source(*self._rows(split), tokens=True)
