"""What every forecaster does, the registered ones and the one around a mixer: found by the registry."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from zoo import registry
from zoo.encoder import EncoderConfig
from zoo.functional import Functional
from zoo.models.encoder_forecaster import EncoderForecaster

B, L, H, N, M = 2, 24, 10, 3, 2
SIZES = {"num_variates": N, "lookback": L, "horizon": H, "num_marks": M}
ENCODER = "encoder"
NAMES = [ENCODER, *(spec.name for spec in registry.list_specs(kind="model", inputs="series"))]
DRAW = np.random.default_rng(0)
X = jnp.asarray(DRAW.normal(2, 3, (B, L, N)), jnp.float32)
MARKS = jnp.asarray(DRAW.uniform(-0.5, 0.5, (B, L + H, M)), jnp.float32)

pytestmark = pytest.mark.usefixtures("compilation_cache")


def known(name) -> list[str]:
    """The constructor's options, or those that the encoder's configuration offers."""
    if name == ENCODER:
        return ["dropout", "dtype", "param_dtype"]
    return registry.option_names(registry.get(name, "model"))


def make(name, **options) -> Any:
    sizes = {size: options.pop(size, value) for size, value in SIZES.items()}
    rngs = options.pop("rngs", nnx.Rngs(0))
    if name == ENCODER:
        config = EncoderConfig(d_model=8, num_layers=1, num_heads=2, d_ff=8, **options)
        return EncoderForecaster(config, **sizes, rngs=rngs)
    return zoo.create_model(name, **{**registry.spec(name).test_args, **sizes, **options}, rngs=rngs)


@functools.cache
def quiet(name) -> Any:
    """In evaluation mode, with no parameter at a special value."""
    model = make(name)
    model.eval()
    draw = np.random.default_rng(1)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda p: p + 0.1 * draw.normal(size=p.shape).astype(np.float32), params))
    return model


@jax.jit
def forward(model, x, marks):
    return model(x, marks=marks)


@pytest.mark.parametrize("name", NAMES)
def test_a_forecast_has_all_variates(name):
    model = quiet(name)
    y = forward(model, X, MARKS)
    assert y.shape == (B, H, N)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(model(X, marks=MARKS), y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(forward(model, X[1:], MARKS[1:]), y[1:], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(forward(model, X, MARKS), y)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    graph, params, rest = nnx.split(quiet(name), nnx.Param, ...)

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.square(nnx.merge(graph, params, rest)(X, marks=MARKS) - 1).mean()

    found = nnx.to_flat_state(gradient(params))
    assert len(found) == len(nnx.to_flat_state(params))
    for path, leaf in found:
        assert np.isfinite(leaf[...]).all(), path
        assert np.any(leaf[...]), path


@pytest.mark.parametrize("name", [name for name in NAMES if "dtype" in known(name)])
def test_low_precision_stays_near(name):
    exact = make(name, dtype="float32")
    exact.eval()
    low = make(name, dtype="bfloat16", param_dtype="float32")
    low.eval()
    expected, y = forward(exact, X, MARKS), forward(low, X, MARKS)
    assert y.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(low, nnx.Param)))
    error = jnp.sqrt(jnp.square(y - expected).mean() / jnp.square(expected).mean())
    assert 0 < error < 0.05
    if name != ENCODER:
        for dtype in (None, jnp.float32):
            again = make(name, dtype=dtype)
            again.eval()
            np.testing.assert_array_equal(forward(again, X, MARKS), expected)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_there_in_training_only(name):
    if "dropout" not in known(name):
        model = make(name)
        y = model(X, marks=MARKS, deterministic=False, rngs=nnx.Rngs(dropout=1))
        np.testing.assert_array_equal(y, model(X, marks=MARKS, deterministic=True))
        return
    model = make(name, dropout=0.3)
    train = jax.jit(lambda model, key: model(X, marks=MARKS, deterministic=False, rngs=nnx.Rngs(dropout=key)))
    one, two = jax.random.split(jax.random.key(0))
    first = train(model, one)
    np.testing.assert_array_equal(train(model, one), first)
    assert float(abs(train(model, two) - first).max()) > 1e-3
    plain = make(name, dropout=0.0)
    still = jax.jit(lambda model: model(X, marks=MARKS, deterministic=True))
    np.testing.assert_array_equal(still(model), still(plain))
    assert float(abs(first - still(plain)).max()) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_wrong_shapes_say_which_axis(name):
    model = quiet(name)
    for x, marks, message in (
        (X[0], None, r"takes x \[B, L, N\].*; x has 2 axes"),
        (X[:, 1:], MARKS, r"with L = 24.*axis 1 \(L\) of x is 23"),
        (X[:, :, :0], MARKS, r"axis 2 \(N\) of x is 0"),
        (X, MARKS[:, :L], r"with B = 2, L\+H = 34, M = 2; axis 1 \(L\+H\) of marks is 24"),
        (X, MARKS[:1], r"axis 0 \(B\) of marks is 1"),
        (X, MARKS[..., :1], r"axis 2 \(M\) of marks is 1"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda x, marks: model(x, marks=marks), x, marks)


@pytest.mark.parametrize("name", NAMES)
def test_marks_are_there_where_they_were_promised(name):
    bare = make(name, num_marks=0)
    bare.eval()
    assert forward(bare, X, None).shape == (B, H, N)
    with pytest.raises(ValueError, match=r"axis 2 \(M\) of marks is 2|num_marks=0"):
        bare(X, marks=MARKS)
    model = quiet(name)
    if np.array_equal(forward(model, X, MARKS), forward(model, X, MARKS + 0.1)):
        np.testing.assert_array_equal(forward(model, X, None), forward(model, X, MARKS))
    else:
        with pytest.raises(ValueError, match=r"num_marks=2.* (marks is None|none are given)"):
            model(X)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_positive(name):
    for size, wrong, least in (("horizon", 0, 1), ("num_variates", 0, 1), ("num_marks", -1, 0)):
        with pytest.raises(ValueError, match=rf"{size}.* must (be at least {least}|not be negative)"):
            make(name, **{size: wrong})


@pytest.mark.parametrize("name", NAMES)
def test_as_a_pure_function_of_dicts(name):
    """The form that the train step holds, also where there are no parameters."""
    functional = Functional(lambda rngs: make(name, rngs=rngs))
    params, rest = functional.init(jax.random.key(0))

    @jax.jit
    def call(params, rest):
        module = functional.module(params, rest)
        return module(X, marks=MARKS, deterministic=True)

    assert call(params, rest).shape == (B, H, N)
    assert bool(params) == (name not in ("repeat_last", "repeat_season", "window_mean"))
