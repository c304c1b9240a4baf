"""What the builders share: the same bytes for the same records, a manifest, and fast reading of rows of tokens."""

import contextlib
import io
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.core.file_adapters import FileFormat
from tensorflow_datasets.core.writer import ExampleWriter
from tensorflow_datasets.proto import tf_example_pb2

from zoo.data.manifest import DataError, write_manifest
from zoo.data.source import RaggedSource

_Example: Any = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]


class _StableWriter(ExampleWriter):
    """Writes ArrayRecord files whose bytes depend on the records alone.

    TFDS serialises the features of a record in the order of a hash map, which differs between processes.
    """

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> None:
        parse = _Example.FromString
        # Everything that the file's header repeats is stated, so that no default of the machine enters.
        writer = ArrayRecordWriter(os.fspath(path), "group_size:1,zstd:3,max_parallelism:1")
        try:
            for _, example in examples:
                writer.write(parse(example).SerializeToString(deterministic=True))
        finally:
            writer.close()


class StableBuilder(tfds.core.GeneratorBasedBuilder):
    """A TFDS builder that writes ArrayRecord files in the order given, the same bytes every time, and a manifest."""

    def __init__(self, **kwargs: Any):
        kwargs.setdefault("file_format", "array_record")
        super().__init__(**kwargs)

    def manifest_facts(self) -> dict[str, Any]:
        """What the manifest keeps beside the list of files, JSON-ready."""
        return {}

    def _example_writer(self) -> ExampleWriter:
        return _StableWriter(file_format=FileFormat.ARRAY_RECORD)

    def _post_download_and_prepare_hook(self) -> None:
        write_manifest(Path(self.data_path), self.manifest_facts())


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Keeps TFDS from printing its own bars and banners."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


def tidy(work: Path) -> None:
    """Deletes what making a data set left, and the folder for such where it was the last one."""
    shutil.rmtree(work, ignore_errors=True)
    with contextlib.suppress(OSError):
        work.parent.rmdir()


def read_ragged(folder: Path, split: str, *, mend: str, tokens: str = "tokens", label: str = "label") -> RaggedSource:
    """Reads a split of byte tokens and labels into memory.

    Args:
      folder: the folder of a prepared data set (that of `dataset_info.json`).
      split: name of the split.
      mend: what the user should run after deleting `folder`, for the messages.
      tokens: name of the feature with the tokens, stored as bytes.
      label: name of the feature with the label, one integer.

    Raises:
      DataError: a file is damaged; the message names it.
    """
    remedy = f"Delete the folder {folder} and run `{mend}`."
    try:
        shards = tfds.builder_from_directory(folder).info.splits[split]
        paths, count = shards.filepaths, shards.num_examples
    except Exception as error:  # TFDS and protobuf raise several kinds
        raise DataError(f"The description of {folder} is damaged: {error}. {remedy}") from error
    rows: list[bytes] = []
    labels: list[int] = []
    for path in paths:
        try:
            reader = ArrayRecordReader(os.fspath(path))
            for record in reader.read_all():
                features = _Example.FromString(record).features.feature
                rows.append(features[tokens].bytes_list.value[0])
                labels.append(features[label].int64_list.value[0])
            reader.close()
        except Exception as error:  # the reader raises RuntimeError, the parser several kinds
            raise DataError(f"{path} is damaged: {error}. {remedy}") from error
    if len(rows) != count:
        raise DataError(f"{folder} holds {len(rows):,} examples in {split!r} instead of {count:,}. {remedy}")
    offsets = np.fromiter(itertools.accumulate(map(len, rows), initial=0), np.int64, len(rows) + 1)
    return RaggedSource(np.frombuffer(b"".join(rows), np.uint8), offsets, np.array(labels, np.int32))


class RecordRows:
    """Rows of bytes of one length in a split of a prepared data set, read from its files when they are asked for.

    Can be pickled; every process opens the files for itself.

    Args:
      folder: the folder of a prepared data set (that of `dataset_info.json`).
      split: name of the split.
      feature: name of the feature with the rows, stored as bytes.
      mend: what the user should run after deleting `folder`, for the messages.

    Raises:
      DataError: the description of the data set is damaged.
    """

    def __init__(self, folder: Path, split: str, feature: str, *, mend: str):
        self._feature, self._remedy = feature, f"Delete the folder {folder} and run `{mend}`."
        try:
            shards = tfds.builder_from_directory(folder).info.splits[split]
            self._paths = [os.fspath(path) for path in shards.filepaths]
            self._starts = np.cumsum([0, *shards.shard_lengths])
        except Exception as error:  # TFDS and protobuf raise several kinds
            raise DataError(f"The description of {folder} is damaged: {error}. {self._remedy}") from error
        self._readers: dict[int, Any] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """The rows of these numbers, uint8 [b, L].

        Raises:
          DataError: a file is damaged; the message names it.
        """
        rows: list[bytes] = [b""] * len(indices)
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            for place, row in zip(places, self._read(shard, indices[places] - self._starts[shard]), strict=True):
                rows[place] = row
        return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)

    def _read(self, shard: int, numbers: np.ndarray) -> list[bytes]:
        try:
            if shard not in self._readers:
                self._readers[shard] = ArrayRecordReader(self._paths[shard])
            records = self._readers[shard].read(numbers.tolist())
            return [
                _Example.FromString(record).features.feature[self._feature].bytes_list.value[0] for record in records
            ]
        except Exception as error:  # the reader raises RuntimeError, the parser several kinds
            raise DataError(f"{self._paths[shard]} is damaged: {error}. {self._remedy}") from error
