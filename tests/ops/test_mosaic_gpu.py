"""What stands between the kernels and Mosaic GPU: a kernel interpreted and lowered, and who gets one."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops import mosaic_gpu
from zoo.ops.mosaic_gpu import (
    COLUMNS,
    MATRIX,
    ROWS,
    SMEM,
    cast,
    copy_in,
    held,
    load,
    pl,
    plgpu,
    products,
    store,
    transposed,
)

_TILE = (64, 16)


def _doubled_sums(x, row, y, sums, tile, arrived):
    """y = 2 x + row, and its sums over columns, one block per 64 rows."""
    here = pl.ds(64 * jax.lax.axis_index("i"), 64)
    copy_in(x.at[here], tile, arrived)
    plgpu.barrier_wait(arrived)
    row = cast(jax.lax.broadcast_in_dim(load(row, COLUMNS), _TILE, (1,)), MATRIX)
    value = 2 * load(tile, MATRIX).astype(jnp.float32) + row
    store(y.at[here], value)
    store(sums.at[here], cast(value.sum(1), ROWS))


def _call(blocks, dtype, semantics=None):
    rows = 64 * blocks
    return mosaic_gpu.launch(
        _doubled_sums,
        out=(jax.ShapeDtypeStruct((rows, 16), jnp.float32), jax.ShapeDtypeStruct((rows,), jnp.float32)),
        grid=(blocks,),
        grid_names=("i",),
        scratch=(SMEM(_TILE, dtype), mosaic_gpu.barrier()),
        name="doubled_sums",
        semantics=semantics,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_kernel_interpreted(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(128, 16)), dtype)
    row = jnp.arange(16, dtype=jnp.float32)
    with mosaic_gpu.interpreted():
        y, sums = jax.jit(_call(2, dtype))(x, row)
    due = 2 * np.asarray(x, np.float32) + np.arange(16)
    np.testing.assert_allclose(y, due, rtol=1e-6)
    np.testing.assert_allclose(sums, due.sum(1), rtol=1e-5)


@pytest.mark.parametrize("semantics", ["lane", "warpgroup"])
def test_a_kernel_lowered_for_a_gpu(semantics):
    with mosaic_gpu.exporting():
        exported = jax.export.export(jax.jit(_call(1000, jnp.bfloat16, semantics)), platforms=["cuda"])(
            jax.ShapeDtypeStruct((64_000, 16), jnp.bfloat16), jax.ShapeDtypeStruct((16,), jnp.float32)
        )
    assert "mosaic_gpu" in exported.mlir_module()


def test_a_grid_that_cuda_does_not_have():
    with pytest.raises(ValueError, match=r"the kernel wide has a grid of \(1, 65536, 1\)"):
        mosaic_gpu.launch(lambda: None, out=(), grid=(1, 65536, 1), grid_names=("a", "b", "c"), name="wide")


def _sums_of_products(a, b, c, y, z, a_tile, b_tile, c_tile, arrived):
    """y = a b + a^T c^T, z = a c^T, whose first is in registers."""
    for source, tile in ((a, a_tile), (b, b_tile), (c, c_tile)):
        copy_in(source, tile, arrived)
    plgpu.barrier_wait(arrived)
    (both,) = products([(a_tile, b_tile), (transposed(a_tile), transposed(c_tile))])
    (other,) = products([(held(load(a_tile, MATRIX)), transposed(c_tile))])
    store(y, both)
    store(z, other)


def _call_products(semantics):
    shapes = (64, 64), (64, 128), (128, 64)
    return mosaic_gpu.launch(
        _sums_of_products,
        out=(jax.ShapeDtypeStruct((64, 128), jnp.float32),) * 2,
        grid=(1,),
        grid_names=("i",),
        scratch=(*(SMEM(shape, jnp.bfloat16) for shape in shapes), mosaic_gpu.barrier(3)),
        name="sums_of_products",
        semantics=semantics,
    )


def test_products():
    """Interpreted, of operands as they are and transposed (before JAX 0.12 by value), and lowered."""
    rng = np.random.default_rng(0)
    a, b, c = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((64, 64), (64, 128), (128, 64)))
    with mosaic_gpu.interpreted():
        found = jax.jit(_call_products("warpgroup"))(a, b, c)
    wide_a, wide_b, wide_c = (np.asarray(x, np.float64) for x in (a, b, c))
    np.testing.assert_allclose(found[0], wide_a @ wide_b + wide_a.T @ wide_c.T, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found[1], wide_a @ wide_c.T, rtol=1e-5, atol=1e-4)
    with mosaic_gpu.exporting():
        module = jax.export.export(jax.jit(_call_products("warpgroup")), platforms=["cuda"])(a, b, c).mlir_module()
    assert "mosaic_gpu" in module


class _Device:
    def __init__(self, platform, capability=None):
        self.platform, self.device_kind = platform, "a card"
        if capability:
            self.compute_capability = capability


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (_Device("cpu"), "is a CPU"),
        (_Device("tpu"), "is a TPU"),
        (_Device("gpu", "8.9"), "8.9; 9.0"),
        (_Device("gpu"), "no CUDA compute capability"),
        (_Device("gpu", "9.0"), None),
        (_Device("gpu", "10.0"), None),
    ],
)
def test_what_runs_kernels(monkeypatch, device, reason):
    monkeypatch.setattr(jax, "devices", lambda: [device])
    found = mosaic_gpu.unavailable()
    assert found is None if reason is None else reason in (found or "")
    if reason is None:
        hopper = device.compute_capability == "9.0"
        assert (mosaic_gpu.unavailable(wgmma=True) is None) == hopper, "products are those of Hopper alone"
    with mosaic_gpu.exporting():
        assert mosaic_gpu.unavailable(wgmma=True) is None


def test_the_reason_is_raised_or_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(jax, "devices", lambda: [_Device("cpu")])
    with pytest.raises(RuntimeError, match=r"an_op has implementation='mosaic_gpu'.*is a CPU"):
        mosaic_gpu.require("an_op")
    with caplog.at_level(logging.WARNING, logger="zoo.ops.backend"):
        assert not mosaic_gpu.usable("another_op")
        assert not mosaic_gpu.usable("another_op")
    assert [record.message.startswith("another_op runs by XLA instead") for record in caplog.records] == [True]
    monkeypatch.setattr(jax, "devices", lambda: [_Device("gpu", "9.0")])
    assert mosaic_gpu.usable("another_op")
    assert not mosaic_gpu.usable("another_op", "it is Tuesday")
