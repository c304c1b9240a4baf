"""Pathfinder as TFDS data sets, one for each size: drawn here (`full`, `smoke`), or read from the release."""

import contextlib
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from zoo.data.builders.base import StableBuilder, quiet_tfds, tidy
from zoo.data.manifest import DataError, clear_disk_errors, exclusive
from zoo.data.pathfinder import SIZES, law
from zoo.data.pathfinder_draw import draw_images, read_images
from zoo.data.pathfinder_published import Record, find_published, list_published, read_png
from zoo.data.pathfinder_sets import (
    VERSION,
    PathfinderConfig,
    configs,
    labels_path,
    open_dataset,
    origin_facts,
    prepared,
    split_bounds,
)
from zoo.data.paths import data_dir as default_data_dir
from zoo.data.progress import Progress

_REPORT_EVERY = 250
_TEXT = """\
Pathfinder (Linsley et al. 2018, arXiv:1805.08315; Kim et al. 2020, arXiv:1906.01558) as in the Long Range Arena (Tay et
al. 2020, arXiv:2011.04006): two long dashed curves among short ones, and two discs at ends of them. The label is 1
where both discs are on the same curve, else 0."""


class PathfinderBuilder(StableBuilder):
    """The TFDS builder of one size. `prepare` below is the resumable way to run it.

    Args:
      work_dir: where finished chunks are kept; a temporary folder if None.
      archive: the folder of the release, for `published`; None for TFDS' manual folder.
      workers: number of processes; None for one per core.
      progress: whether to report progress.
      **kwargs: those of `tfds.core.GeneratorBasedBuilder`.
    """

    SIZE: int
    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = "For `published`: put the folder pathfinder<size> of lra_release.gz into manual_dir."

    def __init__(
        self,
        *,
        work_dir: Path | None = None,
        archive: Path | None = None,
        workers: int | None = None,
        progress: bool = False,
        **kwargs: Any,
    ):
        self._work_dir, self._archive, self._workers, self._progress = work_dir, archive, workers, progress
        self._summaries: dict[str, Any] = {}
        self._labels: dict[str, np.ndarray] = {}
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Tensor(shape=(self.SIZE, self.SIZE), dtype=np.uint8, encoding="bytes"),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=_TEXT,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://github.com/google-research/long-range-arena",
            disable_shuffling=True,  # independent draws; and released ones are in their order already
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        config: Any = self.builder_config
        if config.published:
            places = [self._archive or Path(dl_manager.manual_dir)]
            records = list_published(find_published(places, self.SIZE, config.difficulty), self.SIZE, config.difficulty)
            bounds = split_bounds(len(records))
            parts = {name: self._read(records[a:b]) for name, (a, b) in bounds.items()}
        else:
            bounds = split_bounds(config.examples)
            parts = {name: self._drawn(config, a, b) for name, (a, b) in bounds.items()}
        return {name: self._summed(name, part, bounds[name]) for name, part in parts.items()}

    def _drawn(self, config: PathfinderConfig, first: int, last: int) -> Iterator[tuple[np.ndarray, int]]:
        rules = law(self.SIZE, config.difficulty)
        options: dict[str, Any] = {"seed": config.seed, "chunk_size": config.chunk_size}
        if self._work_dir is None:
            with tempfile.TemporaryDirectory() as folder:
                # Without a folder to keep chunks in, nothing is gained by making them beforehand.
                yield from read_images(rules, first, last, Path(folder), **options)
            return
        title = f"{self.name}/{config.name}" if self._progress else None
        if first == 0:
            draw_images(rules, config.examples, self._work_dir, workers=self._workers, progress=title, **options)
        yield from read_images(rules, first, last, self._work_dir, **options)

    def _read(self, records: list[Record]) -> Iterator[tuple[np.ndarray, int]]:
        for record in records:
            yield read_png(record.path, self.SIZE), record.label

    def _summed(
        self, split: str, examples: Iterator[tuple[np.ndarray, int]], bounds: tuple[int, int]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """The examples as TFDS takes them; keeps their labels, and SHA-256 over (label, image) of all."""
        digest, labels = hashlib.sha256(), np.zeros(bounds[1] - bounds[0], np.uint8)
        title = f"{self.name}: writing {split}"
        with contextlib.ExitStack() as stack:
            bar = None
            for number, (image, label) in enumerate(examples):
                # Not before the first image is there: drawing them has a bar of its own.
                bar = bar or stack.enter_context(Progress(title, len(labels), "images", enabled=self._progress))
                digest.update(bytes([label]) + image.tobytes())
                labels[number] = label
                yield number, {"image": image, "label": label}
                if (number + 1) % _REPORT_EVERY == 0 or number + 1 == len(labels):
                    bar.advance(number + 1 - bar.done)
        self._labels[split] = labels
        self._summaries[split] = {
            "examples": len(labels),
            "labels": np.bincount(labels, minlength=2).tolist(),
            "content_sha256": digest.hexdigest(),
        }

    def _post_download_and_prepare_hook(self) -> None:
        for split, labels in self._labels.items():
            np.save(labels_path(Path(self.data_path), split), labels)
        super()._post_download_and_prepare_hook()

    def _generate_examples(self) -> None:
        raise NotImplementedError  # TFDS wants the name; the splits bring their own

    def manifest_facts(self) -> dict[str, Any]:
        """Origin, law, seed, and size, labels and checksum of the content by split."""
        config: Any = self.builder_config
        name = f"{self.name}/{config.name}/{self.version}"
        return {"dataset": name, **origin_facts(self.SIZE, config), "splits": self._summaries}


class LraPathfinder32(PathfinderBuilder):
    """Pathfinder of 32 x 32 pixels."""

    SIZE = 32
    BUILDER_CONFIGS = configs(32)


class LraPathfinder64(PathfinderBuilder):
    """Pathfinder of 64 x 64 pixels."""

    SIZE = 64
    BUILDER_CONFIGS = configs(64)


class LraPathfinder128(PathfinderBuilder):
    """Path-X: Pathfinder of 128 x 128 pixels."""

    SIZE = 128
    BUILDER_CONFIGS = configs(128)


class LraPathfinder256(PathfinderBuilder):
    """Pathfinder of 256 x 256 pixels."""

    SIZE = 256
    BUILDER_CONFIGS = configs(256)


BUILDERS: dict[int, type[PathfinderBuilder]] = {
    builder.SIZE: builder for builder in (LraPathfinder32, LraPathfinder64, LraPathfinder128, LraPathfinder256)
}
assert tuple(BUILDERS) == SIZES


def prepare(
    size: int,
    config: PathfinderConfig,
    data_dir: Path | str | None = None,
    *,
    archive: Path | str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Makes a data set, unless it is there already. May be interrupted at any time, and goes on when run again.

    The files appear under their final name only when all are whole. The same configuration gives the same bytes, for
    any number of workers and interruptions.

    Args:
      size: of the images, in pixels a side.
      config: what is made; see `get_config`.
      data_dir: the folder of all data; None for the default.
      archive: the folder of the release or one that it is in, for `published`, where it lies elsewhere.
      workers: number of processes; None for one per core.
      progress: whether to report progress on standard error.

    Returns:
      The folder of the data set.

    Raises:
      DataError: files found there are damaged, released files are missing or wrong, or the disk does not allow it.
      ModuleNotFoundError: numba (to draw) or Pillow (to read the release) is not installed.
    """
    folder, root = prepared(size, config, data_dir).folder, default_data_dir(data_dir)
    key = hashlib.sha256(repr(sorted(origin_facts(size, config).items())).encode()).hexdigest()[:12]
    work = folder.parent.parent / ".work" / f"{config.name}-{key}"
    if folder.exists():
        open_dataset(size, config, data_dir)
        tidy(work)  # a process that was ended just before its own
        return folder
    if config.published:
        archive = find_published(_places(root, archive), size, config.difficulty)
    # TFDS holds all of a split beside what it writes; compressed, in chunks and in records, images take a fifth.
    needed = config.examples * size**2 * 3 // 2 + 2**20
    with clear_disk_errors(work, needed), exclusive(work / "lock"):
        if not folder.exists():
            staging = work / "tfds"
            shutil.rmtree(staging, ignore_errors=True)  # of a run that was interrupted while writing
            staging.mkdir()
            where: dict[str, Any] = {"data_dir": staging, "work_dir": work / "chunks", "archive": archive}
            builder = BUILDERS[size](config=config, workers=workers, progress=progress, **where)
            with quiet_tfds():
                builder.download_and_prepare()
            folder.parent.mkdir(parents=True, exist_ok=True)
            Path(builder.data_path).rename(folder)
        tidy(work)
    if progress:
        print(f"{BUILDERS[size].name}/{config.name}: written to {folder}", file=sys.stderr)
    return folder


def _places(root: Path, archive: Path | str | None) -> list[Path]:
    if archive is None:
        return [root, root / "downloads" / "manual"]
    path = Path(archive).expanduser().absolute()
    if not path.is_dir():
        raise DataError(f"archive: there is no folder {path}; unpack lra_release.gz and name the folder that has it.")
    return [path]
