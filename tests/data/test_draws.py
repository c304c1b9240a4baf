"""Draws: the law of each, and the same numbers everywhere."""

import itertools

import numpy as np
import pytest

from zoo.data.draws import Draws


def test_the_same_on_every_machine():
    """Pinned: other numbers here mean that every data set drawn so has changed."""
    draws = Draws(7, stream=1)
    assert draws.integers(1000, (4,)).tolist() == [573, 974, 231, 132]
    assert draws.subsets(9, 4, 2).tolist() == [[2, 5, 6, 1], [3, 0, 7, 8]]
    assert draws.weighted_subsets(np.array([1.0, 2.0, 3.0]), 2, 2).tolist() == [[2, 0], [1, 2]]


def test_seeds_and_streams_are_independent():
    drawn = {(seed, stream): Draws(seed, stream).integers(2**40, (8,)).tolist() for seed in (0, 1) for stream in (0, 1)}
    assert len(set(map(tuple, drawn.values()))) == 4
    draws = Draws(0)
    assert draws.integers(2**40, (8,)).tolist() == drawn[0, 0]
    assert draws.integers(2**40, (8,)).tolist() != drawn[0, 0]
    with pytest.raises(ValueError, match=r"seed must lie in 0\.\.2\*\*64-1, got -1"):
        Draws(-1)


def test_uniform():
    values = Draws(0).uniform((200, 100))
    assert values.shape == (200, 100)
    assert values.min() > 0
    assert values.max() < 1
    assert values.mean() == pytest.approx(0.5, abs=5 * 12**-0.5 / np.sqrt(20_000))
    whole = Draws(0).integers(5, (20_000,))
    np.testing.assert_allclose(np.bincount(whole, minlength=5) / 20_000, 0.2, atol=5 * 0.4 / np.sqrt(20_000))


def test_every_subset_and_order_is_as_likely():
    rows = 24_000
    drawn = Draws(0).subsets(4, 2, rows)
    counts = dict.fromkeys(itertools.permutations(range(4), 2), 0)
    for pair in map(tuple, drawn.tolist()):
        counts[pair] += 1
    expected = rows / 12
    assert max(abs(count - expected) for count in counts.values()) < 5 * np.sqrt(expected)
    everything = Draws(1).subsets(5, 5, 50)
    np.testing.assert_array_equal(np.sort(everything, axis=1), np.tile(np.arange(5), (50, 1)))
    assert Draws(0).subsets(4, 0, 3).shape == (3, 0)
    with pytest.raises(ValueError, match="5 different numbers of 4 cannot be drawn"):
        Draws(0).subsets(4, 5, 1)


def test_weighted_subsets_are_drawn_one_after_another():
    """P(i, j) = w_i / sum * w_j / (sum - w_i): what `np.random.choice(replace=False, p=...)` draws by."""
    rows, weights = 60_000, np.array([1.0, 2.0, 5.0])
    drawn = Draws(0).weighted_subsets(weights, 2, rows)
    for i, j in itertools.permutations(range(3), 2):
        expected = weights[i] / 8 * weights[j] / (8 - weights[i])
        found = ((drawn[:, 0] == i) & (drawn[:, 1] == j)).mean()
        assert found == pytest.approx(expected, abs=5 * np.sqrt(expected / rows))
