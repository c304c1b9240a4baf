"""The retention layer of RetNet; the contract tests what every mixer must do, test_parity.py the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.layers.rotary import rotate
from zoo.mixers.retnet import RetNet

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
    return RetNet(D, num_heads=2, rngs=nnx.Rngs(0), **options)


def values(length=T, seed=0):
    return np.random.default_rng(seed).standard_normal((B, length, D)).astype(np.float32)


def test_initial_values_are_the_authors():
    layer = RetNet(64, rngs=nnx.Rngs(0))
    for name, fan, gain in (("query", 128, 2**-2.5), ("value", 192, 2**-2.5), ("gate", 192, 2**-2.5), ("out", 192, 1)):
        bound, kernel = gain * np.sqrt(6 / fan), getattr(layer, name).kernel[...]
        assert np.abs(kernel).max() <= bound
        assert abs(np.std(kernel) * np.sqrt(3) / bound - 1) < 0.03
    assert len(jax.tree.leaves(nnx.state(layer, nnx.Param))) == 5  # no biases, no scale of the norm


def test_angles_are_right_far_out():
    """In float32, position times angle alone would be off by 1e-3 at position 20,000, and by 0.1 at ten million."""
    x = np.ones((1, 1, 6), np.float32)
    angles = 10000.0 ** -np.linspace(0, 1, 3)
    for position in (0, 1, 4095, 4096, 20_001, 1_234_567, 10_000_001):
        found = rotate(x, np.array([position]), angles)[0, 0]
        phase = position * angles
        expected = np.stack([np.cos(phase) - np.sin(phase), np.sin(phase) + np.cos(phase)], -1).reshape(-1)
        assert error(found, expected) <= 2e-6
    with pytest.raises(ValueError, match="K = 4; its shape is"):
        rotate(x, np.array([0]), angles[:2])


def test_scores_are_normalised_but_for_epsilon():
    """The norm of a head undoes the factors, so that without them nothing changes as long as outputs are not tiny."""
    for causal in (False, True):
        layer, plain = make(causal=causal, norm_eps=1e-12), make(causal=causal, norm_eps=1e-12, normalize_scores=False)
        assert error(plain(values()), layer(values())) <= 2e-5
    assert plain.init_state(B).memory.shape == (B, 2, 4, 8)
    assert layer.init_state(B).memory.shape == (B, 2, 4, 9)


def test_layer_norm_takes_the_mean_off():
    layer, x = make(head_norm="layer", norm_eps=1e-12, expand_v=1.0), values()
    layer.out.kernel[...] = jnp.eye(D)
    heads = np.asarray(layer(x) / nnx.silu(layer.gate(x))).reshape(B, T, 2, D // 2)
    np.testing.assert_allclose(heads.mean(-1), 0, atol=1e-4)
    np.testing.assert_allclose(heads.var(-1), 1, atol=1e-3)


def test_left_padding_and_position():
    """Padding has no position: what stands behind it is as if it stood at the start."""
    layer = make(causal=True)
    run = nnx.jit(lambda layer, x, mask=None: layer(x, mask=mask, return_state=True))
    mask = np.broadcast_to(np.arange(T) >= 4, (B, T))
    y, state = run(layer, values(), mask)
    expected, expected_state = run(layer, values()[:, 4:])
    assert error(y[:, 4:], expected) <= 2e-6
    assert error(state.memory, expected_state.memory) <= 2e-6
    np.testing.assert_array_equal(state.count, [5, 5])


@DIRECTIONS
def test_packed_sequences(causal):
    layer, x = make(causal=causal), values()
    run = nnx.jit(lambda layer, x, ids=None: layer(x, segment_ids=ids, **({"return_state": True} if causal else {})))
    found = run(layer, x, np.repeat([[0, 1]], B, 0).repeat([4, 5], 1))
    first, second = run(layer, x[:, :4]), run(layer, x[:, 4:])
    if causal:
        (found, state), (first, _), (second, last) = found, first, second
        assert error(state.memory, last.memory) <= 2e-6
        np.testing.assert_array_equal(state.count, last.count)
    assert error(found[:, :4], first) <= 2e-6
    assert error(found[:, 4:], second) <= 2e-6


def test_errors_say_what_is_wrong():
    for options, message in (
        ({"expand_k": 0.75}, "heads of even width"),
        ({"expand_v": 0.4}, "expand_v=0.4 is 3, not divisible by num_heads=2"),
        ({"head_norm": "group"}, "head_norm='group' is not known"),
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
