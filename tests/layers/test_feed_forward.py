"""Position-wise feed-forward layers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.layers.feed_forward import FeedForward, activation_function

X: Any = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)


def linear(module, x):
    return x @ np.array(module.kernel[...], np.float64) + np.array(module.bias[...])


def gelu(x, exact):
    if exact:
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gelu", lambda x: gelu(x, exact=False)),
        ("gelu_exact", lambda x: gelu(x, exact=True)),
        ("relu", lambda x: np.maximum(x, 0)),
        ("silu", lambda x: x / (1 + np.exp(-x))),
    ],
)
def test_activations_by_formula(name, expected):
    x = np.linspace(-4, 4, 41)
    np.testing.assert_allclose(activation_function(name)(jnp.asarray(x, jnp.float32)), expected(x), atol=1e-6)


def test_plain_and_gated_by_formula():
    plain = FeedForward(4, 5, activation="relu", rngs=nnx.Rngs(0))
    np.testing.assert_allclose(plain(X), linear(plain.down, np.maximum(linear(plain.up, X), 0)), atol=1e-5)
    gated = FeedForward(4, 5, activation="silu", gated=True, rngs=nnx.Rngs(0))
    gate = linear(gated.gate, X)
    expected = linear(gated.down, gate / (1 + np.exp(-gate)) * linear(gated.up, X))
    np.testing.assert_allclose(gated(X), expected, atol=1e-5)


def test_each_position_stands_alone():
    module = FeedForward(4, 5, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(module(X[:, 1]), module(X)[:, 1], atol=1e-6)


def test_dropout_is_after_the_activation_and_at_the_end():
    module: Any = FeedForward(4, 64, dropout=0.5, activation="relu", rngs=nnx.Rngs(0))
    module.down.kernel[...] = jnp.ones((64, 4))
    module.up.kernel[...] = jnp.zeros((4, 64))
    module.up.bias[...] = jnp.ones(64)
    y = np.array(module(jnp.zeros((500, 4)), deterministic=False, rngs=nnx.Rngs(dropout=0)))
    # 64 ones, dropped to 2 x Binomial(64, 1/2), summed, then dropped and doubled again.
    assert (y == 0).mean() == pytest.approx(0.5, abs=0.04)
    kept = y[y != 0] / 2
    assert kept.mean() == pytest.approx(64, rel=0.02)
    assert kept.std() == pytest.approx(8, rel=0.1)
    np.testing.assert_array_equal(module(jnp.zeros((1, 4)), deterministic=True), np.full((1, 4), 64.0))


def test_dtypes():
    def make(**options):
        return FeedForward(4, 5, gated=True, rngs=nnx.Rngs(0), **options)

    assert jax.eval_shape(lambda: make(dtype=jnp.bfloat16)(X)).dtype == jnp.bfloat16
    for dtype in (jnp.float32, jnp.bfloat16):
        for init in ("lecun_normal", "xavier_uniform", "torch"):
            module = nnx.eval_shape(lambda dtype=dtype, init=init: make(param_dtype=dtype, kernel_init=init))
            assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))} == {jnp.dtype(dtype)}


def test_unknown_choices():
    with pytest.raises(ValueError, match="unknown activation 'tanh'; there are gelu, gelu_exact, relu, silu"):
        FeedForward(4, 5, activation="tanh", rngs=nnx.Rngs(0))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="unknown kernel_init 'he'; there are lecun_normal, xavier_uniform, torch"):
        FeedForward(4, 5, kernel_init="he", rngs=nnx.Rngs(0))  # pyright: ignore[reportArgumentType]
