"""The module between Pallas for TPUs and the kernels: interpreted on a CPU, lowered, vmapped along any axis."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_equal

from zoo.ops import mosaic_tpu
from zoo.ops.mosaic_tpu import pl


def running_sums(x, scale):
    """Sums over blocks of 8 rows of `scale` [1, 128] / `x` [T, 128], the last ones in `scale`'s place."""

    def body(x, scale, out):
        @pl.when(pl.program_id(0) == 0)
        def _():
            out[...] = jnp.zeros((8, 128), jnp.float32)

        def add(k, total):
            return total + scale[...] * mosaic_tpu.reciprocal(x[pl.ds(k, 1), :], full_range=False)

        out[...] = out[...] + jax.lax.fori_loop(0, 8, add, jnp.zeros((1, 128), jnp.float32))

    return mosaic_tpu.launch(
        body,
        name="running_sums",
        semantics=("arbitrary",),
        grid=(x.shape[0] // 8,),
        in_specs=[pl.BlockSpec((8, 128), lambda i: (i, 0)), pl.BlockSpec((1, 128), lambda i: (0, 0))],
        out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)),
        out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
    )(x, scale)


def twice_vmapped(x, scale):
    """x [T, 128, 2, 3], scale [1, 128, 3]."""
    return jax.vmap(jax.vmap(running_sums, (2, None), 1), (3, 2), 2)(x, scale)


def arrays():
    rng = np.random.default_rng(0)
    return 1 + rng.random((16, 128, 2, 3), np.float32), rng.random((1, 128, 3), np.float32)


def test_interpreted_and_vmapped_along_any_axes():
    x, scale = arrays()
    with mosaic_tpu.interpreted():
        found = jax.jit(twice_vmapped)(x, scale)
    assert found.shape == (8, 2, 3, 128)
    expected = (scale[:, :, None] / x).sum(0)  # [128, 2, 3]
    np.testing.assert_allclose(found, np.broadcast_to(np.moveaxis(expected, 0, -1), found.shape), rtol=1e-5)


@pytest.mark.parametrize("wide", [False, True], ids=["x32", "x64"])
def test_lowered_whatever_is_vmapped_and_however_wide_integers_are(wide):
    """A TPU tiles the last two axes of a block, which others must not come between, and counts in 32 bits."""
    with jax.enable_x64(wide), mosaic_tpu.exporting():
        exported = jax.export.export(jax.jit(lambda *given: twice_vmapped(*given)), platforms=["tpu"])(*arrays())
    assert exported.mlir_module().count("custom_call @tpu_custom_call") == 1


def test_both_interpreters_agree():
    x, scale = (array[..., 0] for array in arrays())
    with mosaic_tpu.interpreted():
        fast = jax.jit(running_sums)(x[..., 0], scale)
    with mosaic_tpu.interpreted(uninitialized_memory="nan"):
        slow = jax.jit(lambda *given: running_sums(*given))(x[..., 0], scale)
    assert_equal(fast, slow)


@pytest.mark.skipif(jax.default_backend() == "tpu", reason="asks for what a machine without a TPU answers")
def test_without_a_tpu():
    with pytest.raises(RuntimeError, match=r"an_op has implementation='mosaic_tpu' for TPUs only.*is a CPU"):
        mosaic_tpu.require("an_op")
    with mosaic_tpu.exporting():
        assert mosaic_tpu.unavailable() is None
