"""The Nyströmformer mixer: the published encoder's numbers, its options, padding, and what it refuses."""

import json

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


def load(mixer, weights, prefix):
    """Weights of one attention layer under the names of the published checkpoints."""
    for name, ours in (("self.query", "query"), ("self.key", "key"), ("self.value", "value"), ("output.dense", "out")):
        linear = getattr(mixer.projections, ours)
        linear.kernel[...] = weights[f"{prefix}.{name}.weight"].T
        linear.bias[...] = weights[f"{prefix}.{name}.bias"]
    mixer.conv_kernel[...] = weights[f"{prefix}.self.conv.weight"][:, 0, :, 0].T


def test_hugging_face_encoder(golden_dir):
    golden = np.load(golden_dir / "nystromformer_hf.npz")
    meta = json.loads(str(golden["meta"]))
    weights = {key.removeprefix("param/"): golden[key] for key in golden if key.startswith("param/")}

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def dense(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    ids = golden["in/input_ids"]
    tables = [weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")]
    x = tables[0][ids] + tables[1][2 : ids.shape[1] + 2] + tables[2][0]
    x = norm(x, "embeddings.LayerNorm")
    mixer = Nystromformer(
        meta["hidden_size"],
        num_heads=meta["num_attention_heads"],
        num_landmarks=meta["num_landmarks"],
        conv_kernel_size=meta["conv_kernel_size"],
        pinv_init="global",
        landmarks="padded",
        rngs=nnx.Rngs(0),
    )
    for i in range(meta["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        load(mixer, weights, f"{layer}.attention")
        x = norm(x + np.asarray(apply(mixer, jnp.asarray(x))), f"{layer}.attention.output.LayerNorm")
        hidden = np.asarray(jax.nn.gelu(dense(x, f"{layer}.intermediate.dense"), approximate=True))
        x = norm(x + dense(hidden, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    assert relative(x, golden["out/last_hidden_state"]) <= 1e-5


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
