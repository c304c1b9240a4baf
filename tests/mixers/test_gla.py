"""The layer of GLA; the contract tests what every mixer must do, test_parity.py the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.mixers.gla import GLA

B, T, D = 2, 9, 8
DIRECTIONS = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


@pytest.fixture(autouse=True)
def light_compilation(compilation_cache):
    """Halves the time to compile; what is tested does not depend on XLA's optimisations."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def error(found, expected):
    """Largest difference, relative to the largest value (or 1)."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    return np.abs(found - expected).max() / max(1, np.abs(expected).max())


def make(**options):
    return GLA(D, **{"num_heads": 2, "gate_rank": 4, **options}, rngs=nnx.Rngs(0))


def values(length=T, seed=0):
    return np.random.default_rng(seed).standard_normal((B, length, D)).astype(np.float32)


def test_initial_values_are_the_authors():
    layer = GLA(256, use_short_conv=True, rngs=nnx.Rngs(0))
    for linear in (layer.query, layer.value, layer.gate, layer.decay_rank, layer.direction.decay, layer.out):
        assert abs(np.std(linear.kernel[...]) - 0.02) < 0.001
    for direction in (layer.direction, layer.backward_direction):
        assert not np.asarray(direction.decay.bias[...]).any()
        assert abs(np.std(direction.convs.each[0].kernel[...]) - 0.02) < 0.003
    np.testing.assert_array_equal(layer.norm.scale[...], 1)
    # sigmoid(0)^(1/16): what a memory keeps per token at the start.
    *_, decay = layer._qkv((jnp.ones((1, 128)), jnp.ones((1, 128)), jnp.ones((1, 256))), jnp.zeros((1, 128)))
    np.testing.assert_allclose(np.exp(decay), 0.5 ** (1 / 16), rtol=1e-6)


OPTIONS = {
    "shared": {"num_heads": 4, "num_kv_heads": 2, "expand_k": 1.0},
    "convolutions": {"use_short_conv": True, "conv_bias": True},
    "bare": {"use_output_gate": False, "norm_affine": False, "feature_map": "relu", "clamp_min": -0.01},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_parts_and_steps_equal_the_whole(name):
    layer, x = make(causal=True, **OPTIONS[name]), values()
    call = nnx.jit(lambda layer, x, state=None: layer(x, state=state, return_state=True))
    y, state = call(layer, x)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, layer.init_state(B))
    first, middle = call(layer, x[:, :4])
    second, last = call(layer, x[:, 4:], middle)
    assert error(np.concatenate([first, second], 1), y) <= 2e-6
    y_t, stepped = nnx.jit(lambda layer, x_t, state: layer.step(x_t, state))(layer, x[:, 4], middle)
    assert error(y_t, y[:, 4]) <= 2e-6
    for one, other in zip(jax.tree.leaves(last), jax.tree.leaves(state), strict=True):
        assert error(one, other) <= 2e-6
    assert jax.tree.structure(stepped) == jax.tree.structure(state)


def test_shared_heads_are_repeated_heads():
    shared = make(num_heads=4, num_kv_heads=2, expand_k=1.0)
    full = make(num_heads=4, expand_k=1.0)
    for name in ("query", "gate", "out", "decay_rank"):
        getattr(full, name).kernel[...] = getattr(shared, name).kernel[...]

    def repeat(x):
        return jnp.repeat(x.reshape(*x.shape[:-1], 2, 2), 2, axis=-2).reshape(*x.shape[:-1], 8)

    for name in ("key", "value"):
        getattr(full, name).kernel[...] = repeat(getattr(shared, name).kernel[...])
    for name in ("direction", "backward_direction"):
        for part in ("kernel", "bias"):
            getattr(getattr(full, name).decay, part)[...] = repeat(getattr(getattr(shared, name).decay, part)[...])
    assert error(full(values()), shared(values())) <= 2e-6


def test_other_initial_values():
    for init, std in (("paper", 2**-2.5 * (2 / 512) ** 0.5), ("torch", (1 / 3 / 256) ** 0.5)):
        layer = GLA(256, expand_k=1.0, init=init, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(np.std(layer.query.kernel[...]), std, rtol=0.03)


def test_limits_of_the_decay():
    layer = make(clamp_min=-0.01, gate_normalizer=1.0)
    *_, decay = layer._qkv((jnp.ones((1, 4)), jnp.ones((1, 4)), jnp.ones((1, 8))), jnp.asarray([[-50.0, 0, 9, 50]]))
    np.testing.assert_allclose(decay.reshape(-1), [-0.01, -0.01, np.log(1 / (1 + np.exp(-9))), 0], rtol=1e-5, atol=1e-9)


@DIRECTIONS
@pytest.mark.parametrize("use_short_conv", [False, True])
def test_packed_sequences(causal, use_short_conv):
    layer, x = make(causal=causal, use_short_conv=use_short_conv), values()
    run = nnx.jit(lambda layer, x, ids=None: layer(x, segment_ids=ids))
    y = run(layer, x, np.repeat([[0, 1]], B, 0).repeat([4, 5], 1))
    assert error(y[:, :4], run(layer, x[:, :4])) <= 2e-6
    assert error(y[:, 4:], run(layer, x[:, 4:])) <= 2e-6


def test_errors_say_what_is_wrong():
    for options, message in (
        ({"num_heads": 3}, "times expand_k is 4 channels, not divisible by num_heads=3"),
        ({"expand_v": 0.4}, "times expand_v is 3 channels, not divisible by num_heads=2"),
        ({"num_kv_heads": 3}, "num_heads=2 is not a multiple of num_kv_heads=3"),
        ({"feature_map": "taylor"}, "feature_map='taylor' is not known"),
        ({"gate_rank": 0}, "gate_rank=0"),
        ({"init": "xavier"}, "init='xavier' is not known; there are official, paper, torch"),
        ({"clamp_min": 1.0}, "clamp_min=1.0"),
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
