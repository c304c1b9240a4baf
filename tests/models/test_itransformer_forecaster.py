"""iTransformer's forecaster: what follows from tokens that are variates (test_parity.py has the authors' numbers)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.functional import count_parameters
from zoo.models.itransformer_forecaster import ITransformerForecaster

B, L, H, N, M = 2, 16, 6, 5, 3
DRAW = np.random.default_rng(0)
X = jnp.asarray(DRAW.normal(2, 3, (B, L, N)), jnp.float32)
MARKS = jnp.asarray(DRAW.uniform(-0.5, 0.5, (B, L + H, M)), jnp.float32)

pytestmark = pytest.mark.usefixtures("compilation_cache")


def make(**options) -> Any:
    small = {"d_model": 16, "num_heads": 2, "d_ff": 16, "num_marks": M}
    model = ITransformerForecaster(num_variates=N, lookback=L, horizon=H, **{**small, **options}, rngs=nnx.Rngs(0))
    model.eval()
    return model


@jax.jit
def forward(model, x, marks=None):
    return model(x, marks=marks)


def relative(a, b):
    """max|a - b| / max(1, max|b|)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.abs(a - b).max() / max(1, np.abs(b).max())


def test_the_defaults_are_the_authors_on_etth1():
    model: Any = nnx.eval_shape(
        lambda: ITransformerForecaster(num_variates=7, lookback=96, horizon=96, num_marks=4, rngs=nnx.Rngs(0))
    )
    assert count_parameters(nnx.state(model, nnx.Param)) == 841_568
    block = model.layers[0]
    assert (model.dropout.rate, block.mixer.attention_dropout.rate, block.ffn.dropout.rate) == (0.1, 0.1, 0.1)
    assert block.mixer.projections.num_heads == 8


def test_it_starts_as_pytorch_does():
    model: Any = ITransformerForecaster(num_variates=7, lookback=96, horizon=96, d_model=64, d_ff=128, rngs=nnx.Rngs(0))
    block = model.layers[1]
    projections = [getattr(block.mixer.projections, name) for name in ("query", "key", "value", "out")]
    for linear in (model.embedding, model.projection, block.ffn.up, block.ffn.down, *projections):
        bound = linear.kernel.shape[0] ** -0.5
        for values, least in ((linear.kernel[...], 0.95), (linear.bias[...], 0.85)):
            assert least * bound < float(abs(values).max()) <= bound
        assert float(linear.kernel[...].std()) == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("mixer", ["softmax", "flowformer"])
def test_variates_and_marks_have_no_order(mixer):
    model = make(mixer=mixer)
    y = forward(model, X, MARKS)
    order = jnp.array([3, 0, 4, 1, 2])
    assert relative(forward(model, X[..., order], MARKS), y[..., order]) <= 1e-5
    assert relative(forward(model, X, MARKS[..., jnp.array([2, 0, 1])]), y) <= 1e-5
    assert relative(forward(model, X.at[..., 0].set(X[::-1, :, 0]), MARKS), y) > 1e-2


def test_marks_of_the_past_only():
    model = make()
    y = forward(model, X, MARKS)
    np.testing.assert_array_equal(forward(model, X, MARKS.at[:, L:].set(7.0)), y)
    assert relative(forward(model, X, MARKS.at[:, :L].add(1.0)), y) > 1e-3


def test_a_scaled_and_shifted_variate():
    """Up to the eps beside the variance: facts say 4e-5."""
    model = make()
    scale, shift = jnp.array([2.5, 0.5, 1.0, 30.0, 7.0]), jnp.array([1.0, -4.0, 0.0, 100.0, 3.0])
    expected = scale * forward(model, X, MARKS) + shift
    np.testing.assert_allclose(forward(model, scale * X + shift, MARKS) / scale, expected / scale, atol=2e-4)


@pytest.mark.parametrize("mixer", ["softmax", "flowformer"])
def test_any_number_of_variates(mixer):
    model = make(mixer=mixer)
    for count in (1, 12):
        x = jnp.asarray(DRAW.normal(size=(B, L, count)), jnp.float32)
        assert forward(model, x, MARKS).shape == (B, H, count)
    assert relative(forward(model, X[..., :2], MARKS), forward(model, X, MARKS)[..., :2]) > 1e-3


def test_a_constant_variate_is_finite():
    graph, params, rest = nnx.split(make(), nnx.Param, ...)

    def total(arguments):
        params, x = arguments
        return jnp.square(nnx.merge(graph, params, rest)(x, marks=MARKS)).mean()

    x = X.at[..., 1].set(5.0)
    for leaf in jax.tree.leaves(jax.jit(jax.value_and_grad(total))((params, x))):
        assert bool(jnp.isfinite(leaf).all())
    y = forward(make(), x, MARKS)[..., 1]
    np.testing.assert_allclose(y, 5, atol=0.02)  # the deviation is sqrt(eps)


def test_without_norm():
    scaled, plain = make(), make(use_norm=False)
    x = (X - X.mean(1, keepdims=True)) / jnp.sqrt(X.var(1, keepdims=True) + 1e-5)
    expected = (forward(scaled, X, MARKS) - X.mean(1, keepdims=True)) / jnp.sqrt(X.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(forward(plain, x, MARKS), expected, atol=1e-4)
    assert relative(forward(plain, X, MARKS), forward(scaled, X, MARKS)) > 1e-2


def test_statistics_are_float32_whatever_the_network_computes_in():
    """A level of 1000 has steps of 4 in bfloat16; the forecast must keep what is small beside it."""
    exact, low = make(), make(dtype="bfloat16")
    x = 1000 + X
    y = forward(low, x, MARKS)
    np.testing.assert_allclose(y, forward(exact, x, MARKS), atol=0.15)


def test_remat_and_scan_change_nothing():
    model = make()
    y = forward(model, X, MARKS)
    np.testing.assert_array_equal(forward(make(remat="full"), X, MARKS), y)
    np.testing.assert_allclose(forward(make(scan_layers=True), X, MARKS), y, atol=1e-5)


def test_the_mixer_and_its_options():
    model = make(mixer="flowformer", mixer_options={"source_clamp": None})
    assert model.layers[0].mixer.source_clamp is None
    with pytest.raises(TypeError, match=r"flowformer has no option 'source_clam'\. Did you mean source_clamp"):
        make(mixer="flowformer", mixer_options={"source_clam": 1})
    with pytest.raises(ValueError, match=r"no mixer named 'flowforme'\. Did you mean flowformer"):
        make(mixer="flowforme")
    with pytest.raises(ValueError, match="unknown activation 'gelus'"):
        make(activation="gelus")
    with pytest.raises(ValueError, match="d_ff must be from 1"):
        make(d_ff=0)
    assert make(d_ff=None).layers[0].ffn.up.kernel.shape == (16, 64)
