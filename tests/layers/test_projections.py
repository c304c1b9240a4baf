"""The four projections of multi-head attention."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.layers.projections import HeadProjections

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6)), jnp.float32)


def test_heads_are_consecutive_columns_and_merge_undoes_split():
    module: Any = HeadProjections(6, 3, bias_init=nnx.initializers.normal(1.0), rngs=nnx.Rngs(0))
    q, k, v = module.split(X)
    for heads, linear in ((q, module.query), (k, module.key), (v, module.value)):
        assert heads.shape == (2, 5, 3, 2)
        flat = np.array(X) @ np.array(linear.kernel[...]) + np.array(linear.bias[...])
        for head in range(3):
            np.testing.assert_allclose(heads[:, :, head], flat[..., 2 * head : 2 * head + 2], atol=1e-5)
    module.out.kernel[...] = jnp.eye(6)
    module.out.bias[...] = jnp.zeros(6)
    np.testing.assert_allclose(module.merge(q), module.query(X), atol=1e-6)


def test_any_leading_axes():
    module = HeadProjections(6, 2, rngs=nnx.Rngs(0))
    whole, one = module.split(X), module.split(X[:, 2])
    for many, single in zip(whole, one, strict=True):
        np.testing.assert_allclose(many[:, 2], single, atol=1e-6)
    assert module.merge(one[0]).shape == (2, 6)


@pytest.mark.parametrize(
    ("use_bias", "out_bias", "biases"),
    [(True, None, "qkvo"), (False, None, ""), (False, True, "o"), (True, False, "qkv")],
)
def test_biases(use_bias, out_bias, biases):
    module = HeadProjections(6, 2, use_bias=use_bias, out_bias=out_bias, rngs=nnx.Rngs(0))
    found = {"q": module.query, "k": module.key, "v": module.value, "o": module.out}
    assert "".join(name for name, linear in found.items() if linear.bias is not None) == biases


def test_d_head_need_not_divide_d_model():
    module = HeadProjections(6, 4, d_head=5, rngs=nnx.Rngs(0))
    assert module.split(X)[0].shape == (2, 5, 4, 5)
    assert module.merge(module.split(X)[2]).shape == X.shape


def test_dtypes_and_initialisers():
    module = HeadProjections(6, 2, dtype=jnp.bfloat16, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
    assert module.split(X)[0].dtype == jnp.bfloat16
    for leaf in jax.tree.leaves(nnx.state(module)):
        assert leaf.dtype == jnp.float32
        assert bool((leaf == (leaf.ndim == 2)).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 4), r"d_model=6 is not divisible by num_heads=4; change one or give d_head"),
        ((6, 0), r"num_heads=0.* must be positive"),
        ((0, 2), r"d_model=0.* must be positive"),
        ((6, 2, 0), r"d_head=0 must be positive"),
    ],
)
def test_wrong_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        HeadProjections(*arguments, rngs=nnx.Rngs(0))
