"""The gated delta rule by kernels for TPUs: interpreted on a CPU against the float64 reference; lowered for a TPU.

The interpreter runs the kernels' own operations by XLA for the CPU, where compiling them takes most of the time, so a
case has many properties. None of this has been run on a TPU; `libtpu`, where it is installed, compiles for one.
"""

import functools
import logging

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_equal, assert_same, error, rms_error
from delta_kernels import NARROW, WIDE, cotangents, exact, interpreted, marks, operands, rounded, with_gradients

from zoo.ops import backend, mosaic_tpu
from zoo.ops.gated_delta_rule import gated_delta_rule

SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)
EVERYTHING = {"qk_l2norm": True, "reverse": True}


@pytest.fixture(autouse=True)
def cached_compilation(compilation_cache):
    """Most of the time goes into compiling."""


def check(given, dtype, given_marks, **options):
    arrays = rounded((given, cotangents(given)), dtype)
    found, expected = interpreted("mosaic_tpu", arrays, given_marks, **options), exact(arrays, given_marks, **options)
    if dtype == WIDE:
        assert_same(found, expected, 5e-6)
    else:
        assert_same(found, expected, 8e-3, measure=rms_error)
        assert_same(found[0], expected[0], 6e-3, measure=rms_error)


# --- values and gradients


def test_every_gradient_with_everything():
    """Two chunks of which the second is not full, backwards, decays, grouped values, padding, packed sequences."""
    check(operands(140), WIDE, marks(140), **EVERYTHING)


def test_every_gradient_of_bfloat16():
    """The budgets of flash-linear-attention, for an op that multiplies numbers of 8 bits."""
    check(operands(140, seed=1), NARROW, {})


def test_every_gradient_without_decays():
    """Less than a chunk; there is nothing then by which to multiply."""
    check(operands(33, gated=False, heads=(1, 1)), NARROW, {})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [WIDE, NARROW])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("length", "heads", "widths", "batch"),
    [
        (1, (1, 1), (64, 64), 8),  # 8 gradients of beta: the error of a single number has no root mean square
        (128, (2, 2), (64, 128), 2),
        (129, (1, 3), (128, 64), 1),  # float32: three steps share a query
        (300, (2, 4), (128, 128), 1),
        (130, (1, 2), (256, 256), 1),
        (130, (1, 16), (128, 128), 1),  # so do two, or four
    ],
)
def test_every_gradient_everywhere(dtype, gated, length, heads, widths, batch):
    for given_marks, options in (({}, {}), (marks(length, batch), EVERYTHING)):
        check(operands(length, gated, heads, widths, batch, seed=length), dtype, given_marks, **options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [WIDE, NARROW])
@pytest.mark.parametrize("sign", [1, -1])
def test_correlated_keys_with_beta_2(dtype, sign):
    """Where powers of K K^T reach 1e30, identical and alternating keys; in bfloat16 what is written cancels, too."""
    given = operands(200, gated=False, heads=(1, 1))
    given["k"] = given["k"][:, :1] * float(sign) ** np.arange(200)[:, None, None]
    given["beta"] = np.full_like(given["beta"], 2)
    arrays = rounded((given, cotangents(given)), dtype)
    found, expected = interpreted("mosaic_tpu", arrays, {}), exact(arrays, {})
    assert_same(found, expected, 3e-4 if dtype == WIDE else 0.1, measure=rms_error)


@pytest.mark.slow
def test_content_of_padding_means_nothing():
    given, around = operands(140), marks(140)
    (y, state), mask = cotangents(given), around["mask"]

    def filled(x, content):
        return np.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, content)

    loud = {name: x if name == "initial_state" else filled(x, np.nan) for name, x in given.items()}
    found = interpreted("mosaic_tpu", rounded((loud, (filled(y, np.nan), state)), NARROW), around)
    assert_equal(found, interpreted("mosaic_tpu", rounded((given, (y, state)), NARROW), around))
    assert not np.asarray(found[0][0], np.float32)[~mask].any()


@pytest.mark.slow
def test_vmap_is_a_loop():
    """Pallas adds the mapped axis to the grid; XLA may round what is around the kernels differently."""
    several = [operands(130, heads=(1, 1), seed=seed) for seed in range(2)]
    weights = rounded(({}, cotangents(several[0])), WIDE)[1]
    several = [rounded((given,), WIDE)[0] for given in several]
    with mosaic_tpu.interpreted():
        run = with_gradients("mosaic_tpu")
        mapped = jax.jit(jax.vmap(run, in_axes=(0, None, None)))
        found = mapped(jax.tree.map(lambda *xs: jnp.stack(xs), *several), weights, {})
        for index, given in enumerate(several):
            assert_same(jax.tree.map(lambda x, index=index: x[index], found), run(given, weights, {}), 1e-5)


# --- for a TPU


def real(batch, dtype, gated=True, heads=(16, 16), widths=(128, 128)):
    """Shapes of what `with_gradients` takes, at T = 4096."""

    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct((batch, *sizes), dtype)

    given = {name: shape(4096, heads[0], widths[0]) for name in "qk"}
    given |= {"v": shape(4096, heads[1], widths[1]), "beta": shape(4096, heads[1])}
    given["initial_state"] = shape(heads[1], *widths, dtype=jnp.float32)
    if gated:
        given["log_decay"] = shape(4096, heads[1], dtype=jnp.float32)
    return given, (given["v"], given["initial_state"]), {}


SHAPES = [
    (8, NARROW, True, (16, 16), (128, 128)),
    SLOW(8, NARROW, False, (16, 16), (128, 128)),
    SLOW(8, WIDE, True, (16, 16), (128, 128)),
    SLOW(1, NARROW, True, (4, 16), (64, 128)),
    SLOW(1, NARROW, True, (1, 16), (128, 64)),
    SLOW(1, WIDE, True, (2, 4), (256, 256)),
]


@pytest.mark.parametrize(("batch", "dtype", "gated", "heads", "widths"), SHAPES)
def test_lowers_for_tpus(batch, dtype, gated, heads, widths):
    """One kernel forward, and two more for the gradients, as programs of Mosaic."""
    with mosaic_tpu.exporting():
        run = with_gradients("mosaic_tpu", qk_l2norm=True)
        exported = jax.export.export(run, platforms=["tpu"])(*real(batch, dtype, gated, heads, widths))
    assert exported.mlir_module().count("stablehlo.custom_call @tpu_custom_call") == 3


@pytest.mark.parametrize("kind", ["v5e:2x2", SLOW("v6e:2x2"), SLOW("v5p:2x2x1"), SLOW("v4:2x2x1")])
@pytest.mark.parametrize(
    ("batch", "dtype", "gated", "heads", "widths"),
    [(1, NARROW, True, (2, 2), (64, 64)), *(SLOW(*getattr(case, "values", case)) for case in SHAPES)],
)
def test_compiles_for_tpus(compiled_for_tpu, batch, dtype, gated, heads, widths, kind):
    """Layouts are found and VMEM suffices; besides the arguments there are the states and inverses, and little else."""
    with mosaic_tpu.exporting():
        step = with_gradients("mosaic_tpu", qk_l2norm=True)
        compiled = compiled_for_tpu(step, real(batch, dtype, gated, heads, widths), kind)
    width = 2 if dtype == NARROW else 4
    states = batch * heads[1] * 32 * (width * widths[0] * widths[1] + 4 * 32 * 128)
    arrays = width * batch * 4096 * (2 * heads[0] * widths[0] + heads[1] * widths[1])
    assert compiled.memory_analysis().temp_size_in_bytes < 1.1 * states + 4 * arrays


# --- who gets it


def test_what_it_does_not_take():
    given = jax.tree.map(jnp.asarray, operands(5))
    with mosaic_tpu.interpreted():

        def refused(words, **changes):
            run = functools.partial(gated_delta_rule, implementation="mosaic_tpu")
            with pytest.raises(ValueError, match=f"implementation='mosaic_tpu' only within limits: {words}"):
                jax.eval_shape(functools.partial(run, chunk_size=changes.pop("chunk_size", None)), **given | changes)

        refused("K must be 64, 128 or 256; it is 32", **operands(5, widths=(32, 64)))
        refused("V must be 64, 128 or 256; it is 96", **operands(5, widths=(64, 96)))
        refused("chunk_size must be 128 or None; it is 64", chunk_size=64)
        refused("q, k and v must be bfloat16 or float32, not float16", q=given["q"].astype(jnp.float16))
        refused(".* H = 9, HV = 9 of K = 64, V = 64", **operands(5, heads=(9, 9)))
        with jax.enable_x64(True):
            refused("it computes in float32, not in float64", **operands(5))


def test_where_it_does_not_run(caplog):
    """An error for who asks for it; else XLA, and why."""
    given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), operands(5))
    with pytest.raises(RuntimeError, match=r"gated_delta_rule has implementation='mosaic_tpu'.* is a CPU"):
        gated_delta_rule(**given, implementation="mosaic_tpu")
    backend._log_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="zoo.ops.backend"):
        found = gated_delta_rule(**given, implementation="mosaic_tpu_or_xla")
    assert error(found, gated_delta_rule(**given)) == 0
    assert "is a CPU" in caplog.text
