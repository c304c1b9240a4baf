"""Dropout: its rate, its scale, its modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.layers.dropout import Dropout
from zoo.ops.dropout import draw_kept, kept_scale


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(301, 401), (120000,), (40000, 3)])
def test_rate_and_mean(rate, shape):
    kept = draw_kept(jax.random.key(3), shape, rate)
    assert kept.shape == shape
    deviation = np.sqrt(rate * (1 - rate) / kept.size)
    assert abs(kept.mean() - (1 - rate)) < 4 * deviation
    np.testing.assert_allclose(kept_scale(rate), 1 / (1 - rate), rtol=1e-4)


def test_elements_are_independent():
    """Pairs share a word: no pair, neighbours or halves apart, is correlated, nor are two keys."""
    first, second = (draw_kept(jax.random.key(seed), (5000, 64), 0.5) * 2.0 - 1 for seed in (0, 1))
    bound = 5 / np.sqrt(5000)
    correlation = first.T @ first / 5000 - jnp.eye(64)
    assert jnp.abs(correlation).max() < bound
    assert jnp.abs((first * second).mean(0)).max() < bound


def test_scales_what_it_keeps_and_passes_its_gradient():
    layer, x = Dropout(0.25), jax.random.normal(jax.random.key(0), (7, 9))
    y, pullback = jax.vjp(lambda x: layer(x, rngs=nnx.Rngs(dropout=1)), x)
    kept = y != 0
    assert 0.5 < kept.mean() < 0.95
    np.testing.assert_allclose(y, jnp.where(kept, x / 0.75, 0), rtol=1e-4)
    np.testing.assert_allclose(pullback(jnp.ones_like(x))[0], jnp.where(kept, 1 / 0.75, 0), rtol=1e-4)


def test_modes():
    layer, x = Dropout(0.5), jnp.ones((4, 8), jnp.bfloat16)
    assert layer(x, rngs=nnx.Rngs(dropout=0)).dtype == jnp.bfloat16
    assert (layer(x, deterministic=True) == x).all()
    layer.eval()
    assert (layer(x) == x).all()
    assert not (layer(x, deterministic=False, rngs=nnx.Rngs(dropout=0)) == x).all()
    assert (Dropout(0.0)(x) == x).all()


def test_errors():
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        Dropout(1.0)
    with pytest.raises(ValueError, match=r"rngs=nnx\.Rngs"):
        Dropout(0.5)(jnp.ones(3))
