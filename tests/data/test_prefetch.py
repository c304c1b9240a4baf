"""Batches ahead on the device: in order, not too many, and with the position of those handed out.

Resuming with batches in flight is tested in `test_pipeline.py`.
"""

import jax
import numpy as np
import pytest

from zoo.data.pipeline import eval_batches, train_batches
from zoo.data.prefetch import prefetch_to_device
from zoo.data.source import IndexedSource, RaggedSource


def make_source():
    return RaggedSource.from_rows([[1], [2, 2], [3, 3, 3]], [0, 1, 2])


def test_prefetch_runs_ahead_by_size_and_no_more():
    moved = []

    def put(batch):
        moved.append(batch)
        return batch * 10

    ahead = prefetch_to_device(range(6), put, size=2)
    assert next(ahead) == 0
    assert moved == [0, 1, 2]
    assert ahead.position == 1
    assert list(ahead) == [10, 20, 30, 40, 50]
    assert ahead.position == 6
    assert list(prefetch_to_device(range(3), put, size=0)) == [0, 10, 20]


def test_prefetch_puts_on_the_device():
    batches = eval_batches(make_source(), batch_size=2, max_len=3)
    moved = list(prefetch_to_device(batches))
    assert all(isinstance(values, jax.Array) for values in moved[0].values())
    for ours, theirs in zip(moved, batches, strict=True):
        for name in theirs:
            np.testing.assert_array_equal(np.asarray(ours[name]), theirs[name])


def test_prefetch_without_a_position():
    ahead = prefetch_to_device(range(3), lambda batch: batch)
    with pytest.raises(TypeError, match="range_iterator has no get_state"):
        ahead.get_state()
    with pytest.raises(TypeError, match="no set_state"):
        ahead.set_state({"step": 1})
    with pytest.raises(ValueError, match="size must not be negative"):
        prefetch_to_device(range(3), size=-1)


def test_a_broken_row_is_reported_and_close_stops():
    def encode(row):
        if row == 2:
            raise RuntimeError("row 2 is broken")
        return [row + 1], 0

    with pytest.raises(RuntimeError, match="row 2 is broken"):
        list(prefetch_to_device(eval_batches(IndexedSource(range(4), encode), batch_size=1, max_len=1), size=1))
    ahead = prefetch_to_device(train_batches(make_source(), batch_size=1, max_len=2, seed=0))
    next(ahead)
    ahead.close()
    assert list(ahead) == []
