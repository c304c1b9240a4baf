"""The Mamba-2 mixer: parity with a whole language model, a plain loop, initial values, both directions, options."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from goldens import Arrays
from goldens.mamba import load_mamba2

from zoo.mixers.mamba2 import Mamba2
from zoo.registry import get, spec

D, T = 8, 9


@pytest.fixture(autouse=True)
def light_compilation(compilation_cache):
    """Halves the time to compile; what is tested does not depend on XLA's optimisations."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def make(**options):
    return Mamba2(D, **{"d_state": 3, "d_head": 4, "rngs": nnx.Rngs(0), **options})


call = nnx.jit(lambda layer, x, **options: layer(x, **options), static_argnames=("return_state",))
step = nnx.jit(lambda layer, x_t, state: layer.step(x_t, state))


def values(length=T, seed=0, width=D):
    return np.random.default_rng(seed).standard_normal((2, length, width)).astype(np.float32)


def assert_close(found, expected, tolerance=2e-6):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(np.asarray(one) - np.asarray(other)).max() <= tolerance * max(1, np.abs(np.asarray(other)).max())


# --- the published language model


def test_published_language_model_in_pieces():
    """The whole is compared in tests/test_parity.py."""
    data = Arrays("mamba2_lm")
    model, state, found = load_mamba2(data), None, []
    for piece in np.split(data["in/input_ids"], [7, 20, 21, 22], axis=1):
        logits, state = model(piece, state=state, return_state=True)
        found.append(logits)
    assert_close(np.concatenate(found, 1), data["out/logits"], 1e-5)


# --- a derivation of its own: groups, limits, norms, by loops in float64


def silu(x):
    return x / (1 + np.exp(-x))


def plain(layer, ssd, x, *, groups, heads, width, states, limit=(0, math.inf), before=False):
    """One direction of the layer on one example [T, D], one token and head after the other."""
    get = lambda parameter: np.asarray(parameter[...], np.float64)  # noqa: E731
    projected = x @ get(layer.in_proj.kernel)
    z, xbc, dt = np.split(projected, [heads * width, projected.shape[-1] - heads], axis=-1)
    kernel = get(ssd.conv.kernel)
    padded = np.concatenate([np.zeros((len(kernel) - 1, xbc.shape[1])), xbc])
    xbc = silu(sum(w * padded[i : i + len(x)] for i, w in enumerate(kernel)) + get(ssd.conv.bias))
    inner, b, c = np.split(xbc, [heads * width, heads * width + groups * states], axis=-1)
    y = np.zeros((len(x), heads, width))
    for h in range(heads):
        memory, g, own = np.zeros((states, width)), h * groups // heads, slice(h * width, (h + 1) * width)
        for t in range(len(x)):
            delta = np.clip(np.log1p(np.exp(dt[t, h] + get(ssd.dt_bias)[h])), *limit)
            key, query = (a[t, g * states : (g + 1) * states] for a in (b, c))
            memory = np.exp(-delta * np.exp(get(ssd.A_log)[h])) * memory + np.outer(key, delta * inner[t, own])
            y[t, h] = query @ memory + get(ssd.D)[h] * inner[t, own]
    y = y.reshape(len(x), -1)
    y = y if before else y * silu(z)
    if layer.norm_scale is not None:
        parts = y.reshape(len(x), groups, -1)
        y = (parts / np.sqrt((parts**2).mean(-1, keepdims=True) + 1e-5)).reshape(y.shape) * get(layer.norm_scale)
    y = y * silu(z) if before else y
    return y @ get(layer.out_proj.kernel)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_groups": 2, "norm_before_gate": True, "skip_per_channel": True},
        {"gated_norm": False, "dt_limit": (0.01, 0.05)},
    ],
    ids=str,
)
def test_equals_a_plain_loop(options):
    layer = make(causal=True, **options)
    rng = np.random.default_rng(0)
    layer.ssd.D[...] = rng.standard_normal(layer.ssd.D.shape)
    if layer.norm_scale is not None:
        layer.norm_scale[...] = rng.standard_normal(layer.norm_scale.shape)
    sizes = {"groups": options.get("num_groups", 1), "heads": 4, "width": 4, "states": 3}
    sizes |= {"limit": options.get("dt_limit", (0, math.inf)), "before": options.get("norm_before_gate", False)}
    x = values()
    expected = np.stack([plain(layer, layer.ssd, row.astype(np.float64), **sizes) for row in x])
    assert_close(call(layer, x), expected)
    state, outputs = layer.init_state(2), []
    for t in range(T):
        y_t, state = step(layer, x[:, t], state)
        outputs.append(y_t)
    assert_close(np.stack(outputs, 1), expected)


# --- initial values


def test_official_initial_values():
    layer = Mamba2(256, d_head=2, d_state=64, num_layers=4, rngs=nnx.Rngs(0))
    for part in (layer.ssd, layer.backward_ssd):
        assert part.A_log.shape == part.D.shape == part.dt_bias.shape == (256,)
        assert_uniform(part.conv.kernel, 0.5)
        assert_uniform(part.conv.bias, 0.5)
        rates = np.exp(part.A_log[...])
        assert 1 <= rates.min() < 1.3
        assert 15.7 < rates.max() <= 16.001
        assert abs(rates.mean() - 8.5) < 1
        np.testing.assert_array_equal(part.D[...], 1)
        steps = np.log(np.log1p(np.exp(np.asarray(part.dt_bias[...], np.float64))))
        assert np.log(1e-3) - 1e-4 <= steps.min() < np.log(1.3e-3)
        assert np.log(0.08) < steps.max() <= np.log(0.1) + 1e-4
    assert layer.in_proj.kernel.shape == (256, 2 * 512 + 2 * 64 + 256)
    assert_uniform(layer.in_proj.kernel, 256**-0.5)
    assert_uniform(layer.out_proj.kernel, 512**-0.5 / 2)
    np.testing.assert_array_equal(layer.norm_scale[...], 1)
    assert layer.in_proj.bias is None
    assert not np.array_equal(layer.ssd.conv.kernel[...], layer.backward_ssd.conv.kernel[...])


def assert_uniform(parameter, bound):
    array = np.asarray(parameter[...])
    assert 0.98 * bound < np.abs(array).max() <= bound
    assert abs(array.std() / (bound / 3**0.5) - 1) < 0.05


# --- what is particular


def test_both_directions_are_averaged_before_the_gate():
    """Without norm the average of two causal layers, the second on the flipped sequence."""
    layer = make(gated_norm=False)
    x = values()

    def one_way(source, x):
        causal = make(causal=True, gated_norm=False)
        causal.in_proj, causal.ssd, causal.out_proj = layer.in_proj, source, layer.out_proj
        return np.asarray(call(causal, x))

    forward, backward = one_way(layer.ssd, x), one_way(layer.backward_ssd, x[:, ::-1])[:, ::-1]
    assert_close(call(layer, x), (forward + backward) / 2)


def test_packed_sequences_do_not_see_each_other():
    x = values()
    ids = np.array([[0] * 4 + [1] * 5] * 2)
    for causal in (True, False):
        layer = make(causal=causal)
        y = call(layer, x, segment_ids=ids)
        assert_close(y, np.concatenate([call(layer, x[:, :4]), call(layer, x[:, 4:])], 1))


def test_padding_leaves_no_trace_even_with_biases():
    layer = make(causal=True, proj_bias=True)
    x, mask = values(), np.arange(T) < np.array([[6], [2]])
    layer.in_proj.bias[...] = jnp.ones_like(layer.in_proj.bias[...])
    _, state = call(layer, np.where(mask[..., None], x, 1e4), mask=mask, return_state=True)
    for row, length in enumerate((6, 2)):
        _, alone = call(layer, x[:, :length], return_state=True)
        assert_close(jax.tree.map(lambda s, row=row: s[row], state), jax.tree.map(lambda s, row=row: s[row], alone))


def test_dtypes_and_state():
    layer = make(causal=True, dtype=jnp.bfloat16)
    y, state = call(layer, values(), return_state=True)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, layer.init_state(2))
    y_t, _ = step(layer, values()[:, 0], state)
    assert y_t.dtype == jnp.bfloat16


def test_errors_say_what_is_wrong():
    for options, message in (
        ({"d_state": 0}, "d_state >= 1; it is 0"),
        ({"d_head": 5}, "d_head to divide"),
        ({"num_groups": 3}, "num_groups=3"),
        ({"a_range": (0.0, 1.0)}, r"a_range=\(0.0, 1.0\)"),
        ({"dt_limit": (0.2, 0.1)}, r"dt_limit=\(0.2, 0.1\)"),
        ({"num_layers": 0}, "num_layers >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
    layer = make()
    with pytest.raises(ValueError, match=r"init_state needs causal=True"):
        layer.init_state(2)
    with pytest.raises(ValueError, match=r"step needs causal=True"):
        layer.step(values()[:, 0], None)
    with pytest.raises(ValueError, match="causal=True"):
        layer(values(), return_state=True)


def test_registered():
    facts = spec("mamba2", "mixer")
    assert get("mamba2") is Mamba2
    assert (facts.causal, facts.bidirectional, facts.padding_mask, facts.decode, facts.fixed_length) == (
        True,
        True,
        True,
        True,
        False,
    )
