"""Tokens and scalars to vectors, and where they stand."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.layers.embeddings import Embedding, sinusoidal_table

TOKENS = jnp.array([[1, 2, 0], [3, 3, 4]])


@pytest.mark.parametrize("d_model", [6, 7, 1])
def test_sinusoidal_table_is_the_formula(d_model):
    # Vaswani et al. 2017, section 3.5: PE(p, 2i) = sin(p / 10000^(2i/D)), PE(p, 2i + 1) = cos of the same.
    table = sinusoidal_table(50, d_model)
    assert table.dtype == np.float32
    assert table.shape == (50, d_model)
    for position in (0, 1, 13, 49):
        for column in range(d_model):
            angle = position / 10000 ** ((column - column % 2) / d_model)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert table[position, column] == pytest.approx(expected, abs=1e-7)


def embedding(**options) -> Any:
    options = {"vocab_size": 5, "rngs": nnx.Rngs(0), **options}
    return Embedding(4, 3, **options)


def test_tokens_are_rows_of_the_table():
    module = embedding(positions="none")
    np.testing.assert_array_equal(module(TOKENS), module.table.embedding[...][TOKENS])


def test_scalars_go_through_a_linear_map():
    module = embedding(inputs="scalars", vocab_size=None, positions="none")
    x = jnp.array([[0.5, -2.0, 0.0]])
    expected = np.array(x)[..., None] * np.array(module.table.kernel[...])[0] + np.array(module.table.bias[...])
    np.testing.assert_allclose(module(x), expected, rtol=1e-6)
    assert module(jnp.array([[1, 2, 3]])).dtype == jnp.float32


def test_positions_are_added():
    plain, fixed, learned = (embedding(positions=name) for name in ("none", "sinusoidal", "learned"))
    np.testing.assert_allclose(fixed(TOKENS) - plain(TOKENS), [sinusoidal_table(3, 4)] * 2, atol=1e-6)
    table = np.array(learned.position[...])
    np.testing.assert_allclose(learned(TOKENS) - plain(TOKENS), [table] * 2, atol=1e-6)
    np.testing.assert_array_equal(learned(TOKENS[:, :2]), learned(TOKENS)[:, :2])


def test_a_cls_vector_starts_at_zero_and_takes_the_first_position():
    module = embedding(cls_token=True, positions="learned")
    assert module.position[...].shape == (4, 4)
    x = module(TOKENS)
    assert x.shape == (2, 4, 4)
    np.testing.assert_array_equal(module.cls[...], np.zeros(4))
    np.testing.assert_array_equal(x[:, 0], np.array([module.position[0]] * 2))
    np.testing.assert_allclose(x[:, 1:] - module.position[1:], module.table(TOKENS), atol=1e-6)


@pytest.mark.parametrize("positions", ["none", "sinusoidal"])
def test_fixed_positions_are_no_parameters(positions):
    state = nnx.state(embedding(positions=positions))
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(5, 4)]


def test_initial_spread():
    module: Any = Embedding(64, 500, vocab_size=500, positions="learned", embedding_std=0.5, rngs=nnx.Rngs(0))
    assert float(module.table.embedding[...].std()) == pytest.approx(0.5, rel=0.03)
    assert float(module.position[...].std()) == pytest.approx(0.02, rel=0.03)


def test_dropout_and_dtypes():
    module = embedding(dropout=0.5, dtype=jnp.bfloat16)
    assert module.table.embedding[...].dtype == jnp.float32
    assert module(TOKENS, deterministic=True).dtype == jnp.bfloat16
    dropped = module(TOKENS, deterministic=False, rngs=nnx.Rngs(dropout=1))
    assert 0 < int((dropped == 0).sum()) < dropped.size
    assert embedding(inputs="scalars", dtype=jnp.bfloat16)(jnp.ones((1, 3)), deterministic=True).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (jnp.zeros((3,), int), r"embedding takes inputs \[B, T\]; inputs has 1 axes .*\(its shape is \(3,\)\)"),
        (jnp.zeros((1, 3, 4), int), r"inputs has 3 axes instead of 0 \(B\), 1 \(T\)"),
        (jnp.zeros((1, 0), int), r"axis 1 \(T\) of inputs is 0"),
        (jnp.zeros((1, 4), int), r"axis 1 \(T\) of inputs is 4, more than max_len=3"),
        (jnp.zeros((1, 3)), r"inputs='tokens' needs integers, got float32"),
    ],
)
def test_wrong_inputs_say_which_axis(inputs, message):
    with pytest.raises(ValueError, match=message):
        embedding()(inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": None}, r"inputs='tokens' needs vocab_size >= 1, got None"),
        ({"vocab_size": 0}, r"needs vocab_size >= 1, got 0"),
        ({"inputs": "pixels"}, r"unknown inputs 'pixels'; there are tokens, scalars"),
        ({"positions": "rotary"}, r"unknown positions 'rotary'; there are sinusoidal, learned, axial, none"),
    ],
)
def test_wrong_options_say_what_there_is(options, message):
    with pytest.raises(ValueError, match=message):
        embedding(**options)


def test_the_size_of_a_scalar_outlives_a_norm():
    """Of numbers on one side of zero a norm right behind a linear map without bias leaves the same vector."""
    embedding = Embedding(64, 8, inputs="scalars", positions="none", rngs=nnx.Rngs(0))
    x = embedding(jnp.array([[0.1, 0.5, 2.0]]))
    normed = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    for one, two in ((0, 1), (1, 2)):
        assert jnp.abs(normed[0, one] - normed[0, two]).mean() > 0.1
    assert jnp.abs(embedding.table.kernel[...]).max() <= 1
    assert jnp.abs(embedding.table.bias[...]).max() <= 1
