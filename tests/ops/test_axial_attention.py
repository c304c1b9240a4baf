"""Axial attention against plain einsums in float64, and against dense attention over the other axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_same, error

from zoo.ops.axial_attention import axial_attention
from zoo.ops.softmax_attention import softmax_attention

B, H, K, V = 2, 2, 4, 3
SHAPES = ((5,), (4, 6), (2, 3, 4))
GRIDS = [(shape, axis) for shape in SHAPES for axis in range(1, len(shape) + 1)]
LETTERS = "xyz"

pytestmark = pytest.mark.usefixtures("compilation_cache")


def inputs(shape, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(B, *shape, H, width)).astype(dtype) for width in (K, K, V))


def random_mask(shape, seed=0):
    """Some keys, and at least one line along every axis without any."""
    mask = np.random.default_rng(seed).random((B, *shape)) < 0.6
    for axis in range(1, len(shape) + 1):
        mask[tuple(slice(None) if other == axis else 0 for other in range(mask.ndim))] = False
    return mask


def by_einsum(q, k, v, axis, mask=None, causal=False, scale=None):
    """One letter an axis; the keys' along `axis` is another."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    grid = LETTERS[: q.ndim - 3]
    keys = grid.replace(grid[axis - 1], "s")
    scores = np.einsum(f"b{grid}hk,b{keys}hk->b{grid}hs", q, k) * (K**-0.5 if scale is None else scale)
    seen = np.ones(scores.shape, bool)
    if mask is not None:
        seen &= np.expand_dims(np.moveaxis(mask, axis, -1), (axis, -2))
    if causal:
        line = np.tril(np.ones((q.shape[axis],) * 2, bool))
        seen &= np.moveaxis(line.reshape(len(line), *[1] * (q.ndim - 3), len(line)), 0, axis - 1)
    powers = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    total = powers.sum(-1, keepdims=True)
    weights = powers / np.where(total > 0, total, 1)
    return np.einsum(f"b{grid}hs,b{keys}hv->b{grid}hv", weights, v)


@pytest.mark.parametrize(("shape", "axis"), GRIDS)
@pytest.mark.parametrize("implementation", ["xla", "chunked", "reference"])
def test_equals_einsum(shape, axis, implementation):
    q, k, v = inputs(shape)
    cases = [(mask, causal) for mask in (None, random_mask(shape)) for causal in (False, True)]

    @jax.jit
    def run(q, k, v):
        options = {"axis": axis, "implementation": implementation}
        return [axial_attention(q, k, v, mask=mask, causal=causal, **options) for mask, causal in cases]

    for (mask, causal), y in zip(cases, run(q, k, v), strict=True):
        assert error(y, by_einsum(q, k, v, axis, mask, causal)) <= 2e-6


def test_an_axis_is_dense_attention_vectorised_over_the_others():
    shape = (2, 3, 4)
    q, k, v = inputs(shape)
    mask = random_mask(shape)
    for axis in range(1, 4):
        dense = lambda q, k, v, m: softmax_attention(q[None], k[None], v[None], mask=m[None])[0]  # noqa: E731
        for other in sorted({1, 2, 3} - {axis}):
            dense = jax.vmap(dense, (other - 1,) * 4, other - 1)
        expected = jax.vmap(dense)(q, k, v, mask)
        found = axial_attention(q, k, v, axis=axis, mask=mask)
        assert error(found, expected) <= 1e-6
        np.testing.assert_array_equal(found, axial_attention(q, k, v, axis=axis - q.ndim, mask=mask))


def test_one_axis_is_full_attention():
    q, k, v = inputs((1, 7))
    y = axial_attention(q, k, v, axis=2)
    assert error(y[:, 0], softmax_attention(q[:, 0], k[:, 0], v[:, 0])) == 0
    # Of one key each, the values.
    np.testing.assert_allclose(axial_attention(q, k, v, axis=1), v, rtol=1e-6)


@pytest.mark.parametrize("implementation", ["xla", "chunked", None])
def test_gradients_are_those_of_the_reference_and_zero_in_empty_lines(implementation):
    shape = (4, 5)
    mask = random_mask(shape)
    with jax.enable_x64(True):
        args = inputs(shape, np.float64)
        ct = np.random.default_rng(3).normal(size=args[2].shape)
        for axis in (1, 2):

            def gradients(name, axis=axis):
                run = lambda *args: (axial_attention(*args, axis=axis, mask=mask, implementation=name) * ct).sum()  # noqa: E731
                return jax.jit(jax.value_and_grad(run, (0, 1, 2)))(*args)

            found = gradients(implementation)
            # The library's own softmax is in float32.
            assert_same(found, gradients("reference"), 1e-12 if implementation == "chunked" else 1e-6)
            empty = ~mask.any(axis, keepdims=True) & np.ones_like(mask)
            assert empty.any()
            assert not empty.all()
            for gradient in found[1]:
                assert not np.asarray(gradient)[empty].any()
            y = axial_attention(*args, axis=axis, mask=mask, implementation=implementation)
            assert not np.asarray(y)[empty].any()


def test_bfloat16_has_its_softmax_in_float32():
    args = [jnp.asarray(x, jnp.bfloat16) for x in inputs((4, 40))]
    exact = by_einsum(*(np.asarray(x, np.float64) for x in args), 2)
    y = axial_attention(*args, axis=2)
    assert y.dtype == jnp.bfloat16
    assert error(y.astype(jnp.float32), exact) <= 1e-2


def test_dropout_and_scale_are_those_of_softmax_attention():
    q, k, v = inputs((3, 5))
    key = jax.random.key(0)
    y = axial_attention(q, k, v, axis=2, dropout=0.5, dropout_key=key, scale=0.3)
    fold = [x.reshape(-1, *x.shape[2:]) for x in (q, k, v)]
    expected = softmax_attention(*fold, dropout=0.5, dropout_key=key, scale=0.3)
    np.testing.assert_array_equal(y, expected.reshape(y.shape))
    assert error(axial_attention(q, k, v, axis=1, scale=0.3), by_einsum(q, k, v, 1, scale=0.3)) <= 2e-6
    np.testing.assert_array_equal(axial_attention(q, k, v, axis=2, dropout=0.5), axial_attention(q, k, v, axis=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axis": 0}, r"axis=0 is no axis of the grid: with q of shape \(2, 3, 5, 2, 4\) these are 1 to 2 \(or -4 to"),
        ({"axis": 3}, "axis=3 is no axis of the grid"),
        ({"axis": -2}, "axis=-2 is no axis of the grid"),
        ({"k": np.zeros((2, 5, 3, 2, 4), np.float32)}, "takes k and v on the grid of q"),
        ({"v": np.zeros((2, 3, 4, 2, 3), np.float32)}, "takes k and v on the grid of q"),
        ({"mask": np.ones((2, 3, 5), np.int32)}, r"takes mask as bool \(2, 3, 5\); got int32"),
        ({"mask": np.ones((2, 5, 3), bool)}, r"takes mask as bool \(2, 3, 5\); got bool \(2, 5, 3\)"),
        ({"q": np.zeros((2, 3, 4), np.float32)}, r"takes q \[B, n_1, ..., n_k, H, K\]"),
        ({"implementation": "fast"}, "fast"),
        ({"dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_refuses(change, message):
    q, k, v = inputs((3, 5))
    arguments = {"q": q, "k": k, "v": v, "axis": 1, **change}
    with pytest.raises(ValueError, match=message):
        axial_attention(**arguments)
