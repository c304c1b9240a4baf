"""Mamba: a whole published model by its reference arrays, and the official initial values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from goldens import Arrays
from goldens.mamba import load_mamba

from zoo.factory import create_mixer
from zoo.mixers.mamba import Mamba


@pytest.fixture(scope="module")
def published():
    """The arrays of Hugging Face's MambaForCausalLM, and a model of ours that holds its parameters."""
    arrays = Arrays("mamba_lm")
    return arrays, load_mamba(arrays)


def error(a, b):
    return np.abs(np.asarray(a) - b).max() / max(1.0, np.abs(b).max())


def test_a_published_model_in_chunks_and_token_by_token(published):
    """The whole is compared in tests/test_parity.py."""
    arrays, model = published
    tokens = arrays["in/input_ids"]
    first, state = model(tokens[:, :17], return_state=True)
    logits = [first]
    for t in range(17, tokens.shape[1]):
        y, state = model.step(tokens[:, t], state)
        logits.append(y[:, None])
    assert error(jnp.concatenate(logits, 1), arrays["out/logits"]) <= 1e-5


def test_the_state_has_one_size_whatever_came_before(published):
    _, model = published
    sizes = set()
    for length in (1, 3, 40):
        _, state = model(np.zeros((2, length), np.int32), return_state=True)
        sizes.add(tuple(leaf.shape for leaf in jax.tree.leaves(state)))
    assert len(sizes) == 1


@pytest.mark.parametrize("causal", [True, False])
def test_initial_values_are_the_authors(causal):
    mixer = create_mixer("mamba", d_model=256, causal=causal)
    directions = [mixer.ssm] if causal else [mixer.ssm, mixer.backward_ssm]
    bound = 1 / math.sqrt(256)
    kernel = np.asarray(mixer.in_proj.kernel[...])
    assert kernel.shape == (256, 1024)
    assert np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    for ssm in directions:
        steps = np.asarray(jax.nn.softplus(ssm.dt_bias[...]))
        assert 1e-3 * 0.999 <= steps.min() < 2e-3
        assert 0.05 < steps.max() <= 0.1 * 1.001
        # Log-uniform: half of them lie below the geometric mean.
        assert (steps < 1e-2).mean() == pytest.approx(0.5, abs=0.08)
        np.testing.assert_allclose(np.exp(ssm.A_log[...]), np.tile(np.arange(1.0, 17.0), (512, 1)), rtol=1e-6)
        np.testing.assert_array_equal(ssm.D[...], 1)
        assert ssm.dt_proj.kernel.shape == (16, 512)
        assert np.abs(np.asarray(ssm.dt_proj.kernel[...])).max() <= 16**-0.5
        assert np.abs(np.asarray(ssm.conv.kernel[...])).max() <= 0.5
    if not causal:
        assert np.abs(np.asarray(mixer.ssm.dt_bias[...]) - np.asarray(mixer.backward_ssm.dt_bias[...])).max() > 0.1


# --- what is particular to the layer


def make(**options):
    return Mamba(8, **{"d_state": 3, "rngs": nnx.Rngs(0), **options})


call = nnx.jit(lambda layer, x, **options: layer(x, **options), static_argnames=("return_state",))


def values(length=9, seed=0):
    return np.random.default_rng(seed).standard_normal((2, length, 8)).astype(np.float32)


def assert_uniform(parameter, bound):
    array = np.asarray(parameter[...])
    assert 0.98 * bound < np.abs(array).max() <= bound
    assert array.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_other_initial_values():
    layer = Mamba(256, causal=True, num_layers=16, init="hf", dt_init="constant", dt_scale=2.0, rngs=nnx.Rngs(0))
    assert np.std(layer.in_proj.kernel[...]) == pytest.approx(0.1, rel=0.02)
    assert np.std(layer.ssm.x_proj.kernel[...]) == pytest.approx(0.1, rel=0.02)
    assert not np.asarray(layer.ssm.conv.bias[...]).any()
    np.testing.assert_allclose(layer.ssm.dt_proj.kernel[...], 2 * 16**-0.5)
    assert_uniform(layer.out_proj.kernel, 512**-0.5 / 4)
    official = Mamba(256, causal=True, rngs=nnx.Rngs(0))
    assert_uniform(official.out_proj.kernel, 512**-0.5)
    assert_uniform(official.ssm.conv.bias, 0.5)
    assert official.in_proj.bias is None
    assert official.out_proj.bias is None
    layer = make(conv_bias=False, proj_bias=True, dt_init_floor=0.05)
    assert layer.ssm.conv.bias is None
    assert layer.in_proj.bias is not None
    assert layer.out_proj.bias is not None
    assert np.log1p(np.exp(layer.ssm.dt_bias[...])).min() > 0.049


def test_both_directions_are_the_average_of_two_passes():
    layer, x = make(proj_bias=True), values()

    def one_way(source, x):
        """The causal layer that shares the projections and has the parts of one direction."""
        causal = make(causal=True, proj_bias=True)
        causal.in_proj, causal.ssm, causal.out_proj = layer.in_proj, source, layer.out_proj
        return np.asarray(call(causal, x))

    forward, backward = one_way(layer.ssm, x), one_way(layer.backward_ssm, x[:, ::-1])[:, ::-1]
    assert error(call(layer, x), (forward + backward) / 2) <= 2e-6


@pytest.mark.parametrize("causal", [True, False])
def test_packed_sequences_do_not_see_each_other(causal):
    layer, x = make(causal=causal), values()
    y = call(layer, x, segment_ids=np.array([[0] * 4 + [1] * 5] * 2))
    apart = np.concatenate([call(layer, x[:, :4]), call(layer, x[:, 4:])], 1)
    assert error(y, apart) <= 2e-6


def test_padding_leaves_no_trace_even_with_biases():
    layer = make(causal=True, proj_bias=True)
    x, mask = values(), np.arange(9) < np.array([[6], [2]])
    layer.in_proj.bias[...] = jnp.ones_like(layer.in_proj.bias[...])
    _, state = call(layer, np.where(mask[..., None], x, 1e4), mask=mask, return_state=True)
    for row, length in enumerate((6, 2)):
        _, alone = call(layer, x[:, :length], return_state=True)
        for found, expected in zip(state, alone, strict=True):
            assert error(found[row], np.asarray(expected[row])) <= 2e-6


def test_time_steps_are_float32_in_a_bfloat16_layer():
    """Their bias is added in float32: in bfloat16 it would move them by up to a percent."""
    layer = make(causal=True, dtype=jnp.bfloat16)
    for parameter in (layer.ssm.dt_proj.kernel, layer.ssm.conv.kernel, layer.ssm.conv.bias):
        parameter[...] = jnp.zeros_like(parameter[...])
    layer.ssm.dt_bias[...] = jnp.full_like(layer.ssm.dt_bias[...], -6.91)
    empty = layer.init_state(2)
    y, state = call(layer, values(length=1), state=empty._replace(ssm=jnp.ones_like(empty.ssm)), return_state=True)
    assert y.dtype == jnp.bfloat16
    kept = np.exp(-np.log1p(np.exp(-6.91)) * np.arange(1, 4))
    np.testing.assert_allclose(state.ssm, np.broadcast_to(kept[:, None], state.ssm.shape), rtol=1e-6)


def test_errors_say_what_is_wrong():
    for options, message in (
        ({"d_state": 0}, "d_state >= 1; it is 0"),
        ({"expand": 0.01}, r"expand \* d_model >= 1"),
        ({"num_layers": 0}, "num_layers >= 1"),
        ({"dt_init": "zeros"}, "dt_init='zeros'"),
        ({"init": "torch"}, "init='torch'"),
        ({"dt_min": 0.2}, r"low=0\.2"),
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
    with pytest.raises(ValueError, match="no implementation 'cuda'"):
        make(implementation="cuda")(values())
