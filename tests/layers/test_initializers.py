"""Initialisers have the spread that their names promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.layers.initializers import bias_initializer, kernel_initializer

FAN_IN, FAN_OUT = 300, 500


@pytest.mark.parametrize(
    ("name", "std", "bound"),
    [
        ("lecun_normal", FAN_IN**-0.5, None),
        ("xavier_uniform", (2 / (FAN_IN + FAN_OUT)) ** 0.5, (6 / (FAN_IN + FAN_OUT)) ** 0.5),
        ("torch", (3 * FAN_IN) ** -0.5, FAN_IN**-0.5),
    ],
)
def test_kernels(name, std, bound):
    kernel = np.array(kernel_initializer(name)(jax.random.key(0), (FAN_IN, FAN_OUT), jnp.float32))
    assert kernel.mean() == pytest.approx(0, abs=4 * std / kernel.size**0.5)
    assert kernel.std() == pytest.approx(std, rel=0.01)
    if bound is not None:
        assert abs(kernel).max() == pytest.approx(bound, rel=0.001)
        assert abs(kernel).max() <= bound


@pytest.mark.parametrize("feed_forward", [False, True])
@pytest.mark.parametrize("name", ["lecun_normal", "xavier_uniform", "torch"])
def test_biases(name, feed_forward):
    bias = np.array(
        bias_initializer(name, FAN_IN, feed_forward=feed_forward)(jax.random.key(0), (100_000,), jnp.float32)
    )
    if name == "torch":
        assert bias.std() == pytest.approx((3 * FAN_IN) ** -0.5, rel=0.02)
        assert abs(bias).max() <= FAN_IN**-0.5
    elif name == "xavier_uniform" and feed_forward:
        assert bias.std() == pytest.approx(1e-6, rel=0.02)
    else:
        assert not bias.any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes(dtype):
    for name in ("lecun_normal", "xavier_uniform", "torch"):
        assert kernel_initializer(name)(jax.random.key(0), (4, 4), dtype).dtype == dtype
        assert bias_initializer(name, 4)(jax.random.key(0), (4,), dtype).dtype == dtype


def test_unknown_kernel():
    with pytest.raises(ValueError, match="unknown kernel_init 'ones'; there are lecun_normal"):
        kernel_initializer("ones")  # pyright: ignore[reportArgumentType]
