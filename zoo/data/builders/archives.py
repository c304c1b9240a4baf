"""Labelled rows of bytes out of a publisher's archive, as a TFDS data set."""

import abc
import hashlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from zoo.data.archives import Archive, tfds_order
from zoo.data.builders.base import StableBuilder, quiet_tfds, tidy
from zoo.data.manifest import clear_disk_errors, exclusive, file_sha256, read_manifest
from zoo.data.paths import data_dir as default_data_dir
from zoo.data.progress import Progress

_NEEDED_BYTES = 300 * 2**20  # more than any of these sets takes


class Rows(NamedTuple):
    """The examples of a split: bytes and a label each, and the keys by which TFDS' catalogue orders them.

    None for keys leaves them in the order that they have.
    """

    rows: Sequence[bytes]
    labels: Sequence[int]
    keys: Sequence[str | int] | None


class ArchiveBuilder(StableBuilder):
    """A TFDS builder of "train" and "test" rows, in the order of TFDS' catalogue; `prepare` runs it.

    A subclass names its archive, the task that reads it, and reads.

    Args:
      archive: the archive, or the folder that is in it; None for that in TFDS' manual folder.
      progress: whether to report progress.
      **kwargs: those of `tfds.core.GeneratorBasedBuilder`.
    """

    ARCHIVE: ClassVar[Archive]
    TASK: ClassVar[str]
    NUM_CLASSES: ClassVar[int]
    TEXT: ClassVar[str]

    def __init__(self, *, archive: Path | None = None, progress: bool = False, **kwargs: Any):
        self._archive, self._progress = archive, progress
        self._facts: dict[str, Any] = {}
        super().__init__(**kwargs)

    @abc.abstractmethod
    def read(self, path: Path) -> dict[str, Rows]:
        """The rows of "train" and "test".

        Raises:
          DataError: the archive is damaged, or holds something else.
        """

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "tokens": tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding="bytes"),
            "label": tfds.features.ClassLabel(num_classes=self.NUM_CLASSES),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.TEXT,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("tokens", "label"),
            disable_shuffling=True,  # they are in order already
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        path = self._archive or self.ARCHIVE.find(Path(dl_manager.manual_dir))
        with Progress(f"{self.name}: reading {path.name}", 2, "splits", enabled=self._progress) as bar:
            splits = {name: _ordered(rows, name) for name, rows in self.read(path).items()}
            bar.advance(len(splits))
        self._facts = {
            "archive": _origin(self.ARCHIVE, path),
            "splits": {name: _summary(rows) for name, rows in splits.items()},
        }
        return {name: self._generate_examples(rows) for name, rows in splits.items()}

    def _generate_examples(self, rows: Rows) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (row, label) in enumerate(zip(rows.rows, rows.labels, strict=True)):
            yield index, {"tokens": np.frombuffer(row, np.uint8), "label": int(label)}

    def manifest_facts(self) -> dict[str, Any]:
        """The archive, whether it is its publisher's, and number and checksum of the examples of each split."""
        return {"dataset": f"{self.name}/{self.version}", **self._facts}


def _ordered(rows: Rows, split: str) -> Rows:
    if rows.keys is None:
        return rows
    order = tfds_order(rows.keys, split)
    return Rows([rows.rows[i] for i in order], [rows.labels[i] for i in order], [rows.keys[i] for i in order])


def _origin(archive: Archive, path: Path) -> dict[str, Any]:
    """What is known of the file; of a folder no more than that it is one."""
    verified = archive.is_published(path) is True
    if path.is_dir():
        return {"name": archive.folder, "verified": verified}
    return {"name": archive.name, "bytes": path.stat().st_size, "sha256": file_sha256(path), "verified": verified}


def _summary(rows: Rows) -> dict[str, Any]:
    """Number of examples and SHA-256 over (label, length, bytes) of all of them."""
    digest = hashlib.sha256()
    for row, label in zip(rows.rows, rows.labels, strict=True):
        digest.update(bytes([label]) + len(row).to_bytes(4, "little") + row)
    return {"examples": len(rows.rows), "content_sha256": digest.hexdigest()}


def dataset_folder(builder: type[ArchiveBuilder], data_dir: Path | str | None = None) -> Path:
    """Where the prepared data set lies."""
    return default_data_dir(data_dir) / builder.name / str(builder.VERSION)


def prepare_command(builder: type[ArchiveBuilder]) -> str:
    """The command that makes the data set, for messages."""
    return f"zoo data prepare {builder.TASK}"


def prepare(
    builder: type[ArchiveBuilder],
    data_dir: Path | str | None = None,
    *,
    archive: Path | str | None = None,
    progress: bool = True,
) -> Path:
    """Makes a data set from its archive, unless it is there already. May be interrupted at any time and run again.

    The files appear under their final name only when all are whole; the same archive gives the same bytes.

    Args:
      builder: which.
      data_dir: the folder of all data; None for the default.
      archive: the archive, the folder that is in it, or an address to fetch it from; None for that below the folder of
        all data, or else its publisher's.
      progress: whether to report progress on standard error.

    Returns:
      The folder of the data set.

    Raises:
      DataError: files found there are damaged, the archive is wrong, or missing and cannot be fetched, or the disk does
        not allow it.
    """
    folder = dataset_folder(builder, data_dir)
    work = folder.parent / ".work" / str(builder.VERSION)
    if folder.exists():
        open_dataset(builder, data_dir)
        tidy(work)  # a process that was ended just before its own
        return folder
    path = builder.ARCHIVE.get(default_data_dir(data_dir), archive, progress=progress)
    with clear_disk_errors(work, _NEEDED_BYTES), exclusive(work / "lock"):
        if not folder.exists():
            _build(builder, path, work / "tfds", folder, progress)
        tidy(work)
    if progress:
        print(f"{builder.name}: written to {folder}", file=sys.stderr)
    return folder


def open_dataset(
    builder: type[ArchiveBuilder], data_dir: Path | str | None = None, *, verify: bool = False
) -> dict[str, Any]:
    """The manifest of a prepared data set, after checking its files.

    Args:
      builder: which.
      data_dir: the folder of all data; None for the default.
      verify: compute the SHA-256 of every file; otherwise sizes are checked, and the sums of small files.

    Raises:
      DataError: it is missing or damaged.
    """
    return read_manifest(dataset_folder(builder, data_dir), mend=prepare_command(builder), verify=verify)


def _build(builder: type[ArchiveBuilder], path: Path, staging: Path, folder: Path, progress: bool) -> None:
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was interrupted while writing
    staging.mkdir()
    making = builder(archive=path, data_dir=staging, progress=progress)
    with quiet_tfds():
        making.download_and_prepare()
    Path(making.data_path).rename(folder)
