"""The gated delta rule: every gradient of every form against the reference, extremes, repeatability, memory."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_equal, assert_same, rms_error

from zoo.ops.gated_delta_rule import gated_delta_rule, xla
from zoo.ops.gated_delta_rule.inverse import inverse_of_unit_lower

B, T, H, HV, K, V, CHUNK = 2, 21, 2, 4, 5, 3, 8
SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)
TOKENS = ("q", "k", "v", "beta", "log_decay")
# Forward and backward of "xla_chunked" are all there is, but for the decays (`gated`) and the forward pass of the
# others, so that not every combination has to be compiled every time.
FORMS = pytest.mark.parametrize(
    ("implementation", "gated"),
    [
        ("xla_chunked", True),
        ("xla_sequential", True),
        ("xla_chunked", False),
        SLOW("xla_sequential", False),
        SLOW("xla", True),
        SLOW("xla", False),
    ],
)


@pytest.fixture(autouse=True)
def light_compilation(compilation_cache, request):
    """Halves the time to compile; what is tested does not depend on XLA's optimisations (but memory and drift do)."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update(
        "jax_disable_most_optimizations", "memory" not in request.node.name and "drift" not in request.node.name
    )
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def operands(length=T, seed=0, gated=True, batch=B, heads=H, values=HV, widths=(K, V), beta=2.0):
    """All arrays of floats, by name: keys of length 1, decays weak and strong."""
    rng = np.random.default_rng(seed)
    k = rng.standard_normal((batch, length, heads, widths[0]))
    found = {
        "q": rng.standard_normal(k.shape),
        "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": rng.standard_normal((batch, length, values, widths[1])),
        "beta": rng.uniform(0, beta, (batch, length, values)),
        "initial_state": rng.standard_normal((batch, values, *widths)),
    }
    if gated:
        found["log_decay"] = -(rng.exponential(size=(batch, length, values)) ** 3)
    return found


def cotangents(given, seed=9):
    """Of the output and of the last state."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(given["v"].shape), rng.standard_normal(given["initial_state"].shape)


def marks(length=T, seed=3, batch=B):
    """Padding on both sides and in between, and three segments."""
    rng = np.random.default_rng(seed)
    return {
        "mask": rng.random((batch, length)) > 0.2,
        "segment_ids": np.sort(rng.integers(0, 3, (batch, length)), 1).astype(np.int32),
    }


def cast(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


@functools.cache
def with_gradients(implementation, chunk_size=CHUNK, **options):
    """(output, last state) and the gradients of all operands."""

    def run(given, cotangents, marks):
        def forward(given):
            return gated_delta_rule(
                **given, **marks, return_state=True, implementation=implementation, chunk_size=chunk_size, **options
            )

        found, pull = jax.vjp(forward, given)
        return found, pull(jax.tree.map(lambda ct, x: ct.astype(x.dtype), cotangents, found))[0]

    return jax.jit(run)


def exact(given, given_cotangents, given_marks, **options):
    """The reference in float64."""
    with jax.enable_x64(True):
        arrays = cast((given, given_cotangents), jnp.float64)
        return with_gradients("reference", **options)(*arrays, given_marks)


# --- gradients


@pytest.mark.parametrize("implementation", ["xla_chunked", "xla_sequential", "xla"])
@pytest.mark.parametrize("gated", [False, True])
def test_every_gradient_in_double_precision(implementation, gated):
    """Grouped values, padding, packed sequences, a state before, and a cotangent of the state after."""
    given = operands(gated=gated)
    arrays = given, cotangents(given), marks()
    with jax.enable_x64(True):
        found, gradients = with_gradients(implementation)(*arrays)
    expected, expected_gradients = exact(*arrays)
    assert_same(found, expected, 1e-12)
    assert_same(gradients, expected_gradients, 1e-10)


@FORMS
def test_every_gradient_in_single_precision(implementation, gated):
    """And all of it repeats to the bit."""
    given = operands(gated=gated, seed=1)
    arrays = *cast((given, cotangents(given)), jnp.float32), marks()
    found = with_gradients(implementation)(*arrays)
    assert_same(found, exact(*arrays), 2e-6)
    assert_equal(with_gradients(implementation)(*arrays), found)


@FORMS
def test_gradients_at_padding_are_zero_whatever_it_holds(implementation, gated):
    """NaN, too; those of all else stay as they are, to the bit."""
    given, around = operands(gated=gated, seed=1), marks()
    (y, state), mask = cotangents(given), around["mask"]

    def filled(x, content):
        return np.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, content)

    loud = {name: x if name == "initial_state" else filled(x, np.nan) for name, x in given.items()}
    run = with_gradients(implementation)
    _, expected = run(*cast((given, (y, state)), jnp.float32), around)
    _, found = run(*cast((loud, (filled(y, np.nan), state)), jnp.float32), around)
    assert_equal(found, expected)
    for name in given.keys() - {"initial_state"}:
        assert not np.asarray(found[name])[~mask].any(), name


@FORMS
def test_bfloat16(implementation, gated):
    """Relative root mean square, the budgets of flash-linear-attention."""
    given = operands(64, gated=gated, batch=1, heads=1, values=2, widths=(16, 16), beta=1.0)
    wide = {name: jnp.asarray(given.pop(name), jnp.float32) for name in ("initial_state", "log_decay") if name in given}
    given = cast(given, jnp.bfloat16) | wide
    arrays = given, cast(cotangents(given), jnp.bfloat16), {}
    found, gradients = with_gradients(implementation, chunk_size=32)(*arrays)
    assert (found[0].dtype, found[1].dtype) == (jnp.bfloat16, jnp.float32)
    assert {name: x.dtype for name, x in gradients.items()} == {name: x.dtype for name, x in given.items()}
    expected, expected_gradients = exact(*arrays, chunk_size=32)
    assert_same(found, expected, 6e-3, rms_error)
    assert_same(gradients, expected_gradients, 8e-3, rms_error)


TURNED = {"reverse": True, "qk_l2norm": True, "scale": 0.7}


@pytest.mark.parametrize("implementation", ["xla_chunked", SLOW("xla_sequential")])
def test_every_gradient_in_reverse_and_through_the_norm(implementation):
    given = operands(seed=2)
    given["k"] = 3 * given["k"]
    arrays = given, cotangents(given), marks()
    with jax.enable_x64(True):
        assert_same(with_gradients(implementation, **TURNED)(*arrays), exact(*arrays, **TURNED), 1e-10)


@pytest.mark.parametrize(("gated", "options"), [(True, TURNED), (False, {}), SLOW(True, {}), SLOW(False, TURNED)])
def test_every_gradient_of_blocks_of_chunks(gated, options, monkeypatch):
    """As accelerators run: several chunks at once, the last block with tokens of the one before."""
    monkeypatch.setattr(xla, "_CPU", xla.Tiling(chunk_size=4, chunks_per_block=4, by_token=False))
    given = operands(gated=gated)
    arrays = given, cotangents(given), marks()
    with jax.enable_x64(True):
        found = with_gradients.__wrapped__("xla_chunked", chunk_size=None, **options)(*arrays)
        assert_same(found, exact(*arrays, **options), 1e-10)


@pytest.mark.parametrize("length", [1, SLOW(2), SLOW(CHUNK), SLOW(CHUNK + 1)])
def test_every_gradient_of_short_sequences(length):
    given = operands(length)
    arrays = given, cotangents(given), {}
    with jax.enable_x64(True):
        assert_same(with_gradients("xla_chunked")(*arrays), exact(*arrays), 1e-10)


def test_gradients_through_a_carried_state():
    """In parts with the state between them, the gradients are those of the whole."""
    given = operands()
    weights = cotangents(given)

    def loss(given, cuts, implementation):
        state, total = given["initial_state"], 0.0
        for start, end in zip((0, *cuts), (*cuts, T), strict=True):
            own = {name: given[name][:, start:end] for name in TOKENS} | {"initial_state": state}
            y, state = gated_delta_rule(**own, return_state=True, implementation=implementation, chunk_size=CHUNK)
            total = total + (y * weights[0][:, start:end]).sum()
        return total + (state * weights[1]).sum()

    with jax.enable_x64(True):
        expected = jax.jit(jax.grad(lambda given: loss(given, (), "reference")))(given)
        assert_same(jax.jit(jax.grad(lambda given: loss(given, (9, 10), "xla")))(given), expected, 1e-10)


def test_gradients_do_not_come_from_the_future():
    given = operands()
    run, (y, state) = with_gradients("xla_chunked"), cotangents(given)
    with jax.enable_x64(True):
        for t in range(T):
            one = np.zeros_like(y)
            one[:, t] = y[:, t]
            _, gradients = run(given, (one, np.zeros_like(state)), {})
            for name in TOKENS:
                reached = np.abs(np.asarray(gradients[name])).reshape(B, T, -1).sum((0, 2)) > 0
                assert not reached[t + 1 :].any(), f"output {t} depends on a later {name}"
                assert reached[t] or (t == 0 and name == "log_decay") or name == "q" or reached[:t].any()


@pytest.mark.parametrize("chunk_size", [1, 5, SLOW(2), 64])
def test_chunk_size_does_not_matter(chunk_size):
    given = operands()
    arrays = given, cotangents(given), marks()
    with jax.enable_x64(True):
        assert_same(with_gradients("xla_chunked", chunk_size=chunk_size)(*arrays), exact(*arrays), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [2, 31, 33, 64, 130, 517])
def test_every_gradient_everywhere(gated, reverse, length):
    """The chunks that the platform chooses, widths of which none is like another."""
    given = operands(length, seed=length, gated=gated, widths=(12, 20))
    options = {"chunk_size": None, "reverse": reverse}
    for given_marks in ({}, marks(length)):
        arrays = given, cotangents(given), given_marks
        single = *cast(arrays[:2], jnp.float32), given_marks
        for implementation in ("xla_chunked", "xla_sequential"):
            assert_same(with_gradients(implementation, **options)(*single), exact(*single, **options), 2e-6)
        with jax.enable_x64(True):
            found = with_gradients("xla", **options)(*arrays)
        assert_same(found, exact(*arrays, **options), 1e-10)
    jax.clear_caches()  # one process may hold so many programs only


# --- numbers


def check_numbers(given, implementation, tolerance):
    """In float32, by chunks of 64."""
    arrays = *cast((given, cotangents(given)), jnp.float32), {}
    options = {"chunk_size": 64}
    assert_same(with_gradients(implementation, **options)(*arrays), exact(*arrays, **options), tolerance)


NUMBERS = pytest.mark.parametrize("implementation", ["reference", "xla_sequential", "xla_chunked"])
DECAYS = np.array([0, -1e-6, -0.1, -30, -95, -1e3, -1e4, -np.inf])


@NUMBERS
def test_extreme_decays(implementation):
    """Log decays from 0 to -1e4 and -inf, mixed and alone: right values, right and finite gradients."""
    given = operands(70)
    shape = given["log_decay"].shape
    mixed = np.random.default_rng(0).choice(DECAYS, shape)
    for log_decay in (mixed, np.full(shape, -1e4), np.full(shape, -np.inf), np.zeros(shape)):
        check_numbers(given | {"log_decay": log_decay}, implementation, 2e-6)


def test_strong_decays_leave_weak_ones_their_digits():
    """Differences of sums of log decays would be off by 1e-4 here: the sums are near 2000, their difference near 1."""
    given = operands(70)
    weak = np.arange(70)[None, :, None] >= 40
    given["log_decay"] = np.where(weak, -1e-3, -50.0) * np.ones((B, 70, HV))
    check_numbers(given, "xla_chunked", 2e-6)


KEYS = {
    "identical": lambda k, t: k[:, :1],
    "alternating": lambda k, t: k[:, :1] * (-1.0) ** t,
    "two in turns": lambda k, t: np.where(t % 2, k[:, :1], k[:, 1:2]),
    "nearly identical": lambda k, t: k[:, :1] + 1e-3 * k,
    "zero": lambda k, t: 0 * k,
}


@NUMBERS
@pytest.mark.parametrize("keys", KEYS)
def test_correlated_keys_with_beta_2(implementation, keys):
    """Where powers of K K^T reach 1e30: nothing blows up, in values or gradients.

    By chunks of any size the rounding of k·k is here the same for every token, and adds up: hence the bound.
    """
    given = operands(70)
    k = np.broadcast_to(KEYS[keys](given["k"], np.arange(70)[:, None, None]), given["k"].shape)
    given["k"] = k / np.maximum(np.linalg.norm(k, axis=-1, keepdims=True), 1e-9)
    given |= {"beta": np.full_like(given["beta"], 2), "log_decay": np.zeros_like(given["beta"])}
    check_numbers(given, implementation, 2e-6 if implementation == "reference" else 5e-5)


@pytest.mark.parametrize("size", [1, 3, 8, 21, 64])
def test_inverse(size):
    """Of random and of the hardest matrices."""
    rng = np.random.default_rng(size)
    signs = (-1.0) ** np.arange(size)
    below = np.tri(size, k=-1)
    hard = [np.full((size, size), 2.0), 2 * signs[:, None] * signs, rng.uniform(-2, 2, (size, size))]
    lower = np.stack(hard[: 2 if size > 16 else 3]) * below
    found = jax.jit(inverse_of_unit_lower)(lower.astype(np.float32))
    with jax.enable_x64(True):
        expected = np.linalg.inv(np.eye(size) + lower)
    assert_same(found, expected, 1e-5)


def test_vmap_is_a_loop():
    several = [operands(seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *several)
    given = [cotangents(one, seed) for seed, one in enumerate(several)]
    run = with_gradients("xla_chunked")
    with jax.enable_x64(True):
        found = jax.jit(jax.vmap(run))(stacked, tuple(map(np.stack, zip(*given, strict=True))), {})
        for index, arrays in enumerate(zip(several, given, strict=True)):
            assert_same(jax.tree.map(lambda x, index=index: x[index], found), run(*arrays, {}), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True])
def test_no_drift_over_long_sequences(gated):
    """65,536 tokens in float32, with decays close to 1, against float64."""
    given = operands(65536, gated=gated, batch=1, heads=1, values=1, widths=(8, 8))
    if gated:
        given["log_decay"] = -np.random.default_rng(0).uniform(0, 1e-3, given["beta"].shape)
    given = cast(given, jnp.float32)
    run = functools.partial(gated_delta_rule, return_state=True)
    with jax.enable_x64(True):
        expected = jax.jit(functools.partial(run, implementation="reference"))(**cast(given, jnp.float64))
    for name in ("xla_sequential", "xla_chunked", "xla"):
        found = jax.jit(functools.partial(run, implementation=name))(**given)
        assert_same(found, expected, 1e-5)


# --- cost


@functools.cache
def training_bytes(implementation, length, gated, width=32, heads=2):
    """What a training step's compiled program needs beside its inputs and outputs; nothing runs."""
    wide = jax.ShapeDtypeStruct((1, length, heads, width), jnp.float32)
    narrow = jax.ShapeDtypeStruct(wide.shape[:3], jnp.float32)
    shapes = [wide, wide, wide, narrow, narrow if gated else None]

    def total(arrays):
        return (gated_delta_rule(*arrays, implementation=implementation) ** 2).sum()

    return jax.jit(jax.grad(total)).lower(shapes).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("gated", "lengths"),
    [(True, (1024, 4096)), SLOW(False, (1024, 4096)), SLOW(True, (4096, 16384)), SLOW(False, (4096, 16384))],
)
def test_memory_of_a_training_step(gated, lengths):
    """A few copies of the values, in place of a state per token."""
    short, long = (training_bytes("xla", length, gated) for length in lengths)
    values = 4 * 2 * 32  # bytes of [1, 1, H, V]
    growth = (long - short) / (lengths[1] - lengths[0])
    assert growth <= 6 * values, f"{growth / values:.1f} arrays [B, T, H, V]"
    assert growth <= 32 * values / 4  # a state per token
    assert long <= training_bytes("reference", lengths[1], gated) / 8


def test_lowers_for_accelerators():
    """One program for all platforms, run here; on accelerators no loop is as long as the sequence."""
    given = operands(70)
    arrays = *cast((given, cotangents(given)), jnp.float32), {}
    run, own = (with_gradients(name, chunk_size=None) for name in ("xla", "xla_chunked"))
    exported = jax.export.export(run, platforms=["cpu", "cuda", "tpu"])(*arrays)
    assert_same(exported.call(*arrays), exact(*arrays, chunk_size=64), 2e-6)
    loops = [jax.export.export(function, platforms=["cuda"])(*arrays).mlir_module() for function in (run, own)]
    assert loops[0].count("stablehlo.while") == loops[1].count("stablehlo.while")
