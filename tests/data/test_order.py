"""The order of rows: pinned, uniform, and every row once per epoch of its bucket."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data.order import TrainOrder, assign_buckets, batch_lengths, permutation

MAX_LEN = 12
LENGTHS = st.lists(st.integers(0, 16), min_size=1, max_size=30)
BUCKETS = st.sets(st.integers(1, MAX_LEN), max_size=3).map(lambda found: tuple(sorted(found)))


def test_permutation_is_pinned():
    """The very numbers, so that a new NumPy, or a change of ours, cannot reorder a run that is resumed."""
    assert permutation(10, seed=0, epoch=0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert permutation(10, seed=2**64 - 1, epoch=3, stream=2).tolist() == [9, 6, 8, 5, 1, 0, 7, 2, 3, 4]


@given(st.integers(1, 50), st.integers(0, 2**64 - 1), st.integers(0, 5))
def test_permutation_is_one(size, seed, epoch):
    assert sorted(permutation(size, seed=seed, epoch=epoch).tolist()) == list(range(size))


def test_permutation_looks_uniform():
    first = Counter(int(permutation(4, seed=seed, epoch=0)[0]) for seed in range(2000))
    assert all(400 < count < 600 for count in first.values())


def test_seeds_epochs_and_streams_differ():
    orders = [
        permutation(50, seed=seed, epoch=epoch, stream=stream).tolist()
        for seed, epoch, stream in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert len(set(map(tuple, orders))) == 4


@given(LENGTHS, st.integers(1, 7), st.integers(0, 2**32))
def test_one_bucket_is_epochs_end_to_end(lengths, batch_size, seed):
    n = len(lengths)
    order = TrainOrder(np.zeros(n, int), (MAX_LEN,), batch_size=batch_size, seed=seed)
    steps = 3 * n // batch_size + 1
    seen = np.concatenate([order.batch(step)[0] for step in range(steps)])
    expected = np.concatenate(
        [permutation(n, seed=seed, epoch=epoch, stream=1) for epoch in range(4 + batch_size // n)]
    )
    np.testing.assert_array_equal(seen, expected[: len(seen)])


@settings(deadline=None)
@given(LENGTHS, BUCKETS, st.integers(1, 6), st.integers(0, 9))
def test_buckets_see_every_row_once_per_epoch(lengths, buckets, batch_size, seed):
    """Rows of a bucket come in shuffled epochs, and the bucket fits them; short of a batch, none waits."""
    edges = batch_lengths(MAX_LEN, buckets)
    bucket_of = assign_buckets(len(lengths), np.array(lengths), edges)
    order = TrainOrder(bucket_of, edges, batch_size=batch_size, seed=seed)
    epochs = 4
    steps = sum(epochs * int((bucket_of == b).sum()) // batch_size for b in range(len(edges)))
    seen = {length: Counter() for length in edges}
    for step in range(steps):
        rows, length = order.batch(step)
        assert len(rows) == batch_size
        for row in rows:
            assert min(lengths[row], MAX_LEN) <= length
            assert length == edges[0] or lengths[row] > max(edge for edge in edges if edge < length)
        seen[length].update(rows.tolist())
    for bucket, length in enumerate(edges):
        members = np.flatnonzero(bucket_of == bucket)
        handed_out = epochs * len(members) // batch_size * batch_size
        assert sum(seen[length].values()) == handed_out
        assert epochs * len(members) - handed_out < batch_size
