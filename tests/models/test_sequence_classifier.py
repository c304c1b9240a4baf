"""Encoder, pooling and head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.encoder import EncoderConfig
from zoo.models.sequence_classifier import SequenceClassifier

CONFIG = EncoderConfig(d_model=8, num_layers=1, num_heads=2, d_ff=8, vocab_size=7, max_len=9)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, 7, (3, 9)))
LENGTHS = np.array([9, 5, 1])
MASK = jnp.asarray(np.arange(9) < LENGTHS[:, None])

pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.fixture
def classifier(toy):
    """`classifier(pooling, **options of the config)`; with a mixer that compiles fast."""

    def make(pooling, head_dim=None, **options) -> Any:
        config = dataclasses.replace(CONFIG, **{"mixer": "toy_mean", **options})
        model = SequenceClassifier(config, 4, pooling=pooling, head_dim=head_dim, rngs=nnx.Rngs(0))
        model.eval()
        return model

    return make


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_padding_has_no_say(pooling, classifier):
    model = classifier(pooling, mixer="softmax")
    forward = jax.jit(lambda tokens, mask: model(tokens, mask=mask))
    logits = forward(TOKENS, MASK)
    assert logits.shape == (3, 4)
    np.testing.assert_allclose(forward(jnp.where(MASK, TOKENS, 3), MASK), logits, atol=1e-6)
    np.testing.assert_allclose(forward(TOKENS[::-1], MASK[::-1]), logits[::-1], atol=1e-6)
    # Cut to its own length: no padding at all.
    alone = forward(TOKENS[1:2, : LENGTHS[1]], None)
    np.testing.assert_allclose(alone[0], logits[1], atol=1e-5)


def test_mean_padded_divides_by_the_padded_length(classifier):
    model = classifier("mean_padded", norm="post", ffn="none")
    hidden = model.encoder(TOKENS, mask=MASK)
    pooled = jnp.where(MASK[..., None], hidden, 0).sum(1) / 9
    expected = pooled @ model.logits.kernel[...] + model.logits.bias[...]
    logits = model(TOKENS, mask=MASK)
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    np.testing.assert_allclose(model(jnp.where(MASK, TOKENS, 3), mask=MASK), logits, atol=1e-6)
    shorter = model(TOKENS[1:2, :5])
    np.testing.assert_allclose(
        (shorter - model.logits.bias[...])[0] * 5 / 9 + model.logits.bias[...], logits[1], atol=1e-5
    )


def test_the_head_is_one_or_two_layers_in_float32(classifier):
    model = classifier("mean", head_dim=5, dtype="bfloat16")
    assert (model.hidden.kernel[...].shape, model.logits.kernel[...].shape) == ((8, 5), (5, 4))
    logits = model(TOKENS, mask=MASK)
    assert logits.dtype == jnp.float32
    hidden = model.encoder(TOKENS, mask=MASK)
    assert hidden.dtype == jnp.bfloat16
    pooled = hidden[2, 0].astype(jnp.float32)
    inner = jnp.maximum(pooled @ model.hidden.kernel[...] + model.hidden.bias[...], 0)
    np.testing.assert_allclose(inner @ model.logits.kernel[...] + model.logits.bias[...], logits[2], atol=1e-5)
    assert classifier("mean").hidden is None


@pytest.mark.parametrize("kernel_init", ["xavier_uniform", "torch"])
def test_the_head_starts_as_its_family_does(kernel_init, toy):
    config = dataclasses.replace(CONFIG, d_model=64, ffn="none", mixer="toy_mean", kernel_init=kernel_init)
    model: Any = SequenceClassifier(config, 500, rngs=nnx.Rngs(0))
    # The original LRA head is Flax's own even where its encoder is Xavier's: 1/sqrt(64) against sqrt(2/564).
    std = (3 * 64) ** -0.5 if kernel_init == "torch" else 64**-0.5
    assert float(model.logits.kernel[...].std()) == pytest.approx(std, rel=0.03)
    assert bool(abs(model.logits.bias[...]).max() > 0) == (kernel_init == "torch")


def test_scalars_and_causal_encoders(classifier):
    model = classifier("last", mixer="softmax", inputs="scalars", vocab_size=None, causal=True)
    forward = jax.jit(lambda values: model(values, mask=MASK))
    values = jnp.asarray(np.random.default_rng(1).normal(size=(3, 9)), jnp.float32)
    logits = forward(values)
    np.testing.assert_allclose(forward(jnp.where(MASK, values, 1e3)), logits, atol=1e-6)
    assert float(abs(forward(values.at[:, 0].add(1.0)) - logits).max(axis=1).min()) > 1e-4


def test_an_empty_sequence_is_finite_with_finite_gradients(classifier):
    graph, params, rest = nnx.split(classifier("mean"), nnx.Param, ...)

    def loss(params):
        return nnx.merge(graph, params, rest)(TOKENS, mask=MASK.at[0].set(False)).sum()

    for leaf in jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params)):
        assert bool(jnp.isfinite(leaf).all())


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_wrong_inputs_say_which_axis(pooling, classifier):
    model = classifier(pooling)
    for inputs, mask, message in (
        (TOKENS[..., None], MASK, "inputs has 3 axes"),
        (TOKENS[:, :0], None, r"axis 1 \(T\) of inputs is 0"),
        (TOKENS, MASK[:1], r"axis 0 \(B\) of mask is 1"),
        (TOKENS, MASK[:, 1:], r"axis 1 \(T\) of mask is 8"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda inputs, mask: model(inputs, mask=mask), inputs, mask)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"num_classes": 0}, {}, "num_classes must be at least 1, got 0"),
        ({"pooling": "max"}, {}, "unknown pooling 'max'; there are mean, mean_padded, cls, last"),
        ({"pooling": "cls"}, {"causal": True}, "pooling='cls' in a causal encoder sees no token"),
    ],
)
def test_wrong_settings(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        SequenceClassifier(dataclasses.replace(CONFIG, **options), **{"num_classes": 3, **arguments}, rngs=nnx.Rngs(0))
