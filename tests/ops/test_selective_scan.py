"""The selective scan: its values, by a NumPy loop, and what follows from its equations, for every implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_differences, assert_equal, assert_same, error

from zoo.ops.selective_scan import fast_math, selective_scan, selective_scan_step

B, T, E, N = 2, 21, 4, 3
IMPLEMENTATIONS = ("reference", "xla_sequential", "xla_chunked")
EVERY = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
# Right padding with a hole; padding on the left. The ids of padding mean nothing.
MASK = np.stack([(np.arange(T) < 17) & (np.arange(T) != 5), np.arange(T) >= 3])
SEGMENTS = np.stack([[4] * 3 + [1] * 6 + [4] * 8 + [0] * 4, [9] * 12 + [2] * 9])


@pytest.fixture(autouse=True)
def light_compilation(compilation_cache):
    """Halves the time to compile; what is tested does not depend on XLA's optimisations."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def operands(length=T, seed=0, dtype=np.float64, batch=B):
    """All arguments that are arrays of floats, by name."""
    rng = np.random.default_rng(seed)
    tokens, narrow = (batch, length, E), (batch, length, N)
    sizes = {"u": tokens, "dt": tokens, "B": narrow, "C": narrow, "D": (E,), "z": tokens, "dt_bias": (E,)}
    found = {name: rng.standard_normal(size).astype(dtype) for name, size in sizes.items()}
    found["A"] = -np.exp(rng.standard_normal((E, N))).astype(dtype)
    found["initial_state"] = rng.standard_normal((batch, N, E)).astype(dtype)
    return found


@functools.cache
def jitted(**options):
    return jax.jit(functools.partial(selective_scan, return_state=True, **options))


def plain(u, dt, A, B, C, D, z, dt_bias, initial_state, mask=None, segment_ids=None):
    """One number after the other."""
    y, state = np.zeros_like(u), np.array(initial_state)
    for n, (row, h) in enumerate(zip(u, state, strict=True)):
        before = None
        for t in range(len(row)):
            if mask is not None and not mask[n, t]:
                continue
            if segment_ids is not None:
                h[...] = h if before in (None, segment_ids[n, t]) else 0
                before = segment_ids[n, t]
            for e in range(row.shape[-1]):
                delta = np.log1p(np.exp(dt[n, t, e] + dt_bias[e]))
                total = 0.0
                for k in range(A.shape[1]):
                    h[k, e] = np.exp(delta * A[e, k]) * h[k, e] + delta * u[n, t, e] * B[n, t, k]
                    total += C[n, t, k] * h[k, e]
                gate = z[n, t, e] / (1 + np.exp(-z[n, t, e]))
                y[n, t, e] = (total + D[e] * u[n, t, e]) * gate
    return y, state


@EVERY
@pytest.mark.parametrize("marks", [{}, {"mask": MASK, "segment_ids": SEGMENTS}], ids=["plain", "marked"])
def test_equals_a_plain_loop(implementation, marks):
    with jax.enable_x64(True):
        given = operands()
        expected = plain(**given, **marks)
        assert_same(jitted(implementation=implementation)(**given, **marks), expected, 1e-12)
        over_time = ("u", "dt", "B", "C", "z", "mask", "segment_ids")
        flipped = {name: x[:, ::-1] if name in over_time else x for name, x in (given | marks).items()}
        y, state = jitted(implementation=implementation, reverse=True)(**flipped)
        assert_same((y[:, ::-1], state), expected, 1e-12)


def test_gradients_are_differences_of_the_plain_loop():
    """Those of the reference, which the others are compared with."""
    given = operands(9)
    marks = {"mask": MASK[:, :9], "segment_ids": SEGMENTS[:, :9]}
    rng = np.random.default_rng(1)
    weights = rng.standard_normal(given["u"].shape), rng.standard_normal(given["initial_state"].shape)
    run = functools.partial(selective_scan, return_state=True, implementation="reference", **marks)
    with jax.enable_x64(True):
        gradients = jax.jit(lambda given, weights: jax.vjp(lambda x: run(**x), given)[1](weights)[0])(given, weights)
    assert_differences(functools.partial(plain, **marks), given, weights, gradients)


@EVERY
@pytest.mark.parametrize("length", [1, 2, 5])
def test_short_sequences_without_what_is_optional(implementation, length):
    with jax.enable_x64(True):
        given = operands(length, seed=length)
        nothing = {"D": np.zeros(E), "dt_bias": np.zeros(E), "initial_state": np.zeros((B, N, E))}
        y, state = plain(**given | nothing | {"z": np.full((B, length, E), 1.0)})
        bare = {name: given[name] for name in ("u", "dt", "A", "B", "C")}
        assert_same(jitted(implementation=implementation)(**bare), (y * (1 + np.exp(-1)), state), 1e-12)


@functools.cache
def stepped():
    def run(given, mask):
        state = given["initial_state"]
        fixed = {name: given[name] for name in ("A", "D", "dt_bias")}
        over_time = {name: jnp.moveaxis(given[name], 1, 0) for name in ("u", "dt", "B", "C", "z")}

        def one(state, now):
            token, real = now
            y, state = selective_scan_step(state, **token, **fixed, mask=real)
            return state, y

        state, y = jax.lax.scan(one, state, (over_time, mask.T))
        return jnp.moveaxis(y, 0, 1), state

    return jax.jit(run)


def test_steps_equal_the_whole():
    with jax.enable_x64(True):
        given = operands()
        assert_same(stepped()(given, MASK), plain(**given, mask=MASK), 1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_groups_are_channels_with_their_own_b_and_c(groups):
    """Also in a step. Group g is the scan of its channels alone."""
    with jax.enable_x64(True):
        given, rng = operands(), np.random.default_rng(5)
        given |= {name: rng.standard_normal((B, T, groups, N)) for name in ("B", "C")}
        marks = {"mask": MASK, "segment_ids": SEGMENTS}
        y, state = jitted(implementation="xla_sequential")(**given, **marks)
        assert_same(jitted(implementation="reference")(**given, **marks), (y, state), 1e-12)
        for g in range(groups):
            own = slice(g * E // groups, (g + 1) * E // groups)
            part = {name: given[name][..., own] for name in ("u", "dt", "z", "D", "dt_bias", "initial_state")}
            part |= {"A": given["A"][own], "B": given["B"][:, :, g], "C": given["C"][:, :, g]}
            assert_same((y[..., own], state[..., own]), plain(**part, **marks), 1e-12)
        assert_same(stepped()(given, MASK), jitted(implementation="reference")(**given, mask=MASK), 1e-12)


@EVERY
def test_parts_with_the_state_between_equal_the_whole(implementation):
    given = operands(dtype=np.float32)
    whole = jitted(implementation=implementation)(**given)
    outputs, state = [], given["initial_state"]
    for start, end in ((0, 4), (4, 5), (5, T)):
        part = {name: x[:, start:end] if x.shape[:2] == (B, T) else x for name, x in given.items()}
        y, state = jitted(implementation=implementation)(**part | {"initial_state": state})
        outputs.append(y)
    assert_same((np.concatenate(outputs, 1), state), whole, 2e-6)


@EVERY
def test_segments_equal_separate_runs(implementation):
    given = operands(dtype=np.float32)
    ids = np.array([[3] * 6 + [8] * 1 + [3] * 14] * B)
    y, state = jitted(implementation=implementation)(**given, segment_ids=ids)
    outputs, carried = [], given["initial_state"]
    for start, end in ((0, 6), (6, 7), (7, T)):
        part = {name: x[:, start:end] if x.shape[:2] == (B, T) else x for name, x in given.items()}
        out, last = jitted(implementation=implementation)(**part | {"initial_state": carried})
        outputs.append(out)
        carried = np.zeros_like(carried)
    assert_same((y, state), (np.concatenate(outputs, 1), last), 2e-6)


@EVERY
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_means_nothing(implementation, reverse):
    """Outputs and state are those of the tokens alone, whatever the padding holds and however much there is."""
    given, run = operands(dtype=np.float32), jitted(implementation=implementation, reverse=reverse)
    over_time = ("u", "dt", "B", "C", "z")
    mask = np.arange(T + 12) < 9
    padded = dict(given)
    for name in over_time:
        padding = np.full((B, 12, *given[name].shape[2:]), np.nan, np.float32)
        padded[name] = np.where(mask[None, :, None], np.concatenate([given[name], padding], 1), np.nan)
    y, state = run(**padded, mask=np.stack([mask] * B))
    alone, last = run(**{name: x[:, :9] if name in over_time else x for name, x in given.items()})
    assert_same((y[:, :9], state), (alone, last), 2e-6)
    assert not np.asarray(y[:, 9:]).any()


@EVERY
@pytest.mark.parametrize("content", [1e4, np.nan])
def test_content_of_padding_means_nothing(implementation, content):
    """On the left and in holes too: nothing changes to the bit."""
    given, run = operands(dtype=np.float32), jitted(implementation=implementation)
    other = {
        name: np.where(MASK[..., None], x, content).astype(x.dtype) if x.shape[:2] == (B, T) else x
        for name, x in given.items()
    }
    found = run(**other, mask=MASK)
    assert_equal(found, run(**given, mask=MASK))
    assert not np.asarray(found[0])[~MASK].any()


@EVERY
def test_no_time_passes_where_delta_is_zero(implementation):
    """softplus(-inf) = 0: the state stays, and the output reads it and the skip."""
    given = operands(dtype=np.float32)
    given["dt"] = np.full_like(given["dt"], -np.inf)
    y, state = jitted(implementation=implementation)(**given)
    np.testing.assert_array_equal(state, given["initial_state"])
    read = np.einsum("btn,bne->bte", given["C"], given["initial_state"]) + given["D"] * given["u"]
    assert error(y, read * given["z"] / (1 + np.exp(-given["z"]))) <= 2e-6


@EVERY
def test_no_decay_is_a_running_sum(implementation):
    """A = 0, delta = 1, no softplus: h_t = Σ u_s B_s, exactly as many terms as tokens."""
    given = operands(length=40, dtype=np.float32)
    bare = {"u": given["u"], "dt": np.ones((B, 40, E), np.float32), "A": np.zeros((E, N), np.float32)}
    y, state = jitted(implementation=implementation, dt_softplus=False)(**bare, B=given["B"], C=given["C"])
    sums = np.cumsum(np.einsum("bte,btn->btne", given["u"].astype(np.float64), given["B"]), 1)
    assert_same((y, state), (np.einsum("btne,btn->bte", sums, given["C"]), sums[:, -1]), 2e-6)


def test_equal_rates_are_gated_linear_attention():
    """With one rate and one delta for all channels of a head, the scan is Mamba-2's recurrence."""
    from zoo.ops.gated_linear_attention import gated_linear_attention

    given = operands(dtype=np.float32)
    delta = np.abs(given["dt"][..., :1])
    dt, A = np.repeat(delta, E, 2), np.full((E, N), -0.7, np.float32)
    y, state = jitted(dt_softplus=False)(given["u"], dt, A, given["B"], given["C"], D=given["D"])
    v = (delta * given["u"])[:, :, None]
    attended, memory = gated_linear_attention(
        given["C"][:, :, None], given["B"][:, :, None], v, -0.7 * delta, scale=1.0, return_state=True
    )
    assert_same((y - given["D"] * given["u"], state), (attended[:, :, 0], memory[:, 0]), 2e-6)


@EVERY
def test_causality(implementation):
    """Other inputs from t on change no output before t; the first of them changes the one at t."""
    given = operands(dtype=np.float32)
    other = operands(dtype=np.float32, seed=1)
    run = jitted(implementation=implementation)
    y = np.asarray(run(**given)[0])
    for t in (1, 16, 20):
        edited = {
            name: np.concatenate([x[:, :t], other[name][:, t:]], 1) if x.shape[:2] == (B, T) else x
            for name, x in given.items()
        }
        changed = np.asarray(run(**edited)[0])
        assert error(changed[:, :t], y[:, :t]) <= 1e-6
        assert np.abs(changed[:, t] - y[:, t]).max() > 1e-3


def test_power_of_two():
    x = np.concatenate([np.linspace(-125, 126, 100_001), np.linspace(-0.6, 0.6, 10_001)]).astype(np.float32)
    exact = np.exp2(x.astype(np.float64))
    assert np.max(np.abs(np.asarray(jax.jit(fast_math.power_of_two)(x)) / exact - 1)) <= 1.3e-7
    # The distance from 1 of a slow decay, which a long product amplifies, is right as far as float32 has digits there.
    slow = -np.geomspace(1e-6, 1e-1, 1001).astype(np.float32)
    left = 1 - np.asarray(jax.jit(fast_math.power_of_two)(slow), np.float64)
    assert np.abs(left - (1 - np.exp2(slow.astype(np.float64)))).max() <= 3.1e-8
    ends = jax.jit(fast_math.power_of_two)(np.array([-np.inf, -1e30, -127, 0, 1, 128, 1e30, np.nan], np.float32))
    np.testing.assert_array_equal(ends, np.array([0, 0, 0, 1, 2, np.inf, np.inf, np.nan], np.float32))


def test_softplus():
    x = np.concatenate([np.linspace(-80, 80, 100_001), np.linspace(-1, 1, 10_001)]).astype(np.float32)
    found = np.asarray(jax.jit(fast_math.softplus)(x), np.float64)
    assert np.max(np.abs(found / np.log1p(np.exp(x.astype(np.float64))) - 1)) <= 3e-7
    ends = jax.jit(fast_math.softplus)(np.array([-np.inf, -1e30, 1e30, np.inf, np.nan], np.float32))
    np.testing.assert_array_equal(ends, np.array([0, 0, 1e30, np.inf, np.nan], np.float32))


def test_errors_say_what_is_wrong():
    given = operands(dtype=np.float32)
    wrong = {
        "u": (given["u"][0], r"u \[B, T, E\].*\(21, 4\)"),
        "dt": (given["dt"][:, 1:], r"dt \[B, T, E\].*axis 1 \(T\) is 20 instead of 21"),
        "A": (given["A"][1:], r"A \[E, N\].*axis 0 \(E\) is 3 instead of 4"),
        "B": (given["B"][..., 1:], r"B \[B, T, N\].*axis 2 \(N\) is 2 instead of 3"),
        "C": (given["C"][:, :, None], r"C \[B, T, N\].*4 axes"),
        "D": (given["D"][1:], r"D \[E\].*axis 0 \(E\) is 3 instead of 4"),
        "z": (given["z"][:1], r"z \[B, T, E\].*axis 0 \(B\) is 1 instead of 2"),
        "dt_bias": (given["dt_bias"][None], r"dt_bias \[E\].*2 axes"),
        "initial_state": (given["initial_state"].swapaxes(1, 2), r"initial_state \[B, N, E\].*axis 1 \(N\) is 4"),
        "mask": (MASK[:, 1:], r"mask \[B, T\].*axis 1 \(T\) is 20"),
        "segment_ids": (SEGMENTS[0], r"segment_ids \[B, T\].*1 axes"),
        "implementation": ("cuda", "implementation 'cuda'"),
        "chunk_size": (0, "chunk_size >= 1; it is 0"),
    }
    for name, (value, message) in wrong.items():
        with pytest.raises(ValueError, match=message):
            selective_scan(**given | {name: value})
    three = {name: np.zeros((B, T, 3, N), np.float32) for name in ("B", "C")}
    with pytest.raises(ValueError, match="G of B is 3, E is 4"):
        selective_scan(**given | three)
    with pytest.raises(ValueError, match="needs a token"):
        selective_scan(**{name: x[:, :0] if x.shape[:2] == (B, T) else x for name, x in given.items()})
    for name, value in {"u": given["u"].astype(int), "mask": MASK.astype(int), "segment_ids": MASK}.items():
        with pytest.raises(TypeError, match=name):
            selective_scan(**given | {name: value})
    token = {name: x[:, 0] if x.shape[:2] == (B, T) else x for name, x in given.items() if name != "initial_state"}
    with pytest.raises(ValueError, match=r"selective_scan_step takes u, dt \[B, E\]"):
        selective_scan_step(given["initial_state"], **token | {"u": given["u"]})
    with pytest.raises(ValueError, match=r"z \[B, E\].*axis 1 \(E\) is 3"):
        selective_scan_step(given["initial_state"], **token | {"z": token["z"][:, 1:]})
