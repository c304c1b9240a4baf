"""What forecasters share: sizes, the scaling of windows, linear maps along time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.layers.series import SeriesSizes, TimeLinear, standardize

X = np.random.default_rng(0).normal(3, 2, (2, 12, 4)).astype(np.float32)

pytestmark = pytest.mark.usefixtures("compilation_cache")


def test_standardize_is_the_formula_and_goes_back():
    z, restore = standardize(jnp.asarray(X))
    x = X.astype(np.float64)
    std = np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(z, (x - x.mean(axis=1, keepdims=True)) / std, atol=1e-5)
    np.testing.assert_allclose(restore(z), X, atol=1e-5)
    np.testing.assert_allclose(restore(jnp.ones((2, 3, 4))), np.repeat(x.mean(1, keepdims=True) + std, 3, 1), rtol=1e-5)


def test_standardize_computes_in_float32():
    x = jnp.asarray(1000 + X, jnp.bfloat16)  # holds multiples of 4 there
    z, restore = standardize(x)
    assert z.dtype == jnp.float32
    np.testing.assert_allclose(z.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(restore(z), x.astype(jnp.float32), atol=1e-2)
    with jax.enable_x64(True):
        assert standardize(jnp.asarray(X, jnp.float64))[0].dtype == jnp.float64


@pytest.mark.parametrize("individual", [False, True])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_a_map_along_time(individual, dtype):
    count = 4 if individual else None
    layer = TimeLinear(12, 5, num_variates=count, dtype=dtype, rngs=nnx.Rngs(0))
    kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
    expected = np.zeros((2, 5, 4))
    for n in range(4):
        w, c = (kernel[n], bias[n]) if individual else (kernel, bias)
        expected[:, :, n] = X[:, :, n] @ w + c
    y = jax.jit(lambda layer, x: layer(x))(layer, X)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, expected, atol=0.1 if dtype == "bfloat16" else 1e-5)
    graph, params = nnx.split(layer)
    gradient = jax.jit(jax.grad(lambda params: nnx.merge(graph, params)(X).sum()))(params)
    np.testing.assert_allclose(gradient["bias"][...], np.full(bias.shape, 2 if individual else 8), rtol=1e-2)
    steps = X.sum(axis=0).T if individual else X.sum(axis=(0, 2))
    np.testing.assert_allclose(gradient["kernel"][...], np.broadcast_to(steps[..., None], kernel.shape), rtol=2e-2)


@pytest.mark.parametrize("count", [None, 3])
def test_a_map_starts_as_pytorch_does_or_constant(count):
    layer = TimeLinear(64, 200, num_variates=count, rngs=nnx.Rngs(0))
    for values in (layer.kernel[...], layer.bias[...]):
        assert 0.95 / 8 < float(abs(values).max()) <= 1 / 8
    if count:
        assert float(abs(layer.kernel[0] - layer.kernel[1]).max()) > 0.1
    even = TimeLinear(64, 200, num_variates=count, constant=1 / 64, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(even.kernel[...], np.full(layer.kernel.shape, 1 / 64, np.float32))
    half = TimeLinear(64, 200, num_variates=count, param_dtype="bfloat16", rngs=nnx.Rngs(0))
    assert half.kernel.dtype == half.bias.dtype == jnp.bfloat16


def test_sizes():
    sizes = SeriesSizes(num_variates=4, lookback=12, horizon=5)
    sizes.check("model", jnp.asarray(X), None)
    sizes.check("model", jnp.asarray(X[..., :2]), None, any_variates=True)
    with pytest.raises(ValueError, match=r"model takes x .* with L = 12, N = 4; axis 2 \(N\) of x is 2"):
        sizes.check("model", jnp.asarray(X[..., :2]), None)
    marked = SeriesSizes(4, 12, 5, 3)
    marked.check("model", jnp.asarray(X), None, reads_marks=False)
    with pytest.raises(ValueError, match=r"made with num_marks=3 and takes marks .* with L\+H = 17, M = 3"):
        marked.check("model", jnp.asarray(X), None)
    with pytest.raises(ValueError, match="lookback must be at least 1, got 0"):
        SeriesSizes(4, 0, 5)
