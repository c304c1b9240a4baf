"""Positions on a grid, alone and in the embedding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.encoder import Encoder, EncoderConfig
from zoo.layers.axial_positions import AxialPositions, square_grid
from zoo.layers.embeddings import Embedding


def test_the_sum_of_one_vector_for_each_axis():
    module: Any = AxialPositions((2, 3, 4), 5, rngs=nnx.Rngs(0))
    tables = [np.asarray(table[...]) for table in module.tables]
    assert [table.shape for table in tables] == [(2, 5), (3, 5), (4, 5)]
    found = module()
    assert found.shape == (2, 3, 4, 5)
    for i, j, k in np.ndindex(2, 3, 4):
        np.testing.assert_allclose(found[i, j, k], tables[0][i] + tables[1][j] + tables[2][k], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(module.rows(7), found.reshape(24, 5)[:7])


def test_initial_spread():
    for std in (1.0, 0.1):
        module = AxialPositions((64, 64), 64, std=std, rngs=nnx.Rngs(0))
        for table in module.tables:
            assert float(table[...].std()) == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("length", range(1, 40))
def test_a_square_grid_has_room(length):
    rows, columns = square_grid(length)
    assert (columns - 1) ** 2 < length <= columns**2
    assert (rows - 1) * columns < length <= rows * columns


def test_in_the_embedding():
    tokens = jnp.array([[1, 2, 0, 4, 3]])
    module: Any = Embedding(4, 5, vocab_size=5, positions="axial", rngs=nnx.Rngs(0))
    assert [table[...].shape for table in module.position.tables] == [(2, 4), (3, 4)]
    plain = module.table(tokens)
    np.testing.assert_allclose(module(tokens) - plain, module.position.rows(5)[None], atol=1e-6)
    np.testing.assert_array_equal(module(tokens[:, :2]), module(tokens)[:, :2])
    places = jnp.array([[4, 0]])
    expected = module.position.rows(5)[places]
    np.testing.assert_allclose(module(tokens[:, :2], places=places) - plain[:, :2], expected, atol=1e-6)
    cls: Any = Embedding(
        4, 3, vocab_size=5, positions="axial", position_shape=(1, 2, 2), cls_token=True, rngs=nnx.Rngs(0)
    )
    np.testing.assert_allclose(cls(tokens[:, :3])[0, 0], cls.position.rows(1)[0], atol=1e-6)
    small: Any = Embedding(64, 4096, vocab_size=5, positions="axial", position_std=0.1, rngs=nnx.Rngs(0))
    assert float(small.position.tables[0][...].std()) == pytest.approx(0.1, rel=0.05)


def test_in_the_encoder():
    config = EncoderConfig(
        d_model=8, num_layers=1, num_heads=2, d_ff=8, mixer="axial", mixer_options={"shape": (2, 3)}, vocab_size=5,
        max_len=6, positions="axial", position_shape=(2, 3),
    )  # fmt: skip
    encoder: Any = Encoder(config, rngs=nnx.Rngs(0))
    assert [table[...].shape for table in encoder.embedding.position.tables] == [(2, 8), (3, 8)]
    y = jax.jit(lambda x: encoder(x, deterministic=True))(jnp.array([[1, 2, 0, 4, 3, 1]]))
    assert y.shape == (1, 6, 8)
    # Equal tokens at other places differ.
    assert np.abs(y[0, 0] - y[0, 5]).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position_shape": (2, 2)}, r"position_shape=\(2, 2\) has fewer than the 5 places"),
        ({"position_shape": (0, 9)}, r"position_shape=\(0, 9\) has fewer"),
        ({"position_shape": (2, 3), "positions": "learned"}, "is for positions 'axial', not 'learned'"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Embedding(4, 5, vocab_size=5, **{"positions": "axial", **options}, rngs=nnx.Rngs(0))


def test_refuses_lengths():
    for shape in ((), (3, 0)):
        with pytest.raises(ValueError, match="axial positions need lengths of axes, at least 1"):
            AxialPositions(shape, 4, rngs=nnx.Rngs(0))
