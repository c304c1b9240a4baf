"""What a module says when it is called with a wrong shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.layers.shapes import check_shapes

X = np.zeros((2, 7, 64), np.float32)
MASK = np.ones((2, 7), bool)


def check(x, mask=None, **options):
    check_shapes("flowformer", "x [B, T, D]", x, mask, D=64, **options)


def refusal(error, *args):
    with pytest.raises(error) as raised:
        check(*args)
    return str(raised.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 7, 32), "flowformer takes x [B, T, D] with D = 64; axis 2 (D) of x is 32 (its shape is (2, 7, 32))."),
        (
            (7, 64),
            "flowformer takes x [B, T, D] with D = 64; x has 2 axes instead of 0 (B), 1 (T), 2 (D) (its shape is "
            "(7, 64)).",
        ),
        (
            (2, 7, 64, 1),
            "flowformer takes x [B, T, D] with D = 64; x has 4 axes instead of 0 (B), 1 (T), 2 (D) (its shape is "
            "(2, 7, 64, 1)).",
        ),
        ((2, 0, 64), "flowformer needs at least one token; axis 1 (T) of x is 0 (its shape is (2, 0, 64))."),
    ],
)
def test_arrays(shape, message):
    assert refusal(ValueError, np.zeros(shape, np.float32)) == message


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 7), "axis 0 (B) of mask is 1 (its shape is (1, 7))."),
        ((2, 6), "axis 1 (T) of mask is 6 (its shape is (2, 6))."),
        ((7,), "mask has 1 axes instead of 0 (B), 1 (T) (its shape is (7,))."),
        ((2, 1, 7), "mask has 3 axes instead of 0 (B), 1 (T) (its shape is (2, 1, 7))."),
    ],
)
def test_masks(shape, message):
    due = "flowformer takes mask [B, T] with B = 2, T = 7, as in x; "
    assert refusal(ValueError, X, np.ones(shape, bool)) == due + message


def test_a_mask_is_boolean():
    message = "flowformer takes mask [B, T] of booleans, True at real tokens; the dtype of mask is float32."
    assert refusal(TypeError, X, MASK.astype(np.float32)) == message


def test_what_is_right_passes():
    check(X)
    check(X, MASK)
    check(X[:, :0], MASK[:, :0], allow_empty=True)
    check_shapes("flowformer", "x_t [B, D]", X[:, 0], D=64)
    check_shapes("encoder", "inputs [B, T]", MASK.astype(int), MASK)


def test_it_leaves_nothing_in_the_program_and_sees_what_the_module_sees():
    assert not jax.make_jaxpr(lambda x, mask: check(x, mask))(X, MASK).eqns
    vectorised = jax.jit(jax.vmap(lambda x: check(x) or x))
    assert vectorised(jnp.stack([X, X])).shape == (2, 2, 7, 64)
    with pytest.raises(ValueError, match="x has 2 axes"):
        vectorised(X)
    with pytest.raises(ValueError, match=r"axis 2 \(D\) of x is 63"):
        jax.lax.scan(lambda carry, x: (carry, check(x)), 0, jnp.zeros((3, 2, 7, 63)))
