"""From a sequence of vectors to one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.layers.pooling import POOLINGS, pool

X = np.arange(24, dtype=np.float32).reshape(3, 4, 2) ** 1.5
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("cls", [X[0, 0], X[1, 0], X[2, 0]]),
        ("last", [X[0, 3], X[1, 1], X[2, 0]]),
        ("mean", [X[0].mean(0), X[1, :2].mean(0), X[2, 0]]),
        # The small PyTorch family sums the real positions and divides by the padded length.
        ("mean_padded", [X[0].mean(0), X[1, :2].sum(0) / 4, X[2, 0] / 4]),
    ],
)
def test_pooling_by_hand(how, expected):
    np.testing.assert_allclose(pool(jnp.asarray(X), jnp.asarray(MASK), how), expected, rtol=1e-6)


@pytest.mark.parametrize("how", POOLINGS)
def test_no_mask_is_a_mask_of_ones(how):
    np.testing.assert_array_equal(pool(jnp.asarray(X), None, how), pool(jnp.asarray(X), jnp.ones((3, 4), bool), how))


@pytest.mark.parametrize("how", ["mean", "mean_padded", "last"])
def test_padding_has_no_say(how):
    dirty = jnp.where(MASK[..., None], X, 1e30)
    np.testing.assert_array_equal(pool(dirty, jnp.asarray(MASK), how), pool(jnp.asarray(X), jnp.asarray(MASK), how))


@pytest.mark.parametrize("how", ["mean", "last"])
def test_the_amount_of_padding_has_no_say(how):
    longer = jnp.pad(X, ((0, 0), (0, 5), (0, 0)), constant_values=7)
    mask = jnp.pad(MASK, ((0, 0), (0, 5)))
    np.testing.assert_allclose(pool(longer, mask, how), pool(jnp.asarray(X), jnp.asarray(MASK), how), rtol=1e-6)


def test_the_last_real_position_need_not_be_where_the_count_says():
    mask = jnp.asarray([[1, 0, 1, 0]], bool)
    np.testing.assert_array_equal(pool(jnp.asarray(X[:1]), mask, "last"), X[:1, 2])


@pytest.mark.parametrize("how", ["mean", "mean_padded"])
def test_an_empty_sequence_gives_zeros_and_finite_gradients(how):
    mask = jnp.zeros((3, 4), bool)
    np.testing.assert_array_equal(pool(jnp.asarray(X), mask, how), np.zeros((3, 2)))
    assert bool(jnp.isfinite(jax.grad(lambda x: pool(x, mask, how).sum())(jnp.asarray(X))).all())


def test_sums_are_float32_whatever_comes_in():
    pooled = pool(jnp.full((1, 1000, 1), 100, jnp.float16), None, "mean")
    assert pooled.dtype == jnp.float16
    assert float(pooled[0, 0]) == 100.0  # a float16 sum is infinite above 65504


def test_unknown_pooling():
    with pytest.raises(ValueError, match="unknown pooling 'max'; there are mean, mean_padded, cls, last"):
        pool(jnp.asarray(X), None, "max")  # pyright: ignore[reportArgumentType]
