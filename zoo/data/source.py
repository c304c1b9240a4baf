"""What a dataset is: rows of different lengths with a label each, handed out as padded batches."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, Self

import numpy as np


class Source(Protocol):
    """A dataset with random access to padded batches.

    Attributes:
      lengths: number of tokens of each row, integer [N], or None where it is unknown (then there are no buckets).
    """

    @property
    def lengths(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Returns the rows `indices` (integer [b], b >= 1) as one new batch, padded or cut to `length` tokens.

        Returns:
          At least `inputs` [b, length] (int32, or float32 for scalars; 0 where padded), `mask` bool [b, length] (True =
          real token) and `label` int32 [b]. More arrays are allowed if their first axis is b: a task of its own shape
          (two documents, say) is a source of its own.
        """
        ...


class RaggedSource:
    """A dataset in memory: all rows end to end in one array. NumPy memory maps work as well.

    Args:
      tokens: [total], integer (symbols) or floating point (scalars), the rows one after another; uint8 is the cheapest.
      offsets: integer [N + 1]; row i is `tokens[offsets[i]:offsets[i + 1]]`.
      labels: integer [N], from 0.
      num_classes: number of classes if the labels are to be checked against it.

    Raises:
      ValueError: an array has the wrong shape or values, or there are no rows.
      TypeError: an array has the wrong dtype.
    """

    def __init__(self, tokens: Any, offsets: Any, labels: Any, *, num_classes: int | None = None):
        self.tokens, offsets, labels = np.asarray(tokens), np.asarray(offsets), np.asarray(labels)
        _check_tokens(self.tokens)
        _check_offsets(offsets, len(self.tokens))
        _check_labels(labels, len(offsets) - 1, num_classes)
        self.offsets = offsets.astype(np.int64)
        self.labels = labels.astype(np.int32)
        self.lengths = np.diff(self.offsets).astype(np.int32)

    @classmethod
    def from_rows(cls, rows: Iterable[Any], labels: Any, *, dtype: Any = np.uint8, num_classes: int | None = None):
        """Builds the source from one sequence per row (lists, arrays, or bytes).

        Args:
          rows: N sequences of tokens; a `bytes` row counts one token per byte.
          labels: integer [N].
          dtype: the dtype in which tokens are kept; it must hold them all.
          num_classes: as for the class.

        Raises:
          ValueError: a token does not fit in `dtype`, and as for the class.
        """
        arrays = [np.frombuffer(row, np.uint8) if isinstance(row, bytes) else np.asarray(row) for row in rows]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in arrays], dtype=np.int64)]).astype(np.int64)
        joined = np.concatenate(arrays) if arrays else np.zeros(0, dtype)
        tokens = joined.astype(dtype)
        if tokens.dtype.kind in "iu" and not np.array_equal(tokens, joined):
            raise ValueError(f"rows hold tokens that {tokens.dtype} cannot hold; choose a wider dtype.")
        return cls(tokens, offsets, labels, num_classes=num_classes)

    def part(self, first: int, last: int) -> Self:
        """Rows `first` to `last` - 1, or to the end where there are fewer; without a copy."""
        offsets = self.offsets[first : last + 1]
        return type(self)(self.tokens[offsets[0] : offsets[-1]], offsets - offsets[0], self.labels[first:last])

    def shortened(self, length: int) -> Self:
        """The same rows, of each the first `length` tokens."""
        lengths = np.minimum(self.lengths, length)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        keep = np.arange(len(self.tokens)) - np.repeat(self.offsets[:-1], self.lengths) < length
        return type(self)(self.tokens[keep], offsets, self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Returns a padded batch, see `Source.gather`."""
        starts = self.offsets[indices]
        lengths = np.minimum(self.lengths[indices], length)
        inputs = np.zeros((len(indices), length), _batch_dtype(self.tokens))
        # One slice copy per row is a plain memcpy with a cast; index arithmetic over [b, length] takes twice as long at
        # the lengths of long-range tasks.
        for row, start, n in zip(inputs, starts.tolist(), lengths.tolist(), strict=True):
            row[:n] = self.tokens[start : start + n]
        return {"inputs": inputs, "mask": np.arange(length) < lengths[:, None], "label": self.labels[indices]}


class IndexedSource:
    """Any indexable object as a dataset, read row by row: a TFDS data source, a Hugging Face dataset, a list.

    For sets that do not fit in memory, or whose rows need work; `RaggedSource` is many times faster.

    Args:
      dataset: an object with `__len__` and `__getitem__(int)`; `__getitems__(list)` is used where it exists.
      encode: maps a row to (tokens, label): a 1-D array or sequence, and an int from 0.
      lengths: tokens of each row, integer [N]; needed for buckets only.

    Raises:
      ValueError: the dataset is empty, or `lengths` does not match it.
      TypeError: the dataset cannot be indexed.
    """

    def __init__(self, dataset: Any, encode: Callable[[Any], tuple[Any, int]], *, lengths: Any = None):
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise TypeError(f"dataset must have __len__ and __getitem__, got {type(dataset).__name__}.")
        if len(dataset) == 0:
            raise ValueError("dataset is empty; a source needs at least one row.")
        if lengths is not None:
            lengths = np.asarray(lengths)
            if lengths.shape != (len(dataset),) or lengths.dtype.kind not in "iu" or lengths.min() < 0:
                raise ValueError(
                    f"lengths must be non-negative integers [N={len(dataset)}], got {lengths.dtype} {lengths.shape}."
                )
            lengths = lengths.astype(np.int32)
        self.dataset, self.encode, self.lengths = dataset, encode, lengths

    def __len__(self) -> int:
        return len(self.dataset)

    def gather(self, indices: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Returns a padded batch, see `Source.gather`.

        Raises:
          ValueError: `encode` returned tokens that are not one-dimensional, or a label below 0.
        """
        wanted = [int(index) for index in indices]
        if hasattr(self.dataset, "__getitems__"):
            rows = self.dataset.__getitems__(wanted)
        else:
            rows = [self.dataset[index] for index in wanted]
        tokens, labels = zip(*map(self.encode, rows), strict=True)
        tokens = [np.asarray(row) for row in tokens]
        for index, row, label in zip(wanted, tokens, labels, strict=True):
            if row.ndim != 1 or label < 0:
                raise ValueError(
                    f"encode must return tokens [T] and a label from 0; row {index} gave {row.shape} and {label}."
                )
        inputs = np.zeros((len(tokens), length), _batch_dtype(tokens[0]))
        for target, row in zip(inputs, tokens, strict=True):
            target[: len(row)] = row[:length]
        lengths = np.array([len(row) for row in tokens])
        mask = np.arange(length) < lengths[:, None]
        return {"inputs": inputs, "mask": mask, "label": np.array(labels, np.int32)}


def _batch_dtype(tokens: np.ndarray) -> type:
    return np.float32 if tokens.dtype.kind == "f" else np.int32


def _check_tokens(tokens: np.ndarray) -> None:
    if tokens.ndim != 1:
        raise ValueError(f"tokens must be one-dimensional, got shape {tokens.shape}.")
    if tokens.dtype.kind not in "iuf":
        raise TypeError(f"tokens must be integers or floating point numbers, got {tokens.dtype}.")
    # Batches are int32; only wider integers can overflow it, so bytes are never scanned.
    if tokens.dtype in (np.int64, np.uint32, np.uint64) and len(tokens):
        limits = np.iinfo(np.int32)
        if tokens.min() < limits.min or tokens.max() > limits.max:
            raise ValueError("tokens must fit in int32.")


def _check_offsets(offsets: np.ndarray, total: int) -> None:
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu":
        raise TypeError(f"offsets must be integers [N + 1], got {offsets.dtype} of shape {offsets.shape}.")
    if len(offsets) < 2:
        raise ValueError("offsets has no rows; a source needs at least one.")
    if offsets[0] != 0 or offsets[-1] != total:
        raise ValueError(f"offsets must run from 0 to len(tokens) = {total}, got {offsets[0]} to {offsets[-1]}.")
    if (offsets[1:] < offsets[:-1]).any():
        row = int(np.argmax(offsets[1:] < offsets[:-1]))
        raise ValueError(f"offsets must not decrease; row {row} runs from {offsets[row]} to {offsets[row + 1]}.")


def _check_labels(labels: np.ndarray, num_rows: int, num_classes: int | None) -> None:
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got {labels.dtype}.")
    if labels.shape != (num_rows,):
        raise ValueError(f"labels must have shape [N={num_rows}], one per row, got {labels.shape}.")
    top = np.iinfo(np.int32).max if num_classes is None else num_classes - 1
    if labels.min() < 0 or labels.max() > top:
        raise ValueError(f"labels must lie in 0..{top}, got {labels.min()}..{labels.max()}.")
