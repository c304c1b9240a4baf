"""Flow-Attention: the fast path against the reference, steps and chunks against the whole, and the memory it takes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops.flow_attention import FlowState, flow_attention, flow_attention_init, flow_attention_step

B, H, K, V, CHUNK = 2, 2, 4, 3, 8
IMPLEMENTATIONS = ("reference", "xla")
DIRECTIONS = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


@pytest.fixture(autouse=True)
def light_compilation():
    """Halves the time to compile; what is tested does not depend on XLA's optimisations."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def inputs(length, sources=None, *, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    sources = sources or length
    sizes = ((B, length, H, K), (B, sources, H, K), (B, sources, H, V))
    return [(rng.standard_normal(size) * scale).astype(np.float32) for size in sizes]


def mask_of(lengths, length):
    return np.arange(length) < np.asarray(lengths)[:, None]


def error(found, expected):
    """Largest difference, relative to the largest value (or 1)."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    return np.abs(found - expected).max() / max(1, np.abs(expected).max())


# --- fast against reference


def some_state(seed, peak):
    """A state such as a few tokens leave behind."""
    rng = np.random.default_rng(seed)
    vectors = [rng.uniform(0.5, 3, (B, H, K)) for _ in range(4)]
    arrays = (np.full(B, 5.0), *vectors, np.full((B, H), peak), rng.uniform(3, 9, (B, H)))
    return FlowState(*(x.astype(np.float32) for x in (*arrays, rng.standard_normal((B, H, K, V)))))


@functools.cache
def with_gradients(**options):
    """(outputs, gradients) of `flow_attention`, for cotangents given; the state is an input and an output if causal."""

    def run(arrays, state, cotangents, mask):
        def forward(arrays, state):
            extra = {"initial_state": state, "return_state": True} if options["causal"] else {}
            return flow_attention(*arrays, mask=mask, chunk_size=CHUNK, **extra, **options)

        y, pull = jax.vjp(forward, arrays, state)
        return y, pull(cotangents)

    return jax.jit(run)


def problem(causal, length, dtype, peak=0.0, masked=True):
    """Random arrays, state, cotangents and mask; the state (None unless causal) is never narrower than float32."""
    rng = np.random.default_rng(length)
    wide = jnp.promote_types(dtype, jnp.float32)
    arrays = [jnp.asarray(x, dtype) for x in inputs(length, scale=1.5, seed=length)]
    mask = rng.random((B, length)) > 0.25 if masked else None
    cotangent = jnp.asarray(rng.standard_normal((B, length, H, V)), dtype)
    if not causal:
        return arrays, None, cotangent, mask
    state = jax.tree.map(lambda x: jnp.asarray(x, wide), some_state(0, peak))
    return arrays, state, (cotangent, jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(wide), state)), mask


def check_agreement(causal, length, dtype, tolerance, masked=True, **options):
    """Output, new state, and the gradients of both with regard to q, k, v and the old state."""
    peak = 2.5 if options.get("source_clamp", 1.0) is None else 0.0
    given = problem(causal, length, dtype, peak, masked)
    expected, found = (
        with_gradients(causal=causal, implementation=name, **options)(*given) for name in IMPLEMENTATIONS
    )
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert error(one, other) <= tolerance


RELU = {"feature_map": "relu", "source_clamp": None}


# Float32: a few roundings (6e-8) of sums of up to 65 terms, more in gradients, which pass through reciprocals.
@pytest.mark.parametrize(
    ("causal", "length", "options"),
    [(False, 63, RELU), (False, 65, {}), (True, 1, {"source_clamp": None}), (True, 65, {})],
)
def test_agrees_with_reference(causal, length, options):
    check_agreement(causal, length, jnp.float32, 2e-5, **options)


# 130 tokens are two blocks of chunks.
@DIRECTIONS
def test_agrees_with_reference_in_float64(causal):
    with jax.enable_x64(True):
        check_agreement(causal, 130, jnp.float64, 1e-12, **RELU)


# Bfloat16 inputs are computed in float32, so all that is lost is one rounding of each result, 2**-9 of its value.
@DIRECTIONS
def test_bfloat16_agrees_with_float32_reference(causal):
    given = problem(causal, 65, jnp.bfloat16)
    found = with_gradients(causal=causal, implementation="xla")(*given)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, given)
    expected = with_gradients(causal=causal, implementation="reference")(*exact)
    assert found[1][0][0].dtype == jnp.bfloat16
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert error(one, other) <= 2**-8


@pytest.mark.slow
@DIRECTIONS
@pytest.mark.parametrize("options", [{}, {"source_clamp": None}, {"source_clamp": 5.0}, RELU], ids=str)
@pytest.mark.parametrize("length", [1, 7, 63, 65, 130, 257])
def test_agrees_with_reference_everywhere(causal, length, options):
    # Nearly dead relu rows have reciprocals up to 1e11, which lose digits in float32.
    check_agreement(causal, length, jnp.float32, 1e-4 if options == RELU else 2e-5, **options)


@pytest.mark.slow
@DIRECTIONS
@pytest.mark.parametrize("length", [1, 7, 63, 65, 130])
def test_agrees_with_reference_without_padding_in_bfloat16(causal, length):
    check_agreement(causal, length, jnp.bfloat16, 2**-8, masked=False)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [1, 3, 32, 64, 1000])
def test_chunk_size_does_not_matter(chunk_size):
    arrays = inputs(150)
    expected = flow_attention(*arrays, causal=True, implementation="reference")
    assert error(flow_attention(*arrays, causal=True, chunk_size=chunk_size), expected) <= 2e-6


# --- causal form: the future, decoding, chunks


def test_causality():
    """The Jacobian, row by row: each output depends on every earlier input and on no later one."""
    length = 65
    arrays, state = inputs(length), flow_attention_init(B, H, K, V)
    nothing = jax.tree.map(jnp.zeros_like, state)
    zeros = np.zeros((B, length, H, V), np.float32)
    run = with_gradients(causal=True, implementation="xla")
    for t in range(length):
        cotangent = zeros.copy()
        cotangent[:, t] = 1
        _, (gradients, _) = run(arrays, state, (cotangent, nothing), np.ones((B, length), bool))
        for name, gradient in zip("qkv", gradients, strict=True):
            reached = np.abs(np.asarray(gradient)).sum((0, 2, 3)) > 0
            assert not reached[t + 1 :].any(), f"output {t} depends on a later {name}"
            assert reached[:t].all(), f"output {t} does not depend on every earlier {name}"


@functools.cache
def stepped(source_clamp):
    """Output and state of one call of `flow_attention_step` after the other."""

    def run(arrays, state, mask):
        def body(state, token):
            *qkv, valid = token
            y, state = flow_attention_step(*qkv, state, mask=valid, source_clamp=source_clamp)
            return state, y

        state, y = jax.lax.scan(body, state, [jnp.moveaxis(x, 1, 0) for x in (*arrays, mask)])
        return jnp.moveaxis(y, 0, 1), state

    return jax.jit(run)


def test_steps_equal_the_whole():
    arrays, state, cotangents, mask = problem(True, 65, jnp.float32)
    whole, _ = with_gradients(causal=True, implementation="xla")(arrays, state, cotangents, mask)
    for one, other in zip(jax.tree.leaves(stepped(1.0)(arrays, state, mask)), jax.tree.leaves(whole), strict=True):
        assert error(one, other) <= 2e-6


def test_chunks_of_a_prompt_equal_the_whole_with_gradients():
    arrays, _, (cotangent, _), mask = problem(True, 65, jnp.float32)
    state = flow_attention_init(B, H, K, V)

    def chunked(arrays):
        parts, state = [], None
        for begin, end in ((0, 20), (20, 65)):
            part = [x[:, begin:end] for x in arrays]
            y, state = flow_attention(
                *part, mask=mask[:, begin:end], causal=True, chunk_size=CHUNK, initial_state=state, return_state=True
            )
            parts.append(y)
        return jnp.concatenate(parts, 1), state

    @jax.jit
    def run(arrays, cotangents):
        y, pull = jax.vjp(chunked, arrays)
        return y, *pull(cotangents)

    nothing = jax.tree.map(jnp.zeros_like, state)
    whole, (gradients, _) = with_gradients(causal=True, implementation="reference")(
        arrays, state, (cotangent, nothing), mask
    )
    found = run(arrays, (cotangent, nothing))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves((whole, gradients)), strict=True):
        assert error(one, other) <= 5e-6


# --- padding


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("causal", "length", "options"),
    [(False, 65, {}), (False, 63, RELU), (True, 65, {}), (True, 1, {"source_clamp": None})],
)
def test_all_padding_is_finite(causal, length, options, implementation):
    run = with_gradients(causal=causal, implementation=implementation, **options)
    arrays = [jnp.asarray(100 * x) for x in inputs(length)]
    cotangent, state = jnp.ones((B, length, H, V)), None
    if causal:
        state = flow_attention_init(B, H, K, V)
        cotangent = (cotangent, state)
    y, (gradients, _) = run(arrays, state, cotangent, mask_of([length, 0], length))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, gradients)))
    y = y[0] if causal else y
    assert not np.asarray(y[1]).any()
    assert not any(np.asarray(gradient[1]).any() for gradient in gradients)
    assert np.asarray(gradients[2][0]).any()


def test_sources_all_padding_with_real_queries_are_finite():
    def total(arrays):
        return flow_attention(*arrays, mask=mask_of([9, 0], 9)).sum()

    value, gradients = jax.jit(jax.value_and_grad(total))(inputs(5, 9))
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


# --- size


def test_half_precision_at_length_16384():
    """Sums of the flow pass 65504, the largest float16; taken there, the output would be all zeros."""
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.standard_normal((1, 16384, 1, 32)) + shift, jnp.float16) for shift in (0, 0, 1)]
    for causal in (False, True):
        run = jax.jit(functools.partial(flow_attention, causal=causal))
        y = run(*arrays)
        assert y.dtype == jnp.float16
        assert np.abs(np.asarray(y)).mean() > 0.5
        assert error(y, run(*(x.astype(jnp.float32) for x in arrays))) <= 1e-3


@pytest.mark.parametrize("source_clamp", [1.0, pytest.param(None, marks=pytest.mark.slow)])
def test_memory_of_causal_gradients_at_length_16384(source_clamp):
    """Training memory is a few copies of the inputs; a [T, K, V] array per head would be 21 times all of them."""
    length, width = 16384, 64

    def total(arrays):
        return (flow_attention(*arrays, causal=True, source_clamp=source_clamp) ** 2).sum()

    shapes = [jax.ShapeDtypeStruct((1, length, 2, width), jnp.float32)] * 3
    memory = jax.jit(jax.value_and_grad(total)).lower(shapes).compile().memory_analysis()
    assert memory is not None
    inputs_size = 3 * length * 2 * width * 4
    assert memory.argument_size_in_bytes == inputs_size
    assert memory.temp_size_in_bytes < 3 * inputs_size
