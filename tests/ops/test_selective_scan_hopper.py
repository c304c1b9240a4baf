"""The selective scan's kernels for Hopper: interpreted on a CPU against the reference, and lowered at real shapes."""

import functools
import logging

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_equal, assert_same
from scan_kernels import (
    GATED,
    PLAIN,
    REAL,
    ROUNDING,
    check,
    check_vmap,
    exact,
    interpreted,
    problem,
    shapes,
    with_gradients,
)

from zoo.ops import backend, mosaic_gpu
from zoo.ops.selective_scan import selective_scan
from zoo.ops.selective_scan.hopper import block, spans


@pytest.fixture
def short_code(monkeypatch, compilation_cache):
    """Fewer tokens written out one after the other: the same kernels, which the CPU compiles in half the time."""
    monkeypatch.setattr(block, "TOGETHER", 2)


def test_everything_in_reverse_and_the_same_to_the_bit(short_code):
    """35 tokens are two tiles, 5 states and 50 channels less than a block; what padding holds does not matter."""
    given, cotangents = problem(GATED, batch=1, length=35, width=50, states=5)
    mask = np.random.default_rng(1).random((1, 35)) > 0.2
    hidden = {name: jnp.where(mask[..., None], given[name], jnp.nan) for name in ("u", "dt", "B", "C", "z")}
    first, second = interpreted("mosaic_gpu", given | hidden, cotangents, times=2, mask=mask, reverse=True)
    assert_equal(first, second)
    check(first, given, cotangents, ROUNDING["float32"], mask=mask, reverse=True)


def test_bfloat16(short_code):
    given, cotangents = problem(GATED, "bfloat16", batch=1, length=32, width=64, states=8)
    check(interpreted("mosaic_gpu", given, cotangents), given, cotangents, ROUNDING["bfloat16"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 33, 64, 97])
@pytest.mark.parametrize("names", [GATED, PLAIN], ids=["gated", "plain"])
def test_lengths(names, length, reverse, dtype, short_code):
    given, cotangents = problem(names, dtype, batch=2, length=length, width=70, states=9, seed=length)
    mask = np.random.default_rng(length).random((2, length)) > 0.2 if names == GATED else None
    options = {"mask": mask, "reverse": reverse}
    check(interpreted("mosaic_gpu", given, cotangents, **options), given, cotangents, ROUNDING[dtype], **options)


@pytest.mark.slow
@pytest.mark.parametrize("states", [16, 32])
def test_the_code_of_the_device(states, compilation_cache):
    """As many tokens at a time as on a device."""
    given, cotangents = problem(GATED, batch=1, length=40, width=64, states=states)
    check(interpreted("mosaic_gpu", given, cotangents), given, cotangents, ROUNDING["float32"])


@pytest.mark.slow
def test_time_steps_as_they_are(short_code):
    given, cotangents = problem(PLAIN, batch=1, length=40, width=64, states=8)
    given["dt"] = jnp.abs(given["dt"])
    options = {"dt_softplus": False}
    check(interpreted("mosaic_gpu", given, cotangents, **options), given, cotangents, ROUNDING["float32"], **options)


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
def test_spans(reverse, short_code, monkeypatch):
    """Three blocks along time, of two tiles each, and a last tile that is mostly padding."""
    monkeypatch.setattr(spans, "choose", lambda *sizes: 3)
    given, cotangents = problem(GATED, batch=1, length=165, width=64, states=8)
    options = {"reverse": reverse, "mask": np.random.default_rng(1).random((1, 165)) > 0.2}
    check(interpreted("mosaic_gpu", given, cotangents, **options), given, cotangents, ROUNDING["float32"], **options)


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="the interpreter finds races since JAX 0.12")
@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_no_copy_meets_a_tile_in_use(count, short_code, monkeypatch):
    """Four tiles go through two slots: none comes into one that threads still read, or is read before it is there.

    Copies out of shared memory the interpreter makes at once, so that whether they are awaited is not tested here.
    """
    monkeypatch.setattr(spans, "choose", lambda *sizes: count)
    given, cotangents = problem(GATED, batch=1, length=128, width=64, states=8)
    with mosaic_gpu.interpreted(detect_races=True):
        run = jax.jit(functools.partial(with_gradients, implementation="mosaic_gpu"))
        found = jax.block_until_ready(run(given, cotangents))
    check(found, given, cotangents, ROUNDING["float32"])


@pytest.mark.slow
def test_groups_and_vmap(short_code):
    given, cotangents = problem(GATED, batch=1, length=33, width=128, states=8, groups=2)
    check(interpreted("mosaic_gpu", given, cotangents), given, cotangents, ROUNDING["float32"])
    check_vmap("mosaic_gpu")


@pytest.mark.slow
def test_extremes(short_code):
    """Decays down to zero, and time steps of 1e-6, of which float32 keeps all digits."""
    given, cotangents = problem(GATED, batch=1, length=40, width=64, states=8)
    given["A"] = given["A"].at[:, ::2].multiply(1e4)
    given["dt"] = given["dt"] - 14 * (jnp.arange(64) % 2)
    (y, state), gradients = interpreted("mosaic_gpu", given, cotangents)
    assert_same(((y, state), gradients), exact(given, cotangents), ROUNDING["float32"])


# How many spans there are is chosen by the sizes; the second and the fourth kernel are for them.
@pytest.mark.parametrize(
    ("sizes", "dtype", "kernels"),
    [
        (REAL, "bfloat16", 2),
        (REAL | {"batch": 1, "width": 256}, "bfloat16", 4),
        (REAL | {"states": 32}, "float32", 2),
    ],
    ids=["large", "spans", "float32"],
)
def test_lowered_for_hopper(sizes, dtype, kernels):
    """A training step at real shapes lowers on any machine, and nothing in it is as large as all states."""
    form = shapes(**sizes)
    narrow = ("A", "D", "dt_bias", "initial_state")
    given = {
        name: jax.ShapeDtypeStruct(form[name], jnp.float32 if name in narrow else jnp.dtype(dtype)) for name in GATED
    }
    cotangents = given["u"], given["initial_state"]
    mask = jax.ShapeDtypeStruct(form["u"][:2], bool)

    def step(given, mask, cotangents):
        return with_gradients(given, cotangents, mask=mask, implementation="mosaic_gpu")

    with mosaic_gpu.exporting():
        exported = jax.export.export(jax.jit(step), platforms=["cuda"])(given, mask, cotangents)
    text = exported.mlir_module()
    assert text.count("custom_call @mosaic_gpu") == kernels
    assert text.count("stablehlo.while") == 0
    assert f"tensor<{sizes['batch']}x{sizes['length']}x{sizes['width']}x{sizes['states']}x" not in text


def test_the_number_of_spans():
    """Large problems have one; small ones as many as fill the GPU, in whole tiles, each worth its while."""
    assert spans.choose(8, 4096, 2048) == 1
    assert spans.choose(4, 2048, 1024) == 4
    assert spans.choose(1, 4096, 256) == 32
    assert spans.choose(1, 96, 64) == 1
    for length in (32, 320, 4096, 32 * 97):
        count = spans.choose(1, length, 512)
        assert length // block.TILE % count == 0


def test_what_the_kernels_do_not_take():
    given, _ = problem(PLAIN, batch=1, length=8, width=4, states=3)
    run = functools.partial(selective_scan, implementation="mosaic_gpu")
    with mosaic_gpu.exporting():
        with pytest.raises(ValueError, match="only within limits: it has no segment_ids"):
            run(**given, segment_ids=jnp.zeros((1, 8), int))
        many, _ = problem(PLAIN, batch=1, length=8, width=4, states=33)
        with pytest.raises(ValueError, match="at most 32 states per channel, A has 33"):
            run(**many)
        with jax.enable_x64(True), pytest.raises(ValueError, match="computes in float32, and u is float64"):
            run(**{name: jnp.asarray(x, jnp.float64) for name, x in given.items()})


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="asks for what a machine without a GPU answers")
def test_without_a_gpu(caplog):
    """A name is exactly that implementation or an error; the name that says "or" is the other one, with the reason."""
    given, _ = problem(PLAIN, batch=1, length=8, width=4, states=3)
    with pytest.raises(RuntimeError, match="selective_scan has implementation='mosaic_gpu' for Hopper GPUs only"):
        selective_scan(**given, implementation="mosaic_gpu")
    backend._log_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="zoo.ops.backend"):
        found = [selective_scan(**given, implementation="mosaic_gpu_or_xla") for _ in range(2)]
    assert len(caplog.records) == 1
    assert_equal(found, [selective_scan(**given)] * 2)
