"""ListOps as a TFDS data set: drawn here (`full`, `smoke`), or read from the published files (`published`)."""

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
from zoo.data.listops import GENERATOR_VERSION, NUM_CLASSES, VOCABULARY
from zoo.data.listops_draw import Expressions, draw_splits
from zoo.data.listops_published import find_published, read_published
from zoo.data.listops_sets import (
    CONFIGS,
    DATASET,
    VERSION,
    ListopsConfig,
    dataset_folder,
    get_config,
    open_dataset,
    origin,
)
from zoo.data.manifest import clear_disk_errors, exclusive
from zoo.data.paths import data_dir as default_data_dir

_DESCRIPTION = """\
ListOps (Nangia & Bowman 2018, arXiv 1804.06028) by the law of the Long Range Arena (Tay et al. 2020, arXiv 2011.04006):
nested MIN, MAX, MED and SUM-modulo-10 of digits; the label is the value. Tokens are ids of this vocabulary: """


class LraListops(StableBuilder):
    """The TFDS builder of `lra_listops`. `prepare` below is the resumable way to run it.

    Args:
      work_dir: where finished chunks are kept; a temporary folder if None.
      workers: number of processes; None for one per core.
      progress: whether to report progress.
      **kwargs: those of `tfds.core.GeneratorBasedBuilder`.
    """

    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    BUILDER_CONFIGS = list(CONFIGS)  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = "For `published`: put the folder listops-1000 of lra_release.gz into manual_dir."

    def __init__(
        self, *, work_dir: Path | None = None, workers: int | None = None, progress: bool = False, **kwargs: Any
    ):
        self._work_dir, self._workers, self._progress = work_dir, workers, progress
        self._splits: dict[str, Any] = {}
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            # As bytes: a list of integers reads ten times slower.
            "tokens": tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding="bytes"),
            "label": tfds.features.ClassLabel(num_classes=NUM_CLASSES),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION + " ".join(VOCABULARY) + ".",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("tokens", "label"),
            homepage="https://github.com/google-research/long-range-arena",
            # Expressions are independent draws: their order is as good as any other, and reads faster.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        config: Any = self.builder_config
        if config.published:
            folder = find_published(Path(dl_manager.manual_dir))
            splits = read_published(folder, config.sizes, config.law, progress=self._progress)
        elif self._work_dir is not None:
            splits = self._draw(config, self._work_dir)
        else:
            with tempfile.TemporaryDirectory() as folder:
                splits = self._draw(config, Path(folder))
        self._splits = {name: _summary(expressions) for name, expressions in splits.items()}
        return {name: self._generate_examples(expressions) for name, expressions in splits.items()}

    def _draw(self, config: ListopsConfig, folder: Path) -> dict[str, Expressions]:
        return draw_splits(
            config.law,
            config.sizes,
            folder,
            seed=config.seed,
            chunk_size=config.chunk_size,
            workers=self._workers,
            progress=f"lra_listops/{config.name}" if self._progress else None,
        )

    def _generate_examples(self, expressions: Expressions) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (tokens, label) in enumerate(expressions):
            yield i, {"tokens": np.frombuffer(tokens, np.uint8), "label": label}

    def manifest_facts(self) -> dict[str, Any]:
        """Origin, law, seed, and sizes, lengths, labels and checksum of the content by split."""
        config: Any = self.builder_config
        return {"dataset": f"{DATASET}/{config.name}/{VERSION}", **origin(config), "splits": self._splits}


def _summary(expressions: Expressions) -> dict[str, Any]:
    """Size, length percentiles, label counts and SHA-256 over (label, length, tokens) of all expressions."""
    digest = hashlib.sha256()
    for tokens, label in expressions:
        digest.update(bytes([label]) + len(tokens).to_bytes(4, "little") + tokens)
    lengths = np.percentile([len(tokens) for tokens, _ in expressions], [0, 5, 25, 50, 75, 95, 100])
    names = ("min", "p5", "p25", "p50", "p75", "p95", "max")
    return {
        "examples": len(expressions),
        "lengths": {name: float(length) for name, length in zip(names, lengths, strict=True)},
        "labels": np.bincount([label for _, label in expressions], minlength=NUM_CLASSES).tolist(),
        "content_sha256": digest.hexdigest(),
    }


def prepare(
    config: str | ListopsConfig = "full",
    data_dir: Path | str | None = None,
    *,
    workers: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Makes a data set, unless it is there already. May be interrupted at any time, and goes on when run again.

    The files appear under their final name only when all are whole. The same configuration gives the same bytes, for
    any number of workers and interruptions.

    Args:
      config: "full", "smoke", "published", or a configuration of one's own under another name.
      data_dir: the folder of all data; None for the default.
      workers: number of processes; None for one per core.
      seed: of the generator, where `config` is a name.
      progress: whether to report progress on standard error.

    Returns:
      The folder of the data set.

    Raises:
      ValueError: unknown name, or a law with too few expressions.
      DataError: files found there are damaged, published files are missing or wrong, or the disk does not allow it.
    """
    config = get_config(config, seed) if isinstance(config, str) else config
    folder = dataset_folder(config, data_dir)
    key = f"{GENERATOR_VERSION}/{LraListops.VERSION}/{config.law.key()}/{config.seed}/{config.chunk_size}"
    work = folder.parent.parent / ".work" / f"{config.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if folder.exists():
        open_dataset(config, data_dir)
        tidy(work)  # a process that was ended just before its own
        return folder
    # Chunks and records together take less than this, whatever the law.
    needed = 2 * sum(config.sizes.values()) * config.law.max_length + 2**20
    with clear_disk_errors(work, needed), exclusive(work / "lock"):
        if not folder.exists():
            _build(config, default_data_dir(data_dir), work, folder, workers=workers, progress=progress)
        tidy(work)
    if progress:
        print(f"lra_listops/{config.name}: written to {folder}", file=sys.stderr)
    return folder


def _build(config: ListopsConfig, root: Path, work: Path, folder: Path, *, workers: int | None, progress: bool) -> None:
    staging = work / "tfds"
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was interrupted while writing
    staging.mkdir()
    manual_dir = root / "downloads" / "manual"
    if config.published:
        find_published(manual_dir)
    builder = LraListops(config=config, data_dir=staging, work_dir=work / "chunks", workers=workers, progress=progress)
    with quiet_tfds():
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    folder.parent.mkdir(parents=True, exist_ok=True)
    Path(builder.data_path).rename(folder)
