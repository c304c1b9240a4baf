"""Labelled rows out of npz files."""

import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.manifest import DataError
from zoo.data.tables import Kind, Problems, Ragged, Reading, Table, check_column, finite, label_name


def read_npz(path: Path, how: Reading) -> Table:
    """Reads an npz file; see `zoo.data.tables.read_table`.

    Raises:
      DataError: it cannot be read, an array is missing, or shapes or types do not fit.
      OSError: it cannot be read.
    """
    arrays = _arrays(path)
    column = how.column or ("inputs" if "inputs" in arrays or "offsets" not in arrays else "values")
    label_column = how.label_column or ("label" if "label" in arrays and "labels" not in arrays else "labels")
    check_column(path, column, list(arrays), "column")
    check_column(path, label_column, list(arrays), "label_column")
    if how.second_column is not None or how.inputs == "text":
        raise DataError(f"{path}: npz files hold tokens and values; texts, and pairs of them, go in csv, tsv or jsonl.")
    values = arrays[column]
    if values.dtype.kind not in "iuf":
        raise DataError(f"{path}: {column} must be integers (tokens) or reals (values), got {values.dtype}.")
    kind: Kind = "tokens" if values.dtype.kind in "iu" else "values"
    if how.inputs == "values":
        kind = "values"
    elif how.inputs == "tokens" and kind == "values":
        raise DataError(f"{path}: {column} holds {values.dtype}; tokens are integers.")
    if kind == "tokens" and values.size and int(values.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{path}: {column} holds the token {values.max()}, which is too large for an id.")
    rows = _ragged(path, column, arrays, values.astype(np.int64) if kind == "tokens" else values)
    if not len(rows.lengths):
        raise DataError(f"{path} has no row.")
    if kind == "values":
        rows = Ragged(_finite(path, rows), rows.offsets)
    labels = _labels(path, label_column, arrays[label_column], len(rows.lengths))
    return Table(path, kind, rows, None, labels, np.arange(1, len(labels) + 1), "row")


def _arrays(path: Path) -> dict[str, np.ndarray]:
    source: Any = io.BytesIO(gzip.decompress(path.read_bytes())) if path.name.lower().endswith(".gz") else path
    try:
        with np.load(source, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, TypeError, AttributeError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(
            f"{path} is no npz file of plain arrays: {error}. Write it with numpy.savez, and no objects."
        ) from error


def _ragged(path: Path, column: str, arrays: dict[str, np.ndarray], values: np.ndarray) -> Ragged:
    """The rows, by `offsets` or of [N, T] with or without `lengths`."""
    if "offsets" in arrays:
        offsets = arrays["offsets"]
        if values.ndim != 1 or offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 2:
            raise DataError(
                f"{path}: with offsets, {column} is [total] and offsets are integers [N + 1]; their shapes are "
                f"{values.shape} and {offsets.shape}."
            )
        offsets = offsets.astype(np.int64)
        if offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
            raise DataError(
                f"{path}: offsets must rise from 0 to {len(values)}, the length of {column}; they run from "
                f"{offsets[0]} to {offsets[-1]}."
            )
        return Ragged(values, offsets)
    if values.ndim != 2:
        raise DataError(
            f"{path}: {column} must be [N, T], one number a position, got {values.shape}. Rows of different lengths "
            "are [total] with offsets [N + 1]."
        )
    count, width = values.shape
    lengths = arrays.get("lengths", np.full(count, width))
    if lengths.shape != (count,) or lengths.dtype.kind not in "iu":
        raise DataError(f"{path}: lengths must be integers [N={count}], got {lengths.dtype} {lengths.shape}.")
    if count and (lengths.min() < 0 or lengths.max() > width):
        raise DataError(f"{path}: lengths must be from 0 to T={width}, got {lengths.min()} to {lengths.max()}.")
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return Ragged(values[np.arange(width) < lengths[:, None]], offsets)


def _finite(path: Path, rows: Ragged) -> np.ndarray:
    try:
        return finite(rows.flat)
    except ValueError:
        with np.errstate(over="ignore"):
            place = int(np.argmin(np.isfinite(rows.flat.astype(np.float32))))
        row, at = rows.row_of(place)
        raise DataError(f"{path}, row {row + 1}: the number at place {at + 1} is {rows.flat[place]}.") from None


def _labels(path: Path, name: str, labels: np.ndarray, count: int) -> tuple[str, ...]:
    if labels.shape != (count,) or labels.dtype.kind not in "iubU":
        raise DataError(
            f"{path}: {name} must be whole numbers or texts [N={count}], one a row, got {labels.dtype} {labels.shape}."
        )
    problems, found = Problems(path), []
    for row, label in enumerate(labels.tolist(), 1):
        known = label_name(label)
        if known is None:
            problems.add(f"row {row}: there is no label")
        found.append(known or "")
    problems.finish()
    return tuple(found)
