"""The selective scan: the fast paths against the reference with every gradient, extremes, repeatability, memory."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_equal, assert_same, error

from zoo.ops.selective_scan import selective_scan

B, E, N = 2, 5, 3
FAST = ("xla_sequential", "xla_chunked")
BOTH = pytest.mark.parametrize("implementation", FAST)


@pytest.fixture
def light_compilation(compilation_cache):
    """Halves the time to compile; most of what is tested does not depend on XLA's optimisations."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def problem(length, dtype, *, seed=0, full=True, width=E, states=N, batch=B):
    """Operands, marks and cotangents; without what is optional unless `full`."""
    rng = np.random.default_rng(seed)
    wide = jnp.promote_types(dtype, jnp.float32)
    tokens, narrow = (batch, length, width), (batch, length, states)
    sizes = {"u": tokens, "dt": tokens, "B": narrow, "C": narrow}
    sizes |= {"D": (width,), "z": tokens, "dt_bias": (width,)} if full else {}
    of = {name: wide if name in ("D", "dt_bias") else dtype for name in sizes}
    given = {name: jnp.asarray(rng.standard_normal(size), of[name]) for name, size in sizes.items()}
    given["A"] = -jnp.exp(jnp.asarray(rng.standard_normal((width, states)), wide))
    given["initial_state"] = jnp.asarray(rng.standard_normal((batch, states, width)), wide)
    cotangents = (
        jnp.asarray(rng.standard_normal(tokens), dtype),
        jnp.asarray(rng.standard_normal((batch, states, width)), wide),
    )
    marks = {}
    if full:
        marks["mask"] = rng.random((batch, length)) > 0.2
        marks["segment_ids"] = np.sort(rng.integers(0, 4, (batch, length)), axis=1)
    return given, marks, cotangents


@functools.cache
def with_gradients(**options):
    """(outputs, gradients) of `selective_scan`, for cotangents of the output and of the last state."""

    def run(given, marks, cotangents):
        y, pull = jax.vjp(lambda given: selective_scan(**given, **marks, return_state=True, **options), given)
        return y, pull(cotangents)

    return jax.jit(run)


def exact(given, marks, cotangents, **options):
    """The reference in float64, at the same numbers."""
    with jax.enable_x64(True):
        given, cotangents = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (given, cotangents))
        return with_gradients(implementation="reference", **options)(given, marks, cotangents)


def check(implementation, length, dtype, tolerance, *, full=True, **options):
    given = problem(length, dtype, seed=length, full=full)
    if not options.get("dt_softplus", True):  # time steps are positive
        given[0]["dt"] = jnp.abs(given[0]["dt"])
        given[0].update({"dt_bias": jnp.full(E, 0.1, given[0]["A"].dtype)} if full else {})
    (y, state), (gradients,) = with_gradients(implementation=implementation, **options)(*given)
    assert (y.dtype, state.dtype) == (dtype, given[0]["initial_state"].dtype)
    assert {name: x.dtype for name, x in gradients.items()} == {name: x.dtype for name, x in given[0].items()}
    assert_same(((y, state), (gradients,)), exact(*given, **options), tolerance)


# 37 tokens are three chunks, the last of them padded.
@BOTH
@pytest.mark.parametrize("reverse", [False, True])
def test_agrees_with_the_reference_in_float64(implementation, reverse, light_compilation):
    with jax.enable_x64(True):
        check(implementation, 37, jnp.float64, 1e-12, reverse=reverse)


@BOTH
@pytest.mark.parametrize(("length", "full"), [(1, True), (37, False), (37, True)])
def test_agrees_with_the_reference(implementation, length, full, light_compilation):
    check(implementation, length, jnp.float32, 2e-6, full=full)


@BOTH
def test_gradients_at_padding_are_zero_whatever_it_holds(implementation, light_compilation):
    """NaN, too; those of all else stay as they are, to the bit."""
    given, marks, (y, state) = problem(37, jnp.float32, seed=37)
    mask, run = marks["mask"], with_gradients(implementation=implementation)
    loud = {name: jnp.where(mask[..., None], x, jnp.nan) if x.shape[1] == 37 else x
            for name, x in given.items() if x.ndim == 3}  # fmt: skip
    _, (expected,) = run(given, marks, (y, state))
    _, (found,) = run(given | loud, marks, (jnp.where(mask[..., None], y, jnp.nan), state))
    assert_equal(found, expected)
    for name in loud.keys() - {"initial_state"}:
        assert not np.asarray(found[name])[~mask].any(), name


# Computed in float32, so all that is lost is one rounding of each result, 2**-9 of its value.
@BOTH
def test_bfloat16_agrees_with_float32(implementation, light_compilation):
    given, marks, cotangents = problem(37, jnp.bfloat16)
    y, gradients = with_gradients(implementation=implementation)(given, marks, cotangents)
    assert y[0].dtype == gradients[0]["dt"].dtype == jnp.bfloat16
    assert y[1].dtype == gradients[0]["A"].dtype == jnp.float32
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), (given, cotangents))
    expected = with_gradients(implementation="reference")(exact[0], marks, exact[1])
    for one, other in zip(jax.tree.leaves((y, gradients)), jax.tree.leaves(expected), strict=True):
        assert error(one, other) <= 2**-8


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7, 16, 33, 130, 1100])
def test_agrees_with_the_reference_everywhere(implementation, full, length, compilation_cache):
    for reverse in (False, True):
        check(implementation, length, jnp.float32, 2e-6, full=full, reverse=reverse)
        check(implementation, length, jnp.float32, 2e-6, full=full, reverse=reverse, dt_softplus=False)
        with jax.enable_x64(True):
            check(implementation, length, jnp.float64, 1e-12, full=full, reverse=reverse)


@BOTH
@pytest.mark.parametrize("chunk_size", [1, 5, 64])
def test_chunk_size_does_not_matter(implementation, chunk_size, light_compilation):
    given = problem(37, jnp.float32)
    expected = with_gradients(implementation="reference")(*given)
    assert_same(with_gradients(implementation=implementation, chunk_size=chunk_size)(*given), expected, 2e-6)


def test_the_default_on_a_cpu_is_the_sequential_form(light_compilation):
    given = problem(37, jnp.float32)
    found, expected = (with_gradients(implementation=name)(*given) for name in (None, "xla_sequential"))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


@BOTH
def test_vmap_is_a_loop(implementation, light_compilation):
    """With a mapped A too, as for an ensemble."""
    several = [problem(9, jnp.float32, seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *several)
    run = with_gradients(implementation=implementation)
    found = jax.jit(jax.vmap(run))(*stacked)
    for index, given in enumerate(several):
        assert_same(jax.tree.map(lambda x, index=index: x[index], found), run(*given), 2e-6)


@BOTH
def test_gradients_through_groups_and_a_carried_state(implementation, light_compilation):
    """In two parts with the state between, B and C in groups: the gradients are those of the whole."""
    given, _, (ct, _) = problem(21, jnp.float32, width=4)
    given |= {name: jnp.repeat(given[name][:, :, None], 2, 2) * jnp.array([[[[1.0], [2.0]]]]) for name in ("B", "C")}

    def loss(given, cut, implementation):
        outputs, state = [], given["initial_state"]
        for part in (slice(0, cut), slice(cut, None)):
            own = {name: x[:, part] if x.shape[1:2] == (21,) else x for name, x in given.items()}
            own["initial_state"] = state
            y, state = selective_scan(**own, return_state=True, implementation=implementation)
            outputs.append(y)
        return (jnp.concatenate(outputs, 1) * ct).sum() + (state**2).sum()

    expected = jax.jit(jax.grad(lambda given: loss(given, 20, "reference")))(given)
    assert_same(jax.jit(jax.grad(lambda given: loss(given, 6, implementation)))(given), expected, 2e-6)


# delta * A from about -1e-3 down to -1e4 (to -1e9 with the largest), and time steps that underflow.
@pytest.mark.parametrize("implementation", ["reference", *FAST])
@pytest.mark.parametrize(("shift", "rate"), [(9.0, 1e3), (60.0, 1e7), (-30.0, 1e3), (-120.0, 1.0)])
def test_extreme_decays(implementation, shift, rate, light_compilation):
    given, marks, cotangents = problem(37, jnp.float32)
    given["dt"], given["A"] = given["dt"] + shift, given["A"] * rate
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (given, cotangents))
        expected = with_gradients(implementation="reference")(exact[0], marks, exact[1])
    found = with_gradients(implementation=implementation)(given, marks, cotangents)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert error(one, other) <= 5e-6


@BOTH
def test_repeats_to_the_bit(implementation, compilation_cache):
    given = problem(37, jnp.float32)
    run = with_gradients(implementation=implementation)
    for one, other in zip(jax.tree.leaves(run(*given)), jax.tree.leaves(run(*given)), strict=True):
        np.testing.assert_array_equal(one, other)


@functools.cache
def temporary_bytes(implementation, length, states=16, full=False):
    """What a training step's compiled program needs beside its inputs and outputs; nothing runs."""
    shapes = jax.eval_shape(lambda: problem_shapes(length, states, full))
    step = with_gradients.__wrapped__(implementation=implementation)
    return step.lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def problem_shapes(length, states, full):
    width, batch = 64, 2
    tokens, narrow = jnp.zeros((batch, length, width)), jnp.zeros((batch, length, states))
    given = {"u": tokens, "dt": tokens, "B": narrow, "C": narrow, "A": jnp.zeros((width, states))}
    given["initial_state"] = jnp.zeros((batch, states, width))
    given |= {"D": jnp.zeros(width), "z": tokens, "dt_bias": jnp.zeros(width)} if full else {}
    return given, {}, (tokens, given["initial_state"])


def check_memory(implementation, factor, lengths):
    """Linear in T; a small multiple of [B, T, E] and no [B, T, E, N]; an eighth of what autodiff of the scan takes."""
    short, long = (temporary_bytes(implementation, length) for length in lengths)
    token = 2 * 64 * 4  # bytes of [B, 1, E]
    growth = (long - short) / (lengths[1] - lengths[0])
    assert growth <= factor * token, f"{growth / token:.1f} arrays [B, T, E]"
    assert growth <= 16 * token / 2
    assert long <= temporary_bytes("reference", lengths[1]) / 8


def test_memory_of_a_training_step(compilation_cache):
    check_memory("xla_sequential", 3, (1024, 4096))


@pytest.mark.slow
def test_memory_of_long_training_steps(compilation_cache):
    check_memory("xla_sequential", 3, (4096, 16384))
    # The form for accelerators keeps copies with the time axis first, and the states of 64 chunks at once.
    growth = temporary_bytes("xla_chunked", 16384) - temporary_bytes("xla_chunked", 4096)
    assert growth / (16384 - 4096) / (2 * 64 * 4) <= 24


@pytest.mark.slow
def test_no_drift_over_long_sequences(compilation_cache):
    """65,536 tokens in float32, with decays close to 1, against float64."""
    given, _, _ = problem(65536, jnp.float32, full=False, width=4, batch=1)
    given["dt"] = given["dt"] - 7
    with jax.enable_x64(True):
        exact = {name: jnp.asarray(x, jnp.float64) for name, x in given.items()}
        expected = jax.jit(functools.partial(selective_scan, return_state=True, implementation="reference"))(**exact)
    for name in FAST:
        found = jax.jit(functools.partial(selective_scan, return_state=True, implementation=name))(**given)
        for one, other in zip(found, expected, strict=True):
            assert error(one, other) <= 1e-5


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_for_accelerators(platform, light_compilation):
    """The default is there the chunked form: no loop is as long as the sequence."""
    given = problem(1024, jnp.float32, full=False, width=8)
    text = jax.export.export(with_gradients(implementation=None), platforms=[platform])(*given).mlir_module()
    own = jax.export.export(with_gradients(implementation="xla_chunked"), platforms=[platform])(*given).mlir_module()
    assert text.count("stablehlo.while") == own.count("stablehlo.while")


def test_lowers_for_several_platforms_at_once(light_compilation):
    given = problem(40, jnp.float32, full=False)
    exported = jax.export.export(with_gradients(implementation=None), platforms=["cpu", "cuda"])(*given)
    found = jax.tree.leaves(exported.call(*given))
    expected = jax.tree.leaves(with_gradients(implementation="reference")(*given))
    for one, other in zip(found, expected, strict=True):
        assert error(one, other) <= 2e-6
