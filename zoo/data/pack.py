"""A prepared data set as one file, for machines without the data and without the packages that prepare it.

The file is an `.npz` of NumPy's: a sealed manifest, and of each split the tokens, lengths and labels of its rows.
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.manifest import DataError
from zoo.data.source import RaggedSource
from zoo.files import seal, unseal

_MANIFEST = "manifest"
_PARTS = ("tokens", "lengths", "labels")
# What reading such a file raises that was changed or is cut short.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def content_sha256(rows: RaggedSource) -> str:
    """SHA-256 over (label, length, bytes) of all rows; the label takes a byte, the length four."""
    digest = hashlib.sha256()
    for label, start, end in zip(
        rows.labels.tolist(), rows.offsets[:-1].tolist(), rows.offsets[1:].tolist(), strict=True
    ):
        digest.update(bytes([label]) + (end - start).to_bytes(4, "little") + rows.tokens[start:end].tobytes())
    return digest.hexdigest()


def write_pack(path: Path, splits: Mapping[str, RaggedSource], facts: Mapping[str, Any]) -> int:
    """Writes a pack, which has its name only once it is whole.

    Args:
      path: of the file, `*.npz`.
      splits: rows of bytes, by name.
      facts: what else the manifest keeps, JSON-ready.

    Returns:
      The size of the file in bytes.

    Raises:
      OSError: it cannot be written; nothing is left of it.
    """
    arrays = {
        f"{name}.{part}": array
        for name, rows in splits.items()
        for part, array in zip(_PARTS, (rows.tokens, rows.lengths, rows.labels), strict=True)
    }
    sums = {name: _sha256(array) for name, array in arrays.items()}
    manifest = json.dumps(seal({**facts, "arrays": sums}), sort_keys=True).encode()
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            named: dict[str, Any] = {_MANIFEST: np.frombuffer(manifest, np.uint8), **arrays}
            np.savez_compressed(file, **named)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path.stat().st_size


def read_pack_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a pack; the rows are not read.

    Raises:
      DataError: it is damaged, or no pack.
    """
    try:
        return unseal(_load(path, _MANIFEST).tobytes())
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def read_pack(path: Path, split: str) -> RaggedSource:
    """The rows of a split, after checking their sums.

    Raises:
      DataError: it is damaged, no pack, or has no such split.
    """
    sums = read_pack_manifest(path)["arrays"]
    if f"{split}.tokens" not in sums:
        known = ", ".join(name.removesuffix(".tokens") for name in sums if name.endswith(".tokens"))
        raise DataError(f"{path} has no split {split!r}; there are {known}.")
    try:
        tokens, lengths, labels = (_load(path, f"{split}.{part}") for part in _PARTS)
        for part, array in zip(_PARTS, (tokens, lengths, labels), strict=True):
            if _sha256(array) != sums[f"{split}.{part}"]:
                raise ValueError(f"the sum of {split}.{part} is not the one recorded")
        return RaggedSource(tokens, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), labels)
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _load(path: Path, name: str) -> np.ndarray:
    # Not np.load, which leaves a damaged file open.
    with zipfile.ZipFile(path) as file, file.open(f"{name}.npy") as array:
        return np.lib.format.read_array(array, allow_pickle=False)


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error) or type(error).__name__
    return DataError(f"{path} is damaged, or no pack ({reason}). Copy it again, or write it anew with `zoo data pack`.")
