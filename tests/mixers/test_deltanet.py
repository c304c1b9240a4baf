"""The layer of DeltaNet; the contract tests what every mixer must do, test_parity.py the definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_same, error
from flax import nnx

from zoo.mixers.deltanet import DeltaNet

B, T, D = 2, 9, 8
DIRECTIONS = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


@pytest.fixture(autouse=True)
def light_compilation(compilation_cache):
    """Halves the time to compile; what is tested does not depend on XLA's optimisations."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def make(**options):
    return DeltaNet(D, **{"num_heads": 2, "init": "torch", **options}, rngs=nnx.Rngs(0))


def values(length=T, seed=0):
    return np.random.default_rng(seed).standard_normal((B, length, D)).astype(np.float32)


@functools.partial(nnx.jit, static_argnames="return_state")
def run(layer, x, mask=None, segment_ids=None, state=None, return_state=False):
    return layer(x, mask=mask, segment_ids=segment_ids, state=state, return_state=return_state)


@pytest.mark.parametrize("init", ["official", "torch"])
def test_initial_values_are_the_authors(init):
    layer = DeltaNet(256, use_gate=True, conv_bias=True, init=init, rngs=nnx.Rngs(0))
    linear = 0.02 if init == "official" else (3 * 256) ** -0.5
    for map_ in (layer.query, layer.key, layer.value, layer.gate, layer.out):
        assert map_.bias is None
        assert abs(np.std(map_.kernel[...]) / linear - 1) < 0.02
    for direction in (layer.direction, layer.backward_direction):
        assert abs(np.std(direction.beta.kernel[...]) / linear - 1) < 0.1
        for conv in direction.convs.each:
            assert abs(np.std(conv.kernel[...]) / (0.02 if init == "official" else 12**-0.5) - 1) < 0.1
            assert np.asarray(conv.bias[...]).any() == (init == "torch")
    np.testing.assert_array_equal(layer.norm.scale[...], 1)
    assert not (layer.direction.beta.kernel[...] == layer.backward_direction.beta.kernel[...]).any()


OPTIONS = {
    "convolutions": {"conv_bias": True, "conv_size": 3, "allow_neg_eigval": True},
    "bare": {"use_short_conv": False, "use_beta": False, "expand_k": 0.5, "expand_v": 2.0},
    "sums": {"qk_activation": "elu", "qk_norm": "sum", "use_gate": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_parts_and_steps_equal_the_whole(name):
    layer, x = make(causal=True, **OPTIONS[name]), values()
    y, state = run(layer, x, return_state=True)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, layer.init_state(B))
    first, middle = run(layer, x[:, :4], return_state=True)
    second, last = run(layer, x[:, 4:], state=middle, return_state=True)
    assert error(np.concatenate([first, second], 1), y) <= 2e-6
    y_t, stepped = nnx.jit(lambda layer, x_t, state: layer.step(x_t, state))(layer, x[:, 4], middle)
    assert error(y_t, y[:, 4]) <= 2e-6
    assert_same(last, state, 2e-6)
    assert jax.tree.structure(stepped) == jax.tree.structure(state)


def test_what_the_options_do_to_queries_and_keys():
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    x[0] = -1
    heads = x.reshape(5, 2, 4)
    for activation, expected in (
        ("relu", np.maximum(heads, 0)),
        ("elu", np.where(heads > 0, heads + 1, np.exp(heads))),
        ("identity", heads),
    ):
        layer = make(qk_activation=activation)
        q, k, v = layer._qkv((x, 2 * x, x))
        np.testing.assert_allclose(q, expected, rtol=1e-6)
        np.testing.assert_array_equal(v, heads)
        if activation != "elu":
            np.testing.assert_allclose(k, 2 * expected, rtol=1e-6)
        assert {conv.activation for conv in layer.direction.convs.each[:2]} == {None}
        assert layer.direction.convs.each[2].activation == "silu"
    q, *_ = make(qk_activation="relu", qk_norm="sum")._qkv((x, x, x))
    np.testing.assert_allclose(q.sum(-1), (x.reshape(5, 2, 4).max(-1) > 0), rtol=1e-6)
    assert not q[0].any()  # relu left nothing, and there is nothing to divide by
    # Without convolutions SiLU of all three remains; with them it is theirs.
    arrays, state = make(use_short_conv=False).direction.convs((x, 2 * x, 3 * x))
    np.testing.assert_allclose(arrays[1], 2 * x / (1 + np.exp(-2 * x)), rtol=1e-5)
    assert state == ()


def test_beta():
    x = values()
    layer = make()
    once = layer._beta(layer.direction, x)
    np.testing.assert_allclose(once, 1 / (1 + np.exp(-x @ np.asarray(layer.direction.beta.kernel[...]))), rtol=1e-5)
    np.testing.assert_array_equal(make(allow_neg_eigval=True)._beta(layer.direction, x), 2 * once)
    layer = make(use_beta=False)
    np.testing.assert_array_equal(layer._beta(layer.direction, x), np.ones((B, T, 2), np.float32))
    half = layer._beta(make(dtype=jnp.bfloat16).direction, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32


@DIRECTIONS
@pytest.mark.parametrize("use_short_conv", [False, True], ids=["bare", "convolved"])
def test_packed_sequences(causal, use_short_conv):
    layer, x = make(causal=causal, use_short_conv=use_short_conv), values()
    y = run(layer, x, segment_ids=np.repeat([[0, 1]], B, 0).repeat([4, 5], 1))
    assert error(y[:, :4], run(layer, x[:, :4])) <= 2e-6
    assert error(y[:, 4:], run(layer, x[:, 4:])) <= 2e-6


@pytest.mark.parametrize("name", OPTIONS)
def test_padding_leaves_outputs_and_the_final_state_alone(name):
    layer, x = make(causal=True, **OPTIONS[name]), values()
    mask = np.arange(T) < 6
    padded = np.where(mask[:, None], x, 1e3)
    padded[1, 6:] = 0
    y, state = run(layer, padded, mask=np.broadcast_to(mask, (B, T)), return_state=True)
    expected, last = run(layer, x[:, :6], return_state=True)
    assert error(y[:, :6], expected) <= 2e-6
    assert not np.asarray(y[:, 6:]).any()
    assert_same(state, last, 2e-6)


@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_sums_with_padding_have_finite_gradients(activation):
    """Zeros are divided by their sum: at padding, and where relu leaves nothing."""
    layer, x = make(qk_activation=activation, qk_norm="sum", use_short_conv=False), values()
    mask = np.arange(T) < np.array([[T], [5]])
    x = np.where(mask[..., None], x, 0)

    def loss(x, length):
        return (layer(x[:, :length], mask=mask[:, :length]) ** 2)[1].sum()

    found, expected = jax.jit(jax.grad(loss), static_argnums=1)(x, T), jax.jit(jax.grad(loss), static_argnums=1)(x, 5)
    assert error(found[1], expected[1]) <= 2e-6
    assert not np.asarray(found[1, 5:]).any()


def test_errors_say_what_is_wrong():
    for options, message in (
        ({"num_heads": 3}, "times expand_k is 8 channels, not divisible by num_heads=3"),
        ({"expand_v": 0.4}, "times expand_v is 3 channels, not divisible by num_heads=2"),
        ({"expand_k": 0.1}, "times expand_k is 0 channels"),
        ({"qk_activation": "gelu"}, "qk_activation='gelu' is not known; there are silu, relu, elu, identity"),
        ({"qk_norm": "none"}, "qk_norm='none' is not known; there are l2, sum"),
        ({"init": "hf"}, "init='hf' is not known; there are official, torch"),
        ({"conv_size": 0}, "kernel_size=0"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
    layer = make()
    with pytest.raises(ValueError, match="init_state needs causal=True"):
        layer.init_state(2)
    with pytest.raises(ValueError, match="step needs causal=True"):
        layer.step(values()[:, 0], None)
    with pytest.raises(ValueError, match="causal=True"):
        layer(values(), return_state=True)
