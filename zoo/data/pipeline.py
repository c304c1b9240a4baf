"""Batches for training and evaluation: a seeded global order, per-process shards, Grain's threads and workers.

Batch number k is a pure function of (source, settings, k). The position of a run is therefore k alone: it holds for any
number of processes, workers and threads, and a resumed run repeats the unbroken one bit for bit.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from zoo.data.order import EvalOrder, TrainOrder, assign_buckets, batch_lengths
from zoo.data.source import Source

Batch = dict[str, np.ndarray]


def train_batches(
    source: Source,
    *,
    batch_size: int,
    max_len: int,
    seed: int,
    buckets: Sequence[int] = (),
    process_index: int = 0,
    process_count: int = 1,
    start: int = 0,
    workers: int = 0,
    threads: int | None = None,
    prefetch: int = 8,
) -> "TrainBatches":
    """Returns the endless stream of shuffled training batches, this process's rows of each.

    A batch holds NumPy arrays: `inputs` [b, length], `mask` bool [b, length], `label` int32 [b] and `weight` float32
    [b] (all 1: training batches are full, see `zoo.data.order.TrainOrder`), with b = batch_size / process_count and
    length one of `batch_shapes(...)`.

    Args:
      source: the dataset.
      batch_size: rows of the global batch, over all processes.
      max_len: longest padded length; longer rows lose their end.
      seed: of the order, 0 <= seed < 2**64.
      buckets: ascending padded lengths; a row goes to the shortest that holds it, `max_len` is added as the last.
      process_index: which part of each global batch is ours.
      process_count: number of equal, contiguous parts.
      start: number of the first batch.
      workers: worker processes; 0 reads in this process, which is best for data in memory. Workers are spawned, so a
        script that uses them needs the `if __name__ == "__main__":` guard.
      threads: reading threads per process; None is one, so that batches are made while the device computes; 0 is none.
      prefetch: batches that each reading process keeps ready.

    Raises:
      ValueError: a setting is out of range, or buckets are asked for and the source knows no lengths.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in 0..2**64-1, got {seed}.")
    for name, value in (("start", start), ("workers", workers), ("threads", threads or 0), ("prefetch", prefetch)):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}.")
    lengths = batch_lengths(max_len, buckets)
    shard = _Shard(source, batch_size, process_index, process_count)
    bucket_of = assign_buckets(len(source), source.lengths, lengths)
    order = TrainOrder(bucket_of, lengths, batch_size=batch_size, seed=seed)
    settings = {
        "order": 1,  # to be raised if the same settings ever mean another order
        "seed": int(seed),
        "batch_size": int(batch_size),
        "lengths": [int(length) for length in lengths],
        "rows": len(source),
        "tokens": None if source.lengths is None else int(np.sum(source.lengths, dtype=np.int64)),
    }
    return TrainBatches(_Steps(shard, order, sys.maxsize), settings, start, workers, threads, prefetch)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    max_len: int,
    buckets: Sequence[int] = (),
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
    prefetch: int = 8,
) -> "EvalBatches":
    """Returns one pass over all rows, each exactly once, as a sized iterable that can be walked again.

    Batches look like those of `train_batches`; the last one is filled up with rows of `weight` 0 whose arrays are all 0
    (no token of them is real). Rows keep their order, or with buckets come shortest bucket first. Every process has the
    same number of batches.

    Args:
      source: the dataset.
      batch_size: rows of the global batch, over all processes.
      max_len: longest padded length; longer rows lose their end.
      buckets: as in `train_batches`.
      process_index: which part of each global batch is ours.
      process_count: number of equal, contiguous parts.
      threads: as in `train_batches`.
      prefetch: as in `train_batches`.

    Raises:
      ValueError: a setting is out of range, or buckets are asked for and the source knows no lengths.
    """
    lengths = batch_lengths(max_len, buckets)
    shard = _Shard(source, batch_size, process_index, process_count)
    order = EvalOrder(assign_buckets(len(source), source.lengths, lengths), lengths, batch_size=batch_size)
    return EvalBatches(_Steps(shard, order, len(order)), threads, prefetch)


def batch_shapes(batch_size: int, max_len: int, buckets: Sequence[int] = ()) -> list[int]:
    """Returns the lengths that batches of these settings can have, ascending: one compilation each.

    Raises:
      ValueError: a setting is out of range.
    """
    _check_batch_size(batch_size, 0, 1)
    return list(batch_lengths(max_len, buckets))


class TrainBatches(Iterator[Batch]):
    """Iterator of `train_batches`, with a position that fits in a checkpoint."""

    def __init__(self, steps: "_Steps", settings: dict, start: int, workers: int, threads: int | None, prefetch: int):
        self._steps, self._settings, self._position = steps, settings, start
        self._reading: dict[str, Any] = {"workers": workers, "threads": threads, "prefetch": prefetch}
        self._batches: Any = None

    @property
    def position(self) -> int:
        """Number of the next batch, which is how many were handed out by a run from 0."""
        return self._position

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = _read(self._steps, self._position, **self._reading)
        try:
            batch = next(self._batches)
        except BaseException:
            # Grain has moved on from a batch that failed or was interrupted; who tries again gets that batch again.
            self.close()
            raise
        self._position += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns the position and the settings that give it its meaning, as plain JSON; the same on every process."""
        return {"step": self._position, **self._settings}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues after the batches that had been handed out when `state` was taken.

        Raises:
          ValueError: `state` is not a state, or belongs to another dataset, seed, batch size or set of buckets.
        """
        step = state.get("step")
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"a data state needs a step from 0, got {step!r}.")
        for name, ours in self._settings.items():
            if state.get(name) != ours:
                raise ValueError(f"the data state was saved with {name}={state.get(name)}, this run has {name}={ours}.")
        self.close()
        self._position = step

    def close(self) -> None:
        """Ends reading threads and worker processes; the next batch would start them again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None


class EvalBatches(Sequence[Batch]):
    """The batches of `eval_batches`: a sequence, read ahead when walked."""

    def __init__(self, steps: "_Steps", threads: int | None, prefetch: int):
        self._steps, self._threads, self._prefetch = steps, threads, prefetch

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self._steps[i] for i in range(len(self))[index]]
        return self._steps[range(len(self))[index]]

    def __iter__(self) -> Iterator[Batch]:
        batches = _read(self._steps, 0, workers=0, threads=self._threads, prefetch=self._prefetch)
        try:
            yield from batches
        finally:
            batches.close()


class _Shard:
    """Makes one process's part of a global batch."""

    def __init__(self, source: Source, batch_size: int, process_index: int, process_count: int):
        _check_batch_size(batch_size, process_index, process_count)
        if len(source) == 0:
            raise ValueError("the source is empty; a pipeline needs at least one row.")
        self._source, self._batch_size = source, batch_size
        self._size = batch_size // process_count
        self._first = process_index * self._size

    def batch(self, rows: np.ndarray, length: int) -> Batch:
        """Returns our rows of the global batch `rows`, [<= batch_size], filled up to the full size."""
        # Fill-ups are real rows, blanked afterwards, so that a source never has to answer for rows that are not there.
        rows, num_rows = np.resize(rows, self._batch_size), len(rows)
        batch = dict(self._source.gather(rows[self._first : self._first + self._size], length))
        weight = np.arange(self._first, self._first + self._size) < num_rows
        if not weight.all():
            batch = {name: np.array(values) for name, values in batch.items()}
            for values in batch.values():
                values[~weight] = 0
        return {**batch, "weight": weight.astype(np.float32)}


class _Steps:
    """Random access to batches by their number: what Grain reads from."""

    def __init__(self, shard: _Shard, order: TrainOrder | EvalOrder, num_steps: int):
        self._shard, self._order, self._num_steps = shard, order, num_steps

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, index: int) -> Batch:
        return self._shard.batch(*self._order.batch(int(index)))


def _read(steps: _Steps, start: int, *, workers: int, threads: int | None, prefetch: int) -> Any:
    """Returns a Grain iterator over `steps` from `start` on; it has `close()`."""
    import grain

    threads = 1 if threads is None else threads
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, prefetch) if threads else 0)
    batches = grain.MapDataset.source(steps)[start:].to_iter_dataset(options)
    if workers:
        from absl import flags

        # Grain's workers read an absl flag, which raises in a program that never parsed any.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # A step has one number whatever the number of workers: Grain deals them out in turn and collects them in order.
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return iter(batches)


def _check_batch_size(batch_size: int, process_index: int, process_count: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must lie in 0..process_count-1, got {process_index} of {process_count}.")
    if batch_size % process_count:
        raise ValueError(f"batch_size {batch_size} must be divisible by the number of processes, {process_count}.")
