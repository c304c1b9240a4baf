"""The linear attention layer; what every mixer must do is tested by the contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.mixers.linear_attention import LinearAttention
from zoo.ops.linear_attention import FEATURE_MAPS, feature_map, feature_width, linear_attention, linear_attention_step

B, T, H, K, V, D = 2, 9, 2, 4, 3, 8
MASK = np.stack([np.arange(T) < 7, np.arange(T) != 3])
SEGMENTS = np.stack([[0] * 4 + [1] * 5, [3] * 2 + [5] * 7])
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


def features(length=T, seed=0):
    rng = np.random.default_rng(seed)
    q, k = np.abs(rng.standard_normal((2, B, length, H, K))).astype(np.float32)
    return q, k, rng.standard_normal((B, length, H, V)).astype(np.float32)


def quadratic(q, k, v, causal, mask=None, segment_ids=None, eps=1e-6):
    """All pairs, in float64."""
    length = q.shape[1]
    seen = np.broadcast_to(
        np.tri(length, dtype=bool) if causal else np.ones((length, length), bool), (B, length, length)
    )
    if segment_ids is not None:
        seen = seen & (segment_ids[:, :, None] == segment_ids[:, None])
    if mask is not None:
        seen = seen & mask[:, None] & mask[:, :, None]
    weights = np.einsum("bthk,bshk->bhts", q.astype(np.float64), k) * seen[:, None]
    return np.einsum("bhts,bshv->bthv", weights / (weights.sum(-1, keepdims=True) + eps), v)


# --- the op


@DIRECTIONS
@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_quadratic_formula(causal, implementation, masked, packed):
    arrays = features()
    marks = ({"mask": MASK} if masked else {}) | ({"segment_ids": SEGMENTS} if packed else {})
    found = linear_attention(*arrays, causal=causal, implementation=implementation, **marks)
    assert error(found, quadratic(*arrays, causal, **marks)) <= 2e-6


@pytest.mark.parametrize("normalize", [False, True])
def test_parts_and_steps_equal_the_whole(normalize):
    arrays = features()
    options = {"causal": True, "normalize": normalize, "return_state": True}
    y, state = linear_attention(*arrays, **options)
    first, middle = linear_attention(*(x[:, :4] for x in arrays), **options)
    second, last = linear_attention(*(x[:, 4:] for x in arrays), **options, initial_state=middle)
    assert error(np.concatenate([first, second], 1), y) <= 1e-6
    assert error(last, state) <= 1e-6
    y_t, stepped = linear_attention_step(middle, *(x[:, 4] for x in arrays), normalize=normalize)
    assert error(y_t, y[:, 4]) <= 1e-6
    assert state.shape == stepped.shape == (B, H, K, V + normalize)
    if normalize:
        assert error(state[..., -1], arrays[1].sum(1)) <= 1e-6


def test_feature_maps():
    x, y = np.random.default_rng(0).standard_normal((2, 5, K)).astype(np.float32)
    for name in FEATURE_MAPS:
        assert feature_map(x, name).shape == (5, feature_width(name, K))
        assert feature_map(x.astype(jnp.bfloat16), name).dtype == jnp.bfloat16
        assert name == "identity" or np.asarray(feature_map(x, name) >= 0).all() or name == "taylor"
    np.testing.assert_allclose(feature_map(x, "elu"), np.where(x > 0, x + 1, np.exp(x)), rtol=1e-6)
    assert 0 < feature_map(np.float32([-30.0]), "elu")[0] < 1e-12  # exp(x) - 1 + 1 would be 0
    product = (x * y).sum(-1)
    kernel = (feature_map(x, "taylor") * feature_map(y, "taylor")).sum(-1)
    np.testing.assert_allclose(kernel, 1 + product / np.sqrt(K) + product**2 / (2 * K), rtol=1e-5)
    both = np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], -1)
    np.testing.assert_allclose(feature_map(x, "dpfp")[:, : 2 * K], both * np.roll(both, 1, -1), rtol=1e-6)
    with pytest.raises(ValueError, match="feature_map='cosine' is not known"):
        feature_map(x, "cosine")


def test_errors_of_the_op():
    arrays = features()
    state = np.zeros((B, H, K, V + 1), np.float32)
    for options, message in (
        ({"eps": 0.0}, "eps > 0"),
        ({"return_state": True}, "causal=True"),
        ({"initial_state": state}, "causal=True"),
        ({"causal": True, "initial_state": state[..., 1:]}, r"axis 3 \(V\) of initial_state is 3"),
        ({"implementation": "cuda"}, "no implementation 'cuda'"),
        ({"mask": MASK[:, 1:]}, r"axis 1 \(T\) of mask is 8"),
    ):
        with pytest.raises(ValueError, match=message):
            linear_attention(*arrays, **options)


# --- the layer


def make(**options):
    return LinearAttention(D, num_heads=2, rngs=nnx.Rngs(0), **options)


def values(length=T, seed=0):
    return np.random.default_rng(seed).standard_normal((B, length, D)).astype(np.float32)


def test_initial_values_are_pytorchs():
    layer = LinearAttention(64, rngs=nnx.Rngs(0))
    for linear in (layer.projections.query, layer.projections.out):
        for x in (linear.kernel[...], linear.bias[...]):
            assert np.abs(x).max() <= 1 / 8
            assert abs(np.std(x) - 1 / 8 / np.sqrt(3)) < 0.01


@pytest.mark.parametrize("name", [name for name in FEATURE_MAPS if name != "elu"])
def test_options_reach_the_call_and_the_step(name):
    layer = make(causal=True, feature_map=name, normalize=name != "identity", output_norm=True, eps=0.1)
    x = values(4)
    y = nnx.jit(lambda layer, x: layer(x))(layer, x)
    q, k, v = layer.projections.split(x)
    q, k = feature_map(q, name), feature_map(k, name)
    heads = linear_attention(q, k, v, causal=True, normalize=name != "identity", eps=0.1, implementation="reference")
    assert error(y, layer.projections.merge(layer.norm(heads))) <= 2e-6
    state = layer.init_state(B)
    step = nnx.jit(lambda layer, x_t, state: layer.step(x_t, state))
    for t in range(4):
        y_t, state = step(layer, x[:, t], state)
        assert error(y_t, y[:, t]) <= 2e-6


@DIRECTIONS
def test_packed_sequences(causal):
    layer, x = make(causal=causal), values()
    run = nnx.jit(lambda layer, x, ids=None: layer(x, segment_ids=ids))
    y = run(layer, x, np.repeat([[0, 1]], B, 0).repeat([4, 5], 1))
    assert error(y[:, :4], run(layer, x[:, :4])) <= 2e-6
    assert error(y[:, 4:], run(layer, x[:, 4:])) <= 2e-6


def test_errors_say_what_is_wrong():
    for options, message in (
        ({"feature_map": "cosine"}, "feature_map='cosine' is not known"),
        ({"feature_map": "identity"}, "normalize=False"),
        ({"eps": 0.0}, "eps=0.0 must be positive"),
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
