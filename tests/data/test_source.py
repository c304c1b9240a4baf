"""Sources: padded batches equal the rows they came from, and wrong arrays are refused in words."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.data.source import IndexedSource, RaggedSource

ROWS = st.lists(st.lists(st.integers(0, 255), max_size=12), min_size=1, max_size=8)


def padded(rows, length, dtype=np.int32):
    """The batch of `rows`, one cell at a time."""
    inputs, mask = np.zeros((len(rows), length), dtype), np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        for t, token in enumerate(row[:length]):
            inputs[i, t], mask[i, t] = token, True
    return inputs, mask


@given(ROWS, st.integers(1, 14), st.data())
def test_gather_is_the_padded_rows(rows, length, data):
    indices = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6)))
    labels = np.arange(len(rows)) % 3
    inputs, mask = padded([rows[i] for i in indices], length)
    ragged = RaggedSource.from_rows(rows, labels, num_classes=3)
    indexed = IndexedSource(list(zip(rows, labels, strict=True)), lambda row: row)
    assert ragged.lengths.tolist() == [len(row) for row in rows]
    for source in (ragged, indexed):
        if not any(len(row) for row in rows) and source is indexed:
            continue  # an empty list has no dtype of its own
        batch = source.gather(indices, length)
        np.testing.assert_array_equal(batch["inputs"], inputs)
        np.testing.assert_array_equal(batch["mask"], mask)
        np.testing.assert_array_equal(batch["label"], labels[indices])
        assert batch["mask"].dtype == bool
        assert batch["label"].dtype == np.int32


def test_dtypes_follow_the_tokens():
    for dtype, expected in (("uint8", "int32"), ("int64", "int32"), ("uint16", "int32"), ("float64", "float32")):
        source = RaggedSource.from_rows([[1, 2], [3]], [0, 1], dtype=dtype)
        batch = source.gather(np.array([1, 0]), 3)
        assert batch["inputs"].dtype == expected
        assert batch["inputs"].tolist() == [[3, 0, 0], [1, 2, 0]]
    floats = IndexedSource([[0.5, 1.5]], lambda row: (row, 0)).gather(np.array([0]), 2)["inputs"]
    assert floats.dtype == np.float32
    assert floats.tolist() == [[0.5, 1.5]]


def test_bytes_rows():
    source = RaggedSource.from_rows([b"ab", b"\xff"], [0, 1])
    assert source.gather(np.array([0, 1]), 2)["inputs"].tolist() == [[97, 98], [255, 0]]


def test_memory_map_and_pickle(tmp_path):
    tokens = np.memmap(tmp_path / "tokens", np.uint8, "w+", shape=(5,))
    tokens[:] = [1, 2, 3, 4, 5]
    source = RaggedSource(tokens, [0, 2, 5], [1, 0])
    expected = source.gather(np.array([1, 0]), 3)
    copy = pickle.loads(pickle.dumps(source)).gather(np.array([1, 0]), 3)
    assert expected["inputs"].tolist() == [[3, 4, 5], [1, 2, 0]]
    for name, values in expected.items():
        np.testing.assert_array_equal(copy[name], values)


def test_indexed_source_reads_in_one_go_where_it_can():
    class Rows(list):
        def __getitems__(self, indices):
            self.asked = indices
            return [self[i] for i in indices]

    rows = Rows([([1], 0), ([2, 3], 1)])
    batch = IndexedSource(rows, lambda row: row, lengths=[1, 2]).gather(np.array([1, 1, 0]), 2)
    assert batch["inputs"].tolist() == [[2, 3], [2, 3], [1, 0]]
    assert rows.asked == [1, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([[1]], [0, 1], [0]), ValueError, "one-dimensional"),
        ((["a"], [0, 1], [0]), TypeError, "tokens must be integers or floating"),
        (([2**31], [0, 1], [0]), ValueError, "fit in int32"),
        (([1], [0.0, 1.0], [0]), TypeError, "offsets must be integers"),
        (([1], [0], []), ValueError, "no rows"),
        (([1, 2], [0, 1], [0]), ValueError, "from 0 to len"),
        (([1, 2], [1, 2], [0]), ValueError, "from 0 to len"),
        (([1, 2], [0, 2, 1, 2], [0, 0, 0]), ValueError, "row 1 runs from 2 to 1"),
        (([1, 2], [0, 1, 2], [0]), ValueError, r"labels must have shape \[N=2\]"),
        (([1], [0, 1], [0.5]), TypeError, "labels must be integers"),
        (([1], [0, 1], [-1]), ValueError, "labels must lie in 0"),
    ],
)
def test_ragged_source_refuses(arguments, error, words):
    with pytest.raises(error, match=words):
        RaggedSource(*arguments)


def test_labels_are_checked_against_the_classes():
    RaggedSource([1], [0, 1], [2], num_classes=3)
    with pytest.raises(ValueError, match=r"0\.\.1, got 2\.\.2"):
        RaggedSource([1], [0, 1], [2], num_classes=2)


def test_from_rows_refuses_tokens_that_do_not_fit_and_no_rows():
    with pytest.raises(ValueError, match="uint8 cannot hold"):
        RaggedSource.from_rows([[256]], [0])
    with pytest.raises(ValueError, match="no rows"):
        RaggedSource.from_rows([], [])


def test_indexed_source_refuses():
    def encode(row):
        return row

    with pytest.raises(TypeError, match="__len__ and __getitem__, got generator"):
        IndexedSource((row for row in ()), encode)
    with pytest.raises(ValueError, match="empty"):
        IndexedSource([], encode)
    with pytest.raises(ValueError, match=r"lengths must be non-negative integers \[N=1\]"):
        IndexedSource([([1], 0)], encode, lengths=[1, 2])
    with pytest.raises(ValueError, match=r"row 0 gave \(1, 1\)"):
        IndexedSource([([[1]], 0)], encode).gather(np.array([0]), 2)
    with pytest.raises(ValueError, match="label from 0"):
        IndexedSource([([1], -1)], encode).gather(np.array([0]), 2)
