"""Sources whose labels are tokens: every token once, and nothing else."""

import numpy as np
import pytest

from zoo.data.pipeline import eval_batches, train_batches
from zoo.data.tokens import TokenSource, WindowSource


def asked(batches):
    """Pairs (token before, token asked for) of all batches, in order, of rows that count."""
    pairs = []
    for batch in batches:
        real = (batch["label"] >= 0) & (batch["weight"][:, None] > 0)
        assert not (real & ~batch["mask"]).any()
        assert (batch["inputs"][~batch["mask"]] == 0).all()
        pairs += zip(batch["inputs"][real].tolist(), batch["label"][real].tolist(), strict=True)
    return pairs


@pytest.mark.parametrize("total", [2, 5, 6, 7, 23, 24, 25])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_windows_ask_for_every_token_once(total, batch_size):
    stream = np.random.default_rng(total).integers(1, 200, total)
    source = WindowSource(stream, 6)
    assert len(source) == -(-(total - 1) // 6)
    assert source.lengths.sum() == total - 1
    batches = eval_batches(source, batch_size=batch_size, max_len=6)
    assert asked(batches) == list(zip(stream[:-1].tolist(), stream[1:].tolist(), strict=True))


def test_what_begins_a_document_is_read_and_not_asked_for():
    stream = np.array([0, 3, 4, 0, 5, 0, 0, 6])
    batch = WindowSource(stream, 4).gather(np.arange(2), 4)
    np.testing.assert_array_equal(batch["inputs"], [[0, 3, 4, 0], [5, 0, 0, 0]])
    np.testing.assert_array_equal(batch["label"], [[3, 4, -1, 5], [-1, -1, 6, -1]])
    np.testing.assert_array_equal(batch["mask"], [[1, 1, 1, 1], [1, 1, 1, 0]])
    assert (batch["inputs"].dtype, batch["label"].dtype, batch["mask"].dtype) == (np.int32, np.int32, bool)


def test_an_epoch_of_training_asks_for_every_token_once():
    stream = np.random.default_rng(0).integers(1, 200, 8 * 5 + 1)
    batches = train_batches(WindowSource(stream, 5), batch_size=4, max_len=5, seed=3)
    pairs = asked([next(batches) for _ in range(2)])
    batches.close()
    assert sorted(pairs) == sorted(zip(stream[:-1].tolist(), stream[1:].tolist(), strict=True))


def test_rows_with_a_label_at_each_position():
    inputs, labels = np.arange(1, 13, dtype=np.int16).reshape(3, 4), np.full((3, 4), -1, np.int16)
    labels[:, 2] = [7, 8, 9]
    source = TokenSource(inputs, labels)
    assert (len(source), source.lengths.tolist()) == (3, [4, 4, 4])
    batch = source.gather(np.array([2, 0]), 6)
    np.testing.assert_array_equal(batch["inputs"], [[9, 10, 11, 12, 0, 0], [1, 2, 3, 4, 0, 0]])
    np.testing.assert_array_equal(batch["label"], [[-1, -1, 9, -1, -1, -1], [-1, -1, 7, -1, -1, -1]])
    np.testing.assert_array_equal(batch["mask"], [[1, 1, 1, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(source.gather(np.array([1]), 2)["inputs"], [[5, 6]])
    # The last batch is filled up with rows that do not count.
    last = list(eval_batches(source, batch_size=2, max_len=4))[-1]
    np.testing.assert_array_equal(last["weight"], [1, 0])
    assert asked([last]) == [(11, 9)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenSource(np.ones((2, 3)), np.ones((2, 4))), r"one shape \[N, L\], got \(2, 3\) and \(2, 4\)"),
        (lambda: TokenSource(np.ones(3), np.ones(3)), r"one shape \[N, L\]"),
        (lambda: TokenSource(np.ones((0, 3)), np.ones((0, 3))), r"one shape \[N, L\]"),
        (lambda: WindowSource(np.ones(1, int), 3), r"a stream needs two tokens or more, \[total\], got shape \(1,\)"),
        (lambda: WindowSource(np.ones((2, 2), int), 3), "a stream needs two tokens"),
        (lambda: WindowSource(np.ones(4, int), 0), "window must be at least 1, got 0"),
    ],
)
def test_wrong_arrays(make, message):
    with pytest.raises(ValueError, match=message):
        make()
