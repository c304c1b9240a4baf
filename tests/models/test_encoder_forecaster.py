"""The forecaster around a mixer: its parts, scaling, mixers in both directions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo import registry
from zoo.encoder import EncoderConfig, run_layers
from zoo.functional import count_parameters
from zoo.layers.series import standardize
from zoo.models.encoder_forecaster import EncoderForecaster

B, L, H, N, M, D = 2, 12, 5, 3, 2, 8
CONFIG = EncoderConfig(d_model=D, num_layers=1, num_heads=2, d_ff=8)
DRAW = np.random.default_rng(0)
X = jnp.asarray(DRAW.normal(2, 3, (B, L, N)), jnp.float32)
MARKS = jnp.asarray(DRAW.uniform(-0.5, 0.5, (B, L + H, M)), jnp.float32)

pytestmark = pytest.mark.usefixtures("compilation_cache")


def make(*, use_norm=True, num_marks=M, seed=0, **options) -> Any:
    config = dataclasses.replace(CONFIG, **options)
    sizes = {"num_variates": N, "lookback": L, "horizon": H, "num_marks": num_marks}
    model = EncoderForecaster(config, **sizes, use_norm=use_norm, rngs=nnx.Rngs(seed))
    model.eval()
    return model


@jax.jit
def forward(model, x, marks=None):
    return model(x, marks=marks)


@pytest.mark.parametrize("positions", ["none", "learned", "sinusoidal"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_its_parts(positions, norm):
    model = make(positions=positions, norm=norm, activation="relu")

    @jax.jit
    def by_parts(model):
        z, restore = standardize(X)
        h = jnp.concatenate([z, MARKS[:, :L]], axis=2) @ model.embedding.kernel[...] + model.embedding.bias[...]
        if positions == "learned":
            h = h + model.position[...]
        elif positions == "sinusoidal":
            place = jnp.arange(L)[:, None] / 10000.0 ** (jnp.arange(0, D, 2) / D)
            h = h + jnp.stack([jnp.sin(place), jnp.cos(place)], axis=-1).reshape(L, D)
        h, _ = run_layers(model.layers, model.config, h, deterministic=True)
        h = model.norm(h) if norm == "pre" else h
        h = jnp.einsum("bld,lh->bhd", h, model.time.kernel[...]) + model.time.bias[...][:, None]
        h = jax.nn.relu(h + MARKS[:, L:] @ model.future.kernel[...])
        return restore(h @ model.out.kernel[...] + model.out.bias[...])

    np.testing.assert_allclose(forward(model, X, MARKS), by_parts(model), atol=1e-4)
    assert (model.norm is None) == (norm == "post")


def test_size():
    bare = count_parameters(nnx.state(make(num_marks=0, positions="none").layers, nnx.Param))
    model = make(positions="none", norm="post")
    whole = (N + M) * D + D + bare + L * H + H + M * D + D * N + N
    assert count_parameters(nnx.state(model, nnx.Param)) == whole


def test_marks_of_the_past_and_of_the_future():
    model = make()
    y = forward(model, X, MARKS)
    later = forward(model, X, MARKS.at[:, L + 2].add(1.0))
    changed = np.abs(later - y).max(axis=(0, 2)) > 1e-6
    np.testing.assert_array_equal(changed, np.arange(H) == 2)
    assert float(abs(forward(model, X, MARKS.at[:, 0].add(1.0)) - y).max()) > 1e-4


def test_a_scaled_and_shifted_variate():
    scale, shift = jnp.array([2.5, 0.5, 30.0]), jnp.array([1.0, -4.0, 100.0])
    model = make()
    expected = scale * forward(model, X, MARKS) + shift
    np.testing.assert_allclose(forward(model, scale * X + shift, MARKS) / scale, expected / scale, atol=5e-4)
    constant = forward(model, X.at[..., 1].set(5.0), MARKS)
    np.testing.assert_allclose(constant[..., 1], 5, atol=0.02)
    plain = make(use_norm=False)
    z, restore = standardize(X)
    np.testing.assert_allclose(restore(forward(plain, z, MARKS)), forward(model, X, MARKS), atol=1e-4)


@pytest.mark.parametrize(
    ("mixer", "causal"), [("softmax", True), ("mamba", True), ("flowformer", False), ("nystromformer", False)]
)
def test_any_mixer_in_its_directions(mixer, causal):
    accepted = registry.option_names(registry.get(mixer, "mixer"))
    options = {name: value for name, value in registry.spec(mixer).test_args.items() if name in accepted}
    model = make(mixer=mixer, causal=causal, mixer_options=options)
    y = forward(model, X, MARKS)
    assert y.shape == (B, H, N)
    # The first step and the last reach the forecast, whatever the direction.
    for place in (0, L - 1):
        assert float(abs(forward(model, X.at[:, place].add(1.0), MARKS) - y).max()) > 1e-3


def test_remat_and_scan():
    model = make(num_layers=2)
    y = forward(model, X, MARKS)
    np.testing.assert_allclose(forward(make(num_layers=2, remat="full"), X, MARKS), y, atol=1e-5)
    np.testing.assert_allclose(forward(make(num_layers=2, scan_layers=True), X, MARKS), y, atol=1e-5)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="a forecaster has no CLS vector"):
        make(cls_token=True)
    with pytest.raises(ValueError, match=r"with L = 12, N = 3; axis 2 \(N\) of x is 2"):
        make()(X[..., :2], marks=MARKS)
    with pytest.raises(ValueError, match="Nyström attention cannot be causal"):
        make(mixer="nystromformer", causal=True)
