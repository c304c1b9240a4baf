"""The gated delta rule: its values, by a NumPy loop, and what follows from its equations, for every implementation.

The authors' arrays are compared in tests/test_parity.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_differences, assert_equal, assert_same, error

from zoo.ops.gated_delta_rule import gated_delta_rule, gated_delta_rule_step

B, T, H, HV, K, V, CHUNK = 2, 21, 2, 4, 5, 3, 8
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


def operands(length=T, seed=0, dtype=np.float64, gated=True):
    """All arguments that are arrays of floats, by name; keys of length 1, beta up to 2, decays weak and strong."""
    rng = np.random.default_rng(seed)
    k = rng.standard_normal((B, length, H, K))
    found = {
        "q": rng.standard_normal((B, length, H, K)),
        "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": rng.standard_normal((B, length, HV, V)),
        "beta": rng.uniform(0, 2, (B, length, HV)),
        "initial_state": rng.standard_normal((B, HV, K, V)),
    }
    if gated:
        found["log_decay"] = -(rng.exponential(size=(B, length, HV)) ** 3)
    return {name: x.astype(dtype) for name, x in found.items()}


def of_tokens(given, change):
    """`given` with `change` made to everything that has an axis T."""
    return {name: x if name == "initial_state" else change(x) for name, x in given.items()}


@functools.cache
def jitted(**options):
    return jax.jit(functools.partial(gated_delta_rule, return_state=True, chunk_size=CHUNK, **options))


def plain(q, k, v, beta, initial_state, log_decay=None, mask=None, segment_ids=None, norm=False):
    """One token of one head after the other."""
    state, y = np.array(initial_state, np.float64), np.zeros(v.shape)
    for b in range(len(v)):
        last = None
        for t in range(v.shape[1]):
            if mask is not None and not mask[b, t]:
                continue
            if segment_ids is not None:
                if last not in (None, segment_ids[b, t]):
                    state[b] = 0
                last = segment_ids[b, t]
            for h in range(v.shape[2]):
                group = h // (v.shape[2] // q.shape[2])
                query, key = q[b, t, group], k[b, t, group]
                if norm:
                    query, key = (x / np.sqrt(x @ x + 1e-6) for x in (query, key))
                if log_decay is not None:
                    state[b, h] *= np.exp(log_decay[b, t, h])
                state[b, h] += np.outer(key, beta[b, t, h] * (v[b, t, h] - key @ state[b, h]))
                y[b, t, h] = query @ state[b, h] / np.sqrt(q.shape[3])
    return y, state


# --- values


@EVERY
@pytest.mark.parametrize("gated", [False, True])
def test_plain_loop(implementation, gated):
    with jax.enable_x64(True):
        given = operands(gated=gated)
        assert_same(jitted(implementation=implementation)(**given), plain(**given), 1e-12)


@EVERY
def test_plain_loop_with_padding_segments_and_norm(implementation):
    with jax.enable_x64(True):
        given = operands(seed=1)
        given["k"] = given["k"] * 3
        marks = {"mask": MASK, "segment_ids": SEGMENTS}
        found = jitted(implementation=implementation, qk_l2norm=True)(**given, **marks)
        assert_same(found, plain(**given, **marks, norm=True), 1e-12)
        assert not np.asarray(found[0])[~MASK].any()


def test_gradients_are_differences_of_the_plain_loop():
    """Those of the reference, which all others are compared with; log decays far from where they are cut off."""
    given = operands(9)
    marks = {"mask": MASK[:, :9], "segment_ids": SEGMENTS[:, :9]}
    rng = np.random.default_rng(1)
    weights = rng.standard_normal(given["v"].shape), rng.standard_normal(given["initial_state"].shape)
    run = functools.partial(gated_delta_rule, return_state=True, qk_l2norm=True, implementation="reference", **marks)
    with jax.enable_x64(True):
        gradients = jax.jit(lambda given, weights: jax.vjp(lambda x: run(**x), given)[1](weights)[0])(given, weights)
    assert_differences(functools.partial(plain, norm=True, **marks), given, weights, gradients)


@EVERY
@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK + 1])
def test_lengths_in_single_precision(implementation, length):
    """One token, fewer than a chunk, one more."""
    given = operands(length, seed=length, dtype=np.float32)
    assert_same(jitted(implementation=implementation)(**given), plain(**given), 2e-6)


@EVERY
def test_reverse_is_flipped(implementation):
    with jax.enable_x64(True):
        given = operands()
        marks = {"mask": MASK, "segment_ids": SEGMENTS}
        flipped = {name: x[:, ::-1] for name, x in marks.items()}
        y, state = plain(**of_tokens(given, lambda x: x[:, ::-1]), **flipped)
        found = jitted(implementation=implementation, reverse=True)(**given, **marks)
        assert_same(found, (y[:, ::-1], state), 1e-12)


@EVERY
@pytest.mark.parametrize("gated", [False, True])
def test_segments_are_separate_runs(implementation, gated):
    """Without a decay of its own, too. One segment is a single token, and an id may come again."""
    with jax.enable_x64(True):
        given = operands(gated=gated)
        ids = np.repeat([[3, 8, 3]], B, 0).repeat([6, 1, 14], 1)
        found = jitted(implementation=implementation)(**given, segment_ids=ids)
        outputs, state = [], given["initial_state"]
        for start, end in ((0, 6), (6, 7), (7, T)):
            part = of_tokens(given, lambda x, own=slice(start, end): x[:, own]) | {"initial_state": state}
            y, last = plain(**part)
            outputs.append(y)
            state = np.zeros_like(state)
        assert_same(found, (np.concatenate(outputs, 1), last), 1e-12)


# --- padding


@EVERY
def test_padding_on_the_right_is_as_if_it_were_not_there(implementation):
    """Neither its amount nor its content, NaN included; the state is that after the last real token."""
    given = operands(dtype=np.float32)
    expected = jitted(implementation=implementation)(**given)
    padded = of_tokens(given, lambda x: np.pad(x, [(0, 0), (0, 5)] + [(0, 0)] * (x.ndim - 2), constant_values=np.nan))
    mask = np.broadcast_to(np.arange(T + 5) < T, (B, T + 5))
    y, state = jitted(implementation=implementation)(**padded, mask=mask)
    assert_same((y[:, :T], state), expected, 2e-6)
    assert not np.asarray(y[:, T:]).any()


@EVERY
@pytest.mark.parametrize("content", [1e4, np.nan, np.inf])
def test_content_of_padding_means_nothing(implementation, content):
    """On the left and in holes too: nothing changes to the bit."""
    given, run = operands(dtype=np.float32), jitted(implementation=implementation)
    other = of_tokens(
        given, lambda x: np.where(MASK.reshape(MASK.shape + (1,) * (x.ndim - 2)), x, content).astype(x.dtype)
    )
    found = run(**other, mask=MASK)
    assert_equal(found, run(**given, mask=MASK))
    assert not np.asarray(found[0])[~MASK].any()


@EVERY
def test_only_padding_leaves_the_state(implementation):
    given = operands(dtype=np.float32)
    y, state = jitted(implementation=implementation)(**given, mask=np.zeros((B, T), bool))
    assert not np.asarray(y).any()
    np.testing.assert_array_equal(state, given["initial_state"])


# --- steps, parts, the future


def test_steps_equal_the_whole():
    """Grouped values, padding and all; a step with another mask leaves that example's state to the bit."""
    with jax.enable_x64(True):
        given = operands()
        expected = plain(**given, mask=MASK, norm=True)
        state = given.pop("initial_state")

        @jax.jit
        def run(state, given, mask):
            def step(state, now):
                given, mask = now
                y, new = gated_delta_rule_step(state, **given, mask=mask, qk_l2norm=True)
                kept = (jnp.where(mask[:, None, None, None], 0, new - state) == 0).all()
                return new, (y, kept)

            tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (given, mask))
            state, (y, kept) = jax.lax.scan(step, state, tokens)
            return (jnp.moveaxis(y, 0, 1), state), kept.all()

        found, kept = run(state, given, MASK)
        assert_same(found, expected, 1e-12)
        assert kept


@EVERY
def test_parts_with_the_state_between(implementation):
    """Also a part of one token, and one that ends inside a chunk."""
    with jax.enable_x64(True):
        given = operands()
        expected = plain(**given)
        state, outputs = given.pop("initial_state"), []
        for part in (slice(0, 13), slice(13, 14), slice(14, None)):
            own = {name: x[:, part] for name, x in given.items()}
            y, state = jitted(implementation=implementation)(**own, initial_state=state)
            outputs.append(y)
        assert_same((np.concatenate(outputs, 1), state), expected, 1e-12)


@EVERY
def test_causality(implementation):
    """All later inputs are replaced: what comes before stays, up to rounding."""
    given, other = operands(dtype=np.float32), operands(seed=5, dtype=np.float32)
    run = jitted(implementation=implementation)
    expected = np.asarray(run(**given)[0])
    for t in (1, 7, 8, 20):
        mixed = {
            name: x if name == "initial_state" else np.concatenate([x[:, :t], 3 * other[name][:, t:]], 1)
            for name, x in given.items()
        }
        found = np.asarray(run(**mixed)[0])
        assert error(found[:, :t], expected[:, :t]) <= 1e-6
        assert np.abs(found[:, t] - expected[:, t]).max() > 1e-3


# --- identities


@EVERY
def test_no_decay_is_a_decay_of_one(implementation):
    """Gated DeltaNet with g = 0 is DeltaNet."""
    given = operands(dtype=np.float32, gated=False)
    run = jitted(implementation=implementation)
    assert_same(run(**given, log_decay=np.zeros_like(given["beta"])), run(**given), 2e-6)


@EVERY
def test_a_decay_of_zero_is_a_new_sequence(implementation):
    """log_decay = -inf drops what was, as a change of segment does."""
    with jax.enable_x64(True):
        given = operands()
        run = jitted(implementation=implementation)
        ids = np.broadcast_to(np.arange(T) >= 6, (B, T)).astype(np.int32)
        expected = run(**given, segment_ids=ids)
        given["log_decay"][:, 6] = -np.inf
        assert_same(run(**given), expected, 1e-13)


@EVERY
def test_beta_of_zero_writes_nothing(implementation):
    """The state stays, or only decays; outputs read it."""
    given = operands(dtype=np.float32)
    given["beta"] = np.zeros_like(given["beta"])
    run, decays = jitted(implementation=implementation), given.pop("log_decay")
    y, state = run(**given)
    np.testing.assert_array_equal(state, given["initial_state"])
    q = np.repeat(given["q"], HV // H, axis=2) / np.sqrt(K)
    assert error(y, np.einsum("bthk,bhkv->bthv", q, given["initial_state"])) <= 2e-6
    left = np.exp(np.cumsum(decays.astype(np.float64), axis=1))
    y, state = run(**given, log_decay=decays)
    assert error(state, left[:, -1, :, None, None] * given["initial_state"]) <= 2e-6
    assert error(y, np.einsum("bth,bthk,bhkv->bthv", left, q, given["initial_state"])) <= 2e-6


@EVERY
def test_beta_of_one_replaces_what_the_key_holds(implementation):
    given = operands(dtype=np.float32)
    given["beta"] = np.ones_like(given["beta"])
    _, state = jitted(implementation=implementation)(**given)
    key = np.repeat(given["k"][:, -1], HV // H, axis=1)
    assert error(np.einsum("bhk,bhkv->bhv", key, state), given["v"][:, -1]) <= 2e-6


@EVERY
def test_beta_of_two_reflects(implementation):
    """Twice the same token: the second write undoes the first where there is no value."""
    given = operands(2, dtype=np.float32, gated=False)
    given |= {name: np.repeat(given[name][:, :1], 2, axis=1) for name in "qk"}
    given |= {"v": np.zeros_like(given["v"]), "beta": np.full_like(given["beta"], 2)}
    _, state = jitted(implementation=implementation)(**given)
    assert error(state, given["initial_state"]) <= 2e-6


@EVERY
def test_grouped_values_are_copies_of_queries_and_keys(implementation):
    given = operands(dtype=np.float32)
    run = jitted(implementation=implementation)
    copies = given | {name: np.repeat(given[name], HV // H, axis=2) for name in "qk"}
    assert_same(run(**copies), run(**given), 2e-6)


@EVERY
def test_orthogonal_keys_never_meet(implementation):
    """Then it is linear attention."""
    given = operands(K, dtype=np.float32, gated=False)
    given["k"] = np.broadcast_to(np.eye(K, dtype=np.float32)[None, :, None], (B, K, H, K))
    given["initial_state"] = 0 * given["initial_state"]
    scores = np.tril(np.einsum("bihk,bjhk->bhij", given["q"], given["k"])) / np.sqrt(K)
    written = given["beta"][..., None] * given["v"]
    expected = np.einsum("bhij,bjhv->bihv", np.repeat(scores, HV // H, axis=1), written)
    assert error(jitted(implementation=implementation)(**given)[0], expected) <= 2e-6


def test_scale_and_dtypes():
    given = operands(dtype=np.float32)
    expected, _ = jitted(implementation="reference")(**given)
    found, state = jitted(implementation="xla", scale=1.0)(**given)
    assert error(found / np.sqrt(K), expected) <= 2e-6
    assert state.dtype == jnp.float32
    narrow = {name: jnp.asarray(x, jnp.bfloat16) for name, x in given.items()}
    for name in IMPLEMENTATIONS:
        run = functools.partial(gated_delta_rule, return_state=True, implementation=name)
        y, state = jax.eval_shape(run, **narrow)
        assert (y.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)
        y, _ = jax.eval_shape(run, **(narrow | {"v": given["v"]}))
        assert y.dtype == jnp.float32
    token = {name: x[:, 0] for name, x in narrow.items() if name != "initial_state"}
    y, state = jax.eval_shape(gated_delta_rule_step, narrow["initial_state"], **token)
    assert (y.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)


# --- errors


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("q", (B, T, K), ["q [B, T, H, K]", "3 axes"]),
        ("k", (B, T, H, K + 1), ["k [B, T, H, K]", "axis 3 (K)", f"K = {K}"]),
        ("v", (B, T + 1, HV, V), ["v [B, T, HV, V]", "axis 1 (T)", f"T = {T}"]),
        ("beta", (B, T, H), ["beta [B, T, HV]", "axis 2 (HV)"]),
        ("log_decay", (B, T), ["log_decay [B, T, HV]", "2 axes"]),
        ("initial_state", (B, HV, V, K), ["initial_state [B, HV, K, V]", "axis 2 (K)"]),
        ("mask", (B, 1), ["mask [B, T]", "axis 1 (T)"]),
        ("segment_ids", (T,), ["segment_ids [B, T]", "1 axes"]),
    ],
)
def test_wrong_shapes(name, shape, words):
    kinds = {"mask": bool, "segment_ids": np.int32}
    given = operands(dtype=np.float32) | {name: np.zeros(shape, kinds.get(name, np.float32))}
    with pytest.raises(ValueError, match="gated_delta_rule") as caught:
        jax.eval_shape(gated_delta_rule, **given)
    assert all(word in str(caught.value) for word in words), caught.value


def test_other_errors():
    given = operands(dtype=np.float32)
    with pytest.raises(TypeError, match=r"mask .*booleans"):
        gated_delta_rule(**given, mask=np.ones((B, T), np.int32))
    with pytest.raises(TypeError, match=r"segment_ids .*integers"):
        gated_delta_rule(**given, segment_ids=np.ones((B, T), np.float32))
    with pytest.raises(TypeError, match=r"beta .*floating point"):
        gated_delta_rule(**(given | {"beta": np.ones((B, T, HV), np.int32)}))
    with pytest.raises(ValueError, match="no implementation 'triton'"):
        gated_delta_rule(**given, implementation="triton")
    with pytest.raises(ValueError, match="chunk_size of at least 1"):
        gated_delta_rule(**given, chunk_size=0)
    uneven = {"v": given["v"][:, :, :3], "beta": given["beta"][..., :3], "log_decay": None, "initial_state": None}
    with pytest.raises(ValueError, match="HV = 3, must be a multiple of those of q, H = 2"):
        gated_delta_rule(**given | uneven)
    with pytest.raises(ValueError, match="axis T is 0"):
        gated_delta_rule(**of_tokens(given, lambda x: x[:, :0]))
    token = {name: x[:, 0] for name, x in given.items() if name != "initial_state"}
    with pytest.raises(ValueError, match=r"gated_delta_rule_step takes state \[B, HV, K, V\]"):
        gated_delta_rule_step(np.zeros((B, HV, K)), **token)
    with pytest.raises(ValueError, match=r"gated_delta_rule_step takes mask \[B\]"):
        gated_delta_rule_step(given["initial_state"], **token, mask=MASK)
