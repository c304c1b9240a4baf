"""Forecasts that need no parameters."""

import jax
import numpy as np
import pytest
from flax import nnx

import zoo

L, N = 7, 2
X = np.random.default_rng(0).normal(size=(3, L, N)).astype(np.float32)


def forecast(name, x=X, horizon=5, **options):
    model = zoo.create_model(name, num_variates=N, lookback=L, horizon=horizon, **options)
    assert not jax.tree.leaves(nnx.state(model))
    return np.asarray(model(x))


def test_the_last_value():
    np.testing.assert_array_equal(forecast("repeat_last"), np.stack([X[:, -1]] * 5, axis=1))


@pytest.mark.parametrize("horizon", [1, 3, 8])
def test_the_last_season(horizon):
    y = forecast("repeat_season", horizon=horizon, season=3)
    for h in range(horizon):
        np.testing.assert_array_equal(y[:, h], X[:, L - 3 + h % 3])
    np.testing.assert_array_equal(forecast("repeat_season", season=1), forecast("repeat_last"))


def test_the_mean():
    np.testing.assert_allclose(forecast("window_mean"), np.stack([X.mean(axis=1)] * 5, axis=1), atol=1e-6)


def test_a_season_fits_into_the_lookback():
    for season, message in ((24, r"season must be from 1 to the lookback \(7\), got 24"), (0, "got 0")):
        with pytest.raises(ValueError, match=message):
            forecast("repeat_season", season=season)


@pytest.mark.parametrize(
    ("name", "options"), [("repeat_last", {}), ("repeat_season", {"season": 2}), ("window_mean", {})]
)
def test_numbers_of_any_kind_and_any_number_of_variates(name, options):
    whole = (10 * X).astype(np.int32)
    y = forecast(name, whole, **options)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, forecast(name, whole.astype(np.float32), **options))
    assert forecast(name, X[..., :1], **options).shape == (3, 5, 1)
