"""DLinear and NLinear against loops over their definitions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from zoo.functional import count_parameters
from zoo.models.dlinear import moving_average

L, H, N = 12, 5, 3
X = np.random.default_rng(0).normal(2, 3, (2, L, N)).astype(np.float32)

pytestmark = pytest.mark.usefixtures("compilation_cache")


def make(name, **options) -> Any:
    return zoo.create_model(name, num_variates=N, lookback=L, horizon=H, **options)


@jax.jit
def forward(model, x):
    return model(x)


def maps(linear, x):
    """The map of each variate, in float64."""
    kernel, bias = np.asarray(linear.kernel[...], np.float64), np.asarray(linear.bias[...], np.float64)
    own = kernel.ndim == 3
    columns = [x[:, :, n] @ (kernel[n] if own else kernel) + (bias[n] if own else bias) for n in range(x.shape[2])]
    return np.stack(columns, axis=2)


def average(x, window_size):
    half = window_size // 2
    y = np.zeros(x.shape)
    for t in range(x.shape[1]):
        places = [min(max(s, 0), x.shape[1] - 1) for s in range(t - half, t + half + 1)]
        y[:, t] = x[:, places].mean(axis=1)
    return y


@pytest.mark.parametrize("window_size", [1, 3, 25])
def test_the_average_repeats_the_ends(window_size):
    np.testing.assert_allclose(moving_average(jnp.asarray(X), window_size), average(X, window_size), atol=1e-5)


@pytest.mark.parametrize("individual", [False, True])
def test_dlinear_is_its_definition(individual):
    model = make("dlinear", individual=individual)
    x = X.astype(np.float64)
    trend = average(x, 25)
    expected = maps(model.trend, trend) + maps(model.remainder, x - trend)
    np.testing.assert_allclose(forward(model, X), expected, atol=1e-5)
    copies = N if individual else 1
    assert count_parameters(nnx.state(model, nnx.Param)) == copies * 2 * (L * H + H)


@pytest.mark.parametrize("individual", [False, True])
def test_nlinear_is_its_definition(individual):
    model = make("nlinear", individual=individual)
    x = X.astype(np.float64)
    np.testing.assert_allclose(forward(model, X), x[:, -1:] + maps(model.linear, x - x[:, -1:]), atol=1e-5)
    shifted = forward(model, X + 100)
    np.testing.assert_allclose(shifted - 100, forward(model, X), atol=1e-4)


def test_initial_values():
    for name in ("dlinear", "nlinear"):
        model = make(name)
        linear = model.trend if name == "dlinear" else model.linear
        assert 0.9 * L**-0.5 < float(abs(linear.kernel[...]).max()) <= L**-0.5
        assert float(abs(linear.bias[...]).max()) > 0
    model = make("dlinear", weight_init="average")
    for linear in (model.trend, model.remainder):
        linear.bias[...] = jnp.zeros(H)
    np.testing.assert_allclose(forward(model, X), np.repeat(X.mean(1, keepdims=True), H, axis=1), atol=1e-5)


@pytest.mark.parametrize("name", ["dlinear", "nlinear"])
def test_shared_weights_take_any_number_of_variates(name):
    wide = np.concatenate([X, X[..., :2]], axis=2)
    model = make(name)
    np.testing.assert_allclose(forward(model, wide)[..., 3:], forward(model, X)[..., :2], atol=1e-6)
    with pytest.raises(ValueError, match=rf"{name} takes x .* with L = 12, N = 3; axis 2 \(N\) of x is 5"):
        make(name, individual=True)(wide)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dlinear", {"window_size": 24}, "window_size must be odd and positive, so that it has a middle; got 24"),
        ("dlinear", {"window_size": -1}, "window_size must be odd"),
        ("dlinear", {"weight_init": "zeros"}, "unknown weight_init 'zeros'; there are torch, average"),
        ("nlinear", {"weight_init": "zeros"}, "unknown weight_init 'zeros'"),
    ],
)
def test_wrong_settings(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)
