"""Gated linear attention: every gradient of every form against the reference, extremes, repeatability and memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_equal, assert_same

from zoo.ops.gated_linear_attention import gated_linear_attention, xla
from zoo.ops.gated_linear_attention.spans import spans

B, T, G, H, K, V, CHUNK = 2, 21, 1, 2, 3, 5, 8
KINDS = ("none", "constant", "head", "channel")
NAMES = ("q", "k", "v", "log_decay", "initial_state")
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
MASK = np.stack([(np.arange(T) < 17) & (np.arange(T) != 5), np.arange(T) >= 3])
SEGMENTS = np.array([[4] * 3 + [1] * 6 + [4] * 8 + [0] * 4, [9] * 12 + [2] * 9], np.int32)


@pytest.fixture(autouse=True)
def light_compilation(compilation_cache):
    """Halves the time to compile; what is tested does not depend on XLA's optimisations."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def operands(kind, length=T, seed=0, groups=G, heads=H):
    """q, k, v, log_decay and a state; decays from hardly any to nearly complete."""
    rng = np.random.default_rng(seed)
    sizes = {"none": None, "constant": (heads,), "head": (B, length, heads), "channel": (B, length, heads, K)}
    q, k = rng.standard_normal((2, B, length, groups, K))
    v, state = rng.standard_normal((B, length, heads, V)), rng.standard_normal((B, heads, K, V))
    size = sizes[kind]
    return [q, k, v, None if size is None else -(10.0 ** rng.uniform(-3, 1, size)), state]


@functools.cache
def with_gradients(implementation, masked=True, **options):
    """(output, last state) and the gradients of all operands, for cotangents of both."""

    @jax.jit
    def run(arrays, cotangents):
        marks = {"mask": MASK, "segment_ids": SEGMENTS} if masked else {}

        def forward(*arrays):
            return gated_linear_attention(
                *arrays[:4],
                initial_state=arrays[4],
                return_state=True,
                implementation=implementation,
                **{"chunk_size": CHUNK, **marks, **options},
            )

        found, pull = jax.vjp(forward, *arrays)
        cotangents = jax.tree.map(lambda ct, x: ct.astype(x.dtype), cotangents, found)
        return found, pull(cotangents)

    return run


def cotangents(arrays, seed=1):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(arrays[2].shape), rng.standard_normal(arrays[4].shape)


def cast(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


# --- gradients


@pytest.mark.parametrize(
    ("kind", "implementation"),
    [*((kind, "xla_chunked") for kind in KINDS), ("channel", "xla"), ("channel", "xla_sequential")],
)
def test_gradients_in_double_precision(kind, implementation):
    arrays = operands(kind)
    with jax.enable_x64(True):
        expected = with_gradients("reference")(arrays, cotangents(arrays))
        assert_same(with_gradients(implementation)(arrays, cotangents(arrays)), expected, 1e-12)


@pytest.mark.parametrize("kind", ["head", "channel"])
def test_gradients_in_reverse_with_groups(kind):
    arrays = operands(kind, groups=2, heads=4)
    with jax.enable_x64(True):
        expected = with_gradients("reference", reverse=True)(arrays, cotangents(arrays))
        assert_same(with_gradients("xla_chunked", reverse=True)(arrays, cotangents(arrays)), expected, 1e-12)


@pytest.mark.parametrize(("kind", "reverse"), [("head", False), ("channel", True)])
def test_gradients_of_blocks_of_chunks(kind, reverse, monkeypatch):
    """As accelerators run: several chunks at once, the last block with padding."""
    monkeypatch.setattr(xla, "_CPU", (4, 4))
    arrays = operands(kind)
    with jax.enable_x64(True):
        expected = with_gradients("reference", reverse=reverse)(arrays, cotangents(arrays))
        found = with_gradients.__wrapped__("xla_chunked", reverse=reverse, chunk_size=None)
        assert_same(found(arrays, cotangents(arrays)), expected, 1e-12)


@EVERY_KIND
def test_gradients_in_single_precision(kind):
    arrays = cast(operands(kind), jnp.float32)
    given = cast(cotangents(arrays), jnp.float32)
    expected = with_gradients("reference")(arrays, given)
    assert_same(with_gradients("xla_chunked")(arrays, given), expected, 2e-6)


@EVERY_KIND
def test_gradients_at_padding_are_zero_whatever_it_holds(kind):
    """NaN, too; those of all else stay as they are, to the bit."""
    arrays, (y, state) = operands(kind), cotangents(operands(kind))

    def filled(x):
        if x is None or x.shape[:2] != (B, T):
            return x
        return np.where(MASK.reshape(MASK.shape + (1,) * (x.ndim - 2)), x, np.nan)

    loud = [*map(filled, arrays[:4]), arrays[4]]
    run = with_gradients("xla_chunked")
    _, expected = run(cast(arrays, jnp.float32), cast((y, state), jnp.float32))
    _, found = run(cast(loud, jnp.float32), cast((filled(y), state), jnp.float32))
    assert_equal(found, expected)
    for gradient in found[:3]:
        assert not np.asarray(gradient)[~MASK].any()


@pytest.mark.parametrize("kind", ["head", "channel"])
def test_bfloat16_is_rounded_once(kind):
    """Inputs of 16 bits are computed with in float32: each result loses one rounding, 2**-9 of its value."""
    arrays = cast(operands(kind), jnp.bfloat16)
    arrays[4] = arrays[4].astype(jnp.float32)
    given = cast(cotangents(arrays), jnp.bfloat16)
    found = with_gradients("xla_chunked")(arrays, given)
    assert found[0][0].dtype == jnp.bfloat16
    assert [x.dtype for x in found[1]] == [x.dtype for x in arrays]
    expected = with_gradients("reference")(cast(arrays, jnp.float32), cast(given, jnp.float32))
    assert_same(found, expected, 2**-8)


def test_gradients_do_not_come_from_the_future():
    arrays = operands("channel")
    run, zeros = with_gradients("xla_chunked", masked=False), cotangents(arrays)
    with jax.enable_x64(True):
        for t in range(T):
            given = np.zeros_like(zeros[0])
            given[:, t] = 1
            _, gradients = run(arrays, (given, np.zeros_like(zeros[1])))
            for name, gradient in zip(NAMES[:4], gradients, strict=False):
                reached = np.abs(np.asarray(gradient)).sum((0, 2, 3)) > 0
                assert not reached[t + 1 :].any(), f"output {t} depends on a later {name}"
                assert name == "q" or reached[1 : t + 1].all(), f"output {t} does not depend on every earlier {name}"


# --- numbers


@pytest.mark.parametrize("kind", ["head", "channel"])
def test_extreme_decays(kind):
    """Log decays from 0 to -1e4 and -inf, mixed and alone, in float32: right values, right and finite gradients."""
    rng = np.random.default_rng(0)
    arrays = operands(kind, length=40)
    shape = arrays[3].shape
    choices = np.array([0, -1e-6, -0.1, -30, -95, -1e3, -1e4, -np.inf])
    mixed = choices[rng.integers(0, len(choices), shape)]
    for log_decay in (mixed, np.full(shape, -1e4), np.full(shape, -np.inf), np.zeros(shape)):
        arrays[3] = log_decay
        given = cotangents(arrays)
        with jax.enable_x64(True):
            expected = with_gradients("reference", masked=False)(arrays, given)
        single = cast(arrays, jnp.float32), cast(given, jnp.float32)
        assert_same(with_gradients("xla_chunked", masked=False)(*single), expected, 2e-6)


def test_strong_decays_leave_weak_ones_their_digits():
    """Differences of sums of log decays would be off by 1e-4 here: the sums are near 2000, their difference near 1."""
    arrays = operands("head", length=64)
    arrays[3] = np.where(np.arange(64) < 40, -50.0, -1e-3)[None, :, None] * np.ones((B, 64, H))
    given = cotangents(arrays)
    with jax.enable_x64(True):
        expected = with_gradients("reference", masked=False)(arrays, given)
    single = cast(arrays, jnp.float32), cast(given, jnp.float32)
    assert_same(with_gradients("xla_chunked", masked=False, chunk_size=64)(*single), expected, 2e-6)


def test_spans():
    """Every pair of tokens is separated at one level, by the product of the factors between them."""
    factors = np.random.default_rng(0).uniform(0.1, 1, (16, 1))
    with jax.enable_x64(True):
        *levels, whole = spans(jnp.asarray(factors))
        assert [span.size for span in levels] == [1, 2, 4, 8]
        for i in range(16):
            for j in range(i):
                apart = [s for s in levels if i // (2 * s.size) == j // (2 * s.size) and i // s.size > j // s.size]
                assert len(apart) == 1
                product = float(apart[0].prefix[i, 0] * apart[0].suffix[j, 0])
                np.testing.assert_allclose(product, factors[j + 1 : i + 1].prod(), rtol=1e-14)
        np.testing.assert_allclose(whole.prefix, np.cumprod(factors, 0), rtol=1e-14)
        np.testing.assert_allclose(whole.suffix[-2], factors[-1], rtol=1e-14)


@pytest.mark.parametrize("kind", ["head", "channel"])
@pytest.mark.parametrize("chunk_size", [1, 5, pytest.param(2, marks=pytest.mark.slow), 64])
def test_chunk_size_does_not_matter(kind, chunk_size):
    arrays = operands(kind)
    with jax.enable_x64(True):
        expected = with_gradients("xla_chunked")(arrays, cotangents(arrays))
        found = with_gradients("xla_chunked", chunk_size=chunk_size)(arrays, cotangents(arrays))
        assert_same(found, expected, 1e-12)


def test_repeats_to_the_bit():
    arrays = cast(operands("channel"), jnp.float32)
    given = cast(cotangents(arrays), jnp.float32)
    run = with_gradients("xla_chunked")
    first = run(arrays, given)
    for one, other in zip(jax.tree.leaves(run(arrays, given)), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(one, other)


def test_vmap_is_a_loop():
    parts = [operands("head", seed=seed) for seed in (0, 1)]
    stacked = [np.stack(both) for both in zip(*parts, strict=True)]
    given = [cotangents(arrays) for arrays in parts]
    run = with_gradients("xla_chunked", masked=False)
    with jax.enable_x64(True):
        looped = [run(arrays, ct) for arrays, ct in zip(parts, given, strict=True)]
        found = jax.jit(jax.vmap(run))(stacked, tuple(np.stack(both) for both in zip(*given, strict=True)))
        assert_same(found, jax.tree.map(lambda *both: np.stack(both), *looped), 1e-13)


@pytest.mark.slow
@EVERY_KIND
def test_no_drift_over_long_sequences(kind):
    """65,536 tokens in float32, with decays close to 1 (and without: a sum of as many terms), against float64.

    A constant decay is rounded the same way in every token. That does not grow with T, but with what is remembered:
    2**-25 of the state for each of 2,750 tokens, in every form.
    """
    arrays = operands(kind, 65536)
    arrays[3] = None if kind == "none" else np.random.default_rng(0).uniform(-1e-3, 0, arrays[3].shape)
    arrays = cast(arrays, jnp.float32)

    def run(arrays, implementation):
        *tokens, state = arrays
        return gated_linear_attention(*tokens, initial_state=state, return_state=True, implementation=implementation)

    with jax.enable_x64(True):
        expected = jax.jit(functools.partial(run, implementation="reference"))(cast(arrays, jnp.float64))
    for name in ("xla_sequential", "xla_chunked", "xla"):
        found = jax.jit(functools.partial(run, implementation=name))(arrays)
        assert_same(found, expected, 8e-5 if kind == "constant" else 1e-5)


# --- cost


def training_bytes(kind, length, implementation, width=32):
    """Temporary memory of a forward and backward pass."""
    wide = (1, length, 2, width)
    decay = {"none": None, "head": wide[:3], "channel": wide}[kind]
    shapes = [None if s is None else jax.ShapeDtypeStruct(s, jnp.float32) for s in (wide, wide, wide, decay)]

    def total(arrays):
        return (gated_linear_attention(*arrays, implementation=implementation) ** 2).sum()

    memory = jax.jit(jax.grad(total)).lower(shapes).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


@pytest.mark.parametrize("kind", ["head", "channel"])
@pytest.mark.parametrize("length", [1024, 4096, pytest.param(16384, marks=pytest.mark.slow)])
def test_memory_of_a_training_step(kind, length):
    """A few copies of the inputs, in place of a state per token."""
    found, scanned = (training_bytes(kind, length, name) for name in ("xla", "reference"))
    states = 4 * 2 * length * 32 * 32
    assert scanned > states
    assert found <= scanned / 8
    assert found <= 10 * 4 * 2 * length * 32


@pytest.mark.parametrize("kind", ["head", "channel"])
def test_lowers_for_accelerators(kind):
    """What only accelerators run is at least traced and lowered for them."""

    def total(arrays):
        return (gated_linear_attention(*arrays[:4], initial_state=arrays[4]) ** 2).sum()

    arrays = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), operands(kind, 300))
    for function in (total, jax.grad(total)):
        assert jax.export.export(jax.jit(function), platforms=["cpu", "cuda", "tpu"])(arrays).platforms
