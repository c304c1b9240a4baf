"""Flow-Attention: its values, by a plain NumPy derivation (the authors' arrays are in tests/test_parity.py)."""

import functools

import jax
import numpy as np
import pytest

from zoo.ops.flow_attention import flow_attention, flow_attention_init, flow_attention_step

B, T, H, K, V, CHUNK = 2, 21, 2, 4, 3, 8
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


@functools.cache
def jitted(**options):
    return jax.jit(functools.partial(flow_attention, chunk_size=CHUNK, **options))


def error(found, expected):
    """Largest difference, relative to the largest value (or 1)."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    return np.abs(found - expected).max() / max(1, np.abs(expected).max())


# --- a derivation of its own: one example without padding, float64, loops where the formula has a running sum


def _phi(x, feature_map):
    x = np.asarray(x, np.float64)
    return 1 / (1 + np.exp(-x)) if feature_map == "sigmoid" else np.maximum(x, 0) + 1e-6


def _limit(flow, clamp):
    return flow if clamp is None else np.clip(flow, -clamp, clamp)


def plain(q, k, v, *, feature_map="sigmoid", source_clamp=1.0, competition_axis="sequence", eps=1e-6):
    """q [T, H, K], k [S, H, K], v [S, H, V] -> [T, H, V]."""
    q, k = _phi(q, feature_map), _phi(k, feature_map)
    sinks, sources = len(q), len(k)
    incoming = ((q + eps) * (k.sum(0) + eps)).sum(-1)
    outgoing = ((k + eps) * (q.sum(0) + eps)).sum(-1)
    conserved_sink = ((q + eps) * ((k / outgoing[..., None]).sum(0) + eps)).sum(-1)
    conserved_source = _limit(((k + eps) * ((q / incoming[..., None]).sum(0) + eps)).sum(-1), source_clamp)
    axis = 0 if competition_axis == "sequence" else 1
    grown = np.exp(conserved_source - conserved_source.max(axis, keepdims=True))
    competition = grown / grown.sum(axis, keepdims=True) * sources
    allocation = 1 / (1 + np.exp(-conserved_sink * sinks / sources))
    weights = np.einsum("thk,shk->tsh", q, k) * (allocation / incoming)[:, None] * competition[None]
    return np.einsum("tsh,shv->thv", weights, v)


def plain_causal(q, k, v, *, feature_map="sigmoid", source_clamp=1.0, eps=1e-6):
    """The same, every sum over the positions up to its own."""
    q, k = _phi(q, feature_map), _phi(k, feature_map)
    shares_q, shares_k, flows, rows = [], [], [], []
    for i in range(len(q)):
        n = i + 1
        incoming = ((q[i] + eps) * (k[:n].sum(0) + eps)).sum(-1)
        outgoing = ((k[i] + eps) * (q[:n].sum(0) + eps)).sum(-1)
        shares_q.append(q[i] * n / incoming[:, None])
        shares_k.append(k[i] * n / outgoing[:, None])
        conserved_sink = ((q[i] + eps) * (np.sum(shares_k, 0) + eps)).sum(-1) / n
        flows.append(_limit(((k[i] + eps) * (np.sum(shares_q, 0) + eps)).sum(-1) / n, source_clamp))
        top = np.max(flows, 0)
        # competition of source j was fixed when j was read
        rows.append(n * np.exp(flows[i] - top) / np.exp(np.array(flows) - top).sum(0))
        weights = np.einsum("hk,jhk->jh", q[i], k[:n]) * np.array(rows) / incoming / (1 + np.exp(-conserved_sink))
        yield np.einsum("jh,jhv->hv", weights, v[:n])


def plain_batch(q, k, v, mask, *, causal, query_mask=None, **options):
    """The plain formula per example with padding cut out; zeros at padded queries."""
    query_mask = mask if query_mask is None else query_mask
    y = np.zeros((*q.shape[:3], v.shape[3]))
    for b in range(len(q)):
        parts = q[b][query_mask[b]], k[b][mask[b]], v[b][mask[b]]
        if len(parts[0]) and len(parts[1]):
            y[b][query_mask[b]] = list(plain_causal(*parts, **options)) if causal else plain(*parts, **options)
    return y


# --- values


VARIANTS = {
    "core": {},
    "time_series": {"source_clamp": None},
    "relu": {"feature_map": "relu", "source_clamp": 10.0},
    "lra_legacy": {"feature_map": "relu", "source_clamp": None, "competition_axis": "heads"},
}


@pytest.mark.parametrize(
    ("variant", "causal"),
    [(name, causal) for name in VARIANTS for causal in (False, True) if not (causal and name == "lra_legacy")],
)
def test_plain_formula_with_padding_cut_out(variant, causal):
    options = VARIANTS[variant]
    arrays = inputs(T, seed=3, scale=2.0)
    mask = np.random.default_rng(1).random((B, T)) > 0.3  # holes, not only a tail
    expected = plain_batch(*arrays, mask, causal=causal, **options)
    for implementation in IMPLEMENTATIONS:
        y = jitted(causal=causal, implementation=implementation, **options)(*arrays, mask=mask)
        assert error(y, expected) <= 2e-6


def test_cross_attention():
    run = jitted(implementation="xla")
    q, k, v = inputs(5, 9)
    mask, query_mask = mask_of([9, 4], 9), mask_of([2, 5], 5)
    expected = plain_batch(q, k, v, mask, causal=False, query_mask=query_mask)
    for implementation in IMPLEMENTATIONS:
        found = jitted(implementation=implementation)(q, k, v, mask=mask, query_mask=query_mask)
        assert error(found, expected) <= 2e-6
    # Without a query mask every query is real where T != S ...
    everyone = np.ones((B, 5), bool)
    expected = plain_batch(q, k, v, mask, causal=False, query_mask=everyone)
    assert error(run(q, k, v, mask=mask), expected) <= 2e-6
    # ... and shares the mask of the sources where T == S, unless it is given.
    k, v, mask = k[:, :5], v[:, :5], mask_of([5, 2], 5)
    for given, meant in ((None, mask), (everyone, everyone)):
        expected = plain_batch(q, k, v, mask, causal=False, query_mask=meant)
        assert error(run(q, k, v, mask=mask, query_mask=given), expected) <= 2e-6


def test_conservation():
    """From the weights W = R A C / I, read off with one-hot values: mean C = 1, ΣÎ = S, and C is a softmax of Ô."""
    sinks, sources = 6, 10
    q, k, _ = inputs(sinks, sources, scale=2.0)
    one_hot = np.broadcast_to(np.eye(sources, dtype=np.float32)[None, :, None], (B, sources, H, sources))
    w = np.asarray(jitted(source_clamp=None)(q, k, one_hot), np.float64).swapaxes(1, 2)  # [B, H, T, S]
    flow = np.einsum("bthk,bshk->bhts", _phi(q, "sigmoid"), _phi(k, "sigmoid"))
    incoming, outgoing = flow.sum(3), flow.sum(2)
    both = w * incoming[..., None] / flow  # R_i C_j
    allocation = both.mean(3)  # as mean C = 1
    conserved_sink = np.log(allocation / (1 - allocation)) * sources / sinks
    np.testing.assert_allclose(conserved_sink, (flow / outgoing[:, :, None]).sum(3), rtol=1e-4)
    np.testing.assert_allclose(conserved_sink.sum(2), sources, rtol=1e-4)
    conserved_source = (flow / incoming[..., None]).sum(2)
    np.testing.assert_allclose(conserved_source.sum(2), sinks, rtol=1e-6)
    competition = both[:, :, 0] / allocation[:, :, :1]
    softmax = np.exp(conserved_source) / np.exp(conserved_source).sum(2, keepdims=True)
    np.testing.assert_allclose(competition, sources * softmax, rtol=1e-4)


EVERYONE = np.ones((B, T), bool)


def test_no_preference_gives_the_mean():
    _, _, v = inputs(T)
    zeros = np.zeros((B, T, H, K), np.float32)
    expected = np.broadcast_to(v.mean(1, keepdims=True), v.shape) / (1 + np.exp(-1.0))
    assert error(jitted(causal=False, implementation="xla")(zeros, zeros, v, mask=EVERYONE), expected) <= 2e-6


def test_order_of_sources_and_heads():
    q, k, v = inputs(T)
    run = functools.partial(jitted(causal=False, implementation="xla"), mask=EVERYONE)
    y = np.asarray(run(q, k, v))
    order = np.random.default_rng(0).permutation(T)
    assert error(run(q, k[:, order], v[:, order]), y) <= 1e-6
    changed = q.copy()
    changed[:, :, 0] += 1
    np.testing.assert_array_equal(np.asarray(run(changed, k, v))[:, :, 1], y[:, :, 1])
    # The competition over heads is what couples them.
    legacy = jitted(causal=False, implementation="xla", **VARIANTS["lra_legacy"])
    y, other = (np.asarray(legacy(x, k, v, mask=EVERYONE)) for x in (q, changed))
    assert np.abs(other - y)[:, :, 1].max() > 1e-3


# --- large flows and decoding


@pytest.mark.parametrize(("causal", "length"), [(False, 130), (True, T)])
def test_flows_too_large_for_an_exponential(causal, length):
    """One key far above the others: Ô is in the hundreds there, and exp(Ô) would overflow float32."""
    q, k, v = inputs(length, scale=0.1)
    k = k - 7
    k[:, 15] += 9
    mask = np.ones((B, length), bool)
    expected = plain_batch(q, k, v, mask, causal=causal, source_clamp=None)
    assert np.isfinite(expected).all()
    assert largest_flow(q, k, causal) > 89  # the logarithm of the largest float32
    for implementation in IMPLEMENTATIONS:
        y = jitted(causal=causal, implementation=implementation, source_clamp=None)(q, k, v, mask=mask)
        # An exponent of 1000 has an absolute rounding error of 6e-5 in float32.
        assert error(y, expected) <= 1e-3


def largest_flow(q, k, causal):
    q, k = _phi(q, "sigmoid"), _phi(k, "sigmoid")
    flow = np.einsum("bthk,bshk->bhts", q, k)
    if not causal:
        return (flow / flow.sum(3, keepdims=True)).sum(2).max()
    n = np.arange(1, q.shape[1] + 1)
    share = np.tril(flow).sum(3, keepdims=True) / n[:, None]
    return (np.triu(flow / share).sum(2) / n).max()


def test_steps_without_clamp():
    arrays, mask = inputs(T, scale=2.0), mask_of([T, 6], T)
    run = jax.jit(functools.partial(flow_attention_step, source_clamp=None))
    state = flow_attention_init(B, H, K, V)
    expected = plain_batch(*arrays, mask, causal=True, source_clamp=None)
    for t in range(T):
        y, state = run(*(x[:, t] for x in arrays), state, mask=mask[:, t])
        assert error(y, expected[:, t]) <= 2e-6
    np.testing.assert_array_equal(state.count, [T, 6])


# --- padding


@DIRECTIONS
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padding_changes_nothing(causal, implementation):
    run = jitted(causal=causal, implementation=implementation)
    arrays = inputs(T)
    mask = mask_of([T, 5], T)
    y = np.asarray(run(*arrays, mask=mask))
    loud = [np.where(mask[..., None, None], x, 1e30).astype(np.float32) for x in arrays]
    np.testing.assert_array_equal(np.asarray(run(*loud, mask=mask)), y)
    assert not y[1, 5:].any()
    if implementation == "xla":
        longer = [np.pad(x, [(0, 0), (0, 17), (0, 0), (0, 0)], constant_values=9) for x in arrays]
        assert error(np.asarray(run(*longer, mask=mask_of([T, 5], T + 17)))[:, :T], y) <= 3e-7


@DIRECTIONS
def test_padding_at_the_front_and_batch_mates(causal):
    run = jitted(causal=causal, implementation="xla")
    arrays = inputs(T)
    mask = np.array(EVERYONE)
    mask[1, :9] = False
    y = np.asarray(run(*arrays, mask=mask))
    assert error(y, plain_batch(*arrays, mask, causal=causal)) <= 2e-6
    others = [np.concatenate([100 * x[1:], x[1:]]) for x in arrays]
    np.testing.assert_array_equal(np.asarray(run(*others, mask=mask))[1], y[1])


# --- errors


def test_errors_say_what_is_wrong():
    q, k, v = inputs(5)
    cases = [
        ({"feature_map": "elu"}, "feature_map='elu'"),
        ({"competition_axis": "batch"}, "competition_axis='batch'"),
        ({"competition_axis": "heads", "causal": True}, "no causal form"),
        ({"source_clamp": 0.0}, "source_clamp=0.0"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"implementation": "cuda"}, "no implementation 'cuda'"),
        ({"return_state": True}, "causal=True"),
        ({"initial_state": flow_attention_init(B, H, K, V)}, "causal=True"),
        ({"initial_state": flow_attention_init(B, H, K), "causal": True}, "`memory` must have shape"),
        ({"mask": np.ones((B, 4), bool)}, r"mask must be bool of shape \(2, 5\)"),
        ({"mask": np.ones((B, 5))}, "mask must be bool"),
        ({"query_mask": np.ones((B, 5), bool), "causal": True}, "not `query_mask`"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            flow_attention(q, k, v, **options)
    for arrays, options, message in (
        ((q[:, :3], k, v), {"causal": True}, "T == S"),
        ((q[..., :2], k, v), {}, r"axes 0 \(B\), 2 \(H\) and 3 \(K\)"),
        ((q, k, v[:, :3]), {}, r"axes 0 \(B\), 1 \(S\) and 2 \(H\)"),
        ((q[0], k, v), {}, "four axes"),
        ((q.astype(int), k, v), {}, "floating point q"),
        ((q[:, :0], k, v), {}, "at least one token"),
    ):
        with pytest.raises(ValueError, match=message):
            flow_attention(*arrays, **options)
