"""ProbSparse attention: a plain NumPy form, causality, padding, what it may cost (test_parity.py: the authors')."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops.probsparse_attention import budget, probsparse_attention
from zoo.ops.probsparse_attention.common import Options, budgets, layout, per_query_slot, shared_sample
from zoo.ops.softmax_attention import softmax_attention

B, T, H, K, V, C = 4, 33, 2, 4, 3, 2
KEY = jax.random.key(7)
DIRECTIONS = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
SAMPLES = pytest.mark.parametrize("sample", ["per_query", "shared"])
pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.fixture(autouse=True)
def light_compilation():
    """Halves the time to compile; what is tested does not depend on XLA's optimisations."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def inputs(length=T, sources=None, *, seed=0, batch=B, dtype=np.float32):
    """q, k, v."""
    rng = np.random.default_rng(seed)
    sizes = ((batch, length, H, K), (batch, sources or length, H, K), (batch, sources or length, H, V))
    return [rng.standard_normal(size).astype(dtype) for size in sizes]


def ragged_mask(length=T):
    """All real, padding on the right, on the left and in a hole, none real."""
    mask = np.ones((B, length), bool)
    mask[1, length * 2 // 3 :] = False
    mask[2, [0, min(1, length - 1), length // 2]] = False
    mask[3] = False
    return mask


@functools.cache
def jitted(**options):
    return jax.jit(functools.partial(probsparse_attention, **{"factor": C, **options}))


def error(found, expected):
    """max|a - b| / max(1, max|b|)."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    return np.abs(found - expected).max() / max(1, np.abs(expected).max())


# --- a form of its own: one example and head, loops


def plain(q, k, v, indices, *, factor, causal, selection="causal", causal_context="mean"):
    """q [T, K], k [S, K], v [S, V], real tokens only, indices [T, U] -> [T, V] and the list of active queries."""
    length, sources = len(q), len(k)
    back = causal and selection == "causal"
    measures = []
    for i in range(length):
        seen = i + 1 if back else sources
        scores = [q[i] @ k[j] for j in indices[i] if j < seen]
        measures.append(max(scores) - sum(scores) / seen if scores else -np.inf)
    if back:
        active = []
        for i in range(length):
            rank = sum(measures[j] >= measures[i] for j in range(i))
            if rank < factor and len(active) < budget(i + 1, factor):
                active.append(i)
    else:
        active = sorted(range(length), key=lambda i: -measures[i])[: budget(length, factor)]
    y = np.zeros((length, v.shape[1]))
    for i in range(length):
        seen = i + 1 if causal else sources
        if i in active:
            weights = np.exp(k[:seen] @ q[i] / np.sqrt(q.shape[1]))
            y[i] = weights @ v[:seen] / weights.sum()
        else:
            y[i] = v[:seen].sum(0) if causal and causal_context == "cumsum" else v[:seen].mean(0)
    return y, active


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize(
    "options",
    [
        {"causal": False},
        {"causal": True},
        {"causal": True, "selection": "authors", "causal_context": "cumsum"},
        {"causal": False, "sample": "shared"},
        {"causal": True, "sample": "shared"},
    ],
    ids=str,
)
def test_equals_the_plain_form(options, implementation):
    rng = np.random.default_rng(1)
    shared = options.get("sample") == "shared"
    indices = rng.integers(0, T, (7,) if shared else (T, 7))
    mask = ragged_mask()
    with jax.enable_x64(True):
        q, k, v = inputs(dtype=np.float64)
        y = np.asarray(jitted(implementation=implementation, **options)(q, k, v, sample_indices=indices, mask=mask))
    for b in range(3):
        real = np.flatnonzero(mask[b])
        place = {position: i for i, position in enumerate(real)}
        rows = np.broadcast_to(indices, (T, 7))[real]
        own = [[place[j] for j in row if j in place] for row in rows]
        for h in range(H):
            rest = {name: value for name, value in options.items() if name != "sample"}
            expected, _ = plain(q[b, real, h], k[b, real, h], v[b, real, h], own, factor=C, **rest)
            assert error(y[b, real, h], expected) <= 1e-12


# --- the budget and the sample


def test_budget():
    lengths = (24, 48, 96, 168, 336, 720, 1024, 2048, 4096)
    assert [budget(n, 5) for n in lengths] == [20, 20, 25, 30, 30, 35, 35, 40, 45]
    numbers = np.arange(1, 5000)
    for factor in (1, 5, 10**9):
        expected = [min(max(factor * math.ceil(math.log(n)), 1), n) for n in numbers]
        assert [budget(n, factor) for n in numbers] == expected
        assert budgets(numbers, Options(factor, 1.0).factor).tolist() == expected
    assert budgets(np.array([0]), 5) == 0


def sampled(length, counted, sample, causal, mask=None, factor=3, key=KEY):
    """Key positions and whether they count, each [T, U], of the first example."""
    options = Options(factor, 1.0, sample, causal)
    where = layout(mask, mask, length, length, options)
    if sample == "shared":
        index, counts = shared_sample(key, where, options)
        return np.broadcast_to(index[0], (length, index.shape[-1])), np.broadcast_to(
            counts[0], (length, counts.shape[-1])
        )
    slots = jnp.arange(counted)
    index, counts = jax.vmap(lambda slot: per_query_slot(key, slot, where, options), out_axes=-1)(slots)
    return np.asarray(index[0]), np.asarray(counts[0])


@SAMPLES
@DIRECTIONS
def test_sample_is_of_keys_that_may_be_seen(sample, causal):
    mask = np.arange(100)[None] % 3 > 0
    index, counts = sampled(100, 15, sample, causal, mask)
    real = np.flatnonzero(mask[0])
    for t in real:
        chosen, number = index[t][counts[t]], np.sum(real <= t)
        assert np.isin(chosen, real).all()
        if causal:
            assert (chosen <= t).all()
        if sample == "per_query" or not causal:
            assert len(chosen) == budget(number if causal else len(real), 3)
        else:  # c from each stretch [e^m, e^(m + 1)), of the last one those that are not ahead
            stretches = [(0, 2), (2, 7), (7, 20), (20, 54), (54, 148)]
            least, most = (
                sum(min(3, end - start) for start, end in stretches if edge(start, end) <= number)
                for edge in (lambda start, end: end, lambda start, end: start + 1)
            )
            assert least <= len(chosen) <= most


def test_sample_is_uniform():
    index, counts = sampled(2000, 40, "per_query", False)
    assert counts.sum(1).tolist() == [budget(2000, 3)] * 2000
    drawn = index[counts]
    assert np.abs(np.histogram(drawn, 20, (0, 2000))[0] / (len(drawn) / 20) - 1).max() < 0.1
    index, counts = sampled(2000, 40, "per_query", True)
    relative = ((index + 0.5) / np.arange(1, 2001)[:, None])[1000:][counts[1000:]]
    assert np.abs(np.histogram(relative, 20, (0, 1))[0] / (len(relative) / 20) - 1).max() < 0.1


@SAMPLES
def test_output_follows_the_key(sample):
    q, k, v = inputs()
    run = jitted(sample=sample, factor=1)
    first = run(q, k, v, key=KEY)
    np.testing.assert_array_equal(first, run(q, k, v, key=KEY))
    assert any((run(q, k, v, key=jax.random.key(seed)) != first).any() for seed in range(3))


# --- identities


@SAMPLES
@DIRECTIONS
def test_every_query_active_is_softmax_attention(sample, causal):
    q, k, v = inputs()
    mask = ragged_mask()
    expected = softmax_attention(q, k, v, mask=mask, causal=causal, implementation="reference")
    y = jitted(sample=sample, causal=causal, factor=T)(q, k, v, key=KEY, mask=mask)
    assert error(y[mask], expected[mask]) <= 1e-6


@DIRECTIONS
def test_lazy_queries_get_the_mean_and_active_ones_attend(causal):
    length, factor = 200, 3
    q, k, v = inputs(length)
    y = np.asarray(jitted(causal=causal, factor=factor)(q, k, v, key=KEY))
    dense = np.asarray(softmax_attention(q, k, v, causal=causal))
    mean = np.cumsum(v, 1) / np.arange(1, length + 1)[:, None, None] if causal else v.mean(1, keepdims=True)
    lazy = np.abs(y - mean).max(-1) < 1e-5
    active = np.abs(y - dense).max(-1) < 1e-5
    assert (lazy | active).all()
    number = (~lazy).sum(1)
    if causal:
        until = np.cumsum(~lazy, axis=1)
        assert (until <= np.array([budget(t + 1, factor) for t in range(length)])[:, None]).all()
        assert number.min() >= factor
    else:
        assert (number == budget(length, factor)).all()


@DIRECTIONS
def test_heads_are_independent(causal):
    q, k, v = inputs()
    other = q.copy()
    other[:, :, 1] *= -3
    run = jitted(causal=causal)
    np.testing.assert_array_equal(run(q, k, v, key=KEY)[:, :, 0], run(other, k, v, key=KEY)[:, :, 0])


def test_growing_measures_keep_within_the_budget():
    """Each query's measure is the largest so far: without the limit all would attend."""
    q, k, v = inputs(200)
    q = np.sign(q) * np.arange(1, 201, dtype=np.float32)[:, None, None] ** 2
    results = [jitted(causal=True, implementation=name)(q, k, v, key=KEY) for name in ("xla", "reference")]
    assert error(*results) <= 2e-6
    mean = np.cumsum(v, 1) / np.arange(1, 201)[:, None, None]
    assert (np.abs(results[0] - mean).max(-1) > 1e-5).sum(1).max() <= budget(200, C)


# --- causality


@SAMPLES
def test_nothing_depends_on_what_comes_later(sample):
    q, k, v = inputs(64)
    run = jitted(causal=True, sample=sample)
    y = np.asarray(run(q, k, v, key=KEY))
    for t in (1, 2, 17, 40, 63):
        early = np.arange(64)[:, None, None] < t
        others = [np.where(early, x, 10 * new) for x, new in zip((q, k, v), inputs(64, seed=1), strict=True)]
        np.testing.assert_array_equal(run(*others, key=KEY)[:, :t], y[:, :t])
    for t in (1, 2, 40):
        assert error(run(q[:, :t], k[:, :t], v[:, :t], key=KEY), y[:, :t]) <= 2e-6


def test_the_authors_selection_depends_on_what_comes_later():
    q, k, v = inputs(64)
    run = jitted(causal=True, selection="authors", factor=1)
    later = np.arange(64)[:, None, None] >= 48
    others = [np.where(later, 10 * x, x).astype(np.float32) for x in (q, k, v)]
    assert np.abs(run(*others, key=KEY) - run(q, k, v, key=KEY))[:, :48].max() > 1e-2


# --- padding


@SAMPLES
@DIRECTIONS
def test_padding_changes_nothing(sample, causal):
    counts = np.array([T, 20, 5, 1])
    q, k, v = inputs()
    run = jitted(sample=sample, causal=causal)
    expected = [run(q[b : b + 1, :n], k[b : b + 1, :n], v[b : b + 1, :n], key=KEY)[0] for b, n in enumerate(counts)]
    first = np.arange(64) < counts[:, None]
    for mask in (first, first[:, ::-1], np.random.default_rng(2).permuted(first, axis=1)):
        spread = []
        for x in (q, k, v):
            new = np.full((B, 64, *x.shape[2:]), np.nan, np.float32)
            new[mask] = np.concatenate([x[b, :n] for b, n in enumerate(counts)])
            spread.append(new)
        y = np.asarray(run(*spread, key=KEY, mask=mask))
        for b in range(B):
            assert error(y[b][mask[b]], expected[b]) <= 2e-6


def test_batch_mates_change_nothing():
    q, k, v = inputs()
    mask = ragged_mask()
    y = jitted()(q, k, v, key=KEY, mask=mask)
    mates = [x * np.float32([1, 1, 30, 30])[:, None, None, None] for x in (q, k, v)]
    np.testing.assert_array_equal(jitted()(*mates, key=KEY, mask=mask)[:2], y[:2])


def test_cross_attention():
    q, k, v = inputs(19, T)
    query_mask = np.arange(19) < np.array([19, 12, 3, 1])[:, None]
    mask = ragged_mask()
    given = {"key": KEY, "mask": mask, "query_mask": query_mask}
    fast, slow = (jitted(implementation=name)(q, k, v, **given) for name in ("xla", "reference"))
    assert error(fast[query_mask], slow[query_mask]) <= 2e-6
    dense = softmax_attention(q, k, v, mask=mask)
    every = jitted(factor=T)(q, k, v, **given)
    assert error(every[query_mask], dense[query_mask]) <= 2e-6


# --- implementations, gradients, precision


@functools.cache
def with_gradients(implementation, **options):
    attend = jitted(implementation=implementation, **options)

    @jax.jit
    def run(arrays, mask, cotangent):
        y, pull = jax.vjp(lambda q, k, v: attend(q, k, v, key=KEY, mask=mask), *arrays)
        return (y, *pull(cotangent.astype(y.dtype)))

    return run


def compare_with_reference(length, masked, dtype, **options):
    arrays = [jnp.asarray(x, jnp.bfloat16 if dtype == "bfloat16" else jnp.float32) for x in inputs(length)]
    mask = ragged_mask(length)
    cotangent = np.random.default_rng(4).standard_normal((B, length, H, V))
    cotangent = jnp.asarray(np.where(mask[..., None, None], cotangent, 0 if masked else 1), arrays[0].dtype)
    # The reference is computed in float32 also for bfloat16, on the same numbers, and so chooses the same queries.
    fast, slow = (
        with_gradients(name, **options)([x.astype(to) for x in arrays], mask if masked else None, cotangent)
        for name, to in (("xla", dtype), ("reference", "float32"))
    )
    tolerance = 2**-7 if dtype == "bfloat16" else 5e-6
    for name, a, b in zip("yqkv", fast, slow, strict=True):
        assert a.dtype == dtype
        assert np.isfinite(np.asarray(a, np.float32)).all(), name
        assert length < 8 or np.abs(b).max() > 0, name  # one key alone has no gradient
        if name == "y" and masked:
            a, b = a[mask], b[mask]
        assert error(a, b) <= tolerance, (name, error(a, b))


@SAMPLES
@DIRECTIONS
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_equals_reference_with_all_gradients(sample, causal, masked):
    compare_with_reference(T, masked, "float32", sample=sample, causal=causal)


@DIRECTIONS
def test_equals_reference_in_bfloat16(causal):
    compare_with_reference(T, True, "bfloat16", causal=causal)


@pytest.mark.slow
@SAMPLES
@DIRECTIONS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("length", [1, 2, 8, 129])
@pytest.mark.parametrize("factor", [1, 5])
def test_equals_reference_everywhere(sample, causal, masked, dtype, length, factor):
    compare_with_reference(length, masked, dtype, sample=sample, causal=causal, factor=factor)


def test_equals_reference_with_the_authors_choices():
    options = {"causal": True, "selection": "authors", "causal_context": "cumsum"}
    compare_with_reference(T, True, "float32", **options)


@DIRECTIONS
def test_fully_padded_batch_is_finite(causal):
    arrays = [jnp.asarray(x) for x in inputs()]
    results = with_gradients("xla", causal=causal)(arrays, np.zeros((B, T), bool), jnp.ones((B, T, H, V)))
    assert all(np.isfinite(x).all() for x in results)


def test_sums_are_exact_in_bfloat16():
    q = jnp.zeros((1, 600, 1, 2), jnp.bfloat16)
    y = jitted(causal=True, causal_context="cumsum", factor=1)(q, q, jnp.ones_like(q), key=KEY)
    expected = jnp.arange(1, 601).astype(jnp.bfloat16)  # sums in bfloat16 would stay at 256
    assert (np.asarray(y[0, :, 0, 0] == expected)).sum() >= 600 - budget(600, 1)


# --- cost


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"sample": "shared"}], ids=str)
def test_memory_grows_with_the_length_only(options):
    def memory(length, implementation="xla"):
        """Bytes of temporaries of the forward and backward pass, [1, T, 4, 32]."""
        x = jax.ShapeDtypeStruct((1, length, 4, 32), jnp.float32)

        def loss(q, k, v):
            return probsparse_attention(q, k, v, key=KEY, implementation=implementation, **options).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    samples = 4 * 4096 * budget(4096, 5) * 4 * 32  # the sampled keys of all queries
    assert memory(4096) < min(5 * memory(1024), samples / 4)
    assert memory(1024, "reference") > 4 * 4 * 1024**2  # the measure sees a matrix of all pairs where there is one


# --- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 0}, "factor=0"),
        ({"sample": "some"}, "per_query, shared"),
        ({"selection": "later"}, "causal, authors"),
        ({"causal_context": "sum"}, "mean, cumsum"),
        ({"implementation": "fast"}, "'reference'"),
        ({"mask": np.ones((B, T + 1), bool)}, "mask must have shape"),
        ({"causal": True, "query_mask": np.ones((B, T), bool)}, "one mask"),
        ({"key": None}, "key=jax.random.key"),
        ({"sample_indices": np.zeros((T, 3), int)}, "not both"),
        ({"key": None, "sample_indices": np.zeros(3, int)}, r"\[33, U\]"),
        ({"key": None, "sample": "shared", "sample_indices": np.zeros((T, 3), int)}, r"\[U\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        probsparse_attention(*inputs(), **{"key": KEY, **options})


def test_refuses_arrays_that_do_not_fit():
    q, k, v = inputs()
    with pytest.raises(ValueError, match="axes 0"):
        probsparse_attention(q[:1], k, v, key=KEY)
    with pytest.raises(ValueError, match="must agree in axes 0"):
        probsparse_attention(q, k, v[:, :-1], key=KEY)
    with pytest.raises(ValueError, match="T == S"):
        probsparse_attention(q[:, 1:], k, v, key=KEY, causal=True)
    with pytest.raises(ValueError, match="four axes"):
        probsparse_attention(q[0], k, v, key=KEY)
    with pytest.raises(TypeError, match="must be boolean"):
        probsparse_attention(q, k, v, key=KEY, mask=np.ones((B, T)))
    with pytest.raises(TypeError, match="typed key"):
        probsparse_attention(q, k, v, key=jax.random.PRNGKey(0))
    with pytest.raises(TypeError, match="integers"):
        probsparse_attention(q, k, v, sample_indices=np.zeros((T, 3)))
