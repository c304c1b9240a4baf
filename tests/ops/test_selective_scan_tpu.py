"""The selective scan's kernels for TPUs: interpreted on a CPU against the reference, and compiled for TPUs without one.

No test runs them on a TPU. What a TPU adds to the interpreter is its own rounding, of exponentials above all.
"""

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
    NARROW,
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

from zoo.ops import backend, mosaic_tpu
from zoo.ops.selective_scan import selective_scan
from zoo.ops.selective_scan.tpu import block

SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)


def flags(batch, length):
    """A mask with a hole of every length, and ids of packed sequences."""
    rng = np.random.default_rng(length)
    ids = jnp.asarray((rng.random((batch, length)) < 0.1).cumsum(1))
    return {"mask": rng.random((batch, length)) > 0.2, "segment_ids": ids}


def test_everything_in_reverse_and_the_same_to_the_bit(compilation_cache):
    """135 tokens are two chunks, 5 states and 150 channels less than two tiles; what padding holds does not matter."""
    given, cotangents = problem(GATED, batch=1, length=135, width=150, states=5)
    options = {"reverse": True, **flags(1, 135)}
    hidden = {name: jnp.where(options["mask"][..., None], given[name], jnp.nan) for name in ("u", "dt", "B", "C", "z")}
    first, second = interpreted("mosaic_tpu", given | hidden, cotangents, times=2, **options)
    assert_equal(first, second)
    check(first, given, cotangents, ROUNDING["float32"], **options)


def test_bfloat16_in_two_blocks_of_channels(monkeypatch, compilation_cache):
    """Sums over channels go on from block to block; time steps as they are."""
    monkeypatch.setattr(block, "STATES_AT_ONCE", 1024)
    given, cotangents = problem(PLAIN, "bfloat16", batch=2, length=256, width=256, states=8)
    given["dt"] = jnp.abs(given["dt"])
    options = {"dt_softplus": False}
    check(interpreted("mosaic_tpu", given, cotangents, **options), given, cotangents, ROUNDING["bfloat16"], **options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 129, 256, 400])
@pytest.mark.parametrize("names", [GATED, PLAIN], ids=["gated", "plain"])
def test_lengths(names, length, reverse, dtype, compilation_cache):
    given, cotangents = problem(names, dtype, batch=2, length=length, width=130, states=9, seed=length)
    options = {"reverse": reverse, **(flags(2, length) if names == GATED else {})}
    check(interpreted("mosaic_tpu", given, cotangents, **options), given, cotangents, ROUNDING[dtype], **options)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "states"), [(1024, 8), (512, 16), (384, 32), (128, 64)])
def test_the_blocks_of_the_device(width, states, compilation_cache):
    """As many channels at a time as on a device."""
    given, cotangents = problem(GATED, batch=1, length=200, width=width, states=states)
    check(interpreted("mosaic_tpu", given, cotangents), given, cotangents, ROUNDING["float32"])


@pytest.mark.slow
def test_with_the_memories_of_a_tpu(monkeypatch, compilation_cache):
    """Nothing is read before it is written there, and no copy meets a block in use."""
    monkeypatch.setattr(block, "STATES_AT_ONCE", 1024)
    given, cotangents = problem(GATED, batch=1, length=200, width=256, states=8)
    options = {"reverse": True, **flags(1, 200)}
    interpreter = {"uninitialized_memory": "nan", "detect_races": True}
    found = interpreted("mosaic_tpu", given, cotangents, interpreter=interpreter, **options)
    check(found, given, cotangents, ROUNDING["float32"], **options)


@pytest.mark.slow
def test_groups_and_vmap(compilation_cache):
    given, cotangents = problem(GATED, batch=1, length=33, width=256, states=8, groups=2)
    check(interpreted("mosaic_tpu", given, cotangents), given, cotangents, ROUNDING["float32"])
    check_vmap("mosaic_tpu")


@pytest.mark.slow
def test_extremes(compilation_cache):
    """Decays down to zero, gates that are shut, and time steps of 1e-6, of which float32 keeps all digits."""
    given, cotangents = problem(GATED, batch=1, length=140, width=128, states=8)
    given["A"] = given["A"].at[:, ::2].multiply(1e4)
    given["dt"] = given["dt"] - 14 * (jnp.arange(128) % 2)
    given["z"] = given["z"].at[:, ::3].multiply(1e3)
    found = interpreted("mosaic_tpu", given, cotangents)
    assert_same(found, exact(given, cotangents), ROUNDING["float32"])


def training_step(sizes, dtype, names=GATED, **options):
    """A function and the shapes of its arguments."""
    form = {
        name: jax.ShapeDtypeStruct(x, jnp.float32 if name in NARROW else dtype) for name, x in shapes(**sizes).items()
    }
    given = {name: form[name] for name in names}
    mask = jax.ShapeDtypeStruct(form["u"].shape[:2], bool)

    def step(given, mask, cotangents):
        return with_gradients(given, cotangents, mask=mask, implementation="mosaic_tpu", **options)

    return step, (given, mask, (form["u"], form["initial_state"]))


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [(REAL, "bfloat16"), (REAL | {"states": 64, "length": 1000}, "float32"), (REAL | {"groups": 2}, "bfloat16")],
    ids=["large", "float32", "groups"],
)
def test_lowered_for_tpu(sizes, dtype):
    """A training step at real shapes lowers on any machine: two kernels, no loop, nothing as large as all states."""
    step, arguments = training_step(sizes, dtype)
    check_lowered(step, arguments, sizes)


def test_lowered_for_tpu_where_numbers_have_64_bits():
    """What the kernels count with has 32 all the same."""
    with jax.enable_x64(True):
        check_lowered(*training_step(REAL, "float32", PLAIN), REAL)


def check_lowered(step, arguments, sizes):
    with mosaic_tpu.exporting():
        exported = jax.export.export(jax.jit(step), platforms=["tpu"])(*arguments)
    text = exported.mlir_module()
    assert text.count("custom_call @tpu_custom_call") == 2
    assert text.count("stablehlo.while") == 0
    assert f"tensor<{sizes['batch']}x{sizes['length']}x{sizes['width']}x{sizes['states']}x" not in text


@pytest.mark.parametrize("kind", ["v5e:2x2", SLOW("v6e:2x2")])
@pytest.mark.parametrize(
    ("more", "dtype"), [({}, "bfloat16"), SLOW({"batch": 1, "length": 300, "width": 640, "states": 64}, "float32")]
)
def test_compiles_for_tpus(compiled_for_tpu, more, dtype, kind):
    """The compiler takes the kernels; beside operands and results they need less than half an array."""
    step, arguments = training_step(REAL | more, dtype, reverse=bool(more))
    with mosaic_tpu.exporting():
        compiled = compiled_for_tpu(step, arguments, kind)
    assert more or compiled.memory_analysis().temp_size_in_bytes < arguments[0]["u"].size


def test_what_the_kernels_do_not_take():
    given, _ = problem(PLAIN, batch=1, length=8, width=4, states=65)
    run = functools.partial(selective_scan, implementation="mosaic_tpu")
    with mosaic_tpu.exporting():
        with pytest.raises(ValueError, match="only within limits: it has at most 64 states per channel, A has 65"):
            run(**given)
        wide = {name: jax.ShapeDtypeStruct((1, 8, 16385), jnp.float32) for name in ("u", "dt")}
        wide |= {name: jax.ShapeDtypeStruct((1, 8, 16), jnp.float32) for name in ("B", "C")}
        wide["A"] = jax.ShapeDtypeStruct((16385, 16), jnp.float32)
        with pytest.raises(ValueError, match="at most 262144 states per example, A has 16 for 16385 channels"):
            jax.eval_shape(lambda given: run(**given), wide)
        given, _ = problem(PLAIN, batch=1, length=8, width=4, states=3)
        with pytest.raises(ValueError, match="takes float32 and bfloat16, and u is float16"):
            run(**given | {"u": given["u"].astype(jnp.float16)})
        with jax.enable_x64(True), pytest.raises(ValueError, match="takes float32 and bfloat16, and u is float64"):
            run(**{name: jnp.asarray(x, jnp.float64) for name, x in given.items()})


@pytest.mark.skipif(jax.default_backend() == "tpu", reason="asks for what a machine without a TPU answers")
def test_without_a_tpu(caplog):
    """A name is exactly that implementation or an error; the name that says "or" is the other one, with the reason."""
    given, _ = problem(PLAIN, batch=1, length=8, width=4, states=3)
    with pytest.raises(RuntimeError, match="selective_scan has implementation='mosaic_tpu' for TPUs only"):
        selective_scan(**given, implementation="mosaic_tpu")
    backend._log_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="zoo.ops.backend"):
        found = [selective_scan(**given, implementation="mosaic_tpu_or_xla") for _ in range(2)]
    assert len(caplog.records) == 1
    assert_equal(found, [selective_scan(**given)] * 2)
