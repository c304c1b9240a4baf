"""Nyström attention: its own definition, and what padding and batch mates may not do.

The authors' numbers are compared in tests/test_parity.py.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops.nystrom_attention import iterative_pinv, nystrom_attention, value_convolution

B, T, H, K, V, M, W = 5, 37, 2, 6, 4, 8, 5
OPTIONS = ("num_landmarks", "pinv_iterations", "pinv_init", "landmarks", "implementation", "scale")
attend = jax.jit(nystrom_attention, static_argnames=OPTIONS)
pinv = jax.jit(iterative_pinv, static_argnames=("iterations", "init"))


def inputs(seed=0, batch=B, length=T, dtype=np.float32, sharpness=1.0):
    """q, k, v and a kernel."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, length, H, K), (batch, length, H, K), (batch, length, H, V), (W, H)]
    q, k, v, kernel = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return q * sharpness, k * sharpness, v, kernel


def ragged_mask(length=T):
    """All real, a prefix, a suffix with gaps, fewer tokens than landmarks, none."""
    mask = np.zeros((B, length), bool)
    mask[0] = True
    mask[1, : length * 2 // 3] = True
    mask[2, length // 4 :: 2] = True
    mask[3, [1, 4, 5, length - 2]] = True
    return mask


def softmax_attention(q, k, v, mask):
    """Exact attention in float64 NumPy."""
    logits = np.einsum("bthk,bshk->bhts", q, k, dtype=np.float64) / np.sqrt(q.shape[-1])
    logits = np.where(mask[:, None, None, :], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhts,bshv->bthv", weights / weights.sum(-1, keepdims=True), v)


def relative(a, b):
    """max|a - b| / max(1, max|b|)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.abs(a - b).max() / max(1, np.abs(b).max())


@pytest.mark.parametrize(("length", "landmarks"), [(M, "valid"), (5, "padded")])
def test_as_many_landmarks_as_positions_is_softmax_attention(length, landmarks):
    q, k, v, _ = inputs(length=length)
    mask = np.ones((B, length), bool)
    mask[1, 3:] = mask[2, 0] = False
    ours = attend(q, k, v, mask=mask, num_landmarks=M, landmarks=landmarks)
    assert relative(ours[mask], softmax_attention(q, k, v, mask)[mask]) <= 1e-6


@pytest.mark.parametrize("landmarks", ["valid", pytest.param("padded", marks=pytest.mark.slow)])
def test_is_softmax_attention_where_landmarks_lose_nothing(landmarks):
    """Each token three times in a row: the segment means are the tokens, so that only the pinv is approximate."""
    q, k, v, _ = (np.repeat(x, 3, axis=1) for x in inputs(length=M, dtype=np.float64, sharpness=1.3))
    mask = np.ones((B, 3 * M), bool)
    with jax.enable_x64(True):
        ours = attend(q, k, v, mask=mask, num_landmarks=M, pinv_iterations=18, landmarks=landmarks)
    assert ours.dtype == jnp.float64
    assert relative(ours, softmax_attention(q, k, v, mask)) < 1e-4


def test_landmarks_of_uneven_lengths_follow_the_authors_rule():
    q, k, v, _ = inputs(length=11)
    m, sizes = 4, [2, 3, 3, 3]  # 11 = 4 * 2 + 3: the first 4 - 3 have two tokens, the others three
    edges = np.cumsum([0, *sizes])
    mean = [np.stack([x[:, a:b].mean(1) for a, b in itertools.pairwise(edges)], 1) for x in (q, k)]

    def softmax(logits):
        weights = np.exp(logits / np.sqrt(K))
        return weights / weights.sum(-1, keepdims=True)

    k1 = softmax(np.einsum("bthk,bmhk->bhtm", q, mean[1]))
    k2 = softmax(np.einsum("bmhk,bnhk->bhmn", *mean))
    k3 = softmax(np.einsum("bmhk,bthk->bhmt", mean[0], k))
    z = np.asarray(pinv(k2))
    expected = np.einsum("bhtm,bhmn,bhns,bshv->bthv", k1, z, k3, v, optimize=True)
    for mask in (None, np.ones((B, 11), bool)):
        assert relative(attend(q, k, v, mask=mask, num_landmarks=m), expected) <= 2e-6


def test_pinv_of_softmax_matrices():
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((2, 2, 32, 8, 32)).mean(-2) for _ in range(2))
    a = np.asarray(jax.nn.softmax(jnp.einsum("bhmk,bhnk->bhmn", q, k) * 32**-0.5 * 8), np.float32)
    six = np.asarray(pinv(a))
    residual = np.linalg.norm(a @ six @ a - a, axis=(-2, -1)) / np.linalg.norm(a, axis=(-2, -1))
    assert residual.max() <= 5e-2
    with jax.enable_x64(True):
        twenty = np.asarray(pinv(a.astype(np.float64), iterations=20))
    inverse = np.linalg.pinv(a.astype(np.float64))
    assert np.abs(twenty - inverse).max() <= 1e-5 * np.abs(inverse).max()


def test_pinv_starts():
    """The three starts coincide for one matrix; the global ones take the largest of the batch, and rows sum to one."""
    a = jax.nn.softmax(2 * jax.random.normal(jax.random.key(0), (2, 2, M, M)))
    run = functools.partial(pinv, a, iterations=1)
    c = np.asarray(a.sum(-2).max(-1))
    worst = np.unravel_index(c.argmax(), c.shape)
    np.testing.assert_allclose(run(init="global"), run(init="global_product"), rtol=1e-5, atol=1e-6)
    differs = np.abs(run(init="global") - run(init="per_matrix")).max((-2, -1))
    assert differs[worst] <= 1e-6
    assert (np.delete(differs.ravel(), np.ravel_multi_index(worst, c.shape)) > 1e-3).all()


@pytest.mark.parametrize(("length", "width"), [(1, 5), (64, 1), (101, 35), (150, 99)])
def test_value_convolution(length, width):
    rng = np.random.default_rng(1)
    v, kernel = rng.standard_normal((2, length, H, 3)), rng.standard_normal((width, H))
    padded = np.pad(v, ((0, 0), (width // 2, width // 2), (0, 0), (0, 0)))
    expected = sum(padded[:, w : w + length] * kernel[w][:, None] for w in range(width))
    ours = jax.jit(value_convolution)(jnp.asarray(v, jnp.float32), jnp.asarray(kernel, jnp.float32))
    assert relative(ours, expected) <= 2e-6


@pytest.mark.parametrize("landmarks", ["valid", "padded"])
def test_batch_mates_change_nothing(landmarks):
    q, k, v, kernel = inputs(length=32)
    mask = ragged_mask(32)
    run = functools.partial(attend, num_landmarks=M, conv_kernel=kernel, landmarks=landmarks)
    mates = [x * np.float32([1, 1, 1, 30, 30])[:, None, None, None] for x in (q, k, v)]
    many = mask | (np.arange(B) > 2)[:, None]
    np.testing.assert_array_equal(run(q, k, v, mask=mask)[:3], run(*mates, mask=many)[:3])


def test_the_authors_start_lets_batch_mates_matter():
    q, k, v, _ = inputs(length=32)
    run = functools.partial(attend, num_landmarks=M, landmarks="padded", pinv_init="global")
    outlier = [np.concatenate([x[:4], 30 * x[4:]]) for x in (q, k, v)]
    assert np.abs(run(q, k, v)[0] - run(*outlier)[0]).max() > 1e-3


@pytest.mark.parametrize("landmarks", ["valid", "padded"])
def test_content_of_padding_changes_nothing(landmarks):
    q, k, v, kernel = inputs(length=32)
    mask = ragged_mask(32)
    run = functools.partial(attend, mask=mask, num_landmarks=M, conv_kernel=kernel, landmarks=landmarks)
    other = [np.where(mask[..., None, None], x, np.float32(1e20)) for x in (q, k, v)]
    np.testing.assert_array_equal(run(q, k, v)[mask], run(*other)[mask])


def test_amount_and_place_of_padding_change_nothing():
    """Numbers of tokens around m: the exact and the approximate path must meet what the tokens get on their own."""
    m, counts = 64, np.array([200, 64, 63, 64, 1])
    q, k, v, _ = inputs(length=200)
    expected = softmax_attention(q, k, v, np.arange(200) < counts[:, None])
    expected[0] = attend(q[:1], k[:1], v[:1], num_landmarks=m)[0]
    for length in (256, 512):
        first = np.arange(length) < counts[:, None]
        for mask in (first, first[:, ::-1], np.random.default_rng(2).permuted(first, axis=1)):
            spread = []
            for x in (q, k, v):
                new = np.full((B, length, *x.shape[2:]), 7, np.float32)
                new[mask] = np.concatenate([x[b, :n] for b, n in enumerate(counts)])
                spread.append(new)
            ours = attend(*spread, mask=mask, num_landmarks=m)
            for b, n in enumerate(counts):
                assert relative(ours[b][mask[b]], expected[b, :n]) <= 1e-5, (b, mask[b])


@functools.cache
def with_gradients(implementation, **options):
    """A compiled function of (arrays, mask, cotangent) that returns the output and the gradient of every array."""

    @jax.jit
    def run(arrays, mask, cotangent):
        def attend(q, k, v, kernel):
            return nystrom_attention(
                q, k, v, mask=mask, conv_kernel=kernel, num_landmarks=M, implementation=implementation, **options
            )

        y, pull = jax.vjp(attend, *arrays)
        return (y, *pull(cotangent.astype(y.dtype)))

    return run


def compare_with_reference(length, masked, dtype, **options):
    """The reference is computed in float32 also for bfloat16, on the same (rounded) numbers."""
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in inputs(length=length)]
    mask = ragged_mask(length) if masked else np.ones((B, length), bool)
    cotangent = np.random.default_rng(4).standard_normal((B, length, H, V)) * mask[..., None, None]
    cotangent = jnp.asarray(cotangent, jnp.bfloat16)
    fast, slow = (
        with_gradients(name, **options)([x.astype(to) for x in arrays], used, cotangent)
        for name, to, used in (("xla", dtype, mask if masked else None), ("reference", jnp.float32, mask))
    )
    tolerance = 2**-8 if dtype == jnp.bfloat16 else 2e-5
    for name, a, b in zip(("y", "q", "k", "v", "kernel"), fast, slow, strict=True):
        assert a.dtype == dtype
        assert np.isfinite(np.asarray(a, np.float32)).all(), name
        assert np.abs(b).max() > 0, name
        if name == "y":
            a, b = a[mask], b[mask]
        assert relative(a, b) <= tolerance, (name, relative(a, b))


@pytest.mark.parametrize(
    ("length", "masked", "dtype", "options"),
    [
        (T, True, "float32", {}),
        (T, True, "bfloat16", {}),
        (T, False, "float32", {}),
        (32, True, "float32", {"landmarks": "padded", "pinv_init": "global", "scale": 0.3}),
        (7, True, "float32", {}),
    ],
)
def test_equals_reference_with_all_gradients(length, masked, dtype, options):
    compare_with_reference(length, masked, jnp.dtype(dtype), **options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("length", "landmarks", "pinv_init"),
    [
        (9, "valid", "per_matrix"),
        (15, "valid", "global"),
        (16, "valid", "global_product"),
        (63, "valid", "per_matrix"),
        (131, "valid", "global_product"),
        (16, "padded", "per_matrix"),
        (64, "padded", "global_product"),
    ],
)
def test_equals_reference_everywhere(length, landmarks, pinv_init, masked, dtype):
    compare_with_reference(length, masked, jnp.dtype(dtype), landmarks=landmarks, pinv_init=pinv_init)


@pytest.mark.parametrize(
    ("length", "options"), [(T, {}), (32, {"landmarks": "padded", "pinv_init": "global", "scale": 0.3})]
)
def test_fully_padded_batch_is_finite(length, options):
    arrays = [jnp.asarray(x) for x in inputs(length=length)]
    cotangent = jnp.ones((B, length, H, V), jnp.bfloat16)
    results = with_gradients("xla", **options)(arrays, np.zeros((B, length), bool), cotangent)
    assert all(np.isfinite(x).all() for x in results)


def test_never_holds_a_matrix_of_the_length_squared():
    def memory(implementation, length):
        """Bytes of temporaries of the forward and backward pass."""
        x, kernel = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32), jax.ShapeDtypeStruct((35, 1), jnp.float32)
        mask = jax.ShapeDtypeStruct((1, length), jnp.bool_)

        def loss(q, k, v, kernel, mask):
            options = {"num_landmarks": 16, "conv_kernel": kernel, "implementation": implementation}
            return nystrom_attention(q, k, v, mask=mask, **options).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(x, x, x, kernel, mask).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory("xla", 8192) < 4 * 8192**2 / 16
    assert memory("reference", 1024) > 4 * 1024**2  # the measure sees such a matrix where there is one


def test_cannot_be_causal():
    q, k, v, _ = inputs()
    with pytest.raises(ValueError, match="averages over positions of the future"):
        nystrom_attention(q, k, v, causal=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_landmarks": 0}, "num_landmarks=0"),
        ({"pinv_iterations": 0}, "pinv_iterations=0"),
        ({"pinv_init": "exact"}, "'per_matrix'"),
        ({"landmarks": "even"}, "'padded'"),
        ({"landmarks": "padded", "num_landmarks": M}, "T is 37"),
        ({"mask": np.ones((B, T + 1), bool)}, r"\[B, T\]"),
        ({"conv_kernel": np.ones((4, H))}, "odd W"),
        ({"conv_kernel": np.ones((5, H + 1))}, f"H = {H}"),
        ({"implementation": "fast"}, "'reference'"),
    ],
)
def test_refuses(options, message):
    q, k, v, _ = inputs()
    with pytest.raises(ValueError, match=message):
        nystrom_attention(q, k, v, **options)


def test_refuses_shapes_that_do_not_belong_together():
    q, k, v, _ = inputs()
    with pytest.raises(ValueError, match="of one B, T > 0 and H"):
        nystrom_attention(q, k[:, :-1], v)
    with pytest.raises(TypeError, match="must be boolean"):
        nystrom_attention(q, k, v, mask=np.ones((B, T), np.float32))
