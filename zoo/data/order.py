"""Which rows make up batch number k: pure functions of the step, so that a position is one integer."""

import itertools
from collections.abc import Sequence

import numpy as np


def permutation(size: int, *, seed: int, epoch: int, stream: int = 0) -> np.ndarray:
    """Returns a permutation of 0..size-1, int64 [size], the same on every machine and under every NumPy.

    It sorts raw Philox-4x64 bits (Salmon et al. 2011), a stream that NumPy keeps stable, unlike what
    `Generator.permutation` does with it.

    Args:
      size: number of rows.
      seed: 0 <= seed < 2**64.
      epoch: 0 <= epoch < 2**64; with `seed` it is the key of the generator.
      stream: independent orders under the same key.
    """
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([0, stream, 0, 0], np.uint64)
    return np.argsort(np.random.Philox(key=key, counter=counter).random_raw(size), kind="stable")


def batch_lengths(max_len: int, buckets: Sequence[int] = ()) -> tuple[int, ...]:
    """Returns the padded lengths that batches can have: the buckets, ascending, and `max_len` last.

    Args:
      max_len: the longest batch; longer rows are cut to it.
      buckets: strictly ascending lengths up to `max_len`; () is one bucket of `max_len`.

    Raises:
      ValueError: a length is below 1, or the buckets are not ascending, or one is longer than `max_len`.
    """
    if max_len < 1:
        raise ValueError(f"max_len must be at least 1, got {max_len}.")
    buckets = tuple(int(length) for length in buckets)
    if any(length < 1 for length in buckets):
        raise ValueError(f"buckets must be at least 1, got {buckets}.")
    if any(left >= right for left, right in itertools.pairwise(buckets)):
        raise ValueError(f"buckets must be strictly ascending, got {buckets}.")
    if buckets and buckets[-1] > max_len:
        raise ValueError(f"bucket {buckets[-1]} is longer than max_len {max_len}.")
    return buckets if buckets and buckets[-1] == max_len else (*buckets, max_len)


def assign_buckets(num_rows: int, row_lengths: np.ndarray | None, lengths: Sequence[int]) -> np.ndarray:
    """Returns the index in `lengths` of the shortest one that holds each row, int [N]; the last for longer rows.

    Raises:
      ValueError: there are several lengths to choose from and `row_lengths` is not [N].
    """
    if len(lengths) == 1:
        return np.zeros(num_rows, np.int8)
    if row_lengths is None or np.shape(row_lengths) != (num_rows,):
        raise ValueError("buckets need the length of every row; give the source its lengths [N] or use buckets=().")
    return np.minimum(np.searchsorted(lengths, row_lengths, side="left"), len(lengths) - 1)


class TrainOrder:
    """The endless order of training: every batch is full, every epoch shuffled.

    The rows of a bucket form a stream, one shuffled epoch after another, which is cut into batches; a batch may
    straddle epochs. Epoch e hands out, in shuffled order, the batches that the buckets complete in it. So each row is
    seen once per epoch of its bucket, and when an epoch ends, fewer than `batch_size` rows of each bucket wait for
    their batch. With one bucket its stream is the order itself.

    Args:
      bucket_of: index into `lengths` of each row, int [N].
      lengths: padded length of each bucket.
      batch_size: rows of a global batch.
      seed: 0 <= seed < 2**64.
    """

    def __init__(self, bucket_of: np.ndarray, lengths: Sequence[int], *, batch_size: int, seed: int):
        members = [np.flatnonzero(bucket_of == bucket) for bucket in range(len(lengths))]
        self._buckets = [(rows, length) for rows, length in zip(members, lengths, strict=True) if len(rows)]
        self._num_rows, self._batch_size, self._seed = len(bucket_of), batch_size, seed
        self._recent: dict[int, tuple[tuple[int, np.ndarray], ...]] = {}

    def batch(self, step: int) -> tuple[np.ndarray, int]:
        """Returns the rows of global batch `step`, int64 [batch_size], and the length to pad them to."""
        epoch = step * self._batch_size // self._num_rows
        while self._completed(epoch + 1) <= step:
            epoch += 1
        slot = step - self._completed(epoch)
        if len(self._buckets) > 1:
            slot = self._shuffled(0, epoch, self._completed(epoch + 1) - self._completed(epoch))[slot]
        for stream, (rows, length) in enumerate(self._buckets, start=1):
            first, last = (e * len(rows) // self._batch_size for e in (epoch, epoch + 1))
            if slot < last - first:
                return self._cut(stream, rows, (first + int(slot)) * self._batch_size), length
            slot -= last - first
        raise AssertionError("an epoch has as many batches as its buckets complete")

    def _completed(self, epochs: int) -> int:
        """Returns the number of batches that are complete after so many epochs."""
        return sum(epochs * len(rows) // self._batch_size for rows, _ in self._buckets)

    def _cut(self, stream: int, rows: np.ndarray, position: int) -> np.ndarray:
        """Returns the `batch_size` rows from `position` on in the stream of a bucket."""
        pieces, needed = [], self._batch_size
        while needed:
            epoch, offset = divmod(position, len(rows))
            piece = self._shuffled(stream, epoch, len(rows))[offset : offset + needed]
            pieces.append(rows[piece])
            position, needed = position + len(piece), needed - len(piece)
        return np.concatenate(pieces)

    def _shuffled(self, stream: int, epoch: int, size: int) -> np.ndarray:
        """Returns `permutation`, keeping the last two of each stream; tuples are replaced whole, for threads."""
        recent = self._recent.get(stream, ())
        for known, order in recent:
            if known == epoch:
                return order
        order = permutation(size, seed=self._seed, epoch=epoch, stream=stream)
        self._recent[stream] = (*recent, (epoch, order))[-2:]
        return order

    def __getstate__(self) -> dict:
        # Worker processes compute their own orders: cheaper than sending them.
        return {**self.__dict__, "_recent": {}}


class EvalOrder:
    """One pass over all rows, in order, or shortest bucket first; only the last batch may have fewer rows.

    Args:
      bucket_of: index into `lengths` of each row, int [N].
      lengths: padded length of each bucket.
      batch_size: rows of a global batch.
    """

    def __init__(self, bucket_of: np.ndarray, lengths: Sequence[int], *, batch_size: int):
        self._bucket_of, self._lengths, self._batch_size = bucket_of, lengths, batch_size
        self._rows = np.argsort(bucket_of, kind="stable")

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def batch(self, step: int) -> tuple[np.ndarray, int]:
        """Returns the rows of global batch `step`, int64 [<= batch_size], and the length to pad them to."""
        rows = self._rows[step * self._batch_size : (step + 1) * self._batch_size]
        return rows, self._lengths[int(self._bucket_of[rows].max())]
