"""CIFAR-10 (Krizhevsky 2009) in its publisher's binary form, read from the archive or from the folder in it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from zoo.data.archives import Archive
from zoo.data.manifest import DataError

CIFAR10 = Archive(
    name="cifar-10-binary.tar.gz",
    folder="cifar-10-batches-bin",
    size=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    origin="Get it from https://www.cs.toronto.edu/~kriz/cifar.html (CIFAR-10 binary version, 162 MB).",
    urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
)
ARCHIVE, FOLDER, ORIGIN = CIFAR10.name, CIFAR10.folder, CIFAR10.origin
_FILES = {"train": tuple(f"data_batch_{part}.bin" for part in range(1, 6)), "test": ("test_batch.bin",)}
_ROWS, _PIXELS = 10_000, 3 * 32 * 32


def find_cifar10(folder: Path) -> Path:
    """The archive, or the unpacked folder, below a data folder, its `downloads/manual` or its `downloads`.

    Raises:
      DataError: there is neither.
    """
    return CIFAR10.find(folder)


def read_cifar10(path: str | Path, split: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a split, in the publisher's order.

    Args:
      path: `cifar-10-binary.tar.gz`, or the folder `cifar-10-batches-bin` that is in it.
      split: "train", the 50,000 of the five batches, or "test", 10,000.

    Returns:
      Images, uint8 [N, 32, 32, 3], and labels, uint8 [N] from 0 to 9.

    Raises:
      ValueError: unknown split.
      DataError: a file is missing, cut short or not what it should be; the message names it.
    """
    if split not in _FILES:
        raise ValueError(f"CIFAR-10 has no split {split!r}; there are {', '.join(_FILES)}.")
    path = Path(path)
    found = dict(_from_folder(path, split) if path.is_dir() else _from_archive(path, split))
    for name in _FILES[split]:
        if name not in found:
            raise DataError(f"{path} has no file {name}. {ORIGIN}")
    rows = np.concatenate([_rows(path, name, found[name]) for name in _FILES[split]])
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, 0].copy()


def _from_folder(path: Path, split: str) -> Iterator[tuple[str, bytes]]:
    for name in _FILES[split]:
        try:
            yield name, (path / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(f"{path / name} cannot be read: {error.strerror or error}.") from error


def _from_archive(path: Path, split: str) -> Iterator[tuple[str, bytes]]:
    def wanted(name: str, size: int) -> bool:
        folder, _, name = name.rpartition("/")
        if folder != FOLDER or name not in _FILES[split]:
            return False
        _check_size(path, name, size)
        return True

    for name, data in CIFAR10.members(path, wanted):
        yield name.rpartition("/")[2], data


def _check_size(path: Path, name: str, size: int) -> None:
    if size != _ROWS * (1 + _PIXELS):
        raise DataError(f"{name} in {path} has {size:,} bytes, not {_ROWS * (1 + _PIXELS):,}. {ORIGIN}")


def _rows(path: Path, name: str, data: bytes) -> np.ndarray:
    """Each image's label and pixels, uint8 [10000, 3073]."""
    _check_size(path, name, len(data))
    rows = np.frombuffer(data, np.uint8).reshape(_ROWS, 1 + _PIXELS)
    if rows[:, 0].max() > 9:
        row = int(rows[:, 0].argmax())
        raise DataError(f"{name} in {path} has the label {rows[row, 0]} at image {row}; there are 0 to 9. {ORIGIN}")
    return rows
