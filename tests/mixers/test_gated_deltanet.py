"""The layer of Gated DeltaNet; the contract tests what every mixer must do, test_parity.py the definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_same, error
from flax import nnx

from zoo.mixers.deltanet import DeltaNet
from zoo.mixers.gated_deltanet import GatedDeltaNet

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
    return GatedDeltaNet(D, **{"num_heads": 2, "init": "torch", **options}, rngs=nnx.Rngs(0))


def values(length=T, seed=0):
    return np.random.default_rng(seed).standard_normal((B, length, D)).astype(np.float32)


@functools.partial(nnx.jit, static_argnames="return_state")
def run(layer, x, mask=None, segment_ids=None, state=None, return_state=False):
    return layer(x, mask=mask, segment_ids=segment_ids, state=state, return_state=return_state)


def at(tree, path):
    for name in path.split("/"):
        key = int(name) if name.isdigit() else name
        tree = tree[key] if isinstance(tree, dict | nnx.State | nnx.List) else getattr(tree, name)
    return tree


@pytest.mark.parametrize("init", ["official", "torch"])
def test_initial_values_are_the_authors(init):
    layer = GatedDeltaNet(256, num_heads=64, conv_bias=True, init=init, rngs=nnx.Rngs(0))
    linear = 0.02 if init == "official" else (3 * 256) ** -0.5
    for map_ in (layer.query, layer.key, layer.value, layer.gate):
        assert map_.bias is None
        assert abs(np.std(map_.kernel[...]) / linear - 1) < 0.02
    for direction in (layer.direction, layer.backward_direction):
        for map_ in (direction.beta, direction.decay):
            assert map_.bias is None
            assert abs(np.std(map_.kernel[...]) / linear - 1) < 0.05
        for conv in direction.convs.each:
            assert abs(np.std(conv.kernel[...]) / (0.02 if init == "official" else 12**-0.5) - 1) < 0.1
            assert np.asarray(conv.bias[...]).any() == (init == "torch")
    np.testing.assert_array_equal(layer.norm.scale[...], 1)


def test_initial_decays_are_the_authors():
    layer = GatedDeltaNet(8, num_heads=2, num_v_heads=4096, d_head=1, expand_v=1, rngs=nnx.Rngs(0))
    for direction in (layer.direction, layer.backward_direction):
        rates, steps = np.exp(direction.A_log[...]), np.log1p(np.exp(direction.dt_bias[...]))
        assert np.isfinite(direction.A_log[...]).all()
        assert 0 < rates.min() < 0.1
        assert 15.9 < rates.max() <= 16.001
        np.testing.assert_allclose(np.quantile(rates, [0.25, 0.5, 0.75]), [4, 8, 12], rtol=0.1)
        np.testing.assert_allclose(np.quantile(steps, [0, 0.5, 1]), [0.001, 0.01, 0.1], rtol=0.15)
        np.testing.assert_allclose(np.corrcoef(rates, np.log(steps))[0, 1], 0, atol=0.1)
    assert not (layer.direction.A_log[...] == layer.backward_direction.A_log[...]).any()


def test_the_rate_is_never_zero(monkeypatch):
    """Where the uniform draw is 0, which has probability 2^-23, no parameter is infinite."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, *args, **kwargs: jnp.zeros(shape))
    assert np.isfinite(make().direction.A_log[...]).all()


OPTIONS = {
    "grouped": {"num_v_heads": 4, "conv_bias": True, "conv_size": 3},
    "bare": {"use_short_conv": False, "use_gate": False, "d_head": 4, "expand_v": 0.5, "allow_neg_eigval": True},
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


def test_widths():
    layer = GatedDeltaNet(64, rngs=nnx.Rngs(0))
    assert (layer.num_heads, layer.heads) == (4, (4, 12, 24))
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(GatedDeltaNet(256, causal=True, rngs=nnx.Rngs(0))))]
    assert 6 * 256**2 <= sum(sizes) <= 6.2 * 256**2  # the authors' size of a layer
    layer = make(d_head=4, num_v_heads=4, expand_v=1.5)
    assert (layer.query.kernel.shape, layer.value.kernel.shape, layer.norm.scale.shape) == ((8, 8), (8, 24), (6,))


def test_gates():
    layer, x = make(num_v_heads=4), values()
    direction = layer.direction
    beta, log_decay = layer._gates(direction, x)
    np.testing.assert_allclose(beta, 1 / (1 + np.exp(-x @ np.asarray(direction.beta.kernel[...]))), rtol=1e-5)
    step = np.log1p(np.exp(x @ np.asarray(direction.decay.kernel[...]) + np.asarray(direction.dt_bias[...])))
    np.testing.assert_allclose(log_decay, -np.exp(direction.A_log[...]) * step, rtol=1e-4)
    twice, same = make(num_v_heads=4, allow_neg_eigval=True)._gates(direction, x)
    np.testing.assert_array_equal(twice, 2 * beta)
    np.testing.assert_array_equal(same, log_decay)
    half = make(dtype=jnp.bfloat16)
    assert {x.dtype for x in half._gates(half.direction, x.astype(jnp.bfloat16))} == {jnp.dtype(jnp.float32)}


def copied(layer, into):
    """`into` with the parameters of `layer` that both have."""
    for path, value in nnx.to_flat_state(nnx.state(into, nnx.Param)):
        value[...] = at(layer, "/".join(map(str, path)))[...]
    return into


@DIRECTIONS
@pytest.mark.parametrize("log_rate", [-100.0, -np.inf])
def test_without_decay_it_is_deltanet(causal, log_rate):
    widths = {"expand_k": 0.5, "expand_v": 1.0, "num_heads": 2, "causal": causal}
    layer, x = make(**widths | {"expand_v": 2.0}), values()
    for direction in filter(None, (layer.direction, layer.backward_direction)):
        direction.A_log[...] = jnp.full(2, log_rate)
    plain = copied(layer, DeltaNet(D, **widths, use_gate=True, rngs=nnx.Rngs(1)))
    mask = np.arange(T) < np.array([[T], [5]])
    assert error(run(layer, x, mask=mask), run(plain, x, mask=mask)) <= 2e-6


def test_grouped_values_are_repeated_queries_and_keys():
    shared, full = make(num_v_heads=4), make(num_heads=4, num_v_heads=4, d_head=3)
    for path, value in nnx.to_flat_state(nnx.state(full, nnx.Param)):
        source = at(shared, "/".join(map(str, path)))[...]
        if value.shape != source.shape:  # of queries and keys: their 2 heads of 3 channels, twice each
            source = jnp.repeat(source.reshape(-1, 2, 3), 2, axis=1).reshape(len(source), 12)
        value[...] = source
    assert error(run(full, values()), run(shared, values())) <= 2e-6


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


def test_errors_say_what_is_wrong():
    for options, message in (
        ({"num_heads": 4}, "times expand_k is 6 channels, not divisible by num_heads=4; d_head sets"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"num_v_heads": 3}, "num_v_heads=3 is not a multiple of num_heads=2"),
        ({"num_v_heads": 0}, "num_v_heads=0"),
        ({"d_head": 0}, "d_head=0 is not positive"),
        ({"expand_v": 1.5}, r"expand_v=1\.5 times the 3 channels of a head is not a positive integer"),
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
