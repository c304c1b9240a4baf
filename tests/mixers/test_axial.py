"""The axial mixer: what each cell sees, the fold of sequences, masks, causality, and what it refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import error
from flax import nnx

from zoo.mixers.axial import Axial
from zoo.mixers.softmax import Softmax

B, D = 2, 8

pytestmark = pytest.mark.usefixtures("compilation_cache")


def build(shape=(3, 5), **options) -> Any:
    """With values in which nothing is zero or equal by chance."""
    mixer = Axial(D, shape=shape, num_heads=2, **options, rngs=nnx.Rngs(0))
    draw = np.random.default_rng(1)
    params = nnx.state(mixer, nnx.Param)
    nnx.update(mixer, jax.tree.map(lambda p: p + 0.3 * draw.normal(size=p.shape).astype(np.float32), params))
    return mixer


@nnx.jit
def attend(mixer, x, mask=None):
    return mixer.attend(x, mask=mask, deterministic=True)


@nnx.jit
def apply(mixer, x, mask=None):
    return mixer(x, mask=mask, deterministic=True)


def grid(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), (B, *shape, D))


def dense(layer, x):
    """The attention of one axis on [..., T, D], as full attention over T."""
    full = Softmax(D, num_heads=2, use_bias=layer.projections.query.bias is not None, out_bias=True, rngs=nnx.Rngs(0))
    full.projections = layer.projections
    return full(x.reshape(-1, *x.shape[-2:]), deterministic=True).reshape(x.shape)


@nnx.jit
def jacobian(mixer, x, mask=None):
    return jax.jacrev(lambda x: mixer.attend(x[None], mask=mask, deterministic=True)[0])(x)


def influence(mixer, shape, mask=None):
    """Whether output cell i moves with input cell j, bool [cells, cells]; what is not seen has a weight of zero."""
    cells = int(np.prod(shape))
    found = jacobian(mixer, grid(*shape)[0], mask)
    return np.asarray(found != 0).reshape(cells, D, cells, D).any((1, 3))


@nnx.jit
def square_gradient(mixer, x, mask):
    return jax.grad(lambda x: (mixer.attend(x, mask=mask, deterministic=True) ** 2).sum())(x)


def same_line(shape):
    """Whether two cells differ along one axis at most."""
    place = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), -1)
    return (place[:, None] != place[None]).sum(-1) <= 1


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4)])
def test_axes_are_dense_attention_over_lines(shape):
    x = grid(*shape)
    moved = [np.insert(np.delete(np.arange(x.ndim), axis), -1, axis) for axis in range(1, x.ndim - 1)]
    one = lambda layer, order, x: dense(layer, x.transpose(order)).transpose(np.argsort(order))  # noqa: E731
    mixer = build(shape, form="sum", use_bias=True)
    expected = sum(one(layer, order, x) for layer, order in zip(mixer.axes, moved, strict=True))
    assert error(attend(mixer, x), expected) <= 2e-6
    expected = x
    mixer = build(shape)
    for layer, order in zip(mixer.axes, moved, strict=True):
        expected = one(layer, order, expected)
    assert error(attend(mixer, x), expected) <= 2e-6
    with_residual = build(shape, residual=True)
    total = 0
    for layer, order in zip(mixer.axes, moved, strict=True):
        total = total + one(layer, order, x + total)
    assert error(attend(with_residual, x), total) <= 5e-6


def test_one_axis_is_full_attention():
    mixer = build((7,))
    x = grid(7)
    assert error(attend(mixer, x), dense(mixer.axes[0], x)) <= 1e-6
    causal = build((7,), causal=True)
    full = Softmax(D, num_heads=2, causal=True, rngs=nnx.Rngs(0))
    full.projections = causal.axes[0].projections
    assert error(attend(causal, x), full(x, deterministic=True)) <= 1e-6
    # One row of a grid: the attention along rows of what the columns of one cell give, which are their values.
    mixer = build((1, 7))
    columns, rows = (layer.projections for layer in mixer.axes)
    assert error(attend(mixer, x[:, None])[:, 0], dense(mixer.axes[1], columns.out(columns.value(x)))) <= 1e-6
    assert rows is not columns


@pytest.mark.parametrize("form", ["sum", "alternating"])
def test_a_transposed_image_with_exchanged_axes_gives_the_transposed(form):
    mixer, other = build((3, 5), form="sum"), build((5, 3), form="sum")
    if form == "alternating":
        # One after the other does not commute: of the transposed, columns come first where rows did.
        mixer.form = other.form = "alternating"
        mixer.axes[1].projections = mixer.axes[0].projections
    for one, two in ((0, 1), (1, 0)):
        other.axes[one].projections = mixer.axes[two].projections
    x = grid(3, 5)
    y = attend(mixer, x)
    transposed = attend(other, x.swapaxes(1, 2)).swapaxes(1, 2)
    if form == "sum":
        assert error(transposed, y) <= 1e-6
        return
    by_hand = mixer.axes[0](mixer.axes[1](x))
    assert error(transposed, by_hand) <= 1e-6
    assert error(y, by_hand) > 1e-3


@pytest.mark.parametrize("shape", [(3, 5), pytest.param((2, 3, 4), marks=pytest.mark.slow)])
def test_what_a_cell_sees(shape):
    run = lambda **options: influence(build(shape, **options), shape)  # noqa: E731
    np.testing.assert_array_equal(run(form="sum"), same_line(shape))
    for residual in (False, True):
        assert run(residual=residual).all()
        # All that is earlier, whichever column it is in, and itself; not one that is later.
        cells = int(np.prod(shape))
        np.testing.assert_array_equal(run(causal=True, residual=residual), np.tril(np.ones((cells, cells), bool)))


def test_sequences_are_laid_out_by_rows():
    mixer = build((3, 5))
    x = grid(3, 5)
    np.testing.assert_array_equal(apply(mixer, x.reshape(B, 15, D)).reshape(x.shape), attend(mixer, x))
    for shape, max_len, columns in [(None, 15, 4), (None, 16, 4), (None, 17, 5), ((-1, 4), None, 4), (None, None, 4)]:
        other = build(shape, max_len=max_len)
        y = apply(other, x.reshape(B, 15, D))
        rows = -(-15 // columns)
        padded = jnp.pad(x.reshape(B, 15, D), ((0, 0), (0, rows * columns - 15), (0, 0)))
        mask = jnp.arange(rows * columns).reshape(rows, columns) < 15
        expected = attend(other, padded.reshape(B, rows, columns, D), jnp.broadcast_to(mask, (B, rows, columns)))
        assert error(y, expected.reshape(B, -1, D)[:, :15]) <= 1e-6
    # Other grids of as many axes: the weights do not know of lengths.
    assert attend(mixer, grid(4, 2)).shape == (B, 4, 2, D)


def test_rows_that_stay_empty_are_not_computed():
    mixer = build((1000, 4))
    y = jax.eval_shape(lambda x: mixer.attend(x), grid(2, 4))
    assert y.shape == (B, 2, 4, D)
    compiled = jax.jit(lambda x: mixer(x, deterministic=True)).lower(grid(8)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 100_000
    assert error(apply(mixer, grid(8)), apply(build((2, 4)), grid(8))) <= 1e-6


MASKS = {
    "an empty row": lambda r, c: r != 1,
    "an empty column": lambda r, c: c != 2,
    "both": lambda r, c: (r != 1) & (c != 2),
    "one cell": lambda r, c: (r == 2) & (c == 3),
    "the end": lambda r, c: 5 * r + c < 7,
    "none": lambda r, c: r < 0,
}


@pytest.mark.parametrize(("name", "causal"), [*((name, False) for name in MASKS), ("both", True), ("the end", True)])
def test_masked_cells_show_nothing_and_real_ones_hear_of_all(name, causal):
    mask = np.broadcast_to(MASKS[name](*np.indices((3, 5))), (B, 3, 5))
    mixer = build(causal=causal)
    x = grid(3, 5)
    y = attend(mixer, x, mask)
    other = jnp.where(mask[..., None], x, 1e4)
    np.testing.assert_array_equal(np.asarray(attend(mixer, other, mask))[mask], np.asarray(y)[mask])
    assert np.isfinite(y).all()
    gradients = square_gradient(mixer, x, mask)
    assert np.isfinite(gradients).all()
    assert not np.asarray(gradients)[~mask].any()
    seen = influence(mixer, (3, 5), mask[:1])
    real = mask[0].ravel()
    expected = np.tril(np.ones((15, 15), bool)) if causal else np.ones((15, 15), bool)
    np.testing.assert_array_equal(seen[real][:, real], expected[real][:, real])
    assert not seen[:, ~real].any()


def test_a_mask_of_ones_is_no_mask_and_the_sum_has_masked_keys():
    x, ones = grid(3, 5), np.ones((B, 3, 5), bool)
    for options in ({}, {"form": "sum"}, {"causal": True}, {"residual": True}):
        mixer = build(**options)
        assert error(attend(mixer, x, ones), attend(mixer, x)) <= 2e-6
    mixer, mask = build(form="sum"), np.broadcast_to(MASKS["both"](*np.indices((3, 5))), (B, 3, 5))
    kept = attend(mixer, x[:, [0, 2]][:, :, [0, 1, 3, 4]])
    assert error(attend(mixer, x, mask)[:, [0, 2]][:, :, [0, 1, 3, 4]], kept) <= 2e-6


def test_initial_values_are_pytorchs():
    mixer: Any = Axial(64, shape=(4, 4), num_heads=4, rngs=nnx.Rngs(0))
    assert len(nnx.to_flat_state(nnx.state(mixer, nnx.Param))) == 2 * 5
    for layer in mixer.axes:
        for name in ("query", "key", "value", "out"):
            kernel = np.asarray(getattr(layer.projections, name).kernel[...])
            assert 0.98 / 8 < np.abs(kernel).max() <= 1 / 8
        assert layer.projections.query.bias is None
        assert 0.9 / 8 < np.abs(np.asarray(layer.projections.out.bias[...])).max() <= 1 / 8
    kernels = [layer.projections.query.kernel[...] for layer in mixer.axes]
    assert not np.allclose(*kernels)


def test_dropout_is_on_the_output():
    mixer = build(dropout=0.5)
    x = grid(3, 5)
    full = attend(mixer, x)
    dropped = nnx.jit(lambda mixer, x, rngs: mixer.attend(x, rngs=rngs))(mixer, x, nnx.Rngs(dropout=1))
    kept = np.asarray(dropped != 0)
    assert 0.3 < kept.mean() < 0.7
    np.testing.assert_allclose(np.asarray(dropped)[kept], 2 * np.asarray(full)[kept], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "product"}, "unknown form 'product'; there are alternating, sum"),
        ({"form": "sum", "causal": True}, "axial cannot be causal in the form 'sum': what an earlier row holds"),
        ({"form": "sum", "residual": True}, "residual=True is between one axis and the next"),
        ({"shape": ()}, r"shape must be lengths of axes.*got \[\]"),
        ({"shape": (4, -1)}, r"of which the first may be -1; got \[4, -1\]"),
        ({"shape": (0, 4)}, r"got \[0, 4\]"),
        ({"implementation": "flash"}, "axial has no implementation 'flash'"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda m: m(jnp.zeros((B, 16, D))), ValueError, r"shape=\(3, 5\) holds 15 tokens; axis 1 \(T\) of x is 16"),
        (lambda m: m.attend(jnp.zeros((B, 15, D))), ValueError, r"axial takes x \[B, n_1, n_2, D\].*x has 3 axes"),
        (lambda m: m.attend(jnp.zeros((B, 3, 5, 7))), ValueError, r"axis 3 \(D\) of x is 7"),
        (lambda m: m.attend(grid(3, 5), mask=jnp.ones((B, 5, 3), bool)), ValueError, r"axis 1 \(n_1\) of mask is 5"),
        (lambda m: m.attend(grid(3, 5), mask=jnp.ones((B, 3, 5))), TypeError, "dtype of mask is float32"),
    ],
)
def test_refuses_inputs(call, kind, message):
    with pytest.raises(kind, match=message):
        call(build())
