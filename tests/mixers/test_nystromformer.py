"""The Nyströmformer mixer: its options, padding, and what it refuses (the published encoder is in test_parity.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.mixers.nystromformer import Nystromformer

B, T, D = 3, 37, 8
SMALL = {"num_heads": 2, "num_landmarks": 8, "conv_kernel_size": 5}


def build(**options):
    return Nystromformer(D, **{**SMALL, **options}, rngs=nnx.Rngs(0))


@nnx.jit
def apply(mixer, x, mask=None):
    return mixer(x, mask=mask, deterministic=True)


def inputs(length=T, seed=0):
    return jax.random.normal(jax.random.key(seed), (B, length, D))


def relative(a, b):
    """max|a - b| / max(1, max|b|)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.abs(a - b).max() / max(1, np.abs(b).max())


def test_padding_changes_nothing():
    mixer = build()
    x, counts = inputs(64), jnp.array([33, 8, 5])[:, None]
    mask = jnp.arange(64) < counts
    y = apply(mixer, x, mask)
    other = jnp.where(mask[..., None], x, 1e4)
    np.testing.assert_array_equal(apply(mixer, other, mask)[mask], y[mask])
    short = apply(mixer, x[:, :T], mask[:, :T])
    assert relative(short[mask[:, :T]], y[mask]) <= 1e-5


def test_options_reach_the_op():
    x = inputs(32)
    mask = jnp.arange(32) < jnp.array([32, 20, 13])[:, None]
    base = apply(build(conv_kernel_size=None), x, mask)
    for options in ({"pinv_init": "global"}, {"landmarks": "padded"}, {"pinv_iterations": 2}):
        assert np.abs(apply(build(conv_kernel_size=None, **options), x, mask) - base)[mask].max() > 1e-4, options
    assert relative(apply(build(conv_kernel_size=None, implementation="reference"), x, mask)[mask], base[mask]) <= 2e-6


def test_without_convolution_and_with_other_heads():
    mixer = build(conv_kernel_size=None, d_head=3, use_bias=False, num_landmarks=T)
    assert mixer.projections.query.kernel.shape == (D, 6)
    assert len(nnx.to_flat_state(nnx.state(mixer, nnx.Param))) == 4
    x = inputs()
    q, k, v = mixer.projections.split(x)
    attended = jax.nn.dot_product_attention(q, k, v)
    assert relative(apply(mixer, x), mixer.projections.merge(attended)) <= 2e-6


def test_filters_start_as_the_authors_do():
    kernel = np.asarray(Nystromformer(D, num_heads=8, rngs=nnx.Rngs(0)).conv_kernel[...])
    assert kernel.shape == (35, 8)
    assert 0.95 < np.abs(kernel).max() * 35**0.5 <= 1


def test_dropout_is_on_the_output():
    mixer = build(dropout=0.5)
    x = inputs()
    full = apply(mixer, x)
    dropped = nnx.jit(lambda mixer, x, rngs: mixer(x, deterministic=False, rngs=rngs))(mixer, x, nnx.Rngs(dropout=1))
    kept = np.asarray(dropped != 0)
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_allclose(dropped[kept], 2 * full[kept], rtol=1e-5, atol=1e-6)
    mixer.eval()
    np.testing.assert_array_equal(nnx.jit(lambda mixer, x: mixer(x))(mixer, x), full)


def test_cannot_be_causal():
    with pytest.raises(ValueError, match="averages over positions of the future"):
        build(causal=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv_kernel_size": 4}, "conv_kernel_size must be odd"),
        ({"num_landmarks": 0}, "must be positive"),
        ({"pinv_init": "exact"}, "pinv_init must be one of"),
        ({"landmarks": "even"}, "landmarks must be one of"),
        ({"num_heads": 3}, "not divisible"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_padded_landmarks_need_a_multiple():
    with pytest.raises(ValueError, match="Pad T to a multiple"):
        build(landmarks="padded")(inputs())
