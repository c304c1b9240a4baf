"""Softmax attention against a loop in float64, and its implementations against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops import softmax_attention as module
from zoo.ops.softmax_attention import softmax_attention

IMPLEMENTATIONS = ("xla", "chunked", "reference", None)
B, H, K, V = 2, 3, 8, 5


@pytest.fixture(autouse=True)
def light_compilation():
    """Compiles lightly: XLA's optimisations make JAX's random bits eight times slower to compile."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def inputs(length, keys, seed=0, dtype=np.float32, width=V):
    rng = np.random.default_rng(seed)
    shapes = ((B, length, H, K), (B, keys, H, K), (B, keys, H, width))
    return tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)


def key_mask(keys, seed=0):
    mask = np.random.default_rng(seed).random((B, keys)) < 0.7
    mask[:, 0] = True
    return mask


def by_loop(q, k, v, mask=None, causal=False, scale=None):
    """One query at a time, in float64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    length, keys = q.shape[1], k.shape[1]
    scale = K**-0.5 if scale is None else scale
    y = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, t, h in np.ndindex(*q.shape[:3]):
        seen = np.ones(keys, bool) if mask is None else (mask[b] if mask.ndim == 2 else mask[b, t]).copy()
        if causal:
            seen[max(0, t + keys - length + 1) :] = False
        if seen.any():
            scores = scale * k[b, seen, h] @ q[b, t, h]
            weights = np.exp(scores - scores.max())
            y[b, t, h] = weights @ v[b, seen, h] / weights.sum()
    return y


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("length", "keys"), [(1, 1), (7, 7), (5, 9), (9, 5)])
@pytest.mark.parametrize("causal", [False, True])
def test_equals_the_loop(implementation, length, keys, causal):
    q, k, v = inputs(length, keys)
    pairs = np.random.default_rng(1).random((B, length, keys)) < 0.6
    chunk = {"query_chunk_size": 4} if implementation == "chunked" else {}
    masks = (None, key_mask(keys), pairs)
    options = {"causal": causal, "implementation": implementation, **chunk}
    outputs = jax.jit(lambda q, k, v: [softmax_attention(q, k, v, mask=mask, **options) for mask in masks])(q, k, v)
    for mask, y in zip(masks, outputs, strict=True):
        np.testing.assert_allclose(y, by_loop(q, k, v, mask, causal), atol=2e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scale(implementation):
    q, k, v = inputs(7, 7)
    y = softmax_attention(q, k, v, scale=0.1, implementation=implementation)
    np.testing.assert_allclose(y, by_loop(q, k, v, scale=0.1), atol=2e-6)


def test_reference_is_double_precision_for_double_inputs():
    with jax.enable_x64(True):
        q, k, v = inputs(7, 9, dtype=np.float64)
        for implementation in ("reference", "chunked"):
            y = softmax_attention(q, k, v, mask=key_mask(9), causal=True, implementation=implementation)
            assert y.dtype == jnp.float64
            np.testing.assert_allclose(y, by_loop(q, k, v, key_mask(9), True), atol=1e-14)


def gradients(implementation, q, k, v, mask, **options):
    ct = jnp.asarray(np.random.default_rng(7).normal(size=(*q.shape[:3], v.shape[-1])), jnp.float32)

    @jax.jit
    def run(q, k, v):
        y, pull = jax.vjp(
            lambda q, k, v: softmax_attention(q, k, v, mask=mask, implementation=implementation, **options), q, k, v
        )
        return y, *pull(ct.astype(y.dtype))

    return run(q, k, v)


@pytest.mark.parametrize(
    ("implementation", "chunk"), [("xla", None), ("chunked", None), ("chunked", 1), ("chunked", 4)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_equal_the_reference(implementation, chunk, causal):
    q, k, v = inputs(13, 15)
    mask = key_mask(15)
    options = {"causal": causal} | ({"query_chunk_size": chunk} if chunk else {})
    expected = gradients("reference", q, k, v, mask, causal=causal)
    for a, b in zip(gradients(implementation, q, k, v, mask, **options), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_queries_without_keys_give_zeros_and_zero_gradients(implementation):
    q, k, v = inputs(9, 9)
    mask = key_mask(9)
    mask[1] = False
    y, dq, dk, dv = gradients(implementation, q, k, v, mask)
    assert not np.asarray(y[1]).any()
    assert np.asarray(y[0]).any()
    for gradient in (dq, dk, dv):
        assert np.isfinite(gradient).all()
        assert not np.asarray(gradient[1]).any()
    q, k, v = inputs(9, 5)  # causal with more queries than keys: the first four see none
    y, dq, *_ = gradients(implementation, q, k, v, None, causal=True)
    assert not np.asarray(y[:, :4]).any()
    assert not np.asarray(dq[:, :4]).any()
    assert np.asarray(y[:, 4:]).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_sums_in_float32(implementation):
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in inputs(3, 4096))
    v = v + 1
    y = softmax_attention(q, k, v, implementation=implementation)
    assert y.dtype == jnp.bfloat16
    expected = by_loop(*(np.asarray(x, np.float64) for x in (q, k, v)))
    # One rounding of the weights and one of the result; sums of 4096 terms in bfloat16 would be off by much more.
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=2e-2)


def test_dropout_is_the_keys_alone():
    q, k, v = inputs(11, 11)
    mask = key_mask(11)

    def run(seed, **options):
        key = jax.random.key(seed)
        return jax.jit(lambda key: softmax_attention(q, k, v, mask=mask, dropout=0.4, dropout_key=key, **options))(key)

    expected = run(3, implementation="reference")
    assert not np.allclose(expected, by_loop(q, k, v, mask))
    for options in ({}, {"implementation": "chunked"}, {"query_chunk_size": 1}, {"query_chunk_size": 4}):
        np.testing.assert_allclose(run(3, **options), expected, atol=2e-6)
    assert not np.allclose(run(4), expected)
    without_key = softmax_attention(q, k, v, mask=mask, dropout=0.4)
    np.testing.assert_allclose(without_key, by_loop(q, k, v, mask), atol=2e-6)


def test_dropout_rate_and_scaling():
    length = 64
    weights = jax.random.uniform(jax.random.key(0), (B, H, length, length))
    dropped = module._drop(weights, jnp.arange(length), 0.25, jax.random.key(1))
    kept = np.asarray(dropped) != 0
    assert abs(kept.mean() - 0.75) < 0.01
    np.testing.assert_allclose(np.asarray(dropped)[kept], np.asarray(weights / 0.75)[kept], rtol=1e-6)


def test_gradient_with_dropout_equals_the_reference():
    q, k, v = inputs(7, 7)
    options = {"dropout": 0.5, "dropout_key": jax.random.key(0)}
    expected = gradients("reference", q, k, v, None, **options)
    for a, b in zip(gradients("chunked", q, k, v, None, query_chunk_size=3, **options), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


def has_loop(**options):
    q, k, v = inputs(16, 16)
    return "scan" in str(jax.make_jaxpr(lambda q: softmax_attention(q, k, v, **options))(q))


def test_default_is_chunked_where_the_weights_would_be_large(monkeypatch):
    assert not has_loop()
    assert has_loop(query_chunk_size=4)
    assert has_loop(dropout=0.1, dropout_key=jax.random.key(0))
    assert not has_loop(dropout=0.1)
    monkeypatch.setattr(module, "PLAIN_LIMIT_BYTES_CPU", 4 * B * H * 16 * 16 - 1)
    assert has_loop()
    assert not has_loop(implementation="xla")


def test_chunked_keeps_no_square_array():
    length = 1024
    jax.config.update("jax_disable_most_optimizations", False)
    q = jnp.zeros((1, length, 2, 8))
    square = 4 * 2 * length * length

    def peak(**options):
        gradient = jax.grad(lambda q, k, v: softmax_attention(q, k, v, causal=True, **options).sum(), argnums=(0, 1, 2))
        return jax.jit(gradient).lower(q, q, q).compile().memory_analysis().temp_size_in_bytes

    assert peak(query_chunk_size=64) < square / 2
    assert peak(query_chunk_size=64, dropout=0.1, dropout_key=jax.random.key(0)) < square / 2
    assert peak(implementation="xla") > square


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_empty_axes(implementation):
    q, k, v = inputs(0, 5)
    assert softmax_attention(q, k, v, implementation=implementation).shape == (B, 0, H, V)
    q, k, v = inputs(4, 0)
    assert not softmax_attention(q, k, v, implementation=implementation).any()


def test_errors():
    q, k, v = inputs(7, 9)
    with pytest.raises(ValueError, match=r"no implementation 'fast'.*'xla'"):
        softmax_attention(q, k, v, implementation="fast")
    with pytest.raises(ValueError, match="cannot drop weights"):
        softmax_attention(q, k, v, dropout=0.1, dropout_key=jax.random.key(0), implementation="xla")
    with pytest.raises(ValueError, match="cannot drop weights"):
        softmax_attention(q, k, v, dropout=0.1, dropout_key=jax.random.key(0), implementation="cudnn")
    with pytest.raises(ValueError, match=r"k must be \[2, S, 3, 8\]"):
        softmax_attention(q, k[..., :4], v)
    with pytest.raises(ValueError, match="same S"):
        softmax_attention(q, k, v[:, :4])
    with pytest.raises(ValueError, match="one dtype"):
        softmax_attention(q, k, v.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match=r"mask must be bool \[2, 9\]"):
        softmax_attention(q, k, v, mask=np.ones((2, 7), bool))
    with pytest.raises(ValueError, match="mask must be bool"):
        softmax_attention(q, k, v, mask=np.ones((2, 9), np.float32))
    with pytest.raises(ValueError, match="below 1"):
        softmax_attention(q, k, v, dropout=1.0)
    with pytest.raises(ValueError, match="query_chunk_size=0"):
        softmax_attention(q, k, v, query_chunk_size=0)
    with pytest.raises(ValueError, match="must be \\[B, T, H, K\\]"):
        softmax_attention(q[0], k, v)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="asks for cuDNN where there is none")
def test_cudnn_says_why_not():
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        softmax_attention(*inputs(8, 8, width=K), implementation="cudnn")


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_cudnn_equals_the_reference(causal, masked):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 128, 4, 64)), jnp.bfloat16) for _ in range(3))
    mask = rng.random((2, 128)) < 0.7 if masked else None
    expected = gradients("reference", q, k, v, mask, causal=causal)
    for a, b in zip(gradients("cudnn", q, k, v, mask, causal=causal), expected, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=5e-2)
    with pytest.raises(ValueError, match="bfloat16 or float16"):
        softmax_attention(*(x.astype(jnp.float32) for x in (q, k, v)), implementation="cudnn")
