"""Gated linear attention: its values, by a NumPy loop, and what follows from its equations, in every form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_differences, assert_same, error

from zoo.ops.gated_linear_attention import gated_linear_attention, gated_linear_attention_step
from zoo.ops.selective_scan import selective_scan

B, T, G, H, K, V, CHUNK, SCALE = 2, 21, 1, 2, 3, 5, 8, 0.6
KINDS = ("none", "constant", "head", "channel")
IMPLEMENTATIONS = ("reference", "xla_sequential", "xla_chunked")
EVERY = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
# Right padding with a hole; padding on the left. The ids of padding mean nothing.
MASK = np.stack([(np.arange(T) < 17) & (np.arange(T) != 5), np.arange(T) >= 3])
SEGMENTS = np.array([[4] * 3 + [1] * 6 + [4] * 8 + [0] * 4, [9] * 12 + [2] * 9], np.int32)


@pytest.fixture(autouse=True)
def light_compilation(compilation_cache):
    """Halves the time to compile; what is tested does not depend on XLA's optimisations."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def operands(kind, length=T, seed=0, dtype=np.float64, groups=G, heads=H):
    """All arguments that are arrays of floats, by name; decays from hardly any to complete."""
    rng = np.random.default_rng(seed)
    sizes = {"none": None, "constant": (heads,), "head": (B, length, heads), "channel": (B, length, heads, K)}
    found = {name: rng.standard_normal((B, length, groups, K)) for name in "qk"}
    found["v"] = rng.standard_normal((B, length, heads, V))
    found["initial_state"] = rng.standard_normal((B, heads, K, V))
    size = sizes[kind]
    found["log_decay"] = None if size is None else -(10.0 ** rng.uniform(-3, 1, size))
    return {name: x if x is None else x.astype(dtype) for name, x in found.items()}


@functools.cache
def jitted(**options):
    run = functools.partial(gated_linear_attention, scale=SCALE, chunk_size=CHUNK, return_state=True, **options)
    return jax.jit(run)


def plain(q, k, v, log_decay, initial_state, mask=None, segment_ids=None):
    """The recurrence, one example, token and head after the other."""
    batch, length, heads, _ = v.shape
    y, states = np.zeros(v.shape), np.array(initial_state, np.float64)
    if log_decay is None:
        log_decay = np.zeros(heads)
    decays = np.exp(np.broadcast_to(log_decay, (batch, length, heads)) if log_decay.ndim < 4 else log_decay)
    for n in range(batch):
        before = None
        for t in range(length):
            if mask is not None and not mask[n, t]:
                continue
            new = segment_ids is not None and before not in (None, segment_ids[n, t])
            before = None if segment_ids is None else segment_ids[n, t]
            for h in range(heads):
                group = h * q.shape[2] // heads
                state = states[n, h] * (0 if new else decays[n, t, h].reshape(-1, 1))
                states[n, h] = state + np.outer(k[n, t, group], v[n, t, h])
                y[n, t, h] = SCALE * q[n, t, group] @ states[n, h]
    return y, states


def flipped(arrays):
    """The same tokens from the last to the first."""
    tokens = {name: x if x is None or x.ndim == 1 else x[:, ::-1] for name, x in arrays.items()}
    return tokens | {"initial_state": arrays["initial_state"]}


# --- values


@EVERY
@EVERY_KIND
def test_numpy_loop(kind, implementation):
    """With padding, holes, packed sequences and a state before them."""
    arrays = operands(kind)
    with jax.enable_x64(True):
        found = jitted(implementation=implementation)(**arrays, mask=MASK, segment_ids=SEGMENTS)
        assert_same(found, plain(**arrays, mask=MASK, segment_ids=SEGMENTS), 1e-12)


@EVERY
@pytest.mark.parametrize("kind", ["head", "channel"])
def test_reverse(kind, implementation):
    arrays = operands(kind)
    with jax.enable_x64(True):
        found = jitted(implementation=implementation, reverse=True)(**arrays, mask=MASK, segment_ids=SEGMENTS)
        y, state = plain(**flipped(arrays), mask=MASK[:, ::-1], segment_ids=SEGMENTS[:, ::-1])
        assert_same(found, (y[:, ::-1], state), 1e-12)


@EVERY
@pytest.mark.parametrize(
    ("kind", "length"), [("none", 1), ("constant", 7), ("head", 8), ("channel", 1), ("channel", 9)]
)
def test_lengths_in_single_precision(kind, length, implementation):
    """Shorter than a chunk, just a chunk, one token more; nothing masked; heads with queries of their own."""
    arrays = operands(kind, length, dtype=np.float32, groups=H)
    assert_same(jitted(implementation=implementation)(**arrays), plain(**arrays), 2e-6)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_are_shared_queries_and_keys(groups):
    arrays = operands("head", groups=groups, heads=4)
    with jax.enable_x64(True):
        for implementation in IMPLEMENTATIONS:
            found = jitted(implementation=implementation)(**arrays)
            assert_same(found, plain(**arrays), 1e-12)


@EVERY_KIND
def test_gradients_are_differences_of_the_plain_loop(kind):
    """Those of the reference, which the others are compared with."""
    given = {name: x for name, x in operands(kind, 9).items() if x is not None}
    marks = {"mask": MASK[:, :9], "segment_ids": SEGMENTS[:, :9]}
    rng = np.random.default_rng(1)
    weights = rng.standard_normal(given["v"].shape), rng.standard_normal(given["initial_state"].shape)
    run = functools.partial(gated_linear_attention, scale=SCALE, return_state=True, implementation="reference", **marks)
    with jax.enable_x64(True):
        gradients = jax.jit(lambda given, weights: jax.vjp(lambda x: run(**x), given)[1](weights)[0])(given, weights)
    assert_differences(functools.partial(plain, **{"log_decay": None} | marks), given, weights, gradients)


@EVERY
@EVERY_KIND
def test_causality(kind, implementation):
    """Other tokens from t on change no output before t; the first of them changes the one at t."""
    given, other = operands(kind, dtype=np.float32), operands(kind, seed=1, dtype=np.float32)
    run = jitted(implementation=implementation)
    y = np.asarray(run(**given)[0])
    for t in (1, 8, 20):
        mixed = {
            name: np.concatenate([x[:, :t], other[name][:, t:]], 1) if x is not None and x.shape[:2] == (B, T) else x
            for name, x in given.items()
        }
        found = np.asarray(run(**mixed)[0])
        assert error(found[:, :t], y[:, :t]) <= 1e-6
        assert np.abs(found[:, t] - y[:, t]).max() > 1e-3


# --- identities


@EVERY
def test_no_decay_is_causal_attention_without_softmax(implementation):
    arrays = operands("none", groups=H)
    scores = np.tril(SCALE * np.einsum("bihk,bjhk->bhij", arrays["q"], arrays["k"]))
    past = SCALE * np.einsum("bthk,bhkv->bthv", arrays["q"], arrays["initial_state"])
    expected = np.einsum("bhij,bjhv->bihv", scores, arrays["v"]) + past
    with jax.enable_x64(True):
        y, state = jitted(implementation=implementation)(**arrays)
        assert error(y, expected) <= 1e-12
        written = np.einsum("bthk,bthv->bhkv", arrays["k"], arrays["v"])
        assert error(state, arrays["initial_state"] + written) <= 1e-12


@EVERY
def test_kinds_of_decay_include_each_other(implementation):
    run, tokens = jitted(implementation=implementation), (B, T, H)
    arrays = operands("constant")
    constant = arrays["log_decay"]
    per_head = operands("head") | {"log_decay": np.broadcast_to(constant, tokens)}
    per_channel = operands("channel") | {"log_decay": np.broadcast_to(constant[:, None], (*tokens, K))}
    with jax.enable_x64(True):
        expected = run(**arrays)
        assert_same(run(**per_head), expected, 1e-13)
        assert_same(run(**per_channel), expected, 1e-13)
        nothing = run(**operands("none"))
        assert_same(run(**(arrays | {"log_decay": np.zeros(H)})), nothing, 1e-13)


@EVERY
@pytest.mark.parametrize("kind", ["head", "channel"])
def test_complete_decay_is_a_new_sequence(kind, implementation):
    arrays = operands(kind)
    ids = np.broadcast_to(np.arange(T) >= 6, (B, T)).astype(int)
    dropped = arrays["log_decay"].copy()
    dropped[:, 6] = -np.inf
    run = jitted(implementation=implementation)
    with jax.enable_x64(True):
        expected = run(**arrays, segment_ids=ids)
        assert_same(run(**(arrays | {"log_decay": dropped})), expected, 1e-13)


def test_state_space_duality():
    """With one decay for all channels the selective scan of Mamba is this recurrence (Mamba-2)."""
    rng = np.random.default_rng(0)
    u, b, c = (rng.standard_normal((B, T, size)) for size in (V, K, K))
    dt, a = rng.uniform(0.1, 1, (B, T, 1)), -1.7
    with jax.enable_x64(True):
        steps, rates = np.broadcast_to(dt, u.shape), np.full((V, K), a)
        expected = selective_scan(u, steps, rates, b, c, dt_softplus=False)
        values = (dt * u)[:, :, None]
        found = gated_linear_attention(c[:, :, None], b[:, :, None], values, dt * a, scale=1.0, chunk_size=CHUNK)
        assert error(found[:, :, 0], expected) <= 1e-13


# --- state


@EVERY
@EVERY_KIND
def test_steps_and_parts_equal_the_whole(kind, implementation):
    arrays = operands(kind)
    tokens = {name: x for name, x in arrays.items() if name != "initial_state"}

    def part(begin, end):
        cut = {name: x if x is None or x.ndim == 1 else x[:, begin:end] for name, x in tokens.items()}
        return cut | {"mask": MASK[:, begin:end]}

    @jax.jit
    def stepped(state, now):
        return gated_linear_attention_step(state, **now, scale=SCALE)

    run = jitted(implementation=implementation)
    with jax.enable_x64(True):
        whole = run(**arrays, mask=MASK)
        first, state = run(**part(0, 10), initial_state=arrays["initial_state"])
        second, state = run(**part(10, T), initial_state=state)
        assert_same((np.concatenate([first, second], 1), state), whole, 1e-13)
        outputs, state = [], arrays["initial_state"]
        for t in range(T):
            y, state = stepped(state, jax.tree.map(lambda x: x if x.ndim == 1 else x[:, 0], part(t, t + 1)))
            outputs.append(y)
        assert_same((np.stack(outputs, 1), state), whole, 1e-13)


@EVERY
@EVERY_KIND
def test_padding(kind, implementation):
    """Neither content nor amount of padding matters; a state ends at the last real token."""
    arrays = operands(kind, dtype=np.float32)
    run = jitted(implementation=implementation)
    y, state = run(**arrays, mask=MASK)
    loud = dict(arrays)
    for name in ("q", "k", "v", *(["log_decay"] if kind in ("head", "channel") else [])):
        missing = MASK.reshape(MASK.shape + (1,) * (arrays[name].ndim - 2))
        loud[name] = np.where(missing, arrays[name], np.nan).astype(np.float32)
    other, other_state = run(**loud, mask=MASK)
    np.testing.assert_array_equal(other, y)
    np.testing.assert_array_equal(other_state, state)
    assert not np.asarray(y)[~MASK].any()
    real = {name: x if x is None or x.ndim == 1 else x[1:, 3:] for name, x in arrays.items()}
    real["initial_state"] = arrays["initial_state"][1:]
    cut, cut_state = run(**real)
    assert error(y[1:, 3:], cut) <= 1e-6
    assert error(state[1:], cut_state) <= 1e-6


@EVERY
def test_packed_sequences_are_separate_runs(implementation):
    arrays = operands("channel")
    run = jitted(implementation=implementation)
    with jax.enable_x64(True):
        y, state = run(**arrays, segment_ids=np.repeat([[0, 1, 0]], B, 0).repeat([4, 9, 8], 1))
        start = arrays["initial_state"]
        for begin, end in ((0, 4), (4, 13), (13, 21)):
            cut = {name: x[:, begin:end] for name, x in arrays.items() if name != "initial_state"}
            expected, last = run(**cut, initial_state=start)
            assert error(y[:, begin:end], expected) <= 1e-13
            start = np.zeros_like(start)
        assert error(state, last) <= 1e-13


def test_outputs_are_of_the_values_dtype_and_states_are_not():
    arrays = operands("head", dtype=np.float32)
    tokens = {name: jnp.asarray(x, jnp.bfloat16) for name, x in arrays.items() if name != "initial_state"}
    for implementation in IMPLEMENTATIONS:
        y, state = jitted(implementation=implementation)(**tokens)
        assert y.dtype == jnp.bfloat16
        assert state.dtype == jnp.float32
    step = {name: x[:, 0] for name, x in tokens.items()}
    y, state = gated_linear_attention_step(arrays["initial_state"], **step)
    assert y.dtype == jnp.bfloat16
    assert state.dtype == jnp.float32


# --- errors


def test_errors_say_what_is_wrong():
    good = operands("head", dtype=np.float32, groups=2, heads=4)
    q, k, v, decay = good["q"], good["k"], good["v"], good["log_decay"]
    for wrong, message in (
        ({"q": q[0]}, r"takes q \[B, T, G, K\]; its shape is \(21, 2, 3\)"),
        ({"k": k[:, :5]}, r"T = 21; axis 1 \(T\) of k is 5"),
        ({"k": k[..., :2]}, r"K = 3; axis 3 \(K\) of k is 2"),
        ({"v": v[:, :, :3], "log_decay": None, "initial_state": None}, "H = 3, must be a multiple .* G = 2"),
        ({"log_decay": decay[..., :1]}, r"H = 4; axis 2 \(H\) of log_decay is 1"),
        ({"log_decay": decay[0]}, r"takes log_decay \[H\] or \[B, T, H\] or \[B, T, H, K\]; its shape is \(21, 4\)"),
        ({"initial_state": good["initial_state"][:, :, :2]}, r"axis 2 \(K\) of initial_state is 2"),
        ({"mask": MASK[:, 1:]}, r"axis 1 \(T\) of mask is 20"),
        ({"q": q[:, :0], "k": k[:, :0], "v": v[:, :0], "log_decay": None}, "axis T is 0"),
        ({"chunk_size": 0}, "chunk_size of at least 1; it is 0"),
        ({"implementation": "cuda"}, "no implementation 'cuda'"),
    ):
        with pytest.raises(ValueError, match=message):
            gated_linear_attention(**(good | wrong))
    for wrong, message in (
        ({"v": v.astype(int)}, "v .* of floating point numbers; its dtype is int"),
        ({"mask": MASK.astype(int)}, "mask .* of booleans, True at real tokens; its dtype is int"),
        ({"segment_ids": SEGMENTS.astype(np.float32)}, "segment_ids .* of integers; its dtype is float32"),
    ):
        with pytest.raises(TypeError, match=message):
            gated_linear_attention(**(good | wrong))
    state = good["initial_state"]
    with pytest.raises(ValueError, match=r"step takes q \[B, G, K\]; its shape is \(2, 21, 2, 3\)"):
        gated_linear_attention_step(state, q, k, v)
    with pytest.raises(ValueError, match=r"V = 5; axis 3 \(V\) of state is 2"):
        gated_linear_attention_step(state[..., :2], q[:, 0], k[:, 0], v[:, 0])
