"""The short causal convolution: a NumPy loop, both implementations and every gradient, state, padding, segments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_differences, assert_equal, assert_same, error

from zoo.ops.causal_conv1d import causal_conv1d, causal_conv1d_step
from zoo.ops.segments import segment_runs, segment_starts

B, T, D, W = 2, 9, 3, 4
IMPLEMENTATIONS = ("reference", "xla")


def arrays(length=T, size=W, dtype=np.float64, seed=0):
    """x, w, b, state."""
    rng = np.random.default_rng(seed)
    shapes = ((B, length, D), (size, D), (D,), (B, size - 1, D))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def plain(x, w, b, state, *, activation="silu", mask=None, segment_ids=None):
    """One token at a time: a window that padding leaves alone on the right and fills with zeros elsewhere."""
    y, last = np.zeros_like(x), np.array(state)
    size = len(w)
    for n in range(len(x)):
        real = np.ones(x.shape[1], bool) if mask is None else mask[n]
        rows = np.concatenate([state[n], np.where(real[:, None], x[n], 0)])
        run, before, ends = 0, None, 0
        runs = [0] * (size - 1)
        for t in range(x.shape[1]):
            if real[t] and segment_ids is not None:
                run += before is not None and segment_ids[n, t] != before
                before = segment_ids[n, t]
            runs.append(run)
            if not real[t]:
                continue
            ends = t + 1
            value = b + sum(w[i] * rows[t + i] * (runs[t + i] == run) for i in range(size))
            y[n, t] = value / (1 + np.exp(-value)) if activation else value
        for i in range(size - 1):
            last[n, i] = rows[ends + i] * (runs[ends + i] == run)
    return y, last


@functools.cache
def jitted(**options):
    return jax.jit(functools.partial(causal_conv1d, return_state=True, **options))


@functools.cache
def with_gradients(**options):
    def run(args, given, cotangents):
        def forward(x, w, b, state):
            return causal_conv1d(x, w, b, initial_state=state, return_state=True, **given, **options)

        y, pull = jax.vjp(forward, *args)
        return y, pull(cotangents)

    return jax.jit(run)


MASK = np.array([[1, 1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 1, 1, 1, 0]], bool)
SEGMENTS = np.array([[3, 3, 1, 3, 3, 3, 3, 0, 0], [0, 0, 0, 0, 7, 0, 0, 5, 9]])
GIVEN = {
    "plain": {},
    "mask": {"mask": MASK},
    "segments": {"segment_ids": SEGMENTS},
    "both": {"mask": MASK, "segment_ids": SEGMENTS},
    "nothing real": {"mask": np.zeros_like(MASK)},
}
EVERY_GIVEN = pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN.keys())


@EVERY_GIVEN
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equals_a_plain_loop(given, implementation, compilation_cache):
    with jax.enable_x64(True):
        x, w, b, state = arrays()
        expected = plain(x, w, b, state, **given)
        found = jitted(implementation=implementation)(x, w, b, initial_state=state, **given)
        assert_same(found, expected, 1e-12)
        flipped = {name: value[:, ::-1] for name, value in given.items()}
        y, last = jitted(implementation=implementation, reverse=True)(x[:, ::-1], w, b, initial_state=state, **flipped)
        assert_same((y[:, ::-1], last), expected, 1e-12)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_shorter_than_the_kernel(length, size, compilation_cache):
    with jax.enable_x64(True):
        x, w, b, state = arrays(length, size)
        expected = plain(x, w, b, state, activation=None)
        assert_same(jitted(activation=None)(x, w, b, initial_state=state), expected, 1e-12)


@EVERY_GIVEN
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6), (jnp.bfloat16, 2**-8)])
def test_gradients_equal_the_reference(given, reverse, dtype, tolerance, compilation_cache):
    with jax.enable_x64(dtype is np.float64):
        args = [jnp.asarray(a, dtype) for a in arrays()]
        args[3] = args[3].astype(jnp.promote_types(dtype, np.float32))
        cotangents = (jnp.asarray(arrays(seed=1)[0], dtype), jnp.asarray(arrays(seed=2)[3], args[3].dtype))
        expected, found = (
            with_gradients(reverse=reverse, implementation=name)(args, given, cotangents) for name in IMPLEMENTATIONS
        )
        assert [a.dtype for a in jax.tree.leaves(found)] == [a.dtype for a in jax.tree.leaves(expected)]
        assert found[0][0].dtype == dtype
        assert_same(found, expected, tolerance)


def test_gradients_are_differences_of_the_plain_loop():
    """Those of the reference, which the other is compared with."""
    args, given, weights = arrays(), GIVEN["both"], (arrays(seed=1)[0], arrays(seed=2)[3])
    with jax.enable_x64(True):
        _, gradients = with_gradients(implementation="reference")(args, given, weights)
    names = ("x", "w", "b", "state")
    named = (dict(zip(names, values, strict=True)) for values in (args, gradients))
    assert_differences(functools.partial(plain, **given), *(next(named), weights, next(named)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_causality(implementation, compilation_cache):
    """Other inputs from t on change no output before t, to the bit; the first of them changes the one at t."""
    x, w, b, state = arrays(dtype=np.float32)
    other, run = arrays(dtype=np.float32, seed=1)[0], jitted(implementation=implementation)
    y = np.asarray(run(x, w, b, initial_state=state)[0])
    for t in (1, 4, T - 1):
        found = np.asarray(run(np.concatenate([x[:, :t], other[:, t:]], 1), w, b, initial_state=state)[0])
        np.testing.assert_array_equal(found[:, :t], y[:, :t])
        assert np.abs(found[:, t] - y[:, t]).max() > 1e-3


def test_repeats_to_the_bit_and_maps(compilation_cache):
    """vmap, over inputs and kernels, is a loop."""
    several = [arrays(dtype=np.float32, seed=seed) for seed in (0, 1)]
    weights = [(arrays(dtype=np.float32, seed=seed)[0], arrays(dtype=np.float32, seed=seed)[3]) for seed in (2, 3)]
    run = with_gradients(implementation="xla")
    looped = [run(args, {}, ct) for args, ct in zip(several, weights, strict=True)]
    assert_equal(run(several[0], {}, weights[0]), looped[0])
    args, ct = (jax.tree.map(lambda *xs: np.stack(xs), *trees) for trees in (several, weights))
    found = jax.jit(jax.vmap(lambda args, ct: run(args, {}, ct)))(args, ct)
    for index, expected in enumerate(looped):
        assert_same(jax.tree.map(lambda x, index=index: x[index], found), expected, 2e-6)


@pytest.mark.parametrize("length", [1024, 4096, pytest.param(16384, marks=pytest.mark.slow)])
def test_memory_of_a_training_step(length, compilation_cache):
    """A few copies of the inputs, not one for every tap and stage."""
    x = jax.ShapeDtypeStruct((2, length, 64), jnp.float32)
    shapes = (x, jax.ShapeDtypeStruct((W, 64), jnp.float32), jax.ShapeDtypeStruct((64,), jnp.float32))

    def total(x, w, b):
        return (causal_conv1d(x, w, b) ** 2).sum()

    memory = jax.jit(jax.grad(total, (0, 1, 2))).lower(*shapes).compile().memory_analysis()
    copies = memory.temp_size_in_bytes / (4 * 2 * length * 64)
    assert copies <= 4, f"{copies:.1f} arrays [B, T, D]"


def test_without_bias_and_activation(compilation_cache):
    x, w, _, _ = arrays(dtype=np.float32)

    def run(x, w, implementation):
        y, pull = jax.vjp(lambda x, w: causal_conv1d(x, w, activation=None, implementation=implementation), x, w)
        return y, pull(jnp.cos(y))

    assert_same(run(x, w, "xla"), run(x, w, "reference"), 2e-6)
    full = jax.lax.conv_general_dilated(
        x.swapaxes(1, 2), w.T[:, None], (1,), [(W - 1, 0)], feature_group_count=D, precision="highest"
    )
    assert error(causal_conv1d(x, w, activation=None), full.swapaxes(1, 2)) <= 2e-6


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_parts_and_steps_equal_the_whole(cut, compilation_cache):
    x, w, b, state = arrays(dtype=np.float32)
    whole = jitted()(x, w, b, initial_state=state)
    first, middle = jitted()(x[:, :cut], w, b, initial_state=state)
    second, last = jitted()(x[:, cut:], w, b, initial_state=middle)
    assert_same((np.concatenate([first, second], 1), last), whole, 1e-6)
    steps = []
    for t in range(T):
        y_t, state = causal_conv1d_step(state, x[:, t], w, b)
        steps.append(y_t)
    assert_same((np.stack(steps, 1), state), whole, 1e-6)


def test_a_masked_step_changes_nothing():
    x, w, b, state = arrays(dtype=np.float32)
    y, new = causal_conv1d_step(state, x[:, 0], w, b, mask=np.array([True, False]))
    expected, moved = causal_conv1d_step(state, x[:, 0], w, b)
    np.testing.assert_array_equal(y, np.stack([expected[0], np.zeros(D)]))
    np.testing.assert_array_equal(new, np.stack([moved[0], state[1]]))


def test_padding_means_nothing(compilation_cache):
    """Right padding: outputs and state are those of the tokens alone, with anything in the padding."""
    x, w, b, state = arrays(dtype=np.float32)
    mask = np.arange(T) < np.array([[6], [2]])
    padded = np.where(mask[..., None], x, np.nan)
    y, last = jitted()(padded, w, b, initial_state=state, mask=mask)
    for n, length in enumerate((6, 2)):
        alone = jitted()(x[:, :length], w, b, initial_state=state)
        assert_same((y[n, :length], last[n]), (alone[0][n], alone[1][n]), 1e-6)
        assert not np.asarray(y[n, length:]).any()


def test_segments_equal_separate_runs(compilation_cache):
    x, w, b, state = arrays(dtype=np.float32)
    ids = np.repeat([[5, 1, 5]], [2, 4, 3], axis=1).repeat(B, 0)
    y, last = jitted()(x, w, b, initial_state=state, segment_ids=ids)
    outputs, carried = [], state
    for part in (x[:, :2], x[:, 2:6], x[:, 6:]):
        out, end = jitted()(part, w, b, initial_state=carried)
        outputs.append(out)
        carried = np.zeros_like(state)
    assert_same((y, last), (np.concatenate(outputs, 1), end), 1e-6)


def test_segment_starts():
    ids = np.array([[4, 4, 9, 2, 2, 4]])
    mask = np.array([[0, 1, 0, 1, 1, 1]], bool)
    assert segment_starts(ids)[0].tolist() == [False, False, True, True, False, True]
    assert segment_starts(ids, mask)[0].tolist() == [False, False, False, True, False, True]
    assert segment_starts(ids, mask, reverse=True)[0].tolist() == [False, True, False, False, True, False]
    assert segment_runs(ids)[0].tolist() == [0, 0, 1, 2, 2, 3]
    assert segment_runs(ids, mask, reverse=True)[0].tolist() == [2, 2, 1, 1, 1, 0]


def test_errors_say_what_is_wrong():
    x, w, b, state = arrays(dtype=np.float32)
    for args, options, message in (
        ((x[0], w), {}, r"x \[B, T, D\]"),
        ((x, w[:, :2]), {}, r"axis 1 \(D\) of w must be 3"),
        ((x[:, :0], w), {}, "axis 1 of x is 0"),
        ((x, w, b[:2]), {}, r"b \[D\] = \(3,\)"),
        ((x, w), {"initial_state": state[:, 1:]}, r"initial_state \[B, W - 1, D\] = \(2, 3, 3\)"),
        ((x, w), {"mask": MASK[:, 1:]}, r"mask \[B, T\]"),
        ((x, w), {"segment_ids": SEGMENTS[:1]}, r"segment_ids \[B, T\]"),
        ((x, w), {"activation": "relu"}, "activation 'relu'"),
        ((x, w), {"implementation": "cuda"}, "implementation 'cuda'"),
    ):
        with pytest.raises(ValueError, match=message):
            causal_conv1d(*args, **options)
    for args, options, message in (
        ((x.astype(int), w), {}, "floating point x"),
        ((x, w), {"mask": MASK.astype(int)}, "mask"),
        ((x, w), {"segment_ids": MASK}, "segment_ids"),
    ):
        with pytest.raises(TypeError, match=message):
            causal_conv1d(*args, **options)
    with pytest.raises(ValueError, match=r"x of two axes \[B, D\]"):
        causal_conv1d_step(state, x, w)
