"""The layer of the short convolution: initial values, options, state."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.layers.short_conv import ShortConv, ShortConvs
from zoo.ops.causal_conv1d import causal_conv1d


def test_initial_values():
    layer = ShortConv(4096, 4, use_bias=True, rngs=nnx.Rngs(0))
    assert layer.kernel.shape == (4, 4096)
    for values in (layer.kernel[...], layer.bias[...]):  # uniform within 1/2: standard deviation 1/sqrt(12)
        assert 0.49 < np.abs(values).max() <= 0.5
        assert abs(np.std(values) - 12**-0.5) < 0.01
    layer = ShortConv(4096, 4, use_bias=True, init_std=0.02, rngs=nnx.Rngs(0))
    assert abs(np.std(layer.kernel[...]) - 0.02) < 1e-3
    assert not np.asarray(layer.bias[...]).any()
    assert ShortConv(8, rngs=nnx.Rngs(0)).bias is None


def test_call_and_step():
    layer = ShortConv(3, 2, use_bias=True, activation=None, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    mask = np.arange(5) < np.array([[5], [3]])
    y, state = layer(x, mask=mask, state=layer.init_state(2), return_state=True)
    expected = causal_conv1d(x, layer.kernel[...], layer.bias[...], activation=None, mask=mask)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_array_equal(state[:, 0], [x[0, 4], x[1, 2]])
    y_t, _ = layer.step(x[:, 0], state)
    np.testing.assert_allclose(y_t, layer(x[:, :1], state=state)[:, 0], atol=1e-6)
    np.testing.assert_allclose(layer(x, reverse=True), layer(x[:, ::-1])[:, ::-1], atol=1e-6)
    packed = layer(x, segment_ids=np.array([[0, 0, 1, 1, 1]] * 2))
    np.testing.assert_allclose(packed[:, 2:], layer(x[:, 2:]), atol=1e-6)


def test_dtypes():
    layer = ShortConv(3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    y, state = layer(jnp.ones((2, 5, 3)), return_state=True)
    assert (y.dtype, state.dtype, layer.kernel.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    assert layer.step(jnp.ones((2, 3)), state)[0].dtype == jnp.bfloat16
    layer = ShortConv(3, use_bias=True, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert {layer.kernel.dtype, layer.bias.dtype} == {jnp.dtype(jnp.bfloat16)}


def test_errors_say_what_is_wrong():
    for options, message in (({"kernel_size": 0}, "kernel_size=0"), ({"init_std": -1.0}, r"init_std=-1\.0")):
        with pytest.raises(ValueError, match=message):
            ShortConv(3, **options, rngs=nnx.Rngs(0))


def test_several_are_each_by_itself():
    layers = ShortConvs((3, 5), 2, activations=("silu", None), use_bias=True, rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    arrays = tuple(random.standard_normal((2, 5, width)).astype(np.float32) for width in (3, 5))
    mask = np.arange(5) < np.array([[5], [3]])
    ys, states = layers(arrays, mask=mask, state=layers.init_state(2))
    stepped = layers.step(tuple(x[:, 0] for x in arrays), states)
    for i, (layer, x) in enumerate(zip(layers.each, arrays, strict=True)):
        assert layer.activation == ("silu", None)[i]
        y, state = layer(x, mask=mask, return_state=True)
        np.testing.assert_allclose(ys[i], y, atol=1e-6)
        np.testing.assert_array_equal(states[i], state)
        for one, other in zip((stepped[0][i], stepped[1][i]), layer.step(x[:, 0], state), strict=True):
            np.testing.assert_array_equal(one, other)
        reverse, _ = layers(arrays, reverse=True, segment_ids=np.array([[0, 0, 1, 1, 1]] * 2))
        np.testing.assert_allclose(reverse[i][:, 2:], layer(x[:, 2:], reverse=True), atol=1e-6)


def test_several_without_taps_are_activations():
    layers = ShortConvs((3, 5), None, activations=("silu", None), rngs=nnx.Rngs(0))
    x, y = np.full((2, 5, 3), 2.0, np.float32), np.ones((2, 5, 5), np.float32)
    assert layers.init_state(2) == ()
    for found, state in (layers((x, y)), layers.step((x[:, 0], y[:, 0]), ())):
        np.testing.assert_allclose(found[0], 2 / (1 + np.exp(-2.0)), rtol=1e-6)
        np.testing.assert_array_equal(found[1], 1)
        assert state == ()
    assert not nnx.to_flat_state(nnx.state(layers, nnx.Param))
