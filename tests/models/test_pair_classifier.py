"""The pair classifier: which features, which head, what padding and order do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.encoder import EncoderConfig
from zoo.functional import count_parameters
from zoo.models.pair_classifier import PairClassifier

CONFIG = EncoderConfig(d_model=8, num_layers=1, num_heads=2, d_ff=8, vocab_size=11, max_len=12)
DRAW = np.random.default_rng(0)
TOKENS = jnp.asarray(DRAW.integers(1, 11, size=(3, 10, 2)))
MASK = jnp.arange(10)[None, :, None] < jnp.asarray([[10, 10], [7, 10], [3, 5]])[:, None]

pytestmark = pytest.mark.usefixtures("compilation_cache")
call = jax.jit(lambda model, x, mask: model(x, mask=mask))


def make(config=CONFIG, **options):
    model = PairClassifier(config, 2, **options, rngs=nnx.Rngs(0))
    model.eval()
    return model


@pytest.mark.parametrize("features", ["nli", "concat"])
def test_against_the_parts(features):
    model = make(pair_features=features, head_dim=6, head_layers=2, head_activation="gelu")
    means = []
    for i in range(2):
        hidden = np.asarray(model.encoder(TOKENS[..., i], mask=MASK[..., i]), np.float64)
        real = np.asarray(MASK[..., i])[..., None]
        means.append((hidden * real).sum(1) / real.sum(1))
    a, b = means
    x = np.concatenate([a, b, a * b, a - b] if features == "nli" else [a, b], -1)
    assert [layer.out_features for layer in model.head] == [6, 3, 2]
    for index, layer in enumerate(model.head):
        x = x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
        x = np.asarray(jax.nn.gelu(x)) if index < 2 else x
    np.testing.assert_allclose(call(model, TOKENS, MASK), x, atol=1e-5)


def test_padding_and_batch_mates_change_nothing():
    model = make()
    y = call(model, TOKENS, MASK)
    other = jnp.where(MASK, TOKENS, 5)
    np.testing.assert_allclose(call(model, other, MASK), y, atol=1e-6)
    wider = [(0, 0), (0, 2), (0, 0)]
    np.testing.assert_allclose(call(model, jnp.pad(TOKENS, wider), jnp.pad(MASK, wider)), y, atol=1e-6)
    np.testing.assert_allclose(call(model, TOKENS[1:2], MASK[1:2]), y[1:2], atol=1e-6)


def test_the_first_position_is_pooled_without_a_vector_in_front():
    model = make(pooling="cls", head_dim=None)
    assert not model.encoder.config.cls_token
    x = model.encoder(TOKENS[..., 0], mask=MASK[..., 0])[:, 0]
    z = model.encoder(TOKENS[..., 1], mask=MASK[..., 1])[:, 0]
    (head,) = model.head
    due = head(jnp.concatenate([x, z, x * z, x - z], -1))
    np.testing.assert_allclose(call(model, TOKENS, MASK), due, atol=1e-5)


def test_the_original_has_the_published_number_of_parameters():
    """1,087,618 for LRA's Retrieval, less its table of sinusoids, which is no parameter."""
    config = EncoderConfig(
        d_model=128, num_layers=4, num_heads=4, d_ff=512, vocab_size=257, max_len=4000, use_bias=False
    )
    model = nnx.eval_shape(
        lambda: PairClassifier(
            config, 2, pooling="cls", pair_features="concat", head_dim=512, head_layers=2, rngs=nnx.Rngs(0)
        )
    )
    assert count_parameters(nnx.state(model, nnx.Param)) == 1_087_618


def test_dropout_differs_between_the_two():
    model = PairClassifier(dataclasses.replace(CONFIG, dropout=0.5), 2, rngs=nnx.Rngs(0))
    same = jnp.repeat(TOKENS[..., :1], 2, axis=-1)
    x = jnp.concatenate([same[..., 0], same[..., 1]])
    encoded = model.encoder(x, deterministic=False, rngs=nnx.Rngs(dropout=0))
    assert not np.allclose(encoded[:3], encoded[3:])
    first, second = (model(same, deterministic=False, rngs=nnx.Rngs(dropout=seed)) for seed in (0, 1))
    assert not np.allclose(first, second)


def test_errors():
    model = make()
    with pytest.raises(ValueError, match=r"axis 2 \(P\) of inputs"):
        model(TOKENS[..., :1])
    with pytest.raises(ValueError, match=r"mask \[3, 10, 2\], as inputs"):
        model(TOKENS, mask=MASK[..., 0])
    with pytest.raises(ValueError, match="unknown pair_features 'sum'"):
        make(pair_features="sum")
    with pytest.raises(ValueError, match="unknown pooling"):
        make(pooling="max")
    with pytest.raises(ValueError, match="too small"):
        make(head_dim=4, head_layers=4)
