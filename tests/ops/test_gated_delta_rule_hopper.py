"""The gated delta rule by kernels for Hopper: interpreted on a CPU against the float64 reference; lowered for a GPU.

Pallas' interpreter runs the kernels' own code, with its copies, barriers and products. In JAX before 0.12 it knows no
transposed operands; `zoo.ops.mosaic_gpu.products` then multiplies values. It takes seconds per case, so a case has many
properties, and most of the sweep is slow.
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

from zoo.ops import backend, mosaic_gpu
from zoo.ops.gated_delta_rule import gated_delta_rule
from zoo.ops.gated_delta_rule.hopper import recurrence
from zoo.ops.gated_delta_rule.hopper.gradients import gradients
from zoo.ops.gated_delta_rule.hopper.inverse import pairs
from zoo.ops.gated_delta_rule.hopper.layout import CHUNK, Tokens

SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)
EVERYTHING = {"qk_l2norm": True, "reverse": True}


@pytest.fixture(autouse=True)
def cached_compilation(compilation_cache):
    """Most of the time goes into the programs around the kernels."""


def check(given, dtype, given_marks, **options):
    arrays = rounded((given, cotangents(given)), dtype)
    found, expected = interpreted("mosaic_gpu", arrays, given_marks, **options), exact(arrays, given_marks, **options)
    if dtype == WIDE:
        # The gradients of log decays are sums over all later tokens of differences, whose errors add up.
        sums = {name: (tree[1].pop("log_decay", None),) for name, tree in (("found", found), ("expected", expected))}
        assert_same(sums["found"], sums["expected"], 4e-5)
        assert_same(sums["found"], sums["expected"], 3e-5, measure=rms_error)
        assert_same(found, expected, 2e-5)
        assert_same(found, expected, 1.5e-5, measure=rms_error)
        assert_same(found[0], expected[0], 1e-5, measure=rms_error)
    else:
        assert_same(found, expected, 8e-3, measure=rms_error)
        assert_same(found[0], expected[0], 6e-3, measure=rms_error)


# --- values and gradients


def test_every_gradient_with_everything():
    """Two chunks of which the second is not full, backwards, decays, grouped values, padding, packed sequences."""
    check(operands(70), WIDE, marks(70), **EVERYTHING)


def test_every_gradient_of_bfloat16():
    """The budgets of flash-linear-attention, for an op that multiplies numbers of 8 bits."""
    check(operands(70, seed=1), NARROW, {})


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
        (64, (2, 2), (64, 128), 2),
        (65, (1, 3), (128, 64), 1),
        (200, (1, 1), (128, 128), 1),
        (1090, (1, 1), (64, 64), 1),  # 18 chunks, which XLA works on in two blocks
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
    given = operands(100, gated=False, heads=(1, 1))
    given["k"] = given["k"][:, :1] * float(sign) ** np.arange(100)[:, None, None]
    given["beta"] = np.full_like(given["beta"], 2)
    arrays = rounded((given, cotangents(given)), dtype)
    found, expected = interpreted("mosaic_gpu", arrays, {}), exact(arrays, {})
    assert_same(found, expected, 3e-4 if dtype == WIDE else 0.1, measure=rms_error)


@pytest.mark.slow
def test_content_of_padding_means_nothing():
    given, around = operands(70), marks(70)
    (y, state), mask = cotangents(given), around["mask"]

    def filled(x, content):
        return np.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, content)

    loud = {name: x if name == "initial_state" else filled(x, np.nan) for name, x in given.items()}
    found = interpreted("mosaic_gpu", rounded((loud, (filled(y, np.nan), state)), NARROW), around)
    assert_equal(found, interpreted("mosaic_gpu", rounded((given, (y, state)), NARROW), around))
    assert not np.asarray(found[0][0], np.float32)[~mask].any()


@pytest.mark.slow
def test_vmap_is_a_loop():
    """The kernels are launched once, the mapped axis in their batch; XLA may round other sums differently."""
    several = [operands(66, gated=False, heads=(1, 1), seed=seed) for seed in range(2)]
    weights = rounded(({}, cotangents(several[0])), NARROW)[1]
    several = [rounded((given,), NARROW)[0] for given in several]
    with mosaic_gpu.interpreted():
        run = with_gradients("mosaic_gpu")
        mapped = jax.jit(jax.vmap(run, in_axes=(0, None, None)))
        found = mapped(jax.tree.map(lambda *xs: jnp.stack(xs), *several), weights, {})
        for index, given in enumerate(several):
            assert_same(jax.tree.map(lambda x, index=index: x[index], found), run(given, weights, {}), 8e-3)


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="the interpreter finds races since JAX 0.12")
@pytest.mark.parametrize(("pieces", "gated", "chunks"), [(1, True, 3), SLOW(2, False, 2)])
def test_nothing_is_written_that_may_still_be_read(pieces, gated, chunks):
    """Copies and threads wait for each other, with tiles of two chunks in shared memory (one piece) and of one."""
    rng = np.random.default_rng(0)

    def numbers(*shape, dtype=jnp.bfloat16):
        return jnp.asarray(rng.standard_normal(shape) / 10, dtype)

    length = CHUNK * chunks
    q, k, dy = (numbers(pieces, 1, length, 1, 64) for _ in range(3))
    rows = numbers(chunks, 1, 1, 6 if gated else 1, CHUNK, dtype=jnp.float32)
    v, state = dy[0] if pieces == 1 else dy[0].astype(jnp.float32), numbers(1, 1, 64, 64, dtype=jnp.float32)

    def run(tokens):
        between = pairs(tokens)
        y, last = recurrence.forward(tokens, between, v, state, 1.0)
        befores, n = recurrence.states(tokens, between, v, state)
        dx, dafters, dstate = recurrence.backward(tokens, between, dy, last)
        return y, dstate, gradients(tokens, dy, n, dx, befores, dafters, jnp.float32)

    with mosaic_gpu.interpreted(detect_races=True):
        found = jax.jit(run)(Tokens(q, k, rows))
        assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(found))


# --- for a GPU


def lowered(batch, dtype, gated=True, widths=(128, 128)):
    """The program for a Hopper GPU of a forward pass and all gradients, at T = 4096 and 16 heads."""

    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct((batch, *sizes), dtype)

    wide = {"q": widths[0], "k": widths[0], "v": widths[1]}
    given = {name: shape(4096, 16, width) for name, width in wide.items()} | {"beta": shape(4096, 16)}
    given["initial_state"] = shape(16, *widths, dtype=jnp.float32)
    if gated:
        given["log_decay"] = shape(4096, 16, dtype=jnp.float32)
    with mosaic_gpu.exporting():
        run = with_gradients("mosaic_gpu", qk_l2norm=True)
        exported = jax.export.export(run, platforms=["cuda"])(given, (given["v"], given["initial_state"]), {})
    return exported.mlir_module()


@pytest.mark.parametrize(
    ("batch", "dtype", "gated", "widths"),
    [
        (8, NARROW, True, (128, 128)),
        SLOW(8, NARROW, False, (128, 128)),
        SLOW(8, WIDE, True, (128, 128)),
        # So few blocks that there are tiles of two chunks in shared memory.
        SLOW(1, NARROW, True, (128, 256)),
        SLOW(1, WIDE, False, (64, 64)),
    ],
)
def test_lowers_for_hopper(batch, dtype, gated, widths):
    """Layouts are found, shared memory suffices; two kernels forward, four for the gradients."""
    assert lowered(batch, dtype, gated, widths).count("stablehlo.custom_call @mosaic_gpu") == 6


# --- who gets it


class _Device:
    def __init__(self, platform, capability):
        self.platform, self.device_kind, self.compute_capability = platform, "a card", capability


def test_what_it_does_not_take():
    given = operands(5)
    with mosaic_gpu.interpreted():

        def refused(words, **changes):
            run = functools.partial(gated_delta_rule, implementation="mosaic_gpu")
            with pytest.raises(ValueError, match=f"implementation='mosaic_gpu' only within limits: {words}"):
                jax.eval_shape(functools.partial(run, chunk_size=changes.pop("chunk_size", None)), **given | changes)

        refused("K must be 64 or 128; it is 32", **operands(5, widths=(32, 64)))
        refused("V must be a multiple of 64; it is 96", **operands(5, widths=(64, 96)))
        refused("chunk_size must be 64 or None; it is 32", chunk_size=32)
        with jax.enable_x64(True):
            refused("it computes in float32, not in float64")
        long = {name: jax.ShapeDtypeStruct((1, 64 * 65536, *x.shape[2:]), "float32") for name, x in given.items()}
        long["initial_state"] = jax.ShapeDtypeStruct(given["initial_state"].shape, "float32")
        refused("B and T / 64 must be at most 65535; B is 1, T is 4194304", **long)


@pytest.mark.parametrize(("device", "words"), [(("cpu", None), "is a CPU"), (("gpu", "10.0"), "capability 10.0")])
def test_where_it_does_not_run(monkeypatch, caplog, device, words):
    """An error for who asks for it, even on a later GPU, which has other products; else XLA, and why."""
    given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), operands(5))
    expected = gated_delta_rule(**given)
    monkeypatch.setattr(jax, "devices", lambda: [_Device(*device)])
    with pytest.raises(RuntimeError, match=f"gated_delta_rule has implementation='mosaic_gpu'.*{words}"):
        gated_delta_rule(**given, implementation="mosaic_gpu")
    backend._log_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="zoo.ops.backend"):
        found = gated_delta_rule(**given, implementation="mosaic_gpu_or_xla")
    assert error(found, expected) == 0
    assert words in caplog.text
